"""How many runs stand, for a terminal or another program: what is done, what goes on and until when, what failed.

How much of a run is done, in [0, 1], is the rows learned by its last record, of all rows of its stream (``rows`` of its
manifest). Where that is not known it is the tasks ended, of all tasks, if no task comes back.

What is left of a run that goes on is what it took so far, times the share not done over the share done; of one that
went on after a stop, whose earlier time is not known, the median time of the finished runs of its kind, times the share
not done. Where neither can be told, or that time is over, it is not known. A run that stands still has none.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from continual import ledger
from continual.errors import UserError
from continual.glance import Glance, glance
from continual.report import text

FORMAT = 1
STATES = ("finished", "running", "interrupted", "failed", "killed", "damaged")
FIX = "the command that began a run continues it"
SHOWN = 20
"""Runs of one state that are told one by one."""

THREADS = 8
"""Looks at once: a disk, above all one on a network, answers several as fast as one."""

_STEP = re.compile(r"([0-9]{1,18})-")


@dataclass(frozen=True, slots=True)
class Standing:
    """How one run stands.

    Attributes:
        path: its directory.
        status: one of ``STATES``.
        scenario: of its manifest.
        name: of its manifest.
        seed: of its manifest.
        done: the share that is done, in [0, 1]; None if it cannot be told.
        rows_seen: rows learned by its last record.
        step: updates by its last record or snapshot.
        seconds: wall time until it ended.
        idle: seconds since it was last written to.
        left: seconds until it ends, about; None if that cannot be told.
        reason: why it was interrupted, failed, or cannot be read.
        lines: the last lines of its traceback.
    """

    path: Path
    status: str
    scenario: str = "?"
    name: str = "?"
    seed: int | None = None
    done: float | None = None
    rows_seen: int | None = None
    step: int | None = None
    seconds: float | None = None
    idle: float | None = None
    left: float | None = None
    reason: str | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one scenario and name.

    Attributes:
        counts: how many are in each state.
        done: the mean share done of those of which it is known; None if it is of none.
        left: seconds until the last of those that go on ends; None if none does, or if it cannot be told of one.
    """

    scenario: str
    name: str
    counts: dict[str, int]
    done: float | None
    left: float | None


def look(paths: Iterable[Path], now: float) -> list[Standing]:
    """All runs at and below ``paths`` as they stand ``now``, in seconds since 1970.

    Raises:
        UserError: there is no run at or below a path.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return judged(list(pool.map(lambda path: _look(path, now), ledger.find_runs(paths))))


def _look(path: Path, now: float) -> Standing:
    try:
        return standing(glance(path), now)
    except UserError as error:
        return Standing(path, "damaged", reason=str(error))


def standing(run: Glance, now: float) -> Standing:
    """What there is to tell of one run without regard to others."""
    about, last = run.manifest, run.last
    done, idle = share(run), max(now - run.updated, 0.0)
    left = None
    if run.began is not None and done and run.updated > run.began:
        left = (run.updated - run.began) * (1 - done) / done - idle
    step = None if last is None else last.step
    if run.saved is not None and (named := _STEP.match(run.saved.name)):
        step = int(named[1])
    return Standing(
        path=run.path,
        status=run.status,
        scenario=str(about.get("scenario", "?")),
        name=str(about.get("name", "?")),
        seed=about.get("seed"),
        done=done,
        rows_seen=None if last is None else last.rows_seen,
        step=step,
        seconds=run.seconds,
        idle=idle,
        left=left if left is None or left >= 0 else None,
        reason=run.reason,
        lines=run.lines,
    )


def share(run: Glance) -> float | None:
    """How much of a run is done, in [0, 1]; None if it cannot be told."""
    if run.status == "finished":
        return 1.0
    if run.last is None:
        return 0.0 if run.saved is None else None
    rows, schedule = run.manifest.get("rows"), run.manifest.get("schedule")
    if isinstance(rows, int) and rows > 0:
        return min(max(run.last.rows_seen, 0), rows) / rows  # whatever it says: no overflow
    if run.last.task is None:
        return 0.0
    if not isinstance(schedule, list) or schedule.count(run.last.task) != 1:
        return None
    return (schedule.index(run.last.task) + (run.last.at in ("end", "final"))) / len(schedule)


def judged(found: Sequence[Standing]) -> list[Standing]:
    """The same, with what is left of those that go on by the times of finished ones of their kind, if not known."""
    took: dict[tuple[str, str], list[float]] = {}
    for run in found:
        if run.status == "finished" and run.seconds is not None:
            took.setdefault((run.scenario, run.name), []).append(run.seconds)
    return [
        replace(run, left=_left(run, took[run.scenario, run.name]))
        if run.status == "running" and run.left is None and (run.scenario, run.name) in took
        else run
        for run in found
    ]


def groups(found: Iterable[Standing]) -> list[Group]:
    """One for each scenario and name, sorted; without the runs that cannot be read."""
    kinds: dict[tuple[str, str], list[Standing]] = {}
    for run in found:
        if run.status != "damaged":
            kinds.setdefault((run.scenario, run.name), []).append(run)
    return [
        Group(
            scenario=scenario,
            name=name,
            counts=dict(Counter(run.status for run in runs)),
            done=fmean(known) if (known := [run.done for run in runs if run.done is not None]) else None,
            left=longest(runs),
        )
        for (scenario, name), runs in sorted(kinds.items())
    ]


def longest(found: Iterable[Standing]) -> float | None:
    """Seconds until the last of the runs that go on ends; None if none goes on, or if it cannot be told of one."""
    left = [run.left for run in found if run.status == "running"]
    known = [seconds for seconds in left if seconds is not None]
    return max(known) if known and len(known) == len(left) else None


def as_json(found: Sequence[Standing], failed: bool = False) -> str:
    """One object: ``runs`` and, unless only those that ``failed`` are asked for, ``groups`` and ``left``."""
    if failed:
        return _json({"format": FORMAT, "runs": [asdict(run) for run in _failed(found)]})
    kinds = [asdict(group) for group in groups(found)]
    return _json({"format": FORMAT, "left": longest(found), "groups": kinds, "runs": [asdict(run) for run in found]})


def render(found: Sequence[Standing], failed: bool = False) -> str:
    """Counts, a table of the groups, and one by one the runs that have not finished; or only all that ``failed``."""
    total = Counter(run.status for run in found)
    told = ", ".join(f"{total[state]} {state}" for state in STATES if total[state])
    head = f"{len(found)} run{'s' if len(found) != 1 else ''}: {told}"
    left = longest(found)
    head += "" if left is None else f"; what runs now is over in about {duration(left)}"
    if failed:
        return "\n\n".join([head, *_failures(_failed(found), None)])
    running = [run for run in found if run.status == "running"]
    stopped = [run for run in found if run.status in ("interrupted", "killed")]
    parts = [head, _groups(groups(found), [state for state in STATES[:-1] if total[state]])]
    parts += _table("running", running, ("done", "step", "time left", "last written"))
    parts += _table("stopped", stopped, ("how", "done", "step", "last written"), f"{FIX} from its last snapshot")
    return "\n\n".join(part for part in (*parts, *_failures(_failed(found), SHOWN)) if part)


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 4 h``; ``?`` for None."""
    if seconds is None:
        return "?"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _left(run: Standing, took: Sequence[float]) -> float | None:
    if run.done is None or run.idle is None:
        return None
    left = median(took) * (1 - run.done) - run.idle
    return left if left >= 0 else None


def _failed(found: Iterable[Standing]) -> list[Standing]:
    return [run for run in found if run.status in ("failed", "damaged")]


def _groups(kinds: Sequence[Group], states: Sequence[str]) -> str:
    rows = [
        [
            _plain(f"{group.scenario} {group.name}"),
            *(str(group.counts.get(state, text.ABSENT)) for state in states),
            str(sum(group.counts.values())),
            _percent(group.done),
            duration(group.left) if "running" in group.counts else text.ABSENT,
        ]
        for group in kinds
    ]
    return text.table(["", *states, "runs", "done", "time left"], rows) if rows else ""


def _table(title: str, runs: Sequence[Standing], columns: Sequence[str], fix: str = "") -> list[str]:
    if not runs:
        return []
    cells: dict[str, Callable[[Standing], str]] = {
        "how": lambda run: run.status,
        "done": lambda run: _percent(run.done),
        "step": lambda run: "?" if run.step is None else str(run.step),
        "time left": lambda run: duration(run.left),
        "last written": lambda run: f"{duration(run.idle)} ago",
    }
    rows = [[_plain(str(run.path)), *(cells[column](run) for column in columns)] for run in runs[:SHOWN]]
    return ["\n".join([text.table([title, *columns], rows), *_more(runs, SHOWN), *([fix] if fix else [])])]


def _failures(runs: Sequence[Standing], limit: int | None) -> list[str]:
    """A block of those that failed and one of those that cannot be read, each with its reason."""
    blocks = []
    for state, fix in (("failed", f"once the cause is mended, {FIX}"), ("damaged", "")):
        these = [run for run in runs if run.status == state]
        lines = []
        for run in these[:limit]:
            reason = " ".join((run.reason or "it did not say why").split())
            lines.append(_plain(f"  {reason}" if state == "damaged" else f"  {run.path}: {reason}"))
            lines += [f"      {_plain(line)}" for line in run.lines]
        if these:
            blocks.append("\n".join([state, *lines, *_more(these, limit), *([fix] if fix else [])]))
    return blocks


def _more(runs: Sequence[Any], limit: int | None) -> list[str]:
    return [] if limit is None or len(runs) <= limit else [f"  … and {len(runs) - limit} more; --json tells all"]


def _percent(done: float | None) -> str:
    """Rounded down: what is not done is never 100%."""
    return "?" if done is None else f"{int(100 * done)}%"


def _plain(line: str) -> str:
    """Without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in line)


def _json(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=1, allow_nan=False, default=str)
