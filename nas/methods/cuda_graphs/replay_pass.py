"""One pass of a tape, which autograd takes for a single function."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.methods.cuda_graphs.recorded_op import Recorded, Slot
from nas.methods.cuda_graphs.trace import Tape


@dataclass
class Level:
    """What is recorded for weight steps (learns), or for architecture steps, whose gates get a gradient (hard).

    needs: of each node, whether it gets one. recorded: by place and candidate.
    """

    learns: bool
    hard: bool
    needs: Sequence[bool]
    recorded: dict[tuple[int, int], Recorded] = field(default_factory=dict)


@dataclass
class Kind:
    """What is recorded for inputs of one kind: shapes, layouts, types, precision.

    of_gates: the gradient of the gates of all choices. pools: by place. under_way: the pass whose values the slots
    have, until it is differentiated. lent: weights and the gradients that the last backward pass gave them.
    """

    slots: Sequence[Slot]
    of_gates: Tensor | None = None
    pools: dict[int, Any] = field(default_factory=dict)
    levels: dict[tuple[bool, bool], Level] = field(default_factory=dict)
    under_way: "Run | None" = None
    lent: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)


class Run:
    """One pass of a tape: what runs, in order.

    empty: nodes that are 0. of_gates: where gates get a gradient, None if they get none.
    """

    def __init__(
        self, tape: Tape, kind: Kind, recorded: Sequence[Recorded], empty: Sequence[int], *, of_gates: Tensor | None
    ) -> None:
        self.kind = kind
        self.inputs, self.outputs = tape.inputs, [node.number for node in tape.outputs()]
        self.slots, self.recorded, self.of_gates = kind.slots, recorded, of_gates
        self.learns = any(one.work.weights for one in recorded)
        sums = dict.fromkeys([one.target for one in recorded if one.work.adds])
        self.zeros = [self.slots[node].value for node in (*sums, *empty)]

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self.kind.under_way = self
        for slot, state in zip(self.slots, states, strict=False):
            slot.value.copy_(state)
        if self.zeros:
            torch._foreach_zero_(self.zeros)
        for one in self.recorded:
            one.forward()
        return tuple(self.slots[node].value.detach() for node in self.outputs)

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """gradients: of the outputs, None for 0. Returns those of the states, None for those that had no part.

        Raises RuntimeError where the places that this pass needs hold something else by now.
        """
        if self.kind.under_way is not self:
            raise RuntimeError("a replayed pass is differentiated once, and before the next one")
        if any(weight.grad is gradient for weight, gradient in self.kind.lent) and self.learns:
            raise RuntimeError("a gradient is of one pass: set those of the weights to None before the next")
        self.kind.under_way = None
        arrived = {node: g for node, g in zip(self.outputs, gradients, strict=True) if g is not None}
        # As by autograd, what nothing comes back to gets no gradient, which is not the same as one of 0.
        reached = [node in arrived for node in range(len(self.slots))]
        running = []
        for one in reversed(self.recorded):
            if reached[one.target] and not one.work.ends:
                running.append(one)
                for source in one.sources:
                    reached[source] = True
        zeros = [self.slots[node].gradient for node, is_ in enumerate(reached) if is_ and node not in arrived]
        if self.of_gates is not None:
            zeros.append(self.of_gates)
        if zeros:
            torch._foreach_zero_(zeros)
        for node, gradient in arrived.items():
            self.slots[node].gradient.copy_(gradient)
        lent = self.kind.lent = [] if self.learns else self.kind.lent
        for one in running:
            one.backward()
            for weight, found in zip(one.work.weights, one.work.gradients, strict=False):
                if found is None:
                    continue
                if weight.grad is None:
                    weight.grad = found
                    lent.append((weight, found))
                else:  # the module runs in other places too
                    weight.grad = weight.grad + found
        return [self.slots[node].gradient if reached[node] else None for node in range(self.inputs)]


class Pass(torch.autograd.Function):
    """One pass of a tape, as a function of its states and of the values of all gates.

    anchor: requires a gradient if weights do; it gets none, and they have theirs in ``.grad``.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Run, anchor: Tensor | None, all_values: Tensor | None, *states: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return run.forward(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_states = ctx.run.backward(gradients)
        return None, None, ctx.run.of_gates, *of_states
