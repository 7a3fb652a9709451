"""The table of the study: every run, means with intervals, and differences between runs of one seed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nas.errors import ConfigError
from nas.studies.statistics import described

MEASURE = "test_accuracy"


def report(original: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]], *, ours: str = "searched") -> dict[str, Any]:
    """What the table says. original: the result of its training. jobs: what each left. ours: the method that the
    others are compared with. Raises ConfigError for jobs that do not compare."""
    if any(job["settings"] != jobs[0]["settings"] for job in jobs):
        raise ConfigError("the jobs have different settings, expected the same", fix="give each setting its own RUNS")
    by_seed = {
        method: {job["seed"]: job[MEASURE] for job in jobs if job["method"] == method}
        for method in dict.fromkeys(job["method"] for job in jobs)
    }
    differences = {}
    for method, of in by_seed.items():
        paired = [by_seed[ours][seed] - of[seed] for seed in of if seed in by_seed.get(ours, {})]
        if method != ours and paired:
            differences[f"{ours} - {method}"] = described(paired)
    return {
        "measure": MEASURE,
        "original": {name: original[name] for name in (MEASURE, "test_examples", "parameters", "macs")},
        "methods": {method: described(list(of.values())) for method, of in by_seed.items()},
        "differences": differences,
        "runs": list(jobs),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The report as tables. Accuracies are percentages."""
    original = found["original"]
    lines = [
        f"The original has {percent(original[MEASURE])} % on {original['test_examples']:,} test images, "
        f"{original['macs']:,} multiply-accumulates and {original['parameters']:,} parameters.",
        "",
        *rows(("method", "runs", "mean, %", "standard deviation", "95 % interval of the mean")),
        *(row(name, of, percent) for name, of in found["methods"].items()),
        "",
        *rows(
            ("difference, the same seeds", "runs", "mean, points", "standard deviation", "95 % interval of the mean")
        ),
        *(row(name, of, points) for name, of in found["differences"].items()),
        "",
        *rows(("run", "seed", "test, %", "multiply-accumulates", "of the original's", "parameters", "updates")),
    ]
    for job in found["runs"]:
        updates = f"{job['updates']['search']:,} + {job['updates']['tuning']:,}"
        size = f"{job['macs']:,} | {job['part_of_macs']:.4f} | {job['parameters']:,}"
        lines.append(f"| {job['method']} | {job['seed']} | {percent(job[MEASURE])} | {size} | {updates} |")
    return "\n".join(lines) + "\n"


def rows(header: Iterable[str]) -> list[str]:
    names = list(header)
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def row(name: str, of: Mapping[str, Any], shown: Any) -> str:
    spread = shown(of["std"]).lstrip("+") if "std" in of else "-"
    interval = " to ".join(map(shown, of["interval"])) if "interval" in of else "-"
    return f"| {name} | {of['n']} | {shown(of['mean'])} | {spread} | {interval} |"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    return f"{100 * value:+.2f}"
