"""The retraining stage."""

import functools
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from nas.cli.progress_bar import Progress
from nas.cli.stages.setup import Setup, at_least, check_outputs, taking, two_examples
from nas.data.inputs import each
from nas.data.loader import Loader
from nas.errors import ConfigError, described
from nas.runtime import distributed
from nas.runtime.precision import check_first_step
from nas.runtime.runtime import derived_seed, seed_layers
from nas.settings.configuration import to_plain
from nas.spaces.cell import DropPath, set_drop_path
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import RunDirectory
from nas.supernet.choice import check_chosen
from nas.supernet.genotype import Genotype
from nas.training.batch_norm import synchronised
from nas.training.ema import Average
from nas.training.evaluate import Score, score
from nas.training.hooks import Profiling, Saving
from nas.training.loop import RetrainPlan, RetrainState, TrainingStep, retrain
from nas.training.put_back import all_put_back
from nas.training.schedule import Linear, initial_lr
from nas.training.trained import EVALUATION_BATCH, Trained
from nas.training.trial_training import try_training


class RetrainStage:
    """Train the network of a genotype from scratch: leaves ``retrain/checkpoint.pt``."""

    def __init__(self, setup: Setup) -> None:
        cfg = setup.cfg.retrain
        check_recipe(cfg)
        self.setup = setup
        self.space = setup.space.resized(cfg.network)
        self.step = TrainingStep(
            auxiliary_weight=cfg.auxiliary_weight,
            grad_clip=cfg.grad_clip,
            label_smoothing=cfg.label_smoothing,
            accumulation=cfg.accumulation,
            precision=setup.runtime.precision,
        )
        learnt, self.held_out = setup.data.retrain_splits(
            validation=cfg.validation or 0.0, seed=derived_seed(setup.cfg.seed, "retrain validation")
        )
        loader = functools.partial(
            Loader,
            learnt,
            spec=setup.data.spec,
            batch_size=cfg.batch_size,
            device=setup.runtime.device,
            seed=derived_seed(setup.cfg.seed, "retrain batches"),
            augment=setup.data.augmented(
                cutout=cfg.cutout, policy=None if cfg.policy is None else setup.build(cfg.policy)
            ),
            shuffle=True,
            drop_last=True,
            what="retrain.batch_size",
            share=distributed.share(),
        )
        mix = setup.data.mixing(mixup=cfg.mixup, cutmix=cfg.cutmix)
        self.loader = loader(mix=mix)
        self.unmixed = loader()  # whose targets are of the kind that the task describes
        if mix is not None or cfg.label_smoothing > 0:
            check_takes_probabilities(setup)
        two_examples(self.loader)  # what is done to the images may not suit them
        # The real optimiser needs the network, which may only be known after a search: a mistake shows on this one.
        probe = self.optimizer(setup.runtime.place(nn.Linear(1, 1)))
        check_first_step(probe)
        setup.build(cfg.lr, start=initial_lr(probe))
        with setup.buildable():
            self.options = self.space.options(setup.data.spec)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return self.setup.optimizer(self.setup.cfg.retrain.optim, network)

    def check(self, genotype: Genotype) -> None:
        """Raises GenotypeError unless the genotype is of this stage's space, SpaceError if its network does not suit
        the data and the task, or a training step of it fails, ConfigError for a setting without effect in it. The
        global generators are put back."""
        self.space.check(genotype)
        check_chosen(genotype.choices, self.options)
        cfg, setup = self.setup.cfg.retrain, self.setup
        with all_put_back([], device=setup.runtime.device):
            with setup.buildable():
                network = setup.runtime.place(self.space.network(setup.data.spec, genotype)).eval()
            inputs, targets = two_examples(self.unmixed)
            with torch.no_grad(), taking(inputs):
                outputs = network(*each(inputs))
            check_outputs(outputs, targets, setup)
            check_drop_path(network, cfg.drop_path)
            if next(network.parameters(), None) is not None:
                batch = next(self.loader.epoch(0))
                optimizer = self.optimizer(network)
                try_training(network, batch, task=setup.task, optimizer=optimizer, step=self.step, decay=cfg.average)

    def run(self, genotype: Genotype, out: RunDirectory, tracker: JsonLines) -> Trained:
        cfg, setup = self.setup.cfg, self.setup
        setup.runtime.start(cfg.seed)  # so that the stage gives the same whether or not a search came before it
        network = setup.runtime.place(self.space.network(setup.data.spec, genotype))
        distributed.start_alike(network)
        decay = cfg.retrain.average
        average = Average(network, decay=decay) if decay > 0 else None
        state = RetrainState(
            network,
            self.optimizer(network),
            average,
            scaler=setup.runtime.precision.scaler(),
            metric=setup.task.metric.name,
            guard=setup.runtime.guard(),
        )
        seed_layers(cfg.seed)
        kept = setup.checkpoints(out, "retrain")
        if (saved := kept.newest()) is not None:
            setup.check_unchanged(saved, kept.path)
            genotype.check_same(saved.get("genotype"), source=kept.path)
            state.load_state_dict(saved, source=kept.path)
        setup.track_epoch(out, "retrain", self.loader)
        tracker.resume("retrain", state.epoch, state.metrics)

        def everything() -> dict[str, Any]:
            return {
                "config": to_plain(cfg),
                "genotype": genotype.to_dict(),
                "data": setup.data.spec.to_dict(),
                **setup.data.seen,
                **state.state_dict(),
            }

        profile = setup.profile(out, "retrain")
        plan = RetrainPlan(
            epochs=cfg.retrain.epochs,
            lr=setup.build(cfg.retrain.lr, start=initial_lr(state.optimizer)),
            drop_path=Linear(0.0, last_drop_path(cfg.retrain)),
        )
        bar = Progress("retrain", plan.epochs, metric=setup.task.metric)
        saving = Saving(
            "retrain",
            checkpoints=kept,
            tracker=tracker,
            everything=everything,
            last=lambda: state.epoch == plan.epochs,
        )
        with profile, kept, bar, synchronised(network):
            retrain(
                state,
                task=setup.task,
                loader=self.loader,
                plan=plan,
                step=self.step,
                forward=setup.runtime.compiled(network),
                hooks=[bar, Profiling(profile), saving],
            )
        data = setup.data
        return Trained(
            state.result.eval(), genotype, data.spec, setup.task, to_plain(cfg), data.trained_on, data.sample
        )

    def validated(self, trained: Trained) -> Score | None:
        """On the training examples that were held out of the retraining; None if there are none."""
        if self.held_out is None:
            return None
        loader = Loader(
            self.held_out,
            spec=self.setup.data.spec,
            batch_size=EVALUATION_BATCH,
            device=self.setup.runtime.device,
            shuffle=False,
            drop_last=False,
            what="retrain.validation",
        )
        return score(trained.network, loader, trained.task, trained.spec)


def last_drop_path(cfg: DictConfig) -> float:
    """The rate of the last epoch E - 1: the whole one, or (E - 1) / E of it, by which epoch e has e / E."""
    rate: float = cfg.drop_path
    # A run that was begun before there was this setting goes on as it was.
    return rate if cfg.get("drop_path_reached", True) else rate * (cfg.epochs - 1) / cfg.epochs


def check_drop_path(network: nn.Module, rate: float) -> None:
    """Raises ConfigError if paths are to be dropped in a network that has none; sets the rate otherwise."""
    if rate and not any(isinstance(module, DropPath) for module in network.modules()):
        raise ConfigError(
            f"retrain.drop_path is {rate}, but the network has no DropPath whose rate it could be",
            fix="set retrain.drop_path=0, or use nas.spaces.cell.DropPath in the model",
        )
    set_drop_path(network, rate)


def check_recipe(cfg: DictConfig) -> None:
    """Raises ConfigError for a number of the group ``retrain`` that is out of its range."""
    at_least(1, retrain__epochs=cfg.epochs, retrain__accumulation=cfg.accumulation)
    fractions = {"drop_path": 0.2, "label_smoothing": 0.1, "average": 0.999}  # and a value that makes sense
    for setting in ("grad_clip", "cutout", "auxiliary_weight", "mixup", "cutmix", *fractions):
        at_least(0, **{f"retrain__{setting}": cfg[setting]})
    for setting, example in fractions.items():
        if not cfg[setting] < 1:
            raise ConfigError(
                f"retrain.{setting} must be below 1, got {cfg[setting]}", fix=f"set retrain.{setting}={example}"
            )
    share = cfg.batch_size // distributed.world()
    if cfg.accumulation > share:
        raise ConfigError(
            f"retrain.accumulation splits a batch of {share} into {cfg.accumulation} parts, expected at most one for "
            "each example",
            fix="set retrain.accumulation=1",
        )
    if cfg.network.get("auxiliary") and share // cfg.accumulation < 2:
        raise ConfigError(
            "retrain.accumulation leaves 1 example for the batch norm of the auxiliary head, expected at least 2",
            fix=f"set retrain.accumulation={max(1, share // 2)}",
        )


def check_takes_probabilities(setup: Setup) -> None:
    """Raises ConfigError unless targets may be probabilities of classes, which smoothing and mixing make of labels."""
    spec = setup.data.spec
    problem = "the targets are no class labels"
    if spec.class_names and not spec.target_shape:
        classes = spec.num_classes
        outputs, targets = torch.zeros(2, classes), torch.full((2, classes), 1 / classes)
        try:
            shapes = (setup.task.loss(outputs, targets).shape, setup.task.measure(outputs, targets).shape)
            if shapes == ((), (2,)):
                return
            problem = f"the task's loss and metric of them have the shapes {tuple(map(tuple, shapes))}"
        except Exception as error:  # whatever a user's own loss or metric makes of them
            problem = f"the task refuses them ({described(error)})"
    raise ConfigError(
        "retrain.label_smoothing, mixup and cutmix make probabilities of classes out of the targets, but " + problem,
        fix="set all three to 0",
    )
