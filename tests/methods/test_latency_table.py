"""Latency tables: what a measured table has, and what is refused when a table is read."""

import json
import math
import time

import pytest
import torch
from torch import nn

from nas.errors import ConfigError, SpaceError
from nas.methods.latency_table import LatencyTable, measure, median_time
from nas.supernet.choice import Choice
from nas.supernet.freezing import freeze

FIX = "set regulariser.latency.table to a file that scripts/measure_latency has written"


class Slow(nn.Module):
    """Costs what it says: the clock below reads it."""

    elapsed = 0.0

    def __init__(self, milliseconds, inner=None):
        super().__init__()
        self.milliseconds, self.inner = milliseconds, inner

    def forward(self, x):
        Slow.elapsed += self.milliseconds * x.shape[1]
        return x if self.inner is None else self.inner(x)


def clock(run):
    before = Slow.elapsed
    run()
    return Slow.elapsed - before


class Twice(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], dim=1)


class Model(nn.Module):
    """5 ms outside of the choices; a choice inside a choice, and one key at two widths."""

    def __init__(self):
        super().__init__()
        inner = Choice({"fast": Slow(1.0), "slow": Slow(4.0)}, key="inner")
        self.outer = Choice({"block": Slow(0.5, nn.Sequential(Slow(0.25), inner)), "plain": Slow(3.0)}, key="outer")
        self.wide = Choice({"fast": Slow(1.0), "slow": Slow(4.0)}, key="inner")
        self.rest = nn.Sequential(Slow(5.0), Twice())

    def forward(self, x):
        return self.wide(self.rest(self.outer(x)))


OPTIONS = {"outer": ("block", "plain"), "inner": ("fast", "slow")}
NARROW, WIDE = ((7, 1),), ((7, 2),)


@pytest.fixture
def table():
    return measure(Model(), torch.zeros(7, 1), device="a clock", clock=clock)


def test_a_candidate_has_its_own_time_without_the_choices_inside(table):
    assert table.candidates == {
        ("inner", NARROW): {"fast": 1.0, "slow": 4.0},
        ("inner", WIDE): {"fast": 2.0, "slow": 8.0},
        ("outer", NARROW): {"block": 0.75, "plain": 3.0},
    }
    assert (table.fixed, table.batch, table.device) == (5.0, 7, "a clock")


@pytest.mark.parametrize("outer", OPTIONS["outer"])
@pytest.mark.parametrize("inner", OPTIONS["inner"])
def test_the_cost_of_an_architecture_is_the_time_of_its_network(table, outer, inner):
    chosen = {"outer": outer, "inner": inner}
    network = freeze(Model(), chosen)
    assert table.cost(Model(), torch.zeros(7, 1)).of(chosen) == clock(lambda: network(torch.zeros(7, 1)))


def test_a_choice_inside_a_candidate_of_its_own_key():
    again = Choice({"plain": Slow(2.0), "block": Slow(9.0)}, key="outer")
    model = Choice({"plain": Slow(3.0), "block": Slow(0.5, nn.Sequential(Twice(), again))}, key="outer")
    got = measure(model, torch.zeros(7, 1), device="a clock", clock=clock).candidates
    # Where the block was drawn, `again` is the block, too: it is never anything else there.
    assert got == {("outer", NARROW): {"plain": 3.0, "block": 0.5}, ("outer", WIDE): {"block": 18.0}}


def test_candidates_that_differ_at_their_places_count_by_their_mean():
    """One key at three places of equal inputs, of which the last is another module."""
    stages = [Choice({"a": Slow(1.0), "b": Slow(2.0)}, key="k") for _ in range(2)]
    last = Choice({"a": Slow(7.0), "b": Slow(2.0)}, key="k")
    model, x = nn.Sequential(*stages, last), torch.zeros(7, 1)
    table = measure(model, x, device="a clock", clock=clock)
    assert table.candidates == {("k", ((7, 1),)): {"a": 3.0, "b": 2.0}}
    assert table.fixed == 0
    assert table.cost(model, x).of({"k": "a"}) == 9.0


def test_choices_inside_that_differ_at_their_places_are_subtracted_as_they_are_there():
    def block(milliseconds):
        inner = Choice({"a": Slow(milliseconds), "b": Slow(2.0)}, key="inner")
        return Choice({"block": Slow(1.0, inner), "plain": Slow(3.0)}, key="outer")

    model, x = nn.Sequential(block(2.0), block(8.0)), torch.zeros(7, 1)
    table = measure(model, x, device="a clock", clock=clock)
    assert table.candidates["outer", NARROW]["block"] == 1.0
    assert table.cost(model, x).of({"outer": "block", "inner": "a"}) == 12.0


def test_measuring_leaves_the_model_as_it_was():
    model = Model().train()
    measure(model, torch.zeros(7, 1), device="a clock", clock=clock)
    assert model.training
    with pytest.raises(SpaceError, match="without gates"):
        model(torch.zeros(7, 1))


def test_saving_and_loading(table, tmp_path):
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_the_median_waits_for_warm_up():
    calls = []

    def run():
        calls.append(None)
        time.sleep(0.02 if len(calls) <= 2 else 0.001)

    milliseconds = median_time(run, device=torch.device("cpu"), warmup=2, repeats=5)
    assert len(calls) == 7
    assert 1 <= milliseconds < 20


def valid():
    return {
        "format": "nas-latency",
        "version": 1,
        "device": "cpu",
        "batch": 1,
        "fixed": 0.5,
        "candidates": [{"key": "a", "inputs": [[1, 3, 8, 8]], "milliseconds": {"x": 1.5, "y": 0}}],
    }


def test_a_valid_table_loads(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(valid()))
    loaded = LatencyTable.load(tmp_path / "table.json")
    assert loaded.candidates == {("a", ((1, 3, 8, 8),)): {"x": 1.5, "y": 0.0}}


BROKEN = {
    "another file": ({"format": "nas-genotype"}, "is not a latency table of version 1"),
    "another version": ({"version": 2}, "is not a latency table of version 1"),
    "no batch": ({"batch": None}, "malformed: expected a size, an integer >= 1, got None"),
    "negative": ({"fixed": -1}, "malformed: expected milliseconds, a number >= 0, got -1"),
    "not a number": ({"fixed": math.nan}, "malformed: expected milliseconds, a number >= 0, got nan"),
    "text": ({"candidates": [{**valid()["candidates"][0], "milliseconds": {"x": "1"}}]}, "got '1'"),
    "no shapes": ({"candidates": [{"key": "a", "milliseconds": {}}]}, "malformed: lacks 'inputs'"),
    "no list": ({"candidates": 3}, "malformed: 'int' object is not iterable"),
    "names without times": ({"candidates": [{**valid()["candidates"][0], "milliseconds": ["x"]}]}, "malformed: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_table_is_refused(case, tmp_path):
    change, message = BROKEN[case]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(valid() | change))
    with pytest.raises(ConfigError) as error:
        LatencyTable.load(path)
    assert message in str(error.value)
    assert str(error.value).endswith(f"; {FIX}")
    assert "\n" not in str(error.value)


def test_no_table_and_no_json(tmp_path):
    with pytest.raises(ConfigError) as error:
        LatencyTable.load(tmp_path / "none.json")
    assert str(error.value) == f"there is no latency table at {tmp_path / 'none.json'}; {FIX}"
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"text is not JSON \(UnicodeDecodeError\)"):
        LatencyTable.load(tmp_path / "text")
