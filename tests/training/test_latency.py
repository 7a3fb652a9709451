import statistics

import pytest
import torch
from torch import nn

from nas.training import latency as timing
from nas.training.latency import latency


class Watch(nn.Module):
    """A network that takes the time it is told, by a clock of its own."""

    def __init__(self, times):
        super().__init__()
        self.times = iter(times)
        self.now = 0.0
        self.seen = []

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(x.clone())
        self.now += next(self.times)
        return x


@pytest.fixture
def watch(monkeypatch):
    """A network that is slow at first, then takes 1, 2, ... 100 ms."""
    network = Watch([5.0] * 10 + [k / 1000 for k in range(1, 101)] + [9.0] * 10)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: network.now)
    return network


def test_median_and_percentile_after_warming_up(watch, monkeypatch):
    monkeypatch.setattr(timing, "MOST_RUNS", 100)
    monkeypatch.setattr(timing, "synchronise", lambda device: None)
    # A fifth of 20 s is over in one slow pass, but ten are the least.
    measured = latency(watch.train(), torch.randn(3, 2), batch=1, seconds=20.0)
    assert measured.runs == 100
    assert measured.median_ms == pytest.approx(50.5)
    assert measured.p95_ms == pytest.approx(95.05)
    assert measured.p95_ms == pytest.approx(1000 * torch.quantile(torch.arange(1, 101.0) / 1000, 0.95).item(), rel=1e-5)


def test_it_stops_when_the_time_is_over(watch):
    measured = latency(watch, torch.randn(3, 2), batch=1, seconds=0.2)
    assert measured.runs == 20  # 1 + ... + 20 ms is the first sum above 200
    assert measured.median_ms == pytest.approx(statistics.median(range(1, 21)))


def test_examples_take_turns_to_fill_the_batch(watch):
    examples = torch.tensor([[1.0], [2.0], [3.0]])
    latency(watch, examples, batch=7, seconds=0.01)
    assert watch.seen[0].flatten().tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert latency(nn.Bilinear(1, 1, 1), (examples, examples), batch=64, seconds=0.0).batch == 64


def test_the_device_is_waited_for_inside_the_time_of_every_pass(watch, monkeypatch):
    waited = []
    monkeypatch.setattr(timing, "synchronise", lambda device: waited.append((device.type, watch.now)))
    measured = latency(watch, torch.randn(1, 1), batch=1, seconds=0.05)
    assert len(waited) == len(watch.seen) == measured.runs + 10
    assert {device for device, _ in waited} == {"cpu"}
