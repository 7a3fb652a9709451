"""The retraining stage."""

import torch
from torch import nn

from nas import checkpoint
from nas.choice import check_chosen
from nas.config import to_plain
from nas.data.inputs import each
from nas.data.loader import Loader
from nas.errors import ConfigError
from nas.genotype import Genotype
from nas.progress import Progress
from nas.retrain import RetrainState, retrain
from nas.run_directory import RunDirectory
from nas.runtime import derived_seed
from nas.schedule import Linear
from nas.stages.setup import Setup, at_least, check_outputs, two_examples
from nas.stages.trained import Trained
from nas.tracker import JsonLines


class RetrainStage:
    """Train the network of a genotype from scratch: leaves ``retrain/checkpoint.pt`` after every epoch."""

    def __init__(self, setup: Setup) -> None:
        cfg = setup.cfg.retrain
        at_least(1, retrain__epochs=cfg.epochs)
        at_least(
            0,
            retrain__grad_clip=cfg.grad_clip,
            retrain__cutout=cfg.cutout,
            retrain__drop_path=cfg.drop_path,
            retrain__auxiliary_weight=cfg.auxiliary_weight,
        )
        if not cfg.drop_path < 1:
            raise ConfigError(
                f"retrain.drop_path must be below 1, got {cfg.drop_path}", fix="set retrain.drop_path=0.2"
            )
        self.setup = setup
        self.space = setup.space.resized(cfg.network)
        self.loader = Loader(
            setup.data.train,
            spec=setup.data.spec,
            batch_size=cfg.batch_size,
            device=setup.runtime.device,
            seed=derived_seed(setup.cfg.seed, "retrain batches"),
            augment=setup.data.with_cutout(cfg.cutout),
            shuffle=True,
            drop_last=True,
            what="retrain.batch_size",
        )
        # The real optimiser needs the network, which may only be known after a search: a mistake shows on this one.
        probe = self.optimizer(nn.Linear(1, 1))
        self.lr = setup.build(cfg.lr, start=probe.param_groups[0]["lr"])
        self.options = self.space.options(setup.data.spec)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.setup.build(self.setup.cfg.retrain.optim, params=network.parameters())
        return optimizer

    def check(self, genotype: Genotype) -> None:
        """Raises GenotypeError unless the genotype is of this stage's space, SpaceError if its network does not suit
        the data and the task."""
        self.space.check(genotype)
        check_chosen(genotype.choices, self.options)
        network = self.setup.runtime.place(self.space.network(self.setup.data.spec, genotype)).eval()
        inputs, targets = two_examples(self.loader)
        with torch.no_grad():
            check_outputs(network(*each(inputs)), targets, self.setup)

    def run(self, genotype: Genotype, out: RunDirectory, tracker: JsonLines) -> Trained:
        cfg, setup = self.setup.cfg, self.setup
        path = out.subdirectory("retrain") / "checkpoint.pt"
        setup.runtime.start(cfg.seed)  # so that the stage gives the same whether or not a search came before it
        network = setup.runtime.place(self.space.network(setup.data.spec, genotype))

        def on_epoch(state: RetrainState, metrics: dict[str, float]) -> None:
            tracker.log("retrain", state.epoch - 1, metrics)
            checkpoint.save(
                path,
                "retrain",
                {
                    "config": to_plain(cfg),
                    "genotype": genotype.to_dict(),
                    "data": setup.data.spec.to_dict(),
                    **state.state_dict(),
                },
            )

        with Progress("retrain", cfg.retrain.epochs, metric=setup.task.metric) as bar:
            retrain(
                RetrainState(network, self.optimizer(network)),
                task=setup.task,
                loader=self.loader,
                epochs=cfg.retrain.epochs,
                lr=self.lr,
                drop_path=Linear(0.0, cfg.retrain.drop_path),
                auxiliary_weight=cfg.retrain.auxiliary_weight,
                grad_clip=cfg.retrain.grad_clip,
                bar=bar,
                on_epoch=on_epoch,
            )
        return Trained(network.eval(), genotype, setup.data.spec, setup.task, to_plain(cfg))
