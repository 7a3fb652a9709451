import io
import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import CheckpointError, ConfigError, OutputError
from nas.storage import checkpoint_file

STATE = {
    "network": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)},
    "generator": torch.get_rng_state()[:16],
    "epoch": 7,
    "genotype": None,
    "config": {"lr": 0.1, "names": ["a", "b"], "flag": True},
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint_file.save(path, "search", STATE)
    return path


def equal(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("before", [91, 92, 93])
def test_a_state_of_any_number_of_names_is_read(before, tmp_path):
    """The names are numbered in the pickle; the number of one that stands before a tensor may be a letter there."""
    path, weights = tmp_path / "checkpoint.pt", torch.arange(3.0)
    checkpoint_file.save(path, "search", {**{f"name{number}": None for number in range(before)}, "weights": weights})
    assert torch.equal(checkpoint_file.load(path, "search")["weights"], weights)


def write_sealed(content, path, **options):
    """A file with a valid checksum, whatever is in it: what somebody who knows the format can make."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    path.write_bytes(checkpoint_file.sealed(stream.getvalue()))


def without_header(state):
    return {key: value for key, value in state.items() if key not in ("format", "version", "kind")}


@pytest.mark.parametrize("convert", [str, lambda path: path])
def test_round_trip(path, convert):
    assert equal(without_header(checkpoint_file.load(convert(path), "search")), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_round_trip_of_training_that_goes_on_identically(tmp_path):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def steps(model, optimizer, numbers):
        for number in numbers:
            optimizer.zero_grad()
            model(torch.randn(8, 3, generator=torch.Generator().manual_seed(number))).square().mean().backward()
            optimizer.step()

    model, optimizer = build()
    steps(model, optimizer, range(3))
    path = tmp_path / "c.pt"
    checkpoint_file.save(path, "retrain", {"network": model.state_dict(), "optimizer": optimizer.state_dict()})
    steps(model, optimizer, range(3, 6))

    resumed, resumed_optimizer = build()
    state = checkpoint_file.load(path, "retrain")
    checkpoint_file.restore(resumed, state["network"], source=path)
    resumed_optimizer.load_state_dict(state["optimizer"])
    steps(resumed, resumed_optimizer, range(3, 6))
    assert equal(dict(resumed.state_dict()), dict(model.state_dict()))


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*; give a checkpoint.pt that the search stage wrote"):
        checkpoint_file.load(tmp_path / "missing.pt", "search")
    for place in ("", "search"):
        (tmp_path / place).mkdir(exist_ok=True)
        with pytest.raises(
            CheckpointError, match=r"is a directory, expected a file; give a checkpoint.pt that the search"
        ):
            checkpoint_file.load(tmp_path / place, "search")
    (tmp_path / "export").mkdir()
    (tmp_path / "search" / "checkpoint.pt").touch()
    for place in ("", "search", "export"):
        with pytest.raises(CheckpointError, match=r"expected a file; give .*[^h]/search/checkpoint.pt"):
            checkpoint_file.load(tmp_path / place, "search")


def test_of_another_kind(path):
    with pytest.raises(CheckpointError, match="is of the search stage, expected one of retrain"):
        checkpoint_file.load(path, "retrain")


@pytest.mark.parametrize("version", [0, 3, "2", None], ids=str)
def test_of_another_version(version, path):
    write_sealed({"format": checkpoint_file.FORMAT, "version": version, "kind": "search"}, path)
    with pytest.raises(CheckpointError, match=r"has version .*, expected 2"):
        checkpoint_file.load(path, "search")


def test_a_version_that_is_a_tensor(path):
    write_sealed({"format": checkpoint_file.FORMAT, "version": torch.tensor([1, 2]), "kind": "search"}, path)
    with pytest.raises(CheckpointError):
        checkpoint_file.load(path, "search")


@pytest.mark.parametrize("content", [{"a": 1}, [1], torch.ones(1), None, {"format": "other", "version": 1}], ids=repr)
def test_of_another_project(content, path):
    for write in (torch.save, write_sealed):
        write(content, path)
        with pytest.raises(CheckpointError, match="damaged, or not a checkpoint of this project"):
            checkpoint_file.load(path, "search")


@pytest.mark.parametrize("content", [b"", b"x", b"text\n" * 100, bytes(1000), b"PK\x03\x04", b"\x80\x02."])
def test_of_another_format(content, path):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint_file.load(path, "search")
    assert str(path) in str(error.value)


def test_truncated_anywhere(path):
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            checkpoint_file.load(path, "search")


def test_with_a_bit_flipped_anywhere(path):
    content = path.read_bytes()
    for position in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint_file.load(path, "search")


def test_it_is_a_file_that_torch_and_unzip_read(path):
    assert torch.load(path, weights_only=True)["epoch"] == STATE["epoch"]
    assert zipfile.ZipFile(path).testzip() is None


def test_a_bit_flipped_in_the_numbers_is_noticed(path):
    content = path.read_bytes()
    position = content.index(struct.pack("<6f", *range(6)))
    path.write_bytes(content[: position + 7] + bytes([content[position + 7] ^ 1]) + content[position + 8 :])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint_file.load(path, "search")


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "hidden in the zip"])
def test_code_is_refused_and_not_run(form, tmp_path):
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "it ran"
    content = {"format": checkpoint_file.FORMAT, "version": 1, "kind": "search", "x": Malicious(f"touch '{trace}'")}
    if form == "pickle":
        path.write_bytes(checkpoint_file.sealed(pickle.dumps(content)))
    elif form == "hidden in the zip":
        stream = io.BytesIO()
        torch.save({}, stream)
        with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(
                    name, pickle.dumps(content, protocol=2) if name.endswith("data.pkl") else source.read(name)
                )
        path.write_bytes(checkpoint_file.sealed(path.read_bytes()))
    else:
        write_sealed(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"nothing of it was run|damaged, or not a checkpoint of this project"):
        checkpoint_file.load(path, "search")
    assert not trace.exists()


def test_a_full_disk_is_an_output_error_and_leaves_the_old_checkpoint(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            checkpoint_file.save(path, "search", {"weight": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(path.parent.iterdir()) == [path]
    assert equal(without_header(checkpoint_file.load(path, "search")), STATE)


@pytest.mark.parametrize("value", [np.float64(1), np.float32(1), np.ones(2), {1, 2}, b""])
def test_what_could_not_be_read_again_is_not_saved(value, tmp_path):
    plain = {"a": [1, (2.0, None)], "b": {"c": torch.ones(2), 3: b"x", "d": torch.float32}, "e": torch.Size([1])}
    checkpoint_file.save(tmp_path / "checkpoint.pt", "search", plain)
    assert checkpoint_file.load(tmp_path / "checkpoint.pt", "search")["a"] == [1, (2.0, None)]
    with pytest.raises(ConfigError, match=rf"is to hold sampler\.0\.seen, a {type(value).__name__}, expected tensors"):
        checkpoint_file.save(tmp_path / "checkpoint.pt", "search", {"sampler": [{"seen": value}]})


def test_a_list_at_many_places_is_walked_through_once():
    node = [torch.ones(1)]
    for _ in range(60):
        node = [node, node]
    checkpoint_file.check_plain({"a": node})


def test_restored_weights_have_their_own_types():
    """The model may be built under another default type than the one of the weights."""
    weights = torch.nn.BatchNorm1d(3).state_dict() | {"weight": torch.tensor([1 / 3, 1 / 5, 1 / 7])}
    model = torch.nn.BatchNorm1d(3, dtype=torch.bfloat16)
    weight = model.weight
    checkpoint_file.restore(model, weights, source="here")
    assert model.weight is weight
    assert torch.equal(weight, weights["weight"])
    assert (model.running_mean.dtype, model.num_batches_tracked.dtype) == (torch.float32, torch.int64)


def test_restore_names_the_source_when_weights_do_not_fit():
    for weights in ({"weight": torch.ones(2, 2)}, {"weight": torch.ones(1, 3), "bias": torch.ones(1)}):
        with pytest.raises(CheckpointError, match=r"the weights in some\.pt do not fit its network"):
            checkpoint_file.restore(nn.Linear(2, 1), weights, source="some.pt")
