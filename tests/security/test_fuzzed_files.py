"""Files that hypothesis makes of good ones: an error of ours or a result, and nothing else.

The examples are the same in every run. ``pytest -m long -s tests/security/test_fuzzed_files.py`` makes others for ten
minutes, or for FUZZ_SECONDS, and prints how many.
"""

import contextlib
import io
import itertools
import json
import os
import time
import warnings
import zipfile

import hostile_files
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

import nas
from nas.errors import NasError
from nas.methods.latency_table import LatencyTable
from nas.runtime.runtime import Runtime
from nas.settings import configuration
from nas.spaces.published import resolve
from nas.storage import checkpoint_file
from nas.storage.metrics_log import read_lines
from nas.storage.run_directory import read_manifest
from nas.training.trained import Trained
from nas.untrusted.escaping import printable

EXAMPLES = 20
SOUP = ("${oc.env:HOME}", "_target_", "_name_", "os.system", "darts", "nan", "1e400", "\x1b[2J", "\u202e", "\ud800", "")
ATOMS = (
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(SOUP)),
    st.sampled_from([2**31, 2**63, 2**64, 10**400, -1, 0]),
)
TREES = st.recursive(
    st.one_of(*ATOMS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.sampled_from(SOUP), inner, max_size=3)
    ),
    max_leaves=8,
)
BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)


def places(node, place=()):
    """All places of a tree of dicts and lists."""
    yield place
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(child, (*place, key))


def replaced(node, place, value):
    """A copy of a tree with another value at a place."""
    if not place:
        return value
    made = node.copy()
    made[place[0]] = replaced(node[place[0]], place[1:], value)
    return made


def changed(data, tree):
    """The tree, with other things at one to three of its places."""
    for _ in range(data.draw(st.integers(1, 3))):
        tree = replaced(tree, data.draw(st.sampled_from(list(places(tree)))), data.draw(TREES))
    return tree


def flipped(data, content):
    """The bytes, of which some are others, and perhaps not all of them."""
    made = bytearray(content)
    for where, byte in data.draw(BYTES):
        made[int(where * len(made))] = byte
    return bytes(made[: data.draw(st.just(len(made)) | st.integers(0, len(made)))])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return hostile_files.Files(tmp_path_factory.mktemp("files"))


def trained(path):
    return Trained.load(path, allow=[], runtime=Runtime(device="cpu"))


def metadata(data, files):
    path = files.export() / "metadata.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(changed(data, good)))
    nas.load(path.parent)


def bytes_of_an_export(data, files):
    path = files.export() / data.draw(st.sampled_from(["metadata.json", "genotype.json", "weights.safetensors"]))
    path.write_bytes(flipped(data, path.read_bytes()))
    nas.load(path.parent)


def weights_of_an_export(data, files):
    """With the digest of what they are."""
    content = (files.export() / "weights.safetensors").read_bytes()
    nas.load(files.export(weights=flipped(data, content)))


def state_of_a_checkpoint(data, files):
    state = files.state()
    weights = state.pop("network")
    made = changed(data, state)
    trained(files.checkpoint({**(made if isinstance(made, dict) else {"config": made}), "network": weights}))


def pickle_of_a_checkpoint(data, files):
    """With the checksums of what it is."""
    with zipfile.ZipFile(io.BytesIO(files.checkpoint().read_bytes())) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in contents if name.endswith(".pkl"))
    contents[name] = flipped(data, contents[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    path = files.text("checkpoint.pt", checkpoint_file.sealed(stream.getvalue()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of other protocols of pickle
        trained(path)


def bytes_of_a_checkpoint(data, files):
    """With a checksum of all, as whoever makes it knows how to."""
    content = files.checkpoint().read_bytes()[: -checkpoint_file.DIGEST_LENGTH - 2]
    trained(files.text("checkpoint.pt", checkpoint_file.sealed(flipped(data, content) + b"\0\0")))


def genotype(data, files):
    path = files.genotype()
    made = changed(data, json.loads(path.read_text()))
    path.write_text(json.dumps(made) if data.draw(st.booleans()) else str(made))
    resolve(str(path))


def configuration_of_a_run(data, files):
    good = {"seed": 0, "space": hostile_files.SPACE, "data": hostile_files.DATA, "lr": 0.1, "list": [1, {"a": None}]}
    made = (
        yaml.safe_dump(changed(data, good))
        if data.draw(st.booleans())
        else flipped(data, yaml.safe_dump(good).encode())
    )
    configuration.read_yaml(files.text("config.yaml", made))


def latency(data, files):
    path = files.latency()
    path.write_text(json.dumps(changed(data, json.loads(path.read_text()))))
    LatencyTable.load(path)


def manifest_and_metrics(data, files):
    files.text("manifest.json", json.dumps(changed(data, hostile_files.MANIFEST)))
    line = json.dumps(changed(data, {"stage": "search", "epoch": 0, "loss": 1.0}))
    with contextlib.redirect_stderr(io.StringIO()):
        read_lines(files.text("metrics.jsonl", flipped(data, f"{line}\n{line}\n".encode())))
    read_manifest(files.directory)


READERS = (
    *(metadata, bytes_of_an_export, weights_of_an_export, state_of_a_checkpoint, pickle_of_a_checkpoint),
    *(bytes_of_a_checkpoint, genotype, configuration_of_a_run, latency, manifest_and_metrics),
)


def message_of(read, data, files):
    """Of the error of ours that reading ends in; empty if it ends in none."""
    try:
        read(data, files)
    except NasError as error:
        return str(error)
    return ""


def tried(read, files, **options):
    """How many examples a reader was tried with."""
    count = 0

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    @given(data=st.data())
    def test(data):
        nonlocal count
        count += 1
        told = message_of(read, data, files)
        assert printable(told) == told

    if not options.get("derandomize"):
        test = seed(time.time_ns())(test)
    test()
    return count


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_only_our_errors_come_of_changed_files(read, files):
    assert tried(read, files, derandomize=True, max_examples=EXAMPLES) >= EXAMPLES / 2


@pytest.mark.long
def test_only_our_errors_come_of_changed_files_for_minutes(files):
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "600"))
    counts = dict.fromkeys((read.__name__ for read in READERS), 0)
    for read in itertools.cycle(READERS):
        if time.monotonic() > end:
            break
        counts[read.__name__] += tried(read, files, max_examples=30, phases=[Phase.generate])
    print(sum(counts.values()), "files:", ", ".join(f"{name} {count}" for name, count in counts.items()))
    assert min(counts.values()) > 0
