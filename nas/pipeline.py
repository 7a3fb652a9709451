"""The stages of the main job, from configuration to files.

A stage checks and builds all it can in its constructor, and writes only in `run`: so whatever is wrong with a
configuration is found before the run's directory exists, and not after the hours of the stage before.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from nas import atomic, checkpoint
from nas.arch import ArchParams
from nas.benchmark import NasBench201Table
from nas.choice import check_chosen
from nas.config import allowed, build, to_plain, to_yaml
from nas.data.bundle import DataBundle
from nas.data.inputs import Inputs, each, mapped
from nas.data.loader import Loader
from nas.data.spec import DataSpec
from nas.errors import ConfigError, DataError, SpaceError
from nas.evaluate import count_macs, count_parameters, score
from nas.export import export
from nas.genotype import Genotype
from nas.progress import Progress
from nas.retrain import RetrainState, retrain
from nas.run_directory import RunDirectory, command_line
from nas.runtime import Runtime, derived_seed
from nas.schedule import Linear, positive
from nas.search import Order, SearchState, search
from nas.shapes import check_shapes
from nas.spaces.space import Space
from nas.task import Task
from nas.tracker import JsonLines

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Setup:
    """What every stage of a run shares."""

    cfg: DictConfig
    runtime: Runtime
    space: Space
    benchmark: NasBench201Table | None
    task: Task
    data: DataBundle

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Setup":
        allow = allowed(cfg)
        runtime: Runtime = build(cfg.runtime, allow=allow)
        space: Space = build(cfg.space, allow=allow)
        task: Task = build(cfg.task, allow=allow)
        return cls(cfg, runtime, space, open_benchmark(cfg), task, build(cfg.data, allow=allow).load())

    def build(self, node: Any, **arguments: Any) -> Any:
        return build(node, allow=allowed(self.cfg), **arguments)

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


def two_examples(loader: Loader) -> tuple[Inputs, Tensor]:
    """The first two of an epoch, or the only one: enough to see whether everything fits."""
    inputs, targets = next(loader.epoch(0))
    return mapped(lambda tensor: tensor[:2], inputs), targets[:2]


def check_outputs(outputs: Any, targets: Tensor, setup: Setup) -> None:
    """Raises SpaceError or DataError unless what the model returned suits the task."""
    if not isinstance(outputs, Tensor):
        raise SpaceError(
            f"the model returns a {type(outputs).__name__}, expected one tensor",
            fix="return the tensor that the loss is to be computed of",
        )
    setup.task.check(outputs, targets, setup.data.spec)


class SearchStage:
    """Search and derive: leaves ``search/checkpoint.pt`` and ``genotype.json`` after every epoch."""

    def __init__(self, setup: Setup) -> None:
        cfg, seed = setup.cfg, setup.cfg.seed
        at_least(1, search__epochs=cfg.search.epochs, search__arch_every=cfg.search.arch_every)
        at_least(0, search__init_std=cfg.search.init_std, search__warmup_epochs=cfg.search.warmup_epochs)
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
            task=setup.task,
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
        inputs, targets = two_examples(self.arch_loader)
        check_outputs(check_shapes(supernet, inputs), targets, setup)
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

        with Progress("search", cfg.search.epochs, metric=self.setup.task.metric) as bar:
            return search(
                self.state,
                searcher=self.searcher,
                weight_loader=self.weight_loader,
                arch_loader=self.arch_loader,
                epochs=cfg.search.epochs,
                temperature=self.temperature,
                lr=self.lr,
                order=Order(
                    warmup_epochs=cfg.search.warmup_epochs,
                    arch_every=cfg.search.arch_every,
                    arch_first=cfg.search.arch_first,
                ),
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
        """Of the genotype's network at the size it would be retrained in."""
        with self.retrained_space.sketching():
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
            augment=setup.data.with_cutout(cfg.cutout),
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
        """Raises GenotypeError unless the genotype is of this stage's space, SpaceError if its network does not suit
        the data and the task."""
        self.space.check(genotype)
        check_chosen(genotype.choices, self.options)
        network = self.setup.runtime.place(self.space.network(self.setup.data.spec, genotype)).eval()
        inputs, targets = two_examples(self.loader)
        with torch.no_grad():
            check_outputs(network(*each(inputs)), targets, self.setup)

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

        with Progress("retrain", cfg.retrain.epochs, metric=setup.task.metric) as bar:
            retrain(
                RetrainState(network, self.optimizer(network)),
                task=setup.task,
                loader=self.loader,
                epochs=cfg.retrain.epochs,
                lr=self.lr,
                drop_path=Linear(0.0, cfg.retrain.drop_path),
                auxiliary_weight=cfg.retrain.auxiliary_weight,
                grad_clip=cfg.retrain.grad_clip,
                bar=bar,
                on_epoch=on_epoch,
            )
        return Trained(network.eval(), genotype, setup.data.spec, setup.task, to_plain(cfg))


@dataclass(frozen=True)
class Trained:
    """A retrained network and what it takes to use it, as its checkpoint holds them."""

    network: nn.Module
    genotype: Genotype
    spec: DataSpec
    task: Task
    config: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, *, allow: list[str], runtime: Runtime) -> "Trained":
        """Raises CheckpointError; ConfigError if the checkpoint names targets outside of the allowed packages."""
        state = checkpoint.load(path, "retrain")
        config, spec = state["config"], DataSpec.from_dict(state["data"])
        genotype = Genotype.from_dict(state["genotype"], source=f"the genotype in {path}")
        space: Space = build(config["space"], allow=allow)
        task: Task = build(config["task"], allow=allow)
        network = space.resized(config["retrain"]["network"]).network(spec, genotype)
        checkpoint.restore(network, state["network"], source=path)
        return cls(runtime.place(network).eval(), genotype, spec, task, config)


def scoring_loader(trained: Trained, data: DataBundle, runtime: Runtime, batch_size: int = EVALUATION_BATCH) -> Loader:
    """The test split as the network wants it: not augmented, images normalised with the constants of its training.

    Raises DataError if the data are not of the kind that the network was trained on.
    """
    for what, expected in trained.spec.must_match.items():
        got = data.spec.must_match.get(what)
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
    tested, metric = score(trained.network, loader, trained.task), trained.task.metric
    return {
        f"test_{metric.name}": tested.metric,
        "test_loss": tested.loss,
        "test_examples": tested.examples,
        "metric": asdict(metric),
        "parameters": count_parameters(trained.network),
        "macs": count_macs(trained.network, trained.spec),
        "data": trained.spec.name,
        "genotype": trained.genotype.to_dict(),
    }


def objective(result: dict[str, Any]) -> float:
    """What a sweeper is given of a result: the task's metric on the test split."""
    return float(result[f"test_{result['metric']['name']}"])


def export_trained(trained: Trained, loader: Loader, directory: Path, result: dict[str, Any]) -> dict[str, Path]:
    """Export, checked on the first examples of the loader."""
    inputs, _ = next(loader.epoch(0))
    return export(
        trained.network,
        spec=trained.spec,
        task=trained.task,
        genotype=trained.genotype,
        inputs=mapped(lambda tensor: tensor[:16], inputs),
        directory=directory,
        results=result,
    )


def open_trained(cfg: DictConfig) -> tuple[Trained, Loader]:
    """The network of ``cfg.checkpoint`` and the test split it is to be scored on."""
    allow = list(cfg.allow_targets)
    runtime: Runtime = build(cfg.runtime, allow=allow)
    runtime.start(seed=0)
    trained = Trained.load(cfg.checkpoint, allow=allow, runtime=runtime)
    # A checkpoint comes from anywhere: the factories it names are not trusted as those of the command line are.
    data = build(trained.config["data"], allow=allow) if cfg.data is None else build(cfg.data, allow=allowed(cfg))
    loader = scoring_loader(trained, data.load(), runtime, cfg.batch_size)
    return trained, loader
