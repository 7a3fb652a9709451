"""Every YAML that ships composes and builds, and every preset runs two steps."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nas.cli.stages.retrain import RetrainStage
from nas.cli.stages.search import SearchStage
from nas.cli.stages.setup import Opening, Setup
from nas.errors import ConfigError, DataError
from nas.settings import configuration, schemas
from nas.storage.metrics_log import JsonLines
from nas.studies.plan import read as read_study

ROOT = configuration.directory()
GROUPS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "hydra")
# These need settings of the user's own: see test_custom.py, test_inserted.py and test_search_settings.py, among others.
OF_THE_USER = ("custom", "inserted", "parameters", "macs", "latency")
TRACKERS = ("mlflow", "trackio", "wandb")  # of others, whose clients test_other_trackers.py tests
OPTIONS = {
    group: [path.stem for path in sorted((ROOT / group).glob("*.yaml")) if path.stem not in (*OF_THE_USER, *TRACKERS)]
    for group in GROUPS
    # below, in tests/data, in test_nas_bench_201_table.py, and in test_search_settings.py
    if group not in ("experiment", "data", "benchmark", "teacher")
}
ALONE = ("keep", "ops", "retrain", "searcher", "space", "task")  # go with one space, or need more than their option
# The others go together: the first options of all groups in one configuration, then the second ones, ...
TOGETHER = [
    [(group, options[row % len(options)]) for group, options in OPTIONS.items() if group not in ALONE]
    for row in range(max(len(options) for group, options in OPTIONS.items() if group not in ALONE))
]
CASES = [[(group, option)] for group in ALONE for option in OPTIONS[group]] + TOGETHER
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiment").glob("*.yaml"))
# Their steps run all operations of the DARTS space, several passes, or large networks; the others show the same parts.
SLOW = {
    "beta_darts", "darts_first_order", "darts_second_order", "darts_second_order_nas_bench_201", "gaea", "gdas_darts",
    "pc_darts", "retrain_darts_cifar10", "retrain_fast", "retrain_gdas_cifar10",
    "quickstart", # which nearly all tests of commands run
}  # fmt: skip

# Two batches in each half of the training split, on images as large as CIFAR's: an auxiliary head needs that.
SMALL = [
    "data=synthetic", "data.train=16", "data.test=4", "data.classes=2", "data.size=32",
    "search.epochs=1", "search.batch_size=4", "retrain.epochs=1", "retrain.batch_size=8",
    "runtime.device=cpu", "tracker=jsonl",
]  # fmt: skip
NARROW = ["space.channels=4", "retrain.network.channels=4"]
# Options that go with a space other than the default one.
SPACES = {
    **dict.fromkeys(("darts", "darts_gdas", "darts_without_none", "gdas", "fast", "s1", "s2", "s3", "s4"), "darts"),
    "darts_imagenet": "darts_imagenet",
    "mbconv": "mbconv",
}


@pytest.fixture(autouse=True)
def composer() -> Iterator[None]:
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        yield


def composed(root: str, *overrides: str) -> DictConfig:
    cfg = compose(root, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def test_settings_that_a_resumed_run_could_not_read_are_refused(tmp_path: Path) -> None:
    cfg = composed("search")
    cfg.may_change = ["x" * 100] * 1000
    (tmp_path / "config.yaml").write_text(Opening.from_config(cfg).text)
    assert configuration.read_yaml(tmp_path / "config.yaml").may_change == cfg.may_change
    cfg.may_change = ["x" * 100] * 3000
    with pytest.raises(ConfigError, match=r"the settings take .* bytes, expected at most 250000"):
        Opening.from_config(cfg)


def two_steps(cfg: DictConfig, directory: Path, *, retrains: bool) -> None:
    """One stage, every loader of which gives two batches; four where both levels of a search have all images."""
    setup = Setup.from_config(cfg)
    search, retrain = SearchStage(setup), RetrainStage(setup)
    batches = 4 if cfg.search.one_level else 2
    assert (len(search.weight_loader), len(search.arch_loader), len(retrain.loader)) == (batches, batches, 2)
    object.__setattr__(setup, "cfg", None)  # which nothing reads once the stages are built
    with setup.open(directory) as out, JsonLines(directory=out.path) as tracker:
        if not retrains:
            assert search.run(out, tracker).space == setup.space.name
            return
        trained = retrain.run(search.first, out, tracker)
    assert trained.genotype == search.first
    assert not trained.network.training


@pytest.mark.parametrize("root", sorted(path.stem for path in ROOT.glob("*.yaml")))
def test_every_command_composes(root: str) -> None:
    cfg = composed(root)
    if root not in ("draw", "predict"):  # which run no network, or one on a device alone
        assert cfg.runtime._target_ == "nas.runtime.Runtime"
    assert HydraConfig.get().job.name == f"nas-{root}"


def test_nas_retrain_reads_presets_as_nas_run_does(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    chosen = "retrain: {start: supernet, validation: 0.25}\ncap: {macs: 0.5}\nmay_change: [seed]\nlock: false\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{chosen}")
    mine = (f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    run, retrain = composed("run", *mine), composed("retrain", *mine, "genotype=DARTS_V2")
    assert (run.retrain.start, run.lock) == ("supernet", False)
    of_run, of_retrain = OmegaConf.to_container(run), OmegaConf.to_container(retrain)
    assert isinstance(of_run, dict)
    assert isinstance(of_retrain, dict)
    assert {name for name in of_retrain if of_retrain[name] != of_run.get(name)} == {"genotype", "name"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_in_the_table_of_settings(group: str) -> None:
    text = (ROOT / "README.md").read_text()
    rows = [line for line in text.splitlines() if re.match(rf"\| .*`{group}[`@]", line)]
    if group == "experiment":
        rows = [text.split("\n## Presets\n")[1].split("\n## ")[0]]
    options = {path.stem for path in (ROOT / group).glob("*.yaml")} - {"default"}
    assert rows
    assert options <= {*re.findall(r"\w+", rows[0])}


def overrides_of(group: str, option: str) -> list[str]:
    places = [group]
    if group == "optim":  # a group that appears in three places
        places = ["optim@weight_optim", "optim@arch_optim", "optim@retrain.optim"]
    if option == "exponentiated_gradient":  # moves logits alone
        places = ["optim@arch_optim"]
    if group == "lr":
        places = ["lr", "lr@retrain.lr"]
    if group == "policy":
        places = ["policy@retrain.policy"]
    return [f"{place}={option}" for place in places]


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(map("=".join, case)))
def test_every_option_builds(case: list[tuple[str, str]], tmp_path: Path) -> None:
    overrides = [override for group, option in case for override in overrides_of(group, option)]
    if case == [("searcher", "second_order")]:  # differentiates through the gates
        overrides.append("sampler=softmax")
    space = SPACES.get(case[0][1]) if len(case) == 1 else None
    if space is not None:
        overrides = [f"space={space}", *overrides]
    cells = 1 if space is None else 3  # as few as the space takes
    sizes = [*NARROW, f"space.cells={cells}", f"retrain.network.cells={cells}"]
    if space == "mbconv":  # it has stages, no cells
        sizes = ["space.widths=[4]", "space.depths=[1]", "space.strides=[1]"]
    if space == "darts_imagenet":  # whose auxiliary head needs larger images
        sizes.append("data.size=193")
    small = [o for o in SMALL if not (len(case) > 1 and o.startswith("tracker"))]
    cfg = composed("run", *small, *overrides, *sizes)
    if case == [("task", "regression")]:  # which images with class labels are not for
        with pytest.raises(DataError, match="task=regression needs floats as targets"):
            SearchStage(Setup.from_config(cfg))
        return
    setup = Setup.from_config(cfg)
    if case[0][0] == "ops":  # nothing but the supernet reads them
        setup.space.supernet(setup.data.spec)
    elif case[0][0] not in ("keep", "searcher"):
        RetrainStage(setup)
    if case[0][0] not in ("ops", "retrain"):
        SearchStage(setup)
    with setup.open(tmp_path) as out, setup.track(out) as tracker:
        tracker.log("search", 0, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"stage": "search", "epoch": 0, "loss": 1.0}\n'


@pytest.mark.parametrize("tracker", TRACKERS)
def test_trackers_of_others_build(tracker: str) -> None:
    assert issubclass(configuration.build(composed("run", f"tracker={tracker}").tracker).func, JsonLines)


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in EXPERIMENTS]
)
def test_every_preset_runs_two_steps(experiment: str, tmp_path: Path) -> None:
    # The preset's own settings but for the sizes; its data set and table may not be on this machine.
    cells = ("space.cells=3", "retrain.network.cells=3", "~benchmark")
    cfg = composed("run", f"experiment={experiment}", *SMALL, *NARROW, *cells)
    if "samples" in cfg.deriver:
        cfg.deriver.samples = 2  # architectures that are compared at the end
    # The other stage is that of other presets.
    two_steps(cfg, tmp_path, retrains=experiment.startswith("retrain"))


def test_the_studies_of_this_project_compose() -> None:
    paths = list((Path(__file__).parents[2] / "scripts" / "studies").glob("*.yaml"))
    assert paths
    for path in paths:
        plan, _ = read_study(path)
        for _, seed, settings in plan.jobs()[: len(plan.methods)]:
            assert composed(plan.command, *plan.of_all(), *settings).seed == seed


@pytest.mark.parametrize("space", ["nas_bench_201", "darts", "mbconv"])
def test_hydra_is_not_asked_about_every_candidate(space: str) -> None:
    setup = Setup.from_config(composed("run", *SMALL, f"space={space}"))
    called: set[str] = set()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        called.add(frame.f_globals.get("__name__", ""))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        setup.space.supernet(setup.data.spec)
    finally:
        sys.setprofile(before)
    assert "nas.supernet.choice" in called
    assert not {name for name in called if name.startswith("hydra")}
