"""What is measured and when. Measuring reads the learner and changes nothing.

Accuracies of all probes before training and at every task end, there also of each class; of the tasks seen so far
every ``every`` rows within a task; and, if asked for, how each arrival was predicted before it was learned.

With many tasks that grows with their square. ``n_old`` measures a few of the old tasks in turn, and all tasks only at
moments that are asked for and at the last end: an end costs the same at the thousandth task as at the tenth. What was
not measured is not recorded.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from continual.answers import Answered, Asker, ClassCounts, fewest, labels_of, shares, spaced
from continual.errors import UserError
from continual.measures import calibration_error, dormant_fraction, effective_rank, weight_norm
from continual.types import Batch, Experience, Inspectable, Learner, Record, Rows, Stream

Answers = tuple[int, int, int]
"""What the learner, the last label and the label-only learner answered for one row."""

INSPECTED = 1024  # rows whose features are looked at
DORMANT = 0.025  # a unit is dormant at or below this share of its layer's mean activation (Sokar et al. 2023)


@dataclass(frozen=True)
class Probe:
    """The schedule.

    Attributes:
        every: rows between two probes within a task, >= 1; None probes only at task ends.
        max_rows: rows of each probe used within a task, evenly spaced, >= 1; None for all. Task ends always use all.
        prequential: whether arrivals are predicted before they are learned.
        window: arrivals' rows summed up in one prequential record, >= 1.
        classes: whether the accuracy of each class is recorded at task ends, over its rows in all probes.
        batch_size: rows predicted at once, of several probes where the stream tells no tasks, >= 1; changes results
            by no more than the rounding of logits.
        n_old: learned tasks that are measured in turn beside the current one, >= 0, and at its end beside the one that
            comes next (for forward transfer); None for all tasks at every end and all seen within a task.
        old_every: rows between two moments at which old tasks are measured, >= 1; None for every moment. Needs n_old.
        all_every: ends of tasks between two at which all are measured, >= 1; None for the last end alone. Needs n_old.
    """

    every: int | None = None
    max_rows: int | None = None
    prequential: bool = False
    window: int = 100
    classes: bool = True
    batch_size: int = 1024
    n_old: int | None = None
    old_every: int | None = None
    all_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "max_rows", "window", "batch_size", "n_old", "old_every", "all_every"):
            value, least = getattr(self, name), 0 if name == "n_old" else 1
            if value is not None and value < least:
                raise UserError(f"probe.{name}={value} must be at least {least}")
        for name in ("old_every", "all_every"):
            value = getattr(self, name)
            if value is not None and self.n_old is None:
                raise UserError(f"probe.{name}={value} does nothing where all tasks are measured; set probe.n_old")

    def of(self, stream: Stream, learner: Learner) -> "Measure":
        """The schedule applied to one run."""
        return Measure(self, stream, learner)


class Measure:
    """The evaluator of one run: holds where the run is and what was answered before.

    Attributes:
        probes: all that have rows.
        index: the experience that is being learned, or comes next.
        inside: whether it is being learned: its arrival has been measured.
        left: rows of it that are not consumed yet.
    """

    GIVEN = frozenset({"probe", "stream", "learner", "origins", "sizes", "probes", "asker", "labels_only"})
    """What it is made from; all else is its state."""

    def __init__(self, probe: Probe, stream: Stream, learner: Learner) -> None:
        self.probe, self.stream, self.learner = probe, stream, learner
        self.origins, self.sizes = list(stream.origins), [len(rows) for rows in stream.probes]
        self.probes = [probe for probe, size in enumerate(self.sizes) if size]
        self.asker = Asker(stream, learner, probe.batch_size)
        self.index, self.inside, self.left, self.started = 0, False, 0, False
        self.rows_seen = self.step = self.arrived = 0
        self.last_probed = 0
        self.trained: list[int] = []  # tasks in the order of their first row
        self.classes = torch.zeros(stream.spec.n_classes, dtype=torch.bool)  # that these tasks have
        self.ends, self.turn, self.last_old = 0, 0, 0  # of tasks; the place in ``trained`` whose turn is next; rows
        self.measured: list[int] = []  # probes at the last task end
        self.right = torch.zeros(0, dtype=torch.bool)  # (n,) which of their rows were right, one after another
        self.labels_only = LabelBaselines(stream.spec.n_classes)
        self.asked: dict[int, list[tuple[int, Answers]]] = {}  # row id -> (question, answers) waiting for a label
        self.questions, self.told = 0, -1  # rows asked so far; the question whose label came last
        self.scores: list[tuple[bool, ...]] = []  # per row whose label came: which of its answers were right
        self.seconds = 0.0  # spent in the learner's updates
        self.peak = 0

    def advance(self, rows: int) -> None:
        """The learner has made one update and consumed ``rows`` rows."""
        self.rows_seen += rows
        self.left -= rows
        self.step += 1

    @property
    def whole(self) -> bool:
        """Whether all rows of a whole task are consumed: all that is left is what the learner does at its end."""
        return self.inside and not self.left and self.stream.spec.boundaries

    def leave(self) -> None:
        """The learner has learned the whole experience."""
        self.index, self.inside = self.index + 1, False

    def timed(self, updates: Iterator[int]) -> Iterator[int]:
        """The same updates; the time that the learner takes for them, and nobody else's, is added up."""
        began = self._clock()
        for rows in updates:
            self.seconds += self._clock() - began
            yield rows
            began = self._clock()
        self.seconds += self._clock() - began

    def _clock(self) -> float:
        """Seconds, without those in which the learner waited for others."""
        waited: float = getattr(self.learner, "waited", 0.0)
        return perf_counter() - waited

    def due(self) -> bool:
        """Whether ``every`` rows have passed since the last probe within a task."""
        return self.probe.every is not None and self.rows_seen - self.last_probed >= self.probe.every

    def start(self) -> Iterator[Record]:
        """Before any training: the size of each probe and the accuracy of the random initialisation."""
        for probe, size in enumerate(self.sizes):
            yield self._record(None, "start", probe, "probe_rows", size)
        for probe, accuracy in self._accuracies(range(len(self.sizes))):
            yield self._record(None, "start", probe, "accuracy", accuracy)
        self.started = True

    def within(self, task: int) -> Iterator[Record]:
        """Within a task: accuracy of the tasks seen so far, or of this one and of those whose turn it is."""
        self.last_probed = self.rows_seen
        seen = self.trained if self.probe.n_old is None else [task, *self._old(task, self.probe.n_old)]
        for probe, accuracy in self._accuracies(seen, self.probe.max_rows):
            yield self._record(task, "step", probe, "accuracy", accuracy)

    def end(self, task: int) -> Iterator[Record]:
        """A task has ended: accuracy of probes, over all classes and over the classes seen, and flips.

        The accuracy of each class, over its rows in all probes, where all of them are measured.
        """
        self.last_probed, self.ends = self.rows_seen, self.ends + 1
        self.peak = max(self.peak, self.learner.cost().bytes)
        yield from self._flush(task)
        probes, answers, by_class = self._at_end(task), Answered(), ClassCounts(self.stream.spec.n_classes)
        for _, logits, y in self.asker.answers(probes):
            answers.add(logits, y, self.classes)
            by_class.add(y.cpu(), answers.right[-1])
        right, among_seen = torch.cat(answers.right), torch.cat(answers.among_seen)
        sizes = [self.sizes[probe] for probe in probes]
        flips = self._flips(dict(zip(probes, torch.split(right, sizes), strict=True)))
        for probe, share, share_of_seen in zip(probes, shares(right, sizes), shares(among_seen, sizes), strict=True):
            yield self._record(task, "end", probe, "accuracy", share)
            yield self._record(task, "end", probe, "accuracy_seen", share_of_seen)
            if probe in flips:
                yield self._record(task, "end", probe, "negative_flips", flips[probe])
        self.measured, self.right = probes, right
        if self.probe.classes and len(probes) == len(self.probes):
            for label, accuracy in by_class.accuracies():
                yield self._record(task, "end", label, "class_accuracy", accuracy)

    def arrival(self, experience: Experience, task: int) -> Iterator[Record]:
        """An experience arrives: answer it before it is learned; score the answers whose labels are told now."""
        if self.trained[-1:] != [task] and task not in self.trained:
            self.trained.append(task)
            if task < len(self.sizes):
                self.classes[labels_of(self.stream.probes[task])] = True
        self.arrived += len(experience.rows)
        self.inside, self.left = True, len(experience.rows)
        if not self.probe.prequential:
            return
        if experience.ask is not None:
            asked = _all(experience.ask)
            self._ask(asked.extra["id"].tolist(), asked.x, experience.task)
        if len(experience.rows):
            self._score(_all(experience.rows), experience.task)
        if len(self.scores) >= self.probe.window:
            yield from self._flush(task)

    def final(self) -> Iterator[Record]:
        """After the stream: what it cost, and how well confidence fits accuracy."""
        cost = self.learner.cost()
        task = self.trained[-1] if self.trained else None
        yield from self._flush(task)
        for group, logits, y in self.asker.answers(self.probes):
            sizes = [self.sizes[probe] for probe in group]
            for probe, own, labels in zip(
                group, torch.split(logits.softmax(1), sizes), torch.split(y, sizes), strict=True
            ):
                yield self._record(task, "final", probe, "calibration_error", calibration_error(own, labels))
        for metric, value in self._inside():
            yield self._record(task, "final", None, metric, value)
        per_row = cost.forward_equivalents / max(self.arrived, 1)
        yield self._record(task, "final", None, "forward_equivalents_per_row", per_row)
        yield self._record(task, "final", None, "peak_bytes", max(self.peak, cost.bytes))
        yield self._record(task, "final", None, "seconds", self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """All that it holds, for a run that goes on later: between two moments, see :func:`continual.loop.moments`."""
        own = {name: value for name, value in vars(self).items() if name not in self.GIVEN}
        return own | {"labels_only": vars(self.labels_only)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another evaluator of the same stream held; ``state`` is not to be used elsewhere."""
        vars(self).update({name: state[name] for name in vars(self) if name not in self.GIVEN})
        vars(self.labels_only).update(state["labels_only"])

    def _inside(self) -> Iterator[tuple[str, float]]:
        """Measures of plasticity, over at most ``INSPECTED`` rows dealt evenly from all probes."""
        if not isinstance(self.learner, Inspectable) or not self.probes:
            return
        some = [self.probes[place] for place in spaced(len(self.probes), INSPECTED).tolist()]
        share = max(1, INSPECTED // len(some))
        x = torch.cat([self.stream.probes[probe].take(spaced(self.sizes[probe], share)).x for probe in some])
        features, parameters, activations = self.learner.inspect(x)
        layers = activations or ([] if features is None else [features])  # hidden layers, or the last one alone
        if layers:
            yield "dormant_fraction", dormant_fraction(layers, DORMANT)
        if features is not None:
            yield "effective_rank", effective_rank(features)
        yield "weight_norm", weight_norm(parameters)

    def _record(self, task: int | None, at: str, probe: int | None, metric: str, value: float) -> Record:
        return Record(self.rows_seen, self.step, task, at, probe, metric, float(value))

    def _at_end(self, task: int) -> list[int]:
        """The probes that are measured now that ``task`` has ended, in their order."""
        n_old, every = self.probe.n_old, self.probe.all_every
        coming = self.origins[self.index : self.index + 1]
        if n_old is None or not coming or (every is not None and self.ends % every == 0):
            self.last_old = self.rows_seen
            return self.probes
        return self._probed(sorted({task, *coming, *self._old(task, n_old)}))

    def _old(self, task: int, n_old: int) -> list[int]:
        """The tasks learned before ``task`` whose turn it is: at most ``n_old``, none before ``old_every`` rows."""
        every, found = self.probe.old_every, list[int]()
        if every is not None and self.rows_seen - self.last_old < every:
            return found
        self.last_old = self.rows_seen
        for _ in self.trained:
            if len(found) == n_old:
                break
            self.turn %= len(self.trained)
            found += [self.trained[self.turn]] if self.trained[self.turn] != task else []
            self.turn += 1
        return found

    def _probed(self, tasks: Iterable[int]) -> list[int]:
        """The probes of ``tasks`` that have rows."""
        return [task for task in tasks if task < len(self.sizes) and self.sizes[task]]

    def _flips(self, right: Mapping[int, Tensor]) -> dict[int, float]:
        """{probe: share of its rows that were right at the end before and are wrong now}, if measured at both."""
        before = dict(zip(self.measured, torch.split(self.right, [self.sizes[p] for p in self.measured]), strict=True))
        both = [probe for probe in right if probe in before]
        if not both:
            return {}
        flips = torch.cat([before[probe] for probe in both]) & ~torch.cat([right[probe] for probe in both])
        return dict(zip(both, shares(flips, [self.sizes[probe] for probe in both]), strict=True))

    def _accuracies(self, tasks: Iterable[int], at_most: int | None = None) -> Iterator[tuple[int, float]]:
        """(probe, accuracy) of the probes of ``tasks``, on at most so many rows of each."""
        for group, logits, y in self.asker.answers(self._probed(tasks), at_most):
            sizes = [fewest(self.sizes[probe], at_most) for probe in group]
            yield from zip(group, shares((logits.argmax(1) == y).cpu(), sizes), strict=True)

    def _answers(self, x: Tensor, task: int | None) -> list[Answers]:
        """What learner and baselines answer now for rows ``x`` (n, *in_shape), none of whose labels is known."""
        last, blind = self.labels_only.answer()
        logits = [self.asker.ask(part, task) for part in torch.split(x, self.probe.batch_size)]
        return [(answer, last, blind) for part in logits for answer in part.argmax(1).tolist()]

    def _ask(self, ids: list[int], x: Tensor, task: int | None) -> None:
        """Keep the answers for rows ``x`` (n, *in_shape) until their labels come."""
        for row, answers in zip(ids, self._answers(x, task), strict=True):
            self.asked.setdefault(row, []).append((self.questions, answers))
            self.questions += 1

    def _score(self, batch: Batch, task: int | None) -> None:
        """Labels are told: compare them with what was answered; rows never asked about are asked now."""
        ids = batch.extra["id"].tolist()
        new = [position for position, row in enumerate(ids) if row not in self.asked]
        if len(new) == len(ids):  # nothing need be kept of a question that is answered at once
            answered = self._answers(batch.x, task)
            self.questions += len(ids)
            self.told = self.questions - 1
        else:
            if new:
                self._ask([ids[position] for position in new], batch.x[new], task)
            answered = [self._recall(row) for row in ids]
        for (own, last, blind), label in zip(answered, batch.y.tolist(), strict=True):
            self.scores.append((own == label, last == label, blind == label))
            self.labels_only.learn(label)

    def _recall(self, row: int) -> Answers:
        """The answers to the question about ``row`` whose label comes now, and forget them.

        Labels come in the order of the questions, some never. So it is the first question about this row after the
        one whose label came last; if there is none (the stream tells out of order), the first question about it.
        """
        waiting = self.asked.pop(row)
        position = next((i for i, (question, _) in enumerate(waiting) if question > self.told), 0)
        self.told, answers = waiting[position]
        if waiting[position + 1 :]:
            self.asked[row] = waiting[position + 1 :]
        return answers

    def _flush(self, task: int | None) -> Iterator[Record]:
        if not self.scores:
            return
        n = len(self.scores)
        yield self._record(task, "arrival", None, "prequential_rows", n)
        names = ("prequential_accuracy", "last_label_accuracy", "blind_accuracy")
        for metric, right in zip(names, zip(*self.scores, strict=True), strict=True):
            yield self._record(task, "arrival", None, metric, sum(right) / n)
        self.scores = []


@dataclass
class LabelBaselines:
    """Two learners that see labels only: one repeats the last label, one knows which label follows which.

    The second answers the label that most often followed the last one (a first-order Markov chain).
    Like the learner they answer all rows of an arrival before any of its labels, and wait for late ones.
    """

    n_classes: int
    last: int = 0
    followed: dict[int, list[int]] = field(default_factory=dict)

    def answer(self) -> tuple[int, int]:
        """The two answers before the next label is known."""
        counts = self.followed.get(self.last)
        return self.last, counts.index(max(counts)) if counts else self.last

    def learn(self, label: int) -> None:
        """The label that came."""
        self.followed.setdefault(self.last, [0] * self.n_classes)[label] += 1
        self.last = label


def _all(rows: Rows) -> Batch:
    return rows.take(torch.arange(len(rows)))
