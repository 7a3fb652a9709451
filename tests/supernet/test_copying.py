"""Copies of modules: what is shared with the original, and what is not."""

import functools
import threading

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.supernet.copying import copied


class Own(nn.Module):
    """Runs its layer by a function, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.layer, self.scale, self.calls = nn.Linear(2, 2), nn.Parameter(torch.ones(2)), []
        run, layer, calls = self.layer.forward, self.layer, self.calls
        several, later = {"layers": [self.layer]}, functools.partial(self.layer)

        def innermost(x):
            return layer(x)

        def between(x):
            return innermost(x)

        def inner(x):
            calls.append(x)
            return self.layer(x)

        self.run = {
            "self": lambda x: self.layer(x),
            "variable": lambda x: layer(x),
            "default": lambda x, layer=layer: layer(x),
            "keyword": functools.partial(lambda x, *, factor, run=run: factor * run(x), factor=1),
            "function": lambda x: inner(x),
            "method": lambda x: run(x),
            "list": lambda x: [self.layer][0](x),
            "dict": lambda x: several["layers"][0](x),
            "partial": lambda x: later(x),
            "argument": functools.partial(lambda x, run: run(x), run=lambda x: self.layer(x)),
            "two ways": lambda x: (between(x) + innermost(x)) / 2,
            "two ways, the other first": lambda x, first=innermost, second=between: (first(x) + second(x)) / 2,
            "hook": self.layer,
        }[way]
        if way == "hook":
            self.layer.register_forward_hook(lambda module, given, output: output * self.scale)

    def forward(self, x):
        return self.run(x)


WAYS = ("self", "variable", "default", "keyword", "function", "method", "list", "dict", "partial", "argument", "hook")


@pytest.mark.parametrize("way", [*WAYS, "two ways", "two ways, the other first"])
def test_functions_of_a_copy_use_its_own_parts(way):
    model = Own(way)
    twice = copied(copied(model))
    twice(torch.ones(1, 2)).sum().backward()
    assert twice.layer.weight.grad is not None
    assert model.layer.weight.grad is None
    assert (twice.scale.grad is None) == (way != "hook")
    assert model.scale.grad is None
    assert not model.calls
    assert len(twice.calls) == (way == "function")


def test_a_copy_shares_functions_and_what_they_note_for_others():
    seen, count = [], 0

    def note(module, given, output):
        nonlocal count
        count += 1
        seen.append(module is layer)

    layer = nn.Linear(2, 2)
    layer.register_forward_hook(note)
    layer.act = torch.relu
    copy = copied(layer)
    copy(torch.ones(1, 2))
    assert seen == [True]
    assert count == 1
    assert copy.act is torch.relu


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_of_a_copy_keep_their_attributes_and_the_hooks_on_their_gradients(frozen):
    model, seen = Own("self"), []
    model.layer.weight.decays = False
    model.layer.weight.register_hook(lambda gradient: gradient * model.scale)
    model.layer.weight.register_post_accumulate_grad_hook(seen.append)
    model.layer.requires_grad_(not frozen)
    copy = copied(copied(model))
    assert copy.layer.weight.requires_grad is not frozen
    assert copy.layer.weight.decays is False
    copy.layer.requires_grad_(True)
    nn.init.constant_(copy.scale, 3)  # of the copy, which the hook of the copy reads
    copy(torch.ones(1, 2)).sum().backward()
    torch.testing.assert_close(copy.layer.weight.grad, torch.full((2, 2), 3.0))
    assert [one is copy.layer.weight for one in seen] == [True]
    assert model.layer.weight.grad is None


def test_a_module_that_cannot_be_copied_is_told_with_what_it_holds():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].library = functools
    assert copied(model)[0].library is functools
    model[0].history = model[0].weight.sum()  # no parameter: it is copied without its history
    model[0].locks = [threading.Lock()]
    with pytest.raises(SpaceError, match=r"^0\.locks of the Sequential cannot be copied .*_thread\.lock"):
        copied(model)


def test_a_parameter_that_holds_what_cannot_be_copied_is_told_with_its_place():
    class Counter:
        def __init__(self):
            self.lock = threading.Lock()

        def hook(self, gradient):
            return gradient

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.lock = threading.Lock()
    with pytest.raises(SpaceError, match=r"^1\.bias\.lock of the Sequential cannot be copied .*_thread\.lock"):
        copied(model)
    del model[1].bias.lock
    model[0].weight.register_hook(Counter().hook)
    with pytest.raises(SpaceError, match=r"^0\.weight's gradient hook of the Sequential cannot be copied"):
        copied(model)
