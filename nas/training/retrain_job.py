"""A retraining from plain objects: what is built and checked before it, and its run."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.data.inputs import each
from nas.data.loader import Loader
from nas.errors import ConfigError, described
from nas.runtime import distributed
from nas.runtime.precision import check_first_step
from nas.runtime.rng import random_state, set_random_state
from nas.runtime.runtime import derived_seed, seed_layers
from nas.settings.building import complete
from nas.spaces.cell import DropPath, set_drop_path
from nas.supernet.genotype import Genotype, check_chosen
from nas.training.batch_norm import frozen_norms, recalibrate, synchronised
from nas.training.distillation import attached
from nas.training.ema import Average, check_averaged
from nas.training.evaluate import Score, score
from nas.training.inheritance import SCRATCH, SupernetWeights, check_alike, inherit
from nas.training.job import Job, check_learns, taking, two_examples, two_of
from nas.training.loop import RetrainPlan, RetrainState, TrainingStep, retrain
from nas.training.own_generators import OwnGenerators
from nas.training.put_back import all_put_back
from nas.training.records import Records
from nas.training.retrain_options import RetrainOptions, RetrainParts
from nas.training.schedule import Linear, initial_lr, learning_rates
from nas.training.task_state import changing, modules_of
from nas.training.trained import EVALUATION_BATCH, Trained
from nas.training.trial_training import check_one_example, check_saves_all, try_training
from nas.training.unsaved_numbers import UnsavedNumbers
from nas.training.weighing import weights_of

CALIBRATION = 100  # batches at most that batch norms are recalibrated on


class RetrainJob:
    """Checks and builds all it can in its constructor; `train` trains the network of a genotype."""

    def __init__(self, job: Job, options: RetrainOptions, parts: RetrainParts) -> None:
        distributed.check_same({f"retrain.{name}": value for name, value in asdict(options).items()})
        self.job = job
        self.options = options
        self.parts = parts
        job.task_state.hold("policy", parts.policy)
        self.space = job.space.resized(options.network)
        self.step = TrainingStep(
            auxiliary_weight=options.auxiliary_weight,
            grad_clip=options.grad_clip,
            label_smoothing=options.label_smoothing,
            accumulation=options.accumulation,
            precision=job.runtime.precision,
        )
        learnt, self.held_out = job.data.retrain_splits(
            validation=options.validation or 0.0, seed=derived_seed(job.seed, "retrain validation")
        )
        loader = functools.partial(
            Loader,
            learnt,
            spec=job.data.spec,
            batch_size=options.batch_size,
            device=job.runtime.device,
            seed=derived_seed(job.seed, "retrain batches"),
            augment=job.data.augmented(cutout=options.cutout, policy=parts.policy),
            shuffle=True,
            drop_last=True,
            what="retrain.batch_size",
            share=distributed.share(),
        )
        mix = job.data.mixing(mixup=options.mixup, cutmix=options.cutmix)
        self.loader = loader(mix=mix)
        self.unmixed = loader()  # whose targets are of the kind that the task describes
        if mix is not None or options.label_smoothing > 0:
            check_takes_probabilities(job)
        two_examples(self.loader)  # what is done to the images may not suit them
        # The real optimiser needs the network, which may only be known after a search: a mistake shows on this one.
        probe = self.optimizer(job.runtime.place(nn.Linear(1, 1, bias=False)))  # Muon takes matrices only
        check_first_step(probe)
        learning_rates(complete(parts.lr, start=initial_lr(probe)), "retrain.lr")
        with job.buildable():
            self.network_options = self.space.options(job.data.spec)
            if options.inherits:
                check_alike(job.space, self.space, job.data.spec)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return self.job.build_optimizer(self.parts.optim, network, setting="retrain.optim")

    def check(self, genotype: Genotype) -> None:
        """Raises GenotypeError unless the genotype is of this job's space, SpaceError if its network does not suit
        the data and the task, or a training step of it fails, ConfigError for a setting without effect in it. The
        global generators are put back."""
        self.space.check(genotype)
        check_chosen(genotype.choices, self.network_options)
        job, options = self.job, self.options
        with all_put_back([], device=job.runtime.device):
            with job.buildable():
                network = job.runtime.place(self.space.network(job.data.spec, genotype)).eval()
            whole = next(self.unmixed.epoch(0))
            inputs, targets = two_of(whole)
            with torch.no_grad(), taking(network, inputs):
                outputs = network(*each(inputs))
            job.check_outputs(outputs, targets)
            job.check_taught(network, inputs, outputs)
            job.check_parts(outputs, whole[1])
            check_drop_path(network, options.drop_path)
            check_learns(network, what="the derived network")
            if options.average > 0:
                check_averaged(network)
            optimizer = self.optimizer(network)
            watched = {"network": network, "task": job.task, "augment": job.data.augment, "optim": optimizer}
            numbers = UnsavedNumbers(watched | modules_of(job.task))
            batch = next(self.loader.epoch(0))

            def build() -> nn.Module:
                return job.runtime.place(self.space.network(job.data.spec, genotype))

            def then() -> None:
                numbers.say_which_changed()
                check_saves_all(network, build, inputs)
                check_one_example(network, (inputs, targets), job.task)

            with job.runtime.guard().on_trial():
                try_training(
                    network,
                    batch,
                    task=job.training_task,
                    optimizer=optimizer,
                    step=self.step,
                    decay=options.average,
                    then=then,
                )

    def started(self, genotype: Genotype, supernet: SupernetWeights | None = None) -> nn.Module:
        """The genotype's network as its training begins. supernet: whose weights it inherits, None for none."""
        job, spec = self.job, self.job.data.spec
        if supernet is None:
            return job.runtime.place(self.space.start(spec, genotype))
        network = job.runtime.place(self.space.network(spec, genotype))
        inherit(network, supernet, space=job.space, spec=spec, genotype=genotype)
        self.recalibrate(network)
        return network

    @torch.no_grad()
    def recalibrate(self, network: nn.Module) -> None:
        """Let batch norms have the statistics of some training batches, as they had those of all paths together."""
        frozen = frozen_norms(network.train())

        def run() -> None:
            with self.job.runtime.precision.autocast():
                for inputs, _ in itertools.islice(self.unmixed.epoch(0), CALIBRATION):
                    network(*each(inputs))

        random = random_state()
        network.eval()
        recalibrate(network, run, but=frozen)
        set_random_state(random)  # a network may draw noise, and what follows is to draw the same either way
        network.train()

    def train(
        self, genotype: Genotype, records: Records, *, supernet: Callable[[], SupernetWeights] | None = None
    ) -> Trained:
        """Train from the beginning, or from where a run that is resumed stopped. Leaves ``retrain/checkpoint.pt``.

        supernet: gives the weights of the search, asked for where training begins with them.
        """
        job, options = self.job, self.options
        distributed.check_same({"the genotype": genotype.to_dict()})
        job.runtime.start(job.seed)  # so that the stage gives the same whether or not a search came before it
        stage = records.stage("retrain")
        if stage.begun:
            network = job.runtime.place(
                self.space.network(job.data.spec, genotype)
            )  # its weights are in the checkpoint
        else:
            assert supernet is not None or not options.inherits  # who calls has checked it
            network = self.started(genotype, supernet() if options.inherits and supernet is not None else None)
        distributed.start_alike(network)
        state = RetrainState(
            network.train(),
            self.optimizer(network),
            Average(network, decay=options.average) if options.average > 0 else None,
            scaler=job.runtime.precision.scaler(),
            metric=job.task.metric.name,
            guard=job.runtime.guard(),
            task=job.task_state,
            generators=OwnGenerators(
                {"network": network, "task": job.task, "augment": job.data.augment, "policy": self.parts.policy}
            ),
        )
        seed_layers(job.seed)
        job.task_state.reset()

        def check_genotype(saved: Mapping[str, Any], source: Path) -> None:
            genotype.check_same(saved.get("genotype"), source=source)

        records.record(retrain_start=options.start or SCRATCH)
        stage.resume(state, data=job.data, seen=job.seen, loader=self.loader, check=check_genotype)
        plan = RetrainPlan(
            epochs=options.epochs,
            lr=complete(self.parts.lr, start=initial_lr(state.optimizer)),
            drop_path=Linear(0.0, options.last_drop_path),
        )
        watched = stage.hooks(
            state,
            epochs=plan.epochs,
            metric=job.task.metric,
            content={"genotype": genotype.to_dict(), "data": job.data.spec.to_dict(), **job.seen},
        )
        task = job.training_task
        with watched as hooks, synchronised(network), attached(task, network):
            retrain(
                state,
                task=task,
                loader=self.loader,
                plan=plan,
                step=self.step,
                forward=job.runtime.compiled(network),
                hooks=hooks,
            )
        return Trained(
            state.result.eval(),
            genotype,
            job.data.spec,
            job.task,
            dict(records.settings),
            job.data.trained_on,
            job.data.sample,
        )

    def validated(self, trained: Trained) -> Score | None:
        """The score on the training examples that were held out of the retraining; None if there are none."""
        if self.held_out is None:
            return None
        loader = Loader(
            self.held_out,
            spec=self.job.data.spec,
            batch_size=EVALUATION_BATCH,
            device=self.job.runtime.device,
            shuffle=False,
            drop_last=False,
            what="retrain.validation",
        )
        return score(trained.network, loader, trained.task, trained.spec)


def check_drop_path(network: nn.Module, rate: float) -> None:
    """Raises ConfigError if paths are to be dropped in a network that has none; sets the rate otherwise."""
    if rate and not any(isinstance(module, DropPath) for module in network.modules()):
        raise ConfigError(
            f"retrain.drop_path is {rate}, but the network has no DropPath whose rate it could be",
            fix="set retrain.drop_path=0, or use nas.spaces.cell.DropPath in the model",
        )
    set_drop_path(network, rate)


def check_takes_probabilities(job: Job) -> None:
    """Raises ConfigError unless loss, metric and weights take probabilities of classes, which smoothing and mixing make
    of labels."""
    spec = job.data.spec
    problem = "the targets are no class labels"
    if spec.class_names and not spec.target_shape:
        classes = spec.num_classes
        outputs, targets = torch.zeros(2, classes), torch.full((2, classes), 1 / classes)
        try:
            with all_put_back([job.task, *changing(job.task)], device=targets.device):
                got = {
                    "loss": job.task.loss(outputs, targets),
                    "metric": job.task.measure(outputs, targets),
                    "weights": weights_of(job.task, targets),
                }
            shapes = {name: tuple(value.shape) for name, value in got.items() if value is not None}
            if shapes in ({"loss": (), "metric": (2,)}, {"loss": (), "metric": (2,), "weights": (2,)}):
                return
            problem = f"of two of them the task's shapes are {shapes}"
        except Exception as error:  # whatever a user's own loss or metric makes of them
            problem = f"the task refuses them ({described(error)})"
    raise ConfigError(
        "retrain.label_smoothing, mixup and cutmix make probabilities of classes out of the targets, but " + problem,
        fix="set all three to 0",
    )
