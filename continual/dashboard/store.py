"""Runs that have ended, kept on disk as the page needs them: hundredths of what reading them takes.

A kept run counts as long as its manifest and records have the size and the time of change that they had, and the code
and configs that read it are the same. What is not covered: a file changed without a trace in size or time. Nothing
kept is ever needed: a file that is missing, damaged or stale, or a folder that cannot be written, costs only time.
"""

import hashlib
import io
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import continual
from continual import choices, files, ledger
from continual.dashboard.trace import Trace
from continual.report.compare import Entry

DAYS = 60
"""Age at which a file is thrown away; a run that is still looked at is then read once more."""

READERS = (
    *("types.py", "journal.py", "manifest.py", "ledger.py", "timeline.py", "metrics.py"),
    *("dashboard/trace.py", "dashboard/store.py", "dashboard/cache.py", "report/show.py", "config.py", "overrides.py"),
)
"""The code through which a run comes here."""

SCALARS = ("metrics", "rows_seen", "begun")
ARRAYS = tuple(field.name for field in fields(Trace) if field.name not in SCALARS)


@dataclass(frozen=True)
class Run:
    """What the page needs of one run.

    Attributes:
        entry: the run in a comparison.
        seconds: wall time until it ended; None if it did not say.
        difference: the overrides that make its config from the defaults, without seed, output and tracking.
        trace: what was measured over time.
    """

    entry: Entry
    seconds: float | None
    difference: list[str]
    trace: Trace

    @property
    def has_ended(self) -> bool:
        """Whether it said itself how it ended."""
        return self.entry.status not in ("running", "killed")


def stamp(path: Path) -> str:
    """Size and time of change of a run's files; empty if one cannot be looked at."""
    try:
        facts = [(path / name).stat() for name in (ledger.MANIFEST, ledger.RECORDS)]
    except OSError:
        return ""
    return " ".join(f"{fact.st_size}:{fact.st_mtime_ns}" for fact in facts)


class Store:
    """One file per run in ``folder``; None for the user's own cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def get(self, path: Path, stamp: str) -> Run | None:
        """The run in directory ``path`` if it was kept with this stamp by this code."""
        with suppress(Exception):  # who knows what a damaged file raises
            kept = np.load(io.BytesIO(self._file(path).read_bytes()), allow_pickle=False)
            facts = json.loads(kept["facts"].tobytes())
            if (facts["stamp"], facts["code"]) == (stamp, self._code):
                trace = Trace(**facts["trace"], **{name: kept[name] for name in ARRAYS})
                return Run(Entry(path, **facts["entry"], metrics=trace.metrics), **facts["run"], trace=trace)
        return None

    def put(self, run: Run, stamp: str) -> None:
        """Keep a run, if that can be had."""
        facts = {
            "stamp": stamp,
            "code": self._code,
            "trace": {name: getattr(run.trace, name) for name in SCALARS},
            "entry": {name: getattr(run.entry, name) for name in ("status", "reason", "manifest")},
            "run": {name: getattr(run, name) for name in ("seconds", "difference")},
        }
        arrays: dict[str, Any] = {name: getattr(run.trace, name) for name in ARRAYS}
        out = io.BytesIO()
        np.savez(out, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
        with suppress(OSError):
            files.write_atomic(self._file(run.entry.path), out.getvalue())

    def _file(self, path: Path) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.npz"

    @cached_property
    def folder(self) -> Path:
        """Where the files are; old ones are thrown away once."""
        import platformdirs

        folder = self._folder or Path(platformdirs.user_cache_dir("continual", appauthor=False)) / "dashboard"
        with suppress(OSError):
            for file in folder.glob("*.npz"):
                if file.stat().st_mtime < time.time() - DAYS * 86400:
                    file.unlink()
        return folder

    @cached_property
    def _code(self) -> str:
        """Digest of what makes a run from its files: what other code has kept is stale."""
        root, digest = Path(continual.__file__).parent, hashlib.sha256()
        for file in (*(root / name for name in READERS), *sorted(choices.conf_directory().rglob("*.yaml"))):
            digest.update(file.read_bytes())
        return digest.hexdigest()
