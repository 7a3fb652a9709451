"""What stops a network from being written as source."""


class UnsupportedError(Exception):
    """A part that has no source of its own. The message completes "this network cannot be written as source: ..."."""
