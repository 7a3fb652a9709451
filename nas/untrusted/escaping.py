"""Text of others, names of files and classes say, for a terminal and for Markdown: it stays text, on one line."""

import re
import unicodedata

JOINERS = "\u200c\u200d"  # which Persian and Indic words, and emoji, are spelt with
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What Markdown, GitHub's included, makes something of within a line. An underscore within a word is one of the word.
SPECIAL = re.compile(r"[\\`*\[\]<>|&@~$]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.", re.IGNORECASE)


def printable(text: object) -> str:
    r"""The text with all that moves a cursor, changes the direction or cannot be seen spelt out: ``\x1b``, ``\u202e``.

    A terminal would do what such characters say, and show another text than there is.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in INVISIBLE and letter not in JOINERS else letter
        for letter in text
    )


def markdown(text: object) -> str:
    """For a line of Markdown: no link, no picture, no HTML, no cell of a table."""
    return SPECIAL.sub(lambda found: "\\" + found[0], printable(" ".join(str(text).split())))


def code(text: object) -> str:
    """A code span."""
    shown = printable(" ".join(str(text).split()))
    fence = "`" * (longest_run(shown) + 1)
    space = " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    return f"{fence}{space}{shown}{space}{fence}" if shown else ""


def fenced(language: str, text: str) -> list[str]:
    """The lines of a code block."""
    lines = [printable(line) for line in text.split("\n")]
    fence = "`" * max(3, longest_run(text) + 1)
    return [f"{fence}{language}", *lines, fence]


def longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
