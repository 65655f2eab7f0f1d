"""Each run is a job of its own of submitit: of a Slurm cluster, or a process on this machine.

A job that is told that its time is up, or that it is preempted (SIGUSR2, which submitit asks Slurm for), stores its
run and stops; submitit queues it again, and it continues. At a plain SIGTERM it stores its run and stops, too; whether
it is queued again is then up to Slurm (``--requeue``). What a job prints is in the folder.

Not covered: a job that Slurm kills without any signal is found out by ``sacct``, up to a minute later.
"""

import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual.errors import Terminated, UserError
from continual.ledger import MANIFEST
from continual.sweep import Outcome
from continual.worker import POOLS, STOP_SECONDS, STOPPED, Job, Reply, lost, spawning, work

if TYPE_CHECKING:
    from continual.progress import Watcher

SUBMITTED = 1000
"""Jobs in Slurm's queue at once: clusters bound the size of an array, usually by 1001."""


@dataclass(frozen=True)
class Local:
    """Runs on this machine that survive the end of the command: it is told what Slurm would do, without Slurm.

    Attributes:
        n_jobs: how many at once, >= 1.
        timeout_min: minutes that a job may take, >= 1; half a minute before, it is stopped and starts again.
        max_num_timeout: how often a job may run out of time, >= 0.
        folder: for logs and what submitit stores; None for ``submitit`` in the output of the first run.
    """

    n_jobs: int = 1
    timeout_min: int = 10080
    max_num_timeout: int = 3
    folder: str | None = None

    def __post_init__(self) -> None:
        _require({"n_jobs": self.n_jobs, "timeout_min": self.timeout_min}, least=1)
        _require({"max_num_timeout": self.max_num_timeout}, least=0)
        _need_submitit("submitit_local")

    def __call__(self, jobs: Sequence[Job], watch: "Watcher") -> Generator[Outcome, None, None]:
        import submitit

        options = {"local_max_num_timeout": self.max_num_timeout}
        executor = submitit.AutoExecutor(_folder(self.folder, jobs), cluster="local", **options)
        executor.update_parameters(timeout_min=self.timeout_min, name="continual")
        return _followed(executor, jobs, self.n_jobs, 0.1, lambda job: os.kill(int(job.job_id), signal.SIGTERM))


@dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster, started from a machine that has its commands; all in one array.

    Attributes:
        timeout_min: minutes that a job may take, >= 1; ``signal_delay_s`` before, it is stopped and queued again.
        max_num_timeout: how often a job may run out of time, >= 0.
        signal_delay_s: seconds that a run has to store itself, >= 1.
        array_parallelism: how many may run at once, >= 1.
        cpus_per_task: of each run, >= 1; what the config's ``threads`` says may be used of them.
        gpus_per_node: of each run, >= 0.
        mem_gb: of each run, > 0; None for what the cluster gives.
        partition, account, qos, constraint: as the cluster has them; None for its defaults.
        additional_parameters: any other options of sbatch, e.g. ``{mail-type: END}``.
        setup: shell commands before a job, e.g. ``[module load cuda]``.
        folder: for logs and what submitit stores, on a disk that all nodes share; None for ``submitit`` in the output
            of the first run.
    """

    timeout_min: int = 60
    max_num_timeout: int = 3
    signal_delay_s: int = 90
    array_parallelism: int = 256
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    additional_parameters: Mapping[str, Any] | None = None
    setup: Sequence[str] = ()
    folder: str | None = None

    def __post_init__(self) -> None:
        counts = ("timeout_min", "signal_delay_s", "array_parallelism", "cpus_per_task")
        _require({name: getattr(self, name) for name in counts}, least=1)
        _require({"max_num_timeout": self.max_num_timeout, "gpus_per_node": self.gpus_per_node}, least=0)
        if self.mem_gb is not None and not self.mem_gb > 0:
            raise UserError(f"hydra.launcher.mem_gb={self.mem_gb} must be above 0, or null")
        _need_submitit("submitit_slurm")
        missing = [command for command in ("sbatch", "srun", "sacct", "scancel") if shutil.which(command) is None]
        if missing:
            raise UserError(
                f"hydra/launcher=submitit_slurm needs Slurm's {', '.join(missing)} on this machine; "
                f"start it on a cluster's login node, or use hydra/launcher=joblib"
            )

    def __call__(self, jobs: Sequence[Job], watch: "Watcher") -> Generator[Outcome, None, None]:
        import submitit

        options = {"slurm_max_num_timeout": self.max_num_timeout}
        executor = submitit.AutoExecutor(_folder(self.folder, jobs), cluster="slurm", **options)
        given = {name: getattr(self, name) for name in ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")}
        own = (
            "partition",
            "account",
            "qos",
            "constraint",
            "additional_parameters",
            "signal_delay_s",
            "array_parallelism",
        )
        given |= {f"slurm_{name}": getattr(self, name) for name in own}
        given |= {"slurm_setup": [*(f"export {pool}=1" for pool in POOLS), *self.setup], "name": "continual"}
        executor.update_parameters(**{name: value for name, value in given.items() if value not in (None, 0)})
        return _followed(executor, jobs, SUBMITTED, 1.0, lambda job: job.cancel(check=False))


class Resumable:
    """What submitit calls for a job, and calls again, after :meth:`checkpoint`, when it was preempted."""

    def __call__(self, job: Job) -> Reply:
        number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
        requeue: Any = signal.getsignal(number)  # submitit's: it would leave at once, in the middle of an update
        preempted = False

        def stop(_number: int, _frame: object) -> None:
            nonlocal preempted
            preempted = True
            signal.raise_signal(signal.SIGTERM)

        signal.signal(number, stop)
        self._before = _begun(job)
        reply = work(job)
        if reply[1] == STOPPED:
            if preempted and callable(requeue):
                requeue(number, None)
            raise Terminated(128 + signal.SIGTERM)  # without a result: the job may be queued again
        return reply

    def checkpoint(self, job: Job) -> Any:
        """What submitit is to call when the job goes on; a run that was started over is not started over again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Resumable(), job if _begun(job) == self._before else job.continued())


def _begun(job: Job) -> bytes | None:
    """The manifest in the job's directory, which tells one beginning from another."""
    try:
        return (Path(job.place) / job.config.directory / MANIFEST).read_bytes()
    except OSError:
        return None


def _followed(
    executor: Any, jobs: Sequence[Job], at_once: int, seconds: float, stop: Callable[[Any], None]
) -> Generator[Outcome, None, None]:
    """Submit the jobs, so many at once, and look every so many seconds which are over."""
    waiting = deque(jobs)
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            following = [waiting.popleft() for _ in range(min(at_once - len(running), len(waiting)))]
            if following:
                with spawning():
                    running |= zip(executor.map_array(Resumable(), following), following, strict=True)
            over = [handle for handle in running if handle.done()]
            for handle in over:
                yield running.pop(handle).judged(_reply(handle))
            if not over:
                time.sleep(seconds)
    finally:
        for handle in running:
            stop(handle)
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until and not all(handle.done() for handle in running):
            time.sleep(seconds)


def _reply(handle: Any) -> Reply:
    try:
        reply: Reply = handle.result()
        return reply
    except Exception:  # its text is the job's whole log
        return lost(f"submitit's job {handle.job_id}; its log is {handle.paths.stderr}")


def _folder(folder: str | None, jobs: Sequence[Job]) -> str:
    """Where submitit's files go, readable for the user only: it runs what it finds there."""
    output = jobs[0].config.resolved["output"] if jobs else "."
    path = Path(folder or Path(output) / "submitit").absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(path)


def _require(counts: Mapping[str, int], least: int) -> None:
    for name, value in counts.items():
        if value < least:
            raise UserError(f"hydra.launcher.{name}={value} must be at least {least}")


def _need_submitit(name: str) -> None:
    if find_spec("submitit") is None:
        raise UserError(f"hydra/launcher={name} needs the package submitit: pip install 'continual[submitit]'")
