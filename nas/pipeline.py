"""The stages of the main job, from configuration to files.

A stage checks and builds all it can in its constructor, and writes only in `run`: so whatever is wrong with a
configuration is found before the run's directory exists, and not after the hours of the stage before.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from nas import atomic, checkpoint
from nas.arch import ArchParams
from nas.benchmark import NasBench201Table
from nas.choice import check_chosen
from nas.config import build, to_plain, to_yaml
from nas.data.bundle import DataBundle, DataSpec
from nas.data.loader import Loader
from nas.errors import ConfigError, DataError
from nas.evaluate import count_macs, count_parameters, score
from nas.export import export
from nas.genotype import Genotype
from nas.progress import Progress
from nas.retrain import RetrainState, retrain
from nas.run_directory import RunDirectory, command_line
from nas.runtime import Runtime, derived_seed
from nas.schedule import Linear, positive
from nas.search import SearchState, search
from nas.spaces.space import Space
from nas.tracker import JsonLines

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Setup:
    """What every stage of a run shares."""

    cfg: DictConfig
    runtime: Runtime
    space: Space
    benchmark: NasBench201Table | None
    data: DataBundle

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Setup":
        allow = list(cfg.allow_targets)
        runtime: Runtime = build(cfg.runtime, allow=allow)
        space: Space = build(cfg.space, allow=allow)
        return cls(cfg, runtime, space, open_benchmark(cfg), build(cfg.data, allow=allow).load())

    def build(self, node: Any, **arguments: Any) -> Any:
        return build(node, allow=list(self.cfg.allow_targets), **arguments)

    def open(self, directory: Path) -> RunDirectory:
        return RunDirectory(
            directory,
            config=to_yaml(self.cfg),
            command=command_line(),
            seed=self.cfg.seed,
            runtime=self.runtime,
        )

    def track(self, out: RunDirectory) -> JsonLines:
        tracker: JsonLines = self.build(self.cfg.tracker, directory=out.path)
        return tracker


def open_benchmark(cfg: DictConfig) -> NasBench201Table | None:
    """The table of the group ``benchmark``, if one was chosen."""
    if cfg.benchmark is None:
        return None
    table: NasBench201Table = build(cfg.benchmark, allow=list(cfg.allow_targets))
    return table


def at_least(minimum: float, **settings: float) -> None:
    """Raises ConfigError unless every setting (``a__b`` for a.b) is >= minimum."""
    for name, value in settings.items():
        if not value >= minimum:
            dotted = name.replace("__", ".")
            raise ConfigError(f"{dotted} must be at least {minimum:g}, got {value}", fix=f"set {dotted}={minimum:g}")


class SearchStage:
    """Search and derive: leaves ``search/checkpoint.pt`` and ``genotype.json`` after every epoch."""

    def __init__(self, setup: Setup) -> None:
        cfg, seed = setup.cfg, setup.cfg.seed
        at_least(1, search__epochs=cfg.search.epochs)
        at_least(0, search__init_std=cfg.search.init_std)
        self.setup = setup
        self.temperature = positive(setup.build(cfg.temperature), "temperature")
        self.deriver = setup.build(cfg.deriver)

        setup.runtime.start(seed)
        self.generator = torch.Generator().manual_seed(derived_seed(seed, "gates"))
        supernet = setup.runtime.place(setup.space.supernet(setup.data.spec))
        arch = ArchParams.from_model(supernet, init_std=cfg.search.init_std, generator=self.generator)
        arch.to(setup.runtime.device)
        self.state = SearchState(
            supernet=supernet,
            arch=arch,
            weight_optim=setup.build(cfg.weight_optim, params=supernet.parameters()),
            arch_optim=setup.build(cfg.arch_optim, params=arch.parameters()),
            generator=self.generator,
        )
        self.lr = setup.build(cfg.lr, start=self.state.weight_optim.param_groups[0]["lr"])
        self.searcher = setup.build(
            cfg.searcher,
            supernet=supernet,
            arch=arch,
            sampler=setup.build(cfg.sampler),
            weight_optim=self.state.weight_optim,
            arch_optim=self.state.arch_optim,
            generator=self.generator,
        )
        splits = setup.data.search_splits(weight_fraction=cfg.search.weight_fraction, seed=seed)
        self.weight_loader, self.arch_loader = (
            Loader(
                split,
                spec=setup.data.spec,
                batch_size=cfg.search.batch_size,
                device=setup.runtime.device,
                seed=derived_seed(seed, f"{level} batches"),
                augment=setup.data.augment,
                shuffle=True,
                drop_last=True,
                what="search.batch_size",
            )
            for split, level in zip(splits, ("weight", "architecture"), strict=True)
        )
        self.retrained_space = setup.space.resized(cfg.retrain.network)
        if setup.benchmark is not None:
            setup.benchmark.check(setup.space.options(setup.data.spec))
        # A deriver that does not suit the space, or the benchmark, is found now, not after the first epoch.
        self.measure(Genotype(setup.space.name, self.deriver(arch)))

    def run(self, out: RunDirectory, tracker: JsonLines) -> Genotype:
        cfg = self.setup.cfg
        path = out.subdirectory("search") / "checkpoint.pt"

        def on_epoch(state: SearchState, metrics: dict[str, float]) -> None:
            assert state.genotype is not None  # derived every epoch
            tracker.log("search", state.epoch - 1, metrics)
            atomic.write_text(out.path / "genotype.json", state.genotype.to_json())
            checkpoint.save(path, "search", {"config": to_plain(cfg), **state.state_dict()})

        with Progress("search", cfg.search.epochs) as bar:
            return search(
                self.state,
                searcher=self.searcher,
                weight_loader=self.weight_loader,
                arch_loader=self.arch_loader,
                epochs=cfg.search.epochs,
                temperature=self.temperature,
                lr=self.lr,
                deriver=self.deriver,
                space_name=self.setup.space.name,
                measure=self.measure,
                bar=bar,
                on_epoch=on_epoch,
            )

    def measure(self, genotype: Genotype) -> dict[str, float]:
        """What is logged of a derived genotype: its size, and what the benchmark knows of it."""
        benchmark = self.setup.benchmark
        return {
            "derived_parameters": self.derived_parameters(genotype),
            **({} if benchmark is None else benchmark.metrics(genotype)),
        }

    def derived_parameters(self, genotype: Genotype) -> int:
        """Of the genotype's network at the size it would be retrained in; built without storage."""
        with torch.device("meta"):
            return count_parameters(self.retrained_space.network(self.setup.data.spec, genotype))


class RetrainStage:
    """Train the network of a genotype from scratch: leaves ``retrain/checkpoint.pt`` after every epoch."""

    def __init__(self, setup: Setup) -> None:
        cfg = setup.cfg.retrain
        at_least(1, retrain__epochs=cfg.epochs)
        at_least(
            0,
            retrain__grad_clip=cfg.grad_clip,
            retrain__cutout=cfg.cutout,
            retrain__drop_path=cfg.drop_path,
            retrain__auxiliary_weight=cfg.auxiliary_weight,
        )
        if not cfg.drop_path < 1:
            raise ConfigError(
                f"retrain.drop_path must be below 1, got {cfg.drop_path}", fix="set retrain.drop_path=0.2"
            )
        self.setup = setup
        self.space = setup.space.resized(cfg.network)
        self.loader = Loader(
            setup.data.train,
            spec=setup.data.spec,
            batch_size=cfg.batch_size,
            device=setup.runtime.device,
            seed=derived_seed(setup.cfg.seed, "retrain batches"),
            augment=replace(setup.data.augment, cutout=cfg.cutout),
            shuffle=True,
            drop_last=True,
            what="retrain.batch_size",
        )
        # The real optimiser needs the network, which may only be known after a search: a mistake shows on this one.
        probe = self.optimizer(nn.Linear(1, 1))
        self.lr = setup.build(cfg.lr, start=probe.param_groups[0]["lr"])
        self.options = self.space.options(setup.data.spec)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.setup.build(self.setup.cfg.retrain.optim, params=network.parameters())
        return optimizer

    def check(self, genotype: Genotype) -> None:
        """Raises GenotypeError unless the genotype is of this stage's space."""
        self.space.check(genotype)
        check_chosen(genotype.choices, self.options)

    def run(self, genotype: Genotype, out: RunDirectory, tracker: JsonLines) -> "Trained":
        cfg, setup = self.setup.cfg, self.setup
        path = out.subdirectory("retrain") / "checkpoint.pt"
        setup.runtime.start(cfg.seed)  # so that the stage gives the same whether or not a search came before it
        network = setup.runtime.place(self.space.network(setup.data.spec, genotype))

        def on_epoch(state: RetrainState, metrics: dict[str, float]) -> None:
            tracker.log("retrain", state.epoch - 1, metrics)
            checkpoint.save(
                path,
                "retrain",
                {
                    "config": to_plain(cfg),
                    "genotype": genotype.to_dict(),
                    "data": setup.data.spec.to_dict(),
                    **state.state_dict(),
                },
            )

        with Progress("retrain", cfg.retrain.epochs) as bar:
            retrain(
                RetrainState(network, self.optimizer(network)),
                loader=self.loader,
                epochs=cfg.retrain.epochs,
                lr=self.lr,
                drop_path=Linear(0.0, cfg.retrain.drop_path),
                auxiliary_weight=cfg.retrain.auxiliary_weight,
                grad_clip=cfg.retrain.grad_clip,
                bar=bar,
                on_epoch=on_epoch,
            )
        return Trained(network.eval(), genotype, setup.data.spec, to_plain(cfg))


@dataclass(frozen=True)
class Trained:
    """A retrained network and what it takes to use it, as its checkpoint holds them."""

    network: nn.Module
    genotype: Genotype
    spec: DataSpec
    config: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, *, allow: list[str], runtime: Runtime) -> "Trained":
        """Raises CheckpointError; ConfigError if the checkpoint names targets outside of the allowed packages."""
        state = checkpoint.load(path, "retrain")
        config, spec = state["config"], DataSpec.from_dict(state["data"])
        genotype = Genotype.from_dict(state["genotype"], source=f"the genotype in {path}")
        space: Space = build(config["space"], allow=allow)
        network = space.resized(config["retrain"]["network"]).network(spec, genotype)
        checkpoint.restore(network, state["network"], source=path)
        return cls(runtime.place(network).eval(), genotype, spec, config)


def scoring_loader(trained: Trained, data: DataBundle, runtime: Runtime, batch_size: int = EVALUATION_BATCH) -> Loader:
    """The test split as the network wants it: not augmented, normalised with the constants it was trained with.

    Raises DataError if the data are not of the kind that the network was trained on.
    """
    for what, got, expected in (
        ("channels", data.spec.channels, trained.spec.channels),
        ("classes", data.spec.class_names, trained.spec.class_names),
    ):
        if got != expected:
            raise DataError(
                f"the data set {data.spec.name} has {what} {got}, expected {expected} as in training",
                fix="choose the data set that the network was trained on, or one with the same classes",
            )
    return Loader(
        data.test,
        spec=trained.spec,
        batch_size=batch_size,
        device=runtime.device,
        shuffle=False,
        drop_last=False,
        what="batch_size",
    )


def final_result(trained: Trained, loader: Loader) -> dict[str, Any]:
    """What ``result.json`` holds: the score on the test split, and the network's size."""
    tested = score(trained.network, loader)
    return {
        "test_accuracy": tested.accuracy,
        "test_loss": tested.loss,
        "test_images": tested.images,
        "parameters": count_parameters(trained.network),
        "macs": count_macs(trained.network, trained.spec),
        "data": trained.spec.name,
        "genotype": trained.genotype.to_dict(),
    }


def export_trained(trained: Trained, loader: Loader, directory: Path, result: dict[str, Any]) -> dict[str, Path]:
    """Export, checked on the first images of the loader."""
    images, _ = next(iter(loader.epoch(0)))
    return export(
        trained.network,
        spec=trained.spec,
        genotype=trained.genotype,
        images=images[:16],
        directory=directory,
        results=result,
    )


def open_trained(cfg: DictConfig) -> tuple[Trained, Loader]:
    """The network of ``cfg.checkpoint`` and the test split it is to be scored on."""
    allow = list(cfg.allow_targets)
    runtime: Runtime = build(cfg.runtime, allow=allow)
    runtime.start(seed=0)
    trained = Trained.load(cfg.checkpoint, allow=allow, runtime=runtime)
    data: DataBundle = build(trained.config["data"] if cfg.data is None else cfg.data, allow=allow).load()
    return trained, scoring_loader(trained, data, runtime, cfg.batch_size)
