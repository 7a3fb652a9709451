"""Hostile files, at least three for each pair of a reader and an attack, read in a process that is watched.

A case passes if the reader ends in an error of ours, on one line, or has read the file as data; if it has imported,
started, connected and written nothing; and if it has taken at most 5 s of processor time and 1 GiB.
Each case is a function of `hostile_files.Files` that returns the path to read.
"""

import functools
import json
import os
import select
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import hostile_files as made
import pytest
from hostile_files import (
    DATA,
    GENOTYPE,
    OPS,
    SPACE,
    call,
    listed,
    name,
    number,
    packed,
    state_with,
    storage,
    tensor,
    text,
    tuple_of,
)

from nas.settings.names import NAME, PARTIAL
from nas.storage import checkpoint_file

SECRET = "hunter2 of the environment"
MEMORY = 2**30  # bytes
WAIT = 300  # seconds until the process counts as hanging: it may get little of a machine that is busy
CODE = ("os.system", "nas.storage.atomic.write_text", "payload", "nas.settings.configuration.build")
TOUCH = r"\${oc.create:{_target_:pathlib.Path.touch,self:{_target_:pathlib.Path,_args_:[harmed]}}}"
VARIABLES = ("${oc.env:SECRET}", r"\${oc.env:SECRET}", "$SECRET", "${SECRET}", "~SECRET", "%SECRET%")
LARGE = 10**9
TEXTS = {
    "code": ("__import__('os').system('touch harmed')", "!!python/object/apply:os.system [touch harmed]", TOUCH),
    "environment": VARIABLES[:3],
    "elsewhere": ("../../harmed", "/harmed", "\0/harmed"),
}
CASES = {}


def case(reader, attack, make, *, label=None):
    """label: for the test's name."""
    number = sum(key[:2] == (reader, attack) for key in CASES)
    CASES[reader, attack, f"{number}" + (f" {label}" if label else "")] = make


def cases(reader, attack, **makes):
    for label, make in makes.items():
        case(reader, attack, make, label=label)


# -- what can be said in any of them

for attack, texts in TEXTS.items():
    for said in texts:
        field = functools.partial
        case("export", attack, lambda f, said=said: f.export(channels=said))
        case("export", attack, lambda f, said=said: f.export(data={"name": said, "class_names": [said, "b"]}))
        case("checkpoint", attack, lambda f, said=said: f.checkpoint(task={NAME: "classification", "x": said}))
        case("evaluate", attack, lambda f, said=said: f.checkpoint(data=DATA | {"train": said}))
        case("config", attack, lambda f, said=said: f.run(seed=said) / "config.yaml")
        case("resume", attack, lambda f, said=said: f.run(search__epochs=said))
        case(
            "manifest",
            attack,
            lambda f, said=said: f.run(manifest={"command": [said], "process": said, "commit": said}),
        )
        case("genotype", attack, lambda f, said=said: f.genotype(**{said: said}))
        case("genotype text", attack, lambda f, said=said: f.text("genotype", f"Genotype(normal=[({said}, 0)])"))
        case("table", attack, lambda f, said=said: f.table(f"1,{said},5.0"))
        case("table", attack, lambda f, said=said: f.table(header=f"index,arch_str,{said}"))
        case("latency", attack, lambda f, said=said: f.latency(device=said, batch=said))
        case(
            "metrics",
            attack,
            lambda f, said=said: f.text("m.jsonl", json.dumps({"stage": said, "epoch": 0, said: said}) + "\n"),
        )
        case(
            "image",
            attack,
            lambda f, said=said: f.text(
                "i.png", made.png(8, 8, (b"tEXt", b"a\0" + said.encode("latin1")), content=bytes(200))
            ),
        )


# -- code

for path in CODE:
    cases(
        "export",
        "code",
        target=lambda f, path=path: f.export(x={"_target_": path, "path": "harmed", "text": ""}),
        name=lambda f, path=path: f.export(ops=OPS | {"x": {NAME: path, PARTIAL: True}}),
        space=lambda f, path=path: f.export(metadata={"network": {"space": {NAME: path}, "sizes": {}}}),
    )
    cases(
        "evaluate",
        "code",
        factory=lambda f, path=path: f.checkpoint(
            space={NAME: "custom", "factory": path, "arguments": {"path": "harmed"}}
        ),
        task=lambda f, path=path: f.checkpoint(
            task={NAME: "custom", "loss": path, "metric": path, "name": "x", "higher_is_better": True}
        ),
        data=lambda f, path=path: f.checkpoint(data={NAME: "custom", "factory": path, "arguments": {"path": "harmed"}}),
    )
cases(
    "resume",
    "code",
    data=lambda f: f.run(
        data={NAME: "custom", "factory": "os.mkdir", "arguments": {"path": "harmed"}}, allow_targets=["os"]
    ),
    space=lambda f: f.run(space={NAME: "os.mkdir", "path": "harmed"}),
    target=lambda f: f.run(space={"_target_": "os.mkdir", "path": "harmed"}),
)
cases(
    "checkpoint",
    "code",
    reduce=lambda f: f.pickled(state_with(call(name("posix", "system"), text("touch harmed")))),
    upper_case=lambda f: f.pickled(state_with(call(name("builtins", "bytearray"), number(9))), name="a/DATA.PKL"),
    codec=lambda f: f.pickled(state_with(call(name("_codecs", "encode"), text("a"), text("rot13")))),
    codec_of_bytes=lambda f: f.pickled(state_with(call(name("_codecs", "encode"), text("a"), text("mbcs")))),
    two_directories=lambda f: f.text(
        "checkpoint.pt",
        checkpoint_file.sealed(
            made.two_directories(
                packed(state_with(tensor(storage(elements=2), (2,))), {"0": bytes(16), "1": bytes(8)}),
                packed(state_with(made.sparse()), {"0": bytes(16), "1": bytes(8)}),
            )
        ),
    ),
    torchscript=lambda f: f.pickled(
        state_with(b"N"), extra={"a/code/__torch__.py": "import os", "a/constants.pkl": "N."}
    ),
    plain_pickle=lambda f: f.text(
        "checkpoint.pt", checkpoint_file.sealed(b"cposix\nsystem\n(Vtouch harmed\ntR." + b"\0\0")
    ),
)
cases(
    "run",
    "code",
    payload=lambda f: (
        f.run(),
        f.text("run/nas.py", "open('harmed', 'w')"),
        f.text("run/export/model.py", "open('harmed', 'w')"),
    )[0],
    pickle=lambda f: (f.run(), f.text("run/retrain/checkpoint.pt", b"cposix\nsystem\n(Vtouch harmed\ntR."))[0],
    model=lambda f: (
        f.run(),
        f.text("run/metadata.json", '{"format": "nas-export", "version": 2, "network": "payload"}'),
    )[0],
)
cases(
    "config",
    "code",
    tag=lambda f: f.text("c.yaml", "a: !!python/object/apply:os.system [touch harmed]"),
    name=lambda f: f.text("c.yaml", "space: {_name_: 3}"),
    args=lambda f: f.text("c.yaml", "space: {_name_: darts, _args_: [1]}"),
)
cases(
    "image",
    "code",
    eps=lambda f: f.text("i.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(harmed) (w) file\n"),
    pickle=lambda f: f.text("i.png", b"cposix\nsystem\n(Vtouch harmed\ntR."),
    svg=lambda f: f.text("i.png", "<svg/>"),
)


# -- elsewhere


def link(target, where):
    """Puts a link in the place of a file."""

    def put(path):
        place = path / where if where else path
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        return path

    return put


for target in ("/etc/passwd", "/dev/zero", "elsewhere", "."):
    for file in ("metadata.json", "genotype.json", "weights.safetensors"):
        case("export", "elsewhere", lambda f, t=target, w=file: link(t, w)(f.export()), label=f"{file} to {target}")
    for file in ("config.yaml", "manifest.json"):
        case("resume", "elsewhere", lambda f, t=target, w=file: link(t, w)(f.run()), label=f"{file} to {target}")
    case("run", "elsewhere", lambda f, t=target: link(t, "retrain/checkpoint.pt")(f.run()), label=target)
    for reader in ("checkpoint", "genotype", "table", "latency", "image", "metrics", "config"):
        case(reader, "elsewhere", lambda f, t=target: link(t, "")(f.directory / "file"), label=f"link to {target}")
cases(
    "folder",
    "elsewhere",
    disk=lambda f: link("/", "c")(f.folder()),
    inside=lambda f: link("/usr", "a/x")(f.folder()),
    loop=lambda f: link("..", "a/x")(f.folder()),
    file=lambda f: link("/etc/passwd", "a/x.png")(f.folder()),
    parent=lambda f: link("../..", "c")(f.folder()),
)
cases(
    "evaluate",
    "elsewhere",
    root=lambda f: f.checkpoint(data={NAME: "image_folder", "root": "/etc"}),
    download=lambda f: f.checkpoint(data={NAME: "cifar10", "root": str(f.directory), "download": True}),
    links=lambda f: f.checkpoint(data={NAME: "image_folder", "root": str(link("/", "c")(f.folder())), "links": True}),
)
cases(
    "resume",
    "elsewhere",
    tracker=lambda f: f.run(tracker={NAME: "jsonl", "directory": "/"}),
    saving=lambda f: f.run(saving={NAME: "default", "path": "/harmed"}),
)


# -- without bound

DARTS = {
    NAME: "darts",
    "ops": {"none": OPS["none"], "a": {NAME: "sep_conv", PARTIAL: True, "kernel_size": 3}},
    "cells": 3,
}
OF_DARTS = json.dumps(GENOTYPE.to_dict() | {"space": "darts", "choices": {}})
for key, value in (
    ("channels", LARGE),
    ("cells", LARGE),
    ("nodes", 10**6),
    ("cells", 10**4),
    ("channels", 10**5),
):
    case("export", "unbounded", lambda f, k=key, v=value: f.export(**{k: v}), label=f"{key} {value}")
    case(
        "checkpoint", "unbounded", lambda f, k=key, v=value: f.checkpoint(space=SPACE | {k: v}), label=f"{key} {value}"
    )
for value in (True, "4", 4.5, [4], -1, None, {"a": 1}):
    case("export", "unbounded", lambda f, v=value: f.export(sizes={"channels": v}), label=f"channels {value}")
for key, value in (("train", 10**12), ("classes", LARGE), ("size", 10**6), ("channels", 10**12), ("train", 10**8)):
    case("evaluate", "unbounded", lambda f, k=key, v=value: f.checkpoint(data=DATA | {k: v}), label=f"{key} {value}")
for key, value in (
    ("space.channels", LARGE),
    ("space.cells", LARGE),
    ("data.size", 10**6),
    ("saving.keep", 10**12),
    ("runtime.threads", LARGE),
    ("data.crop_padding", 10**6),
    ("retrain.network.cells", LARGE),
    ("deriver", {}),
    ("data", {}),
    ("space.channels", 10**5),
    ("space.ops", {"a": 1}),
    ("runtime", {}),
):
    case("start", "unbounded", lambda f, k=key, v=value: f.run(**{k: v}), label=f"{key} {value}")


def floats(header, content=b""):
    """A file in the format of safetensors."""
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + content


cases(
    "export",
    "unbounded",
    kernel=lambda f: f.export(ops=OPS | {"nor_conv_3x3": OPS["nor_conv_3x3"] | {"kernel_size": 4001}}),
    pixels=lambda f: f.export(
        data={"input_shapes": [[3, 10**5, 10**5]]}, genotype=GENOTYPE.to_json().replace('"nor_conv_3x3"', "null")
    ),
    steps=lambda f: f.export(
        metadata={"network": {"space": DARTS | {"steps": 99_999}, "sizes": {}, "memory_format": "contiguous"}},
        genotype=OF_DARTS,
    ),
    header=lambda f: f.export(weights=struct.pack("<Q", 2**62) + b"{}"),
    shape=lambda f: f.export(
        weights=floats({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"1234")
    ),
    nothing=lambda f: f.export(weights=floats({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}})),
    brackets=lambda f: (f.export(), f.text("export/metadata.json", "[" + "[]," * 1_000_000 + "[]]"))[1].parent,
    deep=lambda f: (f.export(), f.text("export/metadata.json", '{"a":' * 100_000))[1].parent,
    classes=lambda f: f.export(data={"class_names": [str(index) for index in range(150_000)]}),
)
IDEOGRAPHS = "".join(map(chr, range(0x4E00, 0x4E00 + 12_000)))
cases(
    "checkpoint",
    "unbounded",
    bytearray=lambda f: f.pickled(state_with(call(name("builtins", "bytearray"), number(2**33))), name="a/data.PKL"),
    punycode=lambda f: f.pickled(state_with(call(name("_codecs", "encode"), text(IDEOGRAPHS), text("punycode")))),
    idna=lambda f: f.pickled(state_with(call(name("_codecs", "encode"), text(IDEOGRAPHS), text("idna")))),
    punycode_from_the_memo=lambda f: f.pickled(
        state_with(
            text("punycode")
            + b"q\1"
            + b"0"
            + name("_codecs", "encode")
            + b"q\2"
            + b"0h\2"
            + text(IDEOGRAPHS)
            + b"h\1\x86R"
        )
    ),
    lists=lambda f: f.pickled(state_with(b"]" * 2_500_000 + b"0" * 2_499_999)),
    tuples=lambda f: f.pickled(state_with(b")" + b"\x85" * 2_500_000)),
    beyond_its_record=lambda f: f.pickled(state_with(tensor(storage(elements=10**8), (10**8,))), {"0": bytes(16)}),
    strides=lambda f: f.pickled(state_with(tensor(storage(), (10**9,), (0,))), {"0": bytes(16)}),
    offset=lambda f: f.pickled(state_with(tensor(storage(), offset=-(10**6))), {"0": bytes(16)}),
    no_record=lambda f: f.pickled(state_with(tensor(storage("7")))),
    byte_order=lambda f: f.text(
        "c.pt",
        checkpoint_file.sealed(packed(state_with(tensor(storage())), {"0": bytes(16)}).replace(b"little", b"middle")),
    ),
    deflated=lambda f: f.pickled(
        state_with(tensor(storage(elements=2**26), (2**26,))), {"0": bytes(2**28)}, compression=8
    ),
    absolute=lambda f: f.pickled(state_with(b"N"), extra={"/harmed": "x", "../../harmed": "x"}),
    entries=lambda f: f.pickled(state_with(b"N"), extra={f"a/{index}": "" for index in range(3_000)}),
    itself=lambda f: f.pickled(state_with(b"]q\1h\1a")),
    holes=lambda f: made.holes(f.directory / "checkpoint.pt"),
)
cases(
    "newest",
    "unbounded",
    many=lambda f: [f.text(f"c.{index}.pt", b"x") for index in range(500)] and f.text("c.pt", b"x"),
)
for reader, plain in (("manifest", "manifest.json"), ("resume", "manifest.json"), ("run", "retrain/checkpoint.pt")):
    for what in (made.holes, os.mkfifo):
        case(
            reader,
            "unbounded",
            lambda f, p=plain, w=what: ((f.run() / p).unlink(), w(f.directory / "run" / p), f.directory / "run")[2],
            label=what.__name__,
        )
for said in (
    "{" * 100_000,
    '{"status": "running", "wall_seconds": ' + "9" * 5000 + "}",
    '{"status": "running", "x": [' + "[]," * 300_000 + "[]]}",
):
    case("manifest", "unbounded", lambda f, said=said: f.run(manifest=said), label=said[:12])
cases(
    "resume", "unbounded", text=lambda f: f.run(manifest={"resumed": ["x"] * 100_000}), wrong=lambda f: f.run(search=3)
)
cases("run", "unbounded", deep=lambda f: (f.run(), f.text("run/metadata.json", "[" * 10**6))[0])
for said in (
    ": 1" + ":59" * 30_000,
    "[" * 90_000,
    "{" + ",".join(map(str, range(9_000))) + "}",
    ": 0x" + "f" * 90_000,
    ": 1." + "1" * 90_000,
    ": =",
    ": &a [*a]",
    ": .inf",
    "a" * 300_000,
    "\n---\nb",
    ": \0",
    "? [1]",
):
    case(
        "config",
        "unbounded",
        lambda f, said=said: f.text("c.yaml", "a" + said if said[0] in ":\n" else said),
        label=repr(said[:8]),
    )
LINE = '{"stage": "search", "epoch": 0}\n'
cases(
    "metrics",
    "unbounded",
    newlines=lambda f: f.text("m.jsonl", "\n" * 5_000_000),
    lines=lambda f: f.text("m.jsonl", LINE * 200_000),
    lists=lambda f: f.text("m.jsonl", "[" + "[]," * 1_000_000 + "[]]\n"),
    deep=lambda f: f.text("m.jsonl", "[" * 10**6 + "\n"),
    digits=lambda f: f.text("m.jsonl", LINE.replace("0", "9" * 5000)),
)
cases(
    "table",
    "unbounded",
    columns=lambda f: f.text("t.csv", "a," * 1_000_000),
    accuracies=lambda f: f.text(
        "t.csv", "index,arch_str," + ",".join(f"a{index}_test_1" for index in range(900)) + "\n"
    ),
    quotes=lambda f: f.text("t.csv", '"\n' * 1_000_000),
    digits=lambda f: f.table("1,x," + "9" * 15_000),
)
cases(
    "latency",
    "unbounded",
    lists=lambda f: f.text("l.json", "[" + "[]," * 1_000_000 + "[]]"),
    infinite=lambda f: f.text("l.json", json.dumps({"format": "nas-latency", "version": 1, "fixed": float("inf")})),
    deep=lambda f: f.text("l.json", "[" * 10**6),
)
cases(
    "drawn",
    "unbounded",
    cells=lambda f: f.genotype(**{f"{index}/0-1": "a" for index in range(20_000)}),
    choices=lambda f: f.genotype(**{f"{index}": f"k{index}" for index in range(20_000)}),
    nodes=lambda f: f.genotype(**{"a/0-999": "a", "0" * 100_000 + "-": "b"}),
    controls=lambda f: f.genotype(**{"\x1b[2J\0": "<script>\u202e\ud800"}),
)
cases(
    "genotype",
    "unbounded",
    deep=lambda f: f.text("g.json", '{"a":' * 150_000),
    digits=lambda f: f.text("g.json", '{"format": "nas-genotype", "version": ' + "9" * 5000 + "}"),
    holes=lambda f: made.holes(f.directory / "genotype.json"),
)
cases(
    "checkpoint",
    "unbounded",
    hash=lambda f: f.pickled(state_with(listed(made.nested(60), b"}h\x3bNs"))),
    called=lambda f: f.pickled(state_with(listed(made.nested(60), b"h\x3b)R"))),
    storage_size=lambda f: f.pickled(
        state_with(
            listed(
                made.nested(60),
                tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"h\x3b") + b"Q",
            )
        )
    ),
    copied_dict=lambda f: f.pickled(
        state_with(
            listed(
                b"}(" + b"".join(text(str(index)) + b"N" for index in range(2000)) + b"uq\2",
                name("collections", "OrderedDict") + b"q\3",
                b"h\3h\2\x85R" * 20_000,
            )
        )
    ),
    encoded_text=lambda f: f.pickled(
        state_with(
            listed(
                text("\xe9" * 10**6) + b"q\1" + text("latin1") + b"q\2",
                *[name("_codecs", "encode") + b"h\1h\2\x86R"] * 3000,
            )
        )
    ),
)
cases(
    "image",
    "unbounded",
    pixels=lambda f: f.text("i.png", made.png(2**31 - 1, 2**31 - 1)),
    profile=lambda f: f.text(
        "i.png", made.png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7))), content=bytes(200))
    ),
    text=lambda f: f.text(
        "i.png", made.png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))), content=bytes(200))
    ),
    chunks=lambda f: f.text(
        "i.png", made.png(8, 8, *[(b"tEXt", b"k%d\0v" % index) for index in range(20_000)], content=bytes(200))
    ),
    cut=lambda f: f.text("i.png", made.png(8, 8)[:40]),
    tags=lambda f: f.text(
        "i.tif",
        b"II*\0" + struct.pack("<LH", 8, 999) + struct.pack("<HHLL", 256, 4, 2**30, 8) * 999 + struct.pack("<L", 8),
    ),
    holes=lambda f: made.holes(f.directory / "i.png"),
)
cases("folder", "unbounded", pipe=lambda f: (f.folder(), os.mkfifo(f.directory / "images/a/z.png"))[0])
for key, value in (("image_size", 10**6), ("workers", LARGE)):
    case(
        "data",
        "unbounded",
        lambda f, k=key, v=value: f.json(
            "d.json", {NAME: "image_folder", "root": str(f.folder()), "image_size": 8, k: v}
        ),
        label=key,
    )


# -- the watched process


class Watched:
    """The process that reads the cases, started anew after a case that has ended it."""

    def __init__(self, directory):
        self.directory = directory
        self.process = None

    def start(self):
        environment = {
            **os.environ,
            "SECRET": SECRET,
            "PYTHONPATH": os.pathsep.join([str(Path(made.__file__).parent), *sys.path]),
        }
        self.process = subprocess.Popen(
            [sys.executable, made.__file__.replace("hostile_files", "hostile_reader")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.answer()
        self.directory.mkdir(exist_ok=True)
        files = made.Files(self.directory)
        good = {
            "export": files.export(),
            "evaluate": files.checkpoint(),
            "start": files.run(),
            "drawn": files.genotype(),
            "table": files.table(),
            "folder": files.folder(),
            "image": files.text("none.png", b"x"),
            "checkpoint": files.pickled(state_with(b"N")),
        }
        for reader, path in good.items():  # what is imported on first use is no business of a file
            last = self.read(reader, path, self.directory, limit=reader == "checkpoint")
        assert last is not None

    def answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def read(self, reader, path, directory, *, limit=False):
        """What the process answers; None if it has ended."""
        if self.process is None:
            self.start()
        asked = {
            "reader": reader,
            "path": str(path),
            "directory": str(directory),
            "allowed": str(directory),
            "limit": limit,
        }
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        if (answer := self.answer()) is None:
            self.stop()
        return answer

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    process = Watched(tmp_path_factory.mktemp("watched") / "good")
    yield process
    process.stop()


def listing(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("key", CASES, ids="-".join)
def test_a_hostile_file(key, watched, tmp_path):
    reader, _, _ = key
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "payload.py").write_text("open('harmed', 'w')")
    path = CASES[key](made.Files(inside))
    before = listing(tmp_path)
    answer = watched.read(reader, path, inside)
    assert answer is not None, "it took too much time, or crashed"
    assert answer["seen"] == []
    assert listing(tmp_path) == before
    assert SECRET not in str(answer)
    if answer["error"] is not None:
        assert "NasError" in answer["error"], answer["trace"]
        assert answer["message"].isprintable()
        assert len(answer["message"]) < 2000
        # An allocation that the system would have granted elsewhere, and used, is no refusal.
        assert not any("MemoryError" in cause for cause in answer["chain"])
    assert answer["said"].replace("\n", "").isprintable()
    assert answer["memory"] < MEMORY


def test_every_pair_has_three_cases():
    counted = Counter((reader, attack) for reader, attack, _ in CASES)
    readers = ("export", "checkpoint", "resume", "genotype", "config", "image", "table", "manifest", "metrics")
    attacks = ("code", "elsewhere", "environment", "unbounded")
    assert all(counted[reader, attack] >= 3 for reader in readers for attack in attacks), counted
