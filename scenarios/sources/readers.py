"""Table files -> columns, as the files hold them."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from continual.errors import UserError
from scenarios.sources.files import existing_file, existing_folder, read_bytes
from scenarios.sources.labels import at_row


class Table(NamedTuple):
    """``columns``: name -> (N,) cells, a pyarrow array; strings where the file has no types of its own.

    ``group``: the row group of the file that this is, which begins at the row ``first`` of it; None for the whole file.
    """

    path: Path
    columns: Mapping[str, Any]
    group: int | None = None
    first: int = 0

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    def at(self, name: str, row: int) -> str:
        group = "" if self.group is None else f", row group {self.group}"
        return at_row(f"{self.path}{group}, column {name!r}", self.first + row)


def read_table(path: str, delimiter: str) -> Table:
    """The columns of a ``.csv``, ``.arff`` or ``.parquet`` file, or of a folder of the last.

    Raises:
        UserError: no such file, another ending, a file that cannot be parsed, a column name used
            twice, no rows.
    """
    file = existing_folder(path) or existing_file(path)
    packed = file.suffix.lower() in (".gz", ".bz2", ".xz")
    ending = ".parquet" if file.is_dir() else (Path(file.stem) if packed else file).suffix.lower()
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


def parquet_files(place: Path) -> dict[Path, Any]:
    """The metadata of a Parquet file, or of all ``*.parquet`` of a folder in the order of their names.

    Raises:
        UserError: a file that cannot be read; a folder without one; a column name used twice; files whose columns
            differ.
    """
    from pyarrow import parquet

    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not files:
        raise UserError(f"no *.parquet in the folder {place}")
    found, types = {}, {}
    for file in files:
        try:
            found[file] = parquet.read_metadata(file)
        except (ValueError, OSError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
        schema = found[file].schema.to_arrow_schema()
        twice = [name for name in schema.names if schema.names.count(name) > 1]
        if twice:
            raise UserError(f"{file} has two columns {twice[0]!r}")
        types[file] = {field.name: str(getattr(field.type, "value_type", field.type)) for field in schema}
        for name in types[files[0]].keys() | types[file].keys():
            own, first = (types[f].get(name, "missing") for f in (file, files[0]))
            if own != first:
                raise UserError(f"{file}, column {name!r}: {own}, but {first} in {files[0].name}; write them alike")
    return found


def _read_parquet(place: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    tables = [parquet.read_table(file, partitioning=None) for file in parquet_files(place)]
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


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
