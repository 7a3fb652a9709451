"""The output directory of a command, before and after Hydra makes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import open_dict, read_write

from nas.settings.schemas import runs
from nas.storage import names

TRIES = 5  # at making it, where others remove what they have found to be empty


def base(arguments: Sequence[str]) -> Path:
    """Returns the output directory of a command line; its fixed beginning if settings decide the rest."""
    given = [
        argument.partition("=")[2].strip("'\"")
        for argument in arguments
        if argument.startswith(("hydra.run.dir=", "hydra.sweep.dir="))
    ]
    named = given[-1] if given else runs()
    return Path(named) if "${" not in named else Path(named.partition("${")[0] + "_").parent


def resume_in_place(arguments: list[str]) -> None:
    """Adds the directory of the run that is resumed to the arguments, as Hydra's output directory.

    Hydra would make another one in the working directory, which may be read-only.
    """
    for name in arguments[1:]:
        if name.startswith(("hydra.run.dir=", "-m", "--multirun")):
            return
    resumed = [argument.partition("=")[2] for argument in arguments[1:] if argument.startswith("resume=")]
    if resumed and not {*resumed[-1]} & {*"'\"\\$"} and (Path(resumed[-1]) / "manifest.json").is_file():
        arguments.append(f"hydra.run.dir='{resumed[-1]}'")


def own(directory: Path) -> Path:
    """Returns a directory that belongs to this run alone.

    That is the one that Hydra made. If the time gave its name and another run of the same second has it, a new one
    beside it is made. A directory that the user named is used as it is.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra: Any = HydraConfig.get()
    pattern = hydra.sweep if hydra.mode is not None and hydra.mode.name == "MULTIRUN" else hydra.run
    resumes = any(o.startswith("resume=") and o != "resume=auto" for o in hydra.overrides.task)
    if resumes or not any("${now:" in str(pattern._get_node(key)._value()) for key in pattern):
        return directory
    claimed = names.claimed(directory)
    if claimed != directory:
        with read_write(hydra), open_dict(hydra):
            hydra.runtime.output_dir = str(claimed)
    return claimed
