"""Rows in time order, and periods that reports treat as tasks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from continual.contract import STREAM_LAWS
from continual.contract.streams import StreamLaw
from continual.errors import UserError
from scenarios.prequential import prequential
from scenarios.sources import TensorSource
from scenarios.stream import IndexStream


def table(train: int = 10, test: int = 0) -> TensorSource:
    """Row i holds i, of class i mod 3."""
    x, y = torch.arange(float(train + test))[:, None], torch.arange(train + test) % 3
    return TensorSource(x[:train], y[:train], x[train:], y[train:], n_classes=3)


def arrivals(stream: IndexStream) -> list[list[float]]:
    return [e.rows.take(torch.arange(len(e.rows))).x.flatten().tolist() for e in stream]


def test_rows_come_one_by_one_in_their_order() -> None:
    stream = prequential(table())
    assert arrivals(stream) == [[float(i)] for i in range(10)]
    assert [e.rows.take(torch.tensor([0])).y.item() for e in stream] == [i % 3 for i in range(10)]
    assert stream.origins == [0] * 10
    assert all(e.task is None and e.ask is None for e in stream)
    assert (stream.spec.boundaries, stream.spec.n_experiences, stream.spec.smallest) == (False, 10, 1)
    assert stream.probes == ()


def test_periods_are_equal_stretches_with_their_stretch_of_the_test_rows() -> None:
    stream = prequential(table(10, 5), n_periods=3, arrival_rows=3)
    assert arrivals(stream) == [[0, 1, 2], [3], [4, 5, 6], [7, 8, 9]]
    assert stream.origins == [0, 0, 1, 2]
    assert [probe.ids.tolist() for probe in stream.probes] == [[10, 11], [12, 13], [14]]
    assert [probe.y.tolist() for probe in stream.probes] == [[1, 2], [0, 1], [2]]


def test_the_first_rows_only() -> None:
    assert arrivals(prequential(table(), max_rows=3, arrival_rows=2)) == [[0, 1], [2]]
    assert arrivals(prequential(table(), max_rows=99, arrival_rows=10)) == [[float(i) for i in range(10)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_periods": 0}, "scenario.n_periods=0 must be between 1 and the 10 rows of the stream"),
        ({"n_periods": 11}, "scenario.n_periods=11 must be between 1 and the 10 rows of the stream"),
        ({"n_periods": 5}, "scenario.n_periods=5 must be between 1 and the 4 test rows of the stream"),
        ({"arrival_rows": 0}, "scenario.arrival_rows=0 must be at least 1"),
        ({"max_rows": 0}, "scenario.max_rows=0 must be at least 1, or null for all"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prequential(table(10, 4), **arguments)


STREAMS: dict[str, Callable[[], IndexStream]] = {
    "row by row": lambda: prequential(table()),
    "periods with probes": lambda: prequential(table(10, 4), n_periods=4, arrival_rows=2),
}


@pytest.mark.parametrize("law", STREAM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", STREAMS)
def test_laws(law: StreamLaw, name: str) -> None:
    law(STREAMS[name])
