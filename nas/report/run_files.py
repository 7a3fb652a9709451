"""Reads the files of a run's directory. Anybody may have written them: parts may be missing, damaged or hostile."""

import contextlib
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas import __version__
from nas.errors import OutputError
from nas.settings.dotted import OF_SEARCH
from nas.storage.metrics_log import DERIVED, LINES, SIZE_LIMIT, STAGES, Line, parsed, read_derived
from nas.untrusted import plain_data, regular_file

KNOWN = ("manifest.json", "metrics.jsonl", "result.json")  # by one of which a directory is a run's
SEARCHED_FOR = KNOWN[:2]  # below a directory that is given; nas-evaluate leaves result.json alone, beside the runs
DEPTH = 3  # levels of directories in which runs are looked for
LARGEST_CONFIG = 250_000  # bytes of config.yaml, whose reading takes a second a million; one takes about eight thousand
LONGEST = 10_000_000  # bytes of a line of metrics
DRAWABLE = 1e300
MOST_RUNS = 1000


@dataclass
class RunFiles:
    """The files of one run.

    config: the content of ``config.yaml``. choices: the derived operations. lines: stage -> lines of metrics, thinned
    out evenly. logged: stage -> the number of lines in the file. derived: (epoch from 1, choices), for each change.
    damaged: a sentence for each file that could not be read. parts: the number of parts of the path in the name.
    """

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    genotype: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[str, list[Line]] = field(default_factory=dict)
    logged: dict[str, int] = field(default_factory=dict)
    derived: list[tuple[int, dict[str, str | None]]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    parts: int = 1

    @property
    def name(self) -> str:
        return "/".join(self.path.resolve().parts[1:][-self.parts :]) or str(self.path)

    @property
    def space(self) -> str:
        return text(self.genotype.get("space")) or text(mapping(self.config.get("space")).get("_name_"))

    @property
    def choices(self) -> dict[str, str | None]:
        found = mapping(self.genotype.get("choices")) or (self.derived[-1][1] if self.derived else {})
        return {key: name for key, name in found.items() if name is None or isinstance(name, str)}

    @property
    def metric(self) -> tuple[str, bool, bool]:
        """Returns the metric's name, whether higher is better, and whether it is shown in per cent."""
        given = mapping(self.result.get("metric"))
        name = text(given.get("name"))
        if name:
            return name, given.get("higher_is_better") is not False, given.get("percent") is True
        # The architecture takes no step in the first lines of a search that warms up.
        parts = [key.partition("/") for of in self.lines.values() for key in of[0]]
        logged = [name for level, _, name in parts if level in ("arch", "weights")]
        name = next((key for key in logged if key not in ("loss", "grad_norm") and "/" not in key), "accuracy")
        return name, True, name == "accuracy"

    @property
    def score(self) -> float | None:
        return number(self.result.get(f"test_{self.metric[0]}"))

    @property
    def seconds(self) -> float | None:
        """Returns the time of all processes of the run; None if it has not ended, or was killed, as it is not known."""
        return None if self.manifest.get("status") == "running" else number(self.manifest.get("wall_seconds"))

    @property
    def latency(self) -> list[dict[str, Any]]:
        found = self.result.get("latency") or self.manifest.get("latency")
        return [one for one in map(mapping, items(found)) if number(one.get("median_ms")) is not None]

    @property
    def one_latency(self) -> float | None:
        """Returns the latency of one example, in milliseconds; None without a measurement."""
        return next((number(one["median_ms"]) for one in self.latency if one.get("batch") == 1), None)

    @property
    def status(self) -> tuple[str, str]:
        """Returns finished, running, killed, interrupted, failed or unknown, and a sentence that explains it."""
        said = self.manifest.get("status")
        go_on = "resume= with this directory goes on from the last checkpoint."
        if said == "running":
            process = text(self.manifest.get("process"))
            alive = is_alive(process)
            if alive is None:
                return "running", f"Still running, or killed: the process was {process or 'not recorded'}. {go_on}"
            if alive:
                return "running", "Still running. This page shows what was there when it was written."
            return "killed", f"Killed before its end. This page shows what is left; {go_on}"
        if said == "interrupted":
            return "interrupted", f"Interrupted before its end. This page shows what is left; {go_on}"
        if said == "failed":
            return "failed", "Failed before its end. This page shows what is left."
        if said == "finished":
            return "finished", ""
        return "unknown", "How the run ended is not recorded: manifest.json is missing or damaged."

    @property
    def notes(self) -> list[str]:
        """Returns sentences that a reader must know before the numbers."""
        notes = [self.status[1]] if self.status[1] else []
        version = text(mapping(self.manifest.get("versions")).get("gumbel-nas"))
        if version and version != __version__:
            notes.append(
                f"Written by release {version}; this page is made by {__version__} and lacks what it did not record."
            )
        elif version and not {"changed", "made_in"} & self.manifest.keys():  # Python records no defaults
            notes.append("Written by an older release, which recorded less.")
        return notes + self.damaged


def is_alive(process: str) -> bool | None:
    """Says whether a process is running, given "<pid> on <machine>"; None if it is on another machine."""
    pid, _, machine = process.partition(" on ")
    if machine != platform.node() or not pid.isascii() or not pid.isdigit() or not 0 < int(pid) < 2**31:
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def find(paths: Sequence[Path]) -> list[Path]:
    """Returns the directories of runs among `paths` and below them. Raises OutputError if a path holds no run."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            problem = "is a file" if path.exists() else "does not exist"
            raise OutputError(f"{path} {problem}, expected the directory of a run", fix="give e.g. runs/my_run")
        here = list(below(path, DEPTH))
        if not here:
            raise OutputError(
                f"there is no run in {path}, expected a directory with one of {', '.join(KNOWN)}",
                fix="give the directory that a run left, or one that holds such directories",
            )
        found += [one for one in here if one not in found]
    if len(found) > MOST_RUNS:
        raise OutputError(
            f"there are {len(found)} runs, expected at most {MOST_RUNS} in one page", fix="give fewer directories"
        )
    return found


def below(path: Path, depth: int, names: Sequence[str] = KNOWN) -> Iterable[Path]:
    if any((path / name).is_file() for name in names):
        yield path
    elif depth > 0:
        with contextlib.suppress(OSError):
            for child in sorted(path.iterdir()):
                if child.is_dir() and not child.is_symlink():
                    yield from below(child, depth - 1, SEARCHED_FOR)


def tell_apart(runs: Sequence[RunFiles]) -> None:
    """Puts parents into the names of runs whose directories have the same name, as all seed_0 of a study have."""
    for parts in range(2, DEPTH + 2):
        count = Counter(run.name for run in runs)
        for run in runs:
            run.parts = parts if count[run.name] > 1 else run.parts


def read_run(path: Path, *, points: int) -> RunFiles:
    """Reads one run. points: the number of lines of metrics of each stage that are kept at most."""
    run = RunFiles(path)
    run.manifest = mapping(read_json(run, "manifest.json"))
    run.result = mapping(read_json(run, "result.json"))
    run.genotype = mapping(read_json(run, "genotype.json")) or mapping(run.result.get("genotype"))
    run.export = mapping(read_json(run, "export/metadata.json"))
    run.mistakes = [mapping(one) for one in items(read_json(run, "mistakes.json"))][:24]
    try:
        run.config = mapping(plain_data.from_yaml(regular_file.read(path / "config.yaml", limit=LARGEST_CONFIG)))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        run.damaged.append(f"config.yaml cannot be read ({reason(error)}).")
    if run.config.get("genotype"):
        run.config = {group: node for group, node in run.config.items() if group not in OF_SEARCH}
    read_metrics(run, points)
    run.derived = [(line["epoch"] + 1, line["choices"]) for line in read_derived(path / DERIVED)]
    return run


def read_json(run: RunFiles, name: str) -> Any:
    try:
        content = regular_file.read(run.path / name, limit=plain_data.RECORD)
        return plain_data.from_json(content, values=plain_data.RECORDED)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        run.damaged.append(f"{name} is damaged and left out ({reason(error)}).")
        return None


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_metrics(run: RunFiles, points: int) -> None:
    """Reads the metrics in two passes: the first counts lines, the second parses only those that are shown."""
    path, damaged = run.path / "metrics.jsonl", 0
    stages: list[str] = []
    found: dict[str, dict[int, Line]] = {stage: {} for stage in STAGES}
    try:
        with regular_file.opened(path, limit=SIZE_LIMIT) as stream:
            while (line := stream.readline(LONGEST)) and len(stages) < LINES:
                stages.append(stage_of(line))
        if line:
            run.damaged.append(f"metrics.jsonl has more than {LINES:,} lines; the others are left out.")
        shown = shown_lines(stages, points)
        with regular_file.opened(path) as stream:
            for index, stage in enumerate(stages):
                content = stream.readline(LONGEST)
                if stage and index not in shown:
                    continue
                read = parsed(content.decode("utf-8", errors="replace")) if stage else None
                if read is None or not content.endswith(b"\n"):
                    damaged += 1
                else:
                    found[read["stage"]][read["epoch"]] = read
    except FileNotFoundError:
        if run.manifest:
            run.damaged.append("metrics.jsonl is missing: there are no curves.")
        return
    except OSError as error:
        run.damaged.append(f"metrics.jsonl cannot be read ({reason(error)}): there are no curves.")
        return
    if damaged:
        run.damaged.append(f"metrics.jsonl: {damaged} damaged {'line is' if damaged == 1 else 'lines are'} left out.")
    run.lines = {stage: [of[epoch] for epoch in sorted(of)] for stage, of in found.items() if of}
    run.logged = {stage: stages.count(stage) for stage in run.lines}


def shown_lines(stages: Sequence[str], points: int) -> set[int]:
    """Returns the numbers of the lines that are shown. stages: of all lines.

    Of each stage that is every line, or every second, every fourth and so on, so that the lines of several runs are of
    equal epochs; and the last line.
    """
    shown: set[int] = set()
    for stage in STAGES:
        lines = [index for index, one in enumerate(stages) if one == stage]
        step = 1 << max(0, math.ceil(math.log2(max(1, len(lines)) / points)))
        shown |= {*lines[::step], *lines[-1:]}
    return shown


def stage_of(line: bytes) -> str:
    """Returns the stage of a line of metrics, from its first characters; "" if this project did not write the line."""
    for stage in STAGES:
        if line.startswith(b'{"stage": "%s"' % stage.encode()):
            return stage
    found = parsed(line.decode("utf-8", errors="replace"))
    return "" if found is None else str(found["stage"])


def mapping(value: Any) -> dict[str, Any]:
    """Returns `value` if it is a dict whose keys are texts, else {}."""
    return {key: of for key, of in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def number(value: Any) -> float | None:
    """Returns `value` if it is a number that can be drawn, else None: neither infinite nor so large that a sum of two
    would be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= DRAWABLE:
        return None
    return float(value)


def values(lines: Iterable[Line], name: str) -> list[tuple[float, float]]:
    """Returns (epoch from 1, value) of a metric wherever it is a finite number."""
    return [(line["epoch"] + 1.0, float(line[name])) for line in lines if number(line.get(name)) is not None]
