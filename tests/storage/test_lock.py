import ast
import errno
import os
import sys
from pathlib import Path

import pytest

import nas
from nas.errors import OutputError
from nas.storage import lock
from nas.storage.run_directory import locked


def test_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TRIES", 1)
    descriptor = lock.take(tmp_path / "out")
    assert lock.take(tmp_path / "out") is None
    with pytest.raises(OutputError, match=r"is being written by another process \(another one\); wait for it"):
        locked(tmp_path / "out")
    os.close(descriptor)
    os.close(lock.take(tmp_path / "out"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line_with_the_switch(number, tmp_path, monkeypatch):
    import fcntl

    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OutputError, match=rf"no locks \({os.strerror(number)}\); set hydra.run.dir .*, or lock=false"):
        lock.take(tmp_path)


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OutputError, match=r"this system has none\); .*lock=false"):
        lock.take(tmp_path)


def test_the_lock_is_of_the_directory_that_has_the_name_now(tmp_path, monkeypatch):
    """Whoever removes the directory between the opening and the locking leaves a lock of nothing."""
    import fcntl

    path, flock = tmp_path / "out", fcntl.flock

    def remove_first(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    descriptor = lock.take(path)
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    os.close(descriptor)


def test_nothing_that_only_some_systems_have_is_imported_with_the_project():
    for path in Path(nas.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not imported & {"fcntl", "resource", "pwd", "grp", "termios"}, path
