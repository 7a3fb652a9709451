import pytest
import torch
from torch import nn

from nas.arch import ArchParams
from nas.choice import Choice, check_chosen
from nas.deriver import Argmax, TopPredecessors
from nas.errors import ConfigError, SpaceError

OPS = ("none", "skip", "conv", "pool")


def arch_of(rows, groups=None):
    """rows: key -> {candidate: probability}, summing to 1; groups: key -> group."""
    model = nn.Sequential(
        *(
            Choice({name: nn.Identity() for name in probs}, key=key, group=(groups or {}).get(key))
            for key, probs in rows.items()
        )
    )
    arch = ArchParams.from_model(model)
    with torch.no_grad():
        for row, probs in zip(arch.logits, rows.values(), strict=True):
            row[: len(probs)] = torch.tensor(list(probs.values())).log()
    return arch


def probs(*values):
    return dict(zip(OPS, values, strict=True))


# -- argmax


def test_argmax_of_every_choice():
    arch = arch_of({"a": probs(0.1, 0.2, 0.4, 0.3), "b": {"x": 0.3, "y": 0.7}, "c": probs(0.7, 0.1, 0.1, 0.1)})
    assert Argmax()(arch) == {"a": "conv", "b": "y", "c": "none"}


def test_argmax_excludes():
    arch = arch_of({"a": probs(0.7, 0.1, 0.05, 0.15), "b": {"x": 0.3, "y": 0.7}})
    assert Argmax(exclude=["none"])(arch) == {"a": "pool", "b": "y"}
    assert Argmax(exclude=["none", "pool"])(arch) == {"a": "skip", "b": "y"}


def test_padding_is_never_derived():
    # Excluding the real favourite must not fall through to the padding of a shorter row.
    arch = arch_of({"wide": probs(0.25, 0.25, 0.25, 0.25), "narrow": {"x": 0.999, "y": 0.001}})
    assert Argmax(exclude=["x"])(arch)["narrow"] == "y"


@pytest.mark.parametrize("deriver", [Argmax(exclude=OPS), TopPredecessors(exclude=OPS)])
def test_excluding_everything_is_an_error(deriver):
    arch = arch_of({"a": probs(0.25, 0.25, 0.25, 0.25)}, {"a": "g"})
    with pytest.raises(ConfigError, match=r"deriver\.exclude leaves none of the candidates none, skip, conv, pool"):
        deriver(arch)


# -- top predecessors


def groups_of(*keys):
    return {key: f"normal/{key[-1]}" for key in keys}


def test_the_two_strongest_edges_of_every_node():
    rows = {
        "0-2": probs(0.10, 0.50, 0.20, 0.20),
        "1-2": probs(0.10, 0.20, 0.60, 0.10),
        "0-3": probs(0.10, 0.40, 0.30, 0.20),
        "1-3": probs(0.10, 0.20, 0.20, 0.50),
        "2-3": probs(0.10, 0.15, 0.60, 0.15),
    }
    assert TopPredecessors()(arch_of(rows, groups_of(*rows))) == {
        "0-2": "skip",
        "1-2": "conv",
        "0-3": None,
        "1-3": "pool",
        "2-3": "conv",
    }


def test_none_has_the_largest_probability_everywhere():
    """`none` is never derived, but takes its share: an edge is as strong as its best other operation, measured over
    all operations. Renormalising without `none` would prefer 0-3 (0.1/0.15) to 1-3 (0.3/0.7)."""
    rows = {
        "0-3": probs(0.85, 0.10, 0.03, 0.02),
        "1-3": probs(0.30, 0.20, 0.20, 0.30),
        "2-3": probs(0.50, 0.05, 0.40, 0.05),
    }
    assert TopPredecessors()(arch_of(rows, groups_of(*rows))) == {"0-3": None, "1-3": "pool", "2-3": "conv"}


def test_two_different_predecessors_even_if_one_edge_has_the_two_best_operations():
    rows = {
        "0-3": probs(0.02, 0.49, 0.48, 0.01),
        "1-3": probs(0.30, 0.30, 0.20, 0.20),
        "2-3": probs(0.70, 0.10, 0.10, 0.10),
    }
    assert TopPredecessors()(arch_of(rows, groups_of(*rows))) == {"0-3": "skip", "1-3": "skip", "2-3": None}


def test_choices_without_a_group_are_kept():
    rows = {key: probs(0.1, 0.2, 0.3, 0.4) for key in ("0-3", "1-3", "2-3", "head")}
    derived = TopPredecessors()(arch_of(rows, groups_of("0-3", "1-3", "2-3")))
    assert derived["head"] == "pool"
    assert list(derived.values()).count(None) == 1


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_count(count, kept):
    rows = {key: probs(0.1, 0.2, 0.3, 0.4) for key in ("0-3", "1-3", "2-3")}
    derived = TopPredecessors(count=count)(arch_of(rows, groups_of(*rows)))
    assert sum(name is not None for name in derived.values()) == kept


def test_count_below_one():
    with pytest.raises(ConfigError, match=r"deriver\.count must be at least 1, got 0"):
        TopPredecessors(count=0)


def test_a_space_without_groups_is_an_error():
    with pytest.raises(SpaceError, match=r"without any; use deriver=argmax"):
        TopPredecessors()(arch_of({"a": probs(0.25, 0.25, 0.25, 0.25)}))


# -- both


def test_ties_go_to_the_first():
    rows = {key: probs(0.25, 0.25, 0.25, 0.25) for key in ("0-3", "1-3", "2-3")}
    for _ in range(3):
        arch = arch_of(rows, groups_of(*rows))
        assert Argmax()(arch) == dict.fromkeys(rows, "none")
        assert TopPredecessors()(arch) == {"0-3": "skip", "1-3": "skip", "2-3": None}


@pytest.mark.parametrize("deriver", [Argmax(), Argmax(exclude=["none"]), TopPredecessors()])
def test_what_is_derived_fits_the_spaces_that_ship(deriver, space, spec):
    arch = ArchParams.from_model(space.supernet(spec), init_std=1.0)
    derived = deriver(arch)
    check_chosen(derived, space.options(spec))
    if isinstance(deriver, TopPredecessors):
        for group in set(arch.groups.values()):
            members = [key for key, of in arch.groups.items() if of == group]
            assert sum(derived[key] is not None for key in members) == min(2, len(members))
            assert "none" not in {derived[key] for key in members}
