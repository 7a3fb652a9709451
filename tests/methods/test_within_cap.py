"""Derivation under a cap, against every architecture there is."""

import itertools
import math
import random
import re
from decimal import ROUND_CEILING, ROUND_FLOOR

import pytest
import torch

from nas.errors import ConfigError
from nas.methods.cost import Cost
from nas.methods.within_cap import Limit, WithinCap, most_probable, shown

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
        found = most_probable(probs, [Limit("macs", cost, cap + 1e-9)])
        assert found == expected
        seen.add(tuple(found.values()))
    assert len(seen) > 1


def test_a_cap_below_the_cheapest_network_names_the_range():
    cost, probs = costs(0)
    least, most = cost.reachable(OPTIONS)
    with pytest.raises(ConfigError) as raised:
        most_probable(probs, [Limit("parameters", cost, 1.0, "parameters")])
    assert str(raised.value) == (
        f"cap.parameters is 1 parameters, below the cheapest network of the space, expected "
        f"{shown(least, 10, ROUND_CEILING)} to {shown(most, 10, ROUND_FLOOR)}; raise the cap, or add cheaper candidates"
    )


def test_of_a_search(nas_bench_201, spec):
    from nas.methods.counted_costs import parameters
    from nas.supernet.arch_params import ArchParams

    arch = ArchParams.from_model(nas_bench_201.supernet(spec), init_std=1.0, generator=torch.Generator().manual_seed(0))
    with nas_bench_201.sketching():
        cost = parameters(nas_bench_201.build(spec, affine=True))
    freely, least = WithinCap([Limit("parameters", cost, 1e9)])(arch), cost.reachable(arch.candidates)[0]
    assert freely == {key: max(probs, key=probs.get) for key, probs in arch.named_probs().items()}
    cap = (cost.of(freely) + least) / 2
    assert least <= cost.of(WithinCap([Limit("parameters", cost, cap)])(arch)) <= cap
    without = WithinCap([Limit("parameters", cost, cap)], exclude=("none", "skip_connect"))(arch)
    assert cost.of(without) <= cap
    assert not {"none", "skip_connect"} & set(without.values())


def test_two_limits_hold_and_what_none_can_hold_is_named():
    cost, probs = costs(0)
    count = Cost({term((key, "small")): 1.0 for key in KEYS})
    every = [dict(zip(KEYS, names, strict=True)) for names in itertools.product(*OPTIONS.values())]
    cap = sorted(cost.of(chosen) for chosen in every)[10]
    fits = [chosen for chosen in every if cost.of(chosen) <= cap and count.of(chosen) <= 1]
    expected = max(fits, key=lambda chosen: math.prod(probs[key][name] for key, name in chosen.items()))
    found = most_probable(probs, [Limit("macs", cost, cap), Limit("count", count, 1)])
    assert found == expected
    assert list(found) == list(KEYS)  # whatever the hashes of the names are
    cheapest = min(every, key=cost.of)
    with pytest.raises(
        ConfigError, match=r"^no architecture within cap\.macs=.* and cap\.count=0 was found .*; raise one"
    ):
        most_probable(probs, [Limit("macs", cost, cost.of(cheapest)), Limit("count", count, 0)])


def test_a_cap_holds_also_within_the_tolerances_of_the_solver():
    """One unit above the cap, of a hundred million, is too much."""
    cost = Cost({term((key, name)): price for key in "ab" for name, price in (("large", 50_000_000.5), ("small", 1.0))})
    probs = {key: {"small": 0.1, "large": 0.9} for key in "ab"}
    assert most_probable(probs, [Limit("macs", cost, 100_000_001.0)]) == {"a": "large", "b": "large"}
    assert sorted(most_probable(probs, [Limit("macs", cost, 100_000_000.0)]).values()) == ["large", "small"]


@pytest.mark.parametrize("above", [0, 3])
def test_costs_of_very_different_sizes_are_held_to_the_last(above):
    """Rows of the solver are exact to a millionth of the largest: 2 ** 40 architectures lie within that."""
    small = {f"b{number}": {"keep": 0.55, "skip": 0.45} for number in range(40)}
    options = {"a": {"big": 1 - 1e-10, "other": 1e-10}, **small}
    terms = {frozenset([("a", "big")]): 1e8, frozenset([("a", "other")]): 5e7}
    cost = Cost(terms | {frozenset([(key, "keep")]): 1.0 for key in small})
    chosen = most_probable(options, [Limit("parameters", cost, 1e8 + above)])
    assert chosen["a"] == "big"
    assert [chosen[key] for key in small].count("keep") == above


def test_small_costs_beside_a_large_one_do_not_hide_the_best():
    """The best architecture costs exactly the cap. The solver took it for infeasible."""
    prices = {
        "a": {"c0": 642_800_253.0, "c1": 8_709.0, "c2": 105_078_549.0},
        "b": {"c0": 1.0, "c1": 3.0, "c2": 1_393.0},
        "c": {"c0": 8_929.0},
    }
    probs = {
        "a": {"c0": 0.62847, "c1": 0.36816, "c2": 0.00337},
        "b": {"c0": 0.01284, "c1": 0.95316, "c2": 0.034},
        "c": {"c0": 1.0},
    }
    terms = {frozenset([(key, name)]): price for key, names in prices.items() for name, price in names.items()}
    cost = Cost({frozenset(): 5_018.0} | terms)
    assert most_probable(probs, [Limit("macs", cost, 642_814_203.0)]) == {"a": "c0", "b": "c1", "c": "c0"}


@pytest.mark.parametrize("seed", range(30))
def test_it_is_exact_whatever_the_sizes_of_the_costs(seed):
    draw = random.Random(seed)
    options = {}
    for key in "abcde"[: draw.randint(2, 5)]:
        drawn = [draw.random() ** draw.choice([1, 6]) for _ in range(draw.randint(2, 3))]
        options[key] = {f"c{place}": one / sum(drawn) for place, one in enumerate(drawn)}
    sizes = (10, 10**5, 10**9)
    terms = {
        frozenset([(key, name)]): float(draw.randrange(draw.choice(sizes))) for key in options for name in options[key]
    }
    for _ in range(draw.randint(0, 2)):
        pair = draw.sample(list(options), 2)
        condition = frozenset((key, draw.choice(list(options[key]))) for key in pair)
        terms[condition] = float(draw.choice([-1, 1]) * draw.randrange(1, draw.choice(sizes)))
    cost = Cost(terms)
    every = [dict(zip(options, names, strict=True)) for names in itertools.product(*options.values())]
    cap = cost.of(draw.choice(every)) + draw.choice([0, 1])

    def surprise(chosen):
        return -sum(math.log(options[key][name]) for key, name in chosen.items())

    chosen = most_probable(options, [Limit("macs", cost, cap)])
    assert cost.of(chosen) <= cap
    assert surprise(chosen) == pytest.approx(min(surprise(one) for one in every if cost.of(one) <= cap), abs=1e-6)


def test_the_cheapest_network_holds_a_cap_of_its_own_cost():
    """The sums of its costs differ in their last bits, by the order of the terms."""
    differing = 0
    for seed in range(40):
        draw = random.Random(seed)
        cost = Cost({term((key, name)): draw.random() for key in KEYS for name in OPTIONS[key]} | {term(): 0.1})
        probs = {key: dict.fromkeys(OPTIONS[key], 1 / 3) for key in KEYS}
        cheapest = {key: min(OPTIONS[key], key=lambda name: cost.terms[term((key, name))]) for key in KEYS}
        least = cost.reachable(OPTIONS)[0]
        differing += least != cost.of(cheapest)
        for cap in (least, cost.of(cheapest)):
            assert most_probable(probs, [Limit("latency_ms", cost, cap)]) == cheapest
        # Negative costs find the largest network.
        turned = Cost({condition: -value for condition, value in cost.terms.items()})
        largest = {key: max(OPTIONS[key], key=lambda name: cost.terms[term((key, name))]) for key in KEYS}
        for cap in (turned.reachable(OPTIONS)[0], turned.of(largest)):
            assert most_probable(probs, [Limit("macs", turned, cap)]) == largest
    assert differing


def test_the_range_of_a_message_can_be_copied():
    for least, most in ((0.123456, 0.987654), (1234567.0, 7654321.0), (1 / 3, 2 / 3)):
        limit = Limit("macs", Cost({}), cap=0.0)
        low, high = re.search("expected (.*) to (.*); f", str(limit.refused("r", least, most, fix="f"))).groups()
        values = [float(text.replace(",", "")) for text in (low, high)]
        assert least <= values[0] < values[1] <= most
        assert values == pytest.approx([least, most], rel=1e-9)
    assert [shown(0.12345, 4, ROUND_CEILING), shown(12345.0, 4, ROUND_FLOOR)] == ["0.1235", "1.234e+04"]
