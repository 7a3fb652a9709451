"""Values of a run as the text that a page shows."""

import json
from collections.abc import Callable
from typing import Any

from nas.report.run_files import RunFiles


def plain(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def shower(run: RunFiles) -> Callable[[float], str]:
    """Returns the function that formats values of the run's metric."""
    return (lambda value: f"{100 * value:.2f} %") if run.metric[2] else plain


def metric_name(run: RunFiles) -> str:
    return run.metric[0].replace("_", " ")


def compact(value: float) -> str:
    rounded = abs(float(f"{value:.3g}"))
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def shown_value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
