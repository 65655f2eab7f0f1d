"""What is measured and when. Measuring reads the learner and changes nothing.

Accuracies of all probes before training and at every task end, there also of each class; of the tasks seen so far
every ``every`` rows within a task; and, if asked for, how each arrival was predicted before it was learned.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from continual.batches import batches
from continual.errors import UserError
from continual.measures import calibration_error, dormant_fraction, effective_rank, weight_norm
from continual.step import MASKED
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
        batch_size: rows predicted at once, >= 1; does not change the result.
    """

    every: int | None = None
    max_rows: int | None = None
    prequential: bool = False
    window: int = 100
    classes: bool = True
    batch_size: int = 1024

    def __post_init__(self) -> None:
        for name in ("every", "max_rows", "window", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"probe.{name}={value} must be at least 1")

    def of(self, stream: Stream, learner: Learner) -> "Measure":
        """The schedule applied to one run."""
        return Measure(self, stream, learner)


class Measure:
    """The evaluator of one run: holds where the run is and what was answered before.

    Attributes:
        index: the experience that is being learned, or comes next.
        inside: whether it is being learned: its arrival has been measured.
        left: rows of it that are not consumed yet.
    """

    GIVEN = frozenset({"probe", "stream", "learner", "labels", "labels_only"})
    """What it is made from; all else is its state."""

    def __init__(self, probe: Probe, stream: Stream, learner: Learner) -> None:
        self.probe, self.stream, self.learner = probe, stream, learner
        self.labels = [torch.cat([batch.y for batch in self._read(rows)]) for rows in stream.probes]
        self.index, self.inside, self.left, self.started = 0, False, 0, False
        self.rows_seen = self.step = self.arrived = 0
        self.last_probed = 0
        self.trained: list[int] = []  # tasks in the order of their first row
        self.right: dict[int, Tensor] = {}  # probe -> (n,) bool at the last task end
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
        began = perf_counter()
        for rows in updates:
            self.seconds += perf_counter() - began
            yield rows
            began = perf_counter()
        self.seconds += perf_counter() - began

    def due(self) -> bool:
        """Whether ``every`` rows have passed since the last probe within a task."""
        return self.probe.every is not None and self.rows_seen - self.last_probed >= self.probe.every

    def start(self) -> Iterator[Record]:
        """Before any training: the size of each probe and the accuracy of the random initialisation."""
        for task, y in enumerate(self.labels):
            yield self._record(None, "start", task, "probe_rows", len(y))
        for task, logits in self._answers(range(len(self.labels))):
            yield self._record(None, "start", task, "accuracy", _accuracy(logits, self.labels[task]))
        self.started = True

    def within(self, task: int) -> Iterator[Record]:
        """Within a task: accuracy of the tasks seen so far."""
        self.last_probed = self.rows_seen
        for probe in [t for t in self.trained if t < len(self.labels)]:
            y = self.labels[probe]
            chosen = _spaced(len(y), self.probe.max_rows)
            logits = self._on_probe(probe, chosen)
            yield self._record(task, "step", probe, "accuracy", _accuracy(logits, y[chosen]))

    def end(self, task: int) -> Iterator[Record]:
        """A task has ended: accuracy of every probe, over all classes and over the classes seen, and flips."""
        self.last_probed = self.rows_seen
        self.peak = max(self.peak, self.learner.cost().bytes)
        yield from self._flush(task)
        seen, by_class = self._classes_seen(), ClassCounts(self.stream.spec.n_classes)
        for probe, logits in self._answers(range(len(self.labels))):
            y = self.labels[probe]
            right = logits.argmax(1) == y
            by_class.add(y, right)
            yield self._record(task, "end", probe, "accuracy", float(right.double().mean()))
            yield self._record(task, "end", probe, "accuracy_seen", _accuracy(logits.masked_fill(~seen, MASKED), y))
            if probe in self.right:
                flips = self.right[probe] & ~right
                yield self._record(task, "end", probe, "negative_flips", float(flips.double().mean()))
            self.right[probe] = right
        for label, accuracy in by_class.accuracies() if self.probe.classes else ():
            yield self._record(task, "end", label, "class_accuracy", accuracy)

    def arrival(self, experience: Experience, task: int) -> Iterator[Record]:
        """An experience arrives: answer it before it is learned; score the answers whose labels are told now."""
        if task not in self.trained:
            self.trained.append(task)
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
        for probe, logits in self._answers(range(len(self.labels))):
            error = calibration_error(logits.softmax(1), self.labels[probe])
            yield self._record(task, "final", probe, "calibration_error", error)
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
        if not isinstance(self.learner, Inspectable) or not self.labels:
            return
        share = max(1, INSPECTED // len(self.labels))
        x = torch.cat([rows.take(_spaced(len(rows), share)).x for rows in self.stream.probes])
        features, parameters, activations = self.learner.inspect(x)
        layers = activations or ([] if features is None else [features])  # hidden layers, or the last one alone
        if layers:
            yield "dormant_fraction", dormant_fraction(layers, DORMANT)
        if features is not None:
            yield "effective_rank", effective_rank(features)
        yield "weight_norm", weight_norm(parameters)

    def _record(self, task: int | None, at: str, probe: int | None, metric: str, value: float) -> Record:
        return Record(self.rows_seen, self.step, task, at, probe, metric, float(value))

    def _classes_seen(self) -> Tensor:
        seen = torch.zeros(self.stream.spec.n_classes, dtype=torch.bool)
        for task in self.trained:
            if task < len(self.labels):
                seen[self.labels[task]] = True
        return seen

    def _answers(self, probes: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """(probe, logits (n, C)) of each probe."""
        for probe in probes:
            yield probe, self._on_probe(probe, torch.arange(len(self.labels[probe])))

    def _on_probe(self, probe: int, chosen: Tensor) -> Tensor:
        """Logits (n, C) for the rows of a probe at positions ``chosen`` (n,)."""
        task = probe if self.stream.spec.task_aware else None
        return self._predict((batch.x for batch in self._read(self.stream.probes[probe], chosen)), task)

    def _read(self, rows: Rows, chosen: Tensor | None = None) -> Iterator[Batch]:
        """The rows at positions ``chosen`` (n,), or all, as many at once as are predicted at once."""
        positions = torch.arange(len(rows)) if chosen is None else chosen
        return batches(rows, torch.split(positions, self.probe.batch_size))

    def _predict(self, chunks: Iterable[Tensor], task: int | None) -> Tensor:
        """Logits (n, C) under inference mode."""
        with torch.inference_mode():
            return torch.cat([self.learner.predict(x, task).cpu() for x in chunks])

    def _ask(self, ids: list[int], x: Tensor, task: int | None) -> None:
        """Keep what learner and baselines answer now for rows ``x`` (n, *in_shape), none of whose labels is known."""
        last, blind = self.labels_only.answer()
        answers = self._predict(torch.split(x, self.probe.batch_size), task).argmax(1).tolist()
        for row, answer in zip(ids, answers, strict=True):
            self.asked.setdefault(row, []).append((self.questions, (answer, last, blind)))
            self.questions += 1

    def _score(self, batch: Batch, task: int | None) -> None:
        """Labels are told: compare them with what was answered; rows never asked about are asked now."""
        ids = batch.extra["id"].tolist()
        new = [position for position, row in enumerate(ids) if row not in self.asked]
        if new:
            self._ask([ids[position] for position in new], batch.x[new], task)
        for row, label in zip(ids, batch.y.tolist(), strict=True):
            self.scores.append(tuple(answer == label for answer in self._recall(row)))
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


class ClassCounts:
    """Rows of each class, and how many of them were right, over several probes."""

    def __init__(self, n_classes: int) -> None:
        self.rows, self.right = (torch.zeros(n_classes, dtype=torch.int64) for _ in range(2))

    def add(self, y: Tensor, right: Tensor) -> None:
        """Count labels ``y`` (n,) of which ``right`` (n,) were answered."""
        self.rows += y.bincount(minlength=len(self.rows))
        self.right += y[right].bincount(minlength=len(self.rows))

    def accuracies(self) -> Iterator[tuple[int, float]]:
        """(class, share of its rows that were right) of each class that has rows."""
        for label in self.rows.nonzero()[:, 0].tolist():
            yield label, int(self.right[label]) / int(self.rows[label])


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


def _spaced(rows: int, at_most: int | None) -> Tensor:
    """(n,) positions of ``at_most`` rows, evenly spaced: test rows may lie sorted by class."""
    n = rows if at_most is None else min(at_most, rows)
    return torch.arange(n) * rows // n


def _all(rows: Rows) -> Batch:
    return rows.take(torch.arange(len(rows)))


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())
