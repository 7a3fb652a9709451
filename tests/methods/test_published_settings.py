"""The message at the start of a search that lacks the published settings of its method."""

import pytest

from nas.methods.dirichlet import Dirichlet
from nas.methods.published_settings import missing, reinmax_too_cold
from nas.methods.sampler import GDAS, GumbelSoftmax, Softmax, Uniform
from nas.training.schedule import Constant, Linear

DEFAULTS = {
    "weight_optim.nesterov": True,
    "weight_optim.weight_decay": 5e-4,
    "weight_optim.lr": 0.025,
    "arch_optim.lr": 3e-4,
    "search.arch_first": False,
    "search.batch_size": 64,
    "search.warmup_epochs": 0,
    "space.partial_channels": 1,
    "space.edge_normalisation": False,
}
DARTS = {"weight_optim.nesterov": False, "weight_optim.weight_decay": 3e-4, "search.arch_first": True}


def test_a_sampler_that_is_chosen_alone_names_what_it_lacks():
    assert missing(Softmax(), DEFAULTS) == (
        "sampler=softmax does not bring along what DARTS was published with: weight_optim.nesterov=false (here true), "
        "weight_optim.weight_decay=0.0003 (here 0.0005), search.arch_first=true (here false); "
        "experiment=darts_first_order has all of it"
    )
    assert "DrNAS" in missing(Dirichlet(), DEFAULTS)
    assert missing(GumbelSoftmax(), DEFAULTS).endswith("weight_optim.weight_decay=0.0003 (here 0.0005)")


def test_only_what_differs_is_named():
    line = missing(Softmax(), DEFAULTS | DARTS | {"weight_optim.weight_decay": 1e-3})
    assert "published with: weight_optim.weight_decay=0.0003 (here 0.001); experiment" in line


@pytest.mark.parametrize("sampler", [Softmax(), GumbelSoftmax(), Dirichlet()])
def test_nothing_is_said_where_all_is_as_published(sampler):
    assert missing(sampler, DEFAULTS | DARTS) is None


@pytest.mark.parametrize("sampler", [GDAS(), Uniform()])
def test_nothing_is_said_of_the_default(sampler):
    assert missing(sampler, DEFAULTS) is None


def test_a_searcher_or_partial_channels_say_what_they_lack():
    line = missing(Softmax(), DEFAULTS | DARTS | {"searcher.radius": 0.01, "searcher.method": "exact"})
    assert line.startswith("searcher=second_order does not bring along what DARTS")
    assert "searcher.method=difference (here exact); experiment=darts_second_order" in line
    line = missing(GDAS(), DEFAULTS | DARTS | {"space.partial_channels": 4})
    assert line.startswith("space.partial_channels=4 does not bring along what PC-DARTS")
    for setting in (
        "weight_optim.lr=0.1",
        "arch_optim.lr=0.0006",
        "search.warmup_epochs=15",
        "edge_normalisation=true",
    ):
        assert setting in line


def test_another_optimiser_has_other_settings_and_these_are_not_named():
    assert "nesterov" not in missing(Softmax(), {"weight_optim.weight_decay": 0.0, "search.arch_first": False})


def test_reinmax_below_a_temperature_of_one_is_warned_of():
    line = reinmax_too_cold(GDAS(estimator="reinmax"), Linear(10.0, 0.1), 5)
    assert "cools to 0.1; set temperature=constant temperature.value=1" in line
    assert reinmax_too_cold(GDAS(estimator="reinmax"), Constant(1.0), 5) is None
    assert reinmax_too_cold(GDAS(estimator="reinmax"), Linear(10.0, 0.1), 1) is None  # which has the start alone
    assert reinmax_too_cold(GDAS(), Linear(10.0, 0.1), 5) is None
