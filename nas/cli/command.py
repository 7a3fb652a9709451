"""The entry point of all commands: starts Hydra, prints the table of a sweep, and sets the exit code."""

import os
import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from nas import __version__
from nas.cli import output, parallel, paths, sweep, sweep_table, torchrun
from nas.cli.exits import INTERRUPTED, NOTHING_DONE, USER_ERROR, enough, fail, shown_anywhere, tell
from nas.cli.mistakes import explain, refuse_unknown_options
from nas.cli.sweep import JobFailedError
from nas.cli.task import Body, Task, register
from nas.errors import NasError, described
from nas.settings import configuration
from nas.storage.command_line import setting
from nas.storage.signals import AtOnce


def command(config_name: str, body: Body, *, shared: bool = False) -> None:
    """Runs `body` with the configuration of the command line and the run's output directory.

    shared: whether several processes can run the command together, see `nas.runtime.distributed`.
    Exit codes: 2 after a user's mistake, with one line on standard error; 128 + the signal's number after a signal, so
    130 for Ctrl-C; 2 after a sweep in which a job has not finished. ``--debug`` shows the traceback instead of the
    line.
    What `body` returns is the objective of a Hydra sweeper.
    """
    import hydra

    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    if sys.argv[1:] == ["--version"]:  # Hydra would print its own
        print(f"gumbel-nas {__version__}")
        return
    shown_anywhere()
    try:
        sys.argv[1:] = paths.read(sys.argv[1:])
        refuse_unknown_options(sys.argv[1:], config_name)
    except NasError as error:
        fail(str(error), USER_ERROR)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands us the exception instead of printing it
    register()
    output.resume_in_place(sys.argv)
    base = output.base(sys.argv).absolute()
    task = Task(config_name, body, shared=shared, debug=debug, options=options(sys.argv[1:]), base=base)
    where = str(configuration.directory())
    main = hydra.main(version_base="1.3", config_path=where, config_name=config_name)(stoppable(task))

    def again() -> None:
        for _ in range(output.TRIES - 1):
            try:
                main()
                sys.stdout.flush()  # help, say: what reads it may have gone
                return
            except FileNotFoundError:  # another process removed a parent directory, which was empty
                if task.composed:
                    raise
        main()

    launched(again, task)


def stoppable(task: Task) -> Callable[[DictConfig], float | list[float] | None]:
    """Returns the task as a function that a signal stops."""

    def stopped_by_signals(cfg: DictConfig) -> float | list[float] | None:
        with parallel.job(), AtOnce(control_c=parallel.in_job_process()):
            return task(cfg)

    return stopped_by_signals


def launched(launch: Callable[[], None], task: Task, *, again: tuple[str, str] | None = None) -> None:
    """Calls `launch`, which runs one task, or the tasks of a sweep.

    Prints the table of a sweep. Exits as `command` says.

    again: see `sweep_table.end`.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    sweep.home.clear()
    with torchrun.left_at_once(), torchrun.one_voice():
        try:
            launch_jobs(launch, task, again=again)
        except KeyboardInterrupt:
            if not sweep.home:
                fail(NOTHING_DONE, INTERRUPTED)
            same = f"the same command with {setting('hydra.sweep.dir', sweep.home[0])}" if again is None else again[0]
            fail(f"the sweep was interrupted; {same} goes on", INTERRUPTED)
        except BrokenPipeError:
            enough()
        except (HydraException, OmegaConfBaseException, MarkedYAMLError, OSError, ValueError) as error:
            # An OSError that is not from inside the task, where they are OutputErrors, is about the output directory; a
            # ValueError may be Hydra's, of the overrides.
            theirs = isinstance(error, HydraException | OmegaConfBaseException | MarkedYAMLError)
            unknown = task.composed if isinstance(error, ValueError) else getattr(error, "filename", None) is None
            if task.debug or (unknown and not theirs):
                raise
            fail(explain(error, task.config_name), USER_ERROR)
        finally:
            sweep.discard(task.base, task.absent)


def launch_jobs(launch: Callable[[], None], task: Task, *, again: tuple[str, str] | None) -> None:
    """Calls `launch`, and prints the table of a sweep, also if the launcher has failed. Exits if a job has failed."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with parallel.signals_reach_jobs():
            launch()
    except JobFailedError as failed:
        if not sweep.home:
            sys.exit(failed.code)
    except Exception as error:
        # Of the jobs, as one whose process was killed; or of a cluster. Each job that ran has left its record.
        if not sweep.home or task.debug or isinstance(error, HydraException | OmegaConfBaseException):
            raise
        begun = any(sweep.home[0].rglob(sweep.RECORD))
        tell(f"the sweep {'has ended early' if begun else 'could not begin'}: {explain_lost(error)}")
        sweep_table.end(f"nas-{task.config_name}", again=again)
        sys.exit(USER_ERROR)
    if sweep.home and sweep_table.end(f"nas-{task.config_name}", again=again):
        sys.exit(USER_ERROR)


def options(arguments: Sequence[str]) -> list[str]:
    """Returns the options of a command line that say where configurations lie, with their values."""
    found: list[str] = []
    for number, argument in enumerate(arguments):
        if argument.partition("=")[0] in ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"):
            found += [argument] if "=" in argument else arguments[number : number + 2]
    return found


def explain_lost(error: Exception) -> str:
    """Returns a message that says why a launcher gave up."""
    if isinstance(error, NasError):
        return str(error)
    if type(error).__name__ == "TerminatedWorkerError":
        return "a process of a job was killed, by the system, which had no memory left, or by somebody"
    if isinstance(error, OSError) and error.filename:
        return (
            f"{error.filename} cannot be written ({error.strerror}); set hydra.sweep.dir, or --out of a study, to a "
            "directory you can write to"
        )
    return described(error)
