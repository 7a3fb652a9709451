"""The retraining stage: builds a `RetrainJob` from the configuration."""

from collections.abc import Callable
from dataclasses import fields

from omegaconf import DictConfig

from nas.cli.stages.setup import Setup
from nas.settings.configuration import to_plain
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import RunDirectory
from nas.supernet.genotype import Genotype
from nas.training.inheritance import SupernetWeights
from nas.training.retrain_job import RetrainJob
from nas.training.retrain_options import RetrainOptions, RetrainParts
from nas.training.trained import Trained


class RetrainStage(RetrainJob):
    """Trains the network of a genotype and leaves ``retrain/checkpoint.pt``."""

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
    """Returns the options of the group ``retrain``.

    A setting that a resumed run does not know keeps its earlier meaning.
    """
    numbers = {field.name: cfg[field.name] for field in fields(RetrainOptions) if field.name in cfg}
    return RetrainOptions(**numbers | {"network": to_plain(cfg.network)})
