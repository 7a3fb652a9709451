"""Fixtures that several test files share. Sizes are tiny, because the mathematics does not depend on them."""

import os
import pickle
import signal
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra._internal import defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from nas.data.spec import ImageSpec
from nas.settings import configuration
from nas.spaces.darts import Darts
from nas.spaces.nas_bench_201 import NasBench201

# From the files that ship, so that the tests cannot drift from them.
OPS_TABLES = sorted(path.stem for path in (configuration.directory() / "ops").glob("*.yaml"))


def pytest_configure():
    """Under nohup SIGHUP is ignored, and the project leaves ignored what it finds ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@cache
def load_ops(name):
    return configuration.build(OmegaConf.load(configuration.directory() / "ops" / f"{name}.yaml"))


def different_ops():
    """(table, operation) for every operation that ships, without those that are the same in an earlier table."""
    cases = {}
    for table in OPS_TABLES:
        shipped = OmegaConf.to_container(OmegaConf.load(configuration.directory() / "ops" / f"{table}.yaml"))
        for name, node in shipped.get("ops", shipped).items():
            cases.setdefault((name, str(node)), (table, name))
    return list(cases.values())


def pytest_generate_tests(metafunc):
    if "op_case" in metafunc.fixturenames:
        metafunc.parametrize("op_case", different_ops(), ids="-".join)


@pytest.fixture
def op(op_case):
    """The factory of one operation of one table: (c_in, c_out, stride, affine) -> module."""
    table, name = op_case
    return load_ops(table)[name]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors are tiny, and threads that wait for each other on a shared machine cost a hundred times the work.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _composed_once():
    """Spares Hydra work that gives the same each time: a third of the time of the tests of commands.

    It composes every configuration twice, the first time to learn whether that sets hydra.mode, which none of ours
    does; it parses each YAML that ships again for every command; and for every YAML it makes a map of all choices,
    which only defaults with ${...} read. None of ours has any.
    """
    Plugins.instance()  # makes the class below, which is another one than that of its module
    of_files = SourcesRegistry.instance().resolve("file")
    load = of_files.load_config
    shipped = {}

    def load_config(source, config_path):
        if source.path.removeprefix("file://") != str(configuration.directory()):
            return load(source, config_path)
        key = source.provider, config_path
        if key not in shipped:
            shipped[key] = pickle.dumps(load(source, config_path))
        return pickle.loads(shipped[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_files, "load_config", load_config)
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr(defaults_list, "_create_interpolation_map", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def spec():
    return ImageSpec(
        name="tiny",
        input_shapes=((3, 8, 8),),
        class_names=("a", "b", "c"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


@pytest.fixture(scope="session")
def ops_tables():
    return {name: load_ops(name) for name in OPS_TABLES}


@pytest.fixture(scope="session")
def nas_bench_201(ops_tables):
    return NasBench201(ops=ops_tables["nas_bench_201"], channels=4, cells=1)


@pytest.fixture(scope="session")
def darts(ops_tables):
    return Darts(ops=ops_tables["darts"], channels=4, cells=3)


@pytest.fixture(params=["nas_bench_201", "darts"])
def space(request):
    """Each of the spaces that ship."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


@pytest.fixture
def nas_data():
    """The directory of the real data sets."""
    root = os.environ.get("NAS_DATA")
    if not root:
        pytest.skip("needs the data sets: set NAS_DATA to their directory")
    return Path(root)
