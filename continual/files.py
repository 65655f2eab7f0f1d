"""What a run needs of the file system: writes that are whole or absent, and a lock that dies with its holder."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, SoftFileLock, UnixFileLock

# A reader that asks whether a run is alive holds its lock for an instant: not a reason to refuse a new run.
GRACE_SECONDS = 0.5
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: after a crash at any instant it holds the old bytes or the new, never a mixture.

    Written aside, fsynced and renamed; the directory, made if needed, is fsynced too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in ``directory`` survive a power cut, where its file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse to sync a directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def acquire(path: Path) -> BaseFileLock:
    """Lock the file ``path`` for this process; the kernel frees it when the process ends, however it ends.

    Where the file system has no ``flock`` the file ``<path>.soft`` stands for the lock: it names its holder, and
    one left behind by a process that died on this host is taken over. Errors: ``filelock.Timeout`` if it is held.
    """
    native = UnixFileLock(path, timeout=GRACE_SECONDS, poll_interval=0.02, thread_local=False, on_acquired=_sign)
    try:
        native.acquire()
        return native
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
    soft = SoftFileLock(_soft(path), timeout=GRACE_SECONDS, poll_interval=0.02, thread_local=False)
    soft.acquire()
    return soft


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock ``path``; leaves no trace."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _soft_is_held(path) if error.errno in NO_FLOCK else True
    finally:
        os.close(descriptor)
    return False


def holder(path: Path) -> str:
    """Who holds, or last held, the lock ``path``: ``process 123 on host``."""
    for file in (_soft(path), path):
        with suppress(OSError, ValueError):
            pid, host = file.read_text().split()[:2]
            return f"process {int(pid)} on {host.partition('?')[0]}"
    return "another process"


def signed(path: Path) -> float | None:
    """When the lock ``path`` was acquired last, in seconds since 1970 as its file system's clock tells it."""
    times = []
    for file in (_soft(path), path):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times, default=None)


def _sign(descriptor: int) -> None:
    """Write into a lock just acquired who holds it, as a soft lock does: two lines, process id and host."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)
    os.fsync(descriptor)


def _soft(path: Path) -> Path:
    return path.with_name(f"{path.name}.soft")


def _soft_is_held(path: Path) -> bool:
    if not _soft(path).exists():
        return False
    try:
        SoftFileLock(_soft(path), timeout=0).acquire().lock.release()
    except OSError:  # Timeout, which is one; or a marker that we may not touch
        return True
    return False
