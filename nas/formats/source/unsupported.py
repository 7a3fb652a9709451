"""The error for networks that cannot be written as source."""


class UnsupportedError(Exception):
    """A part cannot be written as source. The message completes "this network cannot be written as source: ..."."""
