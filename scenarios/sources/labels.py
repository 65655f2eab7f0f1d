"""Labels as users write them -> class ids; and which rows are kept for testing."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from continual.errors import UserError, nearest
from continual.seeding import generator

Values = npt.NDArray[np.generic]


def at_row(name: str, row: int) -> str:
    """How every error names a row; ``row`` counts from 0, people from 1."""
    return f"{name}, row {row + 1} (the first is 1)"


def encode(values: Values, classes: Sequence[object] | None, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Class ids (N,) int64 and class names (C,) of labels ``values`` (N,).

    With ``classes``, the label values in the order of their ids, every label must be one of them.
    Without, strings get ids in sorted order, and numbers are ids already: integers that cover
    0..C-1 without a gap.

    Args:
        values: strings, booleans or numbers.
        classes: label values, or None.
        name: names the labels in an error message.

    Raises:
        UserError: a label outside ``classes``; a number that is negative, no integer or NaN; a gap;
            fewer than 2 classes.
    """
    if values.dtype.kind in "SO":
        values = np.array([_decoded(value, name) for value in values.ravel()]).reshape(values.shape)
    if values.ndim != 1 or values.dtype.kind not in "buifU":
        raise UserError(f"{name}: labels must be one number or string per row, not {values.dtype} {values.shape}")
    found, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    ids, names = class_ids(found, first.tolist(), classes, name, partial(at_row, name))
    return ids[torch.from_numpy(inverse)], names  # (N,)


def class_ids(
    found: Values, first: Sequence[int], classes: Sequence[object] | None, name: str, at: Callable[[int], str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Class ids (K,) of the distinct labels ``found`` (K,), sorted, and class names; see ``encode``.

    ``first``: the first row of each; ``at`` names a row in an error message.
    """
    numeric = found.dtype.kind in "uif"
    for value, row in zip(found.tolist(), first, strict=True):
        if numeric and not float(value).is_integer():
            raise UserError(f"{at(row)}: the label {value} is neither an integer nor a string")
    names = [_text(value) for value in found.tolist()]
    wanted = _in_order(names, numeric, name) if classes is None else _listed(names, first, classes, at)
    if len(wanted) < 2:
        raise UserError(f"{name}: all labels are {names[0]!r}; a classifier needs at least 2 classes")
    position = {text: index for index, text in enumerate(wanted)}
    return torch.tensor([position[text] for text in names]), tuple(wanted)


def _decoded(value: object, name: str) -> str:
    if not isinstance(value, str | bytes):
        raise UserError(f"{name}: the label {value!r} is a {type(value).__name__}, neither a number nor a string")
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) else str(value)


def _in_order(names: list[str], numeric: bool, name: str) -> list[str]:
    """``names`` came sorted; numbers must be 0, 1, 2, ..."""
    gap = next((i for i, text in enumerate(names) if text != str(i)), None)
    if numeric and gap is not None:
        problem = f"the label {names[0]} is negative" if names[0][0] == "-" else f"no row has the label {gap}"
        listed = ", ".join(names) if len(names) <= 20 else f"{names[0]}, {names[1]}, ..."
        raise UserError(f"{name}: {problem}; number classes 0, 1, 2, ... or list them in order: classes=[{listed}]")
    return names


def _listed(names: list[str], first: Sequence[int], classes: Sequence[object], at: Callable[[int], str]) -> list[str]:
    wanted = [_text(value) for value in classes]
    if len(set(wanted)) != len(wanted):
        raise UserError(f"classes={wanted} names a label twice")
    for row, text in sorted(zip(first, names, strict=True)):
        if text not in wanted:
            raise UserError(f"{at(row)}: {text!r} is not among classes={wanted}{nearest(text, wanted)}")
    return wanted


def split_rows(y: Tensor, test_fraction: float, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Ids of training and of test rows, each in ascending order, that is, in the order of collection.

    ``random`` draws round(test_fraction * n) of the n rows of each class, at least 1 and at most
    n - 1; ``last`` takes the last round(test_fraction * N) rows.

    Args:
        y: (N,) class ids.
        test_fraction: in [0, 1); 0 keeps every row for training.
        split: ``random`` or ``last``.
        seed: of the draw; the data's own, so that all runs share one split.
    """
    check_split(test_fraction, split)
    test = torch.zeros(len(y), dtype=torch.bool)
    if test_fraction > 0 and split == "last":
        test[len(y) - round(test_fraction * len(y)) :] = True
    elif test_fraction > 0:
        draw = generator(seed, "source", "split")
        for label in y.bincount().nonzero()[:, 0].tolist():
            rows = (y == label).nonzero().flatten()
            count = min(max(1, round(test_fraction * len(rows))), len(rows) - 1)
            test[rows[torch.randperm(len(rows), generator=draw)[:count]]] = True
    return (~test).nonzero().flatten(), test.nonzero().flatten()


def check_split(test_fraction: float, split: str) -> None:
    """Refuse a share outside [0, 1), and an unknown way to split."""
    if not 0 <= test_fraction < 1:
        raise UserError(f"test_fraction={test_fraction} must be in [0, 1); 0 means no test rows")
    if split not in ("random", "last"):
        raise UserError(f"split={split!r} is unknown{nearest(str(split), ['random', 'last'])}")


def check_trained(y_train: Tensor, names: Sequence[str], name: str) -> None:
    """Raise a UserError if a class has no training row: a guard against a split by accident."""
    absent = [text for label, text in enumerate(names) if not (y_train == label).any()]
    if absent:
        fix = f"split=random, or classes=[{', '.join(names)}] to say that it is meant"
        raise UserError(f"{name}: class {absent[0]!r} has no training row; set {fix}")
