"""The result of a search, and the arguments that a retraining takes from it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.spaces.published import resolve
from nas.spaces.space import Space
from nas.supernet.genotype import Genotype
from nas.training.inheritance import SupernetWeights, checkpoint_beside


@dataclass(frozen=True)
class Found:
    """The result of a search. result: as in ``result.json``. metrics: of the last epoch, as in ``metrics.jsonl``.
    stopped: why the search ended before its last epoch, None if it did not. supernet: its weights, for `retrain`.
    front: what several caps gave, one for each, the loosest first; each can be given to `retrain`."""

    genotype: Genotype
    result: Mapping[str, Any]
    metrics: Mapping[str, float]
    stopped: str | None = None
    supernet: SupernetWeights | None = field(default=None, repr=False, compare=False)
    front: "tuple[Found, ...]" = ()


def genotype_of(given: Genotype | Found | str | None, space: Space) -> Genotype:
    """The genotype: of a search, or from its published name, its text, or the path of its file; for None that without
    choices. Raises ConfigError for anything else."""
    if given is None:
        return Genotype(space.name, {})
    if isinstance(given, Found):
        return given.genotype
    if not isinstance(given, Genotype | str | Path):
        raise ConfigError(
            f"genotype is a {type(given).__name__}, expected what nas.search returned, a genotype, or its name or path",
            fix="give what nas.search returned, one entry of its `front`, or None for a model without choices",
        )
    return given if isinstance(given, Genotype) else resolve(str(given))


def supernet_of(genotype: Genotype | Found | str | None, *, resumes: bool) -> Callable[[], SupernetWeights]:
    """Returns a function that loads the weights of the search that derived a genotype.

    Raises ConfigError if there are none."""
    if not isinstance(genotype, Genotype | Found | None):
        return functools.partial(SupernetWeights.load, checkpoint_beside(genotype, resumes=resumes))
    supernet = genotype.supernet if isinstance(genotype, Found) else None
    if supernet is None:
        raise ConfigError(
            "retrain.start=supernet takes the weights of a search, got "
            + ("no genotype" if genotype is None else "a genotype alone"),
            fix="give what nas.search returned, or the path of the genotype.json in the directory of a search",
        )
    return lambda: supernet
