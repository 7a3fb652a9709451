"""The import directions between the rooms of the package, and who may import Hydra. Read from the syntax trees."""

import ast
from pathlib import Path

import nas
from nas.settings.names import TARGETS

ROOT = Path(nas.__file__).parent
# A module imports from its own room, and from rooms of a smaller number.
LEVEL = {
    "untrusted": 0,
    "errors": 1,
    "drawing": 2,
    "runtime": 3,
    "settings": 4,
    "storage": 5,
    "data": 6,
    "supernet": 7,
    "spaces": 8,
    "training": 9,
    "methods": 10,
    "formats": 10,
    "adapt": 11,
    "api": 12,
    "report": 13,
    "studies": 14,
    "cli": 15,
}
HYDRA = ("settings", "cli")


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        if name != "nas":
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """Full names of all that a module imports, at its top or inside of a function."""
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


def test_imports_go_one_way():
    against = [
        f"{name} imports {other}"
        for name, tree in MODULES.items()
        for other in imported(tree)
        if other.startswith("nas.") and room(other) in LEVEL and room(other) != room(name)
        if LEVEL[room(other)] >= LEVEL[room(name)]
    ]
    assert against == []


def test_hydra_is_imported_in_settings_and_cli_alone():
    others = {name: {other.partition(".")[0] for other in imported(tree)} for name, tree in MODULES.items()}
    assert [name for name, found in others.items() if found & {"hydra", "omegaconf"} and room(name) not in HYDRA] == []


def test_reports_read_files():
    allowed = {"report", "untrusted", "errors", "drawing", "settings", "storage", "__version__"}
    others = {room(other) for name, tree in MODULES.items() if room(name) == "report" for other in imported(tree)
              if other.startswith("nas.")}  # fmt: skip
    assert others <= allowed


def test_drawing_and_reports_import_no_torch():
    inside = {name: tree for name, tree in MODULES.items() if room(name) in ("report", "drawing")}
    others = {name: {other.partition(".")[0] for other in imported(tree)} for name, tree in inside.items()}
    assert [name for name, found in others.items() if found & {"torch", "torchvision"}] == []


def test_no_argument_list_is_longer_than_eight():
    """But for the settings of a person: what a configuration names, and the functions of Python. And for the kernels of
    Triton, whose constants are arguments of their own."""
    named = {target.rpartition(".")[2] for target in TARGETS if target.startswith("nas.")}
    long = []
    for name, tree in MODULES.items():
        classes = {one: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for one in node.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or name == "nas.api" or classes.get(node) in named:
                continue
            if "triton.jit" in [ast.unparse(one) for one in node.decorator_list]:
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([one for one in arguments if one.arg not in ("self", "cls")]) > 8:
                long.append(f"{name}.{node.name}")
    assert long == []
