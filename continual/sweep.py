"""Several runs in one process: all are checked before one is run, and one that fails does not end the others."""

import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from continual import config as configs
from continual import ledger
from continual.config import INDECISIVE, Config
from continual.environment import explained
from continual.errors import UserError
from continual.experiment import Progress, Run, run_config
from continual.manifest import redact_text
from continual.types import Spec

TRACEBACK = "traceback.txt"


@dataclass(frozen=True)
class Outcome:
    """How one run of several went.

    Attributes:
        config: what was to be run.
        run: None if it failed.
        error: why it failed, None if it did not.
    """

    config: Config
    run: Run | None
    error: Exception | None = None


def check(jobs: Sequence[Config]) -> None:
    """Build the stream, learner, probe and tracker of each job, once for jobs that differ by seed only.

    Raises:
        UserError: what a run would raise before its training, or a run directory that cannot be written.
    """
    specs: dict[str, Spec] = {}
    checked: set[str] = set()
    for job in jobs:
        check_place(job.directory)
        stream, whole = _key(job, ("scenario", "operator")), _key(job, sorted(job.unresolved.keys() - INDECISIVE))
        if stream not in specs:
            specs[stream] = configs.build_stream(job).spec
        if whole not in checked:
            configs.build_learner(job, specs[stream])
            configs.build(job, "probe")
            configs.build(job, "track")
            checked.add(whole)


def check_place(directory: Path, setting: str = "output=...") -> None:
    """Raise a UserError if ``directory`` can be neither made nor written; ``setting`` chooses another."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is a file"
        raise UserError(f"directory {directory} cannot be made: {there} {why}; choose another place with {setting}")


def attempt(job: Config, *, restart: bool = False, progress: Progress | None = None) -> Outcome:
    """Run one config; any exception becomes a part of the outcome, apart from Ctrl-C and the like."""
    note = job.directory / TRACEBACK
    try:
        run = run_config(job, restart=restart, progress=progress)
    except Exception as error:
        told = explained(error) or error
        if not isinstance(told, UserError) and (job.directory / ledger.MANIFEST).exists():
            lines = "".join(traceback.format_exception(error)).splitlines()
            note.write_text("".join(f"{redact_text(line)}\n" for line in lines), encoding="utf-8")
            told.add_note(f"its traceback is in {note}")
        return Outcome(job, None, told)
    note.unlink(missing_ok=True)
    return Outcome(job, run)


def _key(job: Config, groups: Sequence[str]) -> str:
    """Equal for configs that agree in ``groups``, interpolations of the seed being unresolved."""
    return json.dumps({group: job.unresolved[group] for group in groups if group != "seed"}, sort_keys=True)
