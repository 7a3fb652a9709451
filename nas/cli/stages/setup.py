"""What the stages of a run share: its parts built from the configuration, and the checks both stages make."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.cli.report import show_data
from nas.cli.stages.for_report import changed
from nas.cli.stages.tracked import description
from nas.data.bundle import DataBundle
from nas.data.inputs import Inputs, each, mapped
from nas.data.loader import Loader
from nas.data.survey import facts
from nas.errors import ConfigError, DataError, NasError, SpaceError, described
from nas.runtime import distributed
from nas.runtime.runtime import Runtime
from nas.settings.allowed_targets import allowed
from nas.settings.configuration import build, to_plain, to_yaml
from nas.settings.dotted import FETCH, OWN, PLACES, among, leaves
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.space import Space
from nas.storage.checkpointing import Checkpoints
from nas.storage.command_line import choice
from nas.storage.forwarded import Adapted, check_installed
from nas.storage.metrics_log import JsonLines, Silent
from nas.storage.run_directory import RunDirectory, command_line
from nas.training.schedule import keep_ratios
from nas.training.step_profile import StepProfile
from nas.training.task import Task, check_targets

# Arguments that say how an optimiser computes: who gives one of them decides instead of us.
WAYS = ("fused", "foreach", "differentiable", "capturable")


@dataclass(frozen=True)
class Setup:
    """What every stage of a run shares."""

    cfg: DictConfig
    runtime: Runtime
    space: Space
    benchmark: NasBench201Table | None
    task: Task
    data: DataBundle

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Setup":
        allow = allowed(cfg)
        if abs(cfg.seed) >= 2**63:
            raise ConfigError(f"seed must be below 2^63, got {cfg.seed}", fix="set seed=0")
        runtime: Runtime = build(cfg.runtime, allow=allow)
        space: Space = build(cfg.space, allow=allow)
        task: Task = build(cfg.task, allow=allow)
        benchmark = open_benchmark(cfg)
        # Only tried: a mistake in them is to leave no directory.
        check_installed(build(cfg.tracker, allow=allow))
        build(cfg.saving, allow=allow, path=Path(), kind="search")
        with distributed.first_on_machine_first(), advice_for_moved_data(cfg):
            data: DataBundle = build(cfg.data, allow=allow).load()
        check_targets(task, data.spec, training=data.train, test=data.test)
        return cls(cfg, runtime, space, benchmark, task, data)

    def build(self, node: Any, **arguments: Any) -> Any:
        return build(node, allow=allowed(self.cfg), **arguments)

    def optimizer(self, node: Any, network: nn.Module) -> Optimizer:
        """For the parameters of a network. Fused, where the optimiser has that and the node does not say how it is to
        compute: the same numbers in one pass over them, which torch has for real ones only.

        Raises ConfigError for an optimiser whose steps need more than gradients.
        """
        arguments: dict[str, Any] = {"params": network.parameters()}
        factory = self.build(node)
        fuses = self.runtime.device.type in ("cpu", "cuda") and not node.get("dampening")  # see begin_momentum
        fuses &= not any(parameter.is_complex() for parameter in network.parameters())
        fuses &= all(node.get(name) is None for name in WAYS)
        if fuses and has_argument(factory, "fused"):
            arguments["fused"] = True
        optimizer: Optimizer = self.build(node, **arguments)
        check_optimizer(optimizer, setting=node._get_full_key(None), device=self.runtime.device.type)
        keep_ratios(optimizer)
        return optimizer

    def open(self, directory: Path) -> RunDirectory:
        out = RunDirectory(
            directory,
            config=to_yaml(self.cfg),
            command=command_line(),
            seed=self.cfg.seed,
            runtime=self.runtime,
            resume=self.cfg.resume is not None,
            writes=distributed.first(),
            lock=self.cfg.lock,
        )
        if out.writes:
            found = facts(self.data)
            out.record(data=found, changed=changed(self.cfg))
            show_data(found)
        return out

    def track_epoch(self, out: RunDirectory, stage: str, loader: Loader) -> None:
        """Says and records what an epoch of a stage uses, as batches of one size leave examples out."""
        used = {"examples": loader.examples, "batches": len(loader), "left_out": loader.left_out}
        out.record(**{f"{stage}_epoch": used})
        if loader.left_out and out.writes:
            print(
                f"{stage}: {loader.left_out:,} of the {loader.examples:,} examples fill no batch and are left out of "
                "an epoch, other ones each time"
            )

    def checkpoints(self, out: RunDirectory, stage: str) -> Checkpoints:
        """Of a stage, in its subdirectory."""
        checkpoints: Checkpoints = self.build(
            self.cfg.saving,
            path=out.subdirectory(stage) / "checkpoint.pt",
            kind=stage,
            resume=out.resumed,
            writes=out.writes,
        )
        return checkpoints

    def check_unchanged(self, saved: dict[str, Any], source: Path) -> None:
        """Raises ConfigError, listing them, for settings that differ from those a checkpoint was taken under, as when
        the run's config.yaml was edited, unless they are in ``may_change``; DataError for other training examples."""
        before, now = leaves(saved["config"]), leaves(to_plain(self.cfg))
        may = (*OWN, FETCH, *PLACES, *self.cfg.may_change)
        differing = [s for s in now | before if before.get(s) != now.get(s) and not among(s, may)]
        if differing:
            listed = ", ".join(f"{setting}={now.get(setting)} (was {before.get(setting)})" for setting in differing)
            raise ConfigError(
                f"{source} was written under another configuration: {listed}",
                fix=f"undo the change in config.yaml, or allow it: {choice('may_change', differing)}",
            )
        others = [name for name, value in self.data.seen.items() if saved.get(name, value) != value]
        if others and not among("data", self.cfg.may_change):
            raise DataError(
                f"{self.data.spec.name!r} has other training examples than when {source} was written",
                fix=f"put them back as they were, or allow it: {choice('may_change', ['data'])}",
            )

    def profile(self, out: RunDirectory, stage: str) -> StepProfile:
        """Of the steps of a stage, into its subdirectory, if that is asked for."""
        return StepProfile(out.subdirectory(stage) if self.runtime.profile and out.writes else None)

    def track(self, out: RunDirectory) -> JsonLines:
        if not out.writes:
            return Silent()
        built = self.build(self.cfg.tracker, directory=out.path)
        tracker = built if isinstance(built, JsonLines) else Adapted(built, directory=out.path)
        tracker.describe(**description(self.cfg, metric=self.task.metric.name))
        return tracker


@contextmanager
def advice_for_moved_data(cfg: DictConfig) -> Iterator[None]:
    """Where a run that is resumed does not find its data, say what to do about it then."""
    try:
        yield
    except DataError as error:
        root = cfg.data.get("root")
        if cfg.resume is None or root is None:
            raise
        relative = "" if Path(root).is_absolute() else f"start this where the run was started, as {root} is relative; "
        raise DataError(
            error.problem,
            fix=f"{relative}if the data have moved, give their new place: data.root=... may_change=[data.root]",
        ) from error


def open_benchmark(cfg: DictConfig) -> NasBench201Table | None:
    """The table of the group ``benchmark``, if one was chosen."""
    if cfg.benchmark is None:
        return None
    table: NasBench201Table = build(cfg.benchmark, allow=list(cfg.allow_targets))
    return table


def check_optimizer(optimizer: Any, *, setting: str, device: str) -> None:
    """Raises ConfigError, naming the setting, for what no step of ours can be taken with."""
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"{setting} makes a {type(optimizer).__name__}, expected a torch.optim.Optimizer",
            fix=f"name one as {setting}._target_, e.g. torch.optim.SGD",
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"{setting} makes a {type(optimizer).__name__}, whose step computes the loss several times by a closure, "
            "expected one that steps by the gradients of one batch",
            fix="choose another optimiser, e.g. torch.optim.SGD or torch.optim.AdamW",
        )
    if device != "cuda" and any(group.get("capturable") for group in optimizer.param_groups):
        raise ConfigError(
            f"{setting}.capturable=true is for CUDA graphs, got the device {device}",
            fix=f"leave {setting}.capturable out",
        )


def has_argument(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # some functions that are not written in Python
        return False


def at_least(minimum: float, **settings: float) -> None:
    """Raises ConfigError unless every setting (``a__b`` for a.b) is >= minimum."""
    for name, value in settings.items():
        if not value >= minimum:
            dotted = name.replace("__", ".")
            raise ConfigError(f"{dotted} must be at least {minimum:g}, got {value}", fix=f"set {dotted}={minimum:g}")


def two_examples(loader: Loader) -> tuple[Inputs, Tensor]:
    """The first two of an epoch, or the only one: enough to see whether everything fits."""
    inputs, targets = next(loader.epoch(0))
    return mapped(lambda tensor: tensor[:2], inputs), targets[:2]


@contextmanager
def taking(inputs: Inputs) -> Iterator[None]:
    """Raises SpaceError, naming them, for what a model raises when it is given the inputs."""
    try:
        yield
    except NasError:  # some of which are one of these, too
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        forms = ", ".join(f"{str(tensor.dtype)[6:]} {tuple(tensor.shape)}" for tensor in each(inputs))
        raise SpaceError(
            f"the model cannot take inputs of {forms} ({described(error)})",
            fix="change the model or the data, until model(inputs) runs; --debug shows where it stopped",
        ) from error


def check_outputs(outputs: Any, targets: Tensor, setup: Setup) -> None:
    """Raises SpaceError or DataError unless what the model returned suits the task."""
    if not isinstance(outputs, Tensor):
        raise SpaceError(
            f"the model returns a {type(outputs).__name__}, expected one tensor",
            fix="return the tensor that the loss is to be computed of",
        )
    setup.task.check(outputs, targets, setup.data.spec)
