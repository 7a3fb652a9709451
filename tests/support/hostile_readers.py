"""Everything that reads a file of a stranger, by a name: a function of the path of a file or of a directory."""

import copy
import functools
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import nas
from nas.cli.resume import resumed
from nas.cli.stages.scored_data import open_trained
from nas.cli.stages.search import SearchStage
from nas.cli.stages.setup import Setup
from nas.data.image_file import pillow_warnings, read_header, read_pixels
from nas.data.image_folder import ImageFolder
from nas.data.spec import DataSpec
from nas.drawing.architecture_picture import draw_architecture
from nas.drawing.png import to_png
from nas.drawing.svg import to_svg
from nas.formats.load import read_metadata
from nas.formats.model_card import model_card
from nas.methods.latency_table import LatencyTable
from nas.runtime.runtime import Runtime
from nas.settings import configuration
from nas.settings.building import built
from nas.settings.schemas import register_schemas
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.published import resolve
from nas.storage import checkpoint_file
from nas.storage.metrics_log import read_lines
from nas.storage.run_directory import read_manifest, recorded
from nas.storage.tensorboard_tracker import events
from nas.supernet.genotype import Genotype
from nas.training.trained import Trained
from nas.untrusted import plain_data, regular_file

# A run that takes no time.
SMALL = (
    *("experiment=quickstart", "data=synthetic", "data.train=16", "data.test=8", "data.classes=2", "name=x"),
    *("search.batch_size=4", "retrain.batch_size=4", "space.channels=4", "retrain.network.channels=4", "space.cells=1"),
    *("runtime.device=cpu", "runtime.threads=1", "tracker=jsonl", "search.epochs=1", "retrain.epochs=1"),
)


@functools.cache
def composed(command, *overrides):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        return compose(command, list(overrides))


def evaluated(path):
    """What nas-evaluate and nas-export open."""
    cfg = copy.deepcopy(composed("evaluate", "runtime.device=cpu", "runtime.threads=1"))
    cfg.checkpoint = path
    return open_trained(cfg)


def resumable(path):
    given = copy.deepcopy(composed("run", *SMALL))
    given.resume = path
    return resumed(given, composed("run", *SMALL), [])


def started(path):
    """What nas-run resume=<path> does until the first step."""
    return SearchStage(Setup.from_config(resumable(path)))


def image(path, *, size=None):
    with pillow_warnings():
        header = read_header(Path(path))
        return header, read_pixels(Path(path), channels=3, size=size).shape


def folder(path):
    return ImageFolder(root=path, image_size=8, memory_limit_mb=16, workers=0).load()


def drawn(path):
    """What nas-draw makes of a genotype."""
    genotype = resolve(path)
    picture = draw_architecture(genotype.choices, title=genotype.space)
    return len(to_svg(picture, theme="auto").encode()), len(to_png(picture, theme="light", colours=256)[0])


def carded(path):
    """The model card of a checkpoint's names, as nas-export writes it."""
    metadata = plain_data.from_json(regular_file.read(path, limit=10**7))
    return model_card(metadata, Genotype("x", {}))


READERS = {
    "export": nas.load,
    "metadata": lambda path: read_metadata(Path(path)),
    "checkpoint": lambda path: Trained.load(path, allow=[], runtime=Runtime(device="cpu")),
    "newest": lambda path: checkpoint_file.newest(Path(path), "retrain"),
    "evaluate": evaluated,
    "run": nas.load,
    "resume": resumable,
    "start": started,
    "manifest": lambda path: (read_manifest(Path(path)), recorded(Path(path))),
    "metrics": lambda path: len(read_lines(Path(path))[0]),
    "events": lambda path: sum(1 for _ in events(Path(path))),
    "genotype": Genotype.load,
    "genotype text": resolve,
    "drawn": drawn,
    "config": lambda path: OmegaConf.to_container(configuration.read_yaml(Path(path))),
    "table": lambda path: NasBench201Table(table=path).columns,
    "latency": lambda path: LatencyTable.load(Path(path)),
    "image": image,
    "scaled image": lambda path: image(path, size=10**6),
    "folder": folder,
    "card": carded,
    "space": lambda path: built(plain_data.from_json(regular_file.read(path)), "space"),
    "data": lambda path: len(built(plain_data.from_json(regular_file.read(path)), "data").load().train),
    "data spec": lambda path: DataSpec.from_dict(plain_data.from_json(regular_file.read(path))),
    "genotype dict": lambda path: Genotype.from_dict(plain_data.from_json(regular_file.read(path))),
}


def good(directory):
    """Writes what each reader reads, and returns reader -> path."""
    import json

    import hostile_files

    torch.manual_seed(0)
    return hostile_files.good(Path(directory)) if directory else json.loads("{}")
