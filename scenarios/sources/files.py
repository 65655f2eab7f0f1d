"""Opening what a user named: paths, compressed files, and errors that say where was looked."""

import bz2
import gzip
import lzma
import os
import zlib
from pathlib import Path

from continual.errors import UserError, nearest


def data_root(root: str | None) -> Path:
    """The absolute data folder: ``root``, else the environment variable CONTINUAL_DATA, else ``./data``."""
    chosen = root if root is not None else os.environ.get("CONTINUAL_DATA") or "data"
    return Path(chosen).expanduser().absolute()


def existing_folder(path: str) -> Path | None:
    """The absolute path of a folder that exists, looked up as in :func:`existing_file`; None if there is none."""
    given = Path(path).expanduser()
    return next((place for place in (given.absolute(), data_root(None) / given) if place.is_dir()), None)


def existing_file(path: str) -> Path:
    """The absolute path of a file that exists and is not empty, or a UserError.

    A relative path is looked up from the working directory, then in the data folder (see :func:`data_root`).
    """
    given = Path(path).expanduser()
    places = list(dict.fromkeys((given.absolute(), data_root(None) / given)))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        folder = "; that is a folder" if places[0].is_dir() else ""
        elsewhere = "; set CONTINUAL_DATA to the data folder, or give the whole path" if len(places) > 1 else ""
        raise UserError(f"no file {', nor '.join(map(str, places))}{folder or _similar(places[0]) or elsewhere}")
    if found.stat().st_size == 0:
        raise UserError(f"{found} is empty")
    return found


def _similar(file: Path) -> str:
    """The file beside ``file`` with the nearest name, if there is one."""
    beside = [other.name for other in file.parent.iterdir() if other.is_file()] if file.parent.is_dir() else []
    hint = nearest(file.name, beside)
    return hint if hint.endswith("?") else ""


def read_bytes(path: Path) -> bytes:
    """Contents of a file, unpacked if its name ends in .gz, .bz2 or .xz."""
    unpack = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}.get(path.suffix.lower())
    try:
        data = path.read_bytes()
        return data if unpack is None else unpack(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def missing(name: str, root: Path, looked: str) -> UserError:
    """The error for a torchvision data set that is not on disk: where was looked, and how to get it."""
    fetch = f"from torchvision.datasets import {name}; {name}({str(root)!r}, download=True)"
    return UserError(
        f"{name}: no {looked}; set scenario.source.root or CONTINUAL_DATA to the folder that holds it, "
        f"or fetch it where there is a network: python -c {fetch!r}"
    )
