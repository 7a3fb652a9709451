"""Derivation under a cap, against every architecture there is."""

import itertools
import math

import pytest
import torch

from nas.errors import ConfigError
from nas.methods.cost import Cost
from nas.methods.within_cap import WithinCap, most_probable

KEYS = ("a", "b", "c", "d")
OPTIONS = dict.fromkeys(KEYS, ("small", "middle", "large"))


def term(*pairs):
    return frozenset(pairs)


def costs(seed):
    """Single terms, pairs as of nested candidates, and a negative term as of shared weights."""
    generator = torch.Generator().manual_seed(seed)
    draw = iter(torch.rand(100, generator=generator).tolist())
    terms = {term((key, name)): 10 * next(draw) for key in KEYS for name in OPTIONS[key]}
    terms |= {term(("a", x), ("b", y)): 8 * next(draw) for x in OPTIONS["a"] for y in OPTIONS["b"]}
    terms |= {term(("c", "large"), ("d", "large")): -6.0, term(("a", "large"), ("b", "small"), ("c", "small")): 3.0}
    probs = torch.rand(4, 3, generator=generator).softmax(1).tolist()
    return Cost({frozenset(): 5.0, **terms}), {
        k: dict(zip(OPTIONS[k], p, strict=True)) for k, p in zip(KEYS, probs, strict=True)
    }


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_most_probable_architecture_that_the_cap_allows(seed):
    cost, probs = costs(seed)
    every = [dict(zip(KEYS, names, strict=True)) for names in itertools.product(*OPTIONS.values())]
    likelihood = lambda chosen: math.prod(probs[key][name] for key, name in chosen.items())  # noqa: E731
    prices = sorted(cost.of(chosen) for chosen in every)
    seen = set()
    for cap in (prices[0], prices[5], prices[20], prices[-1]):
        expected = max((chosen for chosen in every if cost.of(chosen) <= cap), key=likelihood)
        found = most_probable(probs, cost, cap + 1e-9)
        assert found == expected
        seen.add(tuple(found.values()))
    assert len(seen) > 1


def test_a_cap_below_the_cheapest_network_names_the_range():
    cost, probs = costs(0)
    least, most = cost.reachable(OPTIONS)
    with pytest.raises(ConfigError) as raised:
        most_probable(probs, cost, 1.0, unit="parameters")
    assert str(raised.value) == (
        f"the cap is 1 parameters, below the cheapest network of the space, expected {least:,.10g} to {most:,.10g}; "
        "raise the cap, or add cheaper candidates"
    )


def test_of_a_search(nas_bench_201, spec):
    from nas.methods.counted_costs import parameters
    from nas.supernet.arch_params import ArchParams

    arch = ArchParams.from_model(nas_bench_201.supernet(spec), init_std=1.0, generator=torch.Generator().manual_seed(0))
    with nas_bench_201.sketching():
        cost = parameters(nas_bench_201.build(spec, affine=True))
    freely, least = WithinCap(cost, cap=1e9)(arch), cost.reachable(arch.candidates)[0]
    assert freely == {key: max(probs, key=probs.get) for key, probs in arch.named_probs().items()}
    cap = (cost.of(freely) + least) / 2
    assert least <= cost.of(WithinCap(cost, cap=cap)(arch)) <= cap
    without = WithinCap(cost, cap=cap, exclude=("none", "skip_connect"))(arch)
    assert cost.of(without) <= cap
    assert not {"none", "skip_connect"} & set(without.values())
