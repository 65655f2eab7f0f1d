"""Streams in time order, row by row: predict first, then learn. For tables that drift by themselves."""

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError
from continual.types import Spec
from scenarios.sources.base import Source, smallest
from scenarios.stream import IndexRows, IndexStream


def prequential(
    source: Source,
    n_periods: int = 1,
    arrival_rows: int = 1,
    max_rows: int | None = None,
) -> IndexStream:
    """The training rows of ``source`` in the order of their ids, ``arrival_rows`` at a time.

    Nothing is random. Periods are equal stretches of time that reports treat as tasks; the learner never
    sees them. Test rows, if the source has any, are cut into as many equal stretches, one probe for each period;
    a source without test rows gives no probes.

    Args:
        source: labelled rows in time order.
        n_periods: >= 1, at most the number of rows, and of test rows if there are any.
        arrival_rows: rows per arrival, >= 1.
        max_rows: only the first so many training rows, >= 1; None for all.
    """
    if max_rows is not None and max_rows < 1:
        raise UserError(f"scenario.max_rows={max_rows} must be at least 1, or null for all")
    rows = source.n_train if max_rows is None else min(max_rows, source.n_train)
    tests = torch.arange(source.n_train, len(source.y))
    for n, part in ((rows, "rows"), (len(tests) or rows, "test rows")):
        if not 1 <= n_periods <= n:
            raise UserError(f"scenario.n_periods={n_periods} must be between 1 and the {n} {part} of the stream")
    period, cut = _stretches(rows, n_periods), _stretches(len(tests), n_periods)
    parts = torch.split(tests, cut.bincount().tolist()) if len(tests) else ()
    return IndexStream(
        base=Spec(source.in_shape, source.n_classes, source.dtype, source.input_range),
        inputs=source,
        ids=range(rows),
        y=source.y[:rows],
        task=period,
        segment=period,
        probes=tuple(IndexRows(source, part, source.y[part]) for part in parts),
        arrival_rows=arrival_rows,
    )


def _stretches(rows: int, n: int) -> Tensor:
    """(rows,): which of ``n`` stretches, equal up to one row, each row lies in."""
    starts = -(-np.arange(n + 1) * rows // n)  # of stretch k: the first row i with i * n // rows == k
    return torch.from_numpy(np.repeat(np.arange(n, dtype=smallest(n)), np.diff(starts)))
