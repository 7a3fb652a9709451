import os

import pytest
import torch
from torch import nn

from nas.errors import ConfigError, DeviceError
from nas.runtime import runtime
from nas.runtime.runtime import Runtime, available_devices, derived_seed, find_device


@pytest.fixture
def _global_state_restored(monkeypatch):
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("name", ["tpu", "", "cuda:99", "gpu", "cpu:5", "meta", "CPU", "cuda:-1", "0"])
def test_an_unknown_device_lists_those_there_are(name):
    with pytest.raises(
        DeviceError, match=f"device '{name}' is not on this machine, which has cpu.*runtime.device=auto"
    ):
        Runtime(device=name)


def test_known_devices():
    assert available_devices()[0] == "cpu"
    for name in available_devices():
        assert find_device(name) == torch.device(name)
    assert find_device("auto") == torch.device([*available_devices()[1:], "cpu"][0])
    assert Runtime(device=torch.device("cpu")).described() == Runtime(device="cpu").described()


@pytest.mark.parametrize(
    ("there", "taken"), [(["cpu"], "cpu"), (["cpu", "cuda:0", "cuda:1"], "cuda:0"), (["cpu", "mps"], "mps")]
)
def test_auto_is_the_first_gpu(there, taken, monkeypatch):
    monkeypatch.setattr(runtime, "available_devices", lambda: there)
    assert find_device("auto") == torch.device(taken)
    assert Runtime(device="cpu").device == torch.device("cpu")


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_below_one(threads):
    with pytest.raises(ConfigError, match=rf"runtime\.threads must be at least 1, got {threads}"):
        Runtime(device="cpu", threads=threads)


@pytest.mark.usefixtures("_global_state_restored")
def test_start_sets_threads_determinism_and_seeds():
    Runtime(device="cpu", threads=2).start(5)
    first = torch.rand(3)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    Runtime(device="cpu", threads=None, deterministic=True).start(5)
    assert torch.equal(torch.rand(3), first)
    assert torch.get_num_threads() == 2
    Runtime(device="cpu").start(6)
    assert not torch.equal(torch.rand(3), first)


@pytest.mark.usefixtures("_global_state_restored")
def test_start_without_determinism():
    torch.use_deterministic_algorithms(True)
    Runtime(device="cpu", deterministic=False).start(0)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("name", "expected"), [("channels_last", True), ("contiguous", False)])
def test_memory_formats(name, expected):
    model = Runtime(device="cpu", memory_format=name).place(nn.Conv2d(4, 4, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last) == expected
    assert model.weight.is_contiguous() != expected


def test_unknown_memory_format():
    with pytest.raises(ConfigError, match="must be one of channels_last, contiguous, got 'nhwc'"):
        Runtime(device="cpu", memory_format="nhwc")


def test_derived_seeds_are_distinct_stable_and_valid():
    purposes = ["gates", "weight batches", "architecture batches", "retrain batches", "", "1", "1 "]
    seeds = {derived_seed(seed, purpose) for seed in range(200) for purpose in purposes}
    assert len(seeds) == 200 * len(purposes)
    # The same on every machine and in every release: a resumed run depends on it.
    assert derived_seed(0, "gates") == derived_seed(0, "gates") == 0xEFBD68B523A47E
    for seed in list(seeds)[:100]:
        assert 0 <= seed < 2**63
        torch.Generator().manual_seed(seed)


def test_derived_seeds_do_not_run_together():
    # "1" + "1 x" and "11" + " x" must not meet.
    assert derived_seed(1, "1 x") != derived_seed(11, "x")


def test_peak_memory_and_description():
    runtime = Runtime(device="cpu")
    assert runtime.peak_memory() > 10_000_000  # bytes: torch alone takes more
    assert runtime.describe().startswith("cpu, ")


@pytest.mark.parametrize(
    ("name", "memory_format"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_convolutions_of_one_and_three_dimensions_can_be_placed(name, memory_format):
    def layers(*kinds):
        torch.manual_seed(0)
        return nn.ModuleList([kind(4, 4, size) for size in (1, 3) for kind in kinds])

    Runtime(device="cpu", memory_format=name).place(layers(nn.Conv1d, nn.Conv2d, nn.Conv3d))
    placed = Runtime(device="cpu", memory_format=name).place(layers(nn.Conv2d))
    # Strides, too, of weights of 1x1 that are in every format at once: kernels are chosen by them.
    expected = layers(nn.Conv2d).to(memory_format=memory_format)
    for p, q in zip(placed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.stride() == q.stride()
