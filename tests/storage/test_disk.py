import errno
import os
import tempfile
from pathlib import Path

import pytest

from nas.errors import OutputError
from nas.storage import disk
from nas.storage.temporary_files import workplace

FULL = os.strerror(errno.ENOSPC)


def raised(outer, cause):
    try:
        try:
            raise cause
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError(f"I/O error: {FULL} (os error 28)"),  # as safetensors and C++ say it
        raised(ValueError("cannot serialise"), OSError(errno.EFBIG, "File too large")),
    ],
)
def test_a_disk_that_refuses_is_found_in_whatever_is_raised(error):
    assert disk.refusal(error).errno in disk.REFUSALS


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), ValueError("no space"), OSError("x")])
def test_other_errors_are_not_the_disks(error):
    assert disk.refusal(error) is None


def test_the_place_that_is_full_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
    room = {tmp_path / "out": 10.0, tmp_path / "small": 1.0}
    monkeypatch.setattr(disk, "free", room.__getitem__)
    refusal = OSError(errno.ENOSPC, FULL)
    assert str(disk.refused(refusal, *room)) == (
        f"{tmp_path}/small cannot be written ({FULL}); free some space, or set TMPDIR to a directory with room"
    )
    refusal.filename = str(tmp_path / "out" / "file")
    assert str(disk.refused(refusal, *room)) == (
        f"{tmp_path}/out/file cannot be written ({FULL}); free some space, or set hydra.run.dir elsewhere"
    )
    assert isinstance(disk.refused(refusal, *room), OutputError)


@pytest.mark.parametrize("there", [False, True])
def test_temporary_files_go_where_the_result_goes(there, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    directory = tmp_path / "out"
    if there:
        directory.mkdir()
    with workplace(directory) as place:
        with tempfile.TemporaryDirectory() as temporary:
            assert Path(temporary).parent == place
        assert os.environ["TMPDIR"] == str(place)
        assert place.parent == directory
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place)  # as torch does, for good
    assert (os.environ["TMPDIR"], tempfile.tempdir) == ("/nowhere", "/nowhere")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert directory.exists() == there
    assert list(tmp_path.rglob("*")) == [directory] * there
