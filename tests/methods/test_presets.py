"""The presets have the settings of their authors, and name the source of these settings."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nas.methods.dirichlet import Dirichlet
from nas.methods.published_settings import missing
from nas.methods.sampler import Softmax
from nas.settings import configuration, schemas
from nas.settings.dotted import leaves

NB201 = {"space._target_": "NasBench201", "space.channels": 16, "space.cells": 5}
NB201 |= {"deriver._target_": "Argmax", "deriver.exclude": [], "retrain.epochs": 200}
SPACE = {"space._target_": "Darts", "space.channels": 16, "space.cells": 8, "space.steps": 4}
SPACE |= {"deriver._target_": "TopPredecessors", "deriver.count": 2, "deriver.exclude": ["none"]}
WEIGHTS = {"weight_optim.lr": 0.025, "weight_optim.momentum": 0.9, "searcher.grad_clip": 5.0}
BY_EPOCH = {"lr._target_": "CosineByEpoch", "lr.end": 0.001, "lr.warmup_epochs": 0, "lr.epochs": None}
ADAM = {"arch_optim.lr": 3e-4, "arch_optim.betas": [0.5, 0.999], "arch_optim.weight_decay": 1e-3}
COMMON = {**WEIGHTS, **BY_EPOCH, **ADAM, "search.weight_fraction": 0.5, "search.init_std": 1e-3, "search.arch_every": 1}
COMMON |= {"search.one_level": False, "search.warmup_epochs": 0, "data._target_": "Cifar10"}
OF_GDAS = {"weight_optim.nesterov": True, "weight_optim.weight_decay": 5e-4, "search.arch_first": False}
OF_DARTS = {"weight_optim.nesterov": False, "weight_optim.weight_decay": 3e-4, "search.arch_first": True}
COOLING = {"temperature._target_": "Linear", "temperature.start": 10.0, "temperature.end": 0.1}
GDAS = {**COMMON, **OF_GDAS, **COOLING, "searcher.undrawn": "decay", "search.epochs": 250}
SOFTMAX = {"sampler._target_": "Softmax", "searcher.undrawn": "rest"}
SECOND = {"searcher._target_": "SecondOrder", "searcher.method": "difference", "searcher.radius": 0.01}

PUBLISHED = {
    "gdas_nas_bench_201": {**GDAS, **NB201, "sampler.estimator": "autodl", "search.batch_size": 64},
    "gdas_darts": {
        **GDAS,
        **SPACE,
        "sampler.estimator": "sampled",
        "search.batch_size": 256,
        "space.cells": 6,
        "space.final_norm": True,
        "retrain.epochs": 300,
        "retrain.network.final_norm": False,
    },
    "darts_first_order": {**COMMON, **OF_DARTS, **SPACE, **SOFTMAX, "search.epochs": 50, "search.batch_size": 64},
    "darts_second_order": {**COMMON, **OF_DARTS, **SPACE, **SOFTMAX, **SECOND, "search.epochs": 50},
    "darts_first_order_nas_bench_201": {**COMMON, **OF_GDAS, **NB201, **SOFTMAX, "search.epochs": 50},
    "darts_second_order_nas_bench_201": {
        **COMMON,
        **OF_GDAS,
        **NB201,
        **SOFTMAX,
        **SECOND,
        "search.arch_first": True,
        "search.epochs": 50,
    },
    "pc_darts": {
        **COMMON,
        **OF_DARTS,
        **SPACE,
        **SOFTMAX,
        "weight_optim.lr": 0.1,
        "arch_optim.lr": 6e-4,
        "search.epochs": 50,
        "search.batch_size": 256,
        "search.warmup_epochs": 15,
        "space.partial_channels": 4,
        "space.edge_normalisation": True,
        "retrain.drop_path": 0.3,
    },
    "dr_nas": {
        **COMMON,
        **OF_DARTS,
        **NB201,
        "sampler._target_": "Dirichlet",
        "search.epochs": 100,
        "search.batch_size": 64,
        "space.partial_channels": 1,
    },
    "beta_darts": {
        **COMMON,
        **OF_DARTS,
        **NB201,
        **SOFTMAX,
        "search.epochs": 100,
        "regulariser.beta_decay.weight.per_epoch": 0.5,
        "regulariser.beta_decay.weight.epochs": 100,
        "regulariser.beta_decay.weight.start": None,
    },
    "gaea": {
        **WEIGHTS,
        **BY_EPOCH,
        **OF_DARTS,
        **NB201,
        **SOFTMAX,
        "space.channels": 24,
        "arch_optim._target_": "ExponentiatedGradient",
        "arch_optim.lr": 0.1,
        "search.epochs": 25,
        "lr.epochs": 50,
        "search.one_level": True,
        "search.init_std": 0.0,
    },
    "retrain_gdas_cifar10": {
        "retrain.epochs": 300,
        "retrain.batch_size": 96,
        "retrain.lr.warmup_epochs": 5,
        "retrain.lr.end": 0.0,
        "retrain.optim.lr": 0.025,
        "retrain.optim.nesterov": True,
        "retrain.optim.weight_decay": 5e-4,
        "retrain.drop_path": 0.2,
        "retrain.drop_path_reached": False,
        "retrain.cutout": 16,
        "retrain.auxiliary_weight": 0.4,
        "retrain.network.channels": 36,
        "retrain.network.cells": 20,
        "retrain.network.auxiliary": True,
    },
    "retrain_darts_cifar10": {
        "retrain.epochs": 600,
        "retrain.lr._target_": "CosineByEpoch",
        "retrain.lr.end": 0.0,
        "retrain.optim.nesterov": False,
        "retrain.optim.weight_decay": 3e-4,
        "retrain.drop_path_reached": False,
    },
    "retrain_nb201_cifar10": {
        "retrain.epochs": 200,
        "retrain.batch_size": 256,
        "retrain.lr._target_": "CosineByEpoch",
        "retrain.lr.end": 0.0,
        "retrain.optim.lr": 0.1,
        "retrain.grad_clip": 0.0,
    },
}


def composed(*overrides):
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        cfg = compose("run", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return leaves(OmegaConf.to_container(cfg, resolve=True))


def named(settings):
    """Targets by the names of their classes, wherever these are."""
    return {name: v.rpartition(".")[2] if name.endswith("_target_") else v for name, v in settings.items()}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_a_preset_has_the_settings_of_its_authors(experiment):
    found = named(composed(f"experiment={experiment}"))
    assert {name: found.get(name) for name in PUBLISHED[experiment]} == PUBLISHED[experiment]


@pytest.mark.parametrize("experiment", [name for name in PUBLISHED if not name.startswith("retrain_")])
def test_a_preset_says_its_source_its_figure_and_what_deviates(experiment):
    text = (configuration.directory() / "experiment" / f"{experiment}.yaml").read_text()
    head = text.split("\ndefaults:")[0]
    assert head.startswith("# @package _global_\n")
    for part in (" et al. ", f"experiment={experiment} ", "# Published: ", "Deviates"):
        assert part.replace(" et al. ", " & Yang ") in head or part in head


@pytest.mark.parametrize(
    ("experiment", "sampler"),
    [
        ("darts_first_order", Softmax()),
        ("darts_second_order", Softmax()),
        ("pc_darts", Softmax()),
        ("dr_nas", Dirichlet()),
        ("beta_darts", Softmax()),
        ("gaea", Softmax()),
    ],
)
def test_nothing_is_missing_from_a_preset_but_from_its_method_alone(experiment, sampler):
    assert missing(sampler, composed(f"experiment={experiment}")) is None
    alone = {"pc_darts": "space.partial_channels=4", "darts_second_order": "searcher=second_order"}
    name = "dirichlet" if isinstance(sampler, Dirichlet) else "softmax"
    line = missing(sampler, composed("space=darts", f"sampler={name}", alone.get(experiment, f"sampler={name}")))
    assert "does not bring along" in line
