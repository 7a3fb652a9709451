"""``resume=<run directory>``: the configuration to go on with."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.config import to_plain
from nas.errors import ConfigError, OutputError
from nas.run_directory import read_manifest

# What a command line says of the resumption itself, and of whom it trusts: never read from the directory.
OWN = ("resume", "may_change", "allow_targets")
COMPOSED = ("name",)  # of other settings


def has_finished(directory: Path) -> bool:
    """Raises OutputError if there is no run in the directory."""
    return bool(read_manifest(directory)["status"] == "finished")


def resumed(given: DictConfig, untouched: DictConfig) -> DictConfig:
    """The configuration of the run in ``given.resume``, with those changes of the command line that are allowed.

    given: what the command line composes; untouched: what the command composes without any override.
    Raises OutputError if there is no run; ConfigError, listing them, for settings that the command line changes from
    what the run was started with and that are not in ``given.may_change``, or are below one that is.
    """
    path = Path(given.resume) / "config.yaml"
    try:
        stored = OmegaConf.load(path)
    except Exception as error:  # OmegaConf lets YAML's errors through, of which there are many
        raise OutputError(
            f"{path} cannot be read ({type(error).__name__})", fix="give the directory that a run left"
        ) from error
    if not isinstance(stored, DictConfig):
        raise OutputError(f"{path} is not a configuration", fix="give the directory that a run left")
    before, now, default = (leaves(to_plain(config)) for config in (stored, given, untouched))
    changed = {
        setting: value
        for setting, value in now.items()
        if value != default.get(setting)
        and value != before.get(setting)
        and setting.split(".")[0] not in (*OWN, *COMPOSED)
    }
    may = tuple(given.may_change)
    refused = [s for s in changed if not any(s == one or s.startswith(f"{one}.") for one in may)]
    if refused:
        differences = ", ".join(f"{s}={changed[s]} (was {before.get(s)})" for s in refused)
        raise ConfigError(
            f"the run in {given.resume} was started with another configuration: {differences}",
            fix=f"leave it out, or allow it: may_change=[{','.join(refused)}]",
        )
    for setting, value in changed.items():
        OmegaConf.update(stored, setting, value, force_add=True)
    for setting in OWN:
        stored[setting] = given[setting]
    return stored


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of a plain configuration; lists and empty nodes are values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        name: value
        for key, child in node.items()
        for name, value in leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
