"""What is worth measuring on a GPU, in this order."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[1]
SPACES = {
    "nas_bench_201": ["space=nas_bench_201", "runtime.deterministic=false"],
    "darts": [
        *("space=darts", "space.cells=6", "search.batch_size=256", "data.train=2048"),
        *("runtime.deterministic=false", "runtime.precision=bf16"),
    ],
}
DARTS = ["space.cells=3", "retrain.network.auxiliary=false"]  # the auxiliary head needs larger images than 8x8
SMALL = ["data=synthetic", "data.train=32", "data.test=16", "data.size=8", "search.batch_size=4", "space.channels=4"]
SEEDS = range(4)


@dataclass(frozen=True)
class Item:
    """commands: of the directory of results -> what is run. at_once: all commands side by side, else one after the
    other. least: seconds without which it does not begin. resumes: a later call goes on where it was stopped."""

    name: str
    commands: Callable[[Path], list[list[str]]]
    least: float
    at_once: bool = False
    resumes: bool = False


def items(overrides, *, miniature):
    """overrides: of all searches and retrainings, e.g. where the data is. miniature: what runs in seconds on a CPU."""
    least = 1.0 if miniature else 60.0
    small = [*SMALL, "space.cells=1", "search.epochs=1"] if miniature else []
    few = ["--pairs", "2"] if miniature else ["--pairs", "20"]
    draws = ["--draws", "1", "--times", "2"] if miniature else []
    found = [
        Item("probe", lambda _: [script("gpu_bench/probe.py")], 2 * least),
        Item("capture", lambda _: [script("gpu_bench/capture.py")], 3 * least),
        Item("gpu_tests", lambda _: [[sys.executable, "-m", "pytest", "-q", "-m", "gpu", *gpu_tests()]], 2 * least),
    ]
    for space, of in SPACES.items():
        if miniature:
            of = [of[0], *SMALL, f"space.cells={3 if space == 'darts' else 1}"]
        floor = [*of, *draws]
        found.append(Item(f"floor_{space}", timed("gpu_bench/whole_graphs.py", f"floor_{space}", floor), least))
        for mode in ("true", "composed"):
            name = f"step_{space}_{mode}"
            step = [*of, f"runtime.cuda_graphs={mode}", "--no-memory", *few]
            found.append(Item(name, timed("bench_step", name, step), 2 * least))
    for name, at_once in (("seeds_one_after_the_other", False), ("seeds_side_by_side", True)):
        short = ["experiment=gdas_nas_bench_201", "search.epochs=2", *overrides, *small]
        found.append(Item(name, seeds(name, short), 3 * least, at_once=at_once))
    searches = {
        "seeds_of_one_cell": ["experiment=gdas_nas_bench_201", "space.cells=1", *overrides, *small],
        "search_nas_bench_201": ["experiment=gdas_nas_bench_201", *overrides, *small],
        "search_darts": ["experiment=gdas_darts", *overrides, *small, *(DARTS if miniature else [])],
    }
    for name, of in searches.items():
        commands = seeds(name, of) if name.startswith("seeds") else lambda d, n=name, o=of: [run(d, "search", n, o)]
        found.append(Item(name, commands, least, at_once=True, resumes=True))
    retraining = ["experiment=retrain_fast", *overrides]
    if miniature:
        retraining += [
            *SMALL[:4],
            "retrain.epochs=1",
            "retrain.batch_size=4",
            "retrain.network={channels: 4, cells: 3, auxiliary: false}",
            "retrain.cutout=4",
        ]
    found.append(Item("retrain_darts", lambda d: [retrained(d, retraining)], least, resumes=True))
    return found


def script(name, *arguments):
    return [sys.executable, str(SCRIPTS / name), *arguments]


def gpu_tests():
    tests = SCRIPTS.parent / "tests"
    return [str(tests / room) for room in ("methods", "training", "data")]


def timed(name, out, arguments):
    return lambda directory: [script(name, *arguments, "--out", str(directory / f"{out}.json"))]


def run(directory, stage, name, overrides):
    """A search or retraining, or what goes on with it."""
    out = directory / "runs" / name
    begun = (out / stage / "checkpoint.pt").is_file()
    return [
        sys.executable,
        "-m",
        f"nas.cli.{stage}",
        *([f"resume={out}"] if begun else [*overrides, f"hydra.run.dir={out}"]),
    ]


def seeds(name, overrides):
    return lambda directory: [
        run(directory, "search", f"{name}/{seed}", [*overrides, f"seed={seed}"]) for seed in SEEDS
    ]


def retrained(directory, overrides):
    genotype = directory / "runs" / "search_darts" / "genotype.json"
    return run(directory, "retrain", "retrain_darts", [*overrides, f"genotype={genotype}"])
