"""The jobs of the study: each is skipped where it is finished, and goes on where it was stopped."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressing.methods import METHODS, Task, macs_of
from compressing.training import fine_tune, load_original, train_original
from nas.errors import ConfigError
from nas.storage import atomic

RESULT = "job.json"


@dataclass(frozen=True, kw_only=True)
class Study:
    """data: DATA/train/<class>/* and DATA/test/<class>/*. runs: where all jobs leave their files. cap: the part of the
    original's multiply-accumulates that the others may have. epochs: of updates that each of them gets, counted in
    updates of an epoch of fine-tuning. search_epochs: how many of these are the search's, where there is one. lr: the
    highest learning rate of both. arch_lr: of the search's logits."""

    data: Path
    runs: Path
    cap: float = 0.5
    epochs: int = 8
    search_epochs: int = 2
    lr: float = 0.05
    arch_lr: float = 0.03

    def train(self, *, epochs: int, **sizes: Any) -> Mapping[str, Any]:
        """Trains the original. Returns its result. sizes: of the `ResNet`."""
        if not self._original.is_file():
            train_original(self.data, self._original.parent, epochs=epochs, **sizes)
        return self.original()

    def original(self) -> Mapping[str, Any]:
        """The result of the original's training. Raises ConfigError before it."""
        if not self._original.is_file():
            raise ConfigError(f"{self.runs} has no trained network", fix="run the stage train first")
        found: Mapping[str, Any] = json.loads(self._original.read_text(encoding="utf-8"))
        return found

    @property
    def _original(self) -> Path:
        return self.runs / "original" / "result.json"

    def compress(self, method: str, seed: int, *, pilot: bool = False) -> Mapping[str, Any]:
        """Makes the original smaller, and fine-tunes the result. Returns what it leaves as ``job.json``.

        pilot: for decisions about settings; the test split is not read.
        """
        name = f"{'pilot_' if pilot else ''}{method}_seed_{seed}"
        path = self.runs / name / RESULT
        if not path.is_file():
            atomic.write_json(path, self._compressed(method, seed, directory=self.runs / name, pilot=pilot))
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != self.settings:
            raise ConfigError(f"{path} has the settings {found['settings']}", fix="give the same ones, or another RUNS")
        return found

    @property
    def settings(self) -> Mapping[str, float]:
        """What all methods have in common."""
        return {"cap": self.cap, "epochs": self.epochs, "lr": self.lr}

    def _compressed(self, method: str, seed: int, *, directory: Path, pilot: bool) -> dict[str, Any]:
        before = self.original()["macs"]
        network = load_original(self._original.parent)
        task = Task(self.data, directory, self.cap * before, seed, self.search_epochs, lr=self.lr, arch_lr=self.arch_lr)
        model, found = METHODS[method](network, task)
        searched = int(found.metrics.get("updates", 0))
        tuned = fine_tune(
            model,
            found,
            self.data,
            directory / "tuning",
            epochs=self.epochs - (self.search_epochs if searched else 0),
            lr=self.lr,
            seed=seed,
            pilot=pilot,
        )
        result, after = tuned.result or {}, macs_of(tuned.network)
        if after > task.macs:
            raise ConfigError(
                f"{method} has {after:,} multiply-accumulates", fix=f"at most {task.macs:,.0f} are allowed"
            )
        return {
            "method": method,
            "seed": seed,
            "settings": self.settings,
            **{name: result[name] for name in result if name.split("_")[-1] in ("accuracy", "examples", "parameters")},
            "macs": after,
            "part_of_macs": after / before,
            "updates": {"search": searched, "tuning": updates(directory / "tuning")},
            "choices": dict(found.genotype.choices),
            "widths": {name: weight.shape[0] for name, weight in tuned.network.named_parameters() if weight.ndim == 4},
        }

    def finished(self) -> Iterator[Mapping[str, Any]]:
        """What the finished jobs left, pilots left out."""
        for path in sorted(self.runs.glob(f"*/{RESULT}")):
            if not path.parent.name.startswith("pilot_"):
                yield json.loads(path.read_text(encoding="utf-8"))


def updates(run: Path) -> int:
    """How many updates the weights had in a run."""
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return int(json.loads(last)["updates"])
