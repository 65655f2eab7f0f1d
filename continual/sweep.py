"""Several runs: all are checked before one is run, and one that fails does not end the others."""

import json
import os
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from continual import config as configs
from continual import files, ledger
from continual.config import INDECISIVE, Config
from continual.environment import explained
from continual.errors import UserError
from continual.experiment import Progress, Run, finished, run_config
from continual.manifest import redact_text
from continual.types import Spec

if TYPE_CHECKING:
    from continual.cohort import Cohort
    from continual.launching import Launcher
    from continual.progress import Watcher
    from continual.worker import Job


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


def attempt(
    job: Config, *, restart: bool = False, progress: Progress | None = None, cohort: "Cohort | None" = None
) -> Outcome:
    """Run one config; any exception becomes a part of the outcome, apart from Ctrl-C and the like."""
    note = job.directory / ledger.TRACEBACK
    try:
        run = run_config(job, restart=restart, progress=progress, cohort=cohort)
    except Exception as error:
        told = explained(error) or error
        if not isinstance(told, UserError) and (job.directory / ledger.MANIFEST).exists():
            lines = "".join(traceback.format_exception(error)).splitlines()
            note.write_text("".join(f"{redact_text(line)}\n" for line in lines), encoding="utf-8")
            told.add_note(f"its traceback is in {note}")
        return Outcome(job, None, told)
    note.unlink(missing_ok=True)
    return Outcome(job, run)


def launched(launcher: "Launcher", jobs: Sequence["Job"], watch: "Watcher") -> Generator[Outcome, None, None]:
    """How each job goes, as they end: first those that have finished before, which no launcher gets to see.

    A job whose directory another process writes comes last: if that one has finished it by then, it is read.
    """
    left, busy = [], []
    for job in jobs:
        known = None if job.restart else _finished(job.config)
        if known is None:
            left.append(job)
        else:
            yield known
    unseen = [id(job.config) for job in left]
    with closing(launcher(left, watch)) as outcomes:
        for outcome in outcomes:
            unseen.remove(id(outcome.config))
            if outcome.run is None and files.is_held(outcome.config.directory / ledger.LOCK):
                busy.append(outcome)
            else:
                yield outcome
    for outcome in busy:
        yield _finished(outcome.config) or outcome
    for job in left:
        if id(job.config) in unseen:
            yield Outcome(job.config, None, UserError("its launcher did not say how it went; start it again"))


def _finished(job: Config) -> Outcome | None:
    """The run of ``job`` as it is on the disk, if it has finished."""
    with suppress(UserError):  # what is damaged is told by the run that would continue it
        run = finished(job.directory)
        return None if run is None else Outcome(job, run)
    return None


def _key(job: Config, groups: Sequence[str]) -> str:
    """Equal for configs that agree in ``groups``, interpolations of the seed being unresolved."""
    return json.dumps({group: job.unresolved[group] for group in groups if group != "seed"}, sort_keys=True)
