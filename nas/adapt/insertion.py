"""Replaces modules of a network that has weights by choices between the module and what could stand in for it.

    nas.insert(model, {"layer*.*": [skip(), narrower(0.5)], "layer*.*.relu": other("silu", nn.SiLU)}, example=images)

The first candidate of every choice is the module itself with its weights, so the search starts from the network as it
was trained.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from nas.errors import SpaceError, described
from nas.supernet.choice import Choice
from nas.supernet.undisturbed import undisturbed

KEEP = "keep"  # the name of the module itself among the candidates


@dataclass(frozen=True)
class Place:
    """A module of the network, and what it was given and returned in one forward pass of the example.

    path: of the module in the network. inputs, named: its arguments by position and by name. output: what it returned.
    """

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the shape of the first input, so that the module can be left out."""
        first = self.inputs[0] if self.inputs else next(iter(self.named.values()), None)
        return isinstance(first, Tensor) and isinstance(self.output, Tensor) and first.shape == self.output.shape


# Candidates for a place by name, made from copies of its module. None of them where the maker does not fit the place.
Maker = Callable[[Place], Mapping[str, nn.Module]]
Example = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Insertion:
    """A choice that is put into a network. path: of the module that it replaces. candidates: their names, in order."""

    path: str
    kind: str
    candidates: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} ({self.kind}): {', '.join(self.candidates)}"


def insertions(
    model: nn.Module, places: Mapping[str | type[nn.Module], Maker | Sequence[Maker]], *, example: Example
) -> list[Insertion]:
    """What `insert` would do with the same arguments. The network is left as it is."""
    return [
        Insertion(place.path, type(place.module).__name__, tuple(candidates))
        for place, candidates in _planned(model, places, example)
    ]


def insert(
    model: nn.Module, places: Mapping[str | type[nn.Module], Maker | Sequence[Maker]], *, example: Example
) -> nn.Module:
    """Replace modules of `model` by choices, in place. Returns the model.

    places: where -> makers. Where is the path of modules in the network, ``*`` for any text without a dot, or their
    type. The first entry that matches a module counts. A module that no candidate of its makers fits stays as it is.
    example: a small batch: a tensor, a sequence of arguments, or a mapping of named ones. The network runs once with
    it, in eval mode and without gradients, and each candidate of each place.

    A choice is known by the path of its module. Places may lie inside each other: the outer choice has the inner one in
    its first candidate, and its other candidates are made from the network without choices.

    Raises SpaceError for an entry that matches nothing or has no candidate that fits, for modules that run several
    times or share weights with others, for models that are traced or compiled, and for candidates whose output has
    another shape than the module's. Nothing has been changed then.
    """
    planned = _planned(model, places, example)
    # From the innermost: what a path names is still there when its turn comes.
    for place, candidates in sorted(planned, key=lambda entry: -entry[0].path.count(".")):
        choice = Choice(candidates)
        choice.training = place.module.training  # not train(), which would also set the modules inside
        parent, _, name = place.path.rpartition(".")
        setattr(model.get_submodule(parent), name, choice)
    return model


def _planned(
    model: nn.Module, places: Mapping[str | type[nn.Module], Maker | Sequence[Maker]], example: Example
) -> list[tuple[Place, dict[str, nn.Module]]]:
    _refuse_compiled(model)
    matched = _matched(model, places)
    entry = {path: where for where, paths in matched.items() for path in paths}
    makers = {path: places[entry[path]] for path, _ in model.named_modules() if path in entry}
    _refuse_shared(model, makers)
    planned = []
    for place in _observed(model, list(makers), example):
        candidates = {KEEP: place.module}
        given = makers[place.path]
        for maker in (given,) if callable(given) else given:
            made = {name: candidate.to(_device(place.module)) for name, candidate in maker(place).items()}
            if twice := made.keys() & candidates.keys():
                raise SpaceError(
                    f"two candidates at {place.path} are called {min(twice)!r}, expected a name each",
                    fix="give one of the makers another name",
                )
            candidates |= made
        if len(candidates) == 1:
            continue
        for name, candidate in candidates.items():
            with undisturbed(candidate, seed=0), torch.no_grad():
                _check(place, name, candidate)
            if name != KEEP:
                candidate.train(place.module.training)
        planned.append((place, candidates))
    for where, paths in matched.items():
        if not any(place.path in paths for place, _ in planned):
            found = model.get_submodule(paths[0])
            raise SpaceError(
                f"no candidate of {_named(where)} fits where it matches, e.g. at {paths[0]}, a {type(found).__name__}",
                fix="use other makers there",
            )
    return planned


def _device(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


FIXED_CODE = {
    torch.jit.ScriptModule: "is a TorchScript module",
    torch.fx.GraphModule: "was traced by torch.fx",
    torch._dynamo.OptimizedModule: "was compiled by torch.compile",
}


def _refuse_compiled(model: nn.Module) -> None:
    for path, module in model.named_modules():
        reasons = [what for kind, what in FIXED_CODE.items() if isinstance(module, kind)]
        if module._compiled_call_impl is not None:  # by module.compile(), which leaves the class as it is
            reasons.append(FIXED_CODE[torch._dynamo.OptimizedModule])
        for what in reasons[:1]:
            raise SpaceError(
                f"{path or 'the model'} {what}, expected plain modules",
                fix="insert the choices before the model is traced or compiled",
            )


def _named(where: str | type[nn.Module]) -> str:
    return where if isinstance(where, str) else f"the type {where.__name__}"


def _matched(
    model: nn.Module, places: Mapping[str | type[nn.Module], Maker | Sequence[Maker]]
) -> dict[str | type[nn.Module], list[str]]:
    """entry -> the paths that are its. Raises SpaceError for an entry that matches no module."""
    paths = {path: module for path, module in model.named_modules() if path}
    matched: dict[str | type[nn.Module], list[str]] = {}
    taken: set[str] = set()
    for where in places:
        fits = [p for p, m in paths.items() if (isinstance(m, where) if isinstance(where, type) else _fits(p, where))]
        if not fits:
            near = difflib.get_close_matches(_named(where), paths, n=4, cutoff=0.0)
            raise SpaceError(
                f"{_named(where)} matches no module of {type(model).__name__}",
                fix=f"use a path such as {', '.join(near) or 'that of a module with a name'}",
            )
        if left := [path for path in fits if path not in taken]:
            matched[where] = left
            taken.update(left)
    return matched


def _fits(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _refuse_shared(model: nn.Module, paths: Mapping[str, Any]) -> None:
    """Raises SpaceError for a module that has two paths, and for weights that modules outside of it have as well."""
    names: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(path)
    owners: dict[nn.Parameter, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(path)
    for path in paths:
        module = model.get_submodule(path)
        if len(names[module]) > 1:
            raise SpaceError(
                f"the module at {path} is at {names[module][1 if names[module][0] == path else 0]} as well, "
                "expected a module in one place",
                fix="leave it out of the pattern, or copy the module",
            )
        for name, parameter in module.named_parameters():
            outside = [other for other in owners[parameter] if not other.startswith(f"{path}.")]
            if outside:
                raise SpaceError(
                    f"{path}.{name} is tied to {outside[0]}, which a candidate without it would cut off",
                    fix="leave the module out of the pattern, or untie the weights",
                )


def _observed(model: nn.Module, paths: Sequence[str], example: Example) -> list[Place]:
    """The places, as one forward pass shows them."""
    calls: dict[str, list[Place]] = {path: [] for path in paths}

    def watching(path: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            # The containers of the arguments are copied, as a model may add to a list that it has passed on.
            given = tree_map(lambda leaf: leaf, (inputs, named))
            calls[path].append(Place(path, module, given[0], given[1], output))

        return note

    with undisturbed(model, seed=0), torch.no_grad(), _hooks() as handles:
        for path in paths:
            hook = watching(path)
            handles.append(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
        try:
            _called(model, example)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise SpaceError(
                f"the model cannot take the example ({described(error)})",
                fix="give as `example` what the model is called with, a mapping for named arguments",
            ) from error
    for path, seen in calls.items():
        if len(seen) != 1:
            raise SpaceError(
                f"the module at {path} runs {len(seen)} times in a forward pass, expected once",
                fix="leave it out of the pattern",
            )
        if not isinstance(seen[0].output, Tensor):
            raise SpaceError(
                f"the module at {path} returns a {type(seen[0].output).__name__}, expected one tensor",
                fix="use a module inside of it, or around it, that returns one tensor",
            )
    return [calls[path][0] for path in paths]


def _called(model: nn.Module, example: Example) -> Any:
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, Mapping) else model(*example)


@contextmanager
def _hooks() -> Iterator[list[RemovableHandle]]:
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _check(place: Place, name: str, candidate: nn.Module) -> None:
    """Raises SpaceError unless the candidate takes what the module took, and returns a tensor of the same shape."""
    try:
        output = candidate(*place.inputs, **place.named)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise SpaceError(
            f"the candidate {name!r} at {place.path} cannot take what the module takes ({described(error)})",
            fix="change what its maker builds",
        ) from error
    got = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if got != tuple(place.output.shape):
        raise SpaceError(
            f"the candidate {name!r} at {place.path} returns {got}, expected {tuple(place.output.shape)}",
            fix="change what its maker builds",
        )
