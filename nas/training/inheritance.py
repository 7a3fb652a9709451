"""The weights of a searched supernet, and derived networks that start from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.data.spec import DataSpec
from nas.errors import CheckpointError, ConfigError, SpaceError
from nas.runtime.buffers import restore_unsaved, unsaved
from nas.spaces.darts import AuxiliaryHead
from nas.spaces.space import Space
from nas.storage import checkpoint_file
from nas.supernet.entanglement import separate
from nas.supernet.genotype import Genotype

SCRATCH, SUPERNET = "scratch", "supernet"
STARTS = (SCRATCH, SUPERNET)


@dataclass(frozen=True)
class SupernetWeights:
    """The weights of a searched supernet.

    state: the state dict. buffers: those that a state dict leaves out. source: where they are from, for messages.
    """

    state: Mapping[str, Any] = field(repr=False)
    buffers: Mapping[str, Tensor] = field(repr=False)
    source: str

    @classmethod
    def of(cls, supernet: nn.Module) -> "SupernetWeights":
        return cls(supernet.state_dict(), unsaved(supernet), "the search")

    @classmethod
    def load(cls, path: Path) -> "SupernetWeights":
        """From the checkpoint of a search. Raises CheckpointError for any other file."""
        saved = checkpoint_file.load(path, "search")
        with checkpoint_file.taken_from(path):
            return cls(dict(saved["supernet"]), dict(saved["supernet_buffers"]), str(path))


def checkpoint_beside(genotype: str | Path, *, resumes: bool = False) -> Path:
    """The checkpoint of the search that wrote a ``genotype.json``. Raises ConfigError if there is none.

    resumes: it is needed only where the run that is resumed stopped before its first checkpoint.
    """
    path = Path(genotype).expanduser().parent / "search" / "checkpoint.pt"
    if not resumes and not path.is_file():
        raise ConfigError(
            f"retrain.start=supernet takes the weights from {path}, which does not exist",
            fix="give as genotype the genotype.json in the directory of a search, or set retrain.start=scratch",
        )
    return path


def check_alike(space: Space, retrained: Space, spec: DataSpec) -> None:
    """Raises SpaceError unless networks that are retrained have all weights of the supernet, whatever is chosen.

    The retrained network may have scales and shifts of norms, which do nothing at first, and an auxiliary head beside.
    """
    with retrained.sketching():
        searched = separate(space.build(spec, affine=False))
        check_fits(searched.state_dict(), retrained.build(spec, affine=True))


def inherit(network: nn.Module, weights: SupernetWeights, *, space: Space, spec: DataSpec, genotype: Genotype) -> None:
    """Copies the weights that the supernet has under the genotype's choices into the genotype's network, in place.

    space: the searched one. What the supernet has not keeps its value, see `check_alike`.
    """
    supernet = space.build(spec, affine=False).train()  # as the search left it: see `put_modes`
    network.train()
    try:
        checkpoint_file.restore(supernet, dict(weights.state), source=weights.source)
    except CheckpointError as error:  # the file is whole, so the search had another space
        raise SpaceError(
            error.problem, fix="set space as in the search, sizes and operations too: its config.yaml has them"
        ) from error
    restore_unsaved(supernet, weights.buffers)
    derived = space.derived(supernet, spec, genotype)
    check_fits(derived.state_dict(), network)
    network.load_state_dict(derived.state_dict(), strict=False)
    restore_unsaved(network, unsaved(derived))


def check_fits(given: Mapping[str, Any], network: nn.Module) -> None:
    own = network.state_dict()
    optional = {f"{path}.{name}" if path else name for path, name in fresh(network)}
    missing = [name for name in own.keys() - optional if name not in given]
    other = [name for name in given if name not in own or shape(given[name]) != shape(own[name])]
    if wrong := sorted([*missing, *other]):
        found = [shape(state[wrong[0]]) if wrong[0] in state else "not there" for state in (given, own)]
        raise SpaceError(
            f"retrain.start=supernet needs the network that was searched, but {wrong[0]} is {found[0]} in the "
            f"supernet and {found[1]} in the network that is retrained",
            fix="leave retrain.network empty, or at the sizes of the search, and use operations that are the same in "
            "both (for space=darts ops=darts_gdas), or set retrain.start=scratch",
        )


def shape(value: Any) -> tuple[int, ...]:
    """The shape of a value of a state dict; () for a value that is not a tensor."""
    return tuple(getattr(value, "shape", ()))


def fresh(network: nn.Module) -> list[tuple[str, str]]:
    """(module path, name) of the weights that only a retrained network has."""
    heads = [path for path, module in network.named_modules() if isinstance(module, AuxiliaryHead)]
    found = []
    for path, module in network.named_modules():
        names = [*module._parameters, *module._buffers]
        if any(path == head or path.startswith(f"{head}.") for head in heads):
            found += [(path, name) for name in names]
        elif isinstance(module, _BatchNorm):
            found += [(path, name) for name in module._parameters]
    return found
