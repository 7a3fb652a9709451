"""Configuration: where the YAML lives, and the one place that instantiates it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.errors import ConfigError, NasError
from nas.signatures import typed
from nas.trust import check_target, targets


def directory() -> Path:
    """Where the YAML lives: inside the package in an installation, at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def build(node: Any, *, allow: Sequence[str] = (), **arguments: Any) -> Any:
    """Instantiate a configuration node, the one place that does.

    node: a config with ``_target_``. allow: package prefixes that may be named beside TRUSTED. arguments: passed to
    the target, or to the partial that ``_partial_: true`` makes of it. ``factory: my_package.my_model`` at any depth is
    short for ``factory: {_target_: my_package.my_model, _partial_: true}``; likewise the functions of a task.
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
    node = OmegaConf.create(typed(plain, where=node._get_full_key(None)))
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
        of_task = ("loss", "metric", "weight") if {"loss", "metric"} <= spelt.keys() else ()
        for name in ("factory", *of_task):
            if isinstance(spelt.get(name), str):
                spelt[name] = {"_target_": spelt[name], "_partial_": True}
        return spelt
    return [spelt_out(child) for child in node] if isinstance(node, list) else node


def to_yaml(config: DictConfig) -> str:
    """The configuration with every interpolation resolved."""
    return OmegaConf.to_yaml(config, resolve=True)


def to_plain(config: Any) -> Any:
    """The same as dicts, lists and scalars, for a checkpoint."""
    return OmegaConf.to_container(config, resolve=True)
