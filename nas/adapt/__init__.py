"""Inserts choices into trained networks, and distils from a teacher."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FileTimes": "file_times",
        "Inserted": "inserted",
        "Insertion": "insertion",
        "Place": "insertion",
        "Teacher": "teacher",
        "insert": "insertion",
        "insertions": "insertion",
        "depthwise": "makers",
        "factorised": "makers",
        "fewer_heads": "heads",
        "narrower": "narrowing",
        "other": "makers",
        "skip": "makers",
        "smaller_kernel": "makers",
    },
)
