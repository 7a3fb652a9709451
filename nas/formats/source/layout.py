"""Lays out lines of Python as the formatters black and ruff do by default."""

import ast
import io
import tokenize
from collections.abc import Iterator

from nas.formats.source.construction import MISSING, Call, Items, Literal, Name, Term
from nas.formats.source.statements import literal

WIDTH = 88


def laid_out(prefix: str, term: Term, suffix: str, *, indent: int) -> Iterator[str]:
    """Yields a term between a prefix and a suffix: on one line, or with one argument per line if that is too long."""
    flat = one_line(term)
    space = " " * indent
    if indent + len(prefix) + len(flat) + len(suffix) <= WIDTH or isinstance(term, Literal | Name):
        yield f"{space}{prefix}{flat}{suffix}"
    elif isinstance(term, Call):
        yield f"{space}{prefix}{term.function}("
        for keyword, argument in written(term):
            yield from laid_out(f"{keyword}=" if keyword else "", argument, ",", indent=indent + 4)
        yield f"{space}){suffix}"
    else:
        opening, closing = "[]" if term.names is None else "{}"
        yield f"{space}{prefix}{opening}"
        for key, item in zip(keys(term), term.items, strict=True):
            yield from laid_out(key, item, ",", indent=indent + 4)
        yield f"{space}{closing}{suffix}"


def one_line(term: Term) -> str:
    if isinstance(term, Literal):
        return code(literal(term.value))
    if isinstance(term, Name):
        return term.name
    if isinstance(term, Call):
        arguments = (f"{keyword}={one_line(value)}" if keyword else one_line(value) for keyword, value in written(term))
        return f"{term.function}({', '.join(arguments)})"
    items = ", ".join(key + one_line(item) for key, item in zip(keys(term), term.items, strict=True))
    return f"[{items}]" if term.names is None else f"{{{items}}}"


def keys(items: Items) -> list[str]:
    return [""] * len(items.items) if items.names is None else [f"{code(ast.Constant(name))}: " for name in items.names]


def written(call: Call) -> list[tuple[str | None, Term]]:
    """Returns the arguments of a call that differ from their defaults."""
    return [
        (keyword, argument)
        for keyword, argument in call.arguments
        if not (isinstance(argument, Literal) and argument.default is not MISSING and is_default(argument))
    ]


def is_default(argument: Literal) -> bool:
    return repr(argument.value) == repr(argument.default)


def statement(node: ast.stmt, *, indent: int) -> Iterator[str]:
    """A statement of a forward."""
    space, flat = " " * indent, code(node)
    call = getattr(node, "value", None)
    if indent + len(flat) <= WIDTH or not isinstance(call, ast.Call):
        yield space + flat
        return
    # The call's own arguments, one a line.
    head = flat.removesuffix(code(call))
    yield f"{space}{head}{code(call.func)}("
    for argument in call.args:
        yield f"{space}    {code(argument)},"
    for keyword in call.keywords:
        yield f"{space}    {keyword.arg}={code(keyword.value)},"
    yield f"{space})"


def code(node: ast.AST) -> str:
    """Returns one line of code, with strings in double quotes."""
    text = ast.unparse(ast.fix_missing_locations(node))
    if "'" not in text:
        return text
    tokens = [
        token._replace(string='"' + token.string[1:-1] + '"')
        if token.type == tokenize.STRING and token.string[0] == "'" and '"' not in token.string
        else token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    ]
    # Replaced strings are as long as before, so every token keeps its place.
    return tokenize.untokenize(tokens)
