"""Rows of Parquet files that stay on the disk: what their columns hold, and a source that decodes what it needs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from continual.errors import UserError
from scenarios.sources.base import Labelled, compact, digest, smallest
from scenarios.sources.blocks import Blocks
from scenarios.sources.columns import (
    Cells,
    Floats,
    cells_of,
    check_distinct,
    finite_numbers,
    indicators,
    reads_as_number,
    scaled,
    time_order,
)
from scenarios.sources.labels import class_ids
from scenarios.sources.readers import Table
from scenarios.sources.row_groups import RowGroups

MEGABYTE = 1 << 20


class Feature(NamedTuple):
    """How a column becomes features: one number (x - shift) / divisor, or one 0/1 feature for each of ``values``."""

    name: str
    values: Cells | None = None
    shift: float = 0.0
    divisor: float = 1.0

    @property
    def width(self) -> int:
        """Features it becomes."""
        return 1 if self.values is None else len(self.values)

    def encode(self, table: Table) -> npt.NDArray[np.float32]:
        """(N, width) float32."""
        cells = cells_of(table, self.name)
        if self.values is not None:
            return indicators(np.searchsorted(self.values, cells), self.width)
        return scaled(finite_numbers(table, self.name, cells), self.shift, self.divisor)


class ParquetSource(Labelled):
    """Rows of Parquet files, decoded a row group at a time when they are asked for.

    What grows with the number of rows: a label of 1 to 4 bytes each, and 1 to 4 bytes more where rows do not come in
    the order of the files. Otherwise at most ``cache_mb`` of decoded rows are held, besides what is being decoded: one
    row group of each thread. A batch costs the decoding of every row group that it touches and that is not held.

    Args:
        groups: where the rows lie.
        features: columns of a row, in this order.
        y: (N,) class ids in the order of training rows, then test rows.
        rows: (N,) their rows in the files; None for the files' order.
        n_train: the first so many are training rows.
        class_names: one for each class.
        workers: threads that decode ahead of need.
        cache_mb: megabytes (2^20 bytes) of decoded rows that are held.

    Raises:
        UserError: a row group that is larger, decoded, than ``cache_mb``.
    """

    dtype = torch.float32

    def __init__(
        self,
        groups: RowGroups,
        features: Sequence[Feature],
        y: Tensor,
        rows: Tensor | None,
        n_train: int,
        class_names: Sequence[str],
        workers: int,
        cache_mb: int,
    ) -> None:
        super().__init__(y[:n_train], y[n_train:], len(class_names), class_names, (0.0, 1.0), workers)
        self.groups, self.features, self.rows = groups, list(features), rows
        self.in_shape = (sum(feature.width for feature in features),)
        largest = max(range(len(groups.groups)), key=self._nbytes)
        if self._nbytes(largest) > cache_mb * MEGABYTE:
            group, needed = groups.groups[largest], -(-self._nbytes(largest) // MEGABYTE)
            raise UserError(
                f"{group.file}, row group {group.number}: {group.rows} rows are {needed} MB decoded, more than "
                f"cache_mb={cache_mb}; raise it, or write smaller row groups: "
                f"pyarrow.parquet.write_table(table, path, row_group_size=65536)"
            )
        self.blocks = Blocks(self._decoded, self._nbytes, cache_mb * MEGABYTE, workers)
        self.expect: Callable[[Tensor], None] | None = self._expect if workers else None

    def fetch(self, ids: Tensor) -> Tensor:
        places = list(self.groups.located(self._rows(ids)))
        if len(places) == 1:
            return self.blocks.get(places[0][0]).index_select(0, places[0][2])
        x = torch.empty(len(ids), *self.in_shape)
        for number, positions, rows in places:
            x[positions] = self.blocks.get(number).index_select(0, rows)
        return x

    def digest(self) -> str:
        facts = [str(f._replace(values=None if f.values is None else f.values.tolist())) for f in self.features]
        order = [] if self.rows is None else [self.rows]
        return digest([self.groups.digest(), str(self.n_train), *facts], [self.y, *order])

    def _expect(self, ids: Tensor) -> None:
        self.blocks.expect(number for number, _, _ in self.groups.located(self._rows(ids)))

    def _rows(self, ids: Tensor) -> Tensor:
        if len(ids):
            low, high = map(int, ids.aminmax())
            if low < 0 or high >= len(self.y):
                raise IndexError(f"rows {low} to {high} of a source with {len(self.y)} rows")
        return ids if self.rows is None else self.rows[ids].long()

    def _nbytes(self, number: int) -> int:
        return self.groups.groups[number].rows * self.in_shape[0] * 4

    def _decoded(self, number: int) -> Tensor:
        table, filled = self.groups.read(number, [feature.name for feature in self.features]), 0
        x = np.empty((self.groups.groups[number].rows, *self.in_shape), dtype=np.float32)
        for feature in self.features:
            x[:, filled : filled + feature.width] = feature.encode(table)
            filled += feature.width
        return torch.from_numpy(x)


def labels_of(groups: RowGroups, label: str, classes: Sequence[object] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Class ids (N,) of all rows in the files' order, of the smallest type that holds them, and class names."""
    codes = np.empty(len(groups), dtype=np.int8)
    code: dict[Any, int] = {}  # of each label, in the order of their first rows
    first: dict[Any, int] = {}
    for place, table in groups.tables([label]):
        cells = cells_of(table, label)
        if cells.dtype.kind == "U" and classes is None:
            _refuse_numbers(table, label, cells)
        values, rows, inverse = np.unique(cells, return_index=True, return_inverse=True)
        for value, row in zip(values.tolist(), rows.tolist(), strict=True):
            code.setdefault(value, len(code))
            first.setdefault(value, place.start + row)
        codes = codes.astype(smallest(len(code)), copy=False)
        codes[place] = np.array([code[value] for value in values.tolist()])[inverse]
    found = sorted(code)
    name = f"{groups.path}, column {label!r}"
    ids, names = class_ids(np.array(found), [first[v] for v in found], classes, name, partial(groups.at, label))
    of_code = np.empty(len(code), dtype=smallest(len(names)))
    of_code[[code[value] for value in found]] = ids.numpy()
    return torch.from_numpy(of_code[codes]), names


def survey(groups: RowGroups, names: Sequence[str], categorical: Sequence[str]) -> dict[str, Cells]:
    """The values, sorted, of each column that is one-hot encoded; all cells of the others are finite numbers.

    Raises:
        UserError: a cell that is empty or not finite; too many values; a text that reads as a number.
    """
    found: dict[str, set[object]] = {}
    for _, table in groups.tables(names):
        for name in names:
            cells = cells_of(table, name)
            if cells.dtype.kind != "U" and name not in categorical:
                finite_numbers(table, name, cells)
                continue
            if name not in categorical:
                _refuse_numbers(table, name, cells)
            seen = found.setdefault(name, set())
            seen.update(np.unique(cells).tolist())
            check_distinct(groups.path, name, len(seen))
    return {name: np.unique(np.array(list(values))) for name, values in found.items()}


def _refuse_numbers(table: Table, name: str, texts: Cells) -> None:
    """Whether a column of texts holds numbers is decided by all of its cells, and these are not held together."""
    odd = next((text for text in np.unique(texts).tolist() if reads_as_number(text)), None)
    if odd is not None:
        row = int(np.flatnonzero(texts == odd)[0])
        raise UserError(
            f"{table.at(name, row)}: the text {odd!r} reads as a number; write the column as numbers, or name it in "
            f"categorical=[...] (if it is the label: its values in classes=[...])"
        )


def gathered(groups: RowGroups, names: Sequence[str], rows: Tensor) -> Mapping[str, Floats]:
    """The numbers (n,) that columns hold at ``rows`` (n,)."""
    values = {name: torch.empty(len(rows), dtype=torch.float64) for name in names}
    for number, positions, local in groups.located(rows) if names else ():
        table = groups.read(number, names)
        for name in names:
            values[name][positions] = torch.from_numpy(cells_of(table, name)[local.numpy()].astype(np.float64))
    return {name: numbers.numpy() for name, numbers in values.items()}


def order_of(groups: RowGroups, time: str | None) -> Tensor | None:
    """(N,) rows in the order of the column ``time``; None if that is the files' order."""
    if time is None:
        return None
    import pyarrow as pa

    whole = pa.chunked_array([table.columns[time] for _, table in groups.tables([time])]).combine_chunks()
    order = torch.from_numpy(time_order(Table(groups.path, {time: whole}), time))
    return None if bool((order.diff() == 1).all()) else compact(order)
