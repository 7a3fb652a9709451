"""Configuration: the schemas of the commands, where the YAML lives, and the one place that instantiates it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from nas.errors import ConfigError, NasError

# What `_target_` may name without being allowed explicitly.
TRUSTED = ("nas", "torch.optim", "torch.nn.functional")

# Parts of this project that act, on files, processes or other configurations, where a target is to build.
ACTING = (
    "atomic",
    "checkpoint",
    "cli",
    "config",
    "export",
    "fresh",
    "fresh_process",
    "reload",
    "run_directory",
    "stages",
)

# What a command line says of a resumption itself, and of whom it trusts: never read from what a run has left.
OWN = ("resume", "may_change", "allow_targets")


@dataclass
class SearchLoop:
    epochs: int = MISSING
    batch_size: int = MISSING
    weight_fraction: float = MISSING
    init_std: float = MISSING
    warmup_epochs: int = MISSING
    arch_every: int = MISSING
    arch_first: bool = MISSING
    gap_batches: int = MISSING


@dataclass
class Keep:
    """What networks of a space keep: how many edges of a group (None: all), and which candidates never."""

    count: int | None = MISSING
    exclude: list[str] = MISSING


@dataclass
class RetrainLoop:
    """optim, lr and policy are groups of their own, so they are left open here."""

    epochs: int = MISSING
    batch_size: int = MISSING
    accumulation: int = MISSING
    network: dict[str, Any] = field(default_factory=dict)
    grad_clip: float = MISSING
    cutout: int = MISSING
    drop_path: float = MISSING
    auxiliary_weight: float = MISSING
    label_smoothing: float = MISSING
    mixup: float = MISSING
    cutmix: float = MISSING
    average: float = MISSING
    optim: Any = MISSING
    lr: Any = MISSING
    policy: Any = MISSING


@dataclass
class RunConfig:
    """Of nas-run and nas-search; the groups are checked by the classes they name."""

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
    monitor: Any = MISSING
    deriver: Any = MISSING
    weight_optim: Any = MISSING
    arch_optim: Any = MISSING
    lr: Any = MISSING
    data: Any = MISSING
    task: Any = MISSING
    runtime: Any = MISSING
    tracker: Any = MISSING
    benchmark: Any = None
    formats: dict[str, Any] = field(default_factory=dict)
    saving: Any = MISSING
    resume: str | None = None
    may_change: list[str] = field(default_factory=list)
    experiment: Any = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class RetrainConfig(RunConfig):
    """Merged after what run.yaml chose, so that a None here would undo it."""

    benchmark: Any = MISSING
    genotype: str = MISSING


@dataclass
class TrainedConfig:
    """What nas-evaluate and nas-export share. data None: as the checkpoint says."""

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
    """One of checkpoint and genotype is None."""

    checkpoint: str | None = None
    genotype: str | None = None
    benchmark: Any = None
    latency: LatencyConfig = field(default_factory=LatencyConfig)


@dataclass
class ExportConfig(TrainedConfig):
    checkpoint: str = MISSING
    formats: dict[str, Any] = field(default_factory=dict)


def register_schemas() -> None:
    """Make the schemas known to Hydra under the names that the root YAML files use."""
    store = ConfigStore.instance()
    for name, schema in (
        ("run_schema", RunConfig),
        ("retrain_schema", RetrainConfig),
        ("evaluate_schema", EvaluateConfig),
        ("export_schema", ExportConfig),
    ):
        node = OmegaConf.structured(schema)
        if issubclass(schema, RunConfig):
            # Its keys are the fields of whatever space is chosen, so they cannot be listed in a schema.
            OmegaConf.set_struct(node.retrain.network, False)
        store.store(name, node)
    OmegaConf.register_new_resolver("nas.file_name", file_name, replace=True)
    # Likewise: the arguments of a factory are whatever it takes.
    node = OmegaConf.create({"arguments": {}})
    OmegaConf.set_struct(node.arguments, False)
    store.store("factory_schema", node)


def added(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Settings that no schema has: Hydra's ``+key=value`` adds them, and nothing would ever read them."""
    schema = OmegaConf.get_type(config)
    known = {one.name for one in fields(schema)} if schema is not None and is_dataclass(schema) else set(config)
    for key in map(str, config):
        if key not in known:
            yield prefix + key
        child = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from added(child, f"{prefix}{key}.")


def file_name(text: str) -> str:
    """The text itself. Raises ConfigError if it is not the name of one file: as a part of a path it would climb."""
    if not text.isprintable() or set(text) & set("/\\"):
        raise ConfigError(f"name must be a part of a file name, got {text!r}", fix="set name=my_run")
    return text


def directory() -> Path:
    """Where the YAML lives: inside the package in an installation, at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def build(node: Any, *, allow: Sequence[str] = (), **arguments: Any) -> Any:
    """Instantiate a configuration node, the one place that does.

    node: a config with ``_target_``. allow: package prefixes that may be named beside TRUSTED. arguments: passed to
    the target, or to the partial that ``_partial_: true`` makes of it. ``factory: my_package.my_model`` at any depth is
    short for ``factory: {_target_: my_package.my_model, _partial_: true}``.
    Raises ConfigError for a target that is not allowed, does not exist, or does not take the arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not OmegaConf.is_config(node) and not isinstance(node, dict):  # OmegaConf would read a string as YAML
        raise ConfigError(
            f"a {type(node).__name__} cannot be built, expected a group with a _target_", fix="see --cfg job"
        )
    node = node if OmegaConf.is_config(node) else OmegaConf.create(node)
    plain = spelt_out(OmegaConf.to_container(node, resolve=True, throw_on_missing=True))
    if "_target_" not in plain and not all(isinstance(child, dict) for child in plain.values()):
        raise ConfigError(
            f"a group that names no _target_ cannot be built, got {', '.join(map(str, plain))}",
            fix="choose one of its options, see --help",
        )
    for target in targets(plain):
        check_target(target, allow)
    node = OmegaConf.create(plain)
    try:
        built = instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, NasError):
            raise cause from None
        reason = str(cause or error).splitlines()[0]
        raise ConfigError(
            f"{OmegaConf.select(node, '_target_')} cannot be built: {reason}",
            fix="correct the arguments in its configuration group",
        ) from error
    if not arguments:
        return built
    try:
        return built(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{OmegaConf.select(node, '_target_')} refuses its arguments: {error}",
            fix="correct them in its configuration group, or choose another of its options",
        ) from error


def spelt_out(node: Any) -> Any:
    """A plain configuration with every factory that is just named as a ``_target_``."""
    if isinstance(node, dict):
        spelt = {key: spelt_out(child) for key, child in node.items()}
        if isinstance(spelt.get("factory"), str):
            spelt["factory"] = {"_target_": spelt["factory"], "_partial_": True}
        return spelt
    return [spelt_out(child) for child in node] if isinstance(node, list) else node


def allowed(config: DictConfig) -> list[str]:
    """The packages a command line trusts: those of ``allow_targets``, and those whose factories it names itself; not
    those of a run that is resumed, see `nas.cli.resume.resumed`."""
    if OmegaConf.select(config, "resume") is not None:
        return list(config.allow_targets)
    return trusted_by(config)


def trusted_by(config: DictConfig) -> list[str]:
    factories = (OmegaConf.select(config, f"{group}.factory") for group in ("space", "data"))
    return [*config.allow_targets, *(str(path).partition(".")[0] for path in factories if path is not None)]


def targets(node: Any) -> Iterator[Any]:
    """Every ``_target_`` in a plain configuration, at any depth."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


def check_target(target: Any, allow: Sequence[str] = ()) -> None:
    """Raises ConfigError unless `target` names something that is defined in an allowed package.

    The name alone does not tell: ``nas.atomic.os.remove`` begins with ``nas`` and is not ours. So what it resolves to
    has to say that it comes from there, too.
    """
    from hydra._internal.utils import _locate  # what instantiate() uses; the public get_object prints what it raises

    prefixes = (*TRUSTED, *allow)

    def inside(name: object) -> bool:
        return isinstance(name, str) and among(name, prefixes) and not among(name, [f"nas.{part}" for part in ACTING])

    if not inside(target):
        raise ConfigError(
            f"_target_ {target!r} is outside of the packages that may be built ({', '.join(prefixes)})",
            fix="if you trust it, add its package: allow_targets=[package]",
        )
    try:
        found = _locate(target)
    except Exception as error:  # importing a user's package runs it: whatever that raises is the reason
        reason = error.__cause__ or error
        raise ConfigError(
            f"_target_ {target!r} does not exist, or cannot be imported ({type(reason).__name__}: "
            f"{' '.join(str(reason).split())})",
            fix="correct the name; your own package has to be installed, or in the directory the command is started in",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"_target_ {target!r} is a {type(found).__name__}, expected a function or class",
            fix="add the name of what is to be called, as in package.module.function",
        )
    if not inside(getattr(found, "__module__", None)):
        raise ConfigError(
            f"_target_ {target!r} leads to {getattr(found, '__module__', 'something')}, outside of the packages that "
            f"may be built ({', '.join(prefixes)})",
            fix="name the object by the package that defines it, and allow that: allow_targets=[package]",
        )


def refuse_interpolations(node: Any, source: object) -> None:
    """Raises ConfigError for a ``${...}`` in a configuration that was read: what a run writes has none left, and one
    would be resolved here, with this machine's environment."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for setting, value in leaves(plain, lists=True).items():
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{source} has {setting}={str(value)[:60]}, expected a value, not what is to be resolved to one",
                fix="write the value itself",
            )


def to_yaml(config: DictConfig) -> str:
    """The configuration with every interpolation resolved."""
    return OmegaConf.to_yaml(config, resolve=True)


def to_plain(config: Any) -> Any:
    """The same as dicts, lists and scalars, for a checkpoint."""
    return OmegaConf.to_container(config, resolve=True)


def leaves(node: Any, prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Dotted name -> value, of a plain configuration; empty nodes are values, and lists are, unless they are to be
    gone through as well."""
    if lists and isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        name: value
        for key, child in node.items()
        for name, value in leaves(child, f"{prefix}.{key}" if prefix else str(key), lists=lists).items()
    }


def among(setting: str, names: Iterable[str]) -> bool:
    """Whether a setting is one of those named, or below one of them."""
    return any(setting == name or setting.startswith(f"{name}.") for name in names)
