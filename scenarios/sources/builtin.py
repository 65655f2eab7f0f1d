"""Data that need no file: scikit-learn's digits, and generated blobs for tests."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError
from continual.seeding import generator
from scenarios.sources.base import TensorSource
from scenarios.sources.labels import split_rows


def digits(test_fraction: float = 0.2, seed: int = 0, input_range: Sequence[float] = (0.0, 1.0)) -> TensorSource:
    """1,797 handwritten digits of 8x8 grey pixels in 10 classes, shipped with scikit-learn.

    Values 0..16 are stored as uint8: round(value * 255 / 16). Rows (1, 8, 8).

    Args:
        test_fraction: share of each class that is kept for testing, in (0, 1).
        seed: of the split; the data's own, so that all runs share one split.
        input_range: (low, high) that 0 and 255 are mapped to by the network.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    table = _digits()  # (1797, 65)
    x = table[:, :-1].mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)  # (1797, 1, 8, 8)
    y = table[:, -1].long()
    train, test = split_rows(y, test_fraction, "random", seed)
    return TensorSource(x[train], y[train], x[test], y[test], n_classes=10, input_range=input_range)


def _digits() -> Tensor:
    """(1797, 65) float64: 64 values 0..16 of each row, and its label. Its file is read where scikit-learn keeps it.

    To import scikit-learn for that takes 1.5 s, most of which goes into what it imports.
    """
    found = find_spec("sklearn")  # it is not imported
    path = Path(*(found.submodule_search_locations or [""])[:1], "datasets/data/digits.csv.gz") if found else Path()
    if path.is_file():
        return torch.from_numpy(np.loadtxt(path, delimiter=","))
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(np.column_stack([bunch.data, bunch.target]))


def gaussian(
    n_classes: int = 4,
    rows_per_class: int = 50,
    dim: int = 8,
    separation: float = 3.0,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> TensorSource:
    """Normal blobs x = separation * m_y + e, with m_c and e drawn from N(0, I); classes take turns.

    Args:
        n_classes: at least 2.
        rows_per_class: training and test rows of each class together, at least 2.
        dim: rows are float32 (dim,).
        separation: 0 makes the classes indistinguishable.
        test_fraction: share of each class that is kept for testing, in [0, 1).
        seed: of centres, noise and split.
    """
    for name, value, least in (("n_classes", n_classes, 2), ("rows_per_class", rows_per_class, 2), ("dim", dim, 1)):
        if value < least:
            raise UserError(f"gaussian: {name}={value} must be at least {least}")
    draw = generator(seed, "source", "gaussian")
    y = torch.arange(n_classes * rows_per_class) % n_classes  # (N,)
    centres = torch.randn(n_classes, dim, generator=draw)
    x = separation * centres[y] + torch.randn(len(y), dim, generator=draw)  # (N, dim)
    train, test = split_rows(y, test_fraction, "random", seed)
    return TensorSource(x[train], y[train], x[test], y[test], n_classes=n_classes)
