"""The interface of a format of exported networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from nas.data.spec import DataSpec

TOLERANCE = 1e-4  # largest difference to its network that an artefact may show


@dataclass(frozen=True)
class Subject:
    """The network that is exported.

    network: on the CPU, in eval mode. examples: a batch of at least two examples, one tensor for each input.
    title: describes the network. load: code that loads the network with this project, run beside the files.
    measure: a network with the same inputs and outputs -> its score on the test split, by the metric's name.
    unsaved: finds the network's buffers that no state dict holds, if the outputs depend on them.
    unbuildable: says why this project cannot build the network from files again; empty if it can.
    """

    network: nn.Module
    examples: tuple[Tensor, ...]
    spec: DataSpec
    title: str
    load: str
    measure: Callable[[nn.Module], Mapping[str, float]]
    unsaved: Callable[[], tuple[str, ...]] = tuple
    unbuildable: Callable[[], str] = str

    @property
    def variables(self) -> tuple[str, ...]:
        """Returns the names of the inputs in code: x, or x1, x2, ..."""
        return variables(len(self.examples))

    @property
    def call(self) -> str:
        """Returns the code that runs a module called ``network``."""
        return f"with torch.no_grad():\n    y = network({', '.join(self.variables)})\n"


@dataclass(frozen=True)
class Artefact:
    """One file that was written.

    about: describes the file. needs: the packages for loading it, by their names for pip. code: loads the file from its
    directory, and computes y from the inputs of `Subject.variables`. The model card shows the code, and a fresh process
    runs it. network: gives the expected outputs, up to `tolerance`. facts: more entries for the metadata. warning: what
    a recipient must know before loading the file.
    """

    file: str
    about: str
    needs: tuple[str, ...]
    code: str
    network: nn.Module
    tolerance: float = TOLERANCE
    facts: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""


def variables(count: int) -> tuple[str, ...]:
    """Returns the names of so many inputs: x, or x1, x2, ..."""
    return ("x",) if count == 1 else tuple(f"x{number}" for number in range(1, count + 1))


class UnavailableError(Exception):
    """This network cannot be exported in this format. The message says why. The other formats are written."""


class Format(Protocol):
    """Writes a network in one format. A constructor raises before any work is done if a package is missing."""

    def write(self, subject: Subject, directory: Path) -> Artefact:
        """Writes a file into the directory. Raises UnavailableError.

        Other exceptions leave the format out too, except errors of the user's or of the disk.
        """
        ...
