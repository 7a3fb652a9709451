"""A retrained network, which can be scored, exported and loaded again."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.bundle import DataBundle
from nas.data.inputs import Inputs, each, mapped
from nas.data.loader import Loader
from nas.data.spec import DataSpec, ImageSpec
from nas.errors import DataError, DivergenceError
from nas.runtime import distributed
from nas.runtime.buffers import restore_unsaved
from nas.runtime.modes import evaluating
from nas.runtime.runtime import Runtime, describe, device_of, peak_memory
from nas.settings.allowed_targets import Allowed
from nas.settings.building import built
from nas.spaces.space import Space
from nas.storage import checkpoint_file
from nas.supernet.genotype import Genotype
from nas.training.evaluate import Score, count_parameters, macs_or_reason, score
from nas.training.inheritance import SUPERNET
from nas.training.latency import latency
from nas.training.network_size import as_large_as
from nas.training.task import Metric, Regression, Task
from nas.training.task_state import TaskState, buffers_kept
from nas.untrusted import plain_data

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Trained:
    """A retrained network and what is needed to use it, as in its checkpoint. Calling it calls the network.

    trained_on, sample: as in `DataBundle`. examples: training inputs as the network gets them; None if it was loaded.
    result: its score, if that was measured. directory: of its run, or None.
    """

    network: nn.Module
    genotype: Genotype
    spec: DataSpec
    task: Task
    config: dict[str, Any]
    trained_on: str | None = None
    sample: tuple[str, ...] = ()
    examples: Inputs | None = field(default=None, repr=False)
    result: Mapping[str, Any] | None = None
    directory: Path | None = None

    def __call__(self, *inputs: Any) -> Any:
        return self.network(*inputs)

    def some_inputs(self) -> Inputs:
        """A few inputs on the CPU, to compare networks on: of the training, or made-up ones."""
        if self.examples is not None:
            return self.examples
        return mapped(
            lambda zeros: torch.randn_like(zeros) if zeros.is_floating_point() else zeros,
            self.spec.zeros(device=torch.device("cpu"), batch=2),
        )

    @classmethod
    def load(cls, path: str | Path, *, allow: Allowed, runtime: Runtime) -> "Trained":
        """Loads a checkpoint.

        Raises CheckpointError, or ConfigError if the checkpoint names a class that is not allowed.
        """
        return cls.from_state(checkpoint_file.load(path, "retrain"), source=path, allow=allow, runtime=runtime)

    @classmethod
    def from_state(cls, state: dict[str, Any], *, source: str | Path, allow: Allowed, runtime: Runtime) -> "Trained":
        """Builds the network from a state that was saved at `source`. Raises the errors of `load`."""
        with checkpoint_file.taken_from(source):
            config, spec = state["config"], DataSpec.from_dict(state["data"])
            genotype = Genotype.from_dict(state["genotype"], source=f"the genotype in {source}")
            plain_data.check(config)
            space: Space = built(config["space"], "space", allow=allow, source=source)
            task: Task = built(config["task"], "task", allow=allow, source=source)
            if "task" in state:  # what its loss has learnt, by which it scores
                TaskState(task).load_state_dict(distributed.of_this_process(state["task"]))
            resized = space.resized(config["retrain"]["network"])
            with as_large_as(state["network"], source=source):
                network = resized.network(spec, genotype).train()  # as it was saved: see `put_modes`
            checkpoint_file.restore(network, state["network"], source=source)
            restore_unsaved(network, state.get("network_buffers", {}))
            sample = tuple(map(str, state.get("training_sample", ())))
            return cls(runtime.place(network).eval(), genotype, spec, task, config, state.get("trained_on"), sample)


def scoring_loader(trained: Trained, data: DataBundle, runtime: Runtime, batch_size: int = EVALUATION_BATCH) -> Loader:
    """Returns a loader of the test split, not augmented, with images normalised by the constants of the training.

    Raises DataError if the data are of another kind than those of the training, or of a size that the network cannot
    take, and what the task raises for two examples.
    """
    if isinstance(data.spec, ImageSpec) != isinstance(trained.spec, ImageSpec):
        given, wanted = (
            "images (uint8 with class labels)" if isinstance(spec, ImageSpec) else f"inputs of {spec.description}"
            for spec in (data.spec, trained.spec)
        )
        raise DataError(
            f"the data set {data.spec.name} has {given}, expected {wanted} as in training",
            fix="give inputs of the type and shape that they had in training",
        )
    for what, expected in trained.spec.must_match.items():
        got = data.spec.must_match.get(what)
        if got != expected:
            raise DataError(
                f"the data set {data.spec.name} has {what} {got}, expected {expected} as in training",
                fix="give the targets as floats, as in training"
                if what == "classes" and not expected
                else "choose the data set that the network was trained on, or one with the same classes",
            )
    check_size(trained, data.spec)
    if not isinstance(trained.task, Regression) and len(data.test):  # regression takes integers as well
        first = torch.arange(len(data.test))[:2]
        inputs, targets = next(iter(data.test.batches([first], device=runtime.device)))
        inputs = trained.spec.preparation(None, runtime.device)(inputs, torch.Generator())
        with torch.no_grad(), evaluating(trained.network), buffers_kept(trained.task):
            trained.task.check(trained.network(*each(inputs)), targets, data.spec)
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
    """Raises DataError if the network cannot take inputs of the sizes in `spec`.

    If the sizes differ from those of the training and the network can take them, prints a warning.
    """
    if spec.input_shapes == trained.spec.input_shapes:
        return
    made = spec.zeros(device=device_of(trained.network))
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
    look: Callable[[Tensor, Tensor], None] | None = None,
    write: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Returns the contents of ``result.json``: the score on the test split, ``test_...``, and the network's size.

    spec: of the loader's data, which may be another data set than that of the training. look: see `score`.
    write: writes a result. It is called with the score alone first, so that no other measurement can lose it, and then
    with the whole result.
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
            **(
                {"retrain_start": start}
                if (start := trained.config.get("retrain", {}).get("start")) == SUPERNET
                else {}
            ),
            "data": spec.name,
            "genotype": trained.genotype.to_dict(),
        }

    tested = score(
        trained.network,
        loader,
        trained.task,
        trained.spec,
        look=look,
        scored=lambda tested: write(result(tested)),
    )
    whole = result(tested, **macs_or_reason(trained.network, spec))
    write(whole)
    return whole


def check_finite(result: dict[str, Any]) -> None:
    """Raises DivergenceError if the loss in a `final_result` is not finite. Call it when the result is written.

    The network is then of no use, though its weights are finite.
    """
    if not math.isfinite(loss := result["test_loss"]):
        raise DivergenceError(
            f"the loss of the trained network on the test split is {loss}, expected a finite number: its outputs, or "
            "the losses of these outputs, are not finite",
            fix="find out which operations these inputs break, or train it with a lower retrain.optim.lr",
        )


def speed(trained: Trained, loader: Loader, *, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    """Returns the latency in batches of each size, and the memory that this process took. For nas-evaluate only.

    After a training the memory would be that of the training.
    """
    inputs, _ = next(loader.epoch(0))
    device = each(inputs)[0].device
    measured = [latency(trained.network, inputs, batch=batch, seconds=seconds) for batch in batches]
    return {
        "device": describe(device),
        "latency": [asdict(one) for one in measured],
        "peak_memory_bytes": peak_memory(device),
        # Both include the test split, if it is kept in memory.
        "peak_memory_of": "allocated on the device" if device.type == "cuda" else "of the process, torch included",
    }


def test_score(result: dict[str, Any]) -> float:
    """Returns the task's metric on the test split, of a `final_result`."""
    return float(result[f"test_{result['metric']['name']}"])


def validation_result(score: Score | None, metric: Metric) -> dict[str, Any]:
    """Returns the entries ``validation_...`` of ``result.json``; none without a score."""
    if score is None:
        return {}
    return {
        f"validation_{metric.name}": score.metric,
        "validation_loss": score.loss,
        "validation_examples": score.examples,
    }
