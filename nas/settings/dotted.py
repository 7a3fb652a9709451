"""Settings by their dotted names."""

from collections.abc import Iterable
from typing import Any

# What a command line says of a resumption itself, and of whom it trusts: never read from what a run has left.
OWN = ("resume", "may_change", "allow_targets", "lock", "retry_failed")
# Where the data lie. A resumed run may get another place, as the training examples themselves are compared.
PLACES = ("data.root",)
# Whether files are fetched, to a place that the run's configuration names: never read from what a run has left.
FETCH = "data.download"


def leaves(node: Any, prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Dotted name -> value, of a plain configuration; empty nodes are values, and lists are, unless they are to be
    gone through as well."""
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
    """Whether a setting is one of those named, or below one of them."""
    return any(setting == name or setting.startswith(f"{name}.") for name in names)
