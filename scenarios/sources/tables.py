"""Rows of a CSV, Parquet or ARFF file, in file order or in the order of a time column."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from continual.errors import UserError, nearest
from scenarios.sources.base import TensorSource, compact
from scenarios.sources.columns import Features, Floats, cells_of, finite_numbers, one_hot, parsed, scaled, time_order
from scenarios.sources.labels import check_split, check_trained, encode, split_rows
from scenarios.sources.parquet import Feature, ParquetSource, gathered, labels_of, order_of, survey
from scenarios.sources.readers import Table, read_table
from scenarios.sources.row_groups import RowGroups


def table(
    path: str,
    label: str,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    time: str | None = None,
    classes: Sequence[object] | None = None,
    test_fraction: float = 0.2,
    split: str = "random",
    scale: str = "none",
    scale_rows: int = 1000,
    delimiter: str = ",",
    seed: int = 0,
    resident: bool = True,
    workers: int = 1,
    cache_mb: int = 256,
) -> TensorSource | ParquetSource:
    """A table with one labelled row per line: float32 rows (F,), the features in the order of ``features``.

    A column in which every cell is a number, or that is boolean, is one feature. Any other column,
    and every one in ``categorical``, becomes one 0/1 feature per value, its values in sorted order.

    Args:
        path: ``.csv``, ``.arff`` (both also ``.gz``, ``.bz2``, ``.xz``) or ``.parquet``; or a folder of Parquet files
            ``*.parquet``, which follow each other in the order of their names.
        label: column of the labels. Strings become classes in sorted order; numbers are class ids 0..C-1.
        features: columns to learn from; None: all but ``label`` and ``time``.
        categorical: features that are one-hot encoded although they are numbers.
        time: column of numbers or ISO 8601 times; rows are sorted by it, ties keep the file's order.
            None: the file's order.
        classes: label values in the order of their class ids, e.g. ``[1, 2, 3]``.
        test_fraction: share that is kept for testing, in [0, 1); 0: all rows are training rows.
        split: ``random`` (per class) or ``last`` (the last rows); with ``time``, only ``last``.
        scale: of the features that are not one-hot: ``none``; ``minmax`` (x - min) / (max - min);
            ``standard`` (x - mean) / standard deviation. A constant feature is only shifted.
        scale_rows: the first training rows, from which ``scale`` takes its numbers. No later row is
            looked at, so that a stream does not know its future; later rows may leave [0, 1].
        delimiter: between the cells of a CSV file.
        seed: of a random split; the data's own, so that all runs share one split.
        resident: hold all rows in memory. False leaves those of Parquet files on the disk, see
            ``scenarios.sources.parquet.ParquetSource``: the same rows, but texts that read as numbers are refused.
        workers: threads that decode rows which are not resident before they are needed; 0: none.
        cache_mb: megabytes of decoded rows that are held, if they are not resident.

    Raises:
        UserError: no such file or column; a file that cannot be parsed; an empty cell, NaN or inf,
            or a bad label (file, row and column are named); a combination of options that leaks.
    """
    _check_options(scale, scale_rows, split, test_fraction, time)
    if not resident:
        groups = RowGroups(path)
        names = _feature_names(groups, label, features, categorical, time)
        y, class_names = labels_of(groups, label, classes)
        rows, n_train = order_of(groups, time), len(y) - round(test_fraction * len(y))
        if test_fraction and split == "random":
            train, test = split_rows(y, test_fraction, split, seed)
            rows, n_train = compact(torch.cat([train, test])), len(train)
        y = y if rows is None else y[rows.long()]
        if classes is None:
            check_trained(y[:n_train], class_names, str(groups.path))
        n_fit = min(scale_rows, n_train)
        fit = torch.arange(n_fit) if rows is None else rows[:n_fit].long()
        encoding = _encoding(groups, names, categorical, scale, fit)
        return ParquetSource(groups, encoding, y, rows, n_train, class_names, workers, cache_mb)
    loaded = read_table(path, delimiter)
    names = _feature_names(loaded, label, features, categorical, time)
    order = time_order(loaded, time)
    ids, class_names = _labels(loaded, label, classes)
    ids = ids[torch.from_numpy(order)]
    train, test = split_rows(ids, test_fraction, split, seed)
    if classes is None:
        check_trained(ids[train], class_names, str(loaded.path))
    fit = order[train.numpy()[:scale_rows]]
    columns = [_encoded(loaded, name, name in categorical, scale, fit) for name in names]
    x = torch.from_numpy(np.concatenate(columns, axis=1)[order])  # (N, F)
    return TensorSource(x[train], ids[train], x[test], ids[test], class_names=class_names)


def _labels(loaded: Table, label: str, classes: Sequence[object] | None) -> tuple[Tensor, tuple[str, ...]]:
    cells = cells_of(loaded, label)
    values = parsed(loaded, label, cells) if classes is None else cells
    return encode(values, classes, f"{loaded.path}, column {label!r}")


def scaling(fit: Floats, scale: str) -> tuple[float, float]:
    """(shift, divisor) of ``none``, ``minmax`` or ``standard`` from the values ``fit`` (R,); the divisor is never 0."""
    if scale == "none":
        return 0.0, 1.0
    shift = float(fit.min() if scale == "minmax" else fit.mean())
    divisor = float(np.ptp(fit) if scale == "minmax" else fit.std())
    return shift, divisor if divisor > 0 else 1.0


def _encoded(loaded: Table, name: str, categorical: bool, scale: str, fit: npt.NDArray[np.int64]) -> Features:
    """(N, columns) float32 of one feature, ``scale`` fitted on the rows ``fit``."""
    cells = cells_of(loaded, name)
    values = cells if categorical else parsed(loaded, name, cells)
    if categorical or values.dtype.kind == "U":
        return one_hot(loaded, name, values)
    floats = finite_numbers(loaded, name, values)
    shift, divisor = scaling(floats[fit], scale)
    return scaled(floats, shift, divisor)


def _encoding(
    groups: RowGroups, names: Sequence[str], categorical: Sequence[str], scale: str, fit: Tensor
) -> list[Feature]:
    """How each of the columns ``names`` becomes features, ``scale`` fitted on the rows ``fit``."""
    values = survey(groups, names, categorical)
    numbers = gathered(groups, [name for name in names if name not in values and scale != "none"], fit)
    return [
        Feature(name, values.get(name), *(scaling(numbers[name], scale) if name in numbers else (0.0, 1.0)))
        for name in names
    ]


def _check_options(scale: str, scale_rows: int, split: str, test_fraction: float, time: str | None) -> None:
    check_split(test_fraction, split)
    if scale not in ("none", "minmax", "standard"):
        raise UserError(f"scale={scale!r} is unknown{nearest(str(scale), ['none', 'minmax', 'standard'])}")
    if scale_rows < 1:
        raise UserError(f"scale_rows={scale_rows} must be at least 1")
    if time is not None and test_fraction and split == "random":
        raise UserError(f"rows sorted by time={time!r} are not split at random: set split=last, or test_fraction=0")


def _feature_names(
    loaded: Table | RowGroups,
    label: str,
    features: Sequence[str] | None,
    categorical: Sequence[str],
    time: str | None,
) -> list[str]:
    for role, name in (("label", label), ("time", time)):
        if name is not None:
            _known(name, loaded.names, f"{loaded.path}: {role} names {name!r}, no column")
    names = [name for name in loaded.names if name not in (label, time)] if features is None else list(features)
    for name in names:
        _known(name, loaded.names, f"{loaded.path}: features names {name!r}, no column")
    if not names or label in names or len(set(names)) != len(names):
        raise UserError(f"{loaded.path}: features={names} must be distinct columns, at least one, without the label")
    for name in categorical:
        _known(name, names, f"{loaded.path}: categorical names {name!r}, no feature")
    return names


def _known(name: str, names: Sequence[str], problem: str) -> None:
    if name not in names:
        raise UserError(f"{problem}{nearest(name, names)}")
