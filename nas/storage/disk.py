"""Where a disk has refused to take something, in whatever words a library says that."""

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from nas.errors import OutputError

# A full disk, a quota, a limit of the size of files, a disk that became read-only or is broken.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Libraries in C++ and Rust raise errors of their own, with the system's text in them.
TEXTS = re.compile("|".join(re.escape(os.strerror(number)) for number in REFUSALS))


def refusal(error: BaseException) -> OSError | None:
    """The disk's refusal that an error comes from, through any number of errors that were raised of it; None if it
    comes from something else."""
    for one in causes(error):
        if isinstance(one, OSError) and one.errno in REFUSALS:
            return one
        if not isinstance(one, OSError) and (said := refusal_in(str(one))):
            return said
    return None


def refusal_in(text: str) -> OSError | None:
    """The same of a text, such as the last line of another process."""
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
    """An error that names where: the file, if the refusal has it, else the one of `places` with the least room."""
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
    """Bytes that can be written at a place, or would be where its first parent is that exists."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = os.statvfs(place)
    except (AttributeError, OSError):  # a system that does not say
        return float("inf")
    return found.f_bavail * found.f_frsize
