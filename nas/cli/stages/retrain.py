"""The retraining stage: what the configuration says, as the objects of a `RetrainJob`."""

from collections.abc import Callable
from dataclasses import fields

from omegaconf import DictConfig

from nas.cli.stages.setup import Setup
from nas.settings.configuration import to_plain
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import RunDirectory
from nas.supernet.genotype import Genotype
from nas.training.inheritance import SupernetWeights
from nas.training.retrain_job import RetrainJob, RetrainOptions, RetrainParts
from nas.training.trained import Trained


class RetrainStage(RetrainJob):
    """Train the network of a genotype: leaves ``retrain/checkpoint.pt``."""

    def __init__(self, setup: Setup) -> None:
        cfg = setup.cfg.retrain
        self.setup = setup
        parts = RetrainParts(
            optim=setup.build(cfg.optim),
            lr=setup.build(cfg.lr),
            policy=None if cfg.policy is None else setup.build(cfg.policy),
        )
        super().__init__(setup, options(cfg), parts)

    def run(
        self,
        genotype: Genotype,
        out: RunDirectory,
        tracker: JsonLines,
        *,
        supernet: Callable[[], SupernetWeights] | None = None,
    ) -> Trained:
        return self.train(genotype, self.setup.records(out, tracker), supernet=supernet)


def options(cfg: DictConfig) -> RetrainOptions:
    """Of the group ``retrain``. A run that was begun before there was one of the settings goes on as it was."""
    numbers = {field.name: cfg[field.name] for field in fields(RetrainOptions) if field.name in cfg}
    return RetrainOptions(**numbers | {"network": to_plain(cfg.network)})
