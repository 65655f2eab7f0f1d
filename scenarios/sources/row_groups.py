"""The row groups of Parquet files, read one at a time."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from continual.errors import UserError
from scenarios.sources.files import existing_file, existing_folder
from scenarios.sources.readers import Table, parquet_files


class _Group(NamedTuple):
    file: Path
    number: int  # in its file
    first: int  # its first row, in its file
    rows: int


class RowGroups:
    """The row groups of one Parquet file, or of all files ``*.parquet`` of a folder in the order of their names.

    Attributes:
        path: the file or the folder.
        names: of the columns.
        groups: where each row group lies.
        starts: G + 1 numbers: rows starts[g] to starts[g + 1] of all files are those of row group g.

    Raises:
        UserError: no such file; a file that is no Parquet file or changes while it is read; columns that differ
            between files.
    """

    def __init__(self, path: str) -> None:
        self.path = existing_folder(path) or existing_file(path)
        if not self.path.is_dir() and self.path.suffix.lower() != ".parquet":
            raise UserError(
                f"{self.path} is no Parquet file, so its rows cannot be left on the disk: set resident=true, or write "
                f"one: pyarrow.parquet.write_table(pyarrow.csv.read_csv(path), 'rows.parquet', row_group_size=65536)"
            )
        self.metadata = parquet_files(self.path)
        self.stamps = {file: _stamp(file) for file in self.metadata}
        self.names: list[str] = next(iter(self.metadata.values())).schema.to_arrow_schema().names
        self.groups = [group for file, metadata in self.metadata.items() for group in _groups(file, metadata)]
        self.starts = [0, *accumulate(group.rows for group in self.groups)]
        if not self.groups or not self.starts[-1]:
            raise UserError(f"{self.path} has no rows")

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, number: int, names: Sequence[str]) -> Table:
        """The columns ``names`` of one row group; it may be called from several threads."""
        import pyarrow as pa
        from pyarrow import parquet

        group = self.groups[number]
        name = f"{group.file}, row group {group.number}"
        if _stamp(group.file) != self.stamps[group.file]:
            raise UserError(f"{group.file} has changed since it was opened; start the run again")
        try:
            with parquet.ParquetFile(group.file, metadata=self.metadata[group.file]) as opened:
                loaded = opened.read_row_group(group.number, columns=list(names), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {name}: {error}") from error
        return Table(group.file, {n: loaded[n].combine_chunks() for n in names}, group.number, group.first)

    def tables(self, names: Sequence[str]) -> Iterator[tuple[slice, Table]]:
        """The columns ``names``, a row group at a time, each with the place of its rows among all."""
        for number in range(len(self.groups)):
            yield slice(*self.starts[number : number + 2]), self.read(number, names)

    def located(self, rows: Tensor) -> Iterator[tuple[int, slice | Tensor, Tensor]]:
        """Each row group that has some of ``rows`` (n,), their positions among these, and in the row group."""
        first, last = (bisect_right(self.starts, int(row)) - 1 for row in rows.aminmax()) if len(rows) else (0, -1)
        if first == last:
            yield first, slice(None), rows - self.starts[first]
            return
        holding = torch.searchsorted(torch.tensor(self.starts), rows, right=True) - 1
        for number in holding.bincount().nonzero()[:, 0].tolist():
            chosen = (holding == number).nonzero()[:, 0]
            yield number, chosen, rows[chosen] - self.starts[number]

    def at(self, name: str, row: int) -> str:
        """How an error names a cell."""
        number, _, local = next(self.located(torch.tensor([row])))
        group = self.groups[number]
        return Table(group.file, {}, group.number, group.first).at(name, int(local))

    def digest(self) -> str:
        """Names the contents of all files."""
        total = hashlib.blake2b(digest_size=16)
        for file in self.stamps:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).digest())
        return total.hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    try:
        about = file.stat()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    return about.st_size, about.st_mtime_ns


def _groups(file: Path, metadata: Any) -> Iterator[_Group]:
    first = 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        yield _Group(file, number, first, rows)
        first += rows
