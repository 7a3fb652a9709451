import contextlib
import errno
import json
import os
import resource

import pytest

from nas.errors import OutputError
from nas.storage import atomic


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def only(path, content):
    """`path` has the content, and is alone in its directory."""
    return path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_write_replaces(old):
    atomic.write(old, lambda stream: stream.write(b"new"))
    assert only(old, b"new")


def test_the_name_appears_with_the_content_only(tmp_path):
    path = tmp_path / "file"

    def fill(stream):
        stream.write(b"new")
        stream.flush()
        assert not path.exists()

    atomic.write(path, fill)
    assert only(path, b"new")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_what_fill_raises_comes_through_and_the_old_file_stays(old, error):
    def fill(stream):
        stream.write(b"half")
        raise error

    with pytest.raises(error):
        atomic.write(old, fill)
    assert only(old, b"old")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(old, failing, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, failing, fail)
    with pytest.raises(OutputError, match=r"file cannot be written \(No space left on device\); free some space"):
        atomic.write(old, lambda stream: stream.write(b"new"))
    monkeypatch.undo()
    assert only(old, b"old")


@contextlib.contextmanager
def full_disk():
    """No file of this process may grow beyond 10,000 bytes: writing really fails, in the middle.

    It is no fixture, because pytest may itself be writing to a file while a fixture lasts.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_in_the_middle(old):
    with full_disk(), pytest.raises(OutputError, match="cannot be written"):
        atomic.write(old, lambda stream: [stream.write(bytes(4_000)) for _ in range(10)])
    assert only(old, b"old")


def test_an_os_error_without_a_reason_still_says_something(old):
    def fill(stream):
        raise OSError("the reason")

    with pytest.raises(OutputError, match="the reason"):
        atomic.write(old, fill)


@pytest.mark.parametrize("where", ["missing/file", "plain/file"])
def test_a_directory_that_is_not_there(where, tmp_path):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        atomic.write_text(tmp_path / where, "x")


def test_text_and_json(tmp_path):
    atomic.write_text(tmp_path / "t", "é\n")
    assert (tmp_path / "t").read_bytes() == "é\n".encode()
    content = {"b": [1, 2.5, None], "a": "é"}
    atomic.write_json(tmp_path / "j", content)
    text = (tmp_path / "j").read_text()
    assert json.loads(text) == content
    assert list(json.loads(text)) == ["b", "a"]
    assert text.endswith("}\n")


def test_json_has_no_numbers_that_are_not_finite(tmp_path):
    atomic.write_json(tmp_path / "file", {"a": [1.5, float("nan")], "b": (float("inf"), {"c": -float("inf")}), "d": 2})
    assert json.loads((tmp_path / "file").read_text()) == {"a": [1.5, None], "b": [None, {"c": None}], "d": 2}


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    ours = [atomic.temporary(tmp_path / "checkpoint.pt"), atomic.temporary(tmp_path / "work")]
    ours[0].touch()
    (ours[1] / "files").mkdir(parents=True)
    others = [tmp_path / name for name in (".draft.tmp", ".draft.7.tmp", "a.nas.tmp", "notes")]
    for path in others[:-1]:
        path.touch()
    others[-1].mkdir()
    (others[-1] / ours[0].name).touch()  # in a directory that is not ours
    atomic.remove_left(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert list(others[-1].iterdir()) != []
    (tmp_path / "link").symlink_to(others[-1])
    atomic.remove_left(tmp_path / "link")
    assert list(others[-1].iterdir()) != []


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_flush_directories(number, raises, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", fail)
    if raises:
        with pytest.raises(OSError, match=os.strerror(number)):
            atomic.flush_directory(tmp_path)
    else:
        atomic.flush_directory(tmp_path)
