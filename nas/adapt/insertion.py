"""Replaces modules of a network that has weights by choices between the module and what could stand in for it.

    nas.insert(model, {"layer*.*": [skip(), narrower(0.5)], "*.act": other("silu", lambda module: nn.SiLU())},
               example=images)

The first candidate of every choice is the module itself with its weights, so the search starts from the network as it
was trained.
"""

import contextlib
import difflib
import fnmatch
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nas.adapt.insertion_checks import check_arguments, listed, maker_name, named, refuse_compiled, refuse_shared
from nas.adapt.same_function import Example, called, outputs_of, refuse_changed, same
from nas.errors import SpaceError, described
from nas.runtime import distributed
from nas.supernet.choice import Choice
from nas.supernet.returned_inputs import drops_in_place
from nas.supernet.undisturbed import undisturbed

KEEP = "keep"  # the name of the module itself among the candidates


@dataclass(frozen=True)
class Place:
    """A module of the network, and what it was given and returned in one forward pass of the example.

    path: of the module in the network. inputs, named: its arguments by position and by name. output: what it returned.
    overwritten: whether the network wrote into the output later, as nn.ReLU(inplace=True) does, or may in training.
    """

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any
    overwritten: bool = False

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the shape and the type of the first input, so that the module can be left out."""
        first = self.inputs[0] if self.inputs else next(iter(self.named.values()), None)
        if not isinstance(first, Tensor) or not isinstance(self.output, Tensor):
            return False
        return first.shape == self.output.shape and first.dtype == self.output.dtype


# Candidates for a place by name, made from copies of its module. None of them where the maker does not fit the place.
Maker = Callable[[Place], Mapping[str, nn.Module]]


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
    """Returns what `insert` would do with the same arguments. Does not change the network."""
    return [
        Insertion(place.path, type(place.module).__name__, tuple(candidates))
        for place, candidates in _planned(model, places, example)
    ]


def insert(
    model: nn.Module, places: Mapping[str | type[nn.Module], Maker | Sequence[Maker]], *, example: Example
) -> nn.Module:
    """Replace modules of `model` by choices, in place. Returns the model.

    places: where -> makers. Where is the path of modules in the network, ``*`` for any text without a dot, or their
    type. The first entry that matches a module counts. A module that no candidate of its makers fits stays as it is. A
    maker that fits no module of its entry is warned of.
    example: a small batch: a tensor, a sequence of arguments, or a mapping of named ones. The network runs with it
    before and after, in eval mode and without gradients, and each candidate of each place.

    A choice is known by the path of its module. Places may lie inside each other: the outer choice has the inner one in
    its first candidate, and its other candidates are made from the network without choices.

    Raises SpaceError for an entry that matches nothing or has no candidate that fits; for modules that run several
    times, share weights with others, are reached past their place, or are asked for their type or attributes by the
    network; for models that are traced or compiled, or have choices already; and for candidates whose output has
    another shape or type than the module's. Nothing has been changed then.
    """
    planned = _planned(model, places, example)
    expected = outputs_of(model, example)
    reproducible = same(expected, outputs_of(model, example))
    made: dict[str, Choice] = {}
    try:
        # From the innermost: what a path names is still there when its turn comes.
        for place, candidates in sorted(planned, key=lambda entry: -entry[0].path.count(".")):
            choice = Choice(candidates)
            # Not train(), which would also set the modules inside.
            choice.training = choice.candidates.training = place.module.training
            put(model, place.path, choice)
            made[place.path] = choice
        refuse_changed(model, made, example, expected if reproducible else None)
    except SpaceError:
        for place, _ in sorted(planned, key=lambda entry: entry[0].path.count(".")):  # from the outermost
            put(model, place.path, place.module)
        raise
    return model


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Sets a module of the model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _planned(
    model: nn.Module, places: Mapping[str | type[nn.Module], Maker | Sequence[Maker]], example: Example
) -> list[tuple[Place, dict[str, nn.Module]]]:
    check_arguments(model, places, example)
    if any(isinstance(module, Choice) for module in model.modules()):
        raise SpaceError(
            "the model has choices already, expected plain modules", fix="give all places in one call of nas.insert"
        )
    refuse_compiled(model)
    matched = _matched(model, places)
    entry = {path: where for where, paths in matched.items() for path in paths}
    makers = {path: places[entry[path]] for path, _ in model.named_modules() if path in entry}
    refuse_shared(model, makers)
    planned = []
    fitting: set[tuple[str | type[nn.Module], int]] = set()  # the entry and the id of makers that made a candidate
    with torch.random.fork_rng(devices=[]):  # makers may draw numbers for weights that they then replace
        for place in _observed(model, matched, example):
            made_by: list[Maker] = []
            if len(candidates := _candidates(place, makers[place.path], made_by)) > 1:
                planned.append((place, candidates))
            fitting |= {(entry[place.path], id(maker)) for maker in made_by}
    for where, paths in matched.items():
        if not any(place.path in paths for place, _ in planned):
            found = model.get_submodule(paths[0])
            raise SpaceError(
                f"no candidate of {named(where)} fits where it matches, e.g. at {paths[0]}, a {type(found).__name__}",
                fix="use other makers there",
            )
        for maker in listed(places[where]):
            if (where, id(maker)) not in fitting:
                _warn(f"{maker_name(maker)} makes no candidate at {named(where)}, e.g. for {paths[0]}")
    return planned


@functools.cache  # a space is built several times in a run
def _warn(text: str) -> None:
    if distributed.first():
        print(f"warning: {text}", file=sys.stderr)


def _candidates(place: Place, makers: Maker | Sequence[Maker], made_by: list[Maker]) -> dict[str, nn.Module]:
    """The candidates at a place, each checked. made_by: gets the makers of those. Raises SpaceError for one that does
    not fit."""
    candidates = {KEEP: place.module}
    for maker in listed(makers):
        made = maker(place)
        made_by += [maker] if made else []
        if not isinstance(made, Mapping):
            raise SpaceError(
                f"a maker returned a {type(made).__name__} at {place.path}, expected candidates by name",
                fix="return {'name': module}; makers of nas.adapt are called first: skip(), narrower(0.5)",
            )
        if twice := made.keys() & candidates.keys():
            raise SpaceError(
                f"two candidates at {place.path} are called {min(twice)!r}, expected a name each",
                fix="give one of the makers another name",
            )
        for name, candidate in made.items():
            if not isinstance(name, str) or not isinstance(candidate, nn.Module):
                raise SpaceError(
                    f"a maker returned {name!r:.80} -> a {type(candidate).__name__} at {place.path}, expected the name "
                    "of a candidate and an nn.Module",
                    fix="return {'name': module}",
                )
            candidates[name] = candidate.to(_device(place.module))
    for name, candidate in list(candidates.items()) if len(candidates) > 1 else ():
        with undisturbed(candidate, seed=0), torch.no_grad():
            output = _check(place, name, candidate)
        if name != KEEP:
            if place.overwritten and _is_input(place, output):
                candidates[name] = candidate = Copied(candidate)
            candidate.train(place.module.training)
    return candidates


class Copied(nn.Module):
    """Returns a copy of what a module returns that returns its input. For what writes into it afterwards, of which
    nobody else who has the input is to see anything."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.module(*given, **named).clone()


def _is_input(place: Place, output: Tensor) -> bool:
    """Whether the output is in the memory of an input."""
    given = [one for one in tree_leaves((place.inputs, dict(place.named))) if isinstance(one, Tensor)]
    return any(one.untyped_storage().data_ptr() == output.untyped_storage().data_ptr() for one in given)


def fits(place: Place, candidate: nn.Module) -> bool:
    """Whether a candidate takes what the module took, and returns what it returned. For makers that cannot know."""
    try:
        with undisturbed(candidate, seed=0), torch.no_grad():
            _check(place, "", candidate)
    except SpaceError:
        return False
    return True


def _device(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


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
            near = difflib.get_close_matches(named(where), paths, n=4, cutoff=0.0)
            raise SpaceError(
                f"{named(where)} matches no module of {type(model).__name__}",
                fix=f"use a path such as {', '.join(near) or 'that of a module with a name'}",
            )
        if left := [path for path in fits if path not in taken]:
            matched[where] = left
            taken.update(left)
    return matched


def _fits(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _observed(
    model: nn.Module, matched: Mapping[str | type[nn.Module], Sequence[str]], example: Example
) -> list[Place]:
    """The places, as one forward pass shows them, in the order of the model. Places of an entry that do not run are
    left out, if others of the entry run."""
    wanted = {path for found in matched.values() for path in found}
    paths = [path for path, _ in model.named_modules() if path in wanted]
    calls: dict[str, list[Place]] = {path: [] for path in paths}
    written: dict[str, int] = {}  # the version of the output when the module returned it

    def watching(path: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            # The containers of the arguments are copied, as a model may add to a list that it has passed on.
            given = tree_map(lambda leaf: leaf, (inputs, named))
            calls[path].append(Place(path, module, given[0], given[1], output))
            written[path] = version(output)

        return note

    with undisturbed(model, seed=0), torch.no_grad(), contextlib.ExitStack() as hooks:
        for path in paths:
            module = model.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(watching(path), with_kwargs=True))
        try:
            called(model, example)
        except Exception as error:  # whatever the model's own code raises
            raise SpaceError(
                f"the model cannot take the example ({described(error)})",
                fix="give as `example` what the model is called with, a mapping for named arguments",
            ) from error
    for found in matched.values():
        if any(calls[path] for path in found):
            for path in [path for path in found if not calls[path]]:
                del calls[path]
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
    drops = drops_in_place(model)
    return [
        replace(seen[0], overwritten=drops or version(seen[0].output) > written[path]) for path, seen in calls.items()
    ]


def version(output: Any) -> int:
    """The number of in-place writes to a tensor; 0 for an inference tensor, which does not count them."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else 0


def _check(place: Place, name: str, candidate: nn.Module) -> Tensor:
    """Returns the candidate's output. Raises SpaceError unless the candidate takes what the module took, and returns a
    tensor of the same shape and type."""
    try:
        output = candidate(*place.inputs, **place.named)
    except Exception as error:  # whatever the candidate's own code raises
        raise SpaceError(
            f"the candidate {name!r} at {place.path} cannot take what the module takes ({described(error)})",
            fix="change what its maker builds",
        ) from error
    right: Tensor = place.output
    got: Any = f"a {type(output).__name__}"
    if isinstance(output, Tensor):
        got = tuple(output.shape) if output.shape != right.shape else output.dtype
    if got != right.dtype:
        raise SpaceError(
            f"the candidate {name!r} at {place.path} returns {got}, expected "
            f"{right.dtype if isinstance(got, torch.dtype) else tuple(right.shape)}",
            fix="change what its maker builds",
        )
    return output
