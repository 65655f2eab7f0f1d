"""The stream that lives in index tensors: one source, and for each arriving row its id, label and origin."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from continual.errors import UserError
from continual.types import Batch, Experience, Spec


class Inputs(Protocol):
    """What a stream needs of its source: inputs by id, and a digest for the manifest."""

    def fetch(self, ids: Tensor) -> Tensor: ...

    def digest(self) -> str: ...


@dataclass(frozen=True)
class IndexRows:
    """Rows ``ids`` (n,) of ``inputs`` with labels ``y`` (n,) int64; y = -1 where the label is not told."""

    inputs: Inputs
    ids: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        ids = self.ids[indices]
        n = len(ids)
        return Batch(self.inputs.fetch(ids), self.y[indices], torch.full((n,), 1 / max(n, 1)), n, {"id": ids})

    def fetch(self, ids: Tensor) -> Tensor:
        return self.inputs.fetch(ids)


@dataclass(frozen=True)
class IndexStream:
    """A stream as four columns of one entry per arriving row, cut into experiences.

    Operators are functions IndexStream -> IndexStream that return new columns (``dataclasses.replace``).

    Attributes:
        base: what a learner may know, before the counts that follow from the columns.
        inputs: where inputs come from, by id.
        ids: (N,) int64, which row arrives.
        y: (N,) int64, the label it arrives with.
        task: (N,) int64, its origin task.
        segment: (N,) int64, non-decreasing; rows of one segment belong together, a boundary lies between two.
        probes: test rows of each task, in the order of the tasks.
        arrival_rows: rows per experience; None makes each segment one experience.
        delay: rows that arrive before a label is told; until then a row is only asked about.
        labelled: (N,) bool, rows whose label is ever told; None for all.
    """

    base: Spec
    inputs: Inputs
    ids: Tensor
    y: Tensor
    task: Tensor
    segment: Tensor
    probes: tuple[IndexRows, ...]
    arrival_rows: int | None = None
    delay: int = 0
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise UserError("the stream has no rows")
        if self.arrival_rows is not None and self.arrival_rows < 1:
            raise UserError(f"scenario.arrival_rows={self.arrival_rows} must be at least 1, or null for whole tasks")
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= self.base.n_classes:
            wrong = low if low < 0 else high
            raise UserError(f"label {wrong} is out of range: labels must be in [0, {self.base.n_classes})")

    @cached_property
    def spec(self) -> Spec:
        """What a learner may know."""
        whole = self.base.boundaries and self.arrival_rows is None
        smallest = int(self.starts.diff().min())
        return replace(self.base, boundaries=whole, n_experiences=len(self), smallest=smallest)

    @cached_property
    def starts(self) -> Tensor:
        """(E + 1,) int64: experience e holds rows starts[e] to starts[e + 1]."""
        n = len(self.ids)
        changes = (self.segment[1:] != self.segment[:-1]).nonzero()[:, 0] + 1
        segments = torch.cat([changes.new_zeros(1), changes, changes.new_full((1,), n)])
        if self.arrival_rows is None:
            return segments
        pieces = [torch.arange(int(a), int(b), self.arrival_rows) for a, b in zip(segments, segments[1:], strict=False)]
        return torch.cat([*pieces, segments[-1:]])

    @cached_property
    def origins(self) -> Sequence[int]:
        """The origin task of each experience: the task most rows of its segment came from."""
        _, lengths = self.segment.unique_consecutive(return_counts=True)
        majority = [int(rows.mode().values) for rows in self.task.split(lengths.tolist())]
        position = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[self.starts[:-1]]
        origins = [majority[segment] for segment in position.tolist()]
        return origins + origins[-1:] * self._late

    @property
    def _late(self) -> int:
        """Experiences after the last row in which only delayed labels arrive."""
        return 1 if self.delay else 0

    def __len__(self) -> int:
        return len(self.starts) - 1 + self._late

    def __iter__(self) -> Iterator[Experience]:
        starts = self.starts.tolist()
        asks = bool(self.delay) or self.labelled is not None
        told = 0
        for index, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
            until = max(0, stop - self.delay)
            ask = IndexRows(self.inputs, self.ids[start:stop], torch.full((stop - start,), -1)) if asks else None
            yield Experience(index, self._told(told, until), self._visible(start), ask)
            told = until
        if self.delay:
            yield Experience(len(starts) - 1, self._told(told, starts[-1]), self._visible(starts[-1] - 1))

    def _told(self, start: int, stop: int) -> IndexRows:
        """Rows whose labels are told now."""
        ids, y = self.ids[start:stop], self.y[start:stop]
        if self.labelled is not None:
            ids, y = ids[self.labelled[start:stop]], y[self.labelled[start:stop]]
        return IndexRows(self.inputs, ids.clone(), y.clone())

    def _visible(self, row: int) -> int | None:
        return int(self.task[row]) if self.spec.task_aware else None

    def digest(self) -> str:
        """Hash of the data and of what arrives when, 16 hex digits."""
        total = hashlib.blake2b(self.inputs.digest().encode(), digest_size=8)
        probed = [tensor for rows in self.probes for tensor in (rows.ids, rows.y)]
        labelled = [] if self.labelled is None else [self.labelled]
        for tensor in (self.ids, self.y, self.task, self.segment, *labelled, *probed):
            total.update(tensor.numpy().tobytes())
        total.update(f"{self.arrival_rows} {self.delay}".encode())
        return total.hexdigest()
