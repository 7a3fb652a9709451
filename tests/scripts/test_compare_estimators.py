"""scripts/compare_estimators: its reference, and what it prints."""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from nas.methods.sampler import GDAS, GumbelSoftmax, Softmax

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_estimators"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("compare_estimators", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_the_exact_gradient_is_that_of_score_functions_averaged(script):
    """d E[L] = E[L d log p]: an unbiased estimate from draws alone, without the enumeration."""
    from nas.supernet.choice import Gate, choices, gates

    model, arch, loss = script.problem(0)
    exact, found = script.exact_gradient(model, arch, loss), choices(model)
    losses = torch.zeros((script.CANDIDATES,) * 3, dtype=torch.float64)
    for index in torch.ones_like(losses).nonzero().tolist():
        with gates(found, {key: Gate(None, k) for key, k in zip(arch.keys, index, strict=True)}):
            losses[tuple(index)] = loss().detach()
    draws = 200_000
    drawn = torch.multinomial(arch.probs().detach(), draws, replacement=True).T  # (draws, choices)
    scores = torch.nn.functional.one_hot(drawn, script.CANDIDATES) - arch.probs().detach()
    terms = losses[tuple(drawn.T)][:, None, None] * scores
    error = terms.std(dim=0) / draws**0.5
    assert ((terms.mean(dim=0) - exact).abs() < 5 * error).all()
    assert exact.abs().max() > 10 * error.max()


def test_the_estimate_of_a_linear_problem_has_no_bias(script):
    """Where the loss is linear in the gates, softmax is exact."""
    model, arch, _ = script.problem(0)
    x = torch.randn(5, script.WIDTH, dtype=torch.float64)

    def linear():
        return model.choices[0](x).sum()

    exact = script.exact_gradient(model, arch, linear)
    generator = torch.Generator().manual_seed(0)
    got = script.measures(script.estimates(Softmax(), 1.0, model, arch, linear, 2, generator), exact)
    assert got["squared_bias"] == pytest.approx(0, abs=1e-20)
    assert got["cosine"] == pytest.approx(1)


def test_measures_of_known_estimates(script):
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    estimates = exact + torch.tensor([[4.0, -3.0]]) + torch.randn(200_000, 2, generator=generator).double()
    got = script.measures(estimates, exact)
    assert got["squared_bias"] == pytest.approx(1.0, abs=0.01)
    assert got["variance"] == pytest.approx(2 / 25, rel=0.01)
    assert got["cosine"] == pytest.approx(2**-0.5, abs=0.01)


def test_a_lower_temperature_trades_bias_for_variance(script):
    model, arch, loss = script.problem(0)
    exact = script.exact_gradient(model, arch, loss)
    for sampler in (GumbelSoftmax(), GDAS(estimator="full")):
        cold, warm = (
            script.measures(
                script.estimates(sampler, tau, model, arch, loss, 300, torch.Generator().manual_seed(0)), exact
            )
            for tau in (0.3, 10.0)
        )
        assert cold["squared_bias"] < warm["squared_bias"]
        assert cold["variance"] > 10 * warm["variance"]


def test_the_table_and_the_file(script, monkeypatch, capsys, tmp_path):
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["compare_estimators", "--draws", "3", "--problems", "1", "--json", str(path)])
    threads = torch.get_num_threads()
    assert script.main() is None
    torch.set_num_threads(threads)
    rows = json.loads(path.read_text())["rows"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rows) == 2 + 4 + 5 * len(script.TEMPERATURES)
    assert lines[4].startswith("| softmax | - | ")
    assert all(line.count("|") == 7 for line in lines)


def test_too_few_draws(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare_estimators", "--draws", "1"])
    assert script.main() == "error: --draws must be at least 2, got 1; set --draws 2"
