"""Writes a graph of torch.fx as Python statements."""

import ast
import inspect
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from nas.formats.source.unsupported import UnsupportedError

LENGTH = 80  # of a statement, in characters: longer ones are split

BINARY: dict[Any, ast.operator] = {
    operator.add: ast.Add(),
    operator.sub: ast.Sub(),
    operator.mul: ast.Mult(),
    operator.truediv: ast.Div(),
    operator.floordiv: ast.FloorDiv(),
    operator.mod: ast.Mod(),
    operator.pow: ast.Pow(),
    operator.matmul: ast.MatMult(),
    operator.and_: ast.BitAnd(),
    operator.or_: ast.BitOr(),
    operator.xor: ast.BitXor(),
}
COMPARISONS: dict[Any, ast.cmpop] = {
    operator.eq: ast.Eq(),
    operator.ne: ast.NotEq(),
    operator.lt: ast.Lt(),
    operator.le: ast.LtE(),
    operator.gt: ast.Gt(),
    operator.ge: ast.GtE(),
}
UNARY: dict[Any, ast.unaryop] = {operator.neg: ast.USub(), operator.pos: ast.UAdd(), operator.invert: ast.Invert()}
NAMESPACES = {"F": F, "torch": torch, "torch.linalg": torch.linalg, "torch.fft": torch.fft, "math": math}


def statements(graph: fx.Graph, place: Callable[[str], ast.expr], *, mutates: bool) -> list[ast.stmt]:
    """Returns the body of the function that computes the graph.

    place: path of a module or tensor of the traced module -> its expression. mutates: whether one of those modules
    changes its input, which fixes the order of all statements.
    """
    return _Writer(graph, place, mutates=mutates).body


class _Writer:
    """Writes a value that is used once into the statement that uses it, if that statement stays short."""

    def __init__(self, graph: fx.Graph, place: Callable[[str], ast.expr], *, mutates: bool) -> None:
        self.body: list[ast.stmt] = []
        self._place = place
        self._pending: dict[fx.Node, ast.expr] = {}
        for node in reversed(list(graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output") and not in_place(node):
                graph.erase_node(node)
        in_order = mutates or any(in_place(node) for node in graph.nodes)
        for node in graph.nodes:
            if node.op != "placeholder":
                self._write(node, in_order=in_order)

    def _write(self, node: fx.Node, *, in_order: bool) -> None:
        """Writes the statement of a node, or keeps its expression for the only statement that uses it."""
        expression = self._expression(node)
        returned = node.op == "output" or [user.op for user in node.users] == ["output"]
        start = "return " if returned else f"{node.name} = "
        while length(start + ast.unparse(expression)) > LENGTH and (unnamed := self._unnamed(node)):
            self._assign(unnamed[0])
            expression = self._expression(node)
        if node.op == "output":
            self.body.append(ast.Return(expression))
        elif not node.users:
            self.body.append(ast.Expr(expression))
        else:
            self._pending[node] = expression
            user = next(iter(node.users))
            once = len(node.users) == 1 and uses(user, node) == 1
            kept_in_order = not in_order or user is node.next
            if not (once and kept_in_order) and not is_name(expression):
                self._assign(node)

    def _unnamed(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that `node` uses and that have no name yet, in the order of computation."""
        return [used for used in node.all_input_nodes if not is_name(self._value(used))]

    def _assign(self, node: fx.Node) -> None:
        self.body.append(ast.Assign([ast.Name(node.name, ast.Store())], self._pending.pop(node)))

    def _expression(self, node: fx.Node) -> ast.expr:
        target: Any = node.target
        if node.op == "output":
            return self._value(node.args[0])
        if node.op == "get_attr":
            return self._place(target)
        if node.op == "call_module":
            return self._call(self._place(target), node.args, node.kwargs)
        if node.op == "call_method":
            return self._call(ast.Attribute(self._value(node.args[0]), target), node.args[1:], node.kwargs)
        return self._function(target, node.args, node.kwargs)

    def _function(self, target: Any, args: Any, kwargs: Any) -> ast.expr:
        if target is getattr:
            return ast.Attribute(self._value(args[0]), args[1])
        if target is operator.getitem:
            return ast.Subscript(self._value(args[0]), self._index(args[1]))
        if target is operator.add:
            # A 0 comes from the start of sum(), or from a dropped edge.
            kept = [arg for arg in args if not (type(arg) is int and arg == 0)]
            if len(kept) == 1:
                return self._value(kept[0])
        if target in BINARY:
            left, right = map(self._value, args)
            return ast.BinOp(left, BINARY[target], right)
        if target in COMPARISONS:
            left, right = map(self._value, args)
            return ast.Compare(left, [COMPARISONS[target]], [right])
        if target in UNARY:
            return ast.UnaryOp(UNARY[target], self._value(args[0]))
        if target is operator.abs:
            return self._call(ast.Name("abs", ast.Load()), args, kwargs)
        called = getattr(target, "__name__", "")
        for prefix, namespace in NAMESPACES.items():
            # Its own name first; torch.linalg.norm calls itself linalg_norm, and F.logsigmoid log_sigmoid.
            for name in (called, *vars(namespace)):
                if name and not name.startswith("_") and getattr(namespace, name, None) is target:
                    function = ast.parse(f"{prefix}.{name}", mode="eval").body
                    return self._call(function, args, without_defaults(target, kwargs))
        raise UnsupportedError(f"it calls {called or target}, which is not a public function of torch")

    def _call(self, function: ast.expr, args: Any, kwargs: Any) -> ast.Call:
        keywords = [ast.keyword(name, self._value(value)) for name, value in kwargs.items()]
        return ast.Call(function, [self._value(arg) for arg in args], keywords)

    def _index(self, index: Any) -> ast.expr:
        if isinstance(index, tuple) and index:
            return ast.Tuple([self._index(one) for one in index], ast.Load())
        if isinstance(index, slice):
            ends = (None if end is None else self._value(end) for end in (index.start, index.stop, index.step))
            return ast.Slice(*ends)
        return self._value(index)

    def _value(self, value: Any) -> ast.expr:
        if isinstance(value, fx.Node):
            return self._pending.get(value) or ast.Name(name_of(value), ast.Load())
        if isinstance(value, tuple):
            return ast.Tuple([self._value(item) for item in value], ast.Load())
        if isinstance(value, list):
            return ast.List([self._value(item) for item in value], ast.Load())
        return literal(value)


def name_of(node: fx.Node) -> str:
    """Returns the name of a node. An argument keeps its name in the signature.

    fx renames an argument with the name of a builtin, such as ``input``. No other node gets either name.
    """
    return str(node.target) if node.op == "placeholder" else node.name


def literal(value: Any) -> ast.expr:
    """Returns a constant. Raises UnsupportedError if it cannot be written as source."""
    if isinstance(value, tuple | list):
        items = [literal(item) for item in value]
        return ast.List(items, ast.Load()) if isinstance(value, list) else ast.Tuple(items, ast.Load())
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            return ast.parse(f"float('{value}')", mode="eval").body
        # A minus is an operator of its own: -1 ** 2 is not (-1) ** 2.
        return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)
    if value is None or isinstance(value, bool | str | type(...)):
        return ast.Constant(value)
    if isinstance(value, torch.dtype | torch.memory_format):
        return ast.parse(str(value), mode="eval").body
    raise UnsupportedError(f"it uses a constant of type {type(value).__name__}")


def length(text: str) -> int:
    """Returns the length with all numbers equally long, so that modules that differ in a number are written alike."""
    return len(re.sub(r"\b\d+\b", "1024", text))


def without_defaults(function: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments that differ from their defaults. torch's own functions pass all arguments on."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have no signature
        return dict(kwargs)
    # Of F.max_pool2d, which takes anything and passes it on, no parameter is known.
    return {
        name: value
        for name, value in kwargs.items()
        if name not in parameters or repr(parameters[name].default) != repr(value)
    }


def is_name(expression: ast.expr) -> bool:
    """Returns whether an expression is a variable, or an attribute of one."""
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name)


def in_place(node: fx.Node) -> bool:
    """Returns whether a node changes one of its inputs: by torch's convention, such names end in an underscore."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    changes = node.target is operator.setitem or (name.endswith("_") and not name.endswith("__"))
    return node.op in ("call_method", "call_function") and (
        (changes and node.target not in BINARY) or bool(node.kwargs.get("inplace"))
    )


def uses(user: fx.Node, used: fx.Node) -> int:
    """Returns how often `user` takes `used`. fx counts each user only once."""
    count = 0

    def look(node: fx.Node) -> fx.Node:
        nonlocal count
        count += node is used
        return node

    fx.map_arg((user.args, user.kwargs), look)
    return count
