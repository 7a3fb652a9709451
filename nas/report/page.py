"""Builds one HTML file for one run or several. The file holds its style and script, and requests nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from nas import __version__
from nas.drawing.canvas import COLOURS
from nas.report import one_run, several_runs
from nas.report.markup import Html, Section, el
from nas.report.run_files import RunFiles, find, read_run, tell_apart

POINTS_OF_ALL = 30_000  # lines of metrics of a stage that are read in all, of one run or of many
LEAST_POINTS, MOST_POINTS = 60, 500  # of one run


def report(paths: Sequence[Path]) -> str:
    """Returns the page of the runs in these directories, or below them. Raises OutputError if a path holds no run."""
    directories = find(paths)
    points = max(LEAST_POINTS, min(MOST_POINTS, POINTS_OF_ALL // len(directories)))
    runs = [read_run(one, points=points) for one in directories]
    return page_of_one(runs[0]) if len(runs) == 1 else page_of_several(runs)


def page_of_one(run: RunFiles) -> str:
    state, _ = run.status
    heading = el("h1", run.name, el("span", state, class_=f"state {state}"))
    asked = dict(one_run.asked_for(run))
    told = ", ".join(str(asked[key]) for key in ("space", "sampler", "data") if key in asked)
    return page(
        run.name, [heading, el("p", told or str(run.path))], run.notes, list(one_run.sections(run)), str(run.path)
    )


def page_of_several(runs: Sequence[RunFiles]) -> str:
    tell_apart(runs)
    name = f"{len(runs)} runs"
    heading = [el("h1", name), el("p", several_runs.states(runs))]
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes][:20]
    return page(name, heading, notes, list(several_runs.sections(runs)), f"{len(runs)} directories")


def page(title: str, heading: object, notes: Sequence[str], sections: Sequence[Section], source: str) -> str:
    script = read("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        el("style", Html(style())),
    )
    links = [el("a", text, href=f"#{name}") for name, text, _ in sections]
    body = el(
        "body",
        el("a", "To the content", href="#main", class_="skip"),
        el(
            "header", heading,
            el("ul", [el("li", note) for note in notes], class_="notes") if notes else None,
            el("nav", links, aria_label="Parts of this page"),
        ),
        el(
            "main",
            [el("section", el("h2", text), content, id=name, aria_label=text) for name, text, content in sections],
            id="main",
        ),
        el("footer", f"Made by gumbel-nas {__version__} of the files in {source}."),
        el("script", Html(script)),
    )  # fmt: skip
    return "<!doctype html>\n" + el("html", head, body, lang="en") + "\n"


def style() -> str:
    """Returns the style sheet, with the colours of drawings in light and dark mode. Printing uses the light colours."""
    names = {name: name.replace(" ", "-") for name in COLOURS}
    light, dark = ("".join(f"--c-{css}:{COLOURS[name][shade]};" for name, css in names.items()) for shade in (0, 1))
    shapes = "".join(f".f-{css}{{fill:var(--c-{css})}}.s-{css}{{stroke:var(--c-{css})}}" for css in names.values())
    return (
        f":root{{{light}}}{shapes}\n{read('style.css')}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}--page:#010409;--line:#2a323e}}}}"
    )


def read(name: str) -> str:
    return resources.files("nas.report").joinpath(name).read_text(encoding="utf-8")
