"""Paths on a command line: ~ becomes the home directory, and runs record absolute paths."""

import os.path
import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from nas.errors import ConfigError
from nas.storage.command_line import hydra_value

# At the begin of a value, or of one of several: ~, ~/... and ~user/...
UNQUOTED = re.compile(r"(^|[,\[]\s*)(~[A-Za-z0-9_.-]*(?:/[^,\]\"'\s]*)?)(?=[,\]]|$)")
QUOTED = re.compile(r"""(^|[,\[]\s*)(["'])(~[A-Za-z0-9_.-]*(?:/(?:(?!\2).)*)?)\2(?=\s*[,\]]|$)""")
TWICE = re.compile(r"""'("(?:[^"\\']|\\.)*")'""")
OPTION = re.compile(r"(--config-dir|--config-path)=(~.*)")
WORDS = ("--config-dir", "-cd", "--config-path", "-cp")  # whose value is an argument of its own

OF_OTHERS = re.compile(r"((data|teacher)\.[\w.]+|space\.weights)=")  # settings of what a run or a checkpoint has chosen
PATHS = ("data.root", "benchmark.table", "space.weights", "teacher.weights")
# Of settings that hold paths, with no value, as that of a shell's variable that is not set.
EMPTY = re.compile(
    r"""[+]*((?:[\w.]+\.)?(?:root|table|weights)|hydra\.(?:run|sweep)\.(?:dir|subdir)|resume|checkpoint|genotype|export|images|out)"""
    r"""=(?:''|"")?"""
)
TAKE_WORDS = (*WORDS, "--config-name", "-cn", "--cfg", "-c", "--package", "-p", "--info", "-i")


def read(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command for Hydra: options first, and every ~ expanded.

    Raises ConfigError for an empty path. It would be the working directory.
    If a run is resumed or a checkpoint is given, settings of ``data`` change the data of its training, unless another
    data set is chosen, and those of ``teacher`` its teacher. Hydra does not know these settings, so they get a + in
    front.
    """
    for argument in arguments:
        if empty := EMPTY.fullmatch(argument):
            raise ConfigError(f"{empty[1]} is empty, expected a path", fix=f"set {empty[1]}=..., or leave it out")
    arguments = options_first(arguments)
    keys = {argument.partition("=")[0] for argument in arguments if argument != "resume=auto"}
    of_others = bool(keys & {"resume", "checkpoint"}) and "data" not in keys
    return [
        f"++{argument}" if of_others and OF_OTHERS.match(argument) else argument
        for argument in map(with_home, arguments)
    ]


def options_first(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with options, such as -m, before settings. Hydra refuses settings on both sides of one."""
    first, others, words = [], [], iter(arguments)
    for word in words:
        if not word.startswith("-"):
            others.append(word)
            continue
        first.append(word)
        if word in TAKE_WORDS and (value := next(words, None)) is not None:
            (others if "=" in value and word not in WORDS else first).append(value)
    return first + others


def with_home(argument: str) -> str:
    if option := OPTION.fullmatch(argument):
        return f"{option[1]}={os.path.expanduser(option[2])}"
    name, equals, value = argument.partition("=")
    if twice := TWICE.fullmatch(value):  # a printed setting that no shell has read, as of a batch system
        return f"{name}={twice[1]}"
    if not equals or "~" not in value or name.startswith("-"):
        return os.path.expanduser(argument) if argument.startswith("~/") else argument
    value = UNQUOTED.sub(lambda found: found[1] + hydra_value(os.path.expanduser(found[2])), value)
    value = QUOTED.sub(lambda found: found[1] + hydra_value(os.path.expanduser(found[3])), value)
    return f"{name}={value}"


def anchored(config: DictConfig) -> DictConfig:
    """Makes the paths of a configuration absolute, in place. Raises ConfigError for an empty one.

    A run may be continued and scored from another directory.
    """
    tables = [f"regulariser.{name}.table" for name in OmegaConf.select(config, "regulariser") or ()]
    for setting in (*PATHS, *tables):
        value = _select(config, setting)
        if value == "":  # as an empty variable of the environment gives it
            raise ConfigError(f"{setting} is empty, expected a path", fix=f"set {setting}=...")
        if isinstance(value, str) and value and "://" not in value:
            OmegaConf.update(config, setting, os.path.abspath(os.path.expanduser(value)))
    genotype = _select(config, "genotype")
    if isinstance(genotype, str) and os.path.isfile(genotype):  # else a name, or the text of one
        OmegaConf.update(config, "genotype", os.path.abspath(genotype))
    return config


def _select(config: DictConfig, setting: str) -> object:
    parent, _, name = setting.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_missing(node, name):
        return None
    return node[name]
