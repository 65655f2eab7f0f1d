"""CIFAR's Python files are pickles: this reader builds arrays, lists, dicts and strings from them, and runs nothing."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError
from scenarios.sources.files import missing, read_bytes

Parts = tuple[Tensor, Tensor, Tensor, Tensor]


class _File(NamedTuple):
    path: Path
    content: bytes


class _Layout(NamedTuple):
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str


_LAYOUTS: Mapping[str, _Layout] = {
    "CIFAR10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        names="label_names",
    ),
    "CIFAR100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
}


def read_cifar(name: str, root: Path) -> tuple[Parts, tuple[str, ...]]:
    """``(x_train, y_train, x_test, y_test)`` and the class names of ``CIFAR10`` or ``CIFAR100``.

    Rows are (3, 32, 32) uint8, labels int64 (CIFAR-100: the 100 fine ones). Reads the unpacked
    folder if it is there, else the archive, which stays packed.

    Raises:
        UserError: neither is there; a file is missing, cut short, or holds anything but arrays,
            lists, dicts, numbers and strings.
    """
    layout = _LAYOUTS[name]
    files = _files(name, root, layout)
    x_train, y_train = _rows([files[file] for file in layout.train], layout.labels)
    x_test, y_test = _rows([files[file] for file in layout.test], layout.labels)
    names = _load(files[layout.meta]).get(layout.names)
    if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
        raise UserError(f"{files[layout.meta].path} has no list {layout.names!r}")
    return (x_train, y_train, x_test, y_test), tuple(names)


def _files(name: str, root: Path, layout: _Layout) -> dict[str, _File]:
    """The needed files by their names."""
    folder, archive = root / layout.folder, root / layout.archive
    wanted = [*layout.train, *layout.test, layout.meta]
    if folder.is_dir():
        found = {file: _File(folder / file, read_bytes(folder / file)) for file in wanted if (folder / file).is_file()}
    elif archive.is_file():
        found = _unpacked(archive, layout.folder, wanted)
    else:
        raise missing(name, root, f"{folder} or {layout.archive}")
    for file in wanted:
        if file not in found:
            where = folder if folder.is_dir() else archive
            raise UserError(f"{name}: no {file} in {where}; get the data set again")
    return found


def _unpacked(archive: Path, folder: str, wanted: list[str]) -> dict[str, _File]:
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:  # one pass: going back would unpack from the start again
                parent, _, file = member.name.rpartition("/")
                content = tar.extractfile(member) if parent == folder and file in wanted else None
                if content is not None:
                    found[file] = _File(archive / member.name, content.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot unpack {archive}: {error}; get it again") from error
    return found


def _rows(files: list[_File], labels: str) -> tuple[Tensor, Tensor]:
    """Rows (N, 3, 32, 32) uint8 and labels (N,) int64 of some batches."""
    xs, ys = [], []
    for file in files:
        batch = _load(file)
        x, y = batch.get("data"), batch.get(labels)
        if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3072:
            raise UserError(f"{file.path}: 'data' is not an array (N, 3072)")
        if not isinstance(y, list) or len(y) != len(x) or not all(isinstance(label, int) for label in y):
            raise UserError(f"{file.path}: {labels!r} is not a list of {len(x)} integers")
        xs.append(torch.from_numpy(x))
        ys.append(torch.tensor(y, dtype=torch.int64))
    return torch.cat(xs).view(-1, 3, 32, 32), torch.cat(ys)


def _load(file: _File) -> dict[str, Any]:
    try:
        loaded = _ArraysOnly(io.BytesIO(file.content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises anything at all
        raise UserError(f"cannot read {file.path}: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{file.path} holds a {type(loaded).__name__}, not a dict")
    return loaded


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and built-in containers; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return allowed


def _dtype(spec: str, align: int = 0, copy: int = 0) -> np.dtype[Any]:
    """``numpy.dtype`` for files of Python 2, which say 0 and 1 where NumPy wants booleans."""
    if spec not in ("u1", "|u1"):
        raise pickle.UnpicklingError(f"it holds an array of {spec!r}, not of bytes")
    return np.dtype(spec, align=bool(align), copy=bool(copy))


def _latin1(text: str, encoding: str) -> bytes:
    """``_codecs.encode`` for the one encoding in which old pickles hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # type: ignore[dict-item]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}
