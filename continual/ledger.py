"""The ledger of one run: an append-only file of records beside a manifest, readable at any instant.

A run directory holds::

    manifest.json     what was run, see :mod:`continual.manifest`
    records.jsonl     what was measured, see :mod:`continual.journal`
    snapshots/        what the run can go on from, see :mod:`continual.checkpoint`
    lock              held, and signed, by the process that writes
    alerts.txt        which alerts were raised, see :mod:`continual.alerts`
    traceback.txt     of the error by which the run failed last, see :mod:`continual.sweep`
    *.<n>*            manifests, records and snapshots of runs that were started over here
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import Timeout

from continual import files, journal
from continual.errors import UserError, nearest
from continual.journal import End, Journal, Mark, Saved
from continual.manifest import FORMAT, redact_text
from continual.record import Record

SYNC_SECONDS = 2.0
MANIFEST, RECORDS, SNAPSHOTS, LOCK = "manifest.json", "records.jsonl", "snapshots", "lock"
TRACEBACK = "traceback.txt"

Status = Literal[End, "running", "killed"]


@dataclass(frozen=True, slots=True)
class RunData:
    """What is on disk about one run.

    Attributes:
        path: its directory.
        manifest: see :func:`continual.manifest.manifest`.
        records: all complete records, in the order they were written.
        status: ``finished``, ``interrupted`` or ``failed`` if it said so itself; else ``running`` if a living process
            holds its lock, and ``killed`` if none does.
        seconds: wall time until it ended, without the time lost to kills; None if it did not say.
        reason: why it was interrupted or failed; None if it did not say.
        saved: the snapshots that it names, oldest first; not all are kept.
        resumed: for each time it went on, what differed from how it began: name -> [before, then].
    """

    path: Path
    manifest: dict[str, Any]
    records: list[Record]
    status: Status
    seconds: float | None
    reason: str | None
    saved: Sequence[Saved] = ()
    resumed: Sequence[Mapping[str, Any]] = ()


class Ledger:
    """The writer of one run.

    ::

        with Ledger.create(directory, manifest) as ledger:
            ledger.append(records)

    Leaving the block ends the run: ``finished``, or ``interrupted`` by a KeyboardInterrupt or SystemExit, or
    ``failed`` with the exception as reason. A record is with the operating system once it is appended, so a killed
    process loses none; appending brings it to the disk at least every 2 seconds, so a power cut loses what came
    since. Not for several threads at once.

    Errors:
        UserError: the disk is full, or the directory went away; what was written before is whole.
    """

    def __init__(
        self,
        path: Path,
        resources: ExitStack,
        mark: Mark,
        seconds: float,
        manifest: Mapping[str, Any],
        content: Journal,
    ) -> None:
        self.path = path
        self.manifest, self.content = manifest, content  # what it held when it was opened
        self._resources = resources
        self._mark = mark
        self._file = os.open(path / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        resources.callback(os.close, self._file)
        self._ended = False
        self._synced, self._flushed = time.monotonic(), 0  # when, and up to which byte
        self._began = self._synced - seconds

    @classmethod
    def create(cls, directory: Path, manifest: Mapping[str, Any], *, restart: bool = False) -> Self:
        """Begin a run in ``directory``, made if needed.

        Args:
            directory: one per run.
            manifest: plain JSON values.
            restart: start over where a run is already; its files are renamed ``manifest.<n>.json``,
                ``records.<n>.jsonl`` and ``snapshots.<n>``, n counting from 1.

        Errors:
            UserError: the directory cannot be written, is in use by another process, or holds a run and ``restart``
                is False.
        """
        text = json.dumps({"format": FORMAT, **manifest}, indent=1, allow_nan=False).encode()
        with _locked(directory) as resources:
            if not restart and (directory / MANIFEST).exists():
                fix = "resume it, choose another directory, or start over with restart=true, which keeps the old files"
                raise UserError(f"{directory} holds a run already, {_state(directory)}; {fix}")
            _set_aside(directory)
            ledger = cls(directory, resources, Mark(), 0.0, manifest, journal.parse(b"", b"", ""))
            ledger._write(journal.header(text))
            ledger.flush()
            files.write_atomic(directory / MANIFEST, text)  # last: from here on the directory is a run
        return ledger

    @classmethod
    def resume(cls, directory: Path, keep: int | None = None) -> Self:
        """Go on with a run that was interrupted, failed or killed; its end line and a torn last line are cut.

        Args:
            directory: where the run is.
            keep: how many records to keep, all if None. What a run measures again has to go first, see :meth:`cut`.

        Errors:
            UserError: there is no run, or it finished, is damaged, in use, or has fewer than ``keep`` records.
        """
        if not (directory / MANIFEST).exists():
            raise UserError(f"{directory} holds no run to resume: it has no {MANIFEST}{_neighbours(directory)}")
        with _locked(directory) as resources:
            manifest, content = _load(directory)
            if content.end.get("end") == "finished":
                raise UserError(f"the run in {directory} has finished; start over with restart=true, or leave it")
            if not 0 <= (keep or 0) < len(content.marks):
                have = f"{len(content.records)} records" if content.marks else "no header"
                kept = keep or 0
                raise UserError(f"the run in {directory} has {have}, cannot keep {kept}; start over with restart=true")
            mark = content.last if keep is None else content.marks[keep]
            ledger = cls(directory, resources, mark, content.end.get("seconds", 0.0), manifest, content)
            ledger.flush()
        return ledger

    def cut(self, saved: Saved | None) -> list[Record]:
        """Take back what was written after the snapshot ``saved``, or all if None; the records that remain.

        A run that goes on from a snapshot measures again what came after it.
        """
        self._mark = self.content.marks[0] if saved is None else saved.mark
        self.flush()
        return self.content.records[: self._mark.records]

    @property
    def count(self) -> int:
        """Records in the ledger."""
        return self._mark.records

    def append(self, records: Iterable[Record]) -> None:
        """Write ``records`` one by one as they come, so that a generator may be a whole run.

        Bring what was written to the disk if that was not done for 2 seconds, also if there are no further records.
        """
        for record in records:
            self._write(journal.record(record))
            self._keep_up()
        self._keep_up()

    def save(self, name: str, sha256: str, score: float | None) -> Saved:
        """Name a snapshot that is on the disk: the run can go on from it."""
        self._write({"snapshot": name, "sha256": sha256, "score": score})
        self.flush()
        return Saved(name, sha256, score, self._mark)

    def resumed(self, differences: Mapping[str, Any]) -> None:
        """Say that the run goes on here, and what differs from how it began."""
        self._write({"resumed": dict(differences)})
        self.flush()

    def flush(self) -> None:
        """Bring all that was appended to the disk itself."""
        with self._telling():
            os.ftruncate(self._file, self._mark.size)  # a write that failed may have left bytes after it
            os.fsync(self._file)
        self._synced, self._flushed = time.monotonic(), self._mark.size

    def end(self, status: End, reason: str | None = None) -> None:
        """Say how the run ended; nothing can be appended afterwards. Secrets in ``reason`` are redacted."""
        reason = None if reason is None else redact_text(reason)
        self._write({"end": status, "seconds": time.monotonic() - self._began, "reason": reason})
        self.flush()
        self._ended = True

    def close(self) -> None:
        """Free the directory; a run that was not ended counts as killed."""
        self._ended = True
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(*([UserError] if error else [])):  # the disk is full: what told it first is what counts
                if not self._ended:
                    self._end_by(error)
        finally:
            self.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "make room, or make it writable; then the same command continues"
            raise UserError(f"{self.path / RECORDS} cannot be written: {error.strerror or error}; {fix}") from error

    def _end_by(self, error: BaseException | None) -> None:
        if error is None:
            self.end("finished")
        else:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            self.end("interrupted" if interrupted else "failed", f"{type(error).__name__}: {error}".removesuffix(": "))

    def _keep_up(self) -> None:
        if self._mark.size > self._flushed and time.monotonic() - self._synced >= SYNC_SECONDS:
            self.flush()

    def _write(self, body: dict[str, Any]) -> None:
        if self._ended:
            raise RuntimeError(f"the ledger of {self.path} has ended; nothing can be appended")
        line, after = journal.line(body, self._mark)
        done = 0
        with self._telling():
            while done < len(line):
                done += os.pwrite(self._file, line[done:], self._mark.size + done)
        self._mark = after  # one assignment: after an interrupt or a full disk the next write starts at a whole line


def read(directory: Path) -> RunData:
    """Read a run, also while it is written.

    Errors:
        UserError: ``directory`` is not a run, or a file of it is damaged (naming file and line) or newer.
    """
    # The lock before the file: a run that ends in between is then seen to have ended.
    running = files.is_held(directory / LOCK)
    manifest, content = _load(directory)
    status: Status = content.end.get("end", "running" if running else "killed")
    end = content.end
    seconds, reason = end.get("seconds"), end.get("reason")
    return RunData(directory, manifest, content.records, status, seconds, reason, content.saved, content.resumed)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """All run directories (those with a ``manifest.json``) at and below ``paths``, sorted, each once.

    Symbolic links below a path are not followed, and runs inside runs are not looked for.

    Errors:
        UserError: there is nothing at a path, or no run at or below it.
    """
    runs: dict[Path, Path] = {}
    for path in paths:
        found = list(_runs_below(path))
        if not found:
            what = f"holds no run (a directory with {MANIFEST})" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}{_neighbours(path)}")
        real = path.resolve()  # of a run below it then, too, as links below are not followed
        runs.update((real / run.relative_to(path), run) for run in found)
    return sorted(runs.values())


def _runs_below(path: Path) -> Iterator[Path]:
    for root, directories, names in os.walk(path):
        if MANIFEST in names:
            directories.clear()
            yield Path(root)


def _neighbours(path: Path) -> str:
    """The nearest directory beside ``path``, or all of them if they are few."""
    path = path.absolute()
    names = [item.name for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
    hint = nearest(path.name, set(names) - {path.name})
    return hint if hint.endswith("?") or len(names) <= 10 else ""


def load_manifest(directory: Path) -> tuple[dict[str, Any], bytes]:
    """What the manifest of a run says, and its bytes.

    Errors:
        UserError: ``directory`` is not a run, or its manifest is damaged or newer.
    """
    text = _bytes(directory / MANIFEST)
    try:
        manifest = json.loads(text.decode())  # what is wrong with it is found by the records' header
        version = manifest["format"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{directory / MANIFEST} is damaged, or not the manifest of a run: {error}") from None
    if version != FORMAT:
        raise UserError(
            f"{directory / MANIFEST} is in format {version}, this version reads {FORMAT}; upgrade continual"
        )
    return manifest, text


def _load(directory: Path) -> tuple[dict[str, Any], Journal]:
    manifest, text = load_manifest(directory)
    return manifest, journal.parse(_bytes(directory / RECORDS), text, str(directory / RECORDS))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run: it has no {path.name}{_neighbours(path.parent)}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def _locked(directory: Path) -> Iterator[ExitStack]:
    """Make and lock a run directory; give the lock back if what follows fails."""
    resources = ExitStack()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        resources.callback(files.acquire(directory / LOCK).release)
        for half_written in directory.glob(".*.tmp"):  # by a process that was killed
            half_written.unlink(missing_ok=True)
        yield resources
    except BaseException as error:
        resources.close()
        if isinstance(error, Timeout):
            holder = files.holder(directory / LOCK)
            fix = "wait for it, stop it, or choose another directory"
            raise UserError(f"{directory} is in use by {holder}; {fix}") from None
        if isinstance(error, OSError):
            reason, fix = error.strerror or error, "choose another, or make it writable"
            raise UserError(f"run directory {directory} cannot be written: {reason}; {fix}") from None
        raise


def _state(directory: Path) -> str:
    try:
        _, content = _load(directory)
    except UserError as error:
        return f"damaged ({error})"
    return f"{content.end.get('end', 'killed')} after {len(content.records)} records"


def _set_aside(directory: Path) -> None:
    """Rename what an earlier run left; the manifest first, without which a directory is no run."""
    number = 1
    while any(_numbered(directory / name, number).exists() for name in (MANIFEST, RECORDS, SNAPSHOTS)):
        number += 1
    for name in (MANIFEST, RECORDS, SNAPSHOTS):
        if (directory / name).exists():
            (directory / name).rename(_numbered(directory / name, number))
    files.sync_directory(directory)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")
