"""Several runs at once on one machine, in the worker processes of joblib (its engine, loky).

Each run at a time has a pool of one worker: a worker that dies (kill -9, out of memory) breaks its own pool only, so it
is plain which run died, and the runs beside it go on. Joblib's own ``Parallel`` ends all of them.
"""

import multiprocessing
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from continual.errors import UserError
from continual.sweep import Outcome
from continual.worker import STOP_SECONDS, Job, Reply, lost, spawning, work

if TYPE_CHECKING:
    from concurrent.futures import Future

    from continual.progress import Watcher


@dataclass(frozen=True)
class Joblib:
    """Runs several jobs at once.

    Attributes:
        n_jobs: how many at once, >= 1; None for one per core that this process may use.
    """

    n_jobs: int | None = None

    def __post_init__(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs={self.n_jobs} must be at least 1, or null for one per core")

    def __call__(self, jobs: Sequence[Job], watch: "Watcher") -> Generator[Outcome, None, None]:
        from joblib.externals.loky import FIRST_COMPLETED, cpu_count, wait

        waiting, idle, running = deque(jobs), list[_Worker](), dict["Future[Reply]", tuple[Job, _Worker]]()
        others = multiprocessing.active_children()
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)  # it renews one that grew
        try:
            while waiting or running:
                while waiting and len(running) < (self.n_jobs or cpu_count()):
                    worker, job = idle.pop() if idle else _Worker(), waiting.popleft()
                    running[worker.start(job)] = job, worker
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, worker = running.pop(future)
                    reply = worker.reply(future)
                    if worker.lives:
                        idle.append(worker)
                    yield job.judged(reply)
        finally:
            try:
                if running:  # the sweep is stopped
                    for process in set(multiprocessing.active_children()) - set(others):
                        process.terminate()
                    wait(running, timeout=STOP_SECONDS)
            finally:
                for worker in [*idle, *(worker for _, worker in running.values())]:
                    worker.kill()


class _Worker:
    """A process that runs one job after the other."""

    def __init__(self) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        resource_tracker.ensure_running()  # to start it lets Ctrl-C through: not while a worker is started
        self.lives = True
        self._pool = ProcessPoolExecutor(max_workers=1)

    def start(self, job: Job) -> "Future[Reply]":
        """Begin with a job; what is returned is done when it is over."""
        with spawning():
            future: Future[Reply] = self._pool.submit(work, job)
        return future

    def reply(self, future: "Future[Reply]") -> Reply:
        """What became of the job that is over."""
        error = future.exception()
        if error is None:
            return future.result()
        self.lives = False
        self.kill()
        return lost(" ".join(str(error).split()) or type(error).__name__)

    def kill(self) -> None:
        """End the process."""
        self._pool.shutdown(wait=True, kill_workers=True)
