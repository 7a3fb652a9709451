"""Sums that are written into a term whose value is not needed any more."""

import pytest
import torch
from torch import nn

from nas.spaces.cell import Cell
from nas.spaces.in_place_sum import forgets_its_output, summed
from nas.supernet.choice import Choice, Gate, gates
from nas.supernet.hard_gate import HardGate


def test_the_sum_is_formed_in_a_term_that_is_owned():
    terms = [torch.full((2,), float(value)) for value in (1, 2, 4)]
    first, second, third = terms
    assert summed(terms, [False, True, False]) is second
    assert second.tolist() == [7, 7]
    assert first.tolist() == [1, 1]
    assert third.tolist() == [4, 4]
    assert summed([first, third], [False, False]).tolist() == [5, 5]
    assert first.tolist() == [1, 1]
    assert summed([first], [False]) is first


def test_types_are_promoted_as_in_any_sum():
    half, single = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    assert summed([half, single], [True, False]).dtype == torch.float32
    assert half.tolist() == [1, 1]


def test_what_forgets_its_output():
    norm = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    for forgetful in (norm, nn.AvgPool2d(3), nn.Sequential(nn.Identity(), norm)):
        assert forgets_its_output(forgetful)
    for other in (nn.Sequential(norm, nn.ReLU()), nn.Identity(), nn.Sequential(), nn.Sigmoid()):
        assert not forgets_its_output(other)
    norm[-1].register_forward_hook(lambda *_: None)
    assert not forgets_its_output(norm)


# Where an in-place sum could go wrong: outputs that the gate keeps, that are shared, or that are the input.
OPERATIONS = {
    "affine": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)),
    "norm": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False)),
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "alone": lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1)),
    "skip": nn.Identity,
    "sigmoid": lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sigmoid()),
}


@pytest.mark.parametrize("hard", [False, True])
def test_a_cell_computes_the_same_whatever_it_drew(hard):
    """As without gates of one candidate alone, where nothing is shared or in place: weights that are one-hot."""
    torch.manual_seed(0)
    cell = Cell(
        inputs=1,
        nodes=3,
        edge=lambda source, node: Choice({name: made() for name, made in OPERATIONS.items()}, key=f"{source}-{node}"),
        outputs=[2, 3],
    ).double()
    found = {choice.key: [choice] for choice in cell.modules() if isinstance(choice, Choice)}
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        drawn = {key: int(torch.randint(len(OPERATIONS), (), generator=generator)) for key in found}
        results = []
        for alone in (True, False):
            one = {key: torch.ones((), dtype=torch.float64, requires_grad=hard) for key in found}
            zero = torch.zeros((), dtype=torch.float64)
            by_key = {
                key: Gate(None, index, HardGate(one[key]) if hard else None)
                if alone
                else Gate(tuple(one[key] if i == index else zero for i in range(len(OPERATIONS))), None)
                for key, index in drawn.items()
            }
            x = torch.linspace(-1, 1, 2 * 2 * 5 * 5, dtype=torch.float64).view(2, 2, 5, 5).requires_grad_()
            with gates(found, by_key):
                two, three = cell.train()([x])
            weights = list(cell.parameters())
            wanted = [x, *weights, *(one.values() if hard else ())]
            gradients = torch.autograd.grad((two * three).sin().sum(), wanted, allow_unused=True)
            results.append([two, three, *(torch.zeros(()) if g is None else g for g in gradients)])
        for mine, other in zip(*results, strict=True):
            assert torch.allclose(mine.double(), other.double(), rtol=1e-9, atol=1e-9)
