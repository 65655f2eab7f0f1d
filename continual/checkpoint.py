"""When a run is stored, and how it goes on: the snapshots of a run directory, each named in its ledger.

A snapshot holds the learner and the evaluator as they are at a pause of :func:`continual.loop.moments`. It is named in
the ledger once it is on the disk, so what the ledger names was whole. Going on means: the newest one that still is, the
ledger cut to where it was taken, and every later update made again, bit for bit.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

from continual import snapshot
from continual.errors import DivergedError, UserError
from continual.journal import Saved
from continual.ledger import SNAPSHOTS, Ledger
from continual.probe import Measure
from continual.state import named_tensors
from continual.types import Learner, Record

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshots:
    """When a run is stored, and what is kept of that.

    It is stored at the end of the last task, of each earlier one, and by the two intervals within tasks.

    Attributes:
        steps: updates between two snapshots, >= 1; None for no such interval.
        seconds: seconds between two snapshots, > 0; None for none by the clock.
        share: bound of the time that snapshots take, as a part of the run's time, in (0, 1]: those at ends of short
            tasks and by the clock are left out beyond it; None for no bound.
        keep: newest ones that are kept, >= 1.
        best: whether the one at the task's end with the highest mean accuracy over all probes is kept, too.
        grace: seconds in which a run that is asked to stop waits for the end of its update, >= 0.
    """

    steps: int | None = None
    seconds: float | None = 30.0
    share: float | None = 0.05
    keep: int = 2
    best: bool = True
    grace: float = 5.0

    def __post_init__(self) -> None:
        for name, right, bound in (
            ("steps", self.steps is None or self.steps >= 1, "at least 1, or null"),
            ("seconds", self.seconds is None or self.seconds > 0, "above 0, or null"),
            ("share", self.share is None or 0 < self.share <= 1, "in (0, 1], or null"),
            ("keep", self.keep >= 1, "at least 1"),
            ("grace", 0 <= self.grace < float("inf"), "at least 0"),
        ):
            if not right:
                raise UserError(f"snapshot.{name}={getattr(self, name)} must be {bound}")


class Checkpoints:
    """The snapshots of one run that is being written."""

    def __init__(self, policy: Snapshots, book: Ledger, learner: Learner, measure: Measure) -> None:
        self.policy, self.book, self.learner, self.measure = policy, book, learner, measure
        self.directory = book.path / SNAPSHOTS
        self.saved: list[Saved] = []
        self.total = len(measure.stream.origins)
        self.step, self.time, self.cost = 0, monotonic(), 0.0  # update and time of the last one, seconds it took

    def go_on(self) -> list[Record]:
        """Load the newest snapshot that is whole and cut the ledger to it; what had been measured by then.

        Errors:
            UserError: the snapshot is whole but does not fit the learner.
        """
        known = can_go_on(self.learner)
        found = newest(self.directory, self.book.content.saved) if known else None
        if not known and self.book.content.saved:
            LOGGER.warning("not all of this learner is in its snapshots, so the run in %s starts over", self.book.path)
        if found is None:
            return self.book.cut(None)
        saved, state = found
        try:
            self.learner.load_state_dict(state["learner"])
            self.measure.load_state_dict(state["measure"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            fix = "has the code changed? start over with --restart, which keeps the old files"
            raise UserError(f"{self.directory / saved.name} does not fit this learner ({error}); {fix}") from error
        records = self.book.cut(saved)
        self.saved = [earlier for earlier in self.book.content.saved if earlier.mark.size <= saved.mark.size]
        self.step, self.time = self.measure.step, monotonic()
        return records

    def after(self, records: Sequence[Record]) -> None:
        """A pause, and what was measured since the one before: store the run if it is time."""
        at = records[-1].at if records else "step"
        if at == "end":
            if self.measure.index == self.total or self._affordable():
                self.save(_score(records, self.measure))
            else:
                self.book.flush()
        elif at in ("step", "arrival") and self._due():
            self.save()

    def save(self, score: float | None = None) -> None:
        """Store the run as it is at this pause.

        Errors:
            DivergedError: a tensor of the learner is not finite; nothing is stored.
            UserError: it cannot be written; what was stored before is still there.
        """
        began = monotonic()
        state = {"learner": self.learner.state_dict(), "measure": self.measure.state_dict()}
        self._check_finite(state["learner"])
        name = f"{self.measure.step}-{self.book.count}.snapshot"
        try:
            digest = snapshot.save(self.directory / name, state)
            self.saved.append(self.book.save(name, digest, score))
            self._prune()
        except OSError as error:
            fix = "make room, or make it writable; then the same command continues from the snapshot before"
            raise UserError(f"{self.directory / name} cannot be written: {error.strerror or error}; {fix}") from error
        self.step, self.time = self.measure.step, monotonic()
        self.cost = self.time - began

    def kept(self) -> str:
        """What is left of the run for one whose learning has failed, as the end of a sentence."""
        if not self.saved:
            return "nothing of it was stored before"
        last, path = self.saved[-1].name, self.book.path
        step = last.partition("-")[0]
        return f"as it was at update {step} it is kept in {self.directory / last}: continual.load('{path}') gives it"

    def _due(self) -> bool:
        policy = self.policy
        if policy.steps is not None and self.measure.step - self.step >= policy.steps:
            return True
        if policy.seconds is None:
            return False
        # What a learner does at an experience's end can take long, and is lost if it is stopped there.
        wait = min(policy.grace, policy.seconds) if self.measure.whole else policy.seconds
        return monotonic() - self.time >= wait and self._affordable()

    def _affordable(self) -> bool:
        share = self.policy.share
        return share is None or monotonic() - self.time >= self.cost * (1 / share - 1)

    def _prune(self) -> None:
        """Delete what is neither among the newest nor the best, and what a kill left half written."""
        kept = {saved.name for saved in self.saved[-self.policy.keep :]}
        if self.policy.best:
            kept |= {saved.name for saved in best(self.directory, self.saved)}
        self.saved = [saved for saved in self.saved if saved.name in kept]
        for path in self.directory.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _check_finite(self, state: Any) -> None:
        for path, tensor in named_tensors(state):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                trained = getattr(self.learner, "trained", None)
                raise DivergedError(
                    f"{path} of the learner is nan or infinite after update {self.measure.step}, so it is not stored; "
                    f"{trained() + '; ' if trained else ''}lower optimizer.lr, or the strength of a strategy"
                )


def can_go_on(learner: Learner) -> bool:
    """Whether all of the learner is in its ``state_dict()``: False for those that say so, as Avalanche's do."""
    return bool(getattr(learner, "resumes", True))


def newest(directory: Path, saved: Sequence[Saved]) -> tuple[Saved, Any] | None:
    """The newest snapshot of ``saved``, oldest first, that is whole, and what it holds; None if none is."""
    for candidate in reversed(saved):
        path = directory / candidate.name
        if not path.exists() and candidate is not saved[-1]:  # only the newest are kept
            continue
        try:
            return candidate, snapshot.load(path, candidate.sha256)
        except UserError as error:
            LOGGER.warning("%s; going on from the snapshot before", error)
    return None


def best(directory: Path, saved: Sequence[Saved]) -> list[Saved]:
    """The snapshot with the highest score, the later of two equal ones; empty if none that is left has any."""
    scored = [one for one in saved if one.score is not None and (directory / one.name).exists()]
    return sorted(scored, key=lambda one: (one.score, one.mark.size))[-1:]


def _score(records: Sequence[Record], measure: Measure) -> float | None:
    """The mean accuracy over all probes; None where not all of them were measured."""
    accuracy = [record.value for record in records if record.metric == "accuracy"]
    mean = fmean(accuracy) if accuracy and len(accuracy) == len(measure.probes) else float("nan")
    return mean if mean == mean else None
