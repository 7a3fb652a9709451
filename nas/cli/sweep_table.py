"""The table at the end of a sweep, best job first, and what is left to do."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.cli import sweep
from nas.storage import atomic
from nas.storage.command_line import setting
from nas.untrusted import plain_data


@dataclass(frozen=True)
class Row:
    """A job in the table.

    value: the number by which it is ranked; None without one. what: the meaning of value. other: whether it is a job of
    an earlier command in the same directory, and of this one no more.
    """

    number: int
    settings: str
    status: str
    directory: Path
    value: float | None = None
    what: str = ""
    higher_is_better: bool = True
    error: str = ""
    other: bool = False


def rows(directory: Path, *, command: str | None = None) -> list[Row]:
    """Returns a row for each job in the directory of a sweep, but not of sweeps inside of it.

    command: the digest of the command whose jobs count; None for all.
    Best first, by what most jobs are ranked by; then jobs with another value, and jobs without one.
    """
    found = []
    for path in directory.rglob(sweep.RECORD):
        inside = path.parent.relative_to(directory).parents
        if any((directory / one / "sweep.json").exists() for one in inside if one != Path()):
            continue
        if (record := sweep.record_of(path)) is not None:
            what, value, higher = standing(path.parent)
            settings = " ".join(map(str, record.get("settings", [])))
            status, error = str(record.get("status")), str(record.get("error", record.get("refused", "")))
            value = value if status == "finished" else None
            other = command not in (None, record.get("sweep")) and status != "running"
            found.append(Row(record["number"], settings, status, path.parent, value, what, higher, error, other))
    meant = Counter(row.what for row in found if row.value is not None).most_common(1)
    return sorted(
        found,
        key=lambda row: (
            row.value is None,
            row.what != meant[0][0] if meant else False,
            0.0 if row.value is None else -row.value if row.higher_is_better else row.value,
            row.number,
        ),
    )


def standing(directory: Path) -> tuple[str, float | None, bool]:
    """Returns the name and the value of the number that ranks a run, and whether higher is better.

    That is the objective; without one, a score on examples that the network has not seen; without that, the test score.
    """
    try:
        result = plain_data.dict_in(directory / "result.json")
        metric = result.get("metric", {})
        name, higher = str(metric.get("name", "")), bool(metric.get("higher_is_better", True))
        for objective, value in result.get("objective", {}).items():
            return objective, finite(value), higher if objective == "score" else False
        gap = result.get("discretisation_gap", {})
        for what, value in (
            (f"validation {name}", result.get(f"validation_{name}")),
            (f"test {name}", result.get(f"test_{name}")),
            (f"{name} of the derived operations, recalibrated", gap.get("recalibrated")),
        ):
            if value is not None:
                return what.replace("_", " "), finite(value), higher
    except (ValueError, AttributeError, TypeError):
        pass
    return "", None, True


def finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def end(command: str, *, again: tuple[str, str] | None = None) -> int:
    """Prints the table of the sweep that this process began, and writes ``sweep.json``.

    Returns the number of unfinished jobs.

    again: the command that continues the sweep, and what to add for failed jobs; None for the command line.
    """
    directory = sweep.home[0]
    found = rows(directory, command=sweep.command[0])
    if not found:
        return 0
    show_rows(found)
    listed = [
        {
            "number": row.number, "settings": row.settings, "status": row.status, "directory": str(row.directory),
            **({"ranked_by": row.what, "value": row.value} if row.value is not None else {}),
            **({"error": row.error} if row.error else {}),
            **({"of_earlier_command": True} if row.other else {}),
        }
        for row in found
    ]  # fmt: skip
    atomic.write_json(directory / "sweep.json", {"command": command, "jobs": listed})
    own = [row for row in found if not row.other]
    left = sum(row.status != "finished" or bool(row.error) for row in own)
    print(f"The sweep is in {directory}")
    if left:
        same, repeats = again or (f"The same command with {setting('hydra.sweep.dir', directory)}", "retry_failed=true")
        failed = any(row.status == "failed" for row in own)
        if refused := sum(row.status != "failed" and bool(row.error) for row in own):
            print(f"{refused} of {len(own)} jobs were begun with other settings, and are as they were.")
        print(
            f"{left} of {len(own)} jobs have not finished. {same} goes on with those that were killed"
            f"{f', with {repeats} also with those that have failed' if failed else ''}."
        )
    return left


def show_rows(found: list[Row]) -> None:
    from nas.cli.report import Shown, show

    what = next((row.what for row in found if row.value is not None), "")
    table = Shown("job", "settings", what or "value", "ended", title=f"{len(found)} jobs, best first" if what else None)
    for row in found:
        status = "killed or still running" if row.status == "running" else row.status
        ended = (f"{status}: {row.error}" if row.error else status) + (", of an earlier command" if row.other else "")
        value = "" if row.value is None else f"{row.value:.6g}" + (f" ({row.what})" if row.what != what else "")
        table.add_row(str(row.number), row.settings, value, ended)
    print()
    show(table)
