"""Folders of images, one folder per class."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError, nearest
from scenarios.sources.base import LazySource, TensorSource
from scenarios.sources.labels import split_rows

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MODES: Mapping[int, str] = {1: "L", 3: "RGB"}


class _Row(NamedTuple):
    file: Path
    label: int


def image_folder(
    root: str,
    size: int | Sequence[int],
    channels: int = 3,
    test_fraction: float = 0.2,
    seed: int = 0,
    resident: bool = False,
    input_range: Sequence[float] = (0.0, 1.0),
    workers: int = 1,
) -> LazySource | TensorSource:
    """Images ``root/<class>/*``, or ``root/train/<class>/*`` and ``root/test/<class>/*``: uint8 (channels, H, W).

    Classes are the folders' names in sorted order, rows are sorted by class and file name. Hidden
    files and files with other endings than ``ENDINGS`` are not images and are passed over.

    Args:
        root: the folder.
        size: H = W in pixels, or [H, W]; images are resized to it (bilinear, aspect not kept).
        channels: 3 (RGB) or 1 (grey).
        test_fraction: share of each class that is kept for testing, in [0, 1); not used with ``root/test``.
        seed: of that split; the data's own, so that all runs share one split.
        resident: hold all rows in memory, instead of reading files each time rows are asked for.
        input_range: (low, high) that 0 and 255 are mapped to by the network.
        workers: threads that read images which are not resident before they are needed; 0: none.

    Raises:
        UserError: no such folder; no images; a file that is no image, or has 16 bits per channel
            (headers are read now, pixels when they are needed).
    """
    shape = _checked_size(size, channels)
    top = Path(root).expanduser().absolute()
    if not top.is_dir():
        raise UserError(f"no folder {top}" + ("; that is a file" if top.is_file() else ""))
    train, test, names = _parts(top, test_fraction, seed)
    rows = [*train, *test]
    for row in rows:
        _check_header(row.file)
    source = LazySource(
        lambda row: read_image(rows[row].file, shape),
        torch.tensor([row.label for row in train]),
        torch.tensor([row.label for row in test], dtype=torch.int64),
        identity=[f"{row.file.relative_to(top).as_posix()} {row.file.stat().st_size}" for row in rows],
        class_names=names,
        input_range=input_range,
        workers=0 if resident else workers,
    )
    return source.resident() if resident else source


def read_image(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """The image in ``file`` as uint8 of ``shape`` (C, H, W)."""
    from PIL import Image

    channels, height, width = shape
    with _opened(file) as image:
        resized = image.convert(MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized).reshape(height, width, channels)).permute(2, 0, 1)


@contextmanager
def _opened(file: Path) -> Iterator["PILImage"]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {file}: {error}") from error


def _check_header(file: Path) -> None:
    with _opened(file) as image:
        mode = image.mode
    if mode.startswith(("I", "F")):
        raise UserError(f"{file} has more than 8 bits per channel (mode {mode}); convert it to 8 bits")


def _checked_size(size: int | Sequence[int], channels: int) -> tuple[int, int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise UserError(f"size={size} must be a number of pixels, or [height, width], each at least 1")
    if channels not in MODES:
        raise UserError(f"channels={channels} must be 1 (grey) or 3 (RGB)")
    return channels, sides[0], sides[1]


def _parts(top: Path, test_fraction: float, seed: int) -> tuple[list[_Row], list[_Row], list[str]]:
    """Training rows, test rows and class names."""
    inner = top / "train" if (top / "train").is_dir() else top
    names = _class_folders(inner)
    if len(names) < 2:
        raise UserError(f"{inner} holds {len(names)} class folders; it needs at least 2: {inner}/<class>/<image>")
    rows = [row for label, name in enumerate(names) for row in _images(inner / name, label)]
    for label, name in enumerate(names):
        if all(row.label != label for row in rows):
            raise UserError(f"no images in {inner / name}; every class needs some ({', '.join(sorted(ENDINGS))})")
    if inner == top or not (top / "test").is_dir():
        train, test = split_rows(torch.tensor([row.label for row in rows]), test_fraction, "random", seed)
        return [rows[row] for row in train.tolist()], [rows[row] for row in test.tolist()], names
    for name in _class_folders(top / "test"):
        if name not in names:
            raise UserError(f"{top / 'test' / name}: no class of that name in {inner}{nearest(name, names)}")
    return rows, [row for label, name in enumerate(names) for row in _images(top / "test" / name, label)], names


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path, label: int) -> list[_Row]:
    files = (path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and not path.name.startswith("."))
    return [_Row(file, label) for file in sorted(files)]
