"""Searching, retraining, scoring and exporting from Python. The commands run the same jobs, see `SearchJob`.

    found = nas.search(build_model, train, epochs=50, sampler=nas.GDAS(), seed=0)  # never sees the test split
    net = nas.retrain(build_model, found.genotype, train, epochs=30)
    nas.evaluate(net, test)
    nas.export(net, "out")
    nas.load("out")

build_model: one of
- a space, such as ``nas.spaces.NasBench201(cells=1)``;
- a function or class that builds a module with `nas.Choice` modules in it; `nas.spaces.Custom` lists the arguments that
  it may take;
- such a module itself, e.g. from `nas.insert`. The module is copied, with its weights.

train, test: one of
- a map-style data set of (input, target);
- a pair (inputs, targets) of tensors;
- the path of a folder with a folder of images for each class;
- a data set family such as ``nas.data.Digits()``, whose training or test split is used.
Inputs that are uint8 of shape (C, H, W) with class labels are images, and are normalised.

Errors are exceptions of `nas.errors`, which name the arguments. During a run, seeds, threads and determinism of the
process are those of the run. They are restored at its end. So one process makes one run at a time.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.adapt.file_times import FileTimes
from nas.adapt.teacher import Teacher
from nas.api.arguments import FORMATS, deriver_of, formats_of, from_start, job_of, numbers_of
from nas.api.found import Found, genotype_of, supernet_of
from nas.api.given_parts import given_back, kept
from nas.api.own_process import own_modes, own_process
from nas.api.run_records import opened_records, plain, recorded_settings, resumed_directory
from nas.api.scoring import data_to_score, opened, runtime_of, score, training_examples
from nas.data.bundle import DataBundle
from nas.data.policy import Policy
from nas.data.spec import Preparation
from nas.data.transforms import Augment
from nas.errors import ConfigError
from nas.formats.export import Exported
from nas.formats.export_trained import export_trained
from nas.formats.format import Format
from nas.methods.collapse import CollapseMonitor
from nas.methods.deriver import Deriver
from nas.methods.first_order import FirstOrder
from nas.methods.front import write as write_front
from nas.methods.sampler import GDAS, Sampler
from nas.methods.search_job import SearchJob
from nas.methods.search_options import SearchOptions, SearchParts
from nas.runtime import distributed
from nas.runtime.runtime import Runtime
from nas.settings.arguments import named_as_arguments, path_of
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.space import Space
from nas.storage import atomic
from nas.storage.checkpointing import Checkpoints
from nas.storage.metrics_log import JsonLines
from nas.storage.tensorboard_tracker import TensorBoard
from nas.supernet.genotype import Genotype
from nas.training.hooks import Hook
from nas.training.inheritance import SCRATCH
from nas.training.records import genotype_texts, scores
from nas.training.retrain_job import RetrainJob
from nas.training.retrain_options import RetrainOptions, RetrainParts
from nas.training.schedule import Cosine, Linear, Schedule
from nas.training.task import Task
from nas.training.trained import EVALUATION_BATCH, Trained, final_result, scoring_loader, validation_result

__all__ = ["Found", "evaluate", "export", "retrain", "search"]

SGD = functools.partial(torch.optim.SGD, lr=0.025, momentum=0.9, nesterov=True, weight_decay=5e-4)
ADAM = functools.partial(torch.optim.Adam, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
SEARCH_LR = functools.partial(Cosine, end=0.001)
RETRAIN_LR = functools.partial(Cosine, end=0.0)
TEMPERATURE = Linear(10.0, 0.1)
DRAWN_GATES = GDAS()
SAVING = functools.partial(Checkpoints, every_minutes=10, share=0.01)
AUXILIARY_WEIGHT = 0.4


def search(
    build_model: Space | Callable[..., nn.Module] | nn.Module,
    train: Any,
    *,
    epochs: int = 50,
    batch_size: int = 64,
    weight_fraction: float = 0.5,
    one_level: bool = False,
    init_std: float = 1e-3,
    warmup_epochs: int = 0,
    arch_every: int = 1,
    arch_first: bool = False,
    gap_batches: int = 4,
    sampler: Sampler = DRAWN_GATES,
    temperature: Schedule = TEMPERATURE,
    searcher: Callable[..., FirstOrder] = FirstOrder,
    deriver: Deriver | None = None,
    monitor: Callable[..., CollapseMonitor] = CollapseMonitor,
    regulariser: Mapping[str, Any] | None = None,
    cap: Mapping[str, float | Sequence[float]] | None = None,
    weight_optim: Callable[..., torch.optim.Optimizer] = SGD,
    arch_optim: Callable[..., torch.optim.Optimizer] = ADAM,
    lr: Callable[..., Any] = SEARCH_LR,
    network: Mapping[str, Any] | None = None,
    benchmark: NasBench201Table | None = None,
    task: Task | None = None,
    teacher: Teacher | nn.Module | str | None = None,
    augment: Augment | Preparation | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | torch.device | Runtime = "auto",
    directory: str | Path | None = None,
    resume: bool | str | Path = False,
    may_change: Sequence[str] = (),
    saving: Callable[..., Checkpoints] = SAVING,
    tracker: Callable[..., JsonLines] = TensorBoard,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
) -> Found:
    """Search for an architecture. Raises exceptions of `nas.errors`.

    build_model, train: see `nas.api`.
    epochs, batch_size, ..., gap_batches: see `SearchOptions`.
    sampler, ..., lr: see `SearchParts`. Parts that need other objects of the search are given as a class, or as a
    functools.partial of a class, e.g. ``weight_optim=functools.partial(torch.optim.SGD, lr=0.1)``.
    deriver: None for the default of the space.
    cap: the largest size of the derived network: ``parameters`` (trainable), ``macs`` (multiply-accumulates for one
    example), ``bytes`` (of the weights) or ``latency_ms`` (of the ONNX file on one thread of this CPU), e.g.
    ``{"macs": 2e6}``. A number below 1 is a fraction of the largest network's, e.g. ``{"macs": 0.5}``. The default
    deriver and `nas.methods.BestOf` hold caps. Several numbers, e.g. ``{"macs": [0.3, 0.5, 0.7]}``, derive one network
    each from the same search: see `Found.front`.
    network: the fields of the space that the retraining will change; the reported sizes are of that network.
    task: None for classification if targets are integers, and for regression otherwise.
    teacher: for distillation: a trained module; ``original``, the model before `nas.insert`, with its weights; or
    ``nas.adapt.Teacher(...)``, which also sets weights and features.
    augment: the augmentation of training batches, ``nas.data.Augment(...)`` for images. classes: names by label.
    image_size: of the images of a folder.
    device: ``auto``, ``cpu``, ``cuda:1``, or a ``nas.runtime.Runtime(...)``, which also sets threads and precision.
    directory: a new directory for the files of the run; None writes no files.
    resume: True continues the run in the directory if there is one. The directory of a run continues that run.
    may_change: arguments that may differ from those of the run that is continued.
    saving, tracker: when checkpoints are saved, and how metrics are logged, in a run with a directory.
    hooks: see `nas.training.hooks.Hook`.
    After Ctrl-C, a run with a directory saves its state before it stops.
    """
    given_here = dict(locals())  # first, when there is nothing but the arguments
    with named_as_arguments(), own_process(), given_back(given_here):
        options = SearchOptions(**numbers_of(SearchOptions, given_here))
        job = job_of(build_model, train, given_here)
        parts = SearchParts(
            sampler=sampler,
            temperature=temperature,
            deriver=deriver_of(job.space) if deriver is None else deriver,
            searcher=searcher,
            monitor=monitor,
            weight_optim=weight_optim,
            arch_optim=arch_optim,
            lr=from_start(lr),
            regulariser=regulariser or {},
            cap=cap or {},
            file_times=functools.partial(FileTimes, resumed=resumed_directory(directory, resume)),
        )
        settings = recorded_settings(job, train, given_here) | {
            "search": asdict(options),
            "retrain": {"network": dict(network or {})},
            **{one.name: plain(getattr(parts, one.name)) for one in fields(SearchParts) if one.name != "file_times"},
        }
        search_job = SearchJob(job, options, parts, retrained=job.space.resized(network or {}))
        search_job.try_derived(auxiliary_weight=AUXILIARY_WEIGHT)
        with opened_records(job, settings, given_here) as records:
            genotype = search_job.search(records)
            result, front = search_job.result(genotype), search_job.front(genotype)
            if records.directory is not None and records.directory.writes:
                if front:
                    write_front(front, job.task.metric, records.directory.path)
                atomic.write_json(records.directory.path / "result.json", result)
            records.tracker.finish({}, texts=genotype_texts(genotype))
        state, weights = search_job.state, search_job.weights()
        points = tuple(Found(one.genotype, one.result(job.task.metric), {}, state.stopped, weights) for one in front)
        return Found(genotype, result, dict(state.metrics), state.stopped, weights, points)


def retrain(
    build_model: Space | Callable[..., nn.Module] | nn.Module | Trained,
    genotype: Genotype | Found | str | None,
    train: Any,
    *,
    start: str = SCRATCH,
    test: Any = None,
    epochs: int = 100,
    batch_size: int = 96,
    accumulation: int = 1,
    network: Mapping[str, Any] | None = None,
    grad_clip: float = 5.0,
    cutout: int = 0,
    drop_path: float = 0.0,
    drop_path_reached: bool = True,
    auxiliary_weight: float = AUXILIARY_WEIGHT,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    average: float = 0.0,
    validation: float | None = None,
    optim: Callable[..., torch.optim.Optimizer] = SGD,
    lr: Callable[..., Any] = RETRAIN_LR,
    policy: Policy | None = None,
    task: Task | None = None,
    teacher: Teacher | nn.Module | str | None = None,
    augment: Augment | Preparation | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | torch.device | Runtime = "auto",
    directory: str | Path | None = None,
    resume: bool | str | Path = False,
    may_change: Sequence[str] = (),
    saving: Callable[..., Checkpoints] = SAVING,
    tracker: Callable[..., JsonLines] = TensorBoard,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
) -> Trained:
    """Train the network of a genotype. Returns the network after the last epoch; it can be called like a module.

    build_model: as in `search`; or a model without choices, or the result of `retrain`, to train it further.
    genotype: a genotype, the result of `search`, a published name, a text, or the path of a file. None for a model
    without choices.
    start: ``scratch`` starts from the weights with which the network is built; a model that is given with weights keeps
    them. ``supernet`` starts from the weights of the search, with recalibrated batch norms; `genotype` is then the
    result of `search`, or the path of the genotype.json in the directory of the search.
    test: a test split for the final score, which is in `result`. The training does not use it.
    epochs, ..., validation: see `RetrainOptions`. With validation, `result` has a validation score.
    optim, lr, policy: see `RetrainParts`. The other arguments: as in `search`.
    """
    given_here = dict(locals())  # as in `search`
    with named_as_arguments(), own_process(), given_back(given_here):
        options = RetrainOptions(**numbers_of(RetrainOptions, given_here) | {"network": dict(network or {})})
        job = job_of(build_model, train, given_here)
        chosen = genotype_of(genotype, job.space)
        supernet = supernet_of(genotype, resumes=bool(resume)) if options.inherits else None
        parts = RetrainParts(optim=optim, lr=from_start(lr), policy=policy)
        retrain_job = RetrainJob(job, options, parts)
        if genotype is None and (options_left := retrain_job.network_options):
            raise ConfigError(
                f"genotype is None, but the model has {len(options_left)} choices, e.g. at {next(iter(options_left))}",
                fix="give what nas.search returned, or a genotype",
            )
        retrain_job.check(chosen)
        to_score = checked_test_data(test, retrain_job, chosen) if test is not None and distributed.first() else None
        made = {field.name: plain(getattr(parts, field.name)) for field in fields(RetrainParts)}
        settings = recorded_settings(job, train, given_here) | {"retrain": asdict(options) | made}
        with opened_records(job, settings, given_here) as records:
            out = records.directory
            if out is not None and out.writes:
                atomic.write_text(out.path / "genotype.json", chosen.to_json())
            trained = retrain_job.train(chosen, records, supernet=supernet)
            trained = replace(trained, task=kept(job), examples=training_examples(job))
            trained = replace(trained, directory=None if out is None else out.path)
            validated = validation_result(retrain_job.validated(trained), job.task.metric)
            if (test is not None or validated) and distributed.first():
                scored = {} if to_score is None else score(trained, to_score, EVALUATION_BATCH)
                trained = replace(trained, result=scored | validated)
                if out is not None:
                    atomic.write_json(out.path / "result.json", dict(trained.result or {}))
            records.tracker.finish(scores(trained.result or {}), texts=genotype_texts(chosen))
        return trained


def checked_test_data(test: Any, retrain_job: RetrainJob, genotype: Genotype) -> DataBundle:
    """The data of the final score, checked before the training: a mistake in them must not end a training of hours."""
    job = retrain_job.job
    untrained = retrain_job.space.network(job.data.spec, genotype).eval()
    stand_in = Trained(untrained, genotype, job.data.spec, job.task, {}, job.data.trained_on, job.data.sample)
    found = data_to_score(test, stand_in)
    scoring_loader(stand_in, found, Runtime(device="cpu"))
    return found


def evaluate(
    net: Trained | str | Path,
    test: Any,
    *,
    batch_size: int = EVALUATION_BATCH,
    allow: Sequence[str | Callable[..., Any]] = (),
    device: str | torch.device | Runtime = "auto",
) -> dict[str, Any]:
    """Score a trained network on a test split. Returns the entries of ``result.json``, e.g. ``test_accuracy``.

    net: the result of `retrain`, the directory of a run, or a ``retrain/checkpoint.pt``. test: see `nas.api`.
    allow, device: as in `nas.load`, if the network is loaded.
    """
    with named_as_arguments(), own_modes():
        trained = opened(net, allow=allow, device=device)
        return score(trained, data_to_score(test, trained), batch_size)


def export(
    net: Trained | str | Path,
    directory: str | Path,
    *,
    formats: str | Sequence[str] | Mapping[str, Format] = FORMATS,
    test: Any = None,
    allow: Sequence[str | Callable[..., Any]] = (),
) -> Exported:
    """Write a trained network as files that run without this project. Each file is first compared with the network.

    net, allow: as in `evaluate`. directory: a new one. formats: names (``weights``, ``standalone``, ``program``,
    ``onnx``, ``bfloat16``), or name -> format. test: the test split whose scores the files state; None for the scores
    that `net` has.
    """
    with named_as_arguments(), own_modes():
        place, trained = path_of(directory, "directory"), opened(net, allow=allow, device="cpu")
        chosen = formats_of(formats)
        loader, result = None, trained.result or {}
        if test is not None:
            data = data_to_score(test, trained)
            loader = scoring_loader(trained, data, runtime_of(trained))
            result = final_result(trained, loader, data.spec)
        return export_trained(
            trained,
            loader,
            formats=chosen,
            result=result,
            run=trained.directory,
            directory=place,
        )
