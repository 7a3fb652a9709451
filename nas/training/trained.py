"""What retraining leaves: a network that can be scored, exported and loaded again."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.data.bundle import DataBundle
from nas.data.inputs import each
from nas.data.loader import Loader
from nas.data.spec import DataSpec
from nas.errors import DataError, DivergenceError
from nas.runtime.buffers import restore_unsaved
from nas.runtime.runtime import Runtime, describe, peak_memory
from nas.settings.allowed_targets import Allowed
from nas.settings.building import built
from nas.spaces.space import Space
from nas.storage import checkpoint_file
from nas.supernet.genotype import Genotype
from nas.training.evaluate import Score, count_parameters, macs_or_reason, score
from nas.training.latency import latency
from nas.training.network_size import as_large_as
from nas.training.task import Task
from nas.untrusted import plain_data

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Trained:
    """A retrained network and what it takes to use it, as its checkpoint holds them. trained_on, sample: of a
    `DataBundle`."""

    network: nn.Module
    genotype: Genotype
    spec: DataSpec
    task: Task
    config: dict[str, Any]
    trained_on: str | None = None
    sample: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path, *, allow: Allowed, runtime: Runtime) -> "Trained":
        """Raises CheckpointError; ConfigError if the checkpoint names what is neither ours nor allowed."""
        return cls.from_state(checkpoint_file.load(path, "retrain"), source=path, allow=allow, runtime=runtime)

    @classmethod
    def from_state(cls, state: dict[str, Any], *, source: str | Path, allow: Allowed, runtime: Runtime) -> "Trained":
        """Of what was saved at `source`. Raises as `load` does."""
        with checkpoint_file.taken_from(source):
            config, spec = state["config"], DataSpec.from_dict(state["data"])
            genotype = Genotype.from_dict(state["genotype"], source=f"the genotype in {source}")
            plain_data.check(config)
            space: Space = built(config["space"], "space", allow=allow, source=source)
            task: Task = built(config["task"], "task", allow=allow, source=source)
            resized = space.resized(config["retrain"]["network"])
            with as_large_as(state["network"], source=source):
                network = resized.network(spec, genotype)
            checkpoint_file.restore(network, state["network"], source=source)
            restore_unsaved(network, state.get("network_buffers", {}))
            sample = tuple(map(str, state.get("training_sample", ())))
            return cls(runtime.place(network).eval(), genotype, spec, task, config, state.get("trained_on"), sample)


def scoring_loader(trained: Trained, data: DataBundle, runtime: Runtime, batch_size: int = EVALUATION_BATCH) -> Loader:
    """The test split as the network wants it: not augmented, images normalised with the constants of its training.

    Raises DataError if the data are not of the kind that the network was trained on, or of a size it cannot take.
    """
    for what, expected in trained.spec.must_match.items():
        got = data.spec.must_match.get(what)
        if got != expected:
            raise DataError(
                f"the data set {data.spec.name} has {what} {got}, expected {expected} as in training",
                fix="choose the data set that the network was trained on, or one with the same classes",
            )
    check_size(trained, data.spec)
    return Loader(
        data.test,
        spec=trained.spec,
        batch_size=batch_size,
        device=runtime.device,
        shuffle=False,
        drop_last=False,
        what="batch_size",
    )


def check_size(trained: Trained, spec: DataSpec) -> None:
    """Raises DataError if the network, trained on inputs of another size, cannot take those of `spec`, and tells of
    them if it can."""
    if spec.input_shapes == trained.spec.input_shapes:
        return
    made = spec.zeros(device=next(trained.network.parameters()).device)
    try:
        with torch.no_grad():
            trained.network(*each(made))
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"the network cannot take inputs of shape {shapes(spec)}, expected e.g. {shapes(trained.spec)} as in "
            f"training ({' '.join(str(error).split()):.200})",
            fix="make the images that large, e.g. data.image_size of data=image_folder",
        ) from error
    print(
        f"warning: {spec.name!r} has inputs of shape {shapes(spec)}, the network was trained on {shapes(trained.spec)}",
        file=sys.stderr,
    )


def shapes(spec: DataSpec) -> str:
    return ", ".join(map(str, spec.input_shapes))


def final_result(
    trained: Trained,
    loader: Loader,
    spec: DataSpec,
    *,
    write: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """What ``result.json`` holds: the score on the test split, ``test_...``, and the network's size.

    spec: of the data that the loader gives, which may be another set than that of the training.
    write: writes a result. It is called with the score alone first, so that no other measurement can lose it, and then
    with the whole result, which is also returned.
    """
    metric = trained.task.metric

    def result(tested: Score, **macs: Any) -> dict[str, Any]:
        return {
            f"test_{metric.name}": tested.metric,
            "test_loss": tested.loss,
            "test_examples": tested.examples,
            **{f"test_{name}": value for name, value in tested.measures.items()},
            "metric": asdict(metric),
            "parameters": count_parameters(trained.network),
            **macs,
            "data": spec.name,
            "genotype": trained.genotype.to_dict(),
        }

    tested = score(trained.network, loader, trained.task, trained.spec, scored=lambda tested: write(result(tested)))
    whole = result(tested, **macs_or_reason(trained.network, spec))
    write(whole)
    return whole


def check_finite(result: dict[str, Any]) -> None:
    """Of a `final_result`, once it is written. Raises DivergenceError if the loss is not finite: the network is of no
    use then, though its weights are finite."""
    if not math.isfinite(loss := result["test_loss"]):
        raise DivergenceError(
            f"the loss of the trained network on the test split is {loss}, expected a finite number: its outputs, or "
            "what the loss makes of them, are not finite",
            fix="see which of its operations these inputs break, or train it with a lower retrain.optim.lr",
        )


def speed(trained: Trained, loader: Loader, *, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    """What nas-evaluate adds to it: latency in batches of each of those sizes, and the memory this process took.

    Only there: beside a training the memory would be that of the training.
    """
    inputs, _ = next(loader.epoch(0))
    device = each(inputs)[0].device
    measured = [latency(trained.network, inputs, batch=batch, seconds=seconds) for batch in batches]
    return {
        "device": describe(device),
        "latency": [asdict(one) for one in measured],
        "peak_memory_bytes": peak_memory(device),
        # Either way with the test split, if it is kept in memory.
        "peak_memory_of": "allocated on the device" if device.type == "cuda" else "of the process, torch included",
    }


def objective(result: dict[str, Any]) -> float:
    """What a sweeper is given of a result: the task's metric on the test split."""
    return float(result[f"test_{result['metric']['name']}"])
