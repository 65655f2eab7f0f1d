"""One run after the other, in this process."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from continual.sweep import Outcome, attempt

if TYPE_CHECKING:
    from continual.progress import Watcher
    from continual.worker import Job


class Basic:
    """Runs the jobs in their order; the only launcher that tells how far a run is. Ctrl-C stops the one that runs."""

    def __call__(self, jobs: Sequence["Job"], watch: "Watcher") -> Generator[Outcome, None, None]:
        for job in jobs:
            yield attempt(job.config, restart=job.restart, progress=watch.begin(job.config))
