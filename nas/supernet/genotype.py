"""A genotype is the result of a search: a small JSON file that people can read, compare and share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nas.errors import GenotypeError
from nas.settings.arguments import path_of
from nas.untrusted import plain_data, regular_file

FORMAT = "nas-genotype"
VERSION = 1
SIZE_LIMIT = 1_000_000  # bytes; the largest genotype of a published space takes about two thousand


@dataclass(frozen=True)
class Genotype:
    """The candidate that a search chose for each choice.

    space: the name of the search space, e.g. ``nas_bench_201``.
    choices: choice key -> the candidate's name, or None for an edge that was dropped.
    """

    space: str
    choices: Mapping[str, str | None]

    def __post_init__(self) -> None:
        if not isinstance(self.choices, Mapping):  # of a deriver of the user's own, say
            raise GenotypeError(
                f"the choices of a genotype are a {type(self.choices).__name__}, expected a dict of key -> "
                "candidate name",
                fix="let the deriver return e.g. {'cell/0-1': 'skip_connect'}",
            )
        chosen = {python_text(key): python_text(name) for key, name in self.choices.items()}
        object.__setattr__(self, "choices", MappingProxyType(chosen))

    def __reduce__(self) -> tuple[Any, ...]:
        return Genotype, (self.space, dict(self.choices))  # the view of the choices can be neither pickled nor copied

    def __hash__(self) -> int:
        return hash((self.space, frozenset(self.choices.items())))

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "space": self.space, "choices": dict(self.choices)}

    @classmethod
    def from_dict(cls, raw: object, *, source: str = "the genotype") -> "Genotype":
        """Raises GenotypeError, naming `source`, if `to_dict` could not have written `raw`."""
        fix = f'expected {{"format": "{FORMAT}", "version": {VERSION}, "space": ..., "choices": {{...}}}}'
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise GenotypeError(f"{source} is not a genotype", fix=fix)
        if type(raw.get("version")) is not int or raw["version"] != VERSION:
            raise GenotypeError(
                f"{source} has version {raw.get('version')!s:.20}, expected {VERSION}",
                fix="read it with the release of this project that wrote it",
            )
        space, chosen = raw.get("space"), raw.get("choices")
        if raw.keys() != {"format", "version", "space", "choices"} or not isinstance(space, str):
            raise GenotypeError(f"{source} has the fields {', '.join(map(str, raw)):.200}", fix=fix)
        if not isinstance(chosen, dict) or not all(
            isinstance(key, str) and (name is None or isinstance(name, str)) for key, name in chosen.items()
        ):
            raise GenotypeError(f"{source} has choices that are not names", fix=fix)
        return cls(space, chosen)

    def to_json(self) -> str:
        """The JSON text with one choice per line, so that diff can compare two genotypes."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "the genotype") -> "Genotype":
        try:
            raw = plain_data.from_json(text)
        except ValueError as error:
            raise GenotypeError(
                f"{source} is not JSON ({error})", fix="give the genotype.json that a search wrote"
            ) from error
        return cls.from_dict(raw, source=source)

    @classmethod
    def load(cls, path: str | Path) -> "Genotype":
        """Raises GenotypeError if the file is missing, too large, or not a genotype."""
        return cls.from_json(read_text(path_of(path, "the path of the genotype")), source=str(path))

    def check_same(self, raw: object, *, source: Path) -> None:
        """Raises GenotypeError unless `raw`, the genotype saved in `source`, equals this genotype.

        The shapes of weights are no proof: weights of another network may have the same shapes.
        """
        before = Genotype.from_dict(raw, source=f"the genotype in {source}")
        if before.space != self.space or before.choices.keys() != self.choices.keys() or self.differing(before):
            key = next((key for key in before.choices if self.choices.get(key) != before.choices[key]), None)
            chosen = f", e.g. {key}={self.choices.get(key)} (was {before.choices[key]})" if key is not None else ""
            raise GenotypeError(
                f"{source} holds another genotype than the given one{chosen}",
                fix="give the genotype that the run started with, or train the given genotype in a new directory",
            )

    def differing(self, other: "Genotype | None") -> int:
        """The number of choices that differ from `other`; the number of all choices if `other` is None."""
        if other is None:
            return len(self.choices)
        return sum(other.choices.get(key) != name for key, name in self.choices.items())


def python_text(value: Any) -> Any:
    """Returns a text of another class, as of NumPy, which no checkpoint can hold, as a str; anything else as it is."""
    return str.__str__(value) if isinstance(value, str) else value


def check_chosen(chosen: Mapping[str, str | None], options: Mapping[str, Sequence[str]]) -> None:
    """Raises GenotypeError unless `chosen` names one of `options`, or None, for exactly the keys of `options`."""
    missing, extra = options.keys() - chosen.keys(), chosen.keys() - options.keys()
    if chosen and not options:
        raise GenotypeError(
            f"the genotype chooses at {', '.join(sorted(chosen)[:3])}, but the model has no choices",
            fix="give the model that was searched, or None as the genotype in nas.retrain, to train this one as it is",
        )
    if missing or extra:
        parts = [f"lacks {', '.join(sorted(missing))}"] * bool(missing)
        parts += [f"has unknown {', '.join(sorted(extra))}"] * bool(extra)
        raise GenotypeError(
            f"the genotype {' and '.join(parts)}, expected exactly the {len(options)} choices of the space",
            fix="use the space and size that the genotype was derived in",
        )
    for key, name in chosen.items():
        if name is not None and name not in options[key]:
            raise GenotypeError(
                f"the genotype has {name!r} at {key}, expected one of {', '.join(options[key])}",
                fix="use the candidates that the genotype was derived with, e.g. ops=darts for cells",
            )


def read_text(path: str | Path) -> str:
    """Returns the text of a genotype's file. Raises GenotypeError if the file is missing, too large, or not text."""
    path = Path(path)
    try:
        return regular_file.read(path, limit=SIZE_LIMIT).decode()
    except (OSError, ValueError) as error:  # ValueError: the text is not UTF-8, or the path has a NUL byte
        reason = getattr(error, "strerror", None) or "not text"
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason
        raise GenotypeError(
            f"no genotype can be read at {path} ({reason})", fix="give the path of a genotype.json"
        ) from error
