"""Writes facts for the report of a run: changed settings, the worst mistakes, a latency."""

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas.cli.mistakes import untouched
from nas.data.bundle import DataBundle
from nas.data.loader import Loader
from nas.data.spec import ImageSpec
from nas.settings.configuration import to_plain
from nas.settings.dotted import OWN, among, leaves
from nas.storage import atomic
from nas.training.latency import latency
from nas.training.mistakes import FILE, Mistakes
from nas.training.trained import Trained

SECONDS = 0.1  # that the latency is measured for, and ten passes at least
NOT_COMPARED = (*OWN, "name", "seed", "experiment")


def changed(cfg: DictConfig) -> dict[str, list[Any]]:
    """Returns the settings that differ from those of nas-run without arguments: name -> [default, value]; None for
    none.
    """
    before, now = defaults(places()), leaves(to_plain(cfg))  # of the whole, as settings may name each other
    names = [name for name in now | before if before.get(name) != now.get(name)]
    return {name: [before.get(name), now.get(name)] for name in names if not among(name, ("genotype", *NOT_COMPARED))}


@functools.lru_cache(maxsize=1)
def defaults(places: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings of nas-run without arguments. places: directories of the YAML files.

    Composing them takes a fifth of a second, so jobs of a sweep do it once.
    """
    config = untouched("run")
    config.name = ""  # only a command can resolve it
    return leaves(to_plain(config))


def places() -> tuple[str, ...]:
    """Returns where Hydra looks for YAML files; nothing outside a command."""
    from hydra.core.global_hydra import GlobalHydra

    if not GlobalHydra.instance().is_initialized():
        return ()
    return tuple(map(str, GlobalHydra.instance().config_loader().get_search_path().get_path()))


def write_mistakes(mistakes: Mistakes, data: DataBundle, directory: Path) -> None:
    """Writes ``mistakes.json``. If there are no mistakes, or no pictures of them, there is no file: not even one of an
    earlier network of a run that went on."""
    if isinstance(data.spec, ImageSpec) and (found := mistakes.found(data.test, data.spec)):
        atomic.write_json(directory / FILE, found)
    else:
        (directory / FILE).unlink(missing_ok=True)


def one_latency(trained: Trained, loader: Loader) -> list[dict[str, Any]]:
    """Measures the latency of one example on the network's device. It is rougher than what nas-evaluate measures."""
    inputs, _ = next(loader.epoch(0))
    return [asdict(latency(trained.network, inputs, batch=1, seconds=SECONDS))]
