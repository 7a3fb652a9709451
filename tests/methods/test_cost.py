"""Costs of architectures, compared with frozen networks; expectations and extremes, compared with enumeration."""

import itertools
import math

import custom_models
import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.methods.cost import Cost, Expectation
from nas.methods.counted_costs import any_of, macs, parameters, stored_bytes
from nas.spaces.custom import Custom
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, choices
from nas.supernet.entanglement import entangle
from nas.supernet.freezing import freeze
from nas.supernet.genotype import Genotype
from nas.training.evaluate import count_macs, count_parameters


def term(*pairs):
    return frozenset(pairs)


def architectures(options):
    for names in itertools.product(*options.values()):
        yield dict(zip(options, names, strict=True))


def random_architectures(options, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield {key: names[torch.randint(len(names), (), generator=generator)] for key, names in options.items()}


CUSTOM = {name: Custom(factory=getattr(custom_models, name)) for name in ("nested", "shared_key", "Depths")}


@pytest.fixture(params=["nas_bench_201", "darts", *CUSTOM])
def any_space(request):
    return CUSTOM.get(request.param) or request.getfixturevalue(request.param)


def test_parameters_and_macs_are_those_of_the_frozen_network(any_space, spec):
    with any_space.sketching():
        model = any_space.build(spec, affine=True)
        device = next(model.parameters()).device
        of_parameters, of_macs = parameters(model), macs(model, spec.zeros(device=device))
    options = any_space.options(spec)
    every = math.prod(map(len, options.values()))
    seen = set()
    for chosen in architectures(options) if every < 50 else random_architectures(options, 5):
        network = any_space.network(spec, Genotype(any_space.name, chosen))
        assert of_parameters.of(chosen) == count_parameters(network)
        assert of_macs.of(chosen) == count_macs(network, spec)
        seen.add(of_macs.of(chosen))
    assert len(seen) > 1 or any_space is CUSTOM["shared_key"]  # whose activations cost nothing


def test_a_dropped_edge_costs_nothing(darts, spec):
    with darts.sketching():
        cost = parameters(darts.build(spec, affine=True))
    chosen = dict.fromkeys(darts.options(spec), "sep_conv_3x3") | {"normal/0-2": None, "reduce/1-3": None}
    assert cost.of(chosen) == count_parameters(darts.network(spec, Genotype("darts", chosen)))


class Linked(nn.Module):
    """Weights shared between two choices and the model's body, one choice inside another of the same key, and a
    choice that is used twice."""

    def __init__(self):
        super().__init__()
        shared, body = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.body = body
        self.one = Choice({"shared": shared, "own": nn.Linear(4, 4), "body": body}, key="one")
        inner = Choice({"shared": nn.Linear(4, 4), "own": nn.Linear(4, 4, bias=False), "body": nn.Tanh()}, key="one")
        self.two = Choice({"shared": shared, "inner": nn.Sequential(nn.Linear(4, 4), inner)}, key="two")

    def forward(self, x):
        return self.two(self.one(self.two(self.body(x))))


def test_shared_weights_count_once_and_repeated_use_each_time():
    model = Linked()
    of_parameters, of_macs = parameters(model), macs(model, torch.zeros(1, 4))
    options = {key: sharing[0].names for key, sharing in choices(model).items()}
    for chosen in architectures(options):
        frozen = freeze(Linked(), chosen)
        assert of_parameters.of(chosen) == count_parameters(frozen)
        used = {"shared": 16, "inner": 16 + 16 * (chosen["one"] != "body")}[chosen["two"]]
        assert of_macs.of(chosen) == 16 + 16 + 2 * used  # body, one, and two at its two places


def test_entangled_kernels_count_as_the_frozen_network_keeps_them():
    def model():
        convolutions = {str(size): nn.Conv2d(2, 2, size, padding=size // 2) for size in (1, 3)}
        return nn.Sequential(Choice(entangle(convolutions), key="a"))

    for name in "13":
        frozen = freeze(model(), {"a": name})
        assert parameters(model()).of({"a": name}) == count_parameters(frozen)
        assert stored_bytes(model()).of({"a": name}) == 4 * count_parameters(frozen)
    own = nn.ModuleDict({"auxiliary": nn.Linear(3, 2), "a": Choice({"same": nn.Identity(), "relu": nn.ReLU()})})
    assert stored_bytes(own).of({"a": "same"}) == 4 * 8  # of a user's own model: a part like any other


def test_costs_leave_the_model_as_it_was():
    model = Linked().train()
    model.one.eval()
    macs(model, torch.zeros(1, 4))
    assert model.training
    assert not model.one.training
    with pytest.raises(SpaceError, match="without gates"):
        model(torch.zeros(1, 4))


OPTIONS = {"a": ("x", "y", "z"), "b": ("u", "v"), "c": ("x", "y")}
NESTED = Cost(
    {
        term(): 5.0,
        term(("a", "x")): 2.0,
        term(("a", "y")): 7.0,
        term(("a", "y"), ("b", "u")): 11.0,
        term(("b", "v")): 3.0,
        term(("a", "z"), ("b", "v"), ("c", "y")): 13.0,
        term(("c", "x")): -1.0,
    }
)


def arch_of(options, std=1.0):
    found = {key: [Choice({name: nn.Identity() for name in names}, key=key)] for key, names in options.items()}
    return ArchParams(found, init_std=std, generator=torch.Generator().manual_seed(1)).double()


def test_the_expectation_is_the_mean_over_all_architectures_and_so_is_its_gradient():
    arch = arch_of(OPTIONS)
    probs = arch.probs()
    got = Expectation(NESTED, arch)(probs)
    expected = 0.0
    for chosen in architectures(OPTIONS):
        rows = [probs[row, arch.candidates[key].index(name)] for row, (key, name) in enumerate(chosen.items())]
        expected = expected + torch.stack(rows).prod() * NESTED.of(chosen)
    assert torch.allclose(got, expected, rtol=1e-12)
    (slope,) = torch.autograd.grad(got, arch.logits, retain_graph=True)
    (reference,) = torch.autograd.grad(expected, arch.logits)
    assert torch.allclose(slope, reference, rtol=1e-9, atol=1e-12)
    assert slope.abs().max() > 0.1


def test_the_expectation_of_a_decided_architecture_is_its_cost():
    arch = arch_of(OPTIONS)
    for chosen in architectures(OPTIONS):
        probs = torch.zeros_like(arch.logits)
        for row, (key, name) in enumerate(chosen.items()):
            probs[row, arch.candidates[key].index(name)] = 1
        assert Expectation(NESTED, arch)(probs).item() == NESTED.of(chosen)


def test_a_constant_cost_has_an_expectation():
    arch = arch_of(OPTIONS)
    assert Expectation(Cost({term(): 4.0}), arch)(arch.probs()).item() == 4.0


def test_a_candidate_the_supernet_lacks():
    with pytest.raises(SpaceError, match=r"has the candidate 'w' at b, which the supernet does not have; let retrain"):
        Expectation(Cost({term(("b", "w")): 1.0}), arch_of(OPTIONS))
    # The range of costs, which a target is compared with before, leaves it out.
    assert Cost({term(): 1.0, term(("other", "w")): 2.0}).reachable(OPTIONS) == (1.0, 1.0)


def test_the_extremes_are_those_of_enumeration():
    costs = [NESTED.of(chosen) for chosen in architectures(OPTIONS)]
    assert NESTED.reachable(OPTIONS) == (min(costs), max(costs))


def test_the_extremes_of_random_costs_with_interlocked_choices():
    generator = torch.Generator().manual_seed(3)
    options = dict.fromkeys("abcdef", ("0", "1", "2"))
    for _ in range(20):
        terms = {}
        for _ in range(25):
            keys = torch.randperm(6, generator=generator)[: int(torch.randint(0, 4, (), generator=generator))]
            condition = term(*(("abcdef"[k], str(int(torch.randint(3, (), generator=generator)))) for k in keys))
            terms[condition] = float(torch.randint(-9, 10, (), generator=generator))
        costs = [Cost(terms).of(chosen) for chosen in architectures(options)]
        assert Cost(terms).reachable(options) == (min(costs), max(costs))


def test_any_of_is_the_indicator_of_a_union():
    conditions = [term(("a", "x")), term(("b", "u"), ("c", "y")), term(("a", "x"), ("b", "v")), term(("c", "x"))]
    signed = list(any_of(frozenset(conditions)))
    for chosen in architectures(OPTIONS):
        held = any(condition <= chosen.items() for condition in conditions)
        assert sum(sign for condition, sign in signed if condition <= chosen.items()) == held


def test_weights_in_too_many_places_are_refused():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(*(Choice({"shared": shared, "skip": nn.Identity()}) for _ in range(13)))
    with pytest.raises(SpaceError, match="weights are shared by 13 candidates that are chosen independently"):
        parameters(model)
    assert macs(model, torch.zeros(1, 2)).reachable({str(i): ("shared", "skip") for i in range(13)}) == (0, 13 * 4)
