"""Columns of a table file: read whole, parsed with errors that name file, row and column."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from continual.errors import UserError
from scenarios.sources.files import existing_file, read_bytes
from scenarios.sources.labels import at_row

MAX_VALUES = 1000  # a text column with more distinct values is an identifier or free text, not a category

Cells = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Table(NamedTuple):
    """``columns``: name -> (N,) cells, a pyarrow array; strings where the file has no types of its own."""

    path: Path
    columns: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    def at(self, name: str, row: int) -> str:
        return at_row(f"{self.path}, column {name!r}", row)


def read_table(path: str, delimiter: str) -> Table:
    """The columns of a ``.csv``, ``.arff`` or ``.parquet`` file.

    Raises:
        UserError: no such file, another ending, a file that cannot be parsed, a column name used
            twice, no rows.
    """
    file = existing_file(path)
    packed = file.suffix.lower() in (".gz", ".bz2", ".xz")
    ending = (Path(file.stem) if packed else file).suffix.lower()
    readers: dict[str, Callable[[], Any]] = {
        ".csv": lambda: _read_csv(read_bytes(file), delimiter),
        ".arff": lambda: _read_arff(read_bytes(file)),
        ".parquet": lambda: _read_parquet(file),
    }
    if ending not in readers or (packed and ending == ".parquet"):
        raise UserError(f"{file} is not a table: its name must end in .csv, .arff (also .gz, .bz2, .xz) or .parquet")
    try:
        loaded = readers[ending]()
    except UserError:
        raise
    except (ValueError, OSError, IndexError, StopIteration, NotImplementedError) as error:  # pyarrow's and scipy's
        raise UserError(f"cannot read {file}: {str(error) or 'it ends within its header'}") from error
    names = loaded.column_names
    twice = [name for name in names if names.count(name) > 1]
    if twice or loaded.num_rows == 0:
        raise UserError(f"{file} " + (f"has two columns {twice[0]!r}" if twice else "has no rows"))
    return Table(file, {name: loaded[name].combine_chunks() for name in names})


def _read_csv(data: bytes, delimiter: str) -> Any:
    """Every column as strings: types are decided on whole columns, not on the file's first block."""
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    header = csv.open_csv(io.BytesIO(data), parse_options=parse).schema.names
    convert = csv.ConvertOptions(
        column_types={name: pa.string() for name in header}, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    return csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)


def _read_parquet(file: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(file, partitioning=None)


def _read_arff(data: bytes) -> Any:
    """Numeric attributes as numbers; nominal ones as strings, ``?`` as a missing cell in both."""
    import pyarrow as pa
    from scipy.io import arff

    rows, meta = arff.loadarff(io.StringIO(data.decode("utf-8")))
    columns = {}
    for name in meta.names():
        cells = rows[name]
        missing = cells == b"?" if cells.dtype.kind == "S" else np.isnan(cells)
        columns[name] = pa.array(cells.astype(str) if cells.dtype.kind == "S" else cells, mask=missing)
    return pa.table(columns)


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
        odd = [row for row, text in enumerate(cells.tolist()) if not _is_number(text)]
    if len(odd) < len(cells) / 2:
        raise UserError(
            f"{table.at(name, odd[0])}: {cells[odd[0]]!s} is not a number, but most cells of the column are"
        )
    return cells


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def numbers(table: Table, name: str, values: Cells) -> npt.NDArray[np.float64]:
    """``values`` as float64 that float32 can hold, or a UserError that names the first cell with NaN or inf."""
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
    if len(bad):
        raise UserError(
            f"{table.at(name, int(bad[0]))}: {values[bad[0]]} is not a finite float32; fill or drop such rows"
        )
    return values.astype(np.float64)


def one_hot(table: Table, name: str, values: Cells) -> npt.NDArray[np.float32]:
    """(N, values) float32 of 0 and 1, one column per distinct value in sorted order."""
    found, inverse = np.unique(values, return_inverse=True)
    if len(found) > MAX_VALUES:
        raise UserError(
            f"{table.path}, column {name!r}: {len(found)} distinct values are too many to one-hot encode "
            f"(at most {MAX_VALUES}); list the columns to learn from: features=[...]"
        )
    return np.eye(len(found), dtype=np.float32)[inverse]


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
    values = _moments(table, name, cells) if cells.dtype.kind == "U" else finite_numbers(table, name, cells)
    return np.argsort(values, kind="stable")


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
