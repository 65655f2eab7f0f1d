"""What was worked out before, kept in memory while a page is followed: a run is read again only when it changed."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from continual import files, ledger
from continual.dashboard import curves
from continual.dashboard.store import Run, Store, stamp
from continual.dashboard.trace import Trace
from continual.report.compare import Entry
from continual.statistics import Estimate, interval

APART = ("seed", "output", "track")
"""Keys that no difference tells."""


class Cache:
    """Not for several threads at once.

    Args:
        store: runs on disk; None for those in the user's own cache folder.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or Store()
        self._runs: dict[Path, tuple[str, Run]] = {}
        self._differences: dict[str, list[str]] = {}
        self._curves: dict[str, tuple[Mapping[int, Trace], int, dict[str, Any]]] = {}
        self._interval = lru_cache(4096)(lambda values: _estimate(interval(values)))  # a bootstrap takes its time

    def read(self, path: Path) -> Run:
        """The run in directory ``path`` as it is now.

        Raises:
            UserError: it is no run, or damaged.
        """
        held = files.is_held(path / ledger.LOCK)  # before the records, as in ledger.read
        now = stamp(path)
        before, run = self._runs.get(path, ("", None))
        if run is None or before != now:
            run = self._store.get(path, now) or self._parse(path, now)
        status = run.entry.status if run.has_ended else "running" if held else "killed"
        if status != run.entry.status:
            run = replace(run, entry=replace(run.entry, status=status))
        self._runs[path] = now, run
        return run

    def curves(self, row: str, traces: Mapping[int, Trace], n_tasks: int) -> dict[str, Any]:
        """:func:`continual.dashboard.curves.of_row`, worked out anew when the ``row`` got another trace."""
        known = self._curves.get(row)
        if known is None or known[0] != traces or known[1] != n_tasks:  # traces are equal if they are the same object
            self._curves[row] = known = traces, n_tasks, curves.of_row(traces, n_tasks)
        return known[2]

    def metrics(self, entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
        """Every metric over ``entries``, unrounded, as ``continual compare --json`` tells it."""
        found: dict[str, list[float]] = {}
        for entry in entries:
            for name, value in entry.metrics.items():
                found.setdefault(name, []).append(value)
        return {name: self._interval(tuple(values)) for name, values in found.items()}

    def _parse(self, path: Path, now: str) -> Run:
        data = ledger.read(path)
        trace = Trace.of(data.records)
        entry = Entry(data.path, data.status, data.reason, data.manifest, trace.metrics)
        run = Run(entry, data.seconds, self._difference(data.manifest), trace)
        if run.has_ended:
            self._store.put(run, now)
        return run

    def _difference(self, about: Mapping[str, Any]) -> list[str]:
        """Found once for the runs that differ by seed only: to compose a config takes a tenth of a second or more."""
        text = re.sub(r"(?m)^(seed|output): .*$", "", about["config"])
        key = json.dumps([text, about["chosen"]])
        if key not in self._differences:
            told = self._overrides(about)
            self._differences[key] = [line for line in told if re.split(r"[.=]", line)[0] not in APART]
        return self._differences[key]

    @cached_property
    def _overrides(self) -> Callable[[Mapping[str, Any]], list[str]]:
        from continual.config import compose
        from continual.report.show import overrides

        remembered = cache(compose)
        return lambda about: overrides(about, remembered)


def _estimate(value: Estimate) -> dict[str, Any]:
    """What is infinite is None, and the method says so."""
    told = {"mean": value.mean, "low": value.low, "high": value.high}
    finite = {key: v if v is not None and math.isfinite(v) else None for key, v in told.items()}
    return {**finite, "n": value.n, "method": value.method}
