"""Escapes untrusted text, e.g. names of files and classes, so that terminals and Markdown show plain text."""

import re
import unicodedata

JOINERS = "\u200c\u200d"  # the spelling of Persian and Indic words and of emoji needs these
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Characters with a meaning inside a line of Markdown or GitHub's Markdown. An underscore inside a word has none.
SPECIAL = re.compile(r"[\\`*\[\]<>|&@~$]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.", re.IGNORECASE)


def printable(text: object) -> str:
    r"""The text, with control, direction and invisible characters written as escapes: ``\x1b``, ``\u202e``.

    A terminal would obey such characters and show a different text.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in INVISIBLE and letter not in JOINERS else letter
        for letter in text
    )


def markdown(text: object) -> str:
    """Escapes text for one line of Markdown, so that it makes no link, picture, HTML or table cell."""
    return SPECIAL.sub(lambda found: "\\" + found[0], printable(" ".join(str(text).split())))


def code(text: object) -> str:
    """The text as a Markdown code span."""
    shown = printable(" ".join(str(text).split()))
    fence = "`" * (longest_run(shown) + 1)
    space = " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    return f"{fence}{space}{shown}{space}{fence}" if shown else ""


def fenced(language: str, text: str) -> list[str]:
    """The lines of a Markdown code block."""
    lines = [printable(line) for line in text.split("\n")]
    fence = "`" * max(3, longest_run(text) + 1)
    return [f"{fence}{language}", *lines, fence]


def longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
