"""Settings by their dotted names."""

from collections.abc import Iterable
from typing import Any

# How the command line resumes a run, and whom it trusts: never read from the files of a run.
OWN = ("resume", "may_change", "allow_targets", "lock", "retry_failed", "dry_run")
# The groups of a search, which nas-retrain has and does not use.
OF_SEARCH = (
    "search", "sampler", "temperature", "searcher", "regulariser", "monitor", "deriver",
    "weight_optim", "arch_optim", "lr",
)  # fmt: skip
# Where the data, the tables and the first weights lie. A resumed run may use another place: the training examples, the
# teacher's weights and the latencies are compared, the first weights are in its checkpoints by then, and a search never
# sees the benchmark.
PLACES = ("data.root", "benchmark.table", "regulariser.latency.table", "space.weights", "teacher.weights")
# Whether files are downloaded to a place that the run's configuration names: never read from the files of a run.
FETCH = "data.download"
# Whether folders of images may be links that lead elsewhere: never read from what a run has left, either.
LINKS = "data.links"


def leaves(node: Any, prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Returns dotted name -> value of a plain configuration.

    Empty nodes are values. Lists are values too, unless `lists` is true: then their items are.
    """
    if lists and isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        name: value
        for key, child in node.items()
        for name, value in leaves(child, f"{prefix}.{key}" if prefix else str(key), lists=lists).items()
    }


def among(setting: str, names: Iterable[str]) -> bool:
    """Returns whether a setting is one of `names`, or below one of them."""
    return any(setting == name or setting.startswith(f"{name}.") for name in names)
