"""The settings of the commands, as schemas."""

import os.path
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from nas.errors import ConfigError


@dataclass
class SearchLoop:
    epochs: int = MISSING
    batch_size: int = MISSING
    weight_fraction: float = MISSING
    one_level: bool = MISSING
    init_std: float = MISSING
    warmup_epochs: int = MISSING
    arch_every: int = MISSING
    arch_first: bool = MISSING
    gap_batches: int = MISSING


@dataclass
class Keep:
    """The number of edges that a derived network keeps of a group (None: all), and the excluded candidates."""

    count: int | None = MISSING
    exclude: list[str] = MISSING


@dataclass
class Cap:
    """The most that the derived network may have: a number, or several for several networks; None for no cap."""

    parameters: Any = None
    macs: Any = None
    bytes: Any = None
    latency_ms: Any = None


@dataclass
class RetrainLoop:
    """The settings of retraining. optim, lr and policy are groups of their own, so any value is accepted here."""

    epochs: int = MISSING
    batch_size: int = MISSING
    accumulation: int = MISSING
    network: dict[str, Any] = field(default_factory=dict)
    grad_clip: float = MISSING
    cutout: int = MISSING
    drop_path: float = MISSING
    drop_path_reached: bool = MISSING
    auxiliary_weight: float = MISSING
    label_smoothing: float = MISSING
    mixup: float = MISSING
    cutmix: float = MISSING
    average: float = MISSING
    validation: float | None = None
    start: str | None = None
    optim: Any = MISSING
    lr: Any = MISSING
    policy: Any = MISSING


@dataclass
class RunConfig:
    """The settings of nas-run and nas-search. The classes that the groups name check the groups."""

    seed: int = MISSING
    name: str = MISSING
    search: SearchLoop = field(default_factory=SearchLoop)
    retrain: RetrainLoop = field(default_factory=RetrainLoop)
    space: Any = MISSING
    ops: Any = MISSING
    keep: Keep = field(default_factory=Keep)
    sampler: Any = MISSING
    temperature: Any = MISSING
    searcher: Any = MISSING
    regulariser: Any = MISSING
    cap: Cap = field(default_factory=Cap)
    monitor: Any = MISSING
    deriver: Any = MISSING
    weight_optim: Any = MISSING
    arch_optim: Any = MISSING
    lr: Any = MISSING
    data: Any = MISSING
    task: Any = MISSING
    teacher: Any = None
    runtime: Any = MISSING
    tracker: Any = MISSING
    benchmark: Any = None
    formats: dict[str, Any] = field(default_factory=dict)
    saving: Any = MISSING
    resume: str | None = None
    may_change: list[str] = field(default_factory=list)
    lock: bool = True
    objective: Any = None
    retry_failed: bool = False
    dry_run: bool = False
    experiment: Any = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class RetrainConfig(RunConfig):
    """The settings of nas-retrain. Merged after run.yaml, so it is registered without values: see `without_values`."""

    genotype: str = MISSING


@dataclass
class TrainedConfig:
    """The common settings of nas-evaluate and nas-export. data: None for the data set of the checkpoint."""

    name: str = MISSING
    batch_size: int = MISSING
    data: Any = None
    runtime: Any = MISSING
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class LatencyConfig:
    batches: list[int] = MISSING
    seconds: float = MISSING


@dataclass
class EvaluateConfig(TrainedConfig):
    """The settings of nas-evaluate. Either checkpoint or genotype is None."""

    checkpoint: str | None = None
    genotype: str | None = None
    benchmark: Any = None
    latency: LatencyConfig = field(default_factory=LatencyConfig)


@dataclass
class ExportConfig(TrainedConfig):
    checkpoint: str = MISSING
    formats: dict[str, Any] = field(default_factory=dict)


@dataclass
class DrawConfig:
    """The settings of nas-draw."""

    genotype: str = MISSING
    out: str = MISSING
    name: str = MISSING
    theme: str = MISSING
    stacked: bool = MISSING
    benchmark: Any = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class PredictConfig:
    """The settings of nas-predict. images: a text or a list of texts."""

    export: str = MISSING
    images: Any = MISSING
    out: str | None = None
    top: int = MISSING
    batch_size: int = MISSING
    device: str = MISSING
    name: str = MISSING
    allow_targets: list[str] = field(default_factory=list)


class Shared(dict[str, Any]):
    """The content of Hydra's ConfigStore. Copies are the same object.

    Hydra copies the whole store for every composition, and for every group of a ``--help``, although reading from the
    store copies what is read.
    """

    def __deepcopy__(self, memo: Any) -> "Shared":
        return self


def without_values(node: DictConfig) -> None:
    """Leaves only the types of a schema, in place. A value would replace what recipes and presets have chosen."""
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            without_values(child)
        else:
            node[key] = MISSING


def register_schemas() -> None:
    """Registers the schemas with Hydra under the names that the root YAML files use."""
    OmegaConf.register_new_resolver("nas.file_name", file_name, replace=True)
    OmegaConf.register_new_resolver("nas.runs", runs, replace=True)
    store = ConfigStore.instance()
    if isinstance(store.repo, Shared):
        return
    store.repo = Shared(store.repo)
    for name, schema in (
        ("run_schema", RunConfig),
        ("retrain_schema", RetrainConfig),
        ("evaluate_schema", EvaluateConfig),
        ("export_schema", ExportConfig),
        ("draw_schema", DrawConfig),
        ("predict_schema", PredictConfig),
    ):
        node = OmegaConf.structured(schema)
        if issubclass(schema, RunConfig):
            # The keys are the fields of the chosen space, so a schema cannot list them.
            OmegaConf.set_struct(node.retrain.network, False)
        if schema is RetrainConfig:
            without_values(node)
        store.store(name, node)
    # The same holds for the arguments of a factory, the places of the space `inserted`, and a teacher's features.
    for name, keys in (
        ("factory_schema", ("arguments",)),
        ("inserted_schema", ("arguments", "places")),
        ("teacher_schema", ("arguments", "features")),
    ):
        node = OmegaConf.create({key: {} for key in keys})
        for key in keys:
            OmegaConf.set_struct(node[key], False)
        store.store(name, node)


def added(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yields settings that no schema has. Hydra's ``+key=value`` adds them, and no code reads them."""
    schema = OmegaConf.get_type(config)
    known = (
        {one.name for one in fields(schema)} if schema is not None and is_dataclass(schema) else set(map(str, config))
    )
    for key in map(str, config):
        if key not in known:
            yield prefix + key
        child = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from added(child, f"{prefix}{key}.")


def runs() -> str:
    """Returns where runs get directories of their own: $NAS_RUNS, or ``runs`` if that is not set, or empty."""
    return os.path.expanduser(os.environ.get("NAS_RUNS") or "runs")


def file_name(text: str) -> str:
    """Returns the text. Raises ConfigError if it is not the name of one file, e.g. if it leads to another directory."""
    if not text.isprintable() or set(text) & set("/\\"):
        raise ConfigError(f"name must be a part of a file name, got {text!r}", fix="set name=my_run")
    return text
