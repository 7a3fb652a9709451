"""Checks the arguments of `nas.adapt.insert`, and refuses modules that it cannot replace."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import SpaceError


def check_arguments(model: Any, places: Any, example: Any) -> None:
    """Raises SpaceError for arguments of another type than `insert` takes."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SpaceError(
            f"model is {got}, expected an nn.Module",
            fix="give the module itself, of what nas.retrain returned .network",
        )
    if not isinstance(places, Mapping) or not places:
        got = f"a {type(places).__name__}" if not isinstance(places, Mapping) else "empty"
        raise SpaceError(f"places is {got}, expected where -> makers", fix="give e.g. {'layer*.*': skip()}")
    for where, makers in places.items():
        if not isinstance(where, str) and not (isinstance(where, type) and issubclass(where, nn.Module)):
            raise SpaceError(
                f"places has {where!r}, expected paths of modules or types of modules",
                fix="give e.g. {'layer*.*': skip()} or {nn.Conv2d: depthwise()}",
            )
        for maker in listed(makers):
            if not callable(maker):
                raise SpaceError(
                    f"the maker at {named(where)} is {maker!r:.80}, expected a function",
                    fix="give those of nas.adapt, called: skip(), narrower(0.5)",
                )
            if getattr(maker, "__module__", "").startswith("nas.adapt.") and "." not in maker.__qualname__:
                name = maker.__name__
                raise SpaceError(
                    f"the maker at {named(where)} is the function {name} itself, expected what it returns",
                    fix=f"call it: {name}({'' if name in ('skip', 'depthwise') else '...'})",
                )
    if not isinstance(example, Tensor | Mapping | Sequence) or isinstance(example, str):
        raise SpaceError(
            f"example is a {type(example).__name__}, expected a tensor, a sequence of arguments, or a mapping of named "
            "ones",
            fix="give a small batch of what the model is called with",
        )


FIXED_CODE = {
    torch.jit.ScriptModule: "is a TorchScript module",
    torch.fx.GraphModule: "was traced by torch.fx",
}


def refuse_compiled(model: nn.Module) -> None:
    for path, module in model.named_modules():
        reasons = [what for kind, what in FIXED_CODE.items() if isinstance(module, kind)]
        # By torch.compile, which wraps the module, or by module.compile(), which leaves the class as it is. The wrapper
        # has its module as _orig_mod; to import its class takes two thirds as long as to import torch.
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            reasons.append("was compiled by torch.compile")
        for what in reasons[:1]:
            raise SpaceError(
                f"{path or 'the model'} {what}, expected plain modules",
                fix="insert the choices before the model is traced or compiled",
            )


def listed(makers: Any) -> list[Any]:
    return list(makers) if isinstance(makers, Sequence) and not isinstance(makers, str) else [makers]


def maker_name(maker: Any) -> str:
    """The name of a maker in messages: ``narrower`` for what narrower(0.5) returns."""
    if getattr(maker, "__module__", "").startswith("nas.adapt."):
        return str(maker.__qualname__.partition(".")[0])
    return str(getattr(maker, "__name__", type(maker).__name__))


def named(where: str | type[nn.Module]) -> str:
    return where if isinstance(where, str) else f"the type {where.__name__}"


def refuse_shared(model: nn.Module, paths: Mapping[str, Any]) -> None:
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
