"""Hooks on choices and candidates, and choices that torch does not see."""

import functools

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.supernet.choice import Choice, Gate, choices, gates
from nas.supernet.freezing import freeze
from nas.supernet.hard_gate import HardGate


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = Choice({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})

    def forward(self, x):
        return self.c(x)


def twice(module, inputs, output):
    return 2 * output


def plus(module, inputs):
    return (inputs[0] + 1,)


def scaled(module, grad_input, grad_output):
    return tuple(3 * gradient for gradient in grad_input)


HOOKS = {
    "forward": lambda module: module.register_forward_hook(twice),
    "pre": lambda module: module.register_forward_pre_hook(plus),
    "named": lambda module: module.register_forward_hook(
        lambda module, args, kwargs, output: output + len(kwargs) + 5, with_kwargs=True
    ),
    "backward": lambda module: module.register_full_backward_hook(scaled),
}


@pytest.mark.parametrize("on", ["choice", "candidate"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_does_the_same_in_the_supernet_and_in_the_network(hook, on):
    model, x = Model(), torch.randn(2, 3, requires_grad=True)
    without = model.c.candidates[0](x).detach()
    handle = HOOKS[hook](model.c if on == "choice" else model.c.candidates[0])
    with gates(choices(model), {"c": Gate(None, 0, HardGate(torch.ones((), requires_grad=True)))}):
        searched = model(x)
        (slope,) = torch.autograd.grad(searched.sum(), x)
    derived = freeze(model, {"c": "a"})
    assert torch.equal(derived(x), searched)
    assert torch.equal(torch.autograd.grad(derived(x).sum(), x)[0], slope)
    handle.remove()
    assert torch.equal(derived(x), without)
    assert hook == "backward" or not torch.equal(searched, without)


def test_a_choice_without_hooks_is_the_candidate_itself():
    model = Model()
    candidate = model.c.candidates[1]
    assert freeze(model, {"c": "b"}).c is candidate


def holder(**attributes):
    model = Model()
    for name, make in attributes.items():
        setattr(model, name, make(model))
    return model


PLACES = {
    "layers[1]": {"layers": lambda model: [nn.Identity(), model.c]},
    "heads['x']": {"heads": lambda model: {"x": model.c}},
    "pairs[0][1]": {"pairs": lambda model: [(0, Model().c)]},
    "blocks[0]": {"blocks": lambda model: [nn.Sequential(Model())]},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_choice_outside_of_the_registered_children_is_named(place):
    with pytest.raises(SpaceError) as caught:
        choices(nn.Sequential(holder(**PLACES[place])))
    assert caught.value.problem.startswith(f"0.{place} holds a Choice outside of the registered children of Model,")


def test_registered_blocks_may_be_in_a_list_as_well():
    model = nn.Sequential(Model())
    model.blocks = [model[0]]
    assert list(choices(model)) == ["0.c"]


# -- torch.func


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # of torch's own code for forward mode
def test_transforms_of_torch_func_see_the_product_of_gate_and_output():
    """The hard gate against the same model with the multiplication written out."""
    layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    choice = Choice({"a": layer, "b": nn.Linear(3, 3)})
    x, v = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def results(call):
        gate = torch.ones((), dtype=torch.float64, requires_grad=True)
        run = functools.partial(call, gate)
        outputs = {
            "vmap": torch.vmap(run)(x),
            "grad": torch.func.grad(lambda x: run(x).square().sum())(x),
            "jvp": torch.func.jvp(run, (x,), (v,))[1],
            "vjp": torch.func.vjp(run, x)[1](v)[0],
            "jacrev": torch.func.jacrev(run)(x[0]),
            "jacfwd": torch.func.jacfwd(run)(x[0]),
            "hessian": torch.func.hessian(lambda x: run(x).square().sum())(x[0]),
            "each": torch.vmap(torch.func.grad(lambda x: run(x).square().sum()))(x),
        }
        slopes = {name: torch.autograd.grad(y.square().sum(), gate, retain_graph=True) for name, y in outputs.items()}
        return outputs, slopes

    def hard(gate, x):
        with gates({"c": [choice]}, {"c": Gate(None, 0, HardGate(gate))}):
            return choice(x)

    for found, expected in zip(results(hard), results(lambda gate, x: gate * layer(x)), strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], msg=name)


class Doubled(Choice):
    def forward(self, x):
        return 2 * super().forward(x)


def patched(choice):
    forward = choice.forward
    choice.forward = lambda x: 2 * forward(x)
    return choice


@pytest.mark.parametrize("make", [Doubled, lambda candidates: patched(Choice(candidates))])
def test_a_choice_with_a_forward_of_its_own_is_refused(make):
    """The derived network would lose the factor."""
    model = Model()
    model.c = make({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    with pytest.raises(SpaceError, match=r"'c', .* has a forward of its own"):
        freeze(model, {"c": "a"})
