"""Any map-style dataset: an object with ``__len__`` and ``__getitem__(row) -> (x, y)``."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError
from scenarios.sources.arrays import channels_first
from scenarios.sources.base import LazySource, TensorSource
from scenarios.sources.labels import check_trained, encode, split_rows

SAMPLED = 16  # rows that are looked at beforehand, evenly spaced


class Dataset(Protocol):
    """What ``dataset`` accepts; ``targets``, the labels of all rows, saves a pass over the data."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


def dataset(
    train: Dataset,
    test: Dataset | None = None,
    classes: Sequence[object] | None = None,
    test_fraction: float = 0.2,
    split: str = "random",
    seed: int = 0,
    resident: bool = False,
    input_range: Sequence[float] = (0.0, 1.0),
    workers: int = 0,
) -> LazySource | TensorSource:
    """A map-style dataset whose rows are pairs (x, y), loaded row by row when they are asked for.

    x may be a tensor or an array, whose shape is kept (float64 becomes float32), or an image: PIL,
    or a uint8 array (H, W) or (H, W, C), which becomes uint8 (C, H, W). All rows have one shape.

    Args:
        train: rows for training.
        test: rows for testing; None: a part of ``train``.
        classes: label values in the order of their class ids; None: see ``labels.encode``.
        test_fraction: share of ``train`` kept for testing, in [0, 1); not used if ``test`` is given.
        split: ``random`` (per class) or ``last`` (the last rows).
        seed: of a random split; the data's own, so that all runs share one split.
        resident: hold all rows in memory, instead of asking the dataset each time.
        input_range: (low, high) that 0 and 255 of uint8 rows are mapped to by the network.
        workers: threads that read rows which are not resident before they are needed; the dataset must then be safe to
            read from several threads at once. 0: none.

    Raises:
        UserError: not a map-style dataset; a row that is not (x, y), cannot be read, or differs when
            it is read twice (random augmentation belongs into the config group ``augment``); bad labels.
    """
    parts = [train] if test is None else [train, test]
    for name, part in zip(("train", "test"), parts, strict=False):
        _check_dataset(part, name)
    values = np.concatenate([_labels(part) for part in parts])
    ids, names = encode(values, classes, f"labels of {_name(train)}")
    rows, held_out = split_rows(ids, 0.0 if test is not None else test_fraction, split, seed)
    if test is not None:
        rows, held_out = torch.arange(len(train)), torch.arange(len(train), len(ids))
    if classes is None:
        check_trained(ids[rows], names, _name(train))
    order = torch.cat([rows, held_out]).tolist()
    n_first = len(train)

    def load(row: int) -> Tensor:
        part, index = (parts[0], order[row]) if order[row] < n_first else (parts[1], order[row] - n_first)
        return as_row(_pair(part, index)[0], f"{_name(part)}, row {index}")

    identity = [f"{_name(part)} {len(part)} {_sample_digest(part)}" for part in parts]
    source = LazySource(
        load,
        ids[rows],
        ids[held_out],
        identity=identity,
        class_names=names,
        input_range=input_range,
        workers=0 if resident else workers,
    )
    return source.resident() if resident else source


def as_row(x: object, name: str) -> Tensor:
    """One row as a tensor of uint8, int64 or float32; see ``dataset``."""
    if type(x).__module__.startswith("PIL."):
        if getattr(x, "mode", "") not in ("L", "RGB", "RGBA"):
            raise UserError(f"{name}: x is a {x!r}; convert it with x.convert('RGB') or 'L'")
        return torch.from_numpy(np.atleast_3d(np.array(x))).permute(2, 0, 1)  # (C, H, W)
    if isinstance(x, np.ndarray) and x.dtype.kind in "uif":
        x = torch.from_numpy(np.array(channels_first(x[None])[0] if x.dtype == np.uint8 else x, order="C"))
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"{name}: x is {kind}; it must be a tensor or array of numbers, or a PIL image")
    if x.is_floating_point():
        if not x.isfinite().all():
            raise UserError(f"{name}: x holds NaN or inf")
        return x.float()
    return x if x.dtype == torch.uint8 else x.long()


def _name(part: Dataset) -> str:
    return type(part).__qualname__


def _check_dataset(part: Dataset, role: str) -> None:
    if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
        raise UserError(f"{role} is a {_name(part)}, not a map-style dataset with __len__ and __getitem__")
    if len(part) == 0:
        raise UserError(f"{role}: {_name(part)} has no rows")
    for row in _sampled(part):
        first, second = (as_row(_pair(part, row)[0], f"{_name(part)}, row {row}") for _ in range(2))
        if first.shape != second.shape or not torch.equal(first, second):
            raise UserError(
                f"{role}: {_name(part)}, row {row} differs when read twice; move random transforms to augment"
            )


def _sampled(part: Dataset) -> list[int]:
    return sorted(set(np.linspace(0, len(part) - 1, SAMPLED).astype(int).tolist()))


def _sample_digest(part: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in _sampled(part):
        digest.update(as_row(_pair(part, row)[0], _name(part)).contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pair(part: Dataset, row: int) -> tuple[object, object]:
    try:
        pair = part[row]
    except Exception as error:  # a user's code may raise anything
        raise UserError(f"{_name(part)}, row {row} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"{_name(part)}, row {row} is a {type(pair).__name__}, not a pair (x, y)")
    return pair[0], pair[1]


def _labels(part: Dataset) -> np.ndarray[Any, np.dtype[Any]]:
    """(N,) labels: ``targets`` where they agree with the sampled rows, else the labels of all rows in one pass."""
    targets = getattr(part, "targets", None)
    if targets is not None and len(targets) == len(part):
        listed = np.asarray(targets)
        if listed.ndim == 1 and all(_label(part, row) == listed[row].item() for row in _sampled(part)):
            return listed
    return np.array([_label(part, row) for row in range(len(part))])


def _label(part: Dataset, row: int) -> object:
    y = _pair(part, row)[1]
    if isinstance(y, Tensor | np.ndarray | np.generic):
        if math.prod(y.shape) != 1:
            raise UserError(f"{_name(part)}, row {row}: the label has the shape {tuple(y.shape)}, not one value")
        return y.item()
    return y
