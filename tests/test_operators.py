"""What each operator does to a stream worked out by hand, and what holds for all of them in any order."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from continual.contract import STREAM_LAWS
from continual.contract.learners import recorded_seeds
from continual.contract.streams import StreamLaw
from continual.errors import UserError
from continual.types import Spec
from scenarios.operators import blur, delay, drift, imbalance, missing, noise, repeat
from scenarios.prequential import prequential
from scenarios.sources import TensorSource
from scenarios.stream import IndexRows, IndexStream

Operator = Callable[[IndexStream], IndexStream]


def made(
    sizes: tuple[int, ...] = (12, 12), classes: int = 2, arrival_rows: int | None = None, task_aware: bool = False
) -> IndexStream:
    """Row i is i; task t holds the classes from t * classes on, in turns. One probe row of each of its classes."""
    n_classes, n = classes * len(sizes), sum(sizes)
    task = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    y, y_probe = task * classes + torch.arange(n) % classes, torch.arange(n_classes)
    x = torch.arange(float(n + n_classes))[:, None]
    source = TensorSource(x[:n], y, x[n:], y_probe, n_classes=max(n_classes, 2))
    return IndexStream(
        base=Spec((1,), max(n_classes, 2), task_aware=task_aware),
        inputs=source,
        ids=torch.arange(n),
        y=y,
        task=task,
        segment=task,
        probes=tuple(IndexRows(source, n + rows, rows) for rows in y_probe.split(classes)),
        arrival_rows=arrival_rows,
    )


def arrivals(stream: IndexStream) -> list[list[int]]:
    """Ids of the rows of each experience."""
    return [e.rows.take(torch.arange(len(e.rows))).extra["id"].tolist() for e in stream]


def unchanged(stream: IndexStream, before: IndexStream, *but: str) -> bool:
    """Whether all of a stream is as it was, ``but`` for some of its attributes."""
    names = set(IndexStream.__dataclass_fields__) - set(but)
    pairs = [(getattr(stream, name), getattr(before, name)) for name in names]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


# ---------------------------------------------------------------- noise


def test_noise_changes_labels_only_and_never_to_the_true_one() -> None:
    before = made((40, 40), classes=4)
    stream = noise(before, rate=1.0)
    assert unchanged(stream, before, "y")
    assert (stream.y != before.y).all()
    assert (stream.y // 4 == stream.task).all()  # another class of the same task
    assert before.y[:4].tolist() == [0, 1, 2, 3]  # the stream that it was made of is as it was


def test_noise_at_rate_0_changes_nothing() -> None:
    before = made()
    assert torch.equal(noise(before, rate=0.0).y, before.y)
    assert noise(before, rate=0.0).digest() == before.digest()


def test_noise_hits_at_its_rate_every_other_class_alike() -> None:
    before = made((9000,), classes=3)
    stream = noise(before, rate=0.3)
    wrong = stream.y != before.y
    assert abs(float(wrong.double().mean()) - 0.3) < 0.015  # 3 standard errors
    flips = Counter(zip(before.y[wrong].tolist(), stream.y[wrong].tolist(), strict=True))
    assert len(flips) == 6
    assert all(abs(count - 450) < 75 for count in flips.values())  # 3.5 standard deviations


def test_where_a_task_has_one_class_noise_draws_from_the_stream() -> None:
    before = made((300, 300, 300), classes=1)
    stream = noise(before, rate=1.0)
    assert (stream.y != before.y).all()
    assert set(stream.y[before.y == 0].tolist()) == {1, 2}


def test_noise_needs_another_class() -> None:
    with pytest.raises(UserError, match="operator=noise needs a stream of at least 2 classes"):
        noise(replace(made((5,)), y=torch.ones(5, dtype=torch.int64)))


# ---------------------------------------------------------------- delay, missing


def test_delay_tells_labels_when_so_many_more_rows_have_arrived() -> None:
    """Row by row in test_stream.py; here that the operator sets what is tested there."""
    before = made((3, 2), arrival_rows=1)
    stream = delay(before, rows=2)
    assert unchanged(stream, before, "delay")
    assert arrivals(stream) == [[], [], [0], [1], [2], [3, 4]]
    assert arrivals(delay(stream, rows=1)) == [[], [], [], [0], [1], [2, 3, 4]]  # delays add up


def test_missing_labels_are_asked_about_and_never_told() -> None:
    before = made((2000, 2000))
    stream = missing(before, rate=0.25)
    assert unchanged(stream, before, "labelled")
    assert stream.labelled is not None
    assert abs(float(stream.labelled.double().mean()) - 0.75) < 0.02  # 3 standard errors
    for rows, experience in zip(arrivals(stream), stream, strict=True):
        assert rows == [row for row in experience.ask.ids.tolist() if stream.labelled[row]]  # type: ignore[union-attr]
        assert len(experience.ask) == 2000  # type: ignore[arg-type]
    assert arrivals(missing(before, rate=0.0)) == arrivals(before)


def test_missing_twice_misses_either() -> None:
    before = made((20, 20))
    once, other = missing(before, 0.3, seed=1), missing(before, 0.3, seed=2)
    both = missing(once, 0.3, seed=2)
    assert torch.equal(both.labelled, once.labelled & other.labelled)  # type: ignore[arg-type, operator]


@pytest.mark.parametrize("seed", range(5))
def test_missing_and_delay_in_either_order(seed: int) -> None:
    before = made((12, 12), arrival_rows=1)
    one = delay(missing(before, seed=seed), rows=3)
    other = missing(delay(before, rows=3), seed=seed)
    assert one.digest() == other.digest()
    told = [[i - 3] if i >= 3 and one.labelled[i - 3] else [] for i in range(24)]  # type: ignore[index]
    assert arrivals(one)[:-1] == told
    assert arrivals(one)[-1] == [i for i in (21, 22, 23) if one.labelled[i]]  # type: ignore[index]


# ---------------------------------------------------------------- imbalance


def test_imbalance_keeps_a_geometric_share_of_each_class() -> None:
    before = made((300,), classes=3)
    stream = imbalance(before, ratio=4.0)
    assert sorted(torch.bincount(stream.y).tolist()) == [25, 50, 100]  # 4^0, 4^(-1/2), 4^-1
    assert torch.equal(stream.ids, stream.ids.sort().values)  # the rest keep their order
    assert torch.equal(stream.y, before.y[stream.ids])
    kept = stream.ids[stream.y == stream.y.bincount().argmin()] // 3
    assert kept.tolist() != list(range(25))  # drawn, not the first
    assert stream.probes == before.probes


def test_imbalance_by_hand_on_the_bounds() -> None:
    before = made((30, 30))
    assert torch.equal(imbalance(before, ratio=1.0).ids, before.ids)
    counts = torch.bincount(imbalance(before, ratio=1e9).y).tolist()
    assert sorted(counts) == [1, 1, 1, 15]  # at least one row; 15e-3, 15e-6 and 15e-9 round to none
    assert {tuple(torch.bincount(imbalance(before, 1e9, seed=s).y).tolist()) for s in range(20)} == {
        (15, 1, 1, 1), (1, 15, 1, 1), (1, 1, 15, 1), (1, 1, 1, 15)
    }  # fmt: skip


def test_imbalance_leaves_every_row_in_its_task() -> None:
    stream = imbalance(made((30, 60)), ratio=4.0)
    assert torch.equal(stream.task, (stream.ids >= 30).long())
    assert torch.equal(stream.segment, stream.task)


def test_imbalance_leaves_every_task_rows() -> None:
    stream = replace(made((8,)), y=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), segment=torch.arange(8))
    with pytest.raises(UserError, match=r"operator.imbalance.ratio=2.0 leaves a task without rows"):
        imbalance(stream, ratio=2.0)


# ---------------------------------------------------------------- repeat


def test_repeat_brings_every_task_again_as_a_segment_of_its_own() -> None:
    before = made((4, 6))
    stream = repeat(before, laps=3)
    assert stream.segment.tolist() == [0] * 4 + [1] * 6 + [2] * 4 + [3] * 6 + [4] * 4 + [5] * 6
    assert stream.origins == [0, 1, 0, 1, 0, 1]
    assert [sorted(rows) for rows in arrivals(stream)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]] * 3
    assert torch.equal(stream.y, before.y[stream.ids])
    assert stream.ids[:10].tolist() == list(range(10))
    laps = {tuple(arrivals(stream)[lap]) for lap in (1, 3, 5)}
    assert len(laps) == 3  # each lap in an order of its own
    assert unchanged(repeat(before, laps=1), before)


def test_later_laps_bring_a_share() -> None:
    stream = repeat(made((4, 6, 1)), laps=2, share=0.5)
    assert [len(rows) for rows in arrivals(stream)] == [4, 6, 1, 2, 3, 1]
    assert [len(set(rows)) for rows in arrivals(stream)] == [4, 6, 1, 2, 3, 1]
    assert stream.origins == [0, 1, 2, 0, 1, 2]
    labelled = missing(made((40,)))
    again = repeat(labelled, laps=2, share=0.5)
    assert torch.equal(again.labelled, labelled.labelled[again.ids])  # type: ignore[arg-type, index]


# ---------------------------------------------------------------- blur


def test_blur_mixes_within_its_width_and_keeps_every_row() -> None:
    before = made((100, 100))
    stream = blur(before, width=0.2)
    assert sorted(stream.ids.tolist()) == list(range(200))
    assert torch.equal(stream.y, before.y[stream.ids])
    assert torch.equal(stream.task, before.task[stream.ids])
    assert stream.task[:60].tolist() == [0] * 60  # a row moves by at most 20 places, so 40 rows may mix on each side
    assert stream.task[140:].tolist() == [1] * 60
    assert 0 < int(stream.task[60:100].sum()) < 20
    assert not stream.spec.boundaries
    assert [len(rows) for rows in arrivals(stream)] == [100, 100]
    assert stream.origins == [0, 1]


def test_blur_mixes_by_its_formula() -> None:
    """20 rows on each side of the boundary at 100: (1 - t)^2 / 2 of the rows at distance 20 t are the other task's."""
    tasks = torch.stack([blur(made((100, 100)), 0.2, seed).task for seed in range(200)]).double().mean(0)
    t = ((torch.arange(200) - 99.5).abs() / 20).clamp_max(1)
    foreign = (torch.arange(200) >= 100).double() - tasks
    assert float((foreign.abs() - (1 - t) ** 2 / 2).abs().max()) < 0.14  # 4 standard errors of one row
    assert float((foreign.abs() - (1 - t) ** 2 / 2)[80:120].mean().abs()) < 0.01


def test_blur_of_width_0_only_hides_the_boundaries() -> None:
    before = made()
    stream = blur(before, width=0.0)
    assert unchanged(stream, before, "base")
    assert stream.base == replace(before.base, boundaries=False)


def test_blurred_rows_keep_whether_they_are_labelled() -> None:
    stream = blur(replace(made((20, 20)), labelled=torch.arange(40) % 2 == 0), width=0.5)
    assert torch.equal(stream.labelled, stream.ids % 2 == 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(1000, 20, 1000), (20, 1000, 20)])
def test_a_small_task_between_large_ones_is_not_washed_away(sizes: tuple[int, ...]) -> None:
    for seed in range(10):
        assert blur(made(sizes, arrival_rows=10), width=0.5, seed=seed).origins == [
            task for task, size in enumerate(sizes) for _ in range(size // 10)
        ]


# ---------------------------------------------------------------- drift


def meanings(stream: IndexStream) -> Tensor:
    """(concepts, C) the label of each class, read from probes that hold one row of each class in order."""
    return torch.stack([probe.y for probe in stream.probes])


def test_abrupt_drift_cuts_the_stream_into_concepts() -> None:
    before = made((10,), classes=5)
    stream = drift(before, concepts=3)
    assert stream.task.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    meaning = meanings(stream)
    assert meaning[0].tolist() == [0, 1, 2, 3, 4]
    assert all(sorted(concept) == [0, 1, 2, 3, 4] for concept in meaning.tolist())
    assert all(len(set(labels)) == 3 for labels in meaning.T.tolist())  # no two concepts agree on a class
    assert torch.equal(stream.y, meaning[stream.task, before.y])
    assert torch.equal(stream.ids, before.ids)
    assert stream.origins == [0, 1, 2]
    assert stream.spec.boundaries


def test_drift_relabels_all_test_rows_for_each_concept() -> None:
    before = made((8, 8), arrival_rows=1)
    stream = drift(before, concepts=2)
    assert [probe.ids.tolist() for probe in stream.probes] == [[16, 17, 18, 19]] * 2
    assert stream.probes[0].y.tolist() == [0, 1, 2, 3]
    assert all(a != b for a, b in zip(stream.probes[1].y.tolist(), range(4), strict=True))
    assert stream.origins == [0] * 8 + [1] * 8
    assert drift(prequential(TensorSource(torch.zeros(8, 1), torch.arange(8) % 2))).probes == ()


def test_recurring_drift_comes_round() -> None:
    stream = drift(made((12,)), kind="recurring", concepts=2, cycles=3)
    assert stream.task.tolist() == [0, 0, 1, 1] * 3
    assert stream.origins == [0, 1] * 3
    assert len(stream.probes) == 2


def test_the_probability_of_a_new_concept_rises_linearly() -> None:
    """200 rows, cut at 100; half of a stretch of 100 rows is the change: from row 75 to row 125."""
    shares = torch.stack([drift(made((200,)), "gradual", width=0.5, seed=s).task for s in range(400)]).double().mean(0)
    expected = ((torch.arange(200.0) - 75) / 50).clamp(0, 1)
    assert shares[:75].sum() == 0
    assert shares[126:].min() == 1
    assert float((shares - expected).abs().max()) < 0.1  # 4 standard errors of one row
    assert abs(float((shares - expected)[75:125].mean())) < 0.02
    assert not drift(made(), "gradual").spec.boundaries
    assert torch.equal(drift(made(), "gradual", width=0.0).y, drift(made()).y)


def test_gradual_drift_labels_each_row_by_its_own_concept() -> None:
    before = made((200,), classes=4)
    stream = drift(before, "gradual", concepts=2, width=1.0)
    assert torch.equal(stream.y, meanings(stream)[stream.task, before.y])
    assert not torch.equal(stream.task, stream.segment)


def test_gradual_drift_stays_within_its_concepts() -> None:
    stream = drift(made((6400,), classes=64), "gradual", concepts=64, width=1.0)
    assert stream.task[:50].tolist() == [0] * 50
    assert stream.task[-50:].tolist() == [63] * 50
    assert stream.origins == list(range(64))


# ---------------------------------------------------------------- all operators, in any order


OPERATORS: dict[str, Callable[[IndexStream, int], IndexStream]] = {
    "noise": lambda s, seed: noise(s, 0.3, seed),
    "delay": lambda s, _: delay(s, 3),
    "missing": lambda s, seed: missing(s, 0.1, seed),
    "imbalance": lambda s, seed: imbalance(s, 3.0, seed),
    "repeat": lambda s, seed: repeat(s, 2, 0.5, seed),
    "blur": lambda s, seed: blur(s, 0.4, seed),
    "abrupt": lambda s, seed: drift(s, "abrupt", 2, seed=seed),
    "gradual": lambda s, seed: drift(s, "gradual", 3, seed=seed),
    "recurring": lambda s, seed: drift(s, "recurring", 2, seed=seed),
}
SEEDLESS = {"delay"}


def applied(names: list[str], seed: int = 0, arrival_rows: int | None = 4) -> IndexStream:
    stream = made((18, 12, 16), arrival_rows=arrival_rows)
    for name in names:
        stream = OPERATORS[name](stream, seed)
    return stream


@settings(max_examples=50)
@given(names=st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=3, unique=True), seed=st.integers(0, 3))
def test_operators_compose_in_any_order(names: list[str], seed: int) -> None:
    stream, before = applied(names, seed), applied([])
    columns = [stream.ids, stream.y, stream.task, stream.segment]
    columns += [] if stream.labelled is None else [stream.labelled]
    assert {len(column) for column in columns} == {len(stream.ids)}
    assert set(stream.ids.tolist()) <= set(range(46))
    assert (stream.segment.diff() >= 0).all()
    assert int(stream.task.max()) < len(stream.probes)
    assert replace(stream.base, boundaries=True) == before.base
    if not {"noise", "abrupt", "gradual", "recurring"} & set(names):
        assert torch.equal(stream.y, before.y[stream.ids])
        assert torch.equal(stream.task, before.task[stream.ids])
    wanted = stream.ids if stream.labelled is None else stream.ids[stream.labelled]
    assert [row for rows in arrivals(stream) for row in rows] == wanted.tolist()
    assert len(stream.origins) == len(stream) == stream.spec.n_experiences
    assert stream.spec.smallest == min(map(len, arrivals(stream)))
    assert stream.digest() == applied(names, seed).digest()


@pytest.mark.parametrize("law", STREAM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("names", [*OPERATORS, "imbalance repeat blur noise missing delay"])
def test_laws(law: StreamLaw, names: str) -> None:
    law(partial(applied, names.split()))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    torch.manual_seed(1)
    random.seed(1)
    one = applied([name])
    torch.manual_seed(2)
    random.seed(2)
    state = torch.get_rng_state()
    assert applied([name]).digest() == one.digest() != applied([]).digest()
    assert torch.equal(torch.get_rng_state(), state)
    assert (applied([name], seed=1).digest() == one.digest()) is (name in SEEDLESS)


def test_operators_of_one_seed_draw_apart() -> None:
    """Rows that lose their label and rows that get a wrong one, say, are chosen independently."""
    with recorded_seeds() as seeds:
        applied([name for name in OPERATORS if name not in ("abrupt", "recurring")], seed=5)
    assert len({seed for seed, _ in seeds}) == len(seeds) == 6


def test_whole_tasks_go_through_every_operator_that_needs_no_arrivals() -> None:
    for name in OPERATORS:
        if name == "delay":
            continue
        stream = applied([name], arrival_rows=None)
        assert stream.spec.boundaries is (name not in ("blur", "gradual"))
        assert len(stream) == len(stream.sizes)


ALWAYS = made((20, 20), arrival_rows=1)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (lambda: noise(ALWAYS, rate=-0.1), r"operator.noise.rate=-0.1 must be in \[0, 1\]"),
        (lambda: noise(ALWAYS, rate=1.1), r"operator.noise.rate=1.1 must be in \[0, 1\]"),
        (lambda: noise(ALWAYS, rate=float("nan")), r"operator.noise.rate=nan must be in \[0, 1\]"),
        (lambda: missing(ALWAYS, rate=2.0), r"operator.missing.rate=2.0 must be in \[0, 1\]"),
        (lambda: missing(ALWAYS, rate=1.0), "none of the 20 rows of stretch 1 of 2 .* lower operator.missing.rate"),
        (lambda: delay(ALWAYS, rows=0), "operator.delay.rows=0 must be at least 1"),
        (lambda: delay(ALWAYS, rows=40), "operator.delay.rows=40 must be below the 40 rows of the stream"),
        (lambda: delay(delay(ALWAYS, rows=30), rows=30), "operator.delay.rows=60 must be below the 40 rows"),
        (lambda: imbalance(delay(ALWAYS, 39), ratio=9.0), "operator.delay.rows=39 must be below the .* rows"),
        (lambda: delay(made()), "operator=delay needs an online stream; set scenario.arrival_rows"),
        (lambda: delay(made(arrival_rows=2, task_aware=True)), "operator=delay mixes tasks within an arrival"),
        (lambda: imbalance(ALWAYS, ratio=0.5), "operator.imbalance.ratio=0.5 must be at least 1"),
        (lambda: imbalance(ALWAYS, ratio=float("nan")), "operator.imbalance.ratio=nan must be at least 1"),
        (lambda: repeat(ALWAYS, laps=0), "operator.repeat.laps=0 must be at least 1"),
        (lambda: repeat(ALWAYS, share=0.0), r"operator.repeat.share=0.0 must be in \(0, 1\]"),
        (lambda: blur(ALWAYS, width=-1.0), r"operator.blur.width=-1.0 must be in \[0, 1\]"),
        (lambda: blur(made(task_aware=True)), "operator=blur mixes tasks within an arrival; use it on a stream that"),
        (lambda: blur(made((9,))), "operator=blur needs a boundary; the stream has one task only"),
        (lambda: drift(ALWAYS, kind="slow"), "operator.drift.kind='slow' is unknown; choose from abrupt, gradual"),
        (lambda: drift(ALWAYS, concepts=1), "operator.drift.concepts=1 must be at least 2 and at most the 4 classes"),
        (lambda: drift(ALWAYS, concepts=5), "operator.drift.concepts=5 must be at least 2 and at most the 4 classes"),
        (lambda: drift(ALWAYS, cycles=0), "operator.drift.cycles=0 must be at least 1"),
        (lambda: drift(ALWAYS, width=3.0), r"operator.drift.width=3.0 must be in \[0, 1\]"),
        (lambda: drift(ALWAYS, kind="recurring", cycles=11, concepts=4), "needs at least 44 rows, got 40"),
        (lambda: drift(made(task_aware=True)), "operator=drift replaces tasks by concepts"),
    ],
)
def test_mistakes_are_named(operator: Callable[[], IndexStream], message: str) -> None:
    with pytest.raises(UserError, match=message):
        operator()
