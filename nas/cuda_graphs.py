"""Candidates replayed as CUDA graphs: a step on a GPU launches two graphs for each drawn operation, one forward and one
backward, instead of each of their kernels.

A supernet cannot be recorded as a whole, for every step runs another part of it. What it costs: every candidate that
was drawn keeps its activations for good, so that memory grows to that of a search that runs all candidates.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.choice import Choice, choices
from nas.hard_gate import last_norm, scaled
from nas.ops import Noise, Zero

# (module, sample arguments, settings) -> what replays the module: torch.cuda.make_graphed_callables but in tests.
Record = Callable[..., Any]


def replay_candidates(supernet: nn.Module, record: Record = torch.cuda.make_graphed_callables) -> None:
    """Let the candidates of all choices be recorded when they are first drawn, and replayed from then on, in place.

    Left as they are: what holds choices of its own, whose candidates are replayed instead, and what computes nothing
    or something random.
    """
    for sharing in choices(supernet).values():
        for choice in sharing:
            for candidate in choice.candidates:
                holds_choice = any(isinstance(module, Choice) for module in candidate.modules())
                if not holds_choice and not isinstance(candidate, nn.Identity | Zero | Noise):
                    # What Module.compile sets: called in place of the module, and left out of its copies.
                    candidate._compiled_call_impl = Replayed(candidate, record)


class Replayed:
    """Calls a candidate: by a graph in training steps, else as it is.

    There is a graph for each level, and for each shape, layout and type of the input.
    """

    def __init__(self, candidate: nn.Module, record: Record) -> None:
        self._candidate = candidate
        self._weights = tuple(candidate.parameters())
        self._norm = last_norm(candidate)
        self._record = record
        self._graphs: dict[tuple[Any, ...], Callable[..., Tensor]] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not self._candidate.training or not torch.is_grad_enabled() or len(inputs) != 1 or named:
            return self._candidate._call_impl(*inputs, **named)
        (x,) = inputs
        # The gate, in an architecture step: see nas.hard_gate.
        scale = None if self._norm is None else self._norm._parameters["weight"]
        weights = [weight for weight in self._candidate.parameters() if weight is not scale]
        if any(one is not own for one, own in zip(weights, self._weights, strict=True)):
            return self._candidate._call_impl(x)  # they are exchanged for others, as by torch.func.functional_call
        arguments = (x,) if scale is None else (x, scale)
        learns = any(weight.requires_grad for weight in weights)
        kind = (x.shape, x.stride(), x.dtype, x.requires_grad, len(arguments), learns)
        if kind not in self._graphs:
            self._graphs[kind] = self._recorded(arguments)
        return self._graphs[kind](*arguments)

    def _recorded(self, arguments: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        samples = tuple(one.detach().clone().requires_grad_(one.requires_grad) for one in arguments)
        before = [(buffer, buffer.clone()) for buffer in self._candidate.buffers()]
        precision = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False
        )
        with precision, nullcontext() if self._norm is None else scaled(self._norm, None):
            graph: Callable[..., Tensor] = self._record(
                Scaled(self._candidate, self._norm),
                samples,
                allow_unused_input=True,
                capture_error_mode="thread_local",  # the loader's thread may use the GPU meanwhile
            )
        with torch.no_grad():
            for buffer, value in before:  # which the passes of the recording have moved
                buffer.copy_(value)
        return graph


class Scaled(nn.Module):
    """A candidate as a function of its input and of its norm's scale, where it has one."""

    def __init__(self, candidate: nn.Module, norm: _BatchNorm | None) -> None:
        super().__init__()
        self.candidate = candidate
        self._norms = [norm]  # not a child: it is the candidate's

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        (norm,) = self._norms
        with nullcontext() if norm is None else scaled(norm, scale):
            return self.candidate._call_impl(x)
