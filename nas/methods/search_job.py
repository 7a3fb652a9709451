"""A search from plain objects: what is built and checked before it, its run, and what it reports."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from nas.data.bundle import Split
from nas.data.loader import Loader, search_batches
from nas.methods.cap import TIME, Pull, holding
from nas.methods.collapse import CollapseMonitor
from nas.methods.cost_regularisers import Latency
from nas.methods.derived_networks import Derived, timed_of
from nas.methods.deriver import check_excluded, tried
from nas.methods.discretisation_gap import Gap
from nas.methods.first_order import FirstOrder
from nas.methods.front import Point
from nas.methods.hooks import Collapse, Derivation, Description, DiscretisationGap, Regularisers, Stopped, decided
from nas.methods.loop import Order, Plan, search
from nas.methods.model_check import check_model
from nas.methods.regulariser import Sum, made, warn_of_no_effect
from nas.methods.search_options import SearchOptions, SearchParts
from nas.methods.state import SearchState
from nas.methods.supernet_score import Judge
from nas.methods.trial_step import try_search
from nas.runtime import distributed
from nas.runtime.memory import available_memory
from nas.runtime.runtime import derived_seed, seed_layers
from nas.settings.building import callable_itself, complete
from nas.spaces.space import Space
from nas.storage import atomic
from nas.supernet.arch_params import ArchParams
from nas.supernet.copying import gradient_hooks
from nas.supernet.genotype import Genotype
from nas.training.batch_norm import synchronised
from nas.training.distillation import attached
from nas.training.evaluate import Score
from nas.training.hooks import Hook
from nas.training.inheritance import SupernetWeights
from nas.training.job import Job, check_learns, two_examples, warn_of_parameters
from nas.training.loop import TrainingStep
from nas.training.own_generators import OwnGenerators
from nas.training.put_back import all_put_back
from nas.training.records import Records
from nas.training.schedule import initial_lr, learning_rates, positive
from nas.training.trial_training import try_small


class SearchJob:
    """Checks and builds all it can in its constructor; `search` runs, and is called once.

    retrained: the space at the size that its networks are retrained in.
    """

    def __init__(self, job: Job, options: SearchOptions, parts: SearchParts, *, retrained: Space) -> None:
        distributed.check_same({f"search.{name}": value for name, value in asdict(options).items()})
        self.job = job
        self.options = options
        self.retrained_space = retrained
        self.temperature = positive(parts.temperature, "temperature")
        self.sampler = parts.sampler
        self._build_state(parts)
        self._holding = functools.partial(holding, parts.deriver)
        self.deriver = self._holding(self.derived.limits)
        self.learns = options.learns_after(len(self.weight_loader))
        self._warn_if_nothing_is_searched()
        kinds = check_model(self.state.supernet, job, self.arch_loader)
        self.monitor: CollapseMonitor = complete(parts.monitor, kinds=kinds)
        if job.benchmark is not None:
            job.benchmark.check(job.space.options(job.data.spec))
        check_excluded(self.deriver, self.state.arch)
        # A deriver that does not suit the space, or the benchmark, is found now, not after the first epoch.
        self.first = Genotype(job.space.name, tried(self.deriver, self.state.arch))
        for limits in self.derived.points[1:]:  # that no architecture may hold together
            self._holding(limits)(self.state.arch)
        self.derived.describe(self.first)
        self._try_step()
        self.plan = Plan(epochs=options.epochs, temperature=self.temperature, lr=self.lr, order=self._order())
        self.derivation = Derivation(
            job.space.name,
            self.deriver,
            monitor=self.monitor,
            judge=self.judge,
            warmup_epochs=options.warmup_epochs,
            within=self.derived.derive_within,
        )
        self.measurements = self._measurements()
        self.last_hooks: list[Hook] = []
        self._replay()

    def _build_state(self, parts: SearchParts) -> None:
        """The supernet, its logits, and what moves both."""
        job = self.job
        job.runtime.start(job.seed)
        self.generator = torch.Generator().manual_seed(derived_seed(job.seed, "gates"))
        # In training mode, whatever mode the model is built in: its steps are the search's, as retraining's are.
        with job.buildable():
            supernet = job.runtime.place(job.space.supernet(job.data.spec)).train()
        arch = ArchParams.from_model(supernet, init_std=self.options.init_std, generator=self.generator)
        check_learns(supernet, what="the supernet")
        arch.to(job.runtime.device)
        self.state = state = SearchState(
            supernet=supernet,
            arch=arch,
            weight_optim=job.build_optimizer(parts.weight_optim, supernet, setting="weight_optim"),
            arch_optim=job.build_optimizer(parts.arch_optim, arch, setting="arch_optim"),
            generator=self.generator,
            scaler=job.runtime.precision.scaler(),
            metric=job.task.metric.name,
            guard=job.runtime.guard(),
            sampler=self.sampler,
            task=job.task_state,
        )
        # Before candidates may be exported and timed.
        self.weight_loader, self.arch_loader, self.validation_loader = self._loaders()
        times = parts.file_times() if isinstance(parts.cap, Mapping) and parts.cap.get(TIME) is not None else None
        if times is not None and job.progress:
            print(f"cap.{TIME}: exporting and timing every candidate, which takes one or two seconds each")
        self.derived = Derived(job, self.retrained_space, arch=arch, caps=parts.cap, times=times)
        state.timed = timed_of(self.derived.limits)
        self.regulariser = self._regulariser(parts.regulariser)
        self.lr = learning_rates(complete(parts.lr, start=initial_lr(state.weight_optim)), "lr")
        self.searcher: FirstOrder = complete(
            parts.searcher,
            state=state,
            task=job.training_task,
            regulariser=self.regulariser,
            precision=job.runtime.precision,
        )
        terms = {f"regulariser.{name}": term for name, term in (self.regulariser or Sum({})).terms.items()}
        warn_of_no_effect(terms, state.arch_optim)
        if type(self.searcher).__module__.startswith("nas."):  # one of the user's own may train more
            for what, part in {"sampler": self.sampler, **terms}.items():
                if not isinstance(part, Pull):  # of a cap: one on time has the largest network, which is timed alone
                    warn_of_parameters(what, part, but=[*arch.parameters(), *supernet.parameters()])
        state.others = {"searcher": self.searcher, "deriver": parts.deriver, **terms}
        random = {"supernet": supernet, "sampler": self.sampler, "task": job.task, "augment": job.data.augment}
        state.generators = OwnGenerators(random | {"deriver": parts.deriver} | terms)

    def _regulariser(self, chosen: Mapping[str, Any]) -> Sum | None:
        known = {"arch": self.state.arch, "space": self.retrained_space, "spec": self.job.data.spec}
        terms = {name: made(name, term, known) if callable_itself(term) else term for name, term in chosen.items()}
        # A regulariser that the user has chosen for a cost pulls in its place.
        limits = [one for one in self.derived.limits if one.name.removesuffix("_ms") not in chosen]
        terms |= {f"cap_{one.name}": Pull(one, self.state.arch) for one in limits}
        return Sum(terms) if terms else None

    def _loaders(self) -> tuple[Loader, Loader, Loader]:
        """Returns loaders of the weights' split, the architecture's split, and the latter without augmentation."""
        job, options = self.job, self.options
        if options.one_level:
            weight_split = arch_split = job.data.train
        else:
            weight_split, arch_split = job.data.search_splits(weight_fraction=options.weight_fraction, seed=job.seed)

        def loader(split: Split, purpose: str, augment: Any) -> Loader:
            return Loader(
                split,
                spec=job.data.spec,
                batch_size=options.batch_size,
                device=job.runtime.device,
                seed=derived_seed(job.seed, f"{purpose} batches"),
                augment=augment,
                shuffle=True,
                drop_last=True,
                what="search.batch_size",
                share=distributed.share(),
            )

        return (
            loader(weight_split, "weight", job.data.augment),
            loader(arch_split, "architecture", job.data.augment),
            loader(arch_split, "validation", None),
        )

    def _order(self) -> Order:
        options = self.options
        return Order(warmup_epochs=options.warmup_epochs, arch_every=options.arch_every, arch_first=options.arch_first)

    def _measurements(self) -> list[Hook]:
        """The hooks that measure the search after each epoch."""
        found: list[Hook] = [
            Collapse(self.monitor),
            Regularisers(self.regulariser, epochs=self.options.epochs),
            Description(self.derived.describe),
        ]
        if self.options.gap_batches:
            found.append(DiscretisationGap(self.gap_judge, sampler=self.sampler))
        return found

    def _replay(self) -> None:
        """Let CUDA graphs replay the steps if that is asked for. Prints why not where that is impossible."""
        runtime, searcher = self.job.runtime, type(self.searcher)
        # Other searchers may ask more of their passes than a replay gives.
        others = "" if searcher is FirstOrder else f"needs a FirstOrder, got a {searcher.__name__}"
        if self.job.distillation is not None:
            others = "cannot record what a teacher needs to see"
        if any(any(gradient_hooks(weight)) for weight in self.state.supernet.parameters()):
            others = "cannot record hooks on the gradients of weights"
        if runtime.cuda_graphs and not others:
            from nas.methods.cuda_graphs.cuda_graphs import CudaGraphs  # here, as few runs need it
            from nas.methods.cuda_graphs.renewal import Renewal
            from nas.methods.cuda_graphs.replayed_module import replay

            composes = runtime.cuda_graphs == "composed"
            recorder = CudaGraphs(runtime.device, composes=composes, triton=runtime.triton)
            self.measurements.append(replay(self.state.supernet, recorder))
            self.last_hooks.append(Renewal(self.state.supernet))
        elif (why := runtime.no_cuda_graphs or (runtime.cuda_graphs and others)) and distributed.first():
            print(f"warning: runtime.cuda_graphs {why}; the steps run as without", file=sys.stderr)

    def _warn_if_nothing_is_searched(self) -> None:
        """Warn of a search in which the architecture takes no step, as may be meant where a deriver judges by data."""
        options = self.options
        if not self.learns and distributed.first():
            print(
                f"warning: the architecture takes no step in {options.epochs} epochs of {len(self.weight_loader)} "
                f"steps with search.warmup_epochs={options.warmup_epochs} and "
                f"search.arch_every={options.arch_every}, its logits stay as they begin",
                file=sys.stderr,
            )

    def _try_step(self) -> None:
        """One step on trial; prints what the search will take by it."""
        (weight_batch, arch_batch) = next(search_batches(self.weight_loader, self.arch_loader, 0))
        assert arch_batch is not None  # all are wanted
        tau = self.temperature(0.0)
        measured = try_search(self.searcher, weight_batch, arch_batch, temperature=tau, learns=self.learns)
        if measured is not None and distributed.first():
            if self.job.progress:
                print(measured.line(epochs=self.options.epochs, steps=len(self.weight_loader)))
            if warning := measured.warning(available_memory(measured.device)):
                print(f"warning: {warning}", file=sys.stderr)

    def try_derived(self, *, auxiliary_weight: float) -> None:
        """A training step of the first genotype's network on trial, on two examples: for a search by itself, whose
        network may be retrained by other settings."""
        job = self.job
        with all_put_back([], device=job.runtime.device), self.state.guard.on_trial():
            step = TrainingStep(auxiliary_weight=auxiliary_weight, precision=job.runtime.precision)
            two = two_examples(self.weight_loader)
            try_small(lambda: self.derived.network(self.first), two, task=job.task, step=step)

    @property
    def seen(self) -> dict[str, Any]:
        """See `Job.seen`; and the times of a table that the architecture learns from."""
        terms = {} if self.regulariser is None else self.regulariser.terms
        digests = [term.digest for term in terms.values() if isinstance(term, Latency)]
        return self.job.seen | ({"latency_table": digests[0]} if digests else {})

    def search(self, records: Records) -> Genotype:
        """Search from the beginning, or from where a run that is resumed stopped. Leaves ``search/checkpoint.pt``, and
        ``genotype.json`` after every epoch."""
        job, state, out = self.job, self.state, records.directory

        def write_genotype() -> None:
            if out is not None and out.writes and state.genotype is not None:
                atomic.write_text(out.path / "genotype.json", state.genotype.to_json())
                records.tracker.derived(state.genotype.choices)

        seed_layers(job.seed)
        job.task_state.reset()
        state.others = {**state.others, **{f"hook.{number}": hook for number, hook in enumerate(records.hooks)}}
        stage = records.stage("search")
        stage.resume(state, data=job.data, seen=self.seen, loader=self.weight_loader)
        distributed.start_alike(state.supernet)
        watched = stage.hooks(
            state,
            epochs=self.plan.epochs,
            metric=job.task.metric,
            content=self.seen,
            after=[Stopped(self.derivation, self.measurements)],
            on_epoch=write_genotype,
        )
        with watched as hooks, synchronised(state.supernet), attached(self.searcher.task, state.supernet):
            genotype = search(
                state,
                searcher=self.searcher,
                weight_loader=self.weight_loader,
                arch_loader=self.arch_loader,
                plan=self.plan,
                derive=self.derivation,
                hooks=[*self.measurements, *hooks, *self.last_hooks],
            )
        records.record(**self.ending())
        return genotype

    def weights(self) -> SupernetWeights:
        """The weights of the supernet, for a network that starts from them."""
        return SupernetWeights.of(self.state.supernet)

    def ending(self) -> dict[str, str]:
        """Why the search ended before its last epoch, for manifest and result; empty if it did not."""
        return {} if self.state.stopped is None else {"search_stopped": self.state.stopped}

    def judge(self, batches: int | None, *, start: int = 0) -> Judge:
        """One that looks at so many batches of the two splits of the search, None for all, from validation batch
        `start` on."""
        return Judge(
            supernet=self.state.supernet,
            task=self.job.task,
            weight_loader=self.weight_loader,
            validation_loader=self.validation_loader,
            batches=batches,
            start=start,
            seed=derived_seed(self.job.seed, "judge"),
            precision=self.job.runtime.precision,
            arch_loader=self.arch_loader,
            arch_optim=self.state.arch_optim,
            guard=self.state.guard,
        )

    def validated(self, genotype: Genotype) -> Score:
        """The score of the derived operations inside the supernet, batch norms recalibrated, on all of the
        architecture's split."""
        return self.judge(None).decided(genotype.choices, recalibrated=True)

    def front(self, genotype: Genotype) -> list[Point]:
        """The networks of several caps, the loosest first; empty for one cap. All are derived from the logits of the
        search, which was pulled below the loosest. genotype: what the search has derived, for the loosest."""
        found: list[Point] = []
        for limits in self.derived.points if len(self.derived.points) > 1 else []:
            if limits is not self.derived.limits:
                derive = functools.partial(decided, self._holding(limits), self.state.arch, self.judge)
                genotype = Genotype(self.job.space.name, self.derived.derive_within(derive, limits))
            caps = self.derived.cap_result(genotype, limits=limits)["cap"]
            found.append(Point(genotype, caps, self.derived.parameters(genotype), self.validated(genotype)))
        return found

    def gap_judge(self) -> Judge:
        """One for the discretisation gap: on the last batches, as a deriver that looks at data has chosen by the first,
        and would look too good on those."""
        batches = self.options.gap_batches
        return self.judge(batches, start=max(0, len(self.validation_loader) - batches))

    def result(self, genotype: Genotype) -> dict[str, Any]:
        """The part of ``result.json`` that a search writes."""
        return {
            "metric": asdict(self.job.task.metric),
            "derived_parameters": self.derived.parameters(genotype),
            "data": self.job.data.spec.name,
            "genotype": genotype.to_dict(),
            **self.looked_up(genotype),
            **self.derived.cap_result(genotype),
            **self.ending(),
            **self.gap_result(),
        }

    def looked_up(self, genotype: Genotype) -> dict[str, Any]:
        """The benchmark's entries for the derived network, for ``result.json``; empty without a benchmark."""
        return {} if self.job.benchmark is None else {"benchmark": self.job.benchmark.report(genotype)}

    def gap_result(self, **retrained: float) -> dict[str, Any]:
        """The discretisation gap as a part of ``result.json``; empty if it was not measured.

        retrained_test: what the derived network reached on the test split, once it is known.
        """
        if not self.options.gap_batches or "gap/relaxed" not in self.state.metrics:  # of a search that went on with it
            return {}
        gap = Gap.from_metrics(self.state.metrics, examples=self.gap_judge().examples)
        return {"discretisation_gap": gap.to_dict() | retrained}
