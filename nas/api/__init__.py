"""Searching, retraining, scoring and exporting from Python. The commands run the same jobs, see `SearchJob`.

    found = nas.search(build_model, train, epochs=50, sampler=nas.GDAS(), seed=0)  # never sees the test split
    net = nas.retrain(build_model, found.genotype, train, epochs=30)
    nas.evaluate(net, test)
    nas.export(net, "out")
    nas.load("out")

build_model: a space, such as ``nas.spaces.NasBench201(cells=1)``; a function or class that builds a module with
`nas.Choice` modules in it (see `nas.spaces.Custom` for the arguments it may ask for); or such a module itself, as
`nas.insert` returns it, which is copied with the weights that it has.

train, test: a map-style data set of (input, target); a pair (inputs, targets) of tensors; the path of a folder with a
folder of images for each class; or a data set family such as ``nas.data.Digits()``, of which the split is taken. Inputs
that are uint8 of shape (C, H, W) with class labels are images, and are normalised.

Errors are exceptions of `nas.errors`, which name the arguments. A run has the process to itself while it lasts: it sets
seeds, threads and determinism, and puts them back at its end.
"""

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from torch import nn

from nas.data import given
from nas.data.bundle import DataBundle
from nas.data.image_folder import ImageFolder
from nas.data.inputs import mapped
from nas.data.loader import Loader
from nas.data.policy import Policy
from nas.data.spec import DataSpec, ImageSpec, Preparation
from nas.data.survey import facts
from nas.data.survey import lines as survey_lines
from nas.data.survey import warnings as survey_warnings
from nas.data.transforms import Augment
from nas.errors import ConfigError
from nas.formats.export import Exported
from nas.formats.export_trained import EXAMPLES, export_trained
from nas.formats.format import Format
from nas.methods.collapse import CollapseMonitor
from nas.methods.deriver import Argmax, Deriver, TopPredecessors
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, Sampler
from nas.methods.search_job import SearchJob, SearchOptions, SearchParts
from nas.runtime import distributed
from nas.runtime.rng import random_state, set_random_state
from nas.runtime.runtime import Runtime
from nas.runtime.user_functions import import_path
from nas.settings.arguments import named_as_arguments, settings_of
from nas.settings.building import callable_itself, complete, described
from nas.settings.names import NAME, TABLE
from nas.spaces.custom import Custom
from nas.spaces.darts import Darts
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.published import resolve
from nas.spaces.space import Space
from nas.storage import atomic
from nas.storage.checkpointing import Checkpoints
from nas.storage.forwarded import opened_tracker
from nas.storage.metrics_log import JsonLines, Silent, TensorBoard
from nas.storage.run_directory import MANIFEST, RunDirectory, command_line
from nas.storage.signals import Interrupted
from nas.supernet.genotype import Genotype
from nas.training.hooks import Hook
from nas.training.inheritance import SCRATCH, SupernetWeights, checkpoint_beside
from nas.training.job import Job, check_seed
from nas.training.records import Records, description, genotype_texts, scores
from nas.training.retrain_job import RetrainJob, RetrainOptions, RetrainParts
from nas.training.schedule import Cosine, Linear, Schedule
from nas.training.scored import bundle_to_score
from nas.training.task import Classification, Regression, Task, check_targets
from nas.training.trained import (
    EVALUATION_BATCH,
    Trained,
    check_finite,
    final_result,
    scoring_loader,
    validation_result,
)

SGD = functools.partial(torch.optim.SGD, lr=0.025, momentum=0.9, nesterov=True, weight_decay=5e-4)
ADAM = functools.partial(torch.optim.Adam, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
SEARCH_LR = functools.partial(Cosine, end=0.001)
RETRAIN_LR = functools.partial(Cosine, end=0.0)
TEMPERATURE = Linear(10.0, 0.1)
DRAWN_GATES = GDAS()
SAVING = functools.partial(Checkpoints, every_minutes=10, share=0.01)
AUXILIARY_WEIGHT = 0.4
FORMATS = ("weights", "standalone", "program")
# What the arguments are: numbers by their type, what objects need, and what is called to make a part.
NUMBERS: Mapping[Any, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number")}
OBJECTS = {
    "sampler": ("__call__", "samples", "relaxed"),
    "temperature": ("__call__",),
    "deriver": ("__call__",),
    "task": ("loss", "measure", "metric"),
    "benchmark": ("metrics", "check"),
    "regulariser": ("items",),
}
MAKERS = ("searcher", "monitor", "weight_optim", "arch_optim", "optim", "saving", "tracker")


@dataclass(frozen=True)
class Found:
    """What a search leaves. result: as in ``result.json``. metrics: of the last epoch, as in ``metrics.jsonl``.
    stopped: why the search ended before its last epoch, None if it did not. supernet: its weights, for `retrain`."""

    genotype: Genotype
    result: Mapping[str, Any]
    metrics: Mapping[str, float]
    stopped: str | None = None
    supernet: SupernetWeights | None = field(default=None, repr=False, compare=False)


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
    cap: Mapping[str, float] | None = None,
    weight_optim: Callable[..., torch.optim.Optimizer] = SGD,
    arch_optim: Callable[..., torch.optim.Optimizer] = ADAM,
    lr: Callable[..., Any] = SEARCH_LR,
    network: Mapping[str, Any] | None = None,
    benchmark: NasBench201Table | None = None,
    task: Task | None = None,
    augment: Augment | Preparation | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | Runtime = "auto",
    directory: str | Path | None = None,
    resume: bool | str | Path = False,
    may_change: Sequence[str] = (),
    saving: Callable[..., Checkpoints] = SAVING,
    tracker: Callable[..., JsonLines] = TensorBoard,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
) -> Found:
    """Search for an architecture. build_model, train: see `nas.api`.

    epochs, batch_size, ..., gap_batches: see `SearchOptions`. sampler, ..., lr: see `SearchParts`; a class, or a
    functools.partial of one, makes the parts that need more than their own arguments, e.g.
    ``weight_optim=functools.partial(torch.optim.SGD, lr=0.1)``. deriver: None for the space's own.
    cap: the most that the derived network may have, of ``parameters``, ``macs`` (multiply-accumulates for one example)
    and ``bytes`` (of the weights), e.g. ``{"macs": 2e6}``, or a part of the largest network's, ``{"macs": 0.5}``. The
    default deriver and `nas.methods.BestOf` hold it.
    network: fields of the space that a retraining will change, for the sizes that are reported.
    task: None for classification where targets are integers, else regression. augment: what training batches go
    through, ``nas.data.Augment(...)`` for images. classes: names by label. image_size: of a folder's images.
    device: ``auto``, ``cpu``, ``cuda:1``, or a ``nas.runtime.Runtime(...)``, which also says threads and precision.
    directory: where the run leaves its files, a new one; None for none. resume: True to go on with the run that is in
    the directory, if one is; or the directory of a run that is there. may_change: arguments that may differ from the
    run's then. saving: when checkpoints are written, tracker: of the metrics; both for a run with a directory.
    hooks: see `nas.training.hooks.Hook`.
    After Ctrl-C, a run with a directory saves its state first. Raises exceptions of `nas.errors`.
    """
    given_here = dict(locals())  # first, when there is nothing but the arguments
    with named_as_arguments(), _own_process():
        _check_arguments(SearchOptions, given_here)
        options = SearchOptions(**{field.name: given_here[field.name] for field in fields(SearchOptions)})
        job = _job(build_model, train, given_here)
        parts = SearchParts(
            sampler=sampler,
            temperature=temperature,
            deriver=_deriver(job.space) if deriver is None else deriver,
            searcher=searcher,
            monitor=monitor,
            weight_optim=weight_optim,
            arch_optim=arch_optim,
            lr=_from_start(lr),
            regulariser=regulariser or {},
            cap=cap or {},
        )
        settings = _settings(job, train, given_here) | {
            "search": asdict(options),
            "retrain": {"network": dict(network or {})},
            **{field.name: _plain(getattr(parts, field.name)) for field in fields(SearchParts)},
        }
        search_job = SearchJob(job, options, parts, retrained=job.space.resized(network or {}))
        search_job.try_derived(auxiliary_weight=AUXILIARY_WEIGHT)
        with _records(job, settings, given_here) as records:
            genotype = search_job.search(records)
            result = search_job.result(genotype)
            if records.directory is not None and records.directory.writes:
                atomic.write_json(records.directory.path / "result.json", result)
            records.tracker.finish({}, texts=genotype_texts(genotype))
        state = search_job.state
        return Found(genotype, result, dict(state.metrics), state.stopped, search_job.weights())


def retrain(
    build_model: Space | Callable[..., nn.Module] | nn.Module,
    genotype: Genotype | Found | str,
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
    augment: Augment | Preparation | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | Runtime = "auto",
    directory: str | Path | None = None,
    resume: bool | str | Path = False,
    may_change: Sequence[str] = (),
    saving: Callable[..., Checkpoints] = SAVING,
    tracker: Callable[..., JsonLines] = TensorBoard,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
) -> Trained:
    """Train the network of a genotype; the network of the last epoch counts.

    genotype: one, or what `search` returned, or its published name, its text, or the path of its file.
    start: what the training begins with: ``scratch``, the weights with which the network is built, which are those of a
    model that has some; or ``supernet``, the weights that the search left, with recalibrated batch norms. `genotype` is
    then what `search` returned, or the path of the genotype.json in the directory of the search.
    test: for the final score, which the result then has as `result`; training does not see it.
    epochs, ..., validation: see `RetrainOptions`. With validation, the result has a validation score.
    optim, lr, policy: see `RetrainParts`. The others as in `search`.
    Returns the network with what it takes to use it; it is called as the network is.
    """
    given_here = dict(locals())  # as in `search`
    with named_as_arguments(), _own_process():
        _check_arguments(RetrainOptions, given_here)
        numbers = {field.name: given_here[field.name] for field in fields(RetrainOptions)}
        options = RetrainOptions(**numbers | {"network": dict(network or {})})
        job = _job(build_model, train, given_here)
        given_genotype = genotype.genotype if isinstance(genotype, Found) else genotype
        chosen = given_genotype if isinstance(given_genotype, Genotype) else resolve(str(given_genotype))
        supernet = _supernet(genotype, resumes=bool(resume)) if options.inherits else None
        parts = RetrainParts(optim=optim, lr=_from_start(lr), policy=policy)
        retrain_job = RetrainJob(job, options, parts)
        retrain_job.check(chosen)
        to_score: DataBundle | None = None
        if test is not None and distributed.first():  # now, as a mistake in it is not to end a training of hours
            untrained = retrain_job.space.network(job.data.spec, chosen).eval()
            stand_in = Trained(untrained, chosen, job.data.spec, job.task, {}, job.data.trained_on, job.data.sample)
            to_score = _test_data(test, stand_in)
            scoring_loader(stand_in, to_score, Runtime(device="cpu"))
        made = {field.name: _plain(getattr(parts, field.name)) for field in fields(RetrainParts)}
        settings = _settings(job, train, given_here) | {"retrain": asdict(options) | made}
        with _records(job, settings, given_here) as records:
            out = records.directory
            if out is not None and out.writes:
                atomic.write_text(out.path / "genotype.json", chosen.to_json())
            trained = retrain_job.train(chosen, records, supernet=supernet)
            trained = replace(trained, examples=_examples(job), directory=None if out is None else out.path)
            validated = validation_result(retrain_job.validated(trained), job.task.metric)
            if (test is not None or validated) and distributed.first():
                scored = {} if to_score is None else _score(trained, to_score, EVALUATION_BATCH)
                trained = replace(trained, result=scored | validated)
                if out is not None:
                    atomic.write_json(out.path / "result.json", dict(trained.result or {}))
            records.tracker.finish(scores(trained.result or {}), texts=genotype_texts(chosen))
        return trained


def evaluate(
    net: Trained | str | Path,
    test: Any,
    *,
    batch_size: int = EVALUATION_BATCH,
    allow: Sequence[str | Callable[..., Any]] = (),
    device: str | Runtime = "auto",
) -> dict[str, Any]:
    """The score of a trained network on a test split: what ``result.json`` holds, e.g. ``test_accuracy``.

    net: what `retrain` returned, or the directory of a run, or a ``retrain/checkpoint.pt``. test: see `nas.api`.
    allow, device: as in `nas.load`, for a network that is loaded.
    """
    with named_as_arguments():
        trained = _opened(net, allow=allow, device=device)
        return _score(trained, _test_data(test, trained), batch_size)


def export(
    net: Trained | str | Path,
    directory: str | Path,
    *,
    formats: Sequence[str] | Mapping[str, Format] = FORMATS,
    test: Any = None,
    allow: Sequence[str | Callable[..., Any]] = (),
) -> Exported:
    """Write a trained network as files that run without this project, each compared with the network first.

    net, allow: as in `evaluate`. directory: a new one. formats: names (``weights``, ``standalone``, ``program``,
    ``onnx``, ``bfloat16``), or name -> format. test: for the scores that the files state; None for those of `net`.
    """
    with named_as_arguments():
        trained = _opened(net, allow=allow, device="cpu")
        chosen = formats if isinstance(formats, Mapping) else {name: _format(name) for name in formats}
        loader, result = None, trained.result or {}
        if test is not None:
            data = _test_data(test, trained)
            device = str(next(trained.network.parameters(), torch.zeros(0)).device)
            loader = scoring_loader(trained, data, Runtime(device=device))
            result = final_result(trained, loader, data.spec)
        return export_trained(
            trained,
            loader,
            formats=chosen,
            result=result,
            run=trained.directory,
            directory=Path(directory).expanduser(),
        )


def _check_arguments(options: type, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError for an argument of another kind than expected, e.g. a class in place of an object.

    options: the class of the stage's numbers.
    """
    numbers = {name: NUMBERS[hint] for name, hint in get_type_hints(options).items() if hint in NUMBERS}
    for name, value in arguments.items():
        if name in numbers or name == "seed":
            kind, expected = numbers.get(name, NUMBERS[int])
            right, fix = isinstance(value, kind), f"give {expected}, e.g. {name}=1"
        elif name in OBJECTS and value is not None:
            expected = f"an object with {', '.join(OBJECTS[name])}"
            right = not isinstance(value, type) and all(hasattr(value, one) for one in OBJECTS[name])
            fix = f"give {name}={value.__name__}(...)" if isinstance(value, type) else f"see nas.search for {name}"
        elif name in MAKERS:
            right, expected = callable(value), "a class or a function that makes it"
            fix = f"give the class, or functools.partial of the class and its arguments, as {name}"
        elif name == "hooks":
            right = all(hasattr(hook, "after_epoch") and not isinstance(hook, type) for hook in value)
            expected, fix = "objects of nas.training.hooks.Hook", "give hooks=[MyHook()]"
        else:
            continue
        if not right:
            got = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise ConfigError(f"{name} is {got}, expected {expected}", fix=fix)


def _job(build_model: Any, train: Any, arguments: Mapping[str, Any]) -> Job:
    """What both stages share, from the arguments of a function above."""
    check_seed(arguments["seed"])
    device = arguments["device"]
    runtime = device if isinstance(device, Runtime) else Runtime(device=device)
    reading = given.Reading(classes=arguments["classes"], image_size=arguments["image_size"])
    data = given.training(train, reading, augment=arguments["augment"])
    task = arguments["task"] or _task(data.spec)
    check_targets(task, data.spec, training=data.train)
    return Job(
        runtime=runtime,
        space=_space(build_model),
        task=task,
        data=data,
        seed=arguments["seed"],
        benchmark=arguments.get("benchmark"),
        progress=arguments["progress"] and distributed.first(),
    )


def _space(build_model: Any) -> Space:
    if isinstance(build_model, Space):
        return build_model
    if isinstance(build_model, nn.Module) or callable(build_model):
        return Custom(factory=build_model)
    raise ConfigError(
        f"build_model is a {type(build_model).__name__}, expected a space, a function that builds a model, or a model",
        fix="give e.g. nas.spaces.NasBench201(cells=1)",
    )


def _task(spec: DataSpec) -> Task:
    return Classification() if spec.class_names else Regression()


def _supernet(genotype: Genotype | Found | str, *, resumes: bool) -> Callable[[], SupernetWeights]:
    """What gives the weights of the search that a genotype is of. Raises ConfigError if nothing does."""
    if isinstance(genotype, Genotype) or (isinstance(genotype, Found) and genotype.supernet is None):
        raise ConfigError(
            "retrain.start=supernet takes the weights of a search, got a genotype alone",
            fix="give what nas.search returned, or the path of the genotype.json in the directory of a search",
        )
    if isinstance(genotype, Found):
        found = genotype.supernet
        assert found is not None  # see above
        return lambda: found
    return functools.partial(SupernetWeights.load, checkpoint_beside(genotype, resumes=resumes))


def _deriver(space: Space) -> Deriver:
    """What a space derives by: two edges into each node in the DARTS space, all edges elsewhere."""
    return TopPredecessors() if space.name == Darts.name else Argmax()


def _from_start(lr: Any) -> Callable[..., Any]:
    """What makes a schedule from the optimiser's learning rate; a schedule that is made already is taken as it is."""
    return lr if callable_itself(lr) else lambda start: lr


def _settings(job: Job, train: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a run records of itself: named as the settings of the commands, where they have it."""
    data = train
    if isinstance(train, str | Path):
        data = ImageFolder(root=str(Path(train).expanduser().absolute()), image_size=arguments["image_size"])
    return {
        "seed": job.seed,
        "space": described(job.space),
        "task": _plain(job.task),
        "data": _plain(data) if isinstance(data, given.Family) else None,
        "augment": _plain(job.data.augment),
        "runtime": described(job.runtime),
        "saving": _plain(arguments["saving"]),
        "tracker": _plain(arguments["tracker"]),
    }


def _plain(thing: Any) -> Any:
    """As plain data; of an object of the user's own its class alone."""
    if isinstance(thing, Mapping):
        return {str(name): _plain(value) for name, value in thing.items()}
    try:
        return described(thing)
    except ConfigError:
        return {NAME: import_path(thing if callable_itself(thing) else type(thing))}


@contextlib.contextmanager
def _records(job: Job, settings: dict[str, Any], arguments: Mapping[str, Any]) -> Iterator[Records]:
    """A context in which a stage runs: its run directory is open, if it has one."""
    records = Records(settings=settings, progress=job.progress, hooks=tuple(arguments["hooks"]))
    known = facts(job.data, compared=False)  # as there is no test split
    if job.progress:
        for line in survey_lines(known):
            print(line)
    if distributed.first():
        for text in survey_warnings(known):
            print(f"warning: {text}", file=sys.stderr)
    path, resumes = _directory(arguments["directory"], arguments["resume"])
    if path is None:
        yield records
        return
    saving, text = arguments["saving"], yaml.safe_dump(settings, sort_keys=False, allow_unicode=False, width=120)
    complete(saving, path=Path(), kind="search")  # only tried: a mistake in it is to leave no directory
    out = RunDirectory(
        path,
        config=text,
        command=command_line(),
        seed=job.seed,
        runtime=job.runtime,
        resume=resumes,
        writes=distributed.first(),
    )
    with out, opened_tracker(arguments["tracker"], path) if out.writes else Silent() as tracker:
        out.record(data=known, made_in="Python")
        tracker.describe(**description(settings, text=text, command=command_line(), metric=job.task.metric.name))
        yield replace(
            records,
            directory=out,
            tracker=tracker,
            saving=saving,
            may_change=settings_of(arguments["may_change"]),
            profile=job.runtime.profile,
        )


def _directory(directory: Any, resume: Any) -> tuple[Path | None, bool]:
    """Where a run writes, and whether it goes on with what is there."""
    if isinstance(resume, bool):
        if directory is None:
            if resume:
                raise ConfigError("resume is True without a directory", fix="give the run's directory as directory=...")
            return None, False
        path = Path(directory).expanduser()
        return path, resume and (path / MANIFEST).exists()
    path = Path(resume).expanduser()
    if directory is not None and Path(directory).expanduser() != path:
        raise ConfigError(
            f"directory is {directory} and resume is {resume}, expected one directory", fix="give resume alone"
        )
    return path, True


@contextlib.contextmanager
def _own_process() -> Iterator[None]:
    """Puts back what `Runtime.start` sets: seeds, threads, determinism. A signal, once the state is saved, ends the
    program as it does without this project."""
    state, threads = random_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled, benchmarks = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]
    try:
        yield
    except Interrupted as stop:
        if stop.received == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.received) from None
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmarks
        torch.set_num_threads(threads)
        set_random_state(state)


def _examples(job: Job) -> Any:
    """A few inputs of the training, as the network gets them."""
    loader = Loader(
        job.data.train,
        spec=job.data.spec,
        batch_size=min(EXAMPLES, len(job.data.train)),
        device=torch.device("cpu"),
        shuffle=False,
        drop_last=False,
        what="train",
    )
    return mapped(torch.Tensor.clone, next(loader.epoch(0))[0])


def _opened(net: Any, *, allow: Sequence[Any], device: str | Runtime) -> Trained:
    if isinstance(net, Trained):
        return net
    if not isinstance(net, str | Path):
        raise ConfigError(
            f"net is a {type(net).__name__}, expected what nas.retrain returned, or the directory of a run",
            fix="give the path of the run that the network was loaded from",
        )
    path = Path(net).expanduser()
    path = path / "retrain" / "checkpoint.pt" if path.is_dir() else path
    runtime = device if isinstance(device, Runtime) else Runtime(device=device)
    return replace(Trained.load(path, allow=list(allow), runtime=runtime), directory=path.absolute().parent.parent)


def _score(trained: Trained, data: DataBundle, batch_size: int) -> dict[str, Any]:
    runtime = Runtime(device=str(next(trained.network.parameters(), torch.zeros(0)).device))
    result = final_result(trained, scoring_loader(trained, data, runtime, batch_size), data.spec)
    check_finite(result)
    return result


def _test_data(test: Any, trained: Trained) -> DataBundle:
    """The test split that somebody gave, for a network. Raises DataError for labels that are no classes."""
    data = _test_split(test, trained)
    check_targets(trained.task, data.spec, test=data.test)
    return data


def _test_split(test: Any, trained: Trained) -> DataBundle:
    spec = trained.spec
    if isinstance(test, str | Path):
        size = spec.image_size if isinstance(spec, ImageSpec) else None
        channels = spec.channels if isinstance(spec, ImageSpec) else None
        return bundle_to_score(ImageFolder(root=str(test), image_size=size, channels=channels), trained, same=False)
    if isinstance(test, given.Family):
        return bundle_to_score(test, trained, same=trained.config.get("data") == _plain(test))
    return given.to_score(test, spec, given.Reading())


def _format(name: Any) -> Format:
    if name not in TABLE["format"]:
        known = ", ".join(TABLE["format"])
        raise ConfigError(f"formats has {name!r}, expected some of {known}", fix=f"set formats={list(FORMATS)}")
    from nas import formats  # here, as some need packages that not everybody has

    made: Format = getattr(formats, TABLE["format"][name].rpartition(".")[2])()
    return made
