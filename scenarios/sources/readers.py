"""Table files -> columns, as the files hold them."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from continual.errors import UserError
from scenarios.sources.files import existing_file, read_bytes
from scenarios.sources.labels import at_row


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
