"""Counts the trainable parameters and the multiply-accumulates that each candidate adds to a model."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.errors import SpaceError
from nas.methods.cost import Cost
from nas.spaces.darts import auxiliary_heads
from nas.supernet.entanglement import CentreConv2d
from nas.supernet.every_candidate import Condition, Part, consistent, placed, run_every_candidate
from nas.supernet.mac_counter import MacCounter
from nas.training.evaluate import counted_parameters

MOST_HOMES = 12  # places of a shared parameter; n places take up to 2^n terms


def parameters(model: nn.Module) -> Cost:
    """The cost in trainable parameters, as `nas.training.evaluate.count_parameters` counts them in a frozen network."""
    counted = set(counted_parameters(model))
    return shared_once(
        model, lambda module: {held: kept.numel() for held, kept, one in weights_of(module) if one in counted}
    )


def stored_bytes(model: nn.Module) -> Cost:
    """The cost in bytes of the weights and buffers that a state dict holds, those of an auxiliary head left out."""
    heads = {part for head in auxiliary_heads(model).values() for part in head.modules()}

    def sizes(module: nn.Module) -> dict[Any, int]:
        skipped = module._non_persistent_buffers_set
        buffers = [(one, one) for name, one in module._buffers.items() if one is not None and name not in skipped]
        found = [*((held, kept) for held, kept, _ in weights_of(module)), *buffers] if module not in heads else []
        return {held: kept.numel() * kept.element_size() for held, kept in found}

    return shared_once(model, sizes)


def weights_of(module: nn.Module) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yields (key, what a frozen network keeps, parameter) for the parameters that a module holds itself.

    The key is equal where a frozen network shares the parameter. A `CentreConv2d` gets a kernel of its own.
    """
    for name, one in module._parameters.items():
        if isinstance(module, CentreConv2d) and name == "weight":
            yield module, module.centre(), module.weight
        elif one is not None:
            yield one, one, one


def shared_once(model: nn.Module, sizes: Callable[[nn.Module], Mapping[Any, int]]) -> Cost:
    """Returns the sum of the sizes of tensors. sizes: key -> size, of the tensors that a module holds
    itself. Equal keys are one tensor.

    A tensor that several candidates share counts once, no matter how many of the candidates are drawn.
    """
    homes: dict[Any, set[Condition]] = defaultdict(set)
    size: dict[Any, int] = {}
    for condition, module in placed(model):
        for tensor, count in sizes(module).items():
            homes[tensor].add(condition)
            size[tensor] = count
    terms: dict[Condition, float] = defaultdict(float)
    for tensor, conditions in homes.items():
        for condition, sign in any_of(frozenset(conditions)):
            terms[condition] += sign * size[tensor]
    return Cost(terms)


def any_of(conditions: frozenset[Condition]) -> Iterator[tuple[Condition, int]]:
    """Yields conditions with signs, by inclusion-exclusion. The signs of the conditions that hold add up to 1 if any of
    `conditions` holds, and to 0 otherwise."""
    # A condition that implies another one adds nothing.
    least = [condition for condition in conditions if not any(other < condition for other in conditions)]
    if len(least) > MOST_HOMES:
        raise SpaceError(
            f"weights are shared by {len(least)} candidates that are chosen independently, expected at most "
            f"{MOST_HOMES} for a regulariser of parameters",
            fix="use regulariser=macs, or give the same key to the choices that share weights",
        )
    for count in range(1, len(least) + 1):
        for some in itertools.combinations(least, count):
            if consistent(joint := frozenset().union(*some)):
                yield joint, (-1) ** (count + 1)


def macs(model: nn.Module, inputs: Inputs) -> Cost:
    """The cost in multiply-accumulates of a forward pass, as `nas.training.evaluate.count_macs` counts them in a frozen
    network.

    inputs: a batch of one example, on the model's device, which may be the meta device.
    """
    terms: dict[Condition, float] = defaultdict(float)
    attributed = 0
    with MacCounter() as counter:

        def observe(part: Part, run: Callable[[], Any]) -> Any:
            nonlocal attributed
            before, inner = counter.total, attributed
            output = run()
            # Without the counts of the choices inside, which have terms of their own.
            own = counter.total - before - (attributed - inner)
            attributed += own
            terms[part.condition] += own
            return output

        run_every_candidate(model, inputs, observe)
    return Cost(terms)
