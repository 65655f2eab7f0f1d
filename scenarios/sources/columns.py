"""Columns of a table -> numbers, categories or times, with errors that name file, column and row."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from continual.errors import UserError
from scenarios.sources.readers import Table

MAX_VALUES = 1000  # a text column with more distinct values is an identifier or free text, not a category

Cells = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]


def cells_of(table: Table, name: str) -> Cells:
    """(N,) numbers, booleans or strings of one column, as the file holds them; a CSV file holds strings.

    Raises:
        UserError: an empty cell; a column of lists, times, ...
    """
    import pyarrow as pa
    from pyarrow import compute, types

    cells = table.columns[name]
    if types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    if cells.null_count:
        row = int(compute.index(compute.is_null(cells), True).as_py())
        raise UserError(
            f"{table.at(name, row)}: empty cell ({cells.null_count} in this column); fill or drop such rows"
        )
    if types.is_string(cells.type) or types.is_large_string(cells.type):
        return np.array(cells.to_pylist(), dtype=str)
    if types.is_decimal(cells.type):
        cells = cells.cast(pa.float64())
    if not (types.is_integer(cells.type) or types.is_floating(cells.type) or types.is_boolean(cells.type)):
        raise UserError(
            f"{table.path}, column {name!r}: {cells.type} cells are neither numbers nor strings; leave it out"
        )
    return np.asarray(cells.to_numpy(zero_copy_only=False))


def parsed(table: Table, name: str, cells: Cells) -> Cells:
    """``cells``, but strings as float64 if all of them are numbers.

    Raises:
        UserError: a text in a column in which more than half of the cells are numbers.
    """
    if cells.dtype.kind != "U":
        return cells
    try:
        return cells.astype(np.float64)
    except ValueError:
        odd = [row for row, text in enumerate(cells.tolist()) if not reads_as_number(text)]
    if len(odd) < len(cells) / 2:
        raise UserError(
            f"{table.at(name, odd[0])}: {cells[odd[0]].item()!r} is not a number, but most cells of the column are; "
            f"repair it, or name the column in categorical=[...] (if it is the label: its values in classes=[...])"
        )
    return cells


def reads_as_number(text: str) -> bool:
    """Whether a cell of a column of texts is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def finite_numbers(table: Table, name: str, cells: Cells) -> Floats:
    """``cells`` (N,) as float64, or a UserError that names the first cell that is not finite in float32."""
    numbers = cells.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))
    if len(bad):
        row = int(bad[0])
        raise UserError(f"{table.at(name, row)}: {cells[row]} is not finite in float32; fill or drop such rows")
    return numbers


def one_hot(table: Table, name: str, values: Cells) -> Features:
    """(N, values) float32 of 0 and 1, one column per distinct value in sorted order."""
    found, inverse = np.unique(values, return_inverse=True)
    check_distinct(table.path, name, len(found))
    return indicators(inverse, len(found))


def check_distinct(path: Path, name: str, n: int) -> None:
    """Refuse a column with too many values."""
    if n > MAX_VALUES:
        raise UserError(
            f"{path}, column {name!r}: {n} distinct values are too many to one-hot encode "
            f"(at most {MAX_VALUES}); list the columns to learn from: features=[...]"
        )


def indicators(positions: npt.NDArray[np.intp], n: int) -> Features:
    """(N, n) float32: row i is 1 at ``positions`` (N,) i, and 0 elsewhere."""
    return np.eye(n, dtype=np.float32)[positions]


def scaled(floats: Floats, shift: float, divisor: float) -> Features:
    """(N, 1) float32 of (floats - shift) / divisor."""
    features: Features = ((floats - shift) / divisor).astype(np.float32)
    return features[:, None]


def time_order(table: Table, name: str | None) -> npt.NDArray[np.int64]:
    """(N,) rows sorted by a column of numbers or ISO 8601 times, ties in file order; without one, file order.

    Raises:
        UserError: an empty cell; a text that is neither.
    """
    if name is None:
        return np.arange(len(next(iter(table.columns.values()))))
    column = table.columns[name]
    if _is_temporal(column) and column.null_count == 0:
        return np.argsort(column.to_numpy(zero_copy_only=False), kind="stable")
    cells = parsed(table, name, cells_of(table, name))
    if cells.dtype.kind == "f":
        cells = finite_numbers(table, name, cells)
    return np.argsort(_moments(table, name, cells) if cells.dtype.kind == "U" else cells, kind="stable")


def _is_temporal(cells: Any) -> bool:
    from pyarrow import types

    return bool(types.is_temporal(cells.type))


def _moments(table: Table, name: str, texts: Cells) -> Cells:
    """Microseconds since 1970 of ISO 8601 texts, all with a time zone or all without."""
    import pyarrow as pa

    cells = pa.array(texts)
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return np.asarray(cells.cast(kind).cast(pa.int64()).to_numpy(zero_copy_only=False))
        except pa.ArrowInvalid:
            continue
    raise UserError(
        f"{table.path}, column {name!r}: times must be numbers or ISO 8601 like 1996-05-07T00:30, all of one kind; "
        f"the first is {texts[0]!r}"
    )
