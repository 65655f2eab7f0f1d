"""How a run stands, from the ends of its files: for thousands of runs in a second or two.

A run costs its manifest and about 4 KiB of its records, however many there are. What is looked at is verified; damage
between the header and the last lines is left to :func:`continual.ledger.read` to find.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual import files, journal
from continual.errors import UserError
from continual.journal import Journal, Saved
from continual.ledger import LOCK, MANIFEST, RECORDS, TRACEBACK, Status, load_manifest
from continual.record import Record

HEAD, TAIL, MOST = 256, 4096, 65536
"""Bytes of the header at most, of the end that is read at first, and that are read to find a record among snapshots."""


@dataclass(frozen=True, slots=True)
class Glance:
    """How one run stands.

    Attributes:
        path: its directory.
        manifest: see :func:`continual.manifest.manifest`.
        status: as of :class:`continual.ledger.RunData`.
        last: the last record; None if there is none, or only snapshots are near the end.
        saved: the last snapshot, if it comes after that record.
        seconds: wall time until it ended; None if it did not say.
        reason: why it was interrupted or failed; None if it did not say.
        updated: when it was last written to, in seconds since 1970 as the files' clock tells it.
        began: of a run that is going on, when it began; None if it went on after a stop since.
        lines: of a run that failed, the last lines of its traceback; empty if it left none.
    """

    path: Path
    manifest: Mapping[str, Any]
    status: Status
    last: Record | None
    saved: Saved | None
    seconds: float | None
    reason: str | None
    updated: float
    began: float | None
    lines: tuple[str, ...]


def glance(directory: Path) -> Glance:
    """How the run in ``directory`` stands, also while it is written.

    Errors:
        UserError: it is not a run, or what is looked at is damaged (the file is named) or newer.
    """
    running = files.is_held(directory / LOCK)  # before the file: as in continual.ledger.read
    manifest, text = load_manifest(directory)
    content, updated = _content(directory / RECORDS, text)
    status: Status = content.end.get("end", "running" if running else "killed")
    return Glance(
        path=directory,
        manifest=manifest,
        status=status,
        last=content.records[-1] if content.records else None,
        saved=next((saved for saved in content.saved[-1:] if saved.mark.records == len(content.records)), None),
        seconds=content.end.get("seconds"),
        reason=content.end.get("reason"),
        updated=updated,
        began=_began(directory) if status == "running" else None,
        lines=_last_lines(directory / TRACEBACK, updated) if status == "failed" else (),
    )


def _content(path: Path, manifest: bytes) -> tuple[Journal, float]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            about = os.fstat(descriptor)
            return _ends(descriptor, about.st_size, manifest, str(path)), about.st_mtime
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _ends(descriptor: int, size: int, manifest: bytes, name: str) -> Journal:
    """Read from the end backwards until there is a record, or many snapshots; or all of it."""
    length, head = TAIL, b""
    while length < size:
        head = head or os.pread(descriptor, HEAD, 0)
        found = journal.ends(head, os.pread(descriptor, length, size - length), manifest, name)
        if found is not None and (found.records or (found.saved and length >= MOST)):
            return found
        length *= 4
    return journal.parse(os.pread(descriptor, size, 0), manifest, name)


def _began(directory: Path) -> float | None:
    """When it began, if the process that signed the lock is the one that wrote the manifest a moment later."""
    with suppress(OSError):
        written, signed = (directory / MANIFEST).stat().st_mtime, files.signed(directory / LOCK)
        return written if signed is not None and signed <= written else None
    return None


def _last_lines(path: Path, ended: float, n: int = 3) -> tuple[str, ...]:
    """The last lines of a traceback that is not older than the run's end, without those that only underline."""
    with suppress(OSError), path.open("rb") as file:
        about = os.fstat(file.fileno())
        if about.st_mtime >= ended:
            file.seek(max(about.st_size - TAIL, 0))
            lines = [line.rstrip() for line in file.read(TAIL).decode(errors="replace").splitlines()]
            return tuple(line for line in lines if line.strip(" ^~"))[-n:]
    return ()
