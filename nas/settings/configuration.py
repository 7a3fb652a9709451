"""Finds the YAML files, and builds objects from configurations."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from nas.errors import ConfigError, OutputError
from nas.settings.allowed_targets import Allowed
from nas.settings.building import construct
from nas.settings.dotted import leaves
from nas.settings.names import to_names, to_targets
from nas.untrusted import plain_data, regular_file

SIZE_LIMIT = 250_000  # bytes of a run's config.yaml, read in a second; one takes about eight thousand


def directory() -> Path:
    """Returns the directory of the YAML files: inside the package in an installation, at the top of a checkout."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def build(node: Any, *, allow: Allowed = (), **arguments: Any) -> Any:
    """Returns the object of a configuration node of the command line.

    Descriptions from a file are built by `building.built` instead.
    node: a config with ``_target_``. allow: what may be named beside what `names` lists. arguments: passed to the
    target, or to the partial that ``_partial_: true`` makes of it. ``factory: my_package.my_model`` at any depth is
    short for ``factory: {_target_: my_package.my_model, _partial_: true}``. The same holds for the functions of a task.
    Raises ConfigError for a target that is not allowed, does not exist, or does not take the arguments.
    """
    if not OmegaConf.is_config(node) and not isinstance(node, dict):  # OmegaConf would read a string as YAML
        raise ConfigError(
            f"a {type(node).__name__} cannot be built, expected a group with a _target_", fix="see --cfg job"
        )
    node = node if OmegaConf.is_config(node) else OmegaConf.create(node)
    # Resolved once, and never given to OmegaConf again, which would then resolve an escaped interpolation.
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if not isinstance(plain, dict) or (
        "_target_" not in plain and (not plain or not all(isinstance(c, dict) for c in plain.values()))
    ):
        raise ConfigError(
            f"a group that names no _target_ cannot be built, got {', '.join(map(str, plain or []))}",
            fix="choose one of its options, see --help",
        )
    return construct(plain, allow=allow, where=node._get_full_key(None), arguments=arguments)


def build_each(group: DictConfig, *, allow: Allowed = ()) -> dict[str, Any]:
    """Returns the objects of a group of which several options can be chosen, by their names. Raises as `build` does."""
    if "_target_" in group:  # an option of the user's own, most likely
        name = group._get_full_key(None)
        raise ConfigError(
            f"an option of {name} sets the whole group, expected one entry of it",
            fix=f"begin my_{name}.yaml with the line `# @package {name}.my_{name}`",
        )
    return {str(name): build(node, allow=allow) for name, node in group.items()}


def to_yaml(config: DictConfig) -> str:
    """Returns the text of config.yaml: every interpolation is resolved, and names replace targets."""
    text: str = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=False, width=120)
    return text


def to_plain(config: Any, group: str | None = None) -> Any:
    """Returns the configuration as dicts, lists and scalars, for a checkpoint. group: as in `to_names`."""
    return to_names(OmegaConf.to_container(config, resolve=True), group)


def read_yaml(path: Path) -> DictConfig:
    """Reads a file that `to_yaml` wrote, or that anybody may have written, with targets and nothing to resolve.

    Raises OutputError if the file cannot be read, ConfigError if it has something that a run does not write. Its import
    paths are checked when something is built from them.
    """
    fix = "give the directory that a run left"
    try:
        plain = plain_data.from_yaml(regular_file.read(path, limit=SIZE_LIMIT))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be read ({reason})", fix=fix) from error
    if not isinstance(plain, dict):
        raise OutputError(f"{path} is not a configuration", fix=fix)
    return from_plain(plain, path)


def from_plain(plain: dict[str, Any], source: object) -> DictConfig:
    """The inverse of `to_plain`, for data from a file. Raises ConfigError for what a run does not write."""
    refuse_interpolations(plain, source)
    config: DictConfig = OmegaConf.create(to_targets(plain, source=source))
    return config


def refuse_interpolations(plain: Any, source: object) -> None:
    """Raises ConfigError for a ``${...}``, which OmegaConf would resolve with this machine's environment.

    The configuration of a run has none left.
    """
    for setting, value in leaves(plain, lists=True).items():
        if "${" in f"{setting}{value}":
            raise ConfigError(
                f"{source} has {setting[:60]}={str(value)[:60]}, expected a value, not an interpolation",
                fix="write the value itself",
            )
