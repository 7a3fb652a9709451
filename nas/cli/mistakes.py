"""Turns a user's mistakes into one line each, however Hydra and OmegaConf report them."""

import difflib
import re
import sys
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf
from yaml import MarkedYAMLError

from nas.errors import ConfigError, NasError
from nas.settings import configuration, schemas

# Launchers and sweepers of plug-ins -> the extra that installs them.
EXTRAS = {
    "joblib": "sweep",
    "optuna": "sweep",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
    "ray": "ray",
    "ray_aws": "ray",
}


def explain(error: Exception, config_name: str) -> str:
    """Returns one line for an exception that stopped a command: what was got, what was expected, how to fix it."""
    if isinstance(error, NasError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        kind = "sweep" if {"-m", "--multirun"} & {*sys.argv} else "run"
        return (
            f"{error.filename} cannot be written ({error.strerror}); set hydra.{kind}.dir to a directory you can write "
            "to"
        )
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark) is not None:
        place = f"{mark.name} at line {mark.line + 1}, column {mark.column + 1}"
        return f"{place} is no YAML ({error.problem}); correct it"
    given = getattr(error, "override", None)  # what Hydra's grammar stumbled over, if it did
    if isinstance(given, str) and given.partition("=")[2]:
        setting = given.partition("=")[0]
        return (
            f"the value in {given!r} has characters with a meaning of their own, expected it in quotes that reach "
            f"Hydra; write '{setting}=\"...\"'"
        )
    return explain_text(" ".join(f"{error}\n{error.__cause__ or ''}".split()), config_name)


def explain_text(text: str, config_name: str) -> str:
    """Returns one line for what Hydra and OmegaConf write, which have a single class for many errors."""
    if "Config group override must be a string" in text:
        given = next((argument for argument in sys.argv[1:] if argument.endswith(("=null", "="))), "null")
        return without(given.rstrip("=").removesuffix("=null"), given, config_name)
    if ours := re.search(r"ConfigError raised while resolving interpolation: (.*?)(?: full_key: |$)", text):
        return ours[1].strip()
    plug_in = re.search(r"Could not (?:find|load) 'hydra/(?:launcher|sweeper)/([^']+)'", text)
    if plug_in and plug_in[1] in EXTRAS:
        return f"{plug_in[1]} is not installed; pip install 'gumbel-nas[{EXTRAS[plug_in[1]]}]'"
    # Hydra has another message for a wrong name in a list, as in formats=[weights,onx].
    if member := re.search(r"Could not load '([^'/]+)/([^']+)'", text):
        group, got = member.groups()
        known = ", ".join(sorted(path.stem for path in (configuration.directory() / group).glob("*.yaml")))
        return f"{group}={got} is not an option of {group}; expected one of {known}"
    if twice := re.search(r"Multiple values for ([^\s.]+)\. To override", text):
        return f"{twice[1]} is chosen already; write {twice[1]}=... without the +"
    if unset := re.search(r"field '([^']+)' is not Optional", text):
        return f"{unset[1]} cannot be null, expected a value; give it one (see --cfg job)"
    if option := re.search(
        r"Could not find '([^']+)/([^'/]*)' Available options in '[^']+': (.*?) Config search", text
    ):
        group, got, options = option.groups()
        return f"{group}={got} is not an option of {group}; expected one of {', '.join(options.split())}"
    if placed := re.search(
        r"Could not override '([^'@]+)[^']*'\. Did you mean to override (?:one of )?([^?]+)\?", text
    ):
        places = [place.strip() for place in placed[2].split(",")]
        return (
            f"{placed[1]} is a group that is chosen by its place, expected one of {', '.join(places)}; write e.g. "
            f"{places[-1]}=..."
        )
    if group := re.search(r"Could not override '([^']+)'. No match in the defaults list", text):
        return f"{group[1]} is not a configuration group of nas-{config_name}; see nas-{config_name} --cfg job"
    if key := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is not in struct|not in)", text):
        name = key[1] or key[2]
        if key[2] and name in settings(untouched(config_name)):  # is read, not set: other options may lack it
            group = name.partition(".")[0]
            return f"{name} was taken out, but is needed; leave out what does so, as ~{group} or {group}={{...}} do"
        return f"{name} is not a setting; {suggestion(name, config_name)}"
    if missing := re.search(r"Missing mandatory value: (\S+)(?: full_key: (\S+))?", text):
        setting = missing[2] or missing[1]
        return f"{setting} is not set, and has no default; add {setting}=..."
    if override := re.search(r"Error parsing override '([^']*)'|LexerNoViableAltException: (.*?) \^", text):
        return (
            f"{override[1] or override[2]!r} is not of the form key=value; write e.g. search.epochs=10, quoted where a "
            "shell needs it"
        )
    if value := re.search(r"(Value .* could not be converted to \w+) full_key: (\S+)", text):
        return f"{value[2]}: {value[1]}; correct the value (see --cfg job)"
    return f"{text.split(' full_key:')[0].strip()}; see --help, or --debug for a traceback"


def refuse_several_options(overrides: Sequence[str]) -> None:
    """Raises ConfigError if several options are chosen of a group that makes one object.

    Hydra would mix their settings.
    """
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        options = [option.strip() for option in value.strip("[]").split(",")]
        if not value.startswith("[") or len(options) < 2:
            continue
        paths = [configuration.directory() / group.partition("@")[0] / f"{option}.yaml" for option in options]
        texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
        if sum(text.startswith("_target_:") or "\n_target_:" in text for text in texts if "@package" not in text) > 1:
            raise ConfigError(
                f"{group} takes one of its options, got {len(options)}: {', '.join(options)}",
                fix=f"set {group}={options[0]}",
            )


def refuse_unknown_options(arguments: Sequence[str], config_name: str) -> None:
    """Raises ConfigError for an option that Hydra does not have: settings are written without dashes."""
    from hydra._internal.utils import get_args_parser

    for word in get_args_parser().parse_known_args(arguments)[1]:
        if (name := word.partition("=")[0]).startswith("-"):
            raise ConfigError(
                f"{name} is not an option, expected a setting as name=value, without dashes",
                fix=suggestion(name.lstrip("-").replace("-", "_"), config_name),
            )


def suggestion(key: str, config_name: str) -> str:
    """Returns what the user may have meant by an unknown setting."""
    known = list(settings(untouched(config_name)))
    last = key.rsplit(".", 1)[-1]
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    close = (
        same_name
        or difflib.get_close_matches(key, known, n=2)
        or [name for name in known if difflib.get_close_matches(last, [name.rsplit(".", 1)[-1]])]
    )
    if not close:
        return "--cfg job shows all settings"
    return f"did you mean {' or '.join(close[:2])}?"


def without(group: str, given: str, config_name: str) -> str:
    """Returns the line for a group that was to be empty. Hydra deletes a group by ``~group``."""
    roots = [OmegaConf.load(configuration.directory() / f"{name}.yaml") for name in dict.fromkeys((config_name, "run"))]
    if any(isinstance(one, DictConfig) and one.get(group, "") is None for root in roots for one in root.defaults):
        return f"{given} is not an option of {group}; write ~{group} for none"
    return f"{given} is not an option of a group that has to be there; see --help for its options"


def settings(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Returns the full names of all settings, groups included."""
    for key in map(str, node):
        if key.startswith("_"):  # _target_ and _partial_ are not for users
            continue
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from settings(child, f"{prefix}{key}.")


def untouched(config_name: str) -> DictConfig:
    """Returns the configuration of a command without any override."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    schemas.register_schemas()  # in a process that runs none of the commands nobody has
    if GlobalHydra.instance().is_initialized():  # as inside of a task, --config-dir included
        return compose(config_name)
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        return compose(config_name)
