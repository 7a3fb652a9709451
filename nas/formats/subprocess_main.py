"""The process of `nas.formats.subprocess_check.run`: runs code where the exported network does not exist.

It is started from its text, with ``python -c``, so that its directory is not searched for modules.
"""

import io
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch


class Hidden:
    """Makes this project impossible to import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "nas":
            raise ImportError("it imports this project, which it must not need")


@torch.no_grad()
def outputs(code: str, batches: list[dict[str, Any]]) -> list[Any] | str:
    """Returns the y that a piece of code computes for each batch, or the error as text."""
    with tempfile.TemporaryDirectory(prefix="nas-fresh-") as directory:
        file = Path(directory, "code.py")
        file.write_text(code, encoding="utf-8")
        try:
            return [torch.as_tensor(runpy.run_path(str(file), dict(inputs))["y"]) for inputs in batches]
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def main(source: str, target: str) -> None:
    given = torch.load(source, weights_only=True)
    torch.set_num_threads(given["threads"])
    hidden: Any = Hidden()
    results: dict[str, list[Any] | str] = {}
    for project in (False, True):  # code that needs this project comes last, because an import cannot be undone
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not hidden]
        if not project:
            sys.meta_path.insert(0, hidden)
        results |= {name: outputs(code, given["batches"]) for name, code in given["jobs"][project].items()}
    content = io.BytesIO()
    torch.save(results, content)  # into memory: torch aborts the process if the disk is full
    Path(target).write_bytes(content.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
