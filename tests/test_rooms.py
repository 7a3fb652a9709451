"""The rooms of the package: which way imports go, and who may import Hydra. Read from the syntax trees."""

import ast
from pathlib import Path

import pytest

import nas

ROOT = Path(nas.__file__).parent
# A module imports from its own room, and from rooms of a smaller number. `nas.lazy` and `nas.errors` import nothing.
LEVEL = {
    "errors": 0,
    "lazy": 0,
    "drawing": 1,
    "runtime": 2,
    "settings": 2,
    "storage": 3,
    "data": 3,
    "supernet": 4,
    "spaces": 5,
    "training": 6,
    "methods": 7,
    "formats": 7,
    "adapt": 8,
    "api": 9,
    "studies": 10,
    "cli": 11,
    "report": 11,
}
HYDRA = ("settings", "cli")


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        if name != "nas":
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """Full names of all that a module imports, at its top or inside of a function, but for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    return name.split(".")[1]


MODULES = dict(modules())


def test_every_module_has_a_room():
    assert {room(name) for name in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    others = {room(other) for other in imported(MODULES[name]) if other.startswith("nas.")} & set(LEVEL)
    against = {other for other in others - {room(name)} if LEVEL[other] >= LEVEL[room(name)]}
    assert not against, f"{name} imports from {', '.join(sorted(against))}"


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) not in HYDRA])
def test_hydra_is_imported_in_settings_and_cli_alone(name):
    assert not {other.partition(".")[0] for other in imported(MODULES[name])} & {"hydra", "omegaconf"}


def test_the_report_imports_no_torch():
    inside = [tree for name, tree in MODULES.items() if room(name) in ("report", "drawing")]
    assert not {other.partition(".")[0] for tree in inside for other in imported(tree)} & {"torch", "torchvision"}
