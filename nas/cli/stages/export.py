"""The formats of an export, as the configuration names them."""

from omegaconf import DictConfig

from nas.formats.format import Format
from nas.settings.configuration import build


def build_formats(cfg: DictConfig, *, allow: list[str]) -> dict[str, Format]:
    """Those of the group ``formats``. Raises ConfigError if a package that one needs is missing."""
    return {str(name): build(node, allow=allow) for name, node in cfg.formats.items()}
