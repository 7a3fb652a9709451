"""nas-report: writes a page that shows one run, or compares several. It only reads files, without torch and hydra."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nas.errors import NasError, OutputError
from nas.report.page import report
from nas.storage import atomic
from nas.untrusted.escaping import printable

FAILED, USER_ERROR = 1, 2
EPILOG = """\
examples:
  nas-report runs/my_run                        writes runs/my_run/report.html
  nas-report runs/one runs/two out=both.html    compares runs
  nas-report runs                               compares all runs below runs: runs/report.html
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nas-report",
        description="nas-report: write what runs left as one HTML page, which needs no network and no server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the directory of a run, or one that holds runs; out=FILE.html says where the page is written",
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def run(arguments: Sequence[str]) -> Path:
    """Returns the path of the page. Raises OutputError if a directory holds no run, or the page cannot be written."""
    runs = [one for one in arguments if not one.startswith("out=")]
    if not runs or "" in runs:
        raise OutputError("no run is given, expected the directory of one or more", fix="give e.g. runs/my_run")
    paths = [Path(one).expanduser() for one in runs]
    given = [one.removeprefix("out=") for one in arguments if one.startswith("out=")]
    out = Path(given[-1]).expanduser() if given else (paths[0] if len(paths) == 1 else Path()) / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"out must end in .html, got {str(out)!r}", fix="set out=report.html")
    page = report(paths)
    if not out.parent.is_dir():
        raise OutputError(f"there is no directory {out.parent} for out", fix="make it, or set out=report.html")
    atomic.write_text(out, page, setting="out")
    return out


def main() -> None:
    options = parser().parse_args()
    try:
        out = run(options.runs)
        print(f"The report is in {printable(out)}")
    except NasError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
