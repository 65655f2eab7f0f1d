"""Runs that differ in their seed or in numbers only, trained together in this process (``continual.cohort``)."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from continual.cohort import CannotJoinError, Cohort
from continual.config import INDECISIVE, Config
from continual.errors import Terminated, UserError
from continual.experiment import Progress, in_cohort
from continual.stopping import gently
from continual.sweep import Outcome, attempt

if TYPE_CHECKING:
    from continual.progress import Watcher
    from continual.worker import Job

LOGGER = logging.getLogger(__name__)

NUMBERS = frozenset({"optimizer", "strategy", "scheduler"})
"""Groups of the config in which the runs of one cohort may have other numbers."""

COUNTS = frozenset({"capacity", "every", "chunk", "window", "maturity"})


@dataclass(frozen=True)
class Cohorts:
    """Trains runs together that differ in their seed, or in numbers of optimizer, strategies and scheduler.

    Attributes:
        size: how many at most, >= 1.
    """

    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"hydra.launcher.size={self.size} must be at least 1")

    def __call__(self, jobs: Sequence["Job"], watch: "Watcher") -> Generator[Outcome, None, None]:
        for group in alike(jobs, self.size):
            apart = list(group)
            if len(group) > 1 or _was_in_cohort(group[0]):
                apart = yield from together(group, watch)
            for job in apart:
                yield attempt(job.config, restart=job.restart, progress=watch.begin(job.config))


def together(jobs: Sequence["Job"], watch: "Watcher") -> Generator[Outcome, None, list["Job"]]:
    """How each job goes, as they end; return those that cannot be trained together, which have not begun."""
    apart: dict[int, str] = {}  # place of a job that cannot, and why
    progress = watch.begin(jobs[0].config)  # all of them get on alike
    grace = max(float(job.config.resolved["snapshot"]["grace"]) for job in jobs)
    with gently(grace) as stop:
        cohort, stopped = Cohort(stop), None
        acts = [partial(_act, job, cohort, progress if job is jobs[0] else None) for job in jobs]
        for place, end in cohort.run(acts):
            if isinstance(end, BaseException):
                stopped = end
            elif isinstance(end.error, CannotJoinError):
                apart[place] = str(end.error)
            else:
                yield end
    if stopped is not None:
        raise stopped
    if cohort.differ and not cohort.apart:
        steps = cohort.alone + cohort.together
        LOGGER.warning("%d of %d steps were made one by one: %s", cohort.alone, steps, cohort.differ)
    for reason, n in Counter(apart.values()).items():
        LOGGER.warning("%d of %d runs are run one after the other: %s", n, len(jobs), reason)
    return [jobs[place] for place in sorted(apart)]


def alike(jobs: Sequence["Job"], size: int) -> list[list["Job"]]:
    """The jobs in groups of at most ``size`` that may be trained together, equal numbers beside each other."""
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[_key(job.config, without_numbers=True)].append(job)
    sorted_groups = [
        sorted(group, key=lambda job: _key(job.config, without_numbers=False)) for group in groups.values()
    ]
    return [group[i : i + size] for group in sorted_groups for i in range(0, len(group), size)]


def _key(config: Config, without_numbers: bool) -> str:
    """Equal for configs that differ in the seed only, or also in numbers."""
    left = {
        group: _blank(value) if without_numbers and group in NUMBERS else value
        for group, value in config.unresolved.items()
        if group == "device" or group not in INDECISIVE | {"seed"}
    }
    return json.dumps(left, sort_keys=True)


def _was_in_cohort(job: "Job") -> bool:
    """Whether what was begun there goes on in a cohort only."""
    with suppress(UserError):  # what is damaged is told by the run that would continue it
        return in_cohort(job.config.directory)
    return False


def _blank(value: Any) -> Any:
    """The same without the numbers that weigh; those that count rows or steps, and zeros, decide what is computed."""
    if isinstance(value, Mapping):
        return {key: part if key.startswith("n_") or key in COUNTS else _blank(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_blank(part) for part in value]
    return bool(value) if isinstance(value, int | float) else value


def _act(job: "Job", cohort: Cohort, progress: Progress | None) -> Outcome | BaseException:
    """The run of a job; what stopped it, if something did."""
    try:
        return attempt(job.config, restart=job.restart, progress=progress, cohort=cohort)
    except (KeyboardInterrupt, Terminated) as stop:
        return stop
