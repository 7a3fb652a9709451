"""The search stage: builds a `SearchJob` from the configuration."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.adapt.file_times import FileTimes
from nas.cli.stages.setup import Setup
from nas.errors import ConfigError
from nas.methods.published_settings import missing, reinmax_too_cold
from nas.methods.search_job import SearchJob
from nas.methods.search_options import SearchOptions, SearchParts
from nas.runtime import distributed
from nas.settings.allowed_targets import allowed
from nas.settings.configuration import build_each, to_plain
from nas.settings.dotted import leaves
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import RunDirectory
from nas.supernet.genotype import Genotype


class SearchStage(SearchJob):
    """Searches and derives. Leaves ``search/checkpoint.pt``, and ``genotype.json`` after every epoch."""

    def __init__(self, setup: Setup) -> None:
        cfg = setup.cfg
        self.setup = setup
        options = SearchOptions(**cfg.search)
        parts = SearchParts(
            sampler=setup.build(cfg.sampler),
            temperature=setup.build(cfg.temperature),
            deriver=setup.build(cfg.deriver),
            searcher=setup.build(cfg.searcher),
            monitor=setup.build(cfg.monitor),
            weight_optim=setup.build(cfg.weight_optim),
            arch_optim=setup.build(cfg.arch_optim),
            lr=setup.build(cfg.lr),
            regulariser=build_each(cfg.regulariser, allow=allowed(cfg)),
            cap=to_plain(cfg.cap),
            file_times=functools.partial(FileTimes, resumed=None if cfg.resume is None else Path(cfg.resume)),
        )
        self.auxiliary_weight = cfg.retrain.auxiliary_weight
        super().__init__(setup, options, parts, retrained=setup.space.resized(cfg.retrain.network))
        self.say_what_is_not_as_published(cfg)

    def say_what_is_not_as_published(self, cfg: DictConfig) -> None:
        """Prints a line if a method was chosen without the settings of its authors, or if ReinMax runs below
        temperature 1.
        """
        # Without the name, which only a command can resolve.
        settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "name"])
        lines = (
            missing(self.sampler, leaves(to_plain(settings))),
            reinmax_too_cold(self.sampler, self.temperature, self.options.epochs),
        )
        for kind, line in zip(("note", "warning"), lines, strict=True):
            if line is not None and distributed.first():
                print(f"{kind}: {line}", file=sys.stderr)

    def run(self, out: RunDirectory, tracker: JsonLines) -> Genotype:
        return self.search(self.setup.records(out, tracker))


def refuse_several_caps(cap: Mapping[str, Any]) -> None:
    """Raises ConfigError for several caps, where one network is trained."""
    for numbers in cap.values():
        if isinstance(numbers, list) and len(set(numbers)) > 1:
            raise ConfigError(
                f"cap gives {len(set(numbers))} networks, expected one for nas-run, which trains one",
                fix="use nas-search, then nas-retrain genotype=<its directory>/genotype_2.json retrain.start=supernet",
            )
