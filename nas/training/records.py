"""Opens the records of a stage: checkpoints, metrics, a profile of the steps, and a progress bar."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.data.bundle import DataBundle
from nas.data.loader import Loader
from nas.errors import ConfigError, DataError, GenotypeError
from nas.runtime import distributed
from nas.settings.building import complete
from nas.settings.dotted import FETCH, LINKS, OF_SEARCH, OWN, PLACES, among, leaves
from nas.settings.names import NAME
from nas.spaces.published import to_text
from nas.storage import checkpoint_file
from nas.storage.checkpointing import Checkpoints
from nas.storage.command_line import choice
from nas.storage.metrics_log import JsonLines, Silent
from nas.storage.run_directory import RunDirectory
from nas.supernet.genotype import Genotype
from nas.training.hooks import Hook, Profiling, Saving
from nas.training.progress_bar import Progress
from nas.training.step_profile import StepProfile
from nas.training.task import Metric

NUMBERS = {"search": ("epochs", "batch_size"), "retrain": ("epochs", "batch_size")}
LONGEST = 100  # characters of a value


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of a run, which its stages write to.

    directory: of the run; None: nothing is written. tracker: of the metrics. saving: makes the checkpoints of a stage.
    settings: of the run, as plain data: every checkpoint holds them, and a run that goes on is compared with them.
    may_change: settings that may differ then. profile: whether to record some steps. progress: whether to print.
    hooks: called before those of the stages, see `nas.training.hooks.Hook`.
    """

    directory: RunDirectory | None = None
    tracker: JsonLines = field(default_factory=Silent)
    saving: Callable[..., Any] = Checkpoints
    settings: Mapping[str, Any] = field(default_factory=dict)
    may_change: Sequence[str] = ()
    profile: bool = False
    progress: bool = True
    hooks: Sequence[Hook] = ()

    def stage(self, name: str) -> "StageRecords":
        """Returns the records of one stage, ``search`` or ``retrain``, in its subdirectory."""
        out = self.directory
        if out is None:
            return StageRecords(self, name)
        path = out.subdirectory(name) / "checkpoint.pt"
        return StageRecords(
            self, name, complete(self.saving, path=path, kind=name, resume=out.resumed, writes=out.writes)
        )

    def record(self, **facts: Any) -> None:
        """Add to the run's manifest."""
        if self.directory is not None:
            self.directory.record(**facts)

    def check_unchanged(
        self, saved: Mapping[str, Any], data: DataBundle, seen: Mapping[str, Any], source: Path
    ) -> None:
        """Raises ConfigError, listing them, for settings that differ from those a checkpoint was taken under, as when
        the run's config.yaml was edited, unless they are in ``may_change``, and for other content of a file that they
        name; DataError for other training examples. seen: see `nas.training.job.Job.seen`."""
        before, now = leaves(saved["config"]), leaves(dict(self.settings))
        may = (*OWN, FETCH, LINKS, *PLACES, "genotype", *self.may_change)  # a retraining compares the genotypes
        differing = [s for s in now | before if before.get(s) != now.get(s) and not among(s, may)]
        if differing:
            listed = ", ".join(f"{setting}={now.get(setting)} (was {before.get(setting)})" for setting in differing)
            raise ConfigError(
                f"{source} was written under another configuration: {listed}",
                fix=f"undo the change in config.yaml, or allow it: {choice('may_change', differing)}",
            )
        others = {name for name, value in seen.items() if saved.get(name, value) != value}
        for name in [name for name in CONTENTS if name in others]:
            setting, problem = CONTENTS[name]
            if not among(setting, self.may_change):
                raise ConfigError(
                    f"{problem} than when {source} was written",
                    fix=f"give the same again, or allow it: {choice('may_change', [setting])}",
                )
        if others - CONTENTS.keys() and not among("data", self.may_change):
            raise DataError(
                f"{data.spec.name!r} has other training examples than when {source} was written",
                fix=f"put them back as they were, or allow it: {choice('may_change', ['data'])}",
            )


# What a checkpoint has the digest of: name -> the setting that names it, and what to say if it has changed.
CONTENTS = {
    "teacher": ("teacher", "the teacher has other weights"),
    "space_weights": ("space.weights", "the file of space.weights has other weights"),
    "latency_table": ("regulariser.latency", "the table of latencies has other times"),
}


class StageRecords:
    """The records of one stage. checkpoints: None if the run writes nothing."""

    def __init__(self, records: Records, stage: str, checkpoints: Checkpoints | None = None) -> None:
        self._records = records
        self._stage = stage
        self._checkpoints = checkpoints

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self._checkpoints is not None and self._checkpoints.begun

    def resume(
        self,
        state: Any,
        *,
        data: DataBundle,
        seen: Mapping[str, Any],
        loader: Loader,
        check: Callable[[Mapping[str, Any], Path], None] | None = None,
    ) -> None:
        """Bring a `SearchState` or `RetrainState` to where the run stopped, and the log of metrics with it.

        seen: see `nas.training.job.Job.seen`. check: is given what was saved, and where, before the state takes it.
        """
        records, kept = self._records, self._checkpoints
        saved = None if kept is None else kept.newest()
        distributed.check_same({"the checkpoint to go on from": saved and (saved["epoch"], saved["step"])})
        if kept is not None and saved is not None:
            records.check_unchanged(saved, data, seen, kept.path)
            if check is not None:
                check(saved, kept.path)
            state.load_state_dict(saved, source=kept.path)
            self._check_epochs(state, saved["config"])
        elif kept is not None:
            checkpoint_file.check_plain(state.state_dict())  # now, not at the first save
        self._note_epoch(loader)
        if (genotype := getattr(state, "genotype", None)) is not None:
            records.tracker.derived(genotype.choices)  # for the last epoch, if a crash kept it from being logged
        records.tracker.resume(self._stage, state.epoch, state.metrics)

    def _check_epochs(self, state: Any, config: Mapping[str, Any]) -> None:
        """Raises ConfigError if the stage shall have fewer epochs than it has done. A search needs one more: what it
        derives is decided in its last epoch. config: the settings before."""
        before, now = (of.get(self._stage, {}).get("epochs") for of in (config, self._records.settings))
        done = state.epoch
        least = done + ((self._stage == "search" and done != before) or state.step > 0)
        if now != before and now is not None and now < least and getattr(state, "stopped", None) is None:
            raise ConfigError(
                f"{self._stage}.epochs is {now} (was {before}), but {done} epochs are done, expected at least {least}",
                fix=f"set {self._stage}.epochs={least}",
            )

    def _note_epoch(self, loader: Loader) -> None:
        """Says and records what an epoch uses, as batches of one size leave examples out."""
        used = {"examples": loader.examples, "batches": len(loader), "left_out": loader.left_out}
        self._records.record(**{f"{self._stage}_epoch": used})
        writes = self._records.directory is None or self._records.directory.writes
        if loader.left_out and writes and self._records.progress:
            print(
                f"{self._stage}: {loader.left_out:,} of the {loader.examples:,} examples fill no batch and are left "
                "out of an epoch, other ones each time"
            )

    @contextlib.contextmanager
    def hooks(
        self,
        state: Any,
        *,
        epochs: int,
        metric: Metric,
        content: Mapping[str, Any],
        after: Sequence[Hook] = (),
        on_epoch: Callable[[], None] = lambda: None,
    ) -> Iterator[list[Hook]]:
        """A context for the loop of the stage, with its hooks: progress, profile, checkpoints and metrics.

        content: what a checkpoint holds beside the state and the settings. after: hooks that run once those of the user
        have run. on_epoch: see `Saving`.
        """
        records, hooks = self._records, list[Hook]()

        def everything() -> dict[str, Any]:
            if records.directory is not None:
                records.directory.record()  # the time until now: a kill loses that of the steps that it loses
            return {"config": dict(records.settings), **content, **state.state_dict()}

        with contextlib.ExitStack() as stack:
            if records.directory is not None:
                profiled = records.profile and records.directory.writes
                profile = StepProfile(records.directory.subdirectory(self._stage) if profiled else None)
                hooks.append(Profiling(stack.enter_context(profile)))
            if self._checkpoints is not None:
                saving = Saving(
                    self._stage,
                    checkpoints=stack.enter_context(self._checkpoints),
                    tracker=records.tracker,
                    everything=everything,
                    last=lambda: state.ended(epochs),
                    on_epoch=on_epoch,
                )
                hooks.append(saving)
            if records.progress:
                hooks.insert(0, stack.enter_context(Progress(self._stage, epochs, metric=metric)))
            yield [*records.hooks, *after, *hooks]


def description(settings: Mapping[str, Any], *, text: str, command: Sequence[str], metric: str) -> dict[str, Any]:
    """The arguments of a tracker's `describe`. settings: of the run, as plain data; text: as YAML."""
    return {
        "texts": {"settings": text, "command": " ".join(command)},
        "settings": compared(settings),
        "scores": [f"test/{metric}", "gap/recalibrated", f"search/arch/{metric}"],
    }


def compared(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The choice of every group, the seed, and the sizes of both stages. Of nas-retrain, which searches nothing, the
    genotype in place of the search."""
    found: dict[str, str | int | float] = {"seed": settings["seed"]}
    if genotype := settings.get("genotype"):
        found["genotype"] = str(genotype)[:LONGEST]
        settings = {group: node for group, node in settings.items() if group not in OF_SEARCH}
    for group, node in settings.items():
        if isinstance(node, dict) and NAME in node:
            found[group] = str(node[NAME])[:LONGEST]
        elif group in ("ops", "regulariser", "formats") and isinstance(node, dict):
            found[group] = (", ".join(map(str, node)) or "none")[:LONGEST]
    for stage, names in NUMBERS.items():
        of = settings.get(stage) or {}
        found |= {f"{stage}.{name}": of[name] for name in names if isinstance(of.get(name), int)}
    return found


def scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result, by the tags of their cards."""
    numbers = {name: value for name, value in result.items() if type(value) in (int, float)}
    return {f"test/{name.removeprefix('test_')}": float(value) for name, value in numbers.items()}


def genotype_texts(genotype: Genotype) -> dict[str, str]:
    """A genotype as JSON, and in the notation of its space where it has one."""
    texts = {"genotype": genotype.to_json()}
    with contextlib.suppress(GenotypeError):
        texts["notation"] = to_text(genotype)
    return texts
