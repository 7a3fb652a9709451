"""What all commands share: Hydra, one line for a user's mistake, exit codes."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf

from nas.cli import output, parallel, paths, torchrun
from nas.cli.mistakes import explain, suggestion, untouched
from nas.cli.sweep import JobFailedError, named_job
from nas.errors import ConfigError, NasError
from nas.settings import allowed_targets, configuration, schemas
from nas.storage import disk, names
from nas.storage.command_line import setting
from nas.storage.signals import AtOnce, Interrupted
from nas.untrusted.escaping import printable

FAILED = 1  # what Python itself exits with after a traceback
USER_ERROR = 2
# 128 + SIGINT, what a shell reports for Ctrl-C. Likewise 143 for SIGTERM, 138 for SIGUSR1, 140 for SIGUSR2 and 129 for
# SIGHUP.
INTERRUPTED = 130
NOTHING_DONE = "interrupted before anything was done"


def command(config_name: str, body: Callable[[DictConfig, Path], float | None], *, shared: bool = False) -> None:
    """Run `body` with the configuration composed from the command line, and the run's output directory.

    shared: whether several processes can do it together, see `nas.runtime.distributed`.
    Exits with 2 and one line on standard error for a mistake of the user; with 128 + its number after a signal, 130 for
    Ctrl-C. ``--debug`` shows the traceback instead. A job of a sweep
    that fails does so after the sweep's other jobs have ended. What `body` returns is the objective of a Hydra sweeper.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    sys.argv[1:] = paths.read(sys.argv[1:])
    shown_anywhere()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands us the exception instead of printing it
    schemas.register_schemas()
    composed = False
    output.resume_in_place(sys.argv)
    base = output.base(sys.argv).absolute()
    absent = names.absent(base)
    given = tuple(sys.argv[1:])  # the processes of joblib have other arguments

    def task(cfg: DictConfig) -> float | None:
        nonlocal composed
        composed = True
        directory = torchrun.common(Path(HydraConfig.get().runtime.output_dir), output.own)
        if allowed_targets.allowed(cfg) and (here := os.getcwd()) not in sys.path:
            # An installed command does not look for packages where it is started. The user's own may lie there; last
            # in the list, so that no file there stands in for an installed module.
            sys.path.append(here)
        made = directory
        try:
            if unknown := next(schemas.added(cfg), None):
                raise ConfigError(f"{unknown} is not a setting", fix=suggestion(unknown, config_name))
            paths.anchored(cfg)
            if not shared:
                torchrun.refuse_several(f"nas-{config_name}")
            if torchrun.has_restarted() and (directory / "manifest.json").exists():
                OmegaConf.update(cfg, "resume", str(directory))
            if OmegaConf.select(cfg, "resume") is not None:
                directory = Path(cfg.resume)
                if os.path.lexists(directory / "config.yaml"):
                    configuration.read_yaml(directory / "config.yaml")  # what cannot be read is said at once
                from nas.cli.resume import has_finished, resumed  # imports torch, which takes seconds

                if has_finished(directory):
                    print(f"The run in {directory} has finished: there is nothing to resume.")
                    return None
                cfg = resumed(cfg, paths.anchored(untouched(config_name)), HydraConfig.get().overrides.task)
            return body(cfg, directory)
        except (NasError, OmegaConfBaseException) as error:
            if debug:
                raise
            # Not left to Hydra, which would add a line of its own.
            if (job := named_job(given)) is not None:
                tell(f"{job}: {explain(error, config_name)}")
                raise JobFailedError(USER_ERROR) from None
            fail(explain(error, config_name), USER_ERROR)
        except Interrupted as stop:
            begun = (directory / "manifest.json").exists()
            saved = f", all that was done is saved; {setting('resume', directory)} goes on"
            stopped(f"stopped by {stop}{saved if begun else ' before anything was done'}", 128 + stop.received)
        except KeyboardInterrupt:
            if debug:
                raise
            begun = (directory / "manifest.json").exists()
            fail(f"interrupted; what was reached is in {directory}" if begun else NOTHING_DONE, INTERRUPTED)
        except BrokenPipeError:
            # Whoever read the output has had enough, as `head` has. Python would complain once more when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(FAILED)
        except Exception as error:
            if not debug and (refusal := disk.refusal(error)) is not None:
                refused = str(disk.refused(refusal, directory, Path(tempfile.gettempdir())))
                if (job := named_job(given)) is not None:
                    tell(f"{job}: {refused}")
                    raise JobFailedError(USER_ERROR) from None
                fail(refused, USER_ERROR)
            if torchrun.tells_errors():
                raise
            sys.exit(FAILED)
        finally:
            # Hydra makes the directory before we can look at the configuration: a mistake shall leave nothing. Of
            # several processes each tries, as torchrun ends the others when the first of them is gone.
            names.release(made)
            if made in absent or made != base:  # not one that the user has made
                names.remove_if_empty(made, above=absent)

    def stoppable(cfg: DictConfig) -> float | None:
        with parallel.job(), AtOnce(control_c=parallel.in_job_process()):
            return task(cfg)

    with torchrun.left_at_once(), torchrun.one_voice():
        try:
            main = hydra.main(version_base="1.3", config_path=str(configuration.directory()), config_name=config_name)(
                stoppable
            )
            with parallel.signals_reach_jobs():
                for _ in range(output.TRIES - 1):
                    try:
                        return main()
                    except FileNotFoundError:  # another process removed a parent directory, which was empty
                        if composed:
                            raise
                main()
        except JobFailedError as failed:
            sys.exit(failed.code)
        except KeyboardInterrupt:
            fail(NOTHING_DONE, INTERRUPTED)
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            # An OSError that is not from inside the task, where they are OutputErrors, is about the output directory; a
            # ValueError may be Hydra's, of the overrides.
            theirs = isinstance(error, HydraException | OmegaConfBaseException)
            unknown = composed if isinstance(error, ValueError) else getattr(error, "filename", None) is None
            if debug or (unknown and not theirs):
                raise
            fail(explain(error, config_name), USER_ERROR)


def shown_anywhere() -> None:
    """Let standard output replace the characters that its encoding lacks: a table is no reason to end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not so where a caller collects what is printed
            stream.reconfigure(errors="backslashreplace")


def fail(message: str, code: int) -> NoReturn:
    tell(message)
    sys.exit(code)


def stopped(message: str, code: int) -> NoReturn:
    """End after a signal, also as one of several jobs side by side."""
    tell(message)
    if parallel.in_job_process():
        raise parallel.JobStoppedError(code)
    sys.exit(code)


def tell(message: str) -> None:
    if torchrun.tells_errors():
        with contextlib.suppress(OSError):  # the terminal is closed
            print(f"error: {printable(message)}", file=sys.stderr, flush=True)
