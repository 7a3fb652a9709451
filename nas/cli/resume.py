"""``resume=<run directory>``: the configuration of a run that continues."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas.cli import torchrun
from nas.cli.stages.setup import Setup
from nas.errors import ConfigError, GenotypeError, described
from nas.settings.allowed_targets import trusted_by
from nas.settings.configuration import read_yaml, to_plain
from nas.settings.dotted import FETCH, LINKS, OWN, PLACES, among, leaves
from nas.settings.names import NAME, TARGET
from nas.spaces.published import resolve
from nas.storage.command_line import choice
from nas.storage.run_directory import MANIFEST, check_processes, read_manifest
from nas.supernet.genotype import Genotype
from nas.training.inheritance import SCRATCH
from nas.untrusted import plain_data

COMMANDS = ("nas-search", "nas-retrain", "nas-run")


def has_finished(directory: Path) -> bool:
    """Says whether the run has finished. Raises OutputError if the directory holds no run."""
    return bool(read_manifest(directory)["status"] == "finished")


def resumed(given: DictConfig, untouched: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of the run in ``given.resume``, with the changes of the command line that are allowed.

    given: the configuration that the command line composes. untouched: the same without any override. overrides: of the
    command line; one of them may ask for a default where the run had another value.
    Raises OutputError if there is no run. Raises ConfigError, with a list, if the command line changes settings of the
    run that ``given.may_change`` does not name, or if the number of processes differs. Raises GenotypeError for another
    genotype.
    """
    stored = stored_settings(given)
    check_processes(read_manifest(Path(given.resume)), torchrun.started(), may_change=given.may_change)
    before, now, default = map(settings_of, (stored, given, untouched))
    named = [override.partition("=")[0].lstrip("+~").rpartition("@")[2].replace("/", ".") for override in overrides]
    named = [name.replace(TARGET, NAME) for name in named]
    changed = {
        setting: value
        for setting, value in now.items()
        if value != before.get(setting)
        and (value != default.get(setting) or among(setting, named))
        and not among(setting, (*OWN, FETCH, LINKS, "name"))  # which is made of other settings
    }
    may = (*PLACES, *same_genotype(given, Path(given.resume)), *given.may_change)
    refused = [setting for setting in changed if not among(setting, may)]
    if refused:
        differences = ", ".join(f"{s}={changed[s]} (was {before.get(s)})" for s in refused)
        raise ConfigError(
            f"the run in {given.resume} was started with another configuration: {differences}",
            fix=f"leave it out, or allow it: {choice('may_change', refused)}",
        )
    for setting, value in changed.items():
        if setting.endswith(NAME):
            setting = setting.removesuffix(NAME) + TARGET
            value = OmegaConf.select(given, setting)
        OmegaConf.update(stored, setting, value, force_add=True)
    for setting in OWN:
        stored[setting] = given[setting]
    stored.allow_targets = trusted_by(given)  # of the command line alone: the directory may name any factory
    for setting in (FETCH, LINKS):
        asked = bool(among(setting, named) and OmegaConf.select(given, setting))
        if asked or OmegaConf.select(stored, setting) is not None:
            OmegaConf.update(stored, setting, asked, force_add=True)
    return stored


def stored_settings(given: DictConfig) -> DictConfig:
    """Returns the configuration of the run in ``given.resume``. Raises ConfigError if it is none of this command."""
    if read_manifest(Path(given.resume)).get("made_in") is not None:
        raise ConfigError(
            f"the run in {given.resume} was made in Python, expected one of a command",
            fix="go on in Python: give its directory as resume=... to the function that made it",
        )
    stored = read_yaml(Path(given.resume) / "config.yaml")
    schema = OmegaConf.get_type(given)
    if not is_dataclass(schema):
        return stored
    try:
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), stored))
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{given.resume}/config.yaml is not a configuration of this command ({described(error)})",
            fix="give the directory that a run of this command left",
        ) from error


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Returns dotted name -> value. Where retrain.start is missing or None, as it once was, it is scratch."""
    found = leaves(to_plain(config))
    return found | {"retrain.start": found.get("retrain.start") or SCRATCH}


def check_command(directory: Path, command: str) -> None:
    """Raises ConfigError if another command made the run in a directory: a search that has finished is no nas-run."""
    words = plain_data.dict_in(directory / MANIFEST).get("command")
    made = words[0] if isinstance(words, list) and words else command
    if made != command and made in COMMANDS:
        raise ConfigError(
            f"{directory} holds a run of {made}, got {command}", fix=f"choose another directory, or go on with {made}"
        )


def check_same(cfg: DictConfig, directory: Path) -> None:
    """Raises ConfigError, with a list, if settings differ from those of the run in a directory.

    Raises GenotypeError for another genotype.
    The places of the data and of the genotype may differ, and the settings that ``cfg.may_change`` names.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return
    before, now = settings_of(read_yaml(path)), settings_of(cfg)
    may = (*OWN, FETCH, *PLACES, *same_genotype(cfg, directory), *cfg.may_change)
    differing = [name for name in now | before if before.get(name) != now.get(name) and not among(name, may)]
    if differing:
        listed = ", ".join(f"{name}={now.get(name)} (was {before.get(name)})" for name in differing)
        raise ConfigError(
            f"{directory} holds a run with another configuration: {listed}",
            fix=f"choose another directory, or allow it: {choice('may_change', differing)}",
        )


def same_genotype(cfg: DictConfig, directory: Path) -> tuple[str, ...]:
    """Returns the setting ``genotype`` if it gives the genotype of the run in a directory. Its file may lie elsewhere.

    Raises GenotypeError if it gives another genotype.
    """
    own, named = directory / "genotype.json", OmegaConf.select(cfg, "genotype")
    if named is None or not own.is_file():
        return ()
    try:
        genotype = resolve(named)
    except GenotypeError:  # its file is gone, or it is an index of a benchmark
        return ()
    genotype.check_same(Genotype.load(own).to_dict(), source=own)
    return ("genotype",)


def resolved_again(cfg: DictConfig, setup: Setup) -> Genotype:
    """Returns the genotype of a retraining that continues: the given file, or the run's copy if that file has moved.

    Raises GenotypeError if the file holds another genotype now.
    """
    own = Path(cfg.resume) / "genotype.json"
    try:
        genotype = resolve(cfg.genotype, benchmark=setup.benchmark)
    except GenotypeError:
        if not own.is_file():
            raise
        return Genotype.load(own)
    if own.is_file():
        genotype.check_same(Genotype.load(own).to_dict(), source=own)
    return genotype
