"""The classes of the source.

Modules of one type and structure become one class, with their differences as parameters.
"""

import ast
import inspect
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from nas.formats.source.construction import Call, Items, Literal, Name, Term, empty, filled, layer, literals, shape
from nas.formats.source.parts import CONTAINERS, Part, Parts
from nas.formats.source.statements import statements
from nas.formats.source.trace import trace
from nas.formats.source.unsupported import UnsupportedError

Members = list[tuple[str, Term]]

# Names that the rest of the file uses.
TAKEN = {"nn", "torch", "F", "math", "Path", "OrderedDict", "load_file", "self"}


@dataclass(frozen=True)
class Definition:
    """A class to be written.

    base: nn.Module, or the container it extends. parameters: of its constructor. start: the call of the base's
    constructor. members, buffers: (attribute, term that makes it), in order. body: of its forward; empty if the base
    has one.
    """

    name: str
    base: str
    documentation: str
    parameters: tuple[str, ...]
    start: Term
    members: Members
    buffers: Members
    inputs: tuple[str, ...]
    body: list[ast.stmt]


@dataclass
class _Instance:
    """One module that is to be written as a class. Its values are not parameters yet."""

    module: nn.Module
    start: Term
    members: Members
    buffers: Members
    body: list[ast.stmt]

    def terms(self) -> list[Term]:
        return [self.start, *(term for _, term in (*self.members, *self.buffers))]

    def literals(self) -> list[Literal]:
        return [literal for term in self.terms() for literal in literals(term)]

    def numbers(self) -> list[ast.Constant]:
        """Returns the numbers in the forward, to compare and replace them."""
        nodes = [node for statement in self.body for node in ast.walk(statement)]
        return [node for node in nodes if isinstance(node, ast.Constant) and type(node.value) in (int, float)]

    def structure(self) -> Any:
        """Returns what is equal in all modules that become one class."""
        numbers = self.numbers()
        values = [node.value for node in numbers]
        for node in numbers:
            node.value = 0
        dumped = tuple(ast.dump(statement) for statement in self.body)
        for node, value in zip(numbers, values, strict=True):
            node.value = value
        names = tuple(name for name, _ in (*self.members, *self.buffers))
        return type(self.module), names, tuple(map(shape, self.terms())), dumped


class Classes:
    """The classes of a network.

    definitions: all classes, each after the classes it uses. root: the term that makes the network from them.
    Raises UnsupportedError if the network cannot be written as source.
    """

    def __init__(self, network: nn.Module, found: Parts) -> None:
        self._found = found
        self._graphs = {module: trace(module, found) for module in found.inputs}
        self._made: dict[nn.Module, Term] = {}  # module that is a class -> the term that makes it
        self.definitions: list[Definition] = []
        levels: dict[int, list[nn.Module]] = {}
        self._sort(network, levels)
        for level in sorted(levels):
            alike: dict[Any, list[_Instance]] = {}
            for module in levels[level]:
                instance = self._instance(module)
                alike.setdefault(instance.structure(), []).append(instance)
            for group in alike.values():
                for instances in separated(group):
                    self._define(instances)
        self.root = self._term(network, [])

    def _sort(self, module: nn.Module, levels: dict[int, list[nn.Module]]) -> int:
        """Sorts the modules that are classes by the depth of the classes nested in them. Returns the module's depth."""
        if self._found.of[module] is Part.LAYER:
            return 0  # a layer makes its inner modules itself
        depth = max((self._sort(child, levels) for child in module.children()), default=0)
        if self._found.of[module] is not Part.CLASS:
            return depth
        if module not in levels.setdefault(depth + 1, []):
            levels[depth + 1].append(module)
        return depth + 1

    def _instance(self, module: nn.Module) -> _Instance:
        graph = self._graphs.get(module)
        used = [] if graph is None else [str(node.target) for node in graph.nodes if has_path(node)]
        changes = any(getattr(inside, "inplace", False) for inside in module.modules())
        body = [] if graph is None else statements(graph, lambda path: self._place(module, path), mutates=changes)
        start, members, buffers = Call("super().__init__", ()), Members(), Members()
        if isinstance(module, CONTAINERS):
            start = Call("super().__init__", self._contents(module, used))
        else:
            members = [(name, self._term(child, inside)) for name, child, inside in kept(module, used)]
        weights = [(name, tensor) for name, tensor in module.named_parameters(recurse=False)]
        members += [(attribute(name), empty(name, tensor)) for name, tensor in weights]
        buffers += [(attribute(name), empty(name, tensor)) for name, tensor in module.named_buffers(recurse=False)]
        return _Instance(module, start, members, buffers, body)

    def _term(self, module: nn.Module, used: Sequence[str]) -> Term:
        """Returns the term that makes a module. used: the paths in it that its class calls."""
        part = self._found.of[module]
        if part is Part.CLASS:
            return self._made[module]
        if part is Part.LAYER:
            return layer(module)
        if part is Part.NOTHING:
            return Call("nn.Identity", ())
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            raise UnsupportedError(not_a_class(module))
        return Call(base(module) if isinstance(module, CONTAINERS) else "nn.ModuleDict", self._contents(module, used))

    def _contents(self, module: nn.Module, used: Sequence[str]) -> tuple[tuple[None, Term], ...]:
        """Returns the arguments of a container: all its modules, because they are numbered.

        Any other module keeps the used ones.
        """
        children = kept(module, used, every=isinstance(module, CONTAINERS))
        names = tuple(name for name, _, _ in children)
        terms = tuple(self._term(child, inside) for _, child, inside in children)
        if isinstance(module, nn.ModuleList):
            return ((None, Items(terms)),)
        if not isinstance(module, nn.Sequential):
            return ((None, Items(terms, names)),)
        if names == tuple(map(str, range(len(names)))):
            return tuple((None, term) for term in terms)
        return ((None, Call("OrderedDict", ((None, Items(terms, names)),))),)

    def _place(self, module: nn.Module, path: str) -> ast.expr:
        """Returns the expression for a module or tensor in the class of `module`, from its path there."""
        expression: ast.expr = ast.Name("self", ast.Load())
        inside: nn.Module | None = module
        for name in path.split("."):
            if inside is None:
                raise UnsupportedError(f"{type(module).__name__} reaches for {path}, which is not a module or weight")
            holder = inside is not module and self._found.of[inside] is Part.HOLDER
            as_dict = isinstance(inside, nn.ModuleDict) or (holder and not isinstance(inside, CONTAINERS))
            child = inside._modules.get(name)
            if child is None and holder:
                raise UnsupportedError(not_a_class(inside))
            if child is None and name not in inside.state_dict():
                raise UnsupportedError(
                    f"{type(module).__name__} holds a tensor at {path} that is not a parameter or buffer of its state"
                )
            if as_dict and (hasattr(nn.ModuleDict, name) or not name.isidentifier() or keyword.iskeyword(name)):
                expression = ast.Subscript(expression, ast.Constant(name))
            elif name.isdigit():
                expression = ast.Subscript(expression, ast.Constant(int(name)))
            else:
                expression = ast.Attribute(expression, attribute(name))
            inside = child
        return expression

    def _define(self, instances: list[_Instance]) -> None:
        """Adds one class for modules of one structure."""
        first = instances[0]
        parameters: dict[tuple[str, ...], str] = {}  # values in all instances -> parameter
        passed: list[list[Literal]] = [[] for _ in instances]

        def parameter(name: str, values: Sequence[Any]) -> Name:
            """Returns a parameter. Arguments that are equal to each other in every instance share one parameter."""
            column = tuple(map(repr, values))
            if column not in parameters:
                parameters[column] = unused(name, {*parameters.values(), *TAKEN})
                for arguments, value in zip(passed, values, strict=True):
                    arguments.append(Literal(parameters[column], value))
            return Name(parameters[column])

        terms: list[Literal | Name] = []
        for column in zip(*(instance.literals() for instance in instances), strict=True):
            values = [literal.value for literal in column]
            terms.append(column[0] if same(values) else parameter(column[0].name, values))
        filling = iter(terms)  # each call of `filled` takes as many as it needs
        start = filled(first.start, filling)
        members = [(name, filled(term, filling)) for name, term in first.members]
        buffers = [(name, filled(term, filling)) for name, term in first.buffers]

        named: dict[int, str] = {}
        for column in zip(*(instance.numbers() for instance in instances), strict=True):
            values = [number.value for number in column]
            if not same(values):
                name = attribute_with(instances, values)
                assert name is not None  # see separated()
                named[id(column[0])] = name
                if name not in dict(members):
                    members.append((name, parameter(name, values)))
        body = [_Named(named).visit(statement) for statement in first.body]

        kind = type(first.module)
        definition = Definition(
            name=unused(kind.__name__, {*TAKEN, *(known.name for known in self.definitions)}),
            base=base(first.module),
            documentation=documentation(kind),
            parameters=tuple(parameters.values()),
            start=start,
            members=members,
            buffers=buffers,
            inputs=self._found.inputs.get(first.module, ()),
            body=body,
        )
        self.definitions.append(definition)
        for instance, arguments in zip(instances, passed, strict=True):
            self._made[instance.module] = Call(definition.name, tuple((value.name, value) for value in arguments))


class _Named(ast.NodeTransformer):
    """Replaces numbers by attributes of self."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        name = self._names.get(id(node))
        return node if name is None else ast.Attribute(ast.Name("self", ast.Load()), name)


def separated(instances: list[_Instance]) -> Iterator[list[_Instance]]:
    """Yields groups of instances that can share a class.

    Their forwards may differ only in numbers that are also their attributes, because a class can have these as
    parameters.
    """
    for column in zip(*(instance.numbers() for instance in instances), strict=True):
        values = [number.value for number in column]
        if not same(values) and attribute_with(instances, values) is None:
            by_value: dict[str, list[_Instance]] = {}
            for instance, value in zip(instances, values, strict=True):
                by_value.setdefault(repr(value), []).append(instance)
            for part in by_value.values():
                yield from separated(part)
            return
    yield instances


def attribute_with(instances: list[_Instance], values: Sequence[Any]) -> str | None:
    """Returns the attribute that has the given value in every instance, or None."""
    for name in vars(instances[0].module):
        held = [vars(instance.module).get(name) for instance in instances]
        if not name.startswith("_") and list(map(repr, held)) == list(map(repr, values)):
            return name
    return None


def kept(module: nn.Module, used: Sequence[str], *, every: bool = False) -> list[tuple[str, nn.Module, list[str]]]:
    """Returns (name, child, the paths used in it) for children that are used or hold weights; for all if `every`."""
    found = []
    for name, child in module._modules.items():
        inside = [path.partition(".")[2] for path in used if path.partition(".")[0] == name]
        if child is not None and (every or inside or child.state_dict()):
            found.append((name, child, inside))
    return found


def not_a_class(module: nn.Module) -> str:
    return f"{type(module).__name__} has weights of its own, and is not called with tensors alone"


def has_path(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr")


def base(module: nn.Module) -> str:
    return next((f"nn.{kind.__name__}" for kind in CONTAINERS if isinstance(module, kind)), "nn.Module")


def attribute(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UnsupportedError(f"a part of it is called {name!r}, which is not a name in Python")
    return name


def unused(name: str, taken: set[str]) -> str:
    """Returns the name, with a number if it is taken."""
    number = 2
    numbered = name
    while numbered in taken:
        numbered, number = f"{name}_{number}" if name.islower() else f"{name}{number}", number + 1
    return numbered


def same(values: Sequence[Any]) -> bool:
    """Returns whether all values look equal to a reader: 1, 1.0 and True do not."""
    return len(set(map(repr, values))) == 1


def documentation(kind: type) -> str:
    """Returns the first paragraph of a class's own docstring."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "").partition("\n\n")[0]
    return "" if '"""' in text or "\\" in text else text
