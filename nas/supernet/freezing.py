"""Makes a plain network of a supernet: replaces each choice by its chosen candidate."""

from collections.abc import Mapping

from torch import nn

from nas.errors import SpaceError
from nas.supernet.choice import Choice, choices
from nas.supernet.dropped_edge import Dropped, DroppedTensor
from nas.supernet.entanglement import CentreConv2d
from nas.supernet.genotype import check_chosen
from nas.supernet.hooked import with_hooks_of


def freeze(model: nn.Module, chosen: Mapping[str, str | None]) -> nn.Module:
    """Replace every choice by its chosen candidate, in place; where that is None by `Dropped` if its group is added up,
    else by `DroppedTensor`. Hooks on a choice are kept, on a module around its candidate. Kernels that candidates
    shared become separate, see `nas.supernet.entanglement`.

    Returns the plain model: the same object, unless the model itself is a Choice. A model without choices is returned
    as it is if none is chosen. Raises GenotypeError (see
    `check_chosen`), and SpaceError for a choice whose forward is not that of `Choice`.
    """
    if not chosen and not any(isinstance(module, Choice) for module in model.modules()):
        return model
    found = choices(model)
    check_chosen(chosen, {key: sharing[0].names for key, sharing in found.items()})
    # Keys that are paths hold for the unfrozen model only, so they are resolved before anything moves.
    key_of = {choice: key for key, sharing in found.items() for choice in sharing}

    # A choice that is used twice becomes one module, and what it holds moves once.
    done: dict[nn.Module, nn.Module] = {}

    def resolved(module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = instead_of(module) if isinstance(module, Choice) else frozen(module)
        return done[module]

    def instead_of(choice: Choice) -> nn.Module:
        refuse_own_forward(choice, key_of[choice])
        name = chosen[key_of[choice]]
        if name is not None:
            return with_hooks_of(choice, resolved(choice.candidates[choice.names.index(name)]))
        return with_hooks_of(choice, Dropped() if choice.added else DroppedTensor(resolved(choice.candidates[0])))

    def frozen(module: nn.Module) -> nn.Module:
        if isinstance(module, CentreConv2d):
            return module.separate()
        # Not named_children(), which passes over a module's second name.
        for child_name, child in list(module._modules.items()):
            if child is not None:
                setattr(module, child_name, resolved(child))
        return module

    return resolved(model)


def refuse_own_forward(choice: Choice, key: str) -> None:
    """Raises SpaceError if the choice computes more than its candidates: deriving would lose that without a word."""
    if "forward" in vars(choice) or type(choice).forward is not Choice.forward:
        raise SpaceError(
            f"the choice {key!r}, a {type(choice).__name__}, has a forward of its own, which deriving would lose",
            fix="put what it computes into a module around the choice, or into a forward hook on it",
        )
