"""The search stage."""

import difflib
import sys
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf

from nas.cli.progress_bar import Progress
from nas.cli.stages.setup import Setup, at_least, check_outputs, taking, two_examples
from nas.data.loader import Loader, search_batches
from nas.errors import ConfigError
from nas.methods.discretisation_gap import Gap
from nas.methods.estimate import available_memory
from nas.methods.first_order import FirstOrder
from nas.methods.hooks import Collapse, Derivation, Description, DiscretisationGap, Regularisers
from nas.methods.loop import Order, Plan, search
from nas.methods.operation_kinds import kinds_of
from nas.methods.published_settings import missing, reinmax_too_cold
from nas.methods.regulariser import Sum
from nas.methods.state import SearchState
from nas.methods.supernet_score import Judge
from nas.methods.trial_step import try_search
from nas.runtime import distributed
from nas.runtime.runtime import derived_seed, seed_layers
from nas.settings.configuration import to_plain
from nas.settings.dotted import leaves
from nas.storage import atomic
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import RunDirectory
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.supernet.shape_check import check_shapes
from nas.training.batch_norm import synchronised
from nas.training.evaluate import count_parameters
from nas.training.hooks import Hook, Profiling, Saving
from nas.training.loop import TrainingStep
from nas.training.put_back import all_put_back
from nas.training.schedule import initial_lr, positive
from nas.training.trial_training import try_small


class SearchStage:
    """Search and derive: leaves ``search/checkpoint.pt``, and ``genotype.json`` after every epoch."""

    def __init__(self, setup: Setup) -> None:
        cfg, seed = setup.cfg, setup.cfg.seed
        at_least(1, search__epochs=cfg.search.epochs, search__arch_every=cfg.search.arch_every)
        at_least(0, search__init_std=cfg.search.init_std, search__warmup_epochs=cfg.search.warmup_epochs)
        at_least(0, search__gap_batches=cfg.search.gap_batches)
        self.setup = setup
        self.temperature = positive(setup.build(cfg.temperature), "temperature")
        self.deriver = setup.build(cfg.deriver)

        setup.runtime.start(seed)
        self.generator = torch.Generator().manual_seed(derived_seed(seed, "gates"))
        # In training mode, whatever mode the model is built in: its steps are the search's, as retraining's are.
        supernet = setup.runtime.place(setup.space.supernet(setup.data.spec)).train()
        arch = ArchParams.from_model(supernet, init_std=cfg.search.init_std, generator=self.generator)
        arch.to(setup.runtime.device)
        self.sampler = setup.build(cfg.sampler)
        self.state = SearchState(
            supernet=supernet,
            arch=arch,
            weight_optim=setup.optimizer(cfg.weight_optim, supernet),
            arch_optim=setup.optimizer(cfg.arch_optim, arch),
            generator=self.generator,
            scaler=setup.runtime.precision.scaler(),
            metric=setup.task.metric.name,
            guard=setup.runtime.guard(),
            sampler=self.sampler,
        )
        self.retrained_space = setup.space.resized(cfg.retrain.network)
        self.regulariser = self.build_regulariser(arch)
        self.lr = setup.build(cfg.lr, start=initial_lr(self.state.weight_optim))
        self.searcher = setup.build(
            cfg.searcher,
            supernet=supernet,
            arch=arch,
            task=setup.task,
            sampler=self.sampler,
            weight_optim=self.state.weight_optim,
            arch_optim=self.state.arch_optim,
            generator=self.generator,
            regulariser=self.regulariser,
            precision=setup.runtime.precision,
            scaler=self.state.scaler,
            guard=self.state.guard,
        )
        if cfg.search.one_level:
            weight_split = arch_split = setup.data.train
        else:
            weight_split, arch_split = setup.data.search_splits(weight_fraction=cfg.search.weight_fraction, seed=seed)
        self.weight_loader, self.arch_loader, self.validation_loader = (
            Loader(
                split,
                spec=setup.data.spec,
                batch_size=cfg.search.batch_size,
                device=setup.runtime.device,
                seed=derived_seed(seed, f"{purpose} batches"),
                augment=augment,
                shuffle=True,
                drop_last=True,
                what="search.batch_size",
                share=distributed.share(),
            )
            for split, purpose, augment in (
                (weight_split, "weight", setup.data.augment),
                (arch_split, "architecture", setup.data.augment),
                (arch_split, "validation", None),
            )
        )
        self.tell_if_nothing_is_searched()
        self.say_what_is_not_as_published()
        inputs, targets = two_examples(self.arch_loader)
        with taking(inputs):
            outputs = check_shapes(supernet, inputs)
        check_outputs(outputs, targets, setup)
        self.monitor = setup.build(cfg.monitor, kinds=kinds_of(supernet, inputs))
        if setup.benchmark is not None:
            setup.benchmark.check(setup.space.options(setup.data.spec))
        check_excluded(setup, arch)
        # A deriver that does not suit the space, or the benchmark, is found now, not after the first epoch.
        self.first = Genotype(setup.space.name, self.deriver(arch))
        self.describe(self.first)
        self.try_step()
        order = Order(
            warmup_epochs=cfg.search.warmup_epochs, arch_every=cfg.search.arch_every, arch_first=cfg.search.arch_first
        )
        self.plan = Plan(epochs=cfg.search.epochs, temperature=self.temperature, lr=self.lr, order=order)
        self.derivation = Derivation(
            setup.space.name,
            self.deriver,
            monitor=self.monitor,
            judge=self.judge,
            warmup_epochs=cfg.search.warmup_epochs,
        )
        self.measurements: list[Hook] = [
            Collapse(self.monitor),
            Regularisers(self.regulariser, epochs=cfg.search.epochs),
            Description(self.describe),
        ]
        if cfg.search.gap_batches:
            self.measurements.append(DiscretisationGap(self.gap_judge, sampler=self.sampler))
        # Other searchers may ask more of their passes than a replay gives.
        if setup.runtime.cuda_graphs and type(self.searcher) is FirstOrder:
            from nas.methods.cuda_graphs.cuda_graphs import CudaGraphs  # here, as few runs need it
            from nas.methods.cuda_graphs.replayed_module import replay

            replay(supernet, CudaGraphs(setup.runtime.device))

    def tell_if_nothing_is_searched(self) -> None:
        """Warn of a search in which the architecture takes no step, as may be meant where a deriver judges by data."""
        loop, steps = self.setup.cfg.search, len(self.weight_loader)
        before, all_steps = (epochs * steps // loop.arch_every for epochs in (loop.warmup_epochs, loop.epochs))
        if all_steps <= before and distributed.first():
            print(
                f"warning: the architecture takes no step in {loop.epochs} epochs of {steps} steps with "
                f"search.warmup_epochs={loop.warmup_epochs} and search.arch_every={loop.arch_every}, its logits stay "
                "as they begin",
                file=sys.stderr,
            )

    def say_what_is_not_as_published(self) -> None:
        """Print a line if a method that was chosen alone lacks settings of its authors, or ReinMax is too cold."""
        cfg = self.setup.cfg
        # Without the name, which only a command can resolve.
        settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "name"])
        lines = (
            missing(self.sampler, leaves(to_plain(settings))),
            reinmax_too_cold(self.sampler, self.temperature, cfg.search.epochs),
        )
        for kind, line in zip(("note", "warning"), lines, strict=True):
            if line is not None and distributed.first():
                print(f"{kind}: {line}", file=sys.stderr)

    def try_step(self) -> None:
        """One step on trial; prints what the search will take by it."""
        loop, steps = self.setup.cfg.search, len(self.weight_loader)
        (weight_batch, arch_batch) = next(search_batches(self.weight_loader, self.arch_loader, 0))
        learns = loop.epochs * steps // loop.arch_every > loop.warmup_epochs * steps // loop.arch_every
        measured = try_search(self.searcher, weight_batch, arch_batch, temperature=self.temperature(0.0), learns=learns)
        if measured is not None and distributed.first():
            print(measured.line(epochs=loop.epochs, steps=steps))
            if warning := measured.warning(available_memory(measured.device)):
                print(f"warning: {warning}", file=sys.stderr)

    def try_derived(self) -> None:
        """A training step of the first genotype's network on trial, on two examples: for a search by itself, whose
        network may be retrained by other settings."""
        with all_put_back([], device=self.setup.runtime.device):
            network = self.setup.runtime.place(self.retrained_space.network(self.setup.data.spec, self.first))
            step = TrainingStep(
                auxiliary_weight=self.setup.cfg.retrain.auxiliary_weight, precision=self.setup.runtime.precision
            )
            try_small(network, two_examples(self.weight_loader), task=self.setup.task, step=step)

    def build_regulariser(self, arch: ArchParams) -> Sum | None:
        """All that the group ``regulariser`` chose, if anything."""
        known = {"arch": arch, "space": self.retrained_space, "spec": self.setup.data.spec}
        terms = {
            name: self.setup.build(node, **(known if node.get("_partial_") else {}))
            for name, node in self.setup.cfg.regulariser.items()
        }
        return Sum(terms) if terms else None

    def run(self, out: RunDirectory, tracker: JsonLines) -> Genotype:
        cfg, state = self.setup.cfg, self.state
        seed_layers(cfg.seed)
        kept = self.setup.checkpoints(out, "search")
        if (saved := kept.newest()) is not None:
            self.setup.check_unchanged(saved, kept.path)
            state.load_state_dict(saved, source=kept.path)
        self.setup.track_epoch(out, "search", self.weight_loader)
        if state.genotype is not None:  # for the last epoch, if a crash kept it from being logged
            tracker.derived(state.genotype.choices)
        tracker.resume("search", state.epoch, state.metrics)

        def everything() -> dict[str, Any]:
            return {
                "config": to_plain(cfg),
                **self.setup.data.seen,
                **state.state_dict(),
            }

        def write_genotype() -> None:
            if out.writes and state.genotype is not None:
                atomic.write_text(out.path / "genotype.json", state.genotype.to_json())
                tracker.derived(state.genotype.choices)

        distributed.start_alike(state.supernet)
        bar = Progress("search", self.plan.epochs, metric=self.setup.task.metric)
        profile = self.setup.profile(out, "search")
        saving = Saving(
            "search",
            checkpoints=kept,
            tracker=tracker,
            everything=everything,
            last=lambda: state.epoch == self.plan.epochs or state.stopped is not None,
            on_epoch=write_genotype,
        )
        with profile, kept, bar, synchronised(state.supernet):
            genotype = search(
                state,
                searcher=self.searcher,
                weight_loader=self.weight_loader,
                arch_loader=self.arch_loader,
                plan=self.plan,
                derive=self.derivation,
                hooks=[*self.measurements, bar, Profiling(profile), saving],
            )
        out.record(**self.ending())
        return genotype

    def ending(self) -> dict[str, str]:
        """Why the search ended before its last epoch, for manifest and result; empty if it did not."""
        return {} if self.state.stopped is None else {"search_stopped": self.state.stopped}

    def judge(self, batches: int | None, *, start: int = 0) -> Judge:
        """One that looks at so many batches of the two splits of the search, None for all, from validation batch
        `start` on."""
        return Judge(
            supernet=self.state.supernet,
            task=self.setup.task,
            weight_loader=self.weight_loader,
            validation_loader=self.validation_loader,
            batches=batches,
            start=start,
            seed=derived_seed(self.setup.cfg.seed, "judge"),
            precision=self.setup.runtime.precision,
            arch_loader=self.arch_loader,
            arch_optim=self.state.arch_optim,
        )

    def gap_judge(self) -> Judge:
        """One for the discretisation gap: on the last batches, as a deriver that looks at data has chosen by the first,
        and would look too good on those."""
        batches = self.setup.cfg.search.gap_batches
        return self.judge(batches, start=max(0, len(self.validation_loader) - batches))

    def describe(self, genotype: Genotype) -> dict[str, float]:
        """A genotype's size, and what the benchmark knows of it."""
        benchmark = self.setup.benchmark
        return {
            "derived_parameters": self.derived_parameters(genotype),
            **({} if benchmark is None else benchmark.metrics(genotype)),
        }

    def result(self, genotype: Genotype) -> dict[str, Any]:
        """What ``result.json`` holds of a search."""
        return {
            "metric": asdict(self.setup.task.metric),
            "derived_parameters": self.derived_parameters(genotype),
            "data": self.setup.data.spec.name,
            "genotype": genotype.to_dict(),
            **self.gap_result(),
        }

    def gap_result(self, **retrained: float) -> dict[str, Any]:
        """The discretisation gap as a part of ``result.json``; empty if it was not measured.

        retrained_test: what the derived network reached on the test split, once it is known.
        """
        if not self.setup.cfg.search.gap_batches:
            return {}
        gap = Gap.from_metrics(self.state.metrics, examples=self.gap_judge().examples)
        return {"discretisation_gap": gap.to_dict() | retrained}

    def derived_parameters(self, genotype: Genotype) -> int:
        """Of the genotype's network at the size it would be retrained in."""
        with self.retrained_space.sketching():
            return count_parameters(self.retrained_space.network(self.setup.data.spec, genotype))


def check_excluded(setup: Setup, arch: ArchParams) -> None:
    """Raises ConfigError if the deriver is told to leave out what no choice has: a name misspelt would exclude nothing.
    ``none`` is left out by default, whether a space has it or not."""
    names = list(dict.fromkeys(name for probs in arch.named_probs().values() for name in probs))
    unknown = [name for name in setup.cfg.deriver.get("exclude") or () if name not in (*names, "none")]
    if unknown:
        meant = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.3) or names[:1]
        raise ConfigError(
            f"deriver.exclude has {', '.join(unknown)}, which no choice has, expected some of {', '.join(names)}",
            fix=f"set deriver.exclude=[{meant[0]}]",
        )
