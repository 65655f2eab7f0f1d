"""What to know before rows are compared: runs that are left out, and facts in which the others disagree."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from continual.report.compare import Block, Entry, Row
from continual.report.sense import OVER_TIME

FACTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "commits": lambda manifest: str(manifest["commit"])[:7],
    "versions of continual": lambda manifest: str(manifest["versions"]["continual"]),
    "versions of torch": lambda manifest: str(manifest["versions"]["torch"]),
    "devices": lambda manifest: str(manifest["device"]),
}
"""What runs should have in common, read from their manifests."""

ANYTIME = "anytime metrics are not comparable"


def notes(block: Block) -> list[str]:
    """One sentence each; those in capitals forbid the comparison."""
    runs = [(row.label, run) for row in block.rows for run in row.runs.values()]
    return [
        *(_absence(run) for row in block.rows for run in row.left_out),
        *_shapes(runs),
        *_data(block.rows),
        *_probes(block.rows),
        *_periods(block.rows),
        *(
            note
            for fact, read in FACTS.items()
            for note in _disagreement(fact, [(n, read(r.manifest)) for n, r in runs])
        ),
    ]


def forbidding(block: Block, metrics: Iterable[str]) -> list[str]:
    """Those of the notes that forbid comparing the rows by one of ``metrics``."""
    over_time = not OVER_TIME.isdisjoint(metrics)
    return [
        note
        for note in notes(block)
        if note.startswith("NOT COMPARABLE") or (over_time and note.endswith(f": {ANYTIME}"))
    ]


def _absence(run: Entry) -> str:
    if run.status == "finished":
        return f"not counted, older run of the same seed: {run.path}"
    return f"not counted, {run.status}: {run.path}" + (f" ({run.reason})" if run.reason else "")


def _shapes(runs: Sequence[tuple[str, Entry]]) -> list[str]:
    shapes = [
        (label, json.dumps([run.manifest["spec"][key] for key in ("in_shape", "n_classes")])) for label, run in runs
    ]
    return [f"NOT COMPARABLE: {note}" for note in _disagreement("shapes of rows and numbers of classes", shapes)]


def _data(rows: Sequence[Row]) -> list[str]:
    """Rows that share a seed must share the data; other seeds may deal them out otherwise."""
    unequal: dict[int, list[tuple[str, str]]] = {}
    for seed in sorted({seed for row in rows for seed in row.runs}):
        found = [(row.label, str(row.runs[seed].manifest["data_digest"])) for row in rows if seed in row.runs]
        if len({digest for _, digest in found}) > 1:
            unequal[seed] = found
    if not unequal:
        return []
    seeds = ", ".join(map(str, unequal))
    return [f"NOT COMPARABLE on seeds {seeds}: {_disagreement('data', next(iter(unequal.values())))[0]}"]


def _probes(rows: Sequence[Row]) -> list[str]:
    settings = {row.label: _settings(row, "probe") for row in rows}
    keys = sorted({key for own in settings.values() for key in own})
    differ = (_disagreement(key, [(label, str(own.get(key))) for label, own in settings.items()]) for key in keys)
    return [f"{note}: {ANYTIME}" for found in differ for note in found]


def _periods(rows: Sequence[Row]) -> list[str]:
    """A learner that takes in many rows at once is evaluated less often than the others, whatever was asked for."""
    found = {row.label: row.values("evaluation_period").values() for row in rows}
    longest = {label: max(periods) for label, periods in found.items() if periods}
    coarse = [f"{label} ({period:.0f})" for label, period in longest.items() if period > 1.5 * min(longest.values())]
    if not coarse:
        return []
    told = f"rows between evaluations: up to {min(longest.values()):.0f}, but more in {', '.join(coarse)}"
    return [f"{told}: {ANYTIME}"]


def _settings(row: Row, group: str) -> dict[str, str]:
    run = next(iter((*row.runs.values(), *row.left_out)))
    return {key: value for key, value in run.config.items() if key.split(".")[0] == group}


def _disagreement(fact: str, found: Iterable[tuple[str, str]]) -> list[str]:
    """One note if ``found`` (label, value) has several values."""
    labels: dict[str, set[str]] = defaultdict(set)
    for label, value in found:
        labels[value].add(label)
    if len(labels) < 2:
        return []
    told = "; ".join(f"{value} ({', '.join(sorted(names))})" for value, names in labels.items())
    return [f"different {fact}: {told}"]
