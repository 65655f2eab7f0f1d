"""Folders of images, one folder per class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError, nearest
from scenarios.sources.base import LazySource, TensorSource
from scenarios.sources.labels import split_rows

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MODES: Mapping[int, str] = {1: "L", 3: "RGB"}


def image_folder(
    root: str,
    size: int | Sequence[int],
    channels: int = 3,
    test_fraction: float = 0.2,
    seed: int = 0,
    resident: bool = False,
    input_range: Sequence[float] = (0.0, 1.0),
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

    Raises:
        UserError: no such folder; no images; a file that is no image, or has 16 bits per channel
            (headers are read now, pixels when they are needed).
    """
    shape = _checked_size(size, channels)
    top = Path(root).expanduser().absolute()
    if not top.is_dir():
        raise UserError(f"no folder {top}" + ("; that is a file" if top.is_file() else ""))
    parted, tested = (top / "train").is_dir(), (top / "train").is_dir() and (top / "test").is_dir()
    files, y, names = _listed(top / "train" if parted else top, None)
    train, test = split_rows(y, 0.0 if tested else test_fraction, "random", seed)
    if tested:
        test_files, test_y, _ = _listed(top / "test", names)
        test = torch.arange(len(files), len(files) + len(test_files))
        files, y = files + test_files, torch.cat([y, test_y])
    files = [files[row] for row in [*train.tolist(), *test.tolist()]]
    for file in files:
        _check_header(file)
    source = LazySource(
        lambda row: read_image(files[row], shape),
        y[train],
        y[test],
        identity=[f"{file.relative_to(top).as_posix()} {file.stat().st_size}" for file in files],
        class_names=names,
        input_range=input_range,
    )
    return source.resident() if resident else source


def read_image(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """The image in ``file`` as uint8 of ``shape`` (C, H, W)."""
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(file) as image:
            resized = image.convert(MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {file}: {error}") from error
    return torch.from_numpy(np.array(resized).reshape(height, width, channels)).permute(2, 0, 1)


def _checked_size(size: int | Sequence[int], channels: int) -> tuple[int, int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise UserError(f"size={size} must be a number of pixels, or [height, width], each at least 1")
    if channels not in MODES:
        raise UserError(f"channels={channels} must be 1 (grey) or 3 (RGB)")
    return channels, sides[0], sides[1]


def _listed(folder: Path, names: Sequence[str] | None) -> tuple[list[Path], Tensor, list[str]]:
    """Image files sorted by class and name, their class ids, and the classes' names."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    classes = found if names is None else list(names)
    for name in found:
        if name not in classes:
            raise UserError(f"{folder / name} has no counterpart among the training folders{nearest(name, classes)}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(
            path for path in (folder / name).glob("*") if path.suffix.lower() in ENDINGS and path.name[0] != "."
        )
        if not inside and names is None:
            raise UserError(
                f"no images in {folder / name}; every folder is a class and needs some ({', '.join(sorted(ENDINGS))})"
            )
        files += inside
        labels += [label] * len(inside)
    if len(found) < 2 and names is None:
        raise UserError(
            f"{folder} holds {len(found)} class folders; a classifier needs at least 2: {folder}/<class>/<image>"
        )
    return files, torch.tensor(labels, dtype=torch.int64), classes


def _check_header(file: Path) -> None:
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode = image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {file}: {error}") from error
    if mode.startswith(("I", "F")):
        raise UserError(f"{file} has more than 8 bits per channel (mode {mode}); convert it to 8 bits")
