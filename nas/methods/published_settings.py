"""The published settings of each method, to warn about the settings that a run lacks.

Choosing only a sampler, a searcher or partial channels keeps the other settings of the run. The default settings are
GDAS'.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.methods.dirichlet import Dirichlet
from nas.methods.sampler import GDAS, GumbelSoftmax, Sampler, Softmax
from nas.training.schedule import Schedule, progress

DARTS_WEIGHTS = {"weight_optim.nesterov": False, "weight_optim.weight_decay": 3e-4}
FIRST = {"search.arch_first": True}


@dataclass(frozen=True)
class Published:
    """A method: the override that chooses it, its authors' settings, and the presets with all of these settings."""

    choice: str
    method: str
    settings: Mapping[str, Any]
    presets: Sequence[str] = ()


SAMPLERS: dict[type, Published] = {
    Softmax: Published("sampler=softmax", "DARTS", {**DARTS_WEIGHTS, **FIRST}, ("darts_first_order",)),
    GumbelSoftmax: Published("sampler=gumbel_softmax", "SNAS", DARTS_WEIGHTS),
    Dirichlet: Published("sampler=dirichlet", "DrNAS", {**DARTS_WEIGHTS, **FIRST}, ("dr_nas",)),
}
SECOND_ORDER = Published(
    "searcher=second_order",
    "DARTS",
    {**DARTS_WEIGHTS, **FIRST, "searcher.method": "difference"},
    ("darts_second_order",),
)
PARTIAL_CHANNELS = Published(
    "space.partial_channels=4",
    "PC-DARTS",
    {
        **DARTS_WEIGHTS,
        **FIRST,
        "weight_optim.lr": 0.1,
        "arch_optim.lr": 6e-4,
        "search.batch_size": 256,
        "search.warmup_epochs": 15,
        "space.edge_normalisation": True,
    },
    ("pc_darts",),
)


def chosen(sampler: Sampler, settings: Mapping[str, Any]) -> Iterator[Published]:
    """Yields the published method that the run has chosen a part of, if there is one."""
    if (settings.get("space.partial_channels") or 1) > 1:
        yield PARTIAL_CHANNELS
    elif "searcher.radius" in settings:
        yield SECOND_ORDER
    elif type(sampler) in SAMPLERS:
        yield SAMPLERS[type(sampler)]


def missing(sampler: Sampler, settings: Mapping[str, Any]) -> str | None:
    """One line about the published settings that the run does not have; None if the run has all of them.

    settings: dotted name -> value, of the run. Settings that the run does not know, e.g. of another optimiser, are
    ignored.
    """
    for published in chosen(sampler, settings):
        lacking = [
            f"{name}={spelt(value)} (here {spelt(settings[name])})"
            for name, value in published.settings.items()
            if name in settings and settings[name] != value
        ]
        if lacking:
            presets = " or ".join(f"experiment={name}" for name in published.presets)
            return (
                f"{published.choice} does not bring along what {published.method} was published with: "
                + ", ".join(lacking)
                + (f"; {presets} has all of it" if presets else "")
            )
    return None


def spelt(value: Any) -> str:
    """The value as YAML spells it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def reinmax_too_cold(sampler: Sampler, temperature: Schedule, epochs: int) -> str | None:
    """One line about ReinMax at temperatures below 1, where its derivation does not hold; None without such a
    temperature."""
    if not isinstance(sampler, GDAS) or sampler.estimator != "reinmax":
        return None
    lowest = min(temperature(progress(epoch, epochs)) for epoch in range(epochs))
    if lowest >= 1:
        return None
    return (
        f"sampler.estimator=reinmax is accurate to second order at temperatures of 1 or more, and this search cools to "
        f"{lowest:g}; set temperature=constant temperature.value=1, or temperature.end=1"
    )
