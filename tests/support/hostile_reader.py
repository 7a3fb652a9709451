"""A process that reads hostile files under an audit hook, one after another, so that torch is imported once.

Give it one JSON line a case on standard input, {"reader": ..., "path": ..., "directory": ...}. It answers each with one
JSON line. A case that takes too much processor time, or crashes, ends the process.
"""

import contextlib
import importlib
import io
import json
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

SECONDS = 5.0  # of processor time, as others may use the machine; on a slower machine, as long as our imports take
ADDRESS_SPACE = (
    2**33
)  # bytes beyond those of the imports that the process can ask for: an attempt is seen, and harms none
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CALLS = {
    *("exec", "marshal.loads", "pickle.find_class", "code.__new__", "import"),
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg"),
    *("subprocess.Popen", "pty.spawn", "os.startfile", "os.putenv", "os.unsetenv", "signal.pthread_kill"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("os.chflags", "os.utime", "os.setxattr", "os.removexattr", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
    *("tempfile.mkstemp", "tempfile.mkdtemp", "ctypes.dlopen", "mmap.__new__", "fcntl.fcntl"),
    *(
        "urllib.Request",
        "http.client.connect",
        "ftplib.connect",
        "smtplib.connect",
        "webbrowser.open",
        "sqlite3.connect",
    ),
}
READABLE = tuple(
    os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev/null", "/etc/localtime")
)


class Watch:
    """What a reader did that it has no business with, between `start` and `stop`."""

    def __init__(self):
        self.active = False
        self.allowed = ""
        self.seen = []

    def __call__(self, event, args):
        if not self.active:
            return
        if event == "open":
            self.opened(*args)
        elif (event.startswith("socket.") or event in CALLS) and not self.is_ours(event, args):
            self.note(f"{event}{args!r:.200}")

    @staticmethod
    def is_ours(event, args):
        """What readers do whatever is in a file: look for a GPU, ask the allocator, evaluate their own annotations."""
        if event == "ctypes.dlopen":
            return args[0] in (None, "libnvidia-ml.so.1")
        return event == "exec" and sys._getframe(2).f_code.co_filename.endswith(("/inspect.py", "/dataclasses.py"))

    def opened(self, path, mode, flags):
        if isinstance(flags, int) and flags & WRITING and path != os.devnull:
            self.note(f"open for writing {path!r}")
        elif isinstance(path, str | bytes) and not self.is_near(os.fsdecode(path)):
            self.note(f"open {path!r}")

    def is_near(self, path):
        """Whether it is one of the case's own files, or of Python's."""
        # The name alone: where a link leads is for the readers to say.
        place = os.path.abspath(path)
        return place.startswith((self.allowed, *READABLE))

    def note(self, what):
        self.active = False  # or what notes it would be noted
        if os.environ.get("HOSTILE_TRACE"):
            what += "".join(traceback.format_stack(limit=12))
        self.seen.append(what)
        self.active = True


def modules():
    """Import all of the project, so that a reader has nothing to import but what it needs not."""
    import nas

    for info in pkgutil.walk_packages(nas.__path__, "nas."):
        if info.name != "nas.formats.subprocess_main":  # a program
            importlib.import_module(info.name)
    importlib.import_module("torchvision.datasets")


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    modules()
    import hostile_readers

    readers = hostile_readers.READERS
    watch = Watch()
    sys.addaudithook(watch)
    base = memory()
    seconds = max(SECONDS, time.process_time())
    print(json.dumps({"ready": sorted(readers)}), file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        if case.get("limit"):  # after what is lazily imported has been
            base = memory()
            size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE,) * 2)
        print(
            json.dumps(served(readers[case["reader"]], case, watch, seconds) | {"memory": memory() - base}),
            file=answers,
            flush=True,
        )


def served(read, case, watch, seconds):
    os.chdir(case["directory"])
    watch.allowed, watch.seen = os.path.join(case["allowed"], ""), []
    said, answer = io.StringIO(), {"error": None, "message": "", "chain": [], "trace": ""}
    before, environment = time.process_time(), dict(os.environ)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("always")
            watch.active = True
            try:
                result = read(case["path"])
            finally:
                watch.active = False
        answer["result"] = repr(result)[:2000]
    except BaseException as error:
        answer |= {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
        answer["trace"] = "".join(traceback.format_exception(error))[-3000:]
        cause = error
        while cause is not None and len(answer["chain"]) < 10:
            answer["chain"].append(f"{type(cause).__name__}: {str(cause)[:300]}")
            cause = cause.__cause__ or cause.__context__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if environment != dict(os.environ):
        watch.seen.append("the environment was changed")
    return answer | {"seconds": time.process_time() - before, "seen": watch.seen, "said": said.getvalue()}


def memory():
    """Bytes: the most that the process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
