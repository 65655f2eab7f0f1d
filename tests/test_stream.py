"""When what arrives, is asked and is told: the stream of index tensors, row by row, and learners that follow it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from continual.contract import STREAM_LAWS
from continual.contract.streams import StreamLaw
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.learners.joint import Joint
from continual.learners.slda import SLDA
from continual.loop import loop
from continual.memory import ClassBalanced, Reservoir
from continual.models import linear
from continual.probe import Probe
from continual.reach import reach
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.er_ace import ERACE
from continual.types import Learner, Rows, Spec
from scenarios.sources import TensorSource
from scenarios.stream import IndexRows, IndexStream

Event = tuple[list[int] | None, list[int]]
"""Ids asked about (None: nothing is asked) and ids whose labels are told in one experience."""


def made(
    sizes: tuple[int, ...] = (4, 3),
    arrival_rows: int | None = None,
    delay: int = 0,
    labelled: Tensor | None = None,
    task_aware: bool = False,
) -> IndexStream:
    """Row i holds (i, i), task t comes t-th and holds classes 2 t and 2 t + 1 in turns; probes repeat that behind."""
    task = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    n = len(task)
    y, x = 2 * task + torch.arange(n) % 2, torch.arange(2.0 * n)[:, None].expand(-1, 2).contiguous()
    source = TensorSource(x[:n], y, x[n:], y, n_classes=2 * len(sizes))
    return IndexStream(
        base=Spec((2,), 2 * len(sizes), task_aware=task_aware),
        inputs=source,
        ids=torch.arange(n),
        y=y,
        task=task,
        segment=task,
        probes=tuple(IndexRows(source, n + rows, y[rows]) for rows in torch.split(torch.arange(n), list(sizes))),
        arrival_rows=arrival_rows,
        delay=delay,
        labelled=labelled,
    )


def ids(rows: Rows) -> list[int]:
    return rows.take(torch.arange(len(rows))).extra["id"].tolist()


def labels(rows: Rows) -> list[int]:
    return rows.take(torch.arange(len(rows))).y.tolist()


def events(stream: IndexStream) -> list[Event]:
    return [(None if e.ask is None else ids(e.ask), ids(e.rows)) for e in stream]


# ---------------------------------------------------------------- what arrives when


@pytest.mark.parametrize(
    ("arrival_rows", "expected"),
    [
        (None, [[0, 1, 2, 3], [4, 5, 6]]),
        (1, [[0], [1], [2], [3], [4], [5], [6]]),
        (3, [[0, 1, 2], [3], [4, 5, 6]]),  # no arrival reaches over a boundary
        (4, [[0, 1, 2, 3], [4, 5, 6]]),
        (100, [[0, 1, 2, 3], [4, 5, 6]]),
    ],
)
def test_tasks_arrive_whole_or_in_pieces(arrival_rows: int | None, expected: list[list[int]]) -> None:
    stream = made((4, 3), arrival_rows)
    assert events(stream) == [(None, rows) for rows in expected]
    assert [e.index for e in stream] == list(range(len(expected)))
    assert stream.origins == [0 if rows[0] < 4 else 1 for rows in expected]
    assert stream.spec.n_experiences == len(stream) == len(expected)
    assert stream.spec.smallest == min(map(len, expected))
    assert stream.spec.boundaries is (arrival_rows is None)


def test_segments_need_no_numbers_without_gaps() -> None:
    stream = replace(made((2, 3, 2)), segment=torch.tensor([3, 3, 7, 7, 7, 9, 9]))
    assert stream.position.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert stream.sizes.tolist() == [2, 3, 2]
    assert events(stream) == [(None, [0, 1]), (None, [2, 3, 4]), (None, [5, 6])]


def test_the_origin_is_the_task_of_most_rows_of_the_segment() -> None:
    stream = replace(made((4, 4)), task=torch.tensor([1, 0, 0, 0, 0, 1, 1, 1]))
    assert stream.origins == [0, 1]
    assert replace(stream, arrival_rows=2).origins == [
        0,
        0,
        1,
        1,
    ]  # also of the arrivals at the boundary, so that it is crossed once


def test_a_stream_is_read_again_from_its_start_also_while_it_is_being_read() -> None:
    stream = made((4, 3), arrival_rows=2, delay=1)
    first = iter(stream)
    next(first)
    assert events(stream) == [([0, 1], [0]), ([2, 3], [1, 2]), ([4, 5], [3, 4]), ([6], [5]), (None, [6])]
    assert next(first).index == 1


# ---------------------------------------------------------------- labels that come late or never


def test_a_label_is_told_when_delay_more_rows_have_arrived() -> None:
    assert events(made((3, 1), arrival_rows=1, delay=2)) == [
        ([0], []),
        ([1], []),
        ([2], [0]),  # row 0 + 2
        ([3], [1]),
        (None, [2, 3]),  # after the last row, all that is owed
    ]


def test_delay_by_the_rows_of_pieces() -> None:
    stream = made((4, 3), arrival_rows=3, delay=2)
    assert events(stream) == [([0, 1, 2], [0]), ([3], [1]), ([4, 5, 6], [2, 3, 4]), (None, [5, 6])]
    assert stream.origins == [0, 0, 1, 1]
    assert (stream.spec.n_experiences, stream.spec.smallest) == (4, 1)
    assert [labels(e.ask) for e in stream if e.ask is not None] == [[-1, -1, -1], [-1], [-1, -1, -1]]
    assert [labels(e.rows) for e in stream] == [[0], [1], [0, 1, 2], [3, 2]]


def test_some_labels_never_come() -> None:
    stream = made((4, 3), labelled=torch.tensor([True, False, False, True, False, True, False]))
    assert events(stream) == [([0, 1, 2, 3], [0, 3]), ([4, 5, 6], [5])]
    assert [labels(e.rows) for e in stream] == [[0, 1], [3]]
    assert stream.spec.smallest == 1
    assert stream.spec.boundaries


def test_missing_and_late_labels_together() -> None:
    stream = made((3, 2), arrival_rows=1, delay=1, labelled=torch.tensor([False, True, True, False, True]))
    assert events(stream) == [([0], []), ([1], []), ([2], [1]), ([3], [2]), ([4], []), (None, [4])]
    assert stream.spec.smallest == 0


def when_told(told: list[Event]) -> dict[int, int]:
    return {row: index for index, (_, rows) in enumerate(told) for row in rows}


@settings(max_examples=50)
@given(data=st.data())
def test_every_label_is_told_once_in_order_and_as_early_as_the_delay_allows(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=4)))
    n = sum(sizes)
    delay = data.draw(st.integers(0, n - 1))
    arrival_rows = data.draw(st.integers(1, 8))
    kept = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n))
    labelled = None if kept is None else torch.tensor(kept)
    try:
        stream = made(sizes, arrival_rows, delay, labelled)
    except UserError:  # a task without a label
        assert labelled is not None
        assert not all(part.any() for part in torch.split(labelled, list(sizes)))
        return
    told, wanted = events(stream), [i for i in range(n) if labelled is None or labelled[i]]
    assert [row for _, rows in told for row in rows] == wanted
    asked = [row for rows, _ in told for row in rows or []]
    assert asked == (list(range(n)) if delay or labelled is not None else [])
    arrived = {row: e for e, start in enumerate(stream.starts[:-1]) for row in range(start, int(stream.starts[e + 1]))}
    assert when_told(told) == {row: arrived.get(row + delay, len(told) - 1) for row in wanted}
    assert stream.spec.smallest == min(len(rows) for _, rows in told)
    assert len(stream.origins) == len(told)


# ---------------------------------------------------------------- who sees what


def test_task_labels_come_only_where_the_spec_declares_them() -> None:
    assert [e.task for e in made((4, 3), arrival_rows=2, task_aware=True)] == [0, 0, 1, 1]
    assert [e.task for e in made((4, 3), arrival_rows=2)] == [None] * 4
    assert made((4, 3), arrival_rows=2).origins == [0, 0, 1, 1]


LEARNERS: dict[str, Callable[[Spec], Learner]] = {
    "none": lambda spec: sgd(spec),
    "er": lambda spec: sgd(spec, er=ER(partial(Reservoir, capacity=4), n_replay=2)),
    "er by index": lambda spec: sgd(spec, er=ER(partial(Reservoir, capacity=4, store="indices"), n_replay=2)),
    "er_ace+derpp": lambda spec: sgd(
        spec,
        er_ace=ERACE(partial(ClassBalanced, capacity=4), n_replay=2),
        derpp=DERPP(partial(Reservoir, capacity=4), n_replay=2),
    ),
    "joint": lambda spec: Joint(linear, partial(torch.optim.SGD, lr=0.1), spec=spec, batch_size=2),
    "slda": lambda spec: SLDA(spec=spec),
}


def sgd(spec: Spec, **strategies: object) -> Learner:
    return SGDLearner(linear, partial(torch.optim.SGD, lr=0.1), strategies, spec=spec, batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_refuses_a_task_label_where_the_stream_hides_them(name: str) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match="predict got task=0, and this stream hides task labels"):
        LEARNERS[name](made().spec).predict(x, 0)
    assert LEARNERS[name](made(task_aware=True).spec).predict(x, 0).shape == (1, 4)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_follow_experiences_without_a_labelled_row(name: str) -> None:
    stream = made((5, 4), arrival_rows=2, delay=5, labelled=torch.tensor([1, 1, 0, 0, 1, 1, 0, 1, 1]).bool())
    assert [len(e.rows) for e in stream] == [0, 0, 0, 2, 0, 4]
    learner = LEARNERS[name](stream.spec)
    records = list(loop(stream, learner, Probe(every=1, prequential=True, window=1)))
    assert records[-1].rows_seen == 6
    assert sum(r.value for r in records if r.metric == "prequential_rows") == 6
    assert {r.metric for r in records if r.at == "end"} >= {"accuracy"}
    assert [r.task for r in records if r.at == "end" and r.metric == "accuracy"] == [0, 0, 1, 1]
    assert learner.predict(torch.zeros(1, 2)).isfinite().all()


def test_answers_are_scored_when_labels_come() -> None:
    """A learner that always answers class 0, on the labels 0, 1, 0, 1: right, wrong, right, wrong, in that order."""

    class Zero(SLDA):
        def predict(self, x: Tensor, task: int | None = None) -> Tensor:
            return torch.eye(2)[torch.zeros(len(x), dtype=torch.int64)]

    stream = made((4,), arrival_rows=1, delay=2)
    records = list(loop(stream, Zero(spec=stream.spec), Probe(prequential=True, window=1)))
    assert [r.value for r in records if r.metric == "prequential_accuracy"] == [1.0, 0.0, 0.5]  # the last two together


# ---------------------------------------------------------------- rows


def test_taken_rows_are_fresh_and_can_be_fetched_again_by_id() -> None:
    stream = made((4, 3))
    experience = next(iter(stream))
    batch = experience.rows.take(torch.tensor([2, 0]))
    assert batch.x.tolist() == [[2.0, 2.0], [0.0, 0.0]]
    assert (batch.y.tolist(), batch.weight.tolist(), batch.arrived) == ([0, 0], [0.5, 0.5], 2)
    for tensor in (batch.x, batch.y, batch.extra["id"]):
        tensor.fill_(9)
    assert (ids(experience.rows), labels(experience.rows)) == ([0, 1, 2, 3], [0, 1, 0, 1])
    assert experience.rows.fetch(torch.tensor([6, 6])).tolist() == [[6.0, 6.0], [6.0, 6.0]]
    assert len(experience.rows.take(torch.arange(0))) == 0


def test_experiences_are_views_of_the_streams_columns() -> None:
    stream = made((40, 30), arrival_rows=1)
    stream.spec  # noqa: B018
    own = reach(stream).storages
    assert reach(list(stream)).storages.keys() <= own.keys()


@pytest.mark.parametrize("law", STREAM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "make_stream",
    [
        partial(made, (4, 3)),
        partial(made, (4, 3), task_aware=True),
        partial(made, (4, 3), arrival_rows=3, task_aware=True),
        partial(made, (4, 3), arrival_rows=1, delay=3, labelled=torch.tensor([0, 1, 1, 0, 0, 1, 0]).bool()),
    ],
    ids=["whole", "task-aware", "online", "late and missing"],
)
def test_laws(law: StreamLaw, make_stream: Callable[[], IndexStream]) -> None:
    law(make_stream)


# ---------------------------------------------------------------- digests and errors


def test_the_digest_names_data_order_and_what_is_told() -> None:
    stream = made((4, 3), arrival_rows=2)
    n, probe = len(stream.ids), stream.probes[0]
    other = TensorSource(torch.ones(14, 2), torch.arange(14) % 4, n_classes=4)
    changes = {
        "base": replace(stream.base, task_aware=True),
        "inputs": other,
        "ids": stream.ids.flip(0),
        "y": stream.y.flip(0),
        "task": stream.task.flip(0),
        "segment": torch.zeros(n, dtype=torch.int64),
        "probes": (probe, probe),
        "arrival_rows": 3,
        "delay": 1,
        "labelled": torch.ones(n, dtype=torch.bool),
    }
    assert changes.keys() == IndexStream.__dataclass_fields__.keys()
    digests = {stream.digest(), *(replace(stream, **{name: value}).digest() for name, value in changes.items())}
    assert len(digests) == 1 + len(changes)
    assert made((4, 3), arrival_rows=2).digest() == stream.digest()
    first, both = torch.tensor([1]), torch.tensor([1, 0])
    two = (IndexRows(probe.inputs, first, first - 1), IndexRows(probe.inputs, first, first - 1))
    one = (IndexRows(probe.inputs, both, both),)  # the same numbers in the same order
    assert replace(stream, probes=one).digest() != replace(stream, probes=two).digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_rows": 0}, "scenario.arrival_rows=0 must be at least 1, or null for whole tasks"),
        ({"delay": 7}, "operator.delay.rows=7 must be below the 7 rows of the stream"),
        ({"y": torch.tensor([0, 1, 2, 3, 4, 0, 0])}, r"label 4 is out of range: labels must be in \[0, 4\)"),
        ({"y": torch.tensor([0, 1, 2, 3, -1, 0, 0])}, r"label -1 is out of range: labels must be in \[0, 4\)"),
        ({"ids": torch.arange(0)}, "the stream has no rows"),
        (
            {"labelled": torch.tensor([True] * 4 + [False] * 3)},
            "none of the 3 rows of stretch 2 of 2 between two boundaries has a label; lower operator.missing.rate",
        ),
    ],
)
def test_impossible_streams_are_refused_when_they_are_made(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(made((4, 3)), **changes)  # type: ignore[arg-type]
