"""The code that the readers and writers of genotype notations share."""

import re

from nas.errors import GenotypeError
from nas.supernet.genotype import Genotype

NAME = "[A-Za-z0-9_]+"  # the name of an operation
LENGTH_LIMIT = 20_000  # characters; the longest published genotype has about seven hundred


class Scanner:
    """Reads a text from left to right, one token at a time, and tracks the position. Runs nothing in the text.

    spaces: whether white space may stand between tokens; around the text it is always allowed. source: the name of the
    text in errors. example: a well-formed text. The methods that read a token raise GenotypeError, with line and
    column, if another token follows.
    """

    def __init__(self, text: str, *, spaces: bool, source: str, example: str) -> None:
        self._text = text
        self._spaces = spaces
        self._source = source
        self._example = example
        self.position = 0
        if len(text) > LENGTH_LIMIT:
            raise GenotypeError(
                f"{source} has {len(text)} characters, expected at most {LENGTH_LIMIT}", fix=f"write it as {example}"
            )
        self._step(0, spaces=True)

    def sees(self, literal: str) -> bool:
        """Whether `literal` comes next."""
        return self._text.startswith(literal, self.position)

    def accept(self, literal: str) -> bool:
        """Steps over `literal` if it comes next. Returns whether it came next."""
        found = self.sees(literal)
        if found:
            self._step(len(literal))
        return found

    def take(self, literal: str) -> None:
        if not self.accept(literal):
            raise self.error(repr(literal))

    def name(self) -> str:
        """Reads letters, digits and underscores."""
        return self._match(NAME, "an operation")

    def quoted_name(self) -> str:
        return self._match(f"'{NAME}'|\"{NAME}\"", "an operation in quotes")[1:-1]

    def number(self) -> int:
        # Six digits are enough for any node. The limit keeps int() cheap.
        return int(self._match(r"[0-9]{1,6}(?![0-9])", "a number"))

    def end(self) -> None:
        self._step(0, spaces=True)
        if self.position < len(self._text):
            raise self.error("the end")

    def error(self, expected: str, *, position: int | None = None) -> GenotypeError:
        """The error to raise at the current or a given position. Line and column count from 1."""
        position = self.position if position is None else position
        before = self._text[:position]
        line, column = before.count("\n") + 1, position - before.rfind("\n")
        got = repr(self._text[position : position + 20]) if position < len(self._text) else "the end"
        return GenotypeError(
            f"{self._source} is malformed at line {line}, column {column}: expected {expected}, got {got}",
            fix=f"write it as {self._example}",
        )

    def _match(self, pattern: str, expected: str) -> str:
        found = re.compile(pattern).match(self._text, self.position)
        if found is None:
            raise self.error(expected)
        self._step(len(found[0]))
        return found[0]

    def _step(self, length: int, *, spaces: bool = False) -> None:
        self.position += length
        while (spaces or self._spaces) and self._text[self.position : self.position + 1].isspace():
            self.position += 1


def check_space(genotype: Genotype, space: str) -> None:
    """Raises GenotypeError unless the genotype is of `space`, the space of the notation."""
    if genotype.space != space:
        raise GenotypeError(
            f"the genotype is of the space {genotype.space!r}, expected {space!r}",
            fix=f"give a genotype of {space}",
        )
