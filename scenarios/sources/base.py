"""What a source is, and its two forms: one resident tensor, or rows that are loaded when asked for."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError
from scenarios.sources.blocks import Blocks

READ_AHEAD = 256 << 20  # bytes of rows that are loaded one by one and held, if they are read ahead
DTYPES = (torch.uint8, torch.int64, torch.float32, torch.float16, torch.bfloat16)


@runtime_checkable
class Source(Protocol):
    """Labelled rows by id: ids in [0, n_train) are training rows, ids in [n_train, len(y)) are test rows.

    Training rows keep the order in which they were collected, so that a stream may follow time::

        x = source.fetch(ids)  # (B, *in_shape)
        y = source.y[ids]      # (B,)
    """

    @property
    def in_shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def input_range(self) -> tuple[float, float]:
        """What 0 and 255 of uint8 rows are mapped to by the network; floating rows are left as they are."""
        ...

    @property
    def n_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def y(self) -> Tensor:
        """(N,) labels in [0, n_classes) of all rows, of any signed integer type."""
        ...

    @property
    def n_train(self) -> int: ...

    def fetch(self, ids: Tensor) -> Tensor:
        """Rows (B, *in_shape) of ``ids`` (B,) int64 in [0, N), in fresh memory and in ``dtype``."""
        ...

    def digest(self) -> str:
        """32 hexadecimal digits that name the data; equal data, equal digest on every machine."""
        ...


class Labelled:
    """The half of a source that does not depend on where its rows live."""

    def __init__(
        self,
        y_train: Tensor,
        y_test: Tensor,
        n_classes: int | None,
        class_names: Sequence[str] | None,
        input_range: Sequence[float],
        workers: int = 0,
    ) -> None:
        if workers < 0:
            raise UserError(f"workers={workers} must be at least 0")
        self.y = torch.cat([y_train, y_test])
        self.n_train = len(y_train)
        if self.n_train == 0:
            raise UserError("the source has no training rows")
        if n_classes is None:
            n_classes = int(self.y.max()) + 1 if class_names is None else len(class_names)
        self.n_classes = n_classes
        self.class_names = tuple(map(str, range(n_classes) if class_names is None else class_names))
        self.input_range = _checked_range(input_range)
        self._check_labels()

    def _check_labels(self) -> None:
        if int(self.y.min()) < 0 or int(self.y.max()) >= self.n_classes:
            y = self.y.long()
            wrong = int(((y < 0) | (y >= self.n_classes)).nonzero()[0])
            label, row = int(y[wrong]), f"row {wrong + 1} (the first is 1)"
            raise UserError(f"{row} has the label {label}; labels must be in 0..{self.n_classes - 1}")
        if len(self.class_names) != self.n_classes:
            raise UserError(f"{len(self.class_names)} class names for {self.n_classes} classes")
        if self.y[: self.n_train].min() == self.y[: self.n_train].max():
            raise UserError("the training rows are all of one class; a classifier needs at least 2")


class TensorSource(Labelled):
    """All rows in one tensor in memory: the fast path.

    Args:
        x_train: (N, *in_shape) on the CPU, of one of ``DTYPES``, kept as it is.
        y_train: (N,) integers in [0, n_classes).
        x_test: (M, *in_shape) or None for no test rows; then ``x_train`` itself is held, not a copy.
        y_test: (M,).
        n_classes: None means the number of ``class_names``, or else the largest label + 1.
        class_names: None means the numbers.
        input_range: (low, high) that 0 and 255 of uint8 rows are mapped to.

    Raises:
        UserError: lengths, shapes or dtypes that do not match; NaN or inf; a label out of range;
            training rows of fewer than 2 classes.
    """

    def __init__(
        self,
        x_train: Tensor,
        y_train: Tensor,
        x_test: Tensor | None = None,
        y_test: Tensor | None = None,
        *,
        n_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        input_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        x_test = x_train[:0] if x_test is None else x_test
        y_test = y_train[:0] if y_test is None else y_test
        _check_rows("train", x_train, y_train)
        _check_rows("test", x_test, y_test)
        if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
            raise UserError(f"training rows are {_kind(x_train)} but test rows are {_kind(x_test)}")
        super().__init__(y_train.long(), y_test.long(), n_classes, class_names, input_range)
        self.x = torch.cat([x_train, x_test]) if len(x_test) else x_train.contiguous()  # (N, *in_shape)
        self.in_shape = tuple(self.x.shape[1:])
        self.dtype = self.x.dtype
        self._resident: dict[torch.device, Resident | None] = {}

    def fetch(self, ids: Tensor) -> Tensor:
        return self.x.index_select(0, ids)  # copies whole rows; x[ids] took 3 to 14 times as long

    def on(self, device: torch.device) -> "Resident | None":
        """The rows on an accelerator, copied there once; None where they do not fit."""
        if device not in self._resident:
            try:
                self._resident[device] = Resident(self.x.to(device), self.digest)
            except torch.OutOfMemoryError:
                self._resident[device] = None
        return self._resident[device]

    def digest(self) -> str:
        return digest([_kind(self.x), str(self.n_train)], [self.x, self.y])


class Resident:
    """The inputs of a source on an accelerator, where they are gathered without the host's help."""

    def __init__(self, x: Tensor, digest: Callable[[], str]) -> None:
        self.x, self.digest = x, digest

    def fetch(self, ids: Tensor) -> Tensor:
        """Rows (B, *in_shape) on the device, of ``ids`` (B,) there or on the host."""
        return self.x.index_select(0, ids.to(self.x.device, non_blocking=True))


class LazySource(Labelled):
    """Rows that are loaded one by one when they are asked for, e.g. from a disk.

    Args:
        load: maps an id in [0, N) to its row (*in_shape), the same each time; row 0 is loaded now
            and decides shape and dtype.
        y_train: (N,) integers in [0, n_classes).
        y_test: (M,).
        identity: facts that name the data, for the digest: file names and sizes, say.
        class_names: one per class.
        input_range: as in ``TensorSource``.
        workers: threads that load rows of the next batches, up to ``READ_AHEAD`` bytes, while one is used; then
            ``load`` must be safe to run in several threads at once. 0 loads a row when it is needed.

    Raises:
        UserError: labels as in ``TensorSource``; in ``fetch``, a row of another shape or dtype than row 0.
    """

    def __init__(
        self,
        load: Callable[[int], Tensor],
        y_train: Tensor,
        y_test: Tensor,
        *,
        identity: Iterable[str],
        class_names: Sequence[str],
        input_range: Sequence[float] = (0.0, 1.0),
        workers: int = 0,
    ) -> None:
        super().__init__(y_train.long(), y_test.long(), len(class_names), class_names, input_range, workers)
        self._load = load
        self._identity = list(identity)
        first = load(0)
        self.in_shape = tuple(first.shape)
        self.dtype = first.dtype
        self.blocks = Blocks(self._row, lambda _: first.nbytes, READ_AHEAD if workers else 0, workers)
        self.expect: Callable[[Tensor], None] | None = self._expect if workers else None

    def fetch(self, ids: Tensor) -> Tensor:
        rows = torch.empty(len(ids), *self.in_shape, dtype=self.dtype)
        for position, row in enumerate(ids.tolist()):
            rows[position] = self.blocks.get(row)
        return rows

    def _expect(self, ids: Tensor) -> None:
        self.blocks.expect(ids.tolist())

    def _row(self, row: int) -> Tensor:
        if not 0 <= row < len(self.y):
            raise IndexError(f"row {row} of a source with {len(self.y)} rows")
        x = self._load(row)
        if x.shape != self.in_shape or x.dtype != self.dtype:
            expected = f"{self.dtype} of shape {self.in_shape}"
            raise UserError(f"row {row} is {x.dtype} of shape {tuple(x.shape)}, but row 0 is {expected}")
        return x

    def digest(self) -> str:
        return digest([f"{self.dtype} {self.in_shape}", str(self.n_train), *self._identity], [self.y])

    def resident(self) -> TensorSource:
        """The same rows, loaded now into one tensor."""
        x, n = self.fetch(torch.arange(len(self.y))), self.n_train
        return TensorSource(
            x[:n], self.y[:n], x[n:], self.y[n:], class_names=self.class_names, input_range=self.input_range
        )


def smallest(n: int) -> str:
    """The smallest type that holds 0..n-1 and that torch does not take for a mask: int8, int16, int32 or int64."""
    return next(kind for kind in ("int8", "int16", "int32", "int64") if n - 1 <= np.iinfo(kind).max)


def compact(rows: Tensor) -> Tensor:
    """A permutation (N,) in the smallest type that holds it."""
    return rows.to(getattr(torch, smallest(len(rows))))


def _kind(x: Tensor) -> str:
    return f"{x.dtype} rows of shape {tuple(x.shape[1:])}"


def _check_rows(part: str, x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise UserError(f"x_{part} has {len(x)} rows but y_{part} has {len(y)} labels")
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise UserError(f"y_{part} is {y.dtype} of shape {tuple(y.shape)}; labels must be one integer per row")
    if x.dtype not in DTYPES:
        raise UserError(f"x_{part} is {x.dtype}; rows must be uint8, int64 or float32, float16, bfloat16")
    if x.is_floating_point():
        finite(x, f"x_{part}")


def finite(x: Tensor, name: str) -> Tensor:
    """``x`` (N, ...) itself, or a UserError that names the first row holding NaN or inf."""
    bad = (~x.isfinite()).reshape(len(x), -1).any(dim=1).nonzero().flatten().tolist() if x.numel() else []
    if bad:
        row = f"row {bad[0] + 1} (the first is 1)"
        raise UserError(f"{name}, {row}: NaN or inf in {len(bad)} of {len(x)} rows; fill or drop them")
    return x


def _checked_range(input_range: Sequence[float]) -> tuple[float, float]:
    ends = tuple(map(float, input_range))
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise UserError(f"input_range={list(input_range)} must be [low, high] with low < high")
    return ends[0], ends[1]


def digest(facts: Iterable[str], tensors: Iterable[Tensor]) -> str:
    """BLAKE2b over the facts and over the tensors' bytes in row order, little-endian."""
    total = hashlib.blake2b("\n".join(facts).encode(), digest_size=16)
    for tensor in tensors:
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
