"""Large files in parts, for machines whose files come back only up to a size."""

import re
from pathlib import Path

LARGEST = 15 * 2**20
PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d{3})of(?P<count>\d{3})")


def split(directory, largest=LARGEST):
    """Put every file that is larger than `largest` bytes into parts."""
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size > largest and not PART.fullmatch(path.name):
            content = path.read_bytes()
            pieces = [content[start : start + largest] for start in range(0, len(content), largest)]
            for number, piece in enumerate(pieces):
                path.with_name(f"{path.name}.part{number:03}of{len(pieces):03}").write_bytes(piece)
            path.unlink()


def join(directory):
    """Make files of their parts again. Returns the names of those that lack a part, which stay as they are."""
    lacking = []
    for first in sorted(Path(directory).rglob("*.part000of*")):
        found = PART.fullmatch(first.name)
        whole, count = first.with_name(found["name"]), int(found["count"])
        pieces = [first.with_name(f"{whole.name}.part{number:03}of{count:03}") for number in range(count)]
        if all(piece.is_file() for piece in pieces):
            whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
            for piece in pieces:
                piece.unlink()
        else:
            lacking.append(str(whole))
    return lacking
