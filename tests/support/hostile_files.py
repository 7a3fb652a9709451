"""Files that are good, and the means to make hostile ones of them."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import torch
import yaml

from nas.data.spec import ImageSpec
from nas.formats.export import digest
from nas.settings import configuration
from nas.settings.building import built
from nas.settings.names import NAME, PARTIAL
from nas.storage import checkpoint_file
from nas.supernet.genotype import Genotype

OPS = {"none": {NAME: "none", PARTIAL: True}, "nor_conv_3x3": {NAME: "relu_conv_bn", PARTIAL: True, "kernel_size": 3}}
SPACE = {NAME: "nas_bench_201", "ops": OPS, "channels": 4, "cells": 1}
SPEC = ImageSpec(
    name="tiny", input_shapes=((3, 8, 8),), class_names=("class_0", "class_1"), mean=(0.5,) * 3, std=(0.2,) * 3
)
EDGES = ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")
GENOTYPE = Genotype("nas_bench_201", {f"cell/{edge}": "nor_conv_3x3" for edge in EDGES})
MANIFEST = {
    "status": "interrupted",
    "command": ["nas-run"],
    "commit": None,
    "versions": {"torch": "2"},
    "seed": 0,
    "device": "cpu",
    "started": "now",
    "processes": 1,
}
DATA = {NAME: "synthetic", "train": 8, "test": 4, "classes": 2}


class Files:
    """The files in a directory of their own: every method writes one, with changes, and returns its path."""

    network = None

    def __init__(self, directory):
        self.directory = directory
        if Files.network is None:
            torch.manual_seed(0)
            Files.network = built(SPACE, "space").network(SPEC, GENOTYPE).state_dict()

    def text(self, name, content):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def json(self, name, content):
        return self.text(name, json.dumps(content))

    def export(self, *, genotype=None, weights=None, metadata=None, data=None, sizes=None, **space):
        from safetensors.torch import save

        where = self.directory / "export"
        genotype = GENOTYPE.to_json() if genotype is None else genotype
        self.text("export/genotype.json", genotype)
        self.text("export/weights.safetensors", save(self.network) if weights is None else weights)
        self.json(
            "export/metadata.json",
            {
                "format": "nas-export",
                "version": 2,
                "data": SPEC.to_dict() | (data or {}),
                "network": {"space": SPACE | space, "sizes": sizes or {}, "memory_format": "contiguous"},
                "sha256": {name: digest(where / name) for name in ("genotype.json", "weights.safetensors")},
            }
            | (metadata or {}),
        )
        return where

    def state(self, **config):
        return {
            "format": checkpoint_file.FORMAT,
            "version": checkpoint_file.VERSION,
            "kind": "retrain",
            "config": {
                "space": SPACE,
                "task": {NAME: "classification"},
                "data": DATA,
                "retrain": {"network": {}},
                "runtime": {"memory_format": "contiguous"},
                **config,
            },
            "data": SPEC.to_dict(),
            "genotype": GENOTYPE.to_dict(),
            "network": self.network,
        }

    def checkpoint(self, state=None, *, name="checkpoint.pt", **config):
        stream = io.BytesIO()
        torch.save(self.state(**config) | (state or {}), stream)
        return self.text(name, checkpoint_file.sealed(stream.getvalue()))

    def pickled(self, pickle, records=(), **packing):
        """A checkpoint of a pickle, with a checksum."""
        return self.text("checkpoint.pt", checkpoint_file.sealed(packed(pickle, records, **packing)))

    def run(self, text=None, *, manifest=None, metrics="", **config):
        """A directory that a run left. config: of config.yaml, by dotted names."""
        import hostile_readers
        from omegaconf import OmegaConf

        plain = yaml.safe_load(configuration.to_yaml(hostile_readers.composed("run", *hostile_readers.SMALL)))
        plain = OmegaConf.create(plain)
        for setting, value in config.items():
            OmegaConf.update(plain, setting.replace("__", "."), value, merge=False, force_add=True)
        self.text("run/config.yaml", yaml.safe_dump(OmegaConf.to_container(plain)) if text is None else text)
        self.text(
            "run/manifest.json", manifest if isinstance(manifest, str) else json.dumps(MANIFEST | (manifest or {}))
        )
        self.text("run/metrics.jsonl", metrics)
        self.checkpoint(name="run/retrain/checkpoint.pt")
        return self.directory / "run"

    def genotype(self, **choices):
        return self.json("genotype.json", GENOTYPE.to_dict() | {"choices": dict(GENOTYPE.choices) | choices})

    def table(self, *rows, header="index,arch_str,cifar10_test_200"):
        cell = "+".join("|" + "".join(f"none~{i}|" for i in range(n)) for n in (1, 2, 3))
        return self.text("table.csv", "\n".join([header, f"0,{cell},90.0", *rows]) + "\n")

    def latency(self, **changes):
        entry = {"key": "cell/0-1", "inputs": [[1, 4, 8, 8]], "milliseconds": {"none": 0.0}}
        raw = {"format": "nas-latency", "version": 1, "device": "cpu", "batch": 1, "fixed": 1.0, "candidates": [entry]}
        return self.json("latency.json", raw | changes)

    def image(self, name="image.png", size=(8, 8), format="PNG", **options):
        from PIL import Image

        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10, 20, 30)).save(path, format, **options)
        return path

    def folder(self):
        for index in range(8):
            self.image(f"images/{'ab'[index % 2]}/{index}.png")
        return self.directory / "images"


# -- pickles, by their instructions


def text(value):
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + tuple_of(*arguments) + b"R"


def storage(key="0", elements=4, kind="FloatStorage"):
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(elements)) + b"Q"


def tensor(of, size=(4,), stride=(1,), offset=0):
    hooks = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        *(of, number(offset), tuple_of(*map(number, size)), tuple_of(*map(number, stride)), b"\x89", hooks),
    )


def listed(*items):
    """The pickle of a list."""
    return b"](" + b"".join(items) + b"e"


def nested(levels):
    """A tuple of two equal tuples, and so on, each there once. The last is in the memo under `levels - 1`."""
    first = text("a") + text("a") + b"\x86q\1"
    return first + b"".join(b"h%ch%c\x86q%c" % (level - 1, level - 1, level) for level in range(2, levels))


def sparse():
    layout = call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo"))
    parts = tensor(storage("0", 2, "LongStorage"), (1, 2), (2, 1)), tensor(storage("1", 2), (2,))
    return call(
        name("torch._utils", "_rebuild_sparse_tensor"), layout, tuple_of(*parts, tuple_of(number(10**9)), b"\x89")
    )


def state_with(value):
    """The pickle of a state that has a value."""
    marks = {
        "format": text(checkpoint_file.FORMAT),
        "version": number(checkpoint_file.VERSION),
        "kind": text("retrain"),
    }
    return b"\x80\x02}(" + b"".join(text(key) + of for key, of in {**marks, "network": value}.items()) + b"u."


def packed(pickle, records=(), *, name="a/data.pkl", extra=(), compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, pickle)
        archive.writestr("a/byteorder", "little")
        for key, content in dict(records).items():
            archive.writestr(f"a/data/{key}", content)
        archive.writestr("a/version", "3\n")
        for key, content in dict(extra).items():
            archive.writestr(key, content)
    return stream.getvalue()


def two_directories(shown, hidden):
    """An archive that Python's zipfile reads as `shown`, and torch as `hidden`, whose directories are of equal size.

    zipfile takes the directory that lies before the end record, torch the one at the offset that the record has.
    """
    end, hidden_end = shown.rfind(b"PK\5\6"), hidden.rfind(b"PK\5\6")
    entries, size, start = struct.unpack("<HLL", shown[end + 10 : end + 20])
    hidden_start = struct.unpack("<L", hidden[hidden_end + 16 : hidden_end + 20])[0]
    directory, moved = bytearray(shown[start:end]), hidden_start - start
    assert size == hidden_end - hidden_start
    position = 0
    while position < size:  # zipfile adds to each offset what it takes to be before the archive
        lengths = struct.unpack("<HHH", directory[position + 28 : position + 34])
        offset = struct.unpack("<L", directory[position + 42 : position + 46])[0]
        before = len(hidden[:hidden_end]) + start - hidden_start
        directory[position + 42 : position + 46] = struct.pack("<L", hidden_end + offset - before)
        position += 46 + sum(lengths)
    del moved
    record = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, size, hidden_start, 0)
    return hidden[:hidden_end] + shown[:start] + bytes(directory) + record


# -- images


def png(width, height, *chunks, content=b""):
    """A PNG of a header that says so, whatever there is of pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def holes(path):
    with Path(path).open("wb") as stream:
        stream.truncate(2**40)
    return path
