import itertools
import math

import pytest
import torch

from nas.errors import ConfigError
from nas.training.schedule import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    Step,
    learning_rates,
    positive,
    progress,
)

POINTS = [k / 1000 for k in range(1001)]


@pytest.mark.parametrize("make", [Linear, Cosine])
@pytest.mark.parametrize(
    ("start", "end"), [(10.0, 0.1), (0.025, 0.001), (0.1, 0.3), (1 / 3, 1e-17), (0.2, 0.2), (7, 0)]
)
def test_end_points_are_exact(make, start, end):
    schedule = make(start=start, end=end)
    assert schedule(0.0) == start
    assert schedule(1.0) == end


@pytest.mark.parametrize("make", [Linear, Cosine])
def test_monotone_between_the_end_points(make):
    down = [make(start=10.0, end=0.1)(p) for p in POINTS]
    assert all(a > b for a, b in itertools.pairwise(down))
    up = [make(start=0.0, end=0.2)(p) for p in POINTS]
    assert all(a < b for a, b in itertools.pairwise(up))


def test_linear_is_the_gdas_formula():
    epochs = 250
    for epoch in range(epochs):
        tau = Linear(start=10.0, end=0.1)(progress(epoch, epochs))
        assert tau == pytest.approx(10 - 9.9 * epoch / (epochs - 1), rel=1e-12)


def test_cosine_is_the_formula_of_pytorch():
    for p in POINTS:
        expected = 0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * p)) / 2
        assert Cosine(start=0.025, end=0.001)(p) == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_linearly_from_zero_to_start_and_then_is_a_cosine():
    schedule = Cosine(start=0.4, end=0.1, warmup=0.25)
    assert schedule(0.0) == 0.0
    assert schedule(0.125) == pytest.approx(0.2)
    assert schedule(0.25) == 0.4
    assert schedule(0.625) == pytest.approx(0.25)  # half of the rest: half way between
    assert schedule(1.0) == 0.1
    rising = [schedule(p) for p in POINTS if p <= 0.25]
    falling = [schedule(p) for p in POINTS if p >= 0.25]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a > b for a, b in itertools.pairwise(falling))


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 1.5, math.nan])
def test_warmup_outside_of_its_range(warmup):
    with pytest.raises(ConfigError, match=rf"warmup .*\[0, 1\), got {warmup}"):
        Cosine(start=1.0, warmup=warmup)


def test_one_cycle_is_that_of_torch():
    steps, peak = 41, 0.4
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    # Its peak is at step pct_start * steps - 1: of 40 intervals, the tenth.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps, pct_start=11 / steps, div_factor=20, final_div_factor=50
    )
    ours = OneCycle(start=peak, end=peak / 1000, warmup=0.25, initial=0.05)
    for step in range(steps):
        assert ours(progress(step, steps)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_one_cycle_by_hand():
    schedule = OneCycle(start=1.0, end=0.2, warmup=0.5, initial=0.1)
    assert [schedule(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.1, 0.55, 1.0, 0.6, 0.2])
    assert OneCycle(start=0.3)(1.0) == 0.0


@pytest.mark.parametrize(
    ("setting", "value"), [("warmup", 0.0), ("warmup", 1.0), ("warmup", math.nan), ("initial", -0.1), ("initial", 1.1)]
)
def test_one_cycle_outside_of_its_range(setting, value):
    with pytest.raises(ConfigError, match=rf"{setting} is a fraction .*, got {value}; set {setting} to"):
        OneCycle(start=1.0, **{setting: value})


def test_exponential_has_a_constant_ratio_and_exact_ends():
    schedule = Exponential(start=10.0, end=0.1)
    assert (schedule(0.0), schedule(1.0)) == (10.0, 0.1)
    values = [schedule(k / 20) for k in range(21)]
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert ratios == pytest.approx([0.01 ** (1 / 20)] * 20)
    with pytest.raises(ConfigError, match=r"start and end > 0, got 10 and 0; set both"):
        Exponential(start=10.0, end=0.0)


def test_step_falls_at_its_fractions_and_nowhere_else():
    schedule = Step(start=8.0, factor=0.5, every=0.1)
    assert [schedule(k / 10) for k in range(11)] == [8.0 * 0.5**k for k in range(11)]
    assert [schedule(k / 10 + 0.099) for k in range(10)] == [8.0 * 0.5**k for k in range(10)]
    for every in (0.0, -1.0, 1.5):
        with pytest.raises(ConfigError, match="every is a fraction of the run"):
            Step(start=1.0, every=every)


def test_constant():
    assert {Constant(value=0.5)(p) for p in POINTS} == {0.5}
    assert Constant(start=0.3)(0.7) == 0.3
    assert Constant(value=0.5, start=0.3)(0.7) == 0.5
    assert Constant(value=0.0, start=0.3)(0.7) == 0.0
    with pytest.raises(ConfigError, match="needs a value"):
        Constant()


@pytest.mark.parametrize("length", [2, 3, 7, 50, 250, 600, 12345])
def test_progress_begins_at_zero_and_ends_at_one(length):
    assert progress(0, length) == 0.0
    assert progress(length - 1, length) == 1.0
    values = [progress(k, length) for k in range(length)]
    assert all(a < b for a, b in itertools.pairwise(values))


def test_progress_of_a_single_epoch_is_the_start():
    assert progress(0, 1) == 0.0
    assert Linear(start=10.0, end=0.1)(progress(0, 1)) == 10.0


def test_progress_never_leaves_its_range():
    assert progress(1, 1) == 1.0
    assert progress(9, 3) == 1.0


@pytest.mark.parametrize(
    ("schedule", "lowest"),
    [
        (Linear(start=10.0, end=0.0), "0"),
        (Linear(start=10.0, end=-1.0), "-1"),
        (Linear(start=-2.0, end=1.0), "-2"),
        (Constant(value=0.0), "0"),
        (Cosine(start=1.0, end=0.0), "0"),
        (Cosine(start=1.0, end=0.1, warmup=0.1), "0"),
        (Constant(value=math.nan), "nan"),
        (Constant(value=math.inf), "inf"),
    ],
)
def test_positive_refuses_what_touches_zero_or_is_not_finite(schedule, lowest):
    problem = rf"temperature must be finite and > 0 throughout, got {lowest}; set it .*temperature\.end=0\.1"
    with pytest.raises(ConfigError, match=problem):
        positive(schedule, "temperature")


def test_positive_returns_the_schedule_itself():
    schedule = Linear(start=10.0, end=0.1)
    assert positive(schedule, "temperature") is schedule


def test_a_schedule_that_fails_is_named():
    with pytest.raises(ConfigError, match=r"temperature fails \(TypeError: .*\); correct the schedule"):
        positive(Linear(start="a", end=1.0), "temperature")


def test_a_schedule_that_counts_its_calls_is_refused():
    """A run that is resumed would go on with other numbers."""
    calls = itertools.count(1)
    with pytest.raises(ConfigError, match="lr returns another number each time it is asked for the same progress"):
        learning_rates(lambda progress: 1 / next(calls), "lr")
