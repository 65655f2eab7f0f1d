"""NumPy archives."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from continual.errors import UserError, nearest
from scenarios.sources.base import TensorSource, finite
from scenarios.sources.files import existing_file
from scenarios.sources.labels import check_trained, encode, split_rows

Arrays = Mapping[str, npt.NDArray[Any]]


def npz(
    path: str,
    x: str = "x",
    y: str = "y",
    classes: Sequence[object] | None = None,
    test_fraction: float = 0.2,
    split: str = "random",
    seed: int = 0,
    input_range: Sequence[float] = (0.0, 1.0),
) -> TensorSource:
    """Arrays of one ``.npz`` file: ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``x`` and ``y`` to be split.

    uint8 rows stay uint8; images (N, H, W) and (N, H, W, C), C in {1, 3, 4}, become (N, C, H, W).
    Every other number becomes float32, its shape kept.

    Args:
        path: the file. Pickled objects in it are refused.
        x: key of the rows, alone or followed by ``_train`` and ``_test``.
        y: key of the labels, likewise.
        classes: label values in the order of their class ids; None: see ``labels.encode``.
        test_fraction: share that is kept for testing, in [0, 1); not used if the file has test rows.
        split: ``random`` (per class) or ``last`` (the last rows).
        seed: of a random split; the data's own, so that all runs share one split.
        input_range: (low, high) that 0 and 255 of uint8 rows are mapped to by the network.

    Raises:
        UserError: no such file or key; not an archive; lengths that differ; NaN or inf; bad labels.
    """
    file = str(existing_file(path))
    with _archive(file) as arrays:
        part = "_train" if f"{x}_train" in arrays else ""
        train_x, train_y = _part(arrays, f"{x}{part}", f"{y}{part}", file)
        tested = f"{x}_test" in arrays
        test_x, test_y = _part(arrays, f"{x}_test", f"{y}_test", file) if tested else (train_x[:0], train_y[:0])
    ids, names = encode(np.concatenate([train_y, test_y]), classes, f"{file}, {y}{part}")
    if tested:
        parts = (train_x, ids[: len(train_x)], test_x, ids[len(train_x) :])
    else:
        train, test = split_rows(ids, test_fraction, split, seed)
        parts = (train_x[train], ids[train], train_x[test], ids[test])
    if classes is None:
        check_trained(parts[1], names, file)
    return TensorSource(*parts, class_names=names, input_range=input_range)


@contextmanager
def _archive(file: str) -> Iterator[Arrays]:
    """The arrays of ``file``, each read when it is asked for."""
    try:
        with open(file, "rb") as opened:
            archive = np.load(opened, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(f"{file} holds one array; save rows and labels together: numpy.savez(path, x=x, y=y)")
            with archive:
                yield archive
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: {error}; arrays must be plain numbers or strings, without pickled objects") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} is not a whole NumPy archive: {error}") from error


def _part(arrays: Arrays, x: str, y: str, file: str) -> tuple[Tensor, npt.NDArray[Any]]:
    for key in (x, y):
        if key not in arrays:
            raise UserError(f"{file}: no array {key!r}{nearest(key, arrays)}")
    rows, labels = arrays[x], arrays[y]
    if rows.ndim < 2 or rows.dtype.kind not in "buif":
        raise UserError(f"{file}: {x} is {rows.dtype} of shape {rows.shape}; rows must be numbers (N, ...)")
    if labels.shape != rows.shape[:1]:
        raise UserError(f"{file}: {x} has {len(rows)} rows but {y} has the shape {labels.shape}; one label per row")
    if len(rows) == 0:
        raise UserError(f"{file}: {x} has no rows")
    if rows.dtype == np.uint8:
        return torch.from_numpy(channels_first(rows)), labels
    return finite(torch.from_numpy(rows.astype(np.float32, copy=False)), f"{file}, {x}"), labels


def channels_first(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(N, H, W) and (N, H, W, C), C in {1, 3, 4}, as (N, C, H, W); other shapes are left as they are.

    Where axis 1 is 1 or 3 it is taken for the channels, and the array is left as it is.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images
