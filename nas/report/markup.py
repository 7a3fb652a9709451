"""HTML and SVG from Python: every text is escaped, unless it is Html already."""

from collections.abc import Iterable

from nas.drawing.svg import text as escaped


class Html(str):
    """Markup that is taken as it is."""


VOID = frozenset({"br", "img", "input", "link", "meta", "wbr"})
Child = object


def el(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element. children: Html, texts and numbers, lists of them, None for nothing. Attributes: ``class_`` is
    ``class``, ``data_x`` is ``data-x``; True is one without a value, None and False are left out."""
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{given}>" + ("" if name in VOID else f"{join(children)}</{name}>"))


def join(children: Iterable[Child]) -> Html:
    return Html("".join(part for child in children for part in parts(child)))


def parts(child: Child) -> Iterable[str]:
    if child is None:
        return ()
    if isinstance(child, Html):
        return (child,)
    if isinstance(child, list | tuple):
        return (join(child),)
    return (escaped(str(child)),)


def lines(text: str) -> Html:
    """Several lines of text, for a `pre`."""
    return Html("\n".join(map(escaped, text.split("\n"))))
