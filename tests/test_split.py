"""Dealing the rows of a source out over tasks, compared with the source row by row."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from continual import config
from continual.contract import STREAM_LAWS
from continual.contract.streams import StreamLaw
from continual.errors import UserError
from continual.seeding import generator
from continual.types import Rows
from scenarios.sources import TensorSource, gaussian
from scenarios.split import by_task, split
from scenarios.stream import IndexStream


def source(n_classes: int = 6, train: int = 4, test: int = 2) -> TensorSource:
    """Classes take turns: row i holds (i, i + 0.5) and is of class i mod C."""
    n, m = n_classes * train, n_classes * test
    x = torch.stack([torch.arange(n + m), torch.arange(n + m) + 0.5], dim=1)
    y = torch.arange(n + m) % n_classes
    return TensorSource(x[:n], y[:n], x[n:], y[n:], n_classes=n_classes)


def ids(rows: Rows) -> list[int]:
    return rows.take(torch.arange(len(rows))).extra["id"].tolist()


def labels(rows: Rows) -> list[int]:
    return rows.take(torch.arange(len(rows))).y.tolist()


def classes(rows: Rows) -> set[int]:
    return {row % 6 for row in ids(rows)}


def test_class_incremental_in_the_order_of_the_classes() -> None:
    stream = split(source(), n_tasks=3, shuffle_classes=False)
    assert [sorted(ids(e.rows)) for e in stream] == [
        [0, 1, 6, 7, 12, 13, 18, 19],
        [2, 3, 8, 9, 14, 15, 20, 21],
        [4, 5, 10, 11, 16, 17, 22, 23],
    ]
    assert [ids(probe) for probe in stream.probes] == [[24, 25, 30, 31], [26, 27, 32, 33], [28, 29, 34, 35]]
    for rows in (*(e.rows for e in stream), *stream.probes):
        assert labels(rows) == [row % 6 for row in ids(rows)]
    assert stream.origins == [0, 1, 2]
    assert (stream.spec.n_classes, stream.spec.in_shape, stream.spec.boundaries) == (6, (2,), True)
    assert not stream.spec.task_aware


def test_rows_are_shuffled_within_their_task() -> None:
    first = ids(next(iter(split(source(train=20), n_tasks=2))).rows)
    assert first != sorted(first)


def test_the_seed_orders_the_classes_and_train_and_test_agree() -> None:
    orders = set()
    for seed in range(6):
        stream = split(source(), n_tasks=3, seed=seed)
        order = tuple(frozenset(classes(e.rows)) for e in stream)
        assert order == tuple(classes(probe) for probe in stream.probes)
        drawn = torch.randperm(6, generator=generator(seed, "classes")).view(3, 2)
        assert order == tuple(frozenset(task) for task in drawn.tolist())
        assert sorted(label for task in order for label in task) == list(range(6))
        orders.add(order)
    assert len(orders) > 3


def test_task_incremental_is_the_same_with_the_label_told() -> None:
    hidden, told = split(source(), n_tasks=3, seed=4), split(source(), n_tasks=3, seed=4, kind="task")
    assert [e.task for e in told] == [0, 1, 2]
    assert [e.task for e in hidden] == [None] * 3
    assert told.spec.task_aware
    assert [(ids(e.rows), labels(e.rows)) for e in told] == [(ids(e.rows), labels(e.rows)) for e in hidden]


def test_domain_incremental_gives_each_tasks_classes_the_same_labels() -> None:
    stream = split(source(), n_tasks=3, kind="domain", shuffle_classes=False)
    assert stream.spec.n_classes == 2
    for task, (experience, probe) in enumerate(zip(stream, stream.probes, strict=True)):
        for rows in (experience.rows, probe):
            assert classes(rows) == {2 * task, 2 * task + 1}
            assert labels(rows) == [row % 6 - 2 * task for row in ids(rows)]
    assert not stream.spec.task_aware


def test_domain_incremental_labels_follow_the_seeds_order_of_the_classes() -> None:
    for seed in range(5):
        by_class, by_domain = (split(source(), n_tasks=2, seed=seed, kind=kind) for kind in ("class", "domain"))
        assert [ids(e.rows) for e in by_class] == [ids(e.rows) for e in by_domain]
        for rows in (*(e.rows for e in by_domain), *by_domain.probes):
            meaning = {(row % 6, label) for row, label in zip(ids(rows), labels(rows), strict=True)}
            assert sorted(label for _, label in meaning) == [0, 1, 2]  # one label for each of the task's classes


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 4])
def test_data_incremental_deals_every_class_evenly(n_tasks: int) -> None:
    stream = split(source(train=7, test=5), n_tasks=n_tasks, kind="data")
    for parts in ([e.rows for e in stream], stream.probes):
        sizes = [len(rows) for rows in parts]
        assert max(sizes) - min(sizes) <= 1
        for label in range(6):
            counts = [labels(rows).count(label) for rows in parts]
            assert max(counts) - min(counts) <= 1
        assert len({row for rows in parts for row in ids(rows)}) == sum(sizes)
    assert sorted(row for e in stream for row in ids(e.rows)) == list(range(42))


def test_rows_per_task_is_a_draw_by_the_seed_from_the_same_tasks() -> None:
    whole = split(source(train=20), n_tasks=3, seed=2)
    few = split(source(train=20), n_tasks=3, seed=2, rows_per_task=5)
    assert [len(e.rows) for e in few] == [5, 5, 5]
    assert all(set(ids(a.rows)) < set(ids(b.rows)) for a, b in zip(few, whole, strict=True))
    assert [ids(p) for p in few.probes] == [ids(p) for p in whole.probes]
    assert split(source(), n_tasks=3, rows_per_task=999).spec.smallest == 8
    other = split(source(train=20), n_tasks=3, seed=3, shuffle_classes=False, rows_per_task=5)
    again = split(source(train=20), n_tasks=3, seed=4, shuffle_classes=False, rows_per_task=5)
    assert [ids(e.rows) for e in other] != [ids(e.rows) for e in again]


def test_online_arrivals_hide_the_boundaries() -> None:
    stream = split(source(train=7), n_tasks=2, arrival_rows=10)
    assert [len(e.rows) for e in stream] == [10, 10, 1] * 2
    assert not stream.spec.boundaries
    assert [e.rows.take(torch.tensor([0])).x.shape for e in stream] == [(1, 2)] * 6


def test_images_stay_bytes_and_are_held_once() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1)
    y = torch.arange(24) % 4
    stream = split(TensorSource(pixels[:16], y[:16], pixels[16:], y[16:]), n_tasks=2)
    batch = next(iter(stream)).rows.take(torch.arange(8))
    assert batch.x.dtype == stream.spec.dtype == torch.uint8
    assert batch.x.flatten().tolist() == batch.extra["id"].tolist()
    holding = [tensor for tensor in vars(stream.inputs).values() if isinstance(tensor, torch.Tensor)]
    images = [tensor for tensor in holding if tensor.dtype == torch.uint8]
    assert [len(tensor) for tensor in images] == [24]
    assert stream.inputs is stream.probes[0].inputs


def test_only_the_seed_decides() -> None:
    def stirred(seed: int) -> str:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state()
        digest = "".join(split(source(), n_tasks=2, kind=kind).digest() for kind in ("class", "data"))
        assert torch.equal(torch.get_rng_state(), before)
        return digest

    assert stirred(1) == stirred(2)
    digests = {
        split(source(), n_tasks=2, kind=kind, seed=seed).digest() for kind in ("class", "data") for seed in (0, 1)
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tasks": 4}, "scenario.n_tasks=4 does not divide the 6 classes; use one of 1, 2, 3, 6"),
        ({"n_tasks": 0}, "scenario.n_tasks=0 must be at least 1"),
        ({"n_tasks": -2, "kind": "data"}, "scenario.n_tasks=-2 must be at least 1"),
        ({"kind": "clas"}, "scenario.kind='clas' is unknown; did you mean 'class'"),
        ({"n_tasks": 6, "kind": "domain"}, "scenario.n_tasks=6 leaves a domain-incremental task 1 class"),
        ({"rows_per_task": 0}, "scenario.rows_per_task=0 must be at least 1, or null for all"),
        ({"arrival_rows": 0}, "scenario.arrival_rows=0 must be at least 1"),
        ({"n_tasks": 13, "kind": "data"}, "task 13 of 13 has no test rows; use fewer tasks"),
        ({"n_tasks": 30, "kind": "data"}, "task 25 of 30 has no training rows; use fewer tasks"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split(source(), **{"n_tasks": 3, **arguments})


def test_every_task_needs_training_and_test_rows() -> None:
    assert [rows.tolist() for rows in by_task(torch.tensor([1, 0, 1]), 2, "test")] == [[1], [0, 2]]
    x = torch.zeros(8, 2)
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(UserError, match="task 2 of 2 has no test rows"):
        split(TensorSource(x, y, x[:4], y[:4]), n_tasks=2, shuffle_classes=False)
    with pytest.raises(UserError, match="task 1 of 2 has no training rows"):
        split(TensorSource(x[4:], y[4:], x, y), n_tasks=2, shuffle_classes=False)
    with pytest.raises(UserError, match="the source has no test rows; give it a test_fraction above 0"):
        split(TensorSource(x, y), n_tasks=2)


STREAMS: dict[str, Callable[[], IndexStream]] = {
    "class": lambda: split(source(), 3),
    "task, online": lambda: split(source(), 3, kind="task", arrival_rows=3),
    "domain": lambda: split(source(), 2, kind="domain"),
    "data, row by row": lambda: split(source(), 3, kind="data", arrival_rows=1),
}


@pytest.mark.parametrize("law", STREAM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", STREAMS)
def test_laws(law: StreamLaw, name: str) -> None:
    law(STREAMS[name])


@pytest.mark.parametrize(
    ("preset", "arguments"),
    [
        ("task_incremental", {"kind": "task"}),
        ("domain_incremental", {"kind": "domain"}),
        ("data_incremental", {"kind": "data"}),
        ("online", {"arrival_rows": 10}),
    ],
)
def test_presets_are_one_word_for_a_split(preset: str, arguments: dict[str, Any]) -> None:
    composed = config.compose(f"scenario={preset}", "scenario/source=gaussian", "scenario.n_tasks=2", "track=none")
    assert composed.scenario == f"{preset}-gaussian"
    assert config.build_stream(composed).digest() == split(gaussian(), n_tasks=2, **arguments).digest()
