"""One run of a sweep in a process of its own: what travels there, what comes back, and what is made of that.

A launcher of ``continual/launchers`` starts :func:`work` somewhere and hands its reply to :meth:`Job.judged`, which
believes the run directory only.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from continual import config as configs
from continual.config import Config
from continual.errors import Terminated, UserError
from continual.experiment import Run
from continual.stopping import terminable
from continual.sweep import Outcome, attempt

Reply = tuple[bool, str | None, list[str]]
"""Whether a job ran; why it failed, None if it did not; what else is to be told of that. Plain values only."""

STOPPED = "stopped before its end; the same command continues it"
STOP_SECONDS = 30.0
"""How long a launcher waits for runs that it asked to stop, each to store itself, before it kills them."""

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Sizes of thread pools that a library reads when it is loaded. Torch's is the config's ``threads``."""


class RunFailedError(UserError):
    """A run failed in another process, with what was said there."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep, as it travels.

    Attributes:
        config: what is to be run: just what the sweep was checked with, whatever becomes of the YAMLs meanwhile.
        config_dir: the user's folder of configs.
        restart: run again what has finished.
        place: the working directory that relative paths start from.
    """

    config: Config
    config_dir: str | None = None
    restart: bool = False
    place: str = "."

    def judged(self, reply: Reply) -> Outcome:
        """How the job went: finished if, and only if, its ledger says so."""
        ran, reason, notes = reply
        status = "not there"
        with suppress(UserError):
            run = Run.read(self.config.directory, ran=ran and reason is None)
            status = run.status
            if status == "finished" and (reason is None or not self.restart):
                return Outcome(self.config, run)
        error = RunFailedError(reason or f"it is said to be over, but the run is {status} in {self.config.directory}")
        for note in notes:
            error.add_note(note)
        return Outcome(self.config, None, error)

    def continued(self) -> "Job":
        """The same job after it was stopped."""
        return replace(self, restart=False)


def jobs_of(configs: Sequence[Config], config_dir: str | Path | None = None, restart: bool = False) -> list[Job]:
    """A job for each config, started from the working directory."""
    folder = None if config_dir is None else str(config_dir)
    return [Job(config, folder, restart, str(Path.cwd())) for config in configs]


def work(job: Job) -> Reply:
    """Run a job in this process, which the run has for itself; SIGTERM makes it store itself and stop."""
    from continual.progress import reason
    from continual.trackers import wandb

    with terminable():
        try:
            os.chdir(job.place)
            configs.admit(job.config, job.config_dir)
            outcome = attempt(job.config, restart=job.restart)
        except (KeyboardInterrupt, Terminated):
            return False, STOPPED, []
        except (UserError, OSError) as error:
            outcome = Outcome(job.config, None, error)
        finally:
            wandb.close()
    if outcome.run is not None:
        return outcome.run.ran, None, []
    return False, reason(outcome), list(getattr(outcome.error, "__notes__", []))


def lost(what: str) -> Reply:
    """The reply for a job whose process ended without one."""
    return False, f"its process ended before the run did ({what}); the same command continues it", []


@contextmanager
def spawning() -> Iterator[None]:
    """Processes started within leave Ctrl-C to this one, and have one thread in each pool of BLAS and OpenMP."""
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        with variables(dict.fromkeys(POOLS, "1")):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as it lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
