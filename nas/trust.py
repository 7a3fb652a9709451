"""What a configuration may name, and whose word counts: the command line's, not that of files that are read."""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.errors import ConfigError
from nas.settings import among, leaves

# What `_target_` may name without being allowed explicitly.
TRUSTED = ("nas", "torch.optim", "torch.nn.functional")

# Parts of this project that act, on files, processes or other configurations, where a target is to build.
ACTING = (
    "atomic",
    "checkpoint",
    "cli",
    "config",
    "export",
    "fresh",
    "fresh_process",
    "reload",
    "run_directory",
    "schemas",
    "stages",
    "storage",
    "trust",
)


def allowed(config: DictConfig) -> list[str]:
    """The packages a command line trusts: those of ``allow_targets``, and those whose factories it names itself; not
    those of a run that is resumed, see `nas.cli.resume.resumed`."""
    if OmegaConf.select(config, "resume") is not None:
        return list(config.allow_targets)
    return trusted_by(config)


def trusted_by(config: DictConfig) -> list[str]:
    factories = (OmegaConf.select(config, f"{group}.factory") for group in ("space", "data"))
    return [*config.allow_targets, *(str(path).partition(".")[0] for path in factories if path is not None)]


def targets(node: Any) -> Iterator[Any]:
    """Every ``_target_`` in a plain configuration, at any depth."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


def check_target(target: Any, allow: Sequence[str] = ()) -> None:
    """Raises ConfigError unless `target` names something that is defined in an allowed package.

    The name alone does not tell: ``nas.atomic.os.remove`` begins with ``nas`` and is not ours. So what it resolves to
    has to say that it comes from there, too.
    """
    from hydra._internal.utils import _locate  # what instantiate() uses; the public get_object prints what it raises

    prefixes = (*TRUSTED, *allow)

    def inside(name: object) -> bool:
        return isinstance(name, str) and among(name, prefixes) and not among(name, [f"nas.{part}" for part in ACTING])

    if not inside(target):
        raise ConfigError(
            f"_target_ {target!r} is outside of the packages that may be built ({', '.join(prefixes)})",
            fix="if you trust it, add its package: allow_targets=[package]",
        )
    try:
        found = _locate(target)
    except Exception as error:  # importing a user's package runs it: whatever that raises is the reason
        reason = error.__cause__ or error
        raise ConfigError(
            f"_target_ {target!r} does not exist, or cannot be imported ({type(reason).__name__}: "
            f"{' '.join(str(reason).split())})",
            fix="correct the name; your own package has to be installed, or in the directory the command is started in",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"_target_ {target!r} is a {type(found).__name__}, expected a function or class",
            fix="add the name of what is to be called, as in package.module.function",
        )
    if not inside(getattr(found, "__module__", None)):
        raise ConfigError(
            f"_target_ {target!r} leads to {getattr(found, '__module__', 'something')}, outside of the packages that "
            f"may be built ({', '.join(prefixes)})",
            fix="name the object by the package that defines it, and allow that: allow_targets=[package]",
        )


def refuse_interpolations(node: Any, source: object) -> None:
    """Raises ConfigError for a ``${...}`` in a configuration that was read: what a run writes has none left, and one
    would be resolved here, with this machine's environment."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for setting, value in leaves(plain, lists=True).items():
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{source} has {setting}={str(value)[:60]}, expected a value, not what is to be resolved to one",
                fix="write the value itself",
            )
