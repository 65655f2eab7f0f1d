"""What is measured and when, worked out by hand on a learner whose every answer is known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.errors import UserError
from continual.learner import SGDLearner
from continual.loop import loop
from continual.memory import Reservoir
from continual.models import mlp
from continual.probe import LabelBaselines, Measure, Probe
from continual.strategies.er import ER
from continual.types import Batch, Cost, Experience, Record, Rows, Spec
from scenarios import operators
from scenarios.sources import TensorSource
from scenarios.stream import IndexRows, IndexStream


@dataclass
class Table:
    """Rows whose input is a number, the row's id unless told otherwise."""

    y: list[int]
    x: list[float] | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> Batch:
        ids = torch.arange(self.first, self.first + len(self.y))[indices]
        x = ids.float() if self.x is None else torch.tensor(self.x)[indices]
        n = len(ids)
        return Batch(x[:, None], torch.tensor(self.y)[indices], torch.full((n,), 1 / max(n, 1)), n, {"id": ids})

    def fetch(self, ids: Tensor) -> Tensor:
        return ids[:, None].float()


@dataclass
class Parrot:
    """Answers ``answer(x, rows learned so far)``; takes in ``at_once`` rows per update."""

    n_classes: int
    answer: Callable[[float, int], int]
    at_once: int = 5
    learned: int = 0
    bytes: int = 0
    asked: list[tuple[int, int | None]] = field(default_factory=list)  # (rows, task) of each call of predict

    def learn(self, experience: Experience) -> Iterator[int]:
        for chunk in torch.split(torch.arange(len(experience.rows)), self.at_once) if len(experience.rows) else ():
            self.learned += len(chunk)
            self.bytes = 100 - self.learned
            yield len(chunk)

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.asked.append((len(x), task))
        answers = torch.tensor([self.answer(float(row), self.learned) for row in x[:, 0]])
        return 5.0 * torch.nn.functional.one_hot(answers, self.n_classes)

    def cost(self) -> Cost:
        return Cost(3.0 * self.learned, self.bytes)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Fixed:
    """A stream written down."""

    spec: Spec
    probes: list[Rows]
    origins: list[int]
    experiences: list[Experience]

    def __iter__(self) -> Iterator[Experience]:
        return iter(self.experiences)


def fixed(
    probes: list[Rows], origins: list[int], rows: list[Rows], n_classes: int = 4, task_aware: bool = False
) -> Fixed:
    told = origins if task_aware else [None] * len(origins)
    arrivals = [Experience(i, r, task) for i, (r, task) in enumerate(zip(rows, told, strict=True))]
    return Fixed(Spec((1,), n_classes, task_aware=task_aware), probes, origins, arrivals)


def two_tasks(task_aware: bool = False) -> Fixed:
    """Task 0: 10 rows of class 0 in two arrivals; task 1: 10 rows of class 1. Probes of 4 and of 5 rows."""
    rows: list[Rows] = [Table([0] * 5), Table([0] * 5), Table([1] * 10)]
    return fixed([Table([0] * 4), Table([1] * 5)], [0, 0, 1], rows, task_aware=task_aware)


def when(records: list[Record], metric: str = "accuracy") -> list[tuple[int, int, int | None, str, int | None, float]]:
    return [(r.rows_seen, r.step, r.task, r.at, r.probe, r.value) for r in records if r.metric == metric]


def values(records: list[Record], metric: str) -> list[float]:
    return [r.value for r in records if r.metric == metric]


# ---------------------------------------------------------------- the schedule


def test_all_probes_before_training_and_at_task_ends() -> None:
    records = list(loop(two_tasks(), Parrot(4, lambda x, learned: 0 if learned < 15 else 1), Probe()))
    assert when(records) == [
        (0, 0, None, "start", 0, 1.0), (0, 0, None, "start", 1, 0.0),
        (10, 2, 0, "end", 0, 1.0), (10, 2, 0, "end", 1, 0.0),
        (20, 4, 1, "end", 0, 0.0), (20, 4, 1, "end", 1, 1.0),
    ]  # fmt: skip
    assert when(records, "probe_rows") == [(0, 0, None, "start", 0, 4.0), (0, 0, None, "start", 1, 5.0)]


@pytest.mark.parametrize(("every", "times"), [
    (1, [5, 10, 15, 20]), (5, [5, 10, 15, 20]), (6, [10, 20]), (10, [10, 20]), (11, []), (100, [])
])  # fmt: skip
def test_tasks_seen_so_far_are_probed_every_so_many_rows(every: int, times: list[int]) -> None:
    """Counted from the last probe, a task's end included: with 6 the probes at 5 and 15 rows are not due yet."""
    records = list(loop(two_tasks(), Parrot(4, lambda x, learned: 0), Probe(every=every)))
    within = [(r.rows_seen, r.probe) for r in records if r.at == "step"]
    assert within == [(t, probe) for t in times for probe in ([0] if t <= 10 else [0, 1])]
    assert all(
        r.step * 5 == r.rows_seen and r.task == (0 if r.rows_seen <= 10 else 1) for r in records if r.at == "step"
    )


def test_tasks_that_come_back_are_probed_once_and_end_each_time() -> None:
    rows: list[Rows] = [Table([0] * 5) for _ in range(3)]
    stream = fixed([Table([0]), Table([0])], [1, 0, 1], rows)
    records = list(loop(stream, Parrot(4, lambda x, learned: 0), Probe(every=5)))
    assert [(r.rows_seen, r.probe) for r in records if r.at == "step"] == [(5, 1), (10, 1), (10, 0), (15, 1), (15, 0)]
    assert [(r.rows_seen, r.task, r.probe) for r in records if r.at == "end" and r.metric == "accuracy"] == [
        (5, 1, 0), (5, 1, 1), (10, 0, 0), (10, 0, 1), (15, 1, 0), (15, 1, 1)
    ]  # fmt: skip


def test_a_probe_within_a_task_may_use_some_rows_spread_over_all_of_them() -> None:
    """8 test rows sorted by class; 4 of them are 0, 2, 4, 6. The end uses all 8."""
    stream = fixed([Table([0, 0, 0, 0, 1, 1, 1, 1])], [0], [Table([0] * 5)])
    learner = Parrot(4, lambda x, learned: 0 if x < 6 else 1)
    records = list(loop(stream, learner, Probe(every=5, max_rows=4)))
    assert [r.value for r in records if r.metric == "accuracy"] == [6 / 8, 3 / 4, 6 / 8]
    assert learner.asked[1] == (4, None)
    assert values(list(loop(stream, learner, Probe(every=5, max_rows=99))), "accuracy") == [6 / 8] * 3


def test_a_stream_without_probes_is_measured_by_its_cost_alone() -> None:
    stream = fixed([], [0, 0], [Table([0, 1]), Table([1])])
    records = list(loop(stream, Parrot(4, lambda x, learned: 0), Probe(every=1)))
    assert {r.metric for r in records} == {"forward_equivalents_per_row", "peak_bytes", "seconds"}


# ---------------------------------------------------------------- accuracies


class Scripted:
    """Logits by input, for inputs 0, 1, 2, ..., and by how many experiences were learned."""

    def __init__(self, *stages: list[list[float]]) -> None:
        self.stages, self.stage = stages, 0

    def learn(self, experience: Experience) -> Iterator[int]:
        self.stage += 1
        yield len(experience.rows)

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return torch.tensor(self.stages[min(self.stage, len(self.stages) - 1)])[x[:, 0].long()]

    def cost(self) -> Cost:
        return Cost(0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def test_accuracy_among_the_classes_seen_by_hand() -> None:
    """Class 2 comes with task 1. Row 0 (class 0) is taken for class 2, which cannot be at the end of task 0."""
    logits = [[2.0, 1.0, 3.0], [2.0, 1.0, 3.0], [0.0, 1.0, 3.0]]
    stream = fixed([Table([0, 1], x=[0, 1]), Table([2], x=[2])], [0, 1], [Table([0, 1]), Table([2])], n_classes=3)
    records = list(loop(stream, Scripted(logits), Probe()))
    assert [r.value for r in records if r.metric == "accuracy" and r.at == "end"] == [0.0, 1.0, 0.0, 1.0]
    assert values(records, "accuracy_seen") == [0.5, 0.0, 0.0, 1.0]


def test_negative_flips_by_hand() -> None:
    """Right at the last task end and wrong now, over all rows; the first end has nothing to compare with."""
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    stages = ([right] * 4, [right, right, wrong, wrong], [right, wrong, right, wrong], [wrong, wrong, wrong, right])
    stream = fixed([Table([0] * 4, x=[0, 1, 2, 3])], [0, 1, 2], [Table([0])] * 3, n_classes=2)
    records = list(loop(stream, Scripted(*stages), Probe()))
    assert when(records, "negative_flips") == [(2, 2, 1, "end", 0, 0.25), (3, 3, 2, "end", 0, 0.5)]


def test_the_accuracy_of_each_class_by_hand() -> None:
    """Class 0 has rows in both probes, class 2 in none; answers are 0, 0, 1 and 1, 0 at the only end."""
    sure = {0: [1.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0]}
    probes = [Table([0, 0, 0], x=[0, 1, 2]), Table([1, 1], x=[3, 4])]
    stream = fixed([*probes, Table([0], x=[2])], [0], [Table([0])], n_classes=3)
    records = list(loop(stream, Scripted([sure[0], sure[0], sure[1], sure[1], sure[0]]), Probe()))
    assert when(records, "class_accuracy") == [(1, 1, 0, "end", 0, 0.5), (1, 1, 0, "end", 1, 0.5)]
    silent = list(loop(stream, Scripted([sure[0]] * 5), Probe(classes=False)))
    assert not when(silent, "class_accuracy")


def test_calibration_by_hand() -> None:
    """Two rows, each 3/4 sure, one right: |1/2 - 3/4|."""
    logits = [[torch.tensor(3.0).log().item(), 0.0]] * 2
    stream = fixed([Table([0, 1], x=[0, 1])], [0], [Table([0])], n_classes=2)
    (error,) = values(list(loop(stream, Scripted(logits), Probe())), "calibration_error")
    assert error == pytest.approx(0.25, abs=1e-6)


# ---------------------------------------------------------------- how predictions are asked for


def test_probes_are_asked_in_batches_under_inference_mode_and_the_size_changes_nothing() -> None:
    stream, whole, parts = (
        two_tasks(),
        Parrot(4, lambda x, learned: int(x) % 2),
        Parrot(4, lambda x, learned: int(x) % 2),
    )
    expected = list(loop(stream, whole, Probe(every=5)))
    found = list(loop(stream, parts, Probe(every=5, batch_size=2)))
    assert [r for r in found if r.metric != "seconds"] == [r for r in expected if r.metric != "seconds"]
    start, steps, ends, final = [9], [4, 4, 9, 9], [9] * 2, [9]
    assert sorted(n for n, _ in whole.asked) == sorted(start + steps + ends + final)
    assert {n for n, _ in parts.asked} == {2, 1}


@pytest.mark.parametrize("task_aware", [False, True])
def test_the_task_is_told_only_where_the_stream_tells_it(task_aware: bool) -> None:
    learner = Parrot(4, lambda x, learned: 0)
    list(loop(two_tasks(task_aware), learner, Probe(every=5, prequential=True)))
    tasks = {n: {task for m, task in learner.asked if m == n} for n in (4, 10)}
    assert tasks == ({4: {0}, 10: {1}} if task_aware else {4: {None}, 10: {None}})


def test_arrivals_are_asked_in_batches_too() -> None:
    learner = Parrot(4, lambda x, learned: 0)
    list(loop(fixed([], [0], [Table([0] * 7)]), learner, Probe(prequential=True, batch_size=3)))
    assert learner.asked == [(3, None), (3, None), (1, None)]


SPEC = Spec((3,), 4)


def blobs() -> IndexStream:
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(48) // 12
    x = torch.randn(48, 3, generator=draws) + y[:, None]
    source = TensorSource(x, y, x[::3], y[::3])
    ids, tests = torch.arange(48), torch.arange(48, 64)
    probes = tuple(IndexRows(source, rows, source.y[rows]) for rows in torch.split(tests, 8))
    return IndexStream(SPEC, source, ids, y, ids // 24, ids // 24, probes, arrival_rows=6)


@pytest.mark.parametrize("probe", [
    Probe(every=1), Probe(every=7, max_rows=2), Probe(prequential=True, window=5), Probe(batch_size=1)
], ids=repr)  # fmt: skip
def test_measuring_changes_nothing(probe: Probe) -> None:
    def learner() -> SGDLearner:
        noisy = partial(mlp, hidden=(5,))
        strategies = {"er": ER(partial(Reservoir, 10), n_replay=3)}
        return SGDLearner(
            lambda spec: torch.nn.Sequential(torch.nn.Dropout(0.3), noisy(spec)),
            partial(torch.optim.SGD, lr=0.1),
            strategies,
            spec=blobs().spec,
            batch_size=4,
        )

    plain, measured = learner(), learner()

    def known(records: Iterator[Record]) -> dict[tuple[object, ...], float]:
        return {
            (r.rows_seen, r.step, r.task, r.at, r.probe, r.metric): r.value for r in records if r.metric != "seconds"
        }

    expected = known(loop(blobs(), plain, Probe()))
    found = known(loop(blobs(), measured, probe))
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(measured.network.state_dict()[name], tensor)


# ---------------------------------------------------------------- arrivals, predicted before they are learned


@pytest.mark.parametrize("window", [3, 4])
def test_prequential_accuracy_by_hand(window: int) -> None:
    """The learner answers 0, and 1 once it has learned 4 rows. Windows close at the first arrival that fills them."""
    labels = [[0, 1], [0, 0], [1, 1], [0, 1], [1, 1]]
    stream = fixed([], [0, 0, 0, 1, 1], [Table(y, first=2 * i) for i, y in enumerate(labels)])
    records = list(
        loop(stream, Parrot(4, lambda x, learned: int(learned >= 4)), Probe(prequential=True, window=window))
    )
    assert [(r.rows_seen, r.task, r.at) for r in records if r.metric == "prequential_rows"] == [
        (2, 0, "arrival"), (6, 0, "arrival"), (8, 1, "arrival")
    ]  # fmt: skip
    assert values(records, "prequential_rows") == [4, 2, 4]
    assert values(records, "prequential_accuracy") == [3 / 4, 1.0, 3 / 4]


def test_label_baselines_by_hand() -> None:
    """One row per arrival. Before any label both answer class 0; what was followed by nothing yet is repeated."""
    labels = [0, 1, 0, 1, 0, 1]
    last = [0, 0, 1, 0, 1, 0]
    blind = [0, 0, 1, 0, 0, 1]  # at the fourth row 0 was followed by 0 and by 1 once each, at the sixth by 1 twice
    found, baselines = [], LabelBaselines(2)
    for label in labels:
        found.append(baselines.answer())
        baselines.learn(label)
    assert found == list(zip(last, blind, strict=True))
    stream = fixed([], [0] * 6, [Table([y], first=i) for i, y in enumerate(labels)])
    records = list(loop(stream, Parrot(4, lambda x, learned: 3), Probe(prequential=True)))
    assert values(records, "prequential_accuracy") == [0.0]
    assert values(records, "last_label_accuracy") == [1 / 6]
    assert values(records, "blind_accuracy") == [3 / 6]


def test_the_blind_baseline_follows_the_most_common_successor() -> None:
    baselines = LabelBaselines(3)
    for label in (1, 2, 1, 2, 1, 0, 1):
        baselines.learn(label)
    assert baselines.answer() == (1, 2)
    baselines.learn(2)
    assert baselines.answer() == (2, 1)


def test_within_an_arrival_the_baselines_know_no_more_than_the_learner() -> None:
    """Arrivals of two: the last label is that of the last arrival, for both rows."""
    stream = fixed([], [0, 0, 0], [Table([1, 2]), Table([2, 1], first=2), Table([1, 1], first=4)])
    records = list(loop(stream, Parrot(4, lambda x, learned: 3), Probe(prequential=True)))
    assert values(records, "last_label_accuracy") == [(0 + 0 + 1 + 0 + 1 + 1) / 6]


def source(labels: list[int]) -> TensorSource:
    x = torch.arange(float(len(labels)))[:, None]
    return TensorSource(x, torch.tensor(labels), n_classes=4)


def online(labels: list[int], arrival_rows: int) -> IndexStream:
    n = len(labels)
    zeros = torch.zeros(n, dtype=torch.int64)
    return IndexStream(
        Spec((1,), 4), source(labels), torch.arange(n), torch.tensor(labels), zeros, zeros, (), arrival_rows
    )


def test_with_a_delay_answers_are_those_given_before_the_label_and_everything_learned_since() -> None:
    """Labels come 2 rows late, one row per arrival. The learner answers how many labels it was told, up to 3."""
    labels = [0, 0, 0, 1, 2, 1]
    stream = operators.delay(online(labels, 1), 2)
    learner = Parrot(4, lambda x, learned: min(learned, 3))
    records = list(loop(stream, learner, Probe(prequential=True)))
    answers = [0, 0, 0, 1, 2, 3]  # at row t, labels 0 .. t-3 are learned; the label told at t comes after the question
    assert learner.asked == [(1, None)] * 6
    assert values(records, "prequential_rows") == [6]
    assert values(records, "prequential_accuracy") == [sum(a == y for a, y in zip(answers, labels, strict=True)) / 6]
    last = [0, 0, 0, 0, 0, 0]  # the label of row t - 3: the baselines wait as the learner does
    assert values(records, "last_label_accuracy") == [sum(a == y for a, y in zip(last, labels, strict=True)) / 6]


def test_rows_whose_label_never_comes_are_asked_and_not_scored() -> None:
    labels = [0, 1, 2, 3, 0, 1]
    told = torch.tensor([True, False, True, False, False, True])
    stream = online(labels, 2)
    stream = IndexStream(stream.base, stream.inputs, stream.ids, stream.y, stream.task, stream.segment, (), 2, 0, told)
    learner = Parrot(4, lambda x, learned: int(x) % 4)
    records = list(loop(stream, learner, Probe(prequential=True)))
    assert learner.asked == [(2, None)] * 3
    assert learner.learned == 3
    assert values(records, "prequential_rows") == [3]
    assert values(records, "prequential_accuracy") == [1.0]


@pytest.mark.parametrize(("laps", "delay"), [(1, 0), (1, 1), (1, 3), (1, 9), (3, 0), (3, 2), (3, 7), (3, 14)])
@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("arrival_rows", [1, 2, 5])
def test_operators_together_score_what_a_plain_simulation_scores(
    laps: int, delay: int, missing: float, arrival_rows: int
) -> None:
    """Answers encode when they were given: right only if given by the learner of that moment."""
    labels = [0, 1, 2, 3, 1, 0, 2, 2, 3, 1]
    stream = operators.repeat(online(labels, arrival_rows), laps, seed=1)
    if missing:
        stream = operators.missing(stream, missing, seed=2)
    if delay:
        stream = operators.delay(stream, delay)
    records = list(loop(stream, Parrot(4, lambda x, learned: learned % 4), Probe(prequential=True, window=10**6)))

    told = torch.ones(len(stream.ids), dtype=torch.bool) if stream.labelled is None else stream.labelled
    learned, until, right, answers = 0, 0, [], list[int]()
    for start, stop in zip(stream.starts.tolist(), stream.starts.tolist()[1:], strict=False):
        answers += [learned % 4] * (stop - start)
        label_comes = [p for p in range(until, max(until, stop - delay)) if told[p]]
        right += [answers[p] == int(stream.y[p]) for p in label_comes]
        learned, until = learned + len(label_comes), max(until, stop - delay)
    right += [answers[p] == int(stream.y[p]) for p in range(until, len(told)) if told[p]]
    assert values(records, "prequential_rows") == [len(right)]
    assert values(records, "prequential_accuracy") == [pytest.approx(sum(right) / len(right))]


def test_labels_out_of_order_find_their_answers() -> None:
    """Three rows are asked; their labels come last first, between them the learner changes its answer."""
    arrivals = [Experience(0, Table([]), ask=Table([-1, -1, -1]))]
    arrivals += [Experience(i, Table([3 - i], first=3 - i)) for i in (1, 2, 3)]
    stream = Fixed(Spec((1,), 4), [], [0] * 4, arrivals)
    records = list(loop(stream, Parrot(4, lambda x, learned: 3 if learned else int(x)), Probe(prequential=True)))
    assert values(records, "prequential_accuracy") == [1.0]


def test_rows_told_without_a_question_are_asked_on_the_spot() -> None:
    """A stream where some labels are late and others are not."""
    arrivals = [
        Experience(0, Table([]), ask=Table([-1])),
        Experience(1, Table([2, 2], first=5)),
        Experience(2, Table([0], first=0)),
    ]
    stream = Fixed(Spec((1,), 4), [], [0] * 3, arrivals)
    learner = Parrot(4, lambda x, learned: 2 if x >= 5 else int(learned > 0))
    records = list(loop(stream, learner, Probe(prequential=True)))
    assert values(records, "prequential_rows") == [3]
    assert values(records, "prequential_accuracy") == [1.0]
    assert learner.asked == [(1, None), (2, None)]


def test_nothing_is_predicted_on_arrival_unless_asked_for() -> None:
    learner = Parrot(4, lambda x, learned: 0)
    records = list(loop(operators.delay(online([0, 1, 2], 1), 1), learner, Probe()))
    assert learner.asked == []
    assert "prequential_rows" not in {r.metric for r in records}


# ---------------------------------------------------------------- what it cost


def test_the_final_facts_are_cost_per_arriving_row_peak_bytes_and_seconds() -> None:
    learner = Parrot(4, lambda x, learned: 0)
    records = list(loop(two_tasks(), learner, Probe()))
    final = {r.metric: r for r in records if r.at == "final"}
    assert final["forward_equivalents_per_row"].value == 3.0
    assert final["peak_bytes"].value == 90, "at the end of task 0 it held more than after the stream"
    assert 0 < final["seconds"].value < 60
    assert all((r.rows_seen, r.step, r.task) == (20, 4, 1) for r in final.values())
    assert [r.at for r in records[-5:]] == ["final"] * 5


def test_evaluation_is_no_time_of_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only predictions move, by 7 seconds each, the run took no time."""
    now = [0.0]
    monkeypatch.setattr("continual.probe.perf_counter", lambda: now[0])

    def answer(x: float, learned: int) -> int:
        now[0] += 7
        return 0

    records = list(loop(two_tasks(), Parrot(4, answer), Probe(every=5, prequential=True)))
    assert now[0] > 0
    assert values(records, "seconds") == [0.0]


def test_an_interrupted_measure_says_nothing_it_has_not_measured() -> None:
    measure: Measure = Probe().of(two_tasks(), Parrot(4, lambda x, learned: 0))
    assert {r.metric for r in measure.final()} == {
        "calibration_error", "forward_equivalents_per_row", "peak_bytes", "seconds"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["every", "max_rows", "window", "batch_size"])
def test_values_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"probe.{name}=0 must be at least 1"):
        replace(Probe(), **{name: 0})  # type: ignore[arg-type]


def test_the_rows_of_a_stream_are_those_whose_labels_are_told() -> None:
    whole = online([0, 1, 2, 0, 1, 2], 2)
    for stream in (whole, operators.delay(whole, 3), replace(whole, labelled=torch.tensor([True, False] * 3))):
        assert stream.n_rows == sum(len(experience.rows) for experience in stream)
