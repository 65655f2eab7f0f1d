"""Streams in time order, row by row: predict first, then learn. For tables that drift by themselves."""

import torch

from continual.errors import UserError
from continual.types import Spec
from scenarios.sources.base import Source
from scenarios.stream import IndexRows, IndexStream


def prequential(
    source: Source,
    n_periods: int = 1,
    arrival_rows: int = 1,
    max_rows: int | None = None,
) -> IndexStream:
    """The training rows of ``source`` in the order of their ids, ``arrival_rows`` at a time.

    Nothing is random. Periods are equal stretches of time that reports treat as tasks; the learner never
    sees them. Test rows, if the source has any, are cut into the same periods and probed; else there are no probes.

    Args:
        source: labelled rows in time order.
        n_periods: >= 1, at most the number of rows.
        arrival_rows: rows per arrival, >= 1.
        max_rows: only the first so many rows; None for all.
    """
    rows = source.n_train if max_rows is None else min(max_rows, source.n_train)
    if not 1 <= n_periods <= rows:
        raise UserError(f"scenario.n_periods={n_periods} must be between 1 and the {rows} rows of the stream")
    ids = torch.arange(rows)
    period = ids * n_periods // rows
    n_test = len(source.y) - source.n_train
    tests = torch.arange(n_test) + source.n_train
    cut = [tests[torch.arange(n_test) * n_periods // max(n_test, 1) == p] for p in range(n_periods)]
    return IndexStream(
        base=Spec(source.in_shape, source.n_classes, source.dtype, source.input_range),
        inputs=source,
        ids=ids,
        y=source.y[ids],
        task=period,
        segment=period,
        probes=tuple(IndexRows(source, rows, source.y[rows]) for rows in cut if len(rows)),
        arrival_rows=arrival_rows,
    )
