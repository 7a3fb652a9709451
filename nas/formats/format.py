"""What a format of exported networks is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from nas.data.spec import DataSpec

TOLERANCE = 1e-4  # largest difference to its network that an artefact may show


@dataclass(frozen=True)
class Subject:
    """What is exported.

    network: on the CPU, in eval mode. examples: a batch of at least two, a tensor for each of its inputs.
    title: the network in words. load: the code that loads it with this project, run beside the files.
    measure: a network of the same inputs and outputs -> what it reaches on the test split, by the metric's name.
    unsaved: finds the buffers of it that no state dict holds, if its weights do not give its outputs without them.
    private: the functions that no other program can import and that its model is made by; empty for none.
    """

    network: nn.Module
    examples: tuple[Tensor, ...]
    spec: DataSpec
    title: str
    load: str
    measure: Callable[[nn.Module], Mapping[str, float]]
    unsaved: Callable[[], tuple[str, ...]] = tuple
    private: str = ""

    @property
    def variables(self) -> tuple[str, ...]:
        """What the inputs are called in code: x, or x1, x2, ..."""
        count = len(self.examples)
        return ("x",) if count == 1 else tuple(f"x{number}" for number in range(1, count + 1))

    @property
    def call(self) -> str:
        """The code that runs a module called ``network``."""
        return f"with torch.no_grad():\n    y = network({', '.join(self.variables)})\n"


@dataclass(frozen=True)
class Artefact:
    """One file that was written.

    about: what it is, in words. needs: the packages that loading it takes, as pip knows them. code: loads it from the
    directory it is in, and computes y from the inputs of `Subject.variables`; the model card shows it and a fresh
    process runs it. network: whose outputs these have to be, up to `tolerance`. facts: what else the metadata state.
    warning: what whoever is given the file has to know before loading it.
    """

    file: str
    about: str
    needs: tuple[str, ...]
    code: str
    network: nn.Module
    tolerance: float = TOLERANCE
    facts: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""


class UnavailableError(Exception):
    """This network cannot be had in this format; the message says why. The other formats are written."""


class Format(Protocol):
    """Built before any work is done, so that a package that is missing is noticed then."""

    def write(self, subject: Subject, directory: Path) -> Artefact:
        """Write a file into the directory. Raises UnavailableError; whatever else is raised, but for an error of the
        user's or of the disk, leaves the format out as well."""
        ...
