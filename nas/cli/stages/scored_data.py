"""Chooses the examples on which a trained network is scored: those held out of its training, or new ones."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas.data.bundle import DataBundle
from nas.data.loader import Loader
from nas.errors import ConfigError
from nas.runtime.runtime import Runtime
from nas.settings.allowed_targets import allowed
from nas.settings.building import built
from nas.settings.configuration import build, to_plain
from nas.settings.names import NAME
from nas.storage import checkpoint_file
from nas.training.scored import bundle_to_score
from nas.training.task import check_targets
from nas.training.trained import Trained, scoring_loader
from nas.untrusted.escaping import printable

# How images are read, which is that of the training where a command line does not say.
READING = ("image_size", "channels")


def data_to_score(cfg: DictConfig, trained: Trained) -> DataBundle:
    """Returns the data of ``cfg.data``: those of the training with the changes of the command line, or another data
    set.

    Raises DataError if the examples held out of the training are not the same as then.
    """
    # A checkpoint comes from anywhere: the factories it names are not trusted as those of the command line are, nor is
    # it to fetch files to a place it names, or to follow links out of that.
    with checkpoint_file.taken_from(cfg.checkpoint):
        own = dict(trained.config["data"] or {})
        own |= dict.fromkeys({"download", "links"} & own.keys(), False)
    if not own and (cfg.data is None or NAME not in to_plain(cfg.data, "data")):
        raise ConfigError(
            f"the network in {cfg.checkpoint} was trained on data that were given in Python, which no file names",
            fix="choose what to score it on: data=...; or use nas.evaluate in Python",
        )
    node, same = chosen(cfg, own)
    with checkpoint_file.taken_from(cfg.checkpoint):
        allow = list(cfg.allow_targets) if cfg.data is None else allowed(cfg)
        made = built(node, "data", allow=allow, source=cfg.checkpoint)
    bundle = bundle_to_score(made, trained, same=same)
    if same and (cfg.data is None or "root" not in cfg.data) and "root" in node:
        print(
            f"note: the data were read from {printable(node['root'])}, as the checkpoint says; data.root=... is for "
            "another place",
            file=sys.stderr,
        )
    return bundle


def chosen(cfg: DictConfig, own: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Returns the configuration of the data to score, and whether they are the data of the training.

    own: of the training.
    """
    given: dict[str, Any] = {} if cfg.data is None else to_plain(cfg.data, "data")
    if NAME not in given:
        if unknown := sorted(given.keys() - own.keys()):
            raise ConfigError(
                f"data.{unknown[0]} is not a setting of the data that the network was trained on, expected one of "
                f"{', '.join(name for name in own if not name.startswith('_'))}",
                fix="choose other data with data=..., or leave it out",
            )
        node = own | given
    else:
        node = given
        if given[NAME] == own.get(NAME):
            node = given | {name: own[name] for name in READING if given.get(name, 0) is None and name in own}
            # How much was held out is a fact of the training; the moved folder is recognised by it.
            node |= {name: own[name] for name in ("test_fraction",) if name in own}
    same = node.get(NAME) == own.get(NAME) and place(node) == place(own)
    return node, same


def place(node: dict[str, Any]) -> object:
    """Returns the resolved place of the data, because a path can be written in several ways."""
    root = node.get("root")
    return Path(root).expanduser().resolve() if isinstance(root, str) else root


def open_trained(cfg: DictConfig) -> tuple[Trained, Loader, DataBundle]:
    """Returns the network of ``cfg.checkpoint``, batches of the test split to score it on, and the data set they are
    from.
    """
    allow = list(cfg.allow_targets)
    runtime: Runtime = build(cfg.runtime, allow=allow)
    runtime.start(seed=0)
    trained = Trained.load(cfg.checkpoint, allow=allow, runtime=runtime)
    data = data_to_score(cfg, trained)
    loader = scoring_loader(trained, data, runtime, cfg.batch_size)
    check_targets(trained.task, data.spec, test=data.test)
    return trained, loader, data
