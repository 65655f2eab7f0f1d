"""The stream that lives in index tensors: one source, and for each arriving row its id, label and origin."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from continual.batches import AHEAD
from continual.errors import UserError
from continual.types import Batch, Experience, Rows, Spec


class Inputs(Protocol):
    """What a stream needs of its source: inputs by id in fresh memory, and a digest for the manifest.

    One that can read ahead has ``expect(ids)`` besides: rows that are about to be fetched, a few batches at most.
    """

    def fetch(self, ids: Tensor) -> Tensor: ...

    def digest(self) -> str: ...


@dataclass(frozen=True, eq=False)
class IndexRows:
    """Rows ``ids`` (n,) of ``inputs`` with labels ``y`` (n,), integers; y = -1 where the label is not told."""

    inputs: Inputs
    ids: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        ids, y, n = self.ids.index_select(0, indices), self.y.index_select(0, indices).long(), len(indices)
        return Batch(self.inputs.fetch(ids), y, torch.full((n,), 1 / max(n, 1)), n, {"id": ids})

    @property
    def resident(self) -> bool:
        """Whether the inputs lie in memory as they are."""
        return isinstance(getattr(self.inputs, "x", None), Tensor)

    def join(self, others: Sequence[Rows]) -> "IndexRows | None":
        """These rows and then those of ``others``, which come from the same inputs; None if one does not."""
        same = [rows for rows in others if isinstance(rows, IndexRows) and rows.inputs is self.inputs]
        if len(same) < len(others):
            return None
        ids, y = (torch.cat([getattr(rows, name) for rows in (self, *same)]) for name in ("ids", "y"))
        return IndexRows(self.inputs, ids, y)

    @property
    def expect(self) -> Callable[[Tensor], None] | None:
        """``expect(indices)`` tells the source which positions are taken next; None if it does not read ahead."""
        expect: Callable[[Tensor], None] | None = getattr(self.inputs, "expect", None)
        return None if expect is None else lambda indices: expect(self.ids[indices])

    def fetch(self, ids: Tensor) -> Tensor:
        return self.inputs.fetch(ids)

    def placed(self, device: torch.device) -> "IndexRows":
        """The same rows with inputs that lie on the device, if the source can put them there; ids and labels stay."""
        on: Callable[[torch.device], Inputs | None] | None = getattr(self.inputs, "on", None)
        inputs = on(device) if on else None
        return self if inputs is None else replace(self, inputs=inputs)


@dataclass(frozen=True, eq=False)
class IndexStream:
    """A stream as four columns of one entry per arriving row, cut into experiences.

    Operators are functions IndexStream -> IndexStream that return new columns (``dataclasses.replace``). Columns may
    be of any signed integer type: their bytes are what a stream of rows that lie on a disk holds in memory.

    Attributes:
        base: what a learner may know, before the counts that follow from the columns.
        inputs: where inputs come from, by id.
        ids: (N,) int64, which row arrives; range(N) for row i as the i-th, which takes no memory.
        y: (N,) integers, the label it arrives with.
        task: (N,) integers, its origin task.
        segment: (N,) integers, non-decreasing; rows of one segment belong together, a boundary lies between two.
        probes: test rows of each task, in the order of the tasks.
        arrival_rows: rows per experience, fewer at the end of a segment; None makes each segment one experience.
        delay: rows that arrive after a row until its label is told: that of row i is told in the experience in
            which row i + delay arrives, the last ones in one more experience after the last row. Until then a row
            is only asked about.
        labelled: (N,) bool, rows whose label is ever told; None for all.

    Raises:
        UserError: no rows; ``arrival_rows`` < 1; ``delay`` not in [0, N); a label out of range; a segment
            without a label.
    """

    base: Spec
    inputs: Inputs
    ids: Tensor | range
    y: Tensor
    task: Tensor
    segment: Tensor
    probes: tuple[IndexRows, ...]
    arrival_rows: int | None = None
    delay: int = 0
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not n:
            raise UserError("the stream has no rows")
        if self.arrival_rows is not None and self.arrival_rows < 1:
            raise UserError(f"scenario.arrival_rows={self.arrival_rows} must be at least 1, or null for whole tasks")
        if not 0 <= self.delay < n:
            raise UserError(f"operator.delay.rows={self.delay} must be below the {n} rows of the stream")
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= self.base.n_classes:
            wrong = low if low < 0 else high
            raise UserError(f"label {wrong} is out of range: labels must be in [0, {self.base.n_classes})")
        self._check_labelled()

    def _check_labelled(self) -> None:
        if self.labelled is None:
            return
        labels = torch.bincount(self.position[self.labelled], minlength=len(self.sizes))
        if not labels.all():
            bare = int((labels == 0).nonzero()[0])
            raise UserError(
                f"none of the {int(self.sizes[bare])} rows of stretch {bare + 1} of {len(self.sizes)} between two "
                f"boundaries has a label; lower operator.missing.rate"
            )

    @cached_property
    def spec(self) -> Spec:
        """What a learner may know."""
        told = self.told if self.labelled is None else _counted(self.labelled)[self.told]
        return replace(
            self.base,
            boundaries=self.base.boundaries and self.arrival_rows is None,
            n_experiences=len(self),
            smallest=int(told.diff().min()),
        )

    @cached_property
    def borders(self) -> Tensor:
        """(S + 1,) int64: segment s is the rows from borders[s] to borders[s + 1]."""
        inner = (self.segment[1:] != self.segment[:-1]).nonzero()[:, 0] + 1
        return torch.cat([inner.new_tensor([0]), inner, inner.new_tensor([len(self.segment)])])

    @cached_property
    def sizes(self) -> Tensor:
        """(S,) int64: rows of each segment."""
        return self.borders.diff()

    @cached_property
    def position(self) -> Tensor:
        """(N,) int64: each row's segment, counted from 0 without gaps."""
        return torch.arange(len(self.sizes)).repeat_interleave(self.sizes)

    @cached_property
    def starts(self) -> Tensor:
        """(A + 1,) int64: in experience e arrive the rows from starts[e] to starts[e + 1]."""
        if self.arrival_rows is None:
            return self.borders
        pieces = [torch.arange(start, stop, self.arrival_rows) for start, stop in pairwise(self.borders.tolist())]
        return torch.cat([*pieces, self.borders[-1:]])

    @cached_property
    def told(self) -> Tensor:
        """(E + 1,) int64: in experience e the labels of the rows from told[e] to told[e + 1] are told.

        Delayed labels need one more experience than rows: E = A + 1, else E = A.
        """
        return torch.cat([(self.starts - self.delay).clamp_min(0), self.starts[-1:]]) if self.delay else self.starts

    @cached_property
    def origins(self) -> Sequence[int]:
        """The origin task of each experience: the task most rows of its segment came from."""
        majority = torch.stack([_most(rows) for rows in torch.split(self.task, self.sizes.tolist())])
        origins: list[int] = majority[torch.searchsorted(self.borders, self.starts[:-1], right=True) - 1].tolist()
        return origins + origins[-1:] * (len(self) - len(origins))

    @property
    def n_rows(self) -> int:
        """Rows whose labels are told, over the whole stream."""
        return len(self.ids) if self.labelled is None else int(self.labelled.sum())

    def __len__(self) -> int:
        return len(self.told) - 1

    def __iter__(self) -> Iterator[Experience]:
        asks = bool(self.delay) or self.labelled is not None
        for index in range(len(self)):
            arrived = slice(*self.starts[index : index + 2].tolist()) if index + 1 < len(self.starts) else None
            if arrived:
                self._announce(arrived.start)
            ask = self._asked(arrived) if asks and arrived else None
            task = int(self.task[self.starts[index]]) if self.base.task_aware else None
            told = slice(*self.told[index : index + 2].tolist()) if self.delay or not arrived else arrived
            yield Experience(index, self._told(told), task, ask)

    def _announce(self, start: int) -> None:
        """Tell a source that reads ahead which rows arrive from ``start`` on."""
        expect = getattr(self.inputs, "expect", None)
        if expect and self.arrival_rows:
            expect(entries(self.ids, slice(start, start + (1 + AHEAD) * self.arrival_rows)))

    def _asked(self, rows: slice) -> IndexRows:
        ids = entries(self.ids, rows)
        return IndexRows(self.inputs, ids, torch.full_like(ids, -1))

    def _told(self, rows: slice) -> IndexRows:
        ids, y = entries(self.ids, rows), self.y[rows]
        if self.labelled is not None:
            ids, y = ids[self.labelled[rows]], y[self.labelled[rows]]
        return IndexRows(self.inputs, ids, y)

    def digest(self) -> str:
        """Hash of the data, of what arrives when and of what is known about it, 16 hexadecimal digits."""
        sizes = [len(self.ids), self.labelled is not None, *map(len, self.probes)]
        facts = f"{self.inputs.digest()} {self.base} {self.arrival_rows} {self.delay} {sizes}"
        total = hashlib.blake2b(facts.encode(), digest_size=8)
        columns = [self.ids, self.y, self.task, self.segment, *([] if self.labelled is None else [self.labelled])]
        for column in (*columns, *(column for rows in self.probes for column in (rows.ids, rows.y))):
            for start in range(0, len(column), 1 << 20):
                part = entries(column, slice(start, start + (1 << 20)))
                total.update((part if part.dtype == torch.bool else part.long()).contiguous().numpy().data)
        return total.hexdigest()


def entries(column: Tensor | range, rows: slice | Tensor) -> Tensor:
    """(n,) entries at positions ``rows`` of a column; range(N) stands for the column 0, 1, ..., N - 1."""
    if isinstance(column, Tensor):
        return column[rows]
    return rows if isinstance(rows, Tensor) else torch.arange(*rows.indices(len(column)))


def _most(values: Tensor) -> Tensor:
    """The most frequent of ``values`` (n,), the smallest of several."""
    return values[0] if values.min() == values.max() else values.mode().values


def _counted(numbers: Tensor) -> Tensor:
    """(n + 1,) int64: the sums of the first 0, 1, ..., n entries of ``numbers`` (n,)."""
    return torch.cat([numbers.new_zeros(1, dtype=torch.int64), numbers.cumsum(0)])
