"""Distillation: a network learns from what a trained one returns for the same inputs, beside its targets.

A task sees outputs and targets alone. So hooks on the network note the inputs of a pass that is trained on, and the
loss of that pass runs the teacher on them. Passes without gradients, e.g. those of a score, have the task's own loss.
"""

import contextlib
import difflib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.data.inputs import Inputs, each, form
from nas.errors import ConfigError, NasError, SpaceError, described
from nas.supernet.choice import Choice
from nas.supernet.every_candidate import run_every_candidate
from nas.supernet.undisturbed import undisturbed
from nas.training.task import Task

NAMED = 4  # paths that an error lists


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a network learns from a teacher.

    teacher: in eval mode, frozen, on the device of the run. classes: the number of classes; 0 if the outputs are no
    scores of classes.
    share: of the teacher's outputs in the loss; the task's own loss has 1 - share. For scores (B, classes, ...) the
    term is T^2 times the Kullback-Leibler divergence of the softmax of the outputs / T, from that of the teacher, with
    T = temperature (Hinton et al. 2015). One score an example, (B,) or (B, 1), is that of the second of two classes,
    whose first has the score 0. Without classes the term is the mean squared difference.
    features: path of a module of the network -> path of a module of the teacher with an output of the same shape. Each
    adds feature_weight times the mean squared difference of both outputs, relative to the teacher's mean square
    (Romero et al. 2015, without their regressor). A module that does not run in a pass adds nothing.
    """

    teacher: nn.Module
    classes: int
    share: float = 0.5
    temperature: float = 2.0
    features: Mapping[str, str] = field(default_factory=dict)
    feature_weight: float = 1.0

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the teacher's weights and buffers: it is in no checkpoint itself."""
        return digest_of(self.teacher.state_dict())

    def check(self, network: nn.Module, inputs: Inputs, outputs: Tensor) -> None:
        """Raises SpaceError if the network cannot learn from the teacher. inputs: two examples. outputs: of the
        network."""
        for what, model, paths in (
            ("the network", network, list(self.features)),
            ("the teacher", self.teacher, list(self.features.values())),
        ):
            check_paths(model, paths, what=what)
        theirs: dict[str, Any] = {}
        try:
            with undisturbed(self.teacher, seed=0), noting(self.teacher, self.features.values(), theirs):
                taught = self.teach(each(inputs))
        except NasError:
            raise
        except Exception as error:  # whatever a user's own model raises
            forms = ", ".join(map(form, each(inputs)))
            raise SpaceError(
                f"the teacher cannot take inputs of {forms} ({described(error)})",
                fix="give a teacher that takes what the network takes",
            ) from error
        self._check_outputs(outputs, taught)
        ours: dict[str, Any] = {}
        with undisturbed(network, seed=0), torch.no_grad(), noting(network, self.features, ours):
            if any(isinstance(module, Choice) for module in network.modules()):
                run_every_candidate(network, inputs, lambda part, run: run())
            else:
                network(*each(inputs))
        for path, other in self.features.items():
            mine, its = (shape(found.get(name)) for found, name in ((ours, path), (theirs, other)))
            if mine != its or not isinstance(mine, tuple):
                raise SpaceError(
                    f"teacher.features has {path}, which returns {mine}, and {other} of the teacher, which returns "
                    f"{its}, expected tensors of one shape",
                    fix="name modules whose outputs have the same shape, or leave them out",
                )

    def _check_outputs(self, outputs: Tensor, taught: Any) -> None:
        """Raises SpaceError for outputs of the teacher that the network cannot learn from. taught: of the teacher."""
        if not self.share:
            return
        if not isinstance(taught, Tensor) or taught.shape != outputs.shape:
            got = f"{tuple(taught.shape)}" if isinstance(taught, Tensor) else f"a {type(taught).__name__}"
            raise SpaceError(
                f"the teacher returns {got}, expected what the network returns, {tuple(outputs.shape)}",
                fix="give a teacher of the same classes" if self.classes else "give a teacher of the same outputs",
            )
        if self.classes and not is_one_score(outputs) and outputs.shape[1] != self.classes:
            raise SpaceError(
                f"the network returns {tuple(outputs.shape)} for {self.classes} classes, expected a score for each in "
                "dimension 1 to learn from the teacher's",
                fix="return (batch, classes, ...), or leave the teacher's outputs out: teacher.share=0 and features",
            )
        if not taught.isfinite().all():
            raise SpaceError(
                "the teacher returns numbers that are not finite, expected finite ones",
                fix="give the weights that it was trained to, and the inputs as it was trained on",
            )

    @torch.no_grad()
    def teach(self, inputs: Sequence[Any]) -> Any:
        return self.teacher(*inputs)

    def term(self, outputs: Tensor, inputs: Sequence[Any], features: Mapping[str, Tensor]) -> Tensor:
        """The distillation loss, added to (1 - share) times the task's loss. features: of this pass of the network."""
        theirs: dict[str, Any] = {}
        with noting(self.teacher, self.features.values(), theirs):
            taught = self.teach(inputs)
        term = self.share * self.difference(outputs, taught) if self.share else outputs.new_zeros(())
        for path, feature in features.items():
            target = theirs[self.features[path]].detach().float()
            scale = target.square().mean().clamp_min(torch.finfo(target.dtype).tiny)
            term = term + self.feature_weight * F.mse_loss(feature.float(), target) / scale
        return term

    def difference(self, outputs: Tensor, taught: Tensor) -> Tensor:
        if not self.classes:
            return F.mse_loss(outputs.float(), taught.float())
        if is_one_score(outputs):
            outputs, taught = (torch.stack([torch.zeros_like(one), one], 1).flatten(1) for one in (outputs, taught))
        mine, its = ((scores.float() / self.temperature).log_softmax(dim=1) for scores in (outputs, taught))
        divergence = F.kl_div(mine, its, reduction="none", log_target=True).sum(dim=1).mean()
        return self.temperature**2 * divergence


def digest_of(state: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the tensors of a state dict, with their names."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):  # not what a module adds by get_extra_state
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions_of(values: Sequence[Any]) -> list[int]:
    """Returns the number of in-place writes to each tensor."""
    return [value._version for value in values if isinstance(value, Tensor) and not value.is_inference()]


def is_one_score(outputs: Tensor) -> bool:
    """Whether the outputs are one score an example, of two classes."""
    return outputs.numel() == len(outputs)


class Distilled:
    """A task whose loss has what a teacher adds to it, for passes of the network that it is attached to."""

    def __init__(self, task: Task, distillation: Distillation) -> None:
        self.task = task
        self.distillation = distillation
        self._inputs: Sequence[Any] | None = None
        self._versions: list[int] = []  # of the inputs
        self._features: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # of a copy, which has no attributes yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.taught(outputs, targets, 1.0, weighed=lambda loss, *given: loss(*given))

    def taught(self, outputs: Tensor, targets: Tensor, part: float, *, weighed: Callable[..., Tensor]) -> Tensor:
        """Returns the loss of a part of a batch.

        weighed: (loss, outputs, targets) -> the task's own loss times its weight in the batch. part: of the batch's
        examples, the weight of the teacher's term: the teacher also teaches where labels are ignored.
        """
        inputs, self._inputs = self._inputs, None  # an auxiliary head has a second loss, without the teacher
        loss = weighed(self.task.loss, outputs, targets)
        if inputs is None:
            return loss
        if self._versions != versions_of(inputs):
            raise SpaceError(
                "the network writes into its inputs, which the teacher is to see as well",
                fix="let it begin with something that is not done in place, e.g. x = x - mean in place of x -= mean",
            )
        distillation = self.distillation
        term = distillation.term(outputs, inputs, dict(self._features))
        self._features.clear()
        return (1 - distillation.share) * loss + (term if part == 1 else part * term)

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """A context in which passes of the network with gradients are taught."""

        # Functions, not methods: a copy of the network shares them, and would copy the teacher with a method.
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if torch.is_grad_enabled():
                self._inputs, self._versions = args, versions_of(args)
                self._features.clear()

        try:
            # Before a hook that copies the inputs.
            with (
                network.register_forward_pre_hook(note, prepend=True),
                noting(network, self.distillation.features, self._features),
            ):
                yield
        finally:
            self._inputs = None
            self._features.clear()


def without_teacher(task: Task) -> Task:
    """Returns the task itself of one that has a teacher."""
    return task.task if isinstance(task, Distilled) else task


def attached(task: Task, network: nn.Module) -> AbstractContextManager[None]:
    """See `Distilled.attached`; nothing for another task."""
    return task.attached(network) if isinstance(task, Distilled) else contextlib.nullcontext()


@contextmanager
def noting(model: nn.Module, paths: Any, found: dict[str, Any]) -> Iterator[None]:
    """A context in which `found` gets the outputs of the modules at the paths, as they are returned: what follows may
    write into them, as nn.ReLU(inplace=True) does."""

    def noted(path: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            found[path] = output.clone() if isinstance(output, Tensor) else output

        return note

    with contextlib.ExitStack() as hooks:
        for path in dict.fromkeys(paths):
            hooks.enter_context(model.get_submodule(path).register_forward_hook(noted(path)))
        yield


def check_paths(model: nn.Module, paths: Sequence[str], *, what: str) -> None:
    """Raises SpaceError, listing the nearest paths, for one that names no module of the model, or a module inside a
    choice, which a derived network may not have."""
    inside = [f"{path}." for path, module in model.named_modules() if isinstance(module, Choice) and path]
    known = [path for path, _ in model.named_modules() if path and not any(map(path.startswith, inside))]
    for path in paths:
        if path not in known:
            near = difflib.get_close_matches(path, known, n=NAMED, cutoff=0.0)
            why = "lies inside a choice of" if any(map(path.startswith, inside)) else "is no module of"
            raise SpaceError(
                f"teacher.features has {path}, which {why} {what}",
                fix=f"use a path such as {', '.join(near) or 'that of a module with a name'}",
            )


def shape(value: Any) -> tuple[int, ...] | str:
    if value is None:
        return "nothing, as it does not run"
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_numbers(*, share: Any, temperature: Any, features: Mapping[str, str], feature_weight: Any) -> None:
    """Raises ConfigError for numbers of a `Distillation` that are out of range."""
    for name, number in (("share", share), ("temperature", temperature), ("feature_weight", feature_weight)):
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise ConfigError(f"teacher.{name} must be a number, got {number!r}", fix=f"set teacher.{name}=1")
    if not 0 <= share <= 1:
        raise ConfigError(f"teacher.share must be between 0 and 1, got {share}", fix="set teacher.share=0.5")
    if not temperature > 0:
        raise ConfigError(f"teacher.temperature must be > 0, got {temperature}", fix="set teacher.temperature=2")
    if not feature_weight >= 0:
        raise ConfigError(f"teacher.feature_weight must be >= 0, got {feature_weight}", fix="set it to 1")
    if share == 0 and not (features and feature_weight):
        raise ConfigError(
            "the teacher teaches nothing, got teacher.share=0 and no features", fix="set teacher.share=0.5"
        )
