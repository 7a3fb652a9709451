"""Builds HTML and SVG. Every text is escaped unless it is `Html`."""

from collections.abc import Iterable

from nas.drawing.svg import text as escaped


class Html(str):
    """Markup that needs no escaping."""


VOID = frozenset({"br", "img", "input", "link", "meta", "wbr"})
Child = object
Section = tuple[str, str, Html]  # id, heading, content


def el(name: str, /, *children: Child, **attributes: object) -> Html:
    """Returns an element.

    children: Html, texts, numbers, lists of them, or None for nothing. Attributes: ``class_`` becomes ``class``,
    ``data_x`` becomes ``data-x``. True writes the attribute without a value; None and False leave it out.
    """
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
    """Returns several lines of text, for a `pre` element."""
    return Html("\n".join(map(escaped, text.split("\n"))))


def tile(label: str, value: str, note: str = "") -> Html:
    return el("div", el("dt", label), el("dd", value), el("p", note) if note else None, class_="tile")
