"""Recognises the errors of a full or unwritable disk, in the words of any library."""

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from nas.errors import OutputError

# A full disk, a quota, a limit of the size of files, a disk that became read-only or is broken.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Libraries in C++ and Rust raise their own types of error, which contain the system's text.
TEXTS = re.compile("|".join(re.escape(os.strerror(number)) for number in REFUSALS))


def refusal(error: BaseException) -> OSError | None:
    """Returns the disk error that caused `error`, through any number of errors in between; None if there is none."""
    for one in causes(error):
        if isinstance(one, OSError) and one.errno in REFUSALS:
            return one
        if not isinstance(one, OSError) and (said := refusal_in(str(one))):
            return said
    return None


def refusal_in(text: str) -> OSError | None:
    """Returns the disk error that a text names, e.g. the last line of another process; None if there is none."""
    if (found := TEXTS.search(text)) is None:
        return None
    number = next(number for number in REFUSALS if os.strerror(number) == found[0])
    return OSError(number, found[0])


def causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def refused(refusal: OSError, *places: Path) -> OutputError:
    """Returns an error that names the file if `refusal` has it, or else the place with the least free space."""
    place = refusal.filename or least_room(places)
    inside = Path(tempfile.gettempdir()).resolve()
    temporary = Path(os.fsdecode(place)).resolve().is_relative_to(inside)
    elsewhere = "set TMPDIR to a directory with room" if temporary else "set hydra.run.dir elsewhere"
    return OutputError(
        f"{os.fsdecode(place)} cannot be written ({refusal.strerror})", fix=f"free some space, or {elsewhere}"
    )


def least_room(places: Iterable[Path]) -> Path:
    return min(places, key=free)


def free(place: Path) -> float:
    """Returns how many bytes can be written at a place. If it does not exist, its first existing parent counts."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = os.statvfs(place)
    except (AttributeError, OSError):  # the system cannot tell
        return float("inf")
    return found.f_bavail * found.f_frsize
