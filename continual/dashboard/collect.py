"""Run directories to the page's data: one JSON object, told key by key below.

Accuracies are fractions in [0, 1] rounded to 4 decimals; None is *not measured*. Names, labels and configs are the
users' own text and pass unchanged: whoever shows them escapes them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from continual import ledger
from continual.dashboard.cache import Cache
from continual.dashboard.store import Run
from continual.dashboard.trace import Trace
from continual.errors import UserError
from continual.report import text
from continual.report.compare import Block, Entry, Row, arrange
from continual.report.notes import notes
from continual.report.sense import BETTER, COSTS, OVER_TIME, colours, role
from continual.report.table import PREQUENTIAL, STANDARD

FORMAT = 1
LINK = "wandb-url.txt"


def collect(paths: Iterable[str | Path], cache: Cache | None = None, *, strict: bool = True) -> dict[str, Any]:
    """The page about all runs at and below ``paths``.

    Args:
        paths: folders that are runs or hold some; looked through anew at each call.
        cache: runs read before; None for one that knows those on disk.
        strict: False tells paths without runs and damaged runs in the page's ``notes`` and leaves them out.

    Returns:
        ``format``, ``title``, ``made``, ``version`` (changes if anything but ``made`` does), ``notes`` and
        ``scenarios``.

    Raises:
        UserError: if ``strict``: there is no run, or one is damaged; the file is named.
    """
    cache = cache or Cache()
    runs, unread = _read(list(map(Path, paths)), cache, strict)
    blocks = arrange(run.entry for run in runs)
    by_path, numbers = {run.entry.path: run for run in runs}, colours(blocks)
    page = {
        "format": FORMAT,
        "title": ", ".join(dict.fromkeys(block.scenario for block in blocks)) or "no runs yet",
        "notes": unread,
        "scenarios": [_scenario(block, by_path, numbers, cache) for block in blocks],
    }
    version = hashlib.sha256(json.dumps(page, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
    return page | {"version": version, "made": datetime.now(UTC).isoformat(timespec="seconds")}


class Follower:
    """The page about ``paths`` now, again and again: runs may be written, begin or be damaged meanwhile."""

    def __init__(self, paths: Iterable[str | Path], cache: Cache | None = None) -> None:
        self.paths, self.cache = list(paths), cache or Cache()

    def __call__(self) -> dict[str, Any]:
        return collect(self.paths, self.cache, strict=False)


def link(run_directory: Path) -> str | None:
    """The address of the run's page in Weights & Biases, if its directory has one in ``wandb-url.txt``."""
    try:
        url = (run_directory / LINK).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return url if url.startswith(("https://", "http://")) else None


def _read(paths: Sequence[Path], cache: Cache, strict: bool) -> tuple[list[Run], list[str]]:
    if strict:
        return [cache.read(path) for path in ledger.find_runs(paths)], []
    found, runs, unread = dict[Path, Path](), list[Run](), list[str]()
    for path in paths:
        try:
            found.update((run.resolve(), run) for run in ledger.find_runs([path]))
        except UserError as error:
            unread.append(str(error))
    for run in sorted(found.values()):
        try:
            runs.append(cache.read(run))
        except UserError as error:
            unread.append(f"left out: {error}")
    return runs, unread


def _all(row: Row) -> list[Entry]:
    return [*row.runs.values(), *row.left_out]


def _scenario(block: Block, runs: Mapping[Path, Run], numbers: Mapping[str, int], cache: Cache) -> dict[str, Any]:
    chosen = {row.label: _shown(row, runs) for row in block.rows}
    traces = {label: {seed: runs[entry.path].trace for seed, entry in own.items()} for label, own in chosen.items()}
    n_tasks = max((t.n_tasks for own in traces.values() for t in own.values()), default=0)
    schedule = {row.label: _schedule(row, traces[row.label].values()) for row in block.rows}
    schedules = list(dict.fromkeys(schedule.values()))
    rows = [
        {
            "label": row.label,
            "colour": numbers[row.label],
            "role": role(row),
            "n": len(row.runs),
            "provisional": not row.runs,
            "schedule": schedules.index(schedule[row.label]),
            "metrics": cache.metrics(chosen[row.label].values()),
            **cache.curves(f"{block.label}/{row.label}", traces[row.label], n_tasks),
        }
        for row in block.rows
    ]
    return {
        "label": block.label,
        "n_tasks": n_tasks,
        "notes": notes(block),
        "metrics": _described({name for row in rows for name in row["metrics"]}),
        "schedules": schedules,
        "rows": rows,
        "runs": [_line(row, runs[entry.path]) for row in block.rows for entry in _all(row)],
    }


def _shown(row: Row, runs: Mapping[Path, Run]) -> dict[int, Entry]:
    """The finished runs; where there is none one unfinished run, as a mean of several would mix progress.

    It is one that is running if there is one, the furthest of them.
    """
    if row.runs:
        return dict(sorted(row.runs.items()))
    shown = max(row.left_out, key=lambda run: (run.status == "running", runs[run.path].trace.rows_seen))
    return {shown.seed: shown}


def _resolved(row: Row, group: str) -> Mapping[str, Any]:
    found = _all(row)[0].manifest.get("resolved", {}).get(group)
    return found if isinstance(found, Mapping) else {}


def _schedule(row: Row, traces: Iterable[Trace]) -> str:
    """When and on what the row was evaluated, with all that has an effect.

    A learner that takes in a whole task at once is evaluated at ends of tasks only, whatever was asked for.
    """
    probe = _resolved(row, "probe")
    every, most = probe.get("every"), probe.get("max_rows")
    words = "at ends of tasks only"
    ended = [trace for trace in traces if len(trace.ends)]
    if every is not None and (not ended or any(len(trace.rows) > 1 + len(trace.ends) for trace in ended)):
        words = f"every {every} rows, " + ("all probe rows" if most is None else f"at most {most} rows of a probe")
    if probe.get("prequential"):
        words += f"; arrivals before they are learned, in windows of {probe.get('window')} rows"
    return words


def _described(measured: set[str]) -> list[dict[str, Any]]:
    titles = PREQUENTIAL | STANDARD
    names = [*(name for name in titles if name in measured), *sorted(measured - set(titles))]
    return [
        {
            "name": name,
            "title": titles.get(name, name).replace("\n", " ").replace("_", " ").strip(),
            "unit": "B" if name == "peak_bytes" else text.unit(name),
            "better": BETTER.get(name, 1),
            "standard": name in titles,
            "over_time": name in OVER_TIME,
            "cost": name in COSTS,
        }
        for name in names
    ]


def _line(row: Row, run: Run) -> dict[str, Any]:
    entry = run.entry
    return {
        "row": row.label,
        "seed": entry.seed,
        "state": entry.status,
        "reason": entry.reason,
        "path": str(entry.path),
        "created": entry.manifest["created"],
        "seconds": run.seconds,
        "counted": row.runs.get(entry.seed) is entry,
        "difference": run.difference,
        "wandb": link(entry.path),
        "ended": run.trace.begun if entry.status == "finished" else max(len(run.trace.ends), run.trace.begun - 1),
        "tasks": len(entry.manifest.get("schedule", ())),
        "rows_seen": run.trace.rows_seen,
    }
