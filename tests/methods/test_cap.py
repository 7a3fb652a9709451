"""Searches under a cap: the pull below it, the derived network that holds it, and caps that cannot be."""

import itertools
import json

import pytest
import torch
from torch import nn

import nas
from nas.data import given
from nas.errors import ConfigError
from nas.methods import Argmax, BestOf, TopPredecessors
from nas.methods.cap import CAPS, Pull, holding, points_of
from nas.methods.cost import Cost
from nas.methods.front import short
from nas.methods.within_cap import Limit
from nas.training.evaluate import count_macs, count_parameters

SHORT = {"epochs": 1, "batch_size": 8, "gap_batches": 0, "device": "cpu", "progress": False}
MEASURES = {
    "parameters": lambda network, spec: count_parameters(network),
    "macs": count_macs,
    "bytes": lambda network, spec: sum(one.numel() * one.element_size() for one in network.state_dict().values()),
}


def edge(width):
    wide = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
    thin = nn.Sequential(nn.Conv2d(width, width, 1), nas.Choice({"norm": nn.BatchNorm2d(width), "none": nn.Identity()}))
    return nas.Choice({"wide": wide, "thin": thin, "skip": nn.Identity()})


def small(in_channels, num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 1),
        edge(width),
        edge(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (32, 1, 6, 6), generator=generator, dtype=torch.uint8), torch.arange(32) % 2


def sizes(name, spec):
    """Of every architecture, ascending."""
    space = nas.spaces.Custom(factory=small)
    options = space.options(spec)
    every = (dict(zip(options, names, strict=True)) for names in itertools.product(*options.values()))
    return sorted({MEASURES[name](space.network(spec, nas.Genotype("custom", chosen)), spec) for chosen in every})


@pytest.mark.parametrize("name", CAPS)
def test_the_derived_network_holds_the_cap_and_the_result_says_so(name):
    spec = given.training(images(), given.Reading()).spec
    found_sizes = sizes(name, spec)
    cap = found_sizes[len(found_sizes) // 2]
    found = nas.search(small, images(), cap={name: cap}, deriver=BestOf(samples=4, batches=1), **SHORT)
    network = nas.spaces.Custom(factory=small).network(spec, found.genotype)
    size = MEASURES[name](network, spec)
    assert size <= cap
    assert found.result["cap"] == {name: {"cap": cap, "predicted": size}}
    assert found.metrics[f"derived_{name}"] <= cap
    assert found.metrics[f"regulariser/cap_{name}"] >= 0


COST = Cost({frozenset(): 10.0, frozenset([("a", "large")]): 90.0, frozenset([("a", "small")]): 20.0})


def arch(*logits):
    model = nn.Sequential(nas.Choice({"large": nn.Identity(), "small": nn.Identity()}, key="a"))
    made = nas.ArchParams.from_model(model, init_std=0.0)
    with torch.no_grad():
        made.logits.copy_(torch.tensor([logits]))
    return made


def test_the_pull_is_down_to_the_cap_and_no_further():
    above = arch(0.0, 0.0)  # expects 10 + (90 + 20) / 2 = 65
    pull = Pull(Limit("macs", COST, 50.0), above)
    term = pull(above, 0.5)
    assert term.item() == pytest.approx(65 / 50 - 1)
    term.backward()
    assert above.logits.grad[0, 0] > 0 > above.logits.grad[0, 1]
    below = arch(0.0, 5.0)
    term = pull(below, 0.5)
    term.backward()
    assert term.item() == 0
    assert not below.logits.grad.any()


def test_a_cap_that_is_the_cost_of_the_cheapest_network_is_not_refused_for_rounding():
    model = nn.Sequential(*(nas.Choice({"s": nn.Identity(), "l": nn.Identity()}, key=key) for key in "ba"))
    made = nas.ArchParams.from_model(model)
    costs = {("b", "s"): 0.2, ("a", "s"): 0.1, ("b", "l"): 1.0, ("a", "l"): 1.0}
    cost = Cost({frozenset(): 0.3} | {frozenset([pair]): value for pair, value in costs.items()})
    cap = cost.of({"a": "s", "b": "s"})
    assert cap < cost.reachable(made.candidates)[0]  # by the order of the sum
    assert Pull(Limit("latency_ms", cost, cap), made)(made, 0.0) > 0


def test_derivers_that_hold_a_cap():
    limit = Limit("macs", COST, 50.0)
    likes_large = arch(3.0, 0.0)
    assert holding(Argmax(), [limit])(likes_large) == {"a": "small"}
    assert holding(Argmax(), [])(likes_large) == {"a": "large"}
    assert holding(Argmax(exclude=["large"]), [limit])(likes_large) == {"a": "small"}
    with pytest.raises(
        ConfigError, match=r"^cap\.macs is 50, below the cheapest network of the space, expected 100 to 100"
    ):
        holding(Argmax(exclude=["small"]), [limit])(likes_large)
    best_of = BestOf()
    assert holding(best_of, [limit])(likes_large) == {"a": "small"}
    assert best_of(likes_large) == {"a": "large"}  # as it was
    with pytest.raises(
        ConfigError, match=r"^cap\.macs is held by deriver=argmax .*, got a TopPredecessors; set deriver=argmax"
    ):
        holding(TopPredecessors(), [limit])


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        ({"parameters": 1}, r"^cap\.parameters is 1 parameters, below the smallest .*, expected 18 to 330; raise"),
        ({"macs": 1e12}, r"^cap\.macs is .* multiply-accumulates, above the largest network .*, expected 152 to "),
        ({"bytes": float("nan")}, r"^cap\.bytes is nan bytes, below the smallest"),
        ({"macs": "1e6"}, r"^cap\.macs is '1e6', expected a number, or several; give e\.g\. cap={.macs.: 0\.5}, half"),
        (1e6, r"^cap has 1000000\.0, expected some of parameters, macs, bytes"),
        ("macs", r"^cap has 'macs', expected some of parameters, macs, bytes"),
        ({"flops": 1e6}, r"^cap has 'flops', expected some of parameters, macs, bytes, latency_ms; give e\.g\."),
    ],
)  # fmt: skip
def test_a_cap_that_cannot_be_is_refused_before_training(cap, message):
    with pytest.raises(ConfigError, match=message):
        nas.search(small, images(), cap=cap, **SHORT)


def test_parts_of_the_largest_network_and_a_regulariser_of_the_user_that_pulls_instead():
    spec = given.training(images(), given.Reading()).spec
    space = nas.spaces.Custom(factory=small)
    made = nas.ArchParams.from_model(space.supernet(spec))
    ((only,),) = points_of({"macs": 1000, "bytes": None}, arch=made, space=space, spec=spec)
    ((half,),) = points_of({"macs": 0.5}, arch=made, space=space, spec=spec)
    assert (only.name, only.cap) == ("macs", 1000)
    assert half.cap == half.cost.reachable(made.candidates)[1] / 2
    entropy = nas.methods.Entropy(weight=nas.training.Constant(0.1))
    found = nas.search(small, images(), cap={"macs": 1000}, regulariser={"macs": entropy}, **SHORT)
    assert "regulariser/cap_macs" not in found.metrics
    assert found.result["cap"]["macs"]["predicted"] <= 1000


# -- several caps


def test_several_caps_give_a_network_each_from_one_search(tmp_path):
    settings = SHORT | {"directory": tmp_path, "tracker": nas.storage.JsonLines}
    found = nas.search(small, images(), cap={"parameters": [0.4, 0.9, 300], "macs": 0.95}, **settings)
    spec = given.training(images(), given.Reading()).spec
    caps = [one.result["cap"]["parameters"] for one in found.front]
    assert [cap["cap"] for cap in caps] == [300, pytest.approx(0.9 * 330), pytest.approx(0.4 * 330)]
    for number, (one, cap) in enumerate(zip(found.front, caps, strict=True), 1):
        network = nas.spaces.Custom(factory=small).network(spec, one.genotype)
        assert count_parameters(network) == cap["predicted"] == one.result["derived_parameters"] <= cap["cap"]
        assert one.result["cap"]["macs"]["predicted"] <= one.result["cap"]["macs"]["cap"]
        assert (one.result["supernet_examples"], 0 <= one.result["supernet_accuracy"] <= 1) == (16, True)
        assert nas.Genotype.from_json((tmp_path / f"genotype_{number}.json").read_text()) == one.genotype
    assert found.genotype == found.front[0].genotype
    assert json.loads((tmp_path / "front.json").read_text()) == [dict(one.result) for one in found.front]
    lines = (tmp_path / "front.md").read_text().splitlines()
    assert lines[0].startswith(
        "| network | parameters cap | parameters of the network | macs cap | macs of the network |"
    )
    assert [line.split(" | ")[1] for line in lines[2:]] == ["300", "297", "132"]
    assert (tmp_path / "front.svg").read_text().count("<rect") == 1 + 3  # the background, and a dot for each
    path = tmp_path / "genotype_3.json"
    net = nas.retrain(
        small, str(path), images(), start="supernet", epochs=1, batch_size=8, device="cpu", progress=False
    )
    assert count_parameters(net.network) == caps[2]["predicted"]


def test_several_caps_of_two_things_are_refused():
    message = (
        r"^cap has several numbers of macs and of bytes, expected several of one name alone; give one number of bytes"
    )
    with pytest.raises(ConfigError, match=message):
        nas.search(small, images(), cap={"macs": [0.5, 0.9], "bytes": [0.5, 0.9]}, **SHORT)
    with pytest.raises(
        ConfigError, match=r"^cap\.macs is \[\], expected a number, or several; give e\.g\. cap={.macs.: 0\.5}"
    ):
        nas.search(small, images(), cap={"macs": []}, **SHORT)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (999.4, "999"), (999.6, "1k"), (12_345, "12.3k"), (999_600, "1M"), (2e9, "2G")],
)
def test_numbers_of_an_axis(value, text):
    assert short(value) == text
