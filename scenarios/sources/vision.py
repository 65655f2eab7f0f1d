"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, read from the files that torchvision's downloads leave.

The files are read directly, packed or unpacked: importing ``torchvision.datasets`` costs seconds,
unpacking writes into the data folder and races with other runs, and its CIFAR loader unpickles.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError, nearest
from scenarios.sources.base import TensorSource
from scenarios.sources.cifar import read_cifar
from scenarios.sources.files import data_root, missing, read_bytes

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_NAMES = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")


def torchvision(name: str, root: str | None = None, input_range: Sequence[float] = (0.0, 1.0)) -> TensorSource:
    """A data set that lies on disk in torchvision's layout, with its own test rows. Nothing is downloaded or written.

    Args:
        name: ``MNIST`` or ``FashionMNIST`` ((1, 28, 28); 60,000 + 10,000 rows, 10 classes), ``CIFAR10``
            or ``CIFAR100`` ((3, 32, 32); 50,000 + 10,000 rows, 10 or 100 classes).
        root: data folder; None: the environment variable CONTINUAL_DATA, else ``./data``. It holds
            ``MNIST/raw/*-ubyte[.gz]``, ``cifar-10-batches-py/`` or ``cifar-10-python.tar.gz``, and so on.
        input_range: (low, high) that 0 and 255 are mapped to by the network.

    Raises:
        UserError: an unknown name; files that are missing, cut short or of another format.
    """
    if name not in _NAMES:
        raise UserError(f"source {name!r} is unknown{nearest(str(name), _NAMES)}")
    folder = data_root(root)
    if name.startswith("CIFAR"):
        parts, names = read_cifar(name, folder)
    else:
        parts = (*_read_mnist(name, folder, "train"), *_read_mnist(name, folder, "t10k"))
        names = _FASHION if name == "FashionMNIST" else tuple("0123456789")
    return TensorSource(*parts, class_names=names, input_range=input_range)


def _read_mnist(name: str, root: Path, part: str) -> tuple[Tensor, Tensor]:
    folder = root / name / "raw"
    x = read_idx(name, root, folder / f"{part}-images-idx3-ubyte")  # (N, 28, 28)
    y = read_idx(name, root, folder / f"{part}-labels-idx1-ubyte")  # (N,)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise UserError(f"{name}: images {tuple(x.shape)} and labels {tuple(y.shape)} in {folder} do not match")
    return x.unsqueeze(1), y.long()


def read_idx(name: str, root: Path, path: Path) -> Tensor:
    """The uint8 array of the idx file ``path``, or of ``path.gz`` beside it.

    Format: 0, 0, 8 (uint8), number of dimensions; each dimension as a big-endian int32; the values.
    """
    found = next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)
    if found is None:
        raise missing(name, root, f"{path} or {path.name}.gz")
    data = read_bytes(found)
    start = 4 + 4 * data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = tuple(np.frombuffer(data[4:start], ">i4").tolist()) if 4 < start <= len(data) else ()
    if not shape or math.prod(shape) != len(data) - start:
        raise UserError(f"{found} is not a whole idx file of uint8: {len(data)} bytes; get it again")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())
