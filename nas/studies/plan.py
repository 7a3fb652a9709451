"""Reads the YAML file that says what a study runs: methods x seeds, and retraining seeds."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nas.errors import ConfigError
from nas.settings.dotted import leaves
from nas.storage.command_line import hydra_value
from nas.untrusted import plain_data, regular_file

SIZE_LIMIT = 250_000  # bytes
EXAMPLE = "see scripts/README.md for an example"
RANDOM_CELL = "random cell"
LONGEST = 100  # bytes of a method's name
# Of a study, beside the directories of its methods.
FILES = ("study.json", "study.md", "study.html", "begun.json", "sweep.json")
# Settings that the study makes itself, by seeds, engine, --out and --retry-failed; a dry run would leave no runs.
OWN_SETTINGS = ("seed", "resume", "retry_failed", "dry_run")
MAY_CHANGE = "may_change=[runtime.device,runtime.threads,runtime.profile]"  # of the engine, while the study goes on
ABSENT = "not there"  # of a setting; null is a value, as of a method with the common settings alone
NOTES = ("tuning", "ablations", "confounders")  # that the report repeats
OWN_NAMES = (RANDOM_CELL, "random search")  # of the baselines that a table gives


@dataclass(frozen=True)
class Benchmark:
    """The table in which derived cells are looked up.

    column: the column that is reported. chosen_by: the column by which random search chooses. It should hold an
    accuracy on a validation split after fewer epochs. None: the study has no random search.
    """

    table: str
    column: str
    chosen_by: str | None = None


@dataclass(frozen=True)
class SupernetCheck:
    """The number of random cells that are compared with the benchmark for each supernet, and of batches."""

    cells: int = 100
    batches: int = 4


@dataclass(frozen=True)
class Retraining:
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A study as its YAML file describes it.

    name: of the study. command: ``search``, or ``run``, which also retrains, with the same seed. common: settings of
    all jobs. methods: name -> settings of this method. engine: Hydra overrides that choose the launcher. tuning: method
    -> device hours spent on choosing its settings. primary: the two methods of the primary comparison.
    Where the second is ``random cell``, the mean is compared with the means of as many cells of the whole table.
    """

    name: str
    methods: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    command: str = "search"
    common: tuple[str, ...] = ()
    retrain: Retraining | None = None
    benchmark: Benchmark | None = None
    supernet: SupernetCheck | None = None
    engine: tuple[str, ...] = ()
    tuning: Mapping[str, float] = field(default_factory=dict)
    primary: tuple[str, ...] = ()
    ablations: tuple[str, ...] = ()
    confounders: tuple[str, ...] = ()

    def jobs(self) -> list[tuple[str, int, list[str]]]:
        """Returns (method, seed, settings beyond the common ones) of every search.

        All methods of a seed come before the next seed, so an interrupted study has as many runs of each method.
        """
        return [
            (method, seed, [*settings, f"seed={seed}"])
            for seed in self.seeds
            for method, settings in self.methods.items()
        ]

    @property
    def scored_by_supernet(self) -> bool:
        """Says whether nothing scores what is derived but the supernet itself."""
        return self.command == "search" and self.benchmark is None and self.retrain is None

    def of_all(self) -> list[str]:
        """Returns the settings that all jobs share."""
        common = [MAY_CHANGE, *self.common]
        if self.benchmark is not None:
            common += ["benchmark=nas_bench_201", f"benchmark.table={hydra_value(self.benchmark.table)}"]
        return common


def directory_of(method: str, seed: int, retrained: int | None = None) -> str:
    """Returns a job's directory, relative to the directory of the study."""
    return f"{method}/seed_{seed}" + ("" if retrained is None else f"_retrained_{retrained}")


class _Unique(yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader that refuses two equal keys. YAML's own loader silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key, count in Counter(keys).items() if count > 1]:
            raise ConfigError(f"the study has {twice[0]} twice, expected names of their own", fix="rename one of them")
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> tuple[Plan, dict[str, Any]]:
    """Returns the plan in a file, and the file's content as plain data. Raises ConfigError for an invalid plan."""
    try:
        text = regular_file.read(path, limit=SIZE_LIMIT)
        plain = plain_data.from_yaml(text)
        loader = _Unique(text)
        try:
            loader.get_single_data()
        finally:
            loader.dispose()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the study {path} cannot be read ({reason})", fix="give a YAML file, " + EXAMPLE) from error
    if not isinstance(plain, dict):
        raise ConfigError(f"the study {path} has no settings", fix=EXAMPLE)
    return from_plain(plain), plain


def from_plain(plain: Mapping[str, Any]) -> Plan:
    """Returns the plan. Raises ConfigError if a setting is missing, unknown, or of a wrong type."""
    known = set(Plan.__dataclass_fields__)
    if unknown := sorted(map(str, plain.keys() - known)):
        raise ConfigError(
            f"{unknown[0]} is not a setting of a study, expected some of {', '.join(sorted(known))}", fix=EXAMPLE
        )
    if missing := [name for name in ("name", "methods", "seeds") if plain.get(name) in (None, "", [], {})]:
        raise ConfigError(f"the study has no {missing[0]}", fix=EXAMPLE)
    methods = plain["methods"]
    if not isinstance(methods, dict):
        raise ConfigError(f"methods are a {type(methods).__name__}, expected a name and settings each", fix=EXAMPLE)
    made = Plan(
        name=file_name(plain["name"], "name"),
        methods={file_name(name, "methods"): texts(of, f"methods.{name}") for name, of in methods.items()},
        seeds=numbers(plain["seeds"], "seeds"),
        command=str(plain.get("command", "search")),
        common=texts(plain.get("common"), "common"),
        retrain=None if plain.get("retrain") is None else retraining(plain["retrain"]),
        benchmark=None if plain.get("benchmark") is None else fields(Benchmark, plain["benchmark"], "benchmark"),
        supernet=None if plain.get("supernet") is None else fields(SupernetCheck, plain["supernet"], "supernet"),
        engine=texts(plain.get("engine"), "engine"),
        tuning=hours_of(plain.get("tuning") or {}),
        primary=texts(plain.get("primary"), "primary"),
        ablations=sentences(plain.get("ablations"), "ablations"),
        confounders=sentences(plain.get("confounders"), "confounders"),
    )
    check(made)
    return made


def check(plan: Plan) -> None:
    if plan.command not in ("search", "run"):
        raise ConfigError(f"command is {plan.command}, expected search or run", fix="set command: search")
    if plan.command == "run" and plan.retrain is not None:
        raise ConfigError("command: run retrains already, got retrain as well", fix="set command: search")
    if plan.supernet is not None and plan.benchmark is None:
        raise ConfigError(
            "supernet is compared with a benchmark, got none", fix="add benchmark: {table: ..., column: ...}"
        )
    names = (*plan.methods, *OWN_NAMES)
    for setting, given in (("primary", plan.primary), ("tuning", tuple(plan.tuning))):
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(
                f"{setting} names {unknown[0]}, which is no method of the study, expected some of {', '.join(names)}",
                fix=f"correct {setting}",
            )
    possible = [*plan.methods]
    if plan.benchmark is not None:
        possible += OWN_NAMES if plan.benchmark.chosen_by is not None else [RANDOM_CELL]
    if unknown := [name for name in plan.primary if name not in possible]:
        raise ConfigError(
            f"primary names {unknown[0]}, which a benchmark gives, with chosen_by for random search, and got none",
            fix="add benchmark: {table: ..., column: ..., chosen_by: ...}, or name a method with sampler=uniform",
        )
    if len(set(plan.primary)) not in (0, 2):
        raise ConfigError(f"primary has {len(plan.primary)} methods, expected the two to compare", fix="name two")
    if taken := [name for name in plan.methods if name in OWN_NAMES]:
        raise ConfigError(f"a method is called {taken[0]}, which is a baseline of every study", fix="rename it")
    retrained = () if plan.retrain is None else plan.retrain.settings
    refuse_own(
        {"common": plan.common, **{f"methods.{name}": of for name, of in plan.methods.items()}, "retrain": retrained}
    )


def refuse_own(settings: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ConfigError for a setting of jobs that the study makes itself. settings: place -> settings."""
    for place, words in settings.items():
        for word in words:
            name = word.lstrip("+~").partition("=")[0]
            if word.startswith("-") or name.startswith(("hydra.", "hydra/")) or name in OWN_SETTINGS:
                raise ConfigError(
                    f"{place} has {word}, expected settings of a run other than {', '.join(OWN_SETTINGS)} and hydra...",
                    fix="leave it out: a study has seeds, engine, --out and --retry-failed; engine takes "
                    "hydra.searchpath=[file://my_configs] in place of --config-dir",
                )


def fields(kind: Any, given: Any, where: str) -> Any:
    known = kind.__dataclass_fields__
    if not isinstance(given, dict) or given.keys() - known.keys():
        raise ConfigError(f"{where} is {given!s:.80}, expected settings among {', '.join(known)}", fix=EXAMPLE)
    for name, value in given.items():
        wanted = int if kind is SupernetCheck else str
        if type(value) is not wanted or (isinstance(value, int) and value < 1):
            raise ConfigError(
                f"{where}.{name} is {value!r}, expected {'a number' if wanted is int else 'a text'}", fix=EXAMPLE
            )
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(f"{where} lacks a setting of {', '.join(known)}", fix=EXAMPLE) from error


def retraining(given: Any) -> Retraining:
    if not isinstance(given, dict) or given.keys() - {"seeds", "settings"} or "seeds" not in given:
        raise ConfigError(f"retrain is {given!s:.80}, expected seeds and settings", fix=EXAMPLE)
    return Retraining(numbers(given["seeds"], "retrain.seeds"), texts(given.get("settings"), "retrain.settings"))


def numbers(given: Any, where: str) -> tuple[int, ...]:
    if (
        not isinstance(given, list)
        or not given
        or not all(type(one) is int and one >= 0 for one in given)
        or len(set(given)) < len(given)
    ):
        raise ConfigError(
            f"{where} is {given!r}, expected different whole numbers >= 0", fix=f"write {where}: [0, 1, 2, 3]"
        )
    return tuple(given)


def hours_of(given: Any) -> dict[str, float]:
    """Returns method -> device hours."""
    if not isinstance(given, dict) or not all(
        isinstance(hours, int | float) and not isinstance(hours, bool) and 0 <= hours < math.inf
        for hours in given.values()
    ):
        raise ConfigError(
            f"tuning is {given!s:.80}, expected methods with device hours >= 0", fix="write tuning: {my_method: 3}"
        )
    return {str(name): float(hours) for name, hours in given.items()}


def sentences(given: Any, where: str) -> tuple[str, ...]:
    """Returns a list of texts. A single text is one of them."""
    return texts([given] if isinstance(given, str) else given, where)


def texts(given: Any, where: str) -> tuple[str, ...]:
    """Returns a list of texts. `given` is such a list, or one text that is split into words as a shell splits it."""
    try:
        given = [] if given is None else shlex.split(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigError(f"{where} is {given!r}, which has quotes that are not closed", fix="close them") from error
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ConfigError(
            f"{where} is {given!s:.80}, expected a text or a list of texts", fix=f"write e.g. {where}: sampler=gdas"
        )
    return tuple(given)


def file_name(name: Any, where: str) -> str:
    odd = not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name.encode()) > LONGEST
    if odd or set(name) & set("/\\\"'$") or name.startswith((".", "-")) or name in FILES:
        raise ConfigError(
            f"{where} has {name!r:.120}, expected a name that can be one of a directory", fix="write my_method"
        )
    return name


def meaning(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a study runs and compares, as plain data that do not depend on how its file writes it.

    Leaves out where its jobs run, and the notes. Raises as `from_plain` does.
    """
    found: dict[str, Any] = json.loads(json.dumps(asdict(from_plain(plain))))
    return {name: value for name, value in found.items() if name not in ("engine", *NOTES)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a line for each setting that changed, with the value before and the value now."""
    old, new = leaves(dict(before)), leaves(dict(now))
    return [
        f"{name}={new.get(name, ABSENT)} (was {old.get(name, ABSENT)})"
        for name in dict.fromkeys([*old, *new])
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    ]
