"""What a tracker gets beside the metrics of the epochs: settings by which runs are compared, texts, final scores."""

import contextlib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from nas.errors import GenotypeError
from nas.settings.configuration import to_plain, to_yaml
from nas.settings.names import NAME
from nas.spaces.published import to_text
from nas.storage.run_directory import command_line
from nas.supernet.genotype import Genotype

NUMBERS = {"search": ("epochs", "batch_size"), "retrain": ("epochs", "batch_size")}
LONGEST = 100  # characters of a value


def description(cfg: DictConfig, *, metric: str) -> dict[str, Any]:
    """The arguments of a tracker's `describe`."""
    return {
        "texts": {"settings": to_yaml(cfg), "command": " ".join(command_line())},
        "settings": compared(to_plain(cfg)),
        "scores": [f"test/{metric}", "gap/recalibrated", f"search/arch/{metric}"],
    }


def compared(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The choice of every group, the seed, and the sizes of both stages."""
    found: dict[str, str | int | float] = {"seed": settings["seed"]}
    for group, node in settings.items():
        if isinstance(node, dict) and NAME in node:
            found[group] = str(node[NAME])[:LONGEST]
        elif group in ("ops", "regulariser", "formats") and isinstance(node, dict):
            found[group] = (", ".join(map(str, node)) or "none")[:LONGEST]
    for stage, names in NUMBERS.items():
        of = settings.get(stage) or {}
        found |= {f"{stage}.{name}": of[name] for name in names if isinstance(of.get(name), int)}
    return found


def scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result, by the tags of their cards."""
    numbers = {name: value for name, value in result.items() if type(value) in (int, float)}
    return {f"test/{name.removeprefix('test_')}": float(value) for name, value in numbers.items()}


def genotype_texts(genotype: Genotype) -> dict[str, str]:
    """A genotype as JSON, and in the notation of its space where it has one."""
    texts = {"genotype": genotype.to_json()}
    with contextlib.suppress(GenotypeError):
        texts["notation"] = to_text(genotype)
    return texts
