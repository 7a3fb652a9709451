"""Builds the formats of an export from the configuration."""

from omegaconf import DictConfig

from nas.formats.format import Format
from nas.settings.configuration import build_each


def build_formats(cfg: DictConfig, *, allow: list[str]) -> dict[str, Format]:
    """Returns the formats of the group ``formats``.

    Raises ConfigError if a package that one of them needs is missing.
    """
    return build_each(cfg.formats, allow=allow)
