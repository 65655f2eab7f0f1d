"""Probes that share batches, and a schedule whose cost does not grow with the number of tasks."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import continual
from continual import config as configs
from continual import ledger
from continual.answers import GROUP, Asker, labels_of, shares
from continual.batches import Joined, TensorRows, joined
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.loop import loop, moments
from continual.memory import Reservoir
from continual.metrics import accuracy_matrix, forgetting_per_task, summary
from continual.models import mlp
from continual.probe import Measure, Probe
from continual.report.show import matrix
from continual.strategies.er import ER
from continual.timeline import evaluation_period, read_timeline
from continual.track import Curves, moments_of
from continual.types import Batch, Record, Rows
from scenarios.sources import TensorSource
from scenarios.stream import IndexStream
from scenarios.transformed import permuted

N_TASKS = 12


def tasks(n_tasks: int = N_TASKS, rows: int = 6, **options: Any) -> IndexStream:
    """Each task sees 8 inputs of 4 components in another order; 3 classes, 5 test rows."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=draws), torch.arange(40) % 3
    return permuted(TensorSource(x[:35], y[:35], x[35:], y[35:]), n_tasks, rows_per_task=rows, **options)


def learner(stream: IndexStream) -> SGDLearner:
    strategies = {"er": ER(partial(Reservoir, 10), n_replay=2)}
    return SGDLearner(
        partial(mlp, hidden=(4,)), partial(torch.optim.SGD, lr=0.1), strategies, spec=stream.spec, batch_size=3
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each forward pass that answers a probe."""
    found: list[int] = []
    original = SGDLearner.predict

    def predict(self: SGDLearner, x: Tensor, task: int | None = None) -> Tensor:
        found.append(len(x))
        return original(self, x, task)

    monkeypatch.setattr(SGDLearner, "predict", predict)
    return found


def ran(probe: Probe, **options: Any) -> list[Record]:
    stream = tasks(**options)
    return [record for record in loop(stream, learner(stream), probe) if record.metric != "seconds"]


# ---------------------------------------------------------------- probes that share batches


@pytest.mark.parametrize(("batch_size", "n_forwards"), [(1000, 1), (60, 1), (25, 3), (7, 9), (5, 12)])
def test_probes_are_answered_in_shared_batches(asked: list[int], batch_size: int, n_forwards: int) -> None:
    stream = tasks()
    Measure(Probe(batch_size=batch_size), stream, asking := learner(stream))
    found = dict(collect(Asker(stream, asking, batch_size)))
    assert len(asked) == n_forwards
    assert sum(asked) == 5 * N_TASKS
    assert list(found) == list(range(N_TASKS))
    for probe, (logits, y) in found.items():
        rows = stream.probes[probe]
        assert torch.equal(y, rows.y)
        torch.testing.assert_close(logits, asking.predict(rows.take(torch.arange(5)).x), atol=1e-6, rtol=0)


def collect(asker: Asker, at_most: int | None = None) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    for group, logits, y in asker.answers(range(len(asker.rows)), at_most):
        pieces = [torch.tensor_split(t, len(group)) for t in (logits, y)]
        yield from zip(group, zip(*pieces, strict=True), strict=True)


def test_a_group_is_a_few_batches_so_that_answers_do_not_pile_up(asked: list[int]) -> None:
    stream = tasks()
    groups = [group for group, _, _ in Asker(stream, learner(stream), 2).answers(range(N_TASKS))]
    assert groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert GROUP * 2 <= 4 * 5
    assert asked == [2] * 30


def test_tasks_that_are_told_are_asked_about_one_by_one(asked: list[int]) -> None:
    stream = tasks(task_aware=True)
    groups = [group for group, _, _ in Asker(stream, learner(stream), 1000).answers(range(N_TASKS))]
    assert groups == [[task] for task in range(N_TASKS)]
    assert asked == [5] * N_TASKS


def test_of_each_probe_at_most_so_many_rows(asked: list[int]) -> None:
    stream = tasks()
    asking = learner(stream)
    found = dict(collect(Asker(stream, asking, 1000), at_most=2))
    assert asked == [2 * N_TASKS]
    for probe, (logits, y) in found.items():
        assert torch.equal(y, stream.probes[probe].y[[0, 2]])
        x = stream.probes[probe].take(torch.tensor([0, 2])).x
        torch.testing.assert_close(logits, asking.predict(x), atol=1e-6, rtol=0)


def test_an_end_is_one_forward_pass_over_all_probes(asked: list[int]) -> None:
    ran(Probe())
    assert Counter(asked) == {5 * N_TASKS: 1 + N_TASKS + 1}  # before training, at each end, after the stream


class Counted(TensorSource):
    """Counts the rows that are read."""

    n_read = 0

    def fetch(self, ids: Tensor) -> Tensor:
        self.n_read += len(ids)
        return super().fetch(ids)


def in_memory(resident: bool) -> tuple[Counted, IndexStream]:
    from scenarios.split import split

    x, y = torch.arange(40.0)[:, None], torch.arange(40) % 4
    source = Counted(x[:20], y[:20], x[20:], y[20:])
    stream = split(source, 2)
    if not resident:
        source.fetch, x = partial(Counted.fetch, source), source.x  # type: ignore[method-assign]
        del source.x
        source.fetch = lambda ids: (setattr(source, "n_read", source.n_read + len(ids)), x[ids])[1]  # type: ignore
    return source, stream


@pytest.mark.parametrize(("resident", "times"), [(True, 1), (False, 3)])
def test_rows_in_memory_are_gathered_once_and_others_when_they_are_asked_about(resident: bool, times: int) -> None:
    source, stream = in_memory(resident)
    asker = Asker(stream, learner(stream), 7)
    first, *others = [list(asker.answers([0, 1])) for _ in range(3)]
    assert source.n_read == 20 * times
    for again in others:
        for (one, *left), (two, *right) in zip(first, again, strict=True):
            assert one == two
            assert all(map(torch.equal, left, right))


def test_rows_in_memory_that_are_too_many_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continual.answers.KEPT", 79)  # 20 rows of 4 bytes
    source, stream = in_memory(True)
    asker = Asker(stream, learner(stream), 7)
    assert [len(list(asker.answers([0, 1]))) for _ in range(2)] == [1, 1]
    assert source.n_read == 40
    assert asker.kept == {}


def test_a_part_of_the_probes_is_never_kept() -> None:
    _, stream = in_memory(True)
    asker = Asker(stream, learner(stream), 7)
    list(asker.answers([1]))
    list(asker.answers([0, 1], at_most=3))
    assert asker.kept == {}


def test_labels_that_lie_in_a_column_are_not_read() -> None:
    source, stream = in_memory(True)
    assert torch.equal(labels_of(stream.probes[0]), stream.probes[0].y)
    Measure(Probe(), stream, learner(stream))
    assert source.n_read == 0


class Plain:
    """Rows that can only be taken, and count how often, and what they were told to expect."""

    def __init__(self, first: int, n: int, ahead: bool = False) -> None:
        self.first, self.n, self.takes, self.expected = first, n, 0, list[list[int]]()
        if ahead:
            self.expect = lambda indices: self.expected.append(indices.tolist())

    def __len__(self) -> int:
        return self.n

    def take(self, indices: Tensor) -> Batch:
        self.takes, ids, n = self.takes + 1, indices + self.first, len(indices)
        assert bool((indices < self.n).all())
        return Batch(ids[:, None].float(), ids % 3, torch.full((n,), 1 / n), n, {"id": ids})

    def fetch(self, ids: Tensor) -> Tensor:
        return ids[:, None].float()


def test_rows_one_after_another() -> None:
    pieces = [Plain(10, 3), Plain(20, 0), Plain(30, 4)]
    rows = joined(pieces)
    assert isinstance(rows, Joined)
    assert len(rows) == 7
    batch = rows.take(torch.tensor([6, 0, 2, 3, 1]))
    assert batch.x[:, 0].tolist() == batch.extra["id"].tolist() == [33, 10, 12, 30, 11]
    assert batch.y.tolist() == [0, 1, 0, 0, 2]
    assert batch.arrived == len(batch) == 5
    assert float(batch.weight.sum()) == pytest.approx(1)
    assert rows.fetch(torch.tensor([4])).tolist() == [[4.0]]
    assert joined(pieces[:1]) is pieces[0]


def test_rows_one_after_another_read_ahead_if_a_part_of_them_can() -> None:
    ahead = Plain(20, 4, ahead=True)
    assert joined([Plain(0, 2), Plain(4, 2)]).expect is None  # type: ignore[attr-defined]
    joined([Plain(0, 2), ahead]).expect(torch.tensor([1, 2, 5]))  # type: ignore[attr-defined]
    assert ahead.expected == [[0, 3]]


def test_rows_of_one_source_are_joined_by_their_indices() -> None:
    stream = tasks()
    rows = joined(stream.probes[:3])
    assert type(rows) is type(stream.probes[0])
    assert torch.equal(rows.take(torch.arange(5, 10)).x, stream.probes[1].take(torch.arange(5)).x)
    other: list[Rows] = [*stream.probes[:2], TensorRows(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))]
    assert isinstance(joined(other), Joined)
    assert len(joined(other)) == 12
    assert isinstance(joined([stream.probes[0], tasks().probes[1]]), Joined)  # of another source


def test_shares_by_hand() -> None:
    assert shares(torch.tensor([True, False, True, True, False]), [1, 2, 2]) == [1.0, 0.5, 0.5]
    assert shares(torch.ones(300, dtype=torch.bool), [300]) == [1.0]  # more than fits a byte
    assert shares(torch.zeros(0, dtype=torch.bool), []) == []


# ---------------------------------------------------------------- tasks that take turns


def ends(records: Sequence[Record], metric: str = "accuracy") -> list[list[int | None]]:
    """The probes that were measured at each end of a task."""
    found = [[r.probe for r in moment if r.metric == metric] for moment in moments_of(records) if moment[0].at == "end"]
    return found


def test_the_newest_the_next_and_old_ones_in_turn_by_hand() -> None:
    assert ends(ran(Probe(n_old=2), n_tasks=9)) == [
        [0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [0, 3, 4, 5], [1, 2, 5, 6], [3, 4, 6, 7], [5, 6, 7, 8],
        list(range(9)),
    ]  # fmt: skip


def test_all_at_chosen_ends_and_at_the_last() -> None:
    whole = list(range(N_TASKS))
    measured = ends(ran(Probe(n_old=0, all_every=5)))
    assert [i for i, probes in enumerate(measured, start=1) if probes == whole] == [5, 10, 12]
    assert measured[5] == [5, 6]


def test_before_training_and_after_the_stream_all_are_measured() -> None:
    records = ran(Probe(n_old=1))
    whole = list(range(N_TASKS))
    assert [r.probe for r in records if r.at == "start" and r.metric == "accuracy"] == whole
    assert [r.probe for r in records if r.metric == "calibration_error"] == whole


def test_old_tasks_have_their_own_interval() -> None:
    """Tasks of 6 rows in updates of 3. After the start old ones are due every 12 rows, the current one every 3."""
    records = ran(Probe(every=3, n_old=1, old_every=12), n_tasks=5)
    seen = [(r.rows_seen, r.at, r.probe) for r in records if r.metric == "accuracy" and r.at in ("step", "end")]
    own = [(rows, at, probe) for rows, at, probe in seen if at == "step" and probe == (rows - 1) // 6]
    assert len(own) == 10
    old = [(rows, at, probe) for rows, at, probe in seen if probe < (rows - 1) // 6 and rows < 30]
    assert [(rows, probe) for rows, _, probe in old] == [(12, 0), (24, 1)]


@pytest.mark.parametrize("n_old", [0, 1, 3, 50])
def test_every_old_task_has_its_turn(n_old: int) -> None:
    """Between two turns of a task lie no more moments than it takes to go once through all."""
    measured = ends(ran(Probe(n_old=n_old)))[:-1]
    for k, probes in enumerate(measured):
        old = [probe for probe in probes if probe is not None and probe < k]
        assert len(old) == min(n_old, k)
        assert len(set(probes)) == len(probes)
    if n_old == 3:
        assert all(any(task in probes for probes in measured[5:]) for task in range(9))


def test_what_is_measured_equals_what_is_measured_of_all() -> None:
    def known(records: list[Record]) -> dict[tuple[object, ...], float]:
        names = {"accuracy", "accuracy_seen", "calibration_error", "class_accuracy", "weight_norm", "peak_bytes"}
        return {(r.rows_seen, r.at, r.probe, r.metric): r.value for r in records if r.metric in names}

    every, some = known(ran(Probe(every=3))), known(ran(Probe(every=3, n_old=2, all_every=4)))
    assert some.keys() < every.keys()
    assert some == pytest.approx({key: every[key] for key in some}, abs=1e-6)


def test_flips_need_the_end_before() -> None:
    every, some = ran(Probe()), ran(Probe(n_old=1, all_every=4))
    flips = [{r.rows_seen: r.value for r in records if r.metric == "negative_flips" and r.probe == 0}
             for records in (every, some)]  # fmt: skip
    assert flips[1].items() <= flips[0].items()
    measured = ends(some)
    both = [6 * (k + 1) for k in range(1, N_TASKS) if 0 in measured[k] and 0 in measured[k - 1]]
    assert list(flips[1]) == both
    assert 0 < len(both) < N_TASKS - 1


def test_the_classes_are_counted_where_all_probes_are() -> None:
    whole = [{0, 1, 2} if k in (5, 10, 12) else set() for k in range(1, N_TASKS + 1)]
    assert [set(found) for found in ends(ran(Probe(n_old=1, all_every=5)), "class_accuracy")] == whole


def test_an_end_costs_the_same_at_the_last_task_as_at_the_first(asked: list[int]) -> None:
    ran(Probe(n_old=2, batch_size=10), n_tasks=30)
    before, after = 15, 2 * 15  # forward passes over all 30 probes: before training; the last end, after the stream
    at_ends = asked[before:-after]
    assert len(at_ends) == 1 + 2 + 27 * 2  # of 10, 15 and then 20 rows
    assert sum(at_ends) == 10 + 15 + 27 * 20


def test_what_is_held_does_not_grow_with_the_tasks() -> None:
    stream = tasks(n_tasks=40)
    probe = Probe(n_old=2)
    measure, sizes = probe.of(stream, asking := learner(stream)), list[int]()
    for records in moments(stream, asking, measure):
        if records and records[0].at == "end":
            sizes.append(len(measure.right))
    assert len(measure.measured) == 40, "the last end"
    assert max(sizes[:-1]) == 20
    assert measure.asker.kept == {}


def test_a_run_goes_on_in_the_same_turn() -> None:
    """Stored at every pause and loaded into a fresh evaluator and learner there."""
    expected = ran(Probe(every=3, n_old=2, old_every=9, all_every=5))
    probe, stream = Probe(every=3, n_old=2, old_every=9, all_every=5), tasks()
    asking = learner(stream)
    measure, found = probe.of(stream, asking), list[Record]()
    for _ in range(1000):
        records = next(moments(stream, asking, measure), None)
        if records is None:
            break
        found += [record for record in records if record.metric != "seconds"]
        if records and records[0].at == "final":
            break
        state = (asking.state_dict(), measure.state_dict())
        asking = learner(stream)
        measure = probe.of(stream, asking)
        asking.load_state_dict(state[0])
        measure.load_state_dict(state[1])
    assert found == expected


@pytest.mark.parametrize("probe", [Probe(n_old=0), Probe(n_old=3, all_every=2), Probe(every=3, n_old=1, old_every=5)],
                         ids=repr)  # fmt: skip
def test_taking_turns_changes_nothing_of_what_is_learned(probe: Probe) -> None:
    stream = tasks()
    plain, measured = learner(stream), learner(stream)
    list(loop(stream, plain, Probe()))
    list(loop(stream, measured, probe))
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(measured.network.state_dict()[name], tensor)


@pytest.mark.parametrize(("options", "told"), [
    ({"n_old": -1}, "probe.n_old=-1 must be at least 0"),
    ({"n_old": 1, "old_every": 0}, "probe.old_every=0 must be at least 1"),
    ({"n_old": 1, "all_every": 0}, "probe.all_every=0 must be at least 1"),
    ({"old_every": 5}, "probe.old_every=5 does nothing where all tasks are measured; set probe.n_old"),
    ({"all_every": 5}, "probe.all_every=5 does nothing where all tasks are measured; set probe.n_old"),
])  # fmt: skip
def test_a_schedule_that_makes_no_sense_is_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Probe(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- metrics of what was measured


def test_metrics_of_tasks_that_took_turns() -> None:
    """Those of single cells and of the last end are the same; an extreme over fewer ends is no larger; means over all
    tasks at every end are absent."""
    every, some = ran(Probe()), ran(Probe(n_old=2))
    expected, found = summary(every), summary(some)
    same = {
        *("average_accuracy", "stream_accuracy", "backward_transfer", "forward_transfer", "probe_rows"),
        *("calibration_error", "weight_norm", "effective_rank", "peak_bytes", "forward_equivalents_per_row"),
    }
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, abs=1e-6)
    gone = {"average_incremental_accuracy", "anytime_accuracy", "negative_flips", "relative_negative_flips"}
    assert gone <= expected.keys()
    assert not gone & found.keys()
    for name in ("forgetting", "cumulative_forgetting"):
        assert found[name] <= expected[name] + 1e-6
    assert found["min_accuracy"] >= expected["min_accuracy"] - 1e-6
    assert found["evaluation_period"] > expected["evaluation_period"] == 6


def test_forgetting_where_not_all_was_measured_by_hand() -> None:
    """Task 0: .8, then not measured, .9, at the end .5. Task 1: .6 when it was learned, .7 at the end."""
    cells = {1: {0: 0.8}, 2: {1: 0.6}, 3: {0: 0.9, 2: 0.4}, 4: {0: 0.5, 1: 0.7, 2: 0.1, 3: 0.2}}
    records = [Record(10 * k, k, k - 1, "end", probe, "accuracy", value)
               for k, row in cells.items() for probe, value in row.items()]  # fmt: skip
    assert forgetting_per_task(accuracy_matrix(records)) == pytest.approx({0: 0.4, 1: -0.1, 2: 0.3})
    assert evaluation_period(read_timeline(records)) == 20  # task 0 from 10 to 30, task 1 from 20 to 40


def test_a_chart_of_the_mean_over_seen_tasks_shows_the_moments_at_which_all_were_measured() -> None:
    curves = Curves(N_TASKS)
    found = [
        ("seen_accuracy" in curves(moment), moment[0].at) for moment in moments_of(ran(Probe(n_old=1, all_every=5)))
    ]
    shown = [told for told, at in found if at == "end"]
    assert shown == [True, True, *[False] * 2, True, *[False] * 4, True, False, True]


def test_a_long_matrix_is_cut_in_both_directions() -> None:
    stream = tasks(n_tasks=70, rows=3)
    text = matrix(accuracy_matrix(loop(stream, learner(stream), Probe(n_old=1))))
    lines = text.splitlines()
    assert len(lines) < 50
    assert lines[3].split()[0] == "before"
    assert lines[-1].split()[:2] == ["after", "69"]
    assert [set(line.split()) for line in lines if line.startswith("…") or line.strip().startswith("…")] == [{"…"}]


def test_a_run_that_takes_turns_goes_on_and_is_shown(tmp_path: Path) -> None:
    """From config to the end; the best snapshot is of an end at which all probes were measured."""
    words = (
        *("scenario=permuted", "scenario/source=gaussian", "scenario.n_tasks=8", "probe=rotating", "probe.n_old=1"),
        *("probe.all_every=4", "strategy=er", "model.hidden=[4]", "track=none", "snapshot.share=null"),
    )
    done = continual.run(*words, f"output={tmp_path}")
    data = ledger.read(done.path)
    scored = [saved.mark.records for saved in data.saved if saved.score is not None]
    assert len(scored) == 2
    whole = [place for place, r in enumerate(data.records) if r.at == "end" and r.metric == "class_accuracy"]
    assert scored == [whole[3] + 1, whole[-1] + 1]
    assert done.metrics["average_accuracy"] > 0
    assert not any(map(math.isnan, done.metrics.values()))


# ---------------------------------------------------------------- long streams


def test_a_stream_of_a_thousand_tasks_holds_a_number_per_row(figure: Callable[[str], None]) -> None:
    """Nothing of the data is copied: per row its id, label, task and segment; per test row its id."""
    few, many = (tasks(n_tasks=n) for n in (10, 1000))
    for stream, n in ((few, 10), (many, 1000)):
        assert stream.inputs.source.x.numel() == 160  # type: ignore[attr-defined]
        columns = [stream.ids, stream.y, stream.task]
        assert sum(column.numel() * column.element_size() for column in columns) == n * 6 * (
            8 + 1 + (1 if n == 10 else 2)
        )  # type: ignore
        assert stream.segment is stream.task
        assert len({rows.y.data_ptr() for rows in stream.probes}) == 1
    assert len(list(many)) == 1000


@pytest.mark.parametrize("kind", ["class", "task"])
def test_a_part_of_the_rows_is_asked_about_also_once_all_of_them_were(kind: str) -> None:
    options = ("track=none", "strategy=none", f"scenario.kind={kind}", "scenario.rows_per_task=60", "model=linear")
    config = configs.compose(*options)
    stream = configs.build_stream(config)
    part = loop(stream, configs.build_learner(config, stream.spec), Probe(every=20, max_rows=10))
    whole = loop(stream, configs.build_learner(config, stream.spec), Probe(every=20))
    pairs = [(a, b) for a, b in zip(part, whole, strict=True) if a.metric == "accuracy"]
    assert all(0 <= a.value <= 1 for a, _ in pairs)
    within = [(a.value, b.value) for a, b in pairs if a.at == "step"]
    assert all(round(a * 10, 6) == int(round(a * 10, 6)) for a, _ in within)  # of ten rows
    assert sum(abs(a - b) for a, b in within) / len(within) < 0.2
    assert all(a.value == b.value for a, b in pairs if a.at != "step")
