"""Searchers of made-up parts, without a search around them."""

from nas.methods.state import SearchState
from nas.runtime.precision import Precision

STATE = ("supernet", "arch", "weight_optim", "arch_optim", "generator", "sampler", "scaler", "guard")


def build_searcher(kind, **parts):
    """kind: the class. parts: of the state of a search, and the arguments of the class."""
    held = {name: parts.pop(name) for name in STATE if name in parts}
    precision = parts.get("precision") or Precision()
    return kind(SearchState(**{"scaler": precision.scaler(), **held}, metric="accuracy"), **parts)
