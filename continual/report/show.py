"""One run for a terminal: how it went, what it was, its metrics and its accuracy matrix."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from continual import config as configs
from continual import ledger
from continual.config import Config
from continual.errors import UserError
from continual.ledger import RunData
from continual.metrics import Matrix, accuracy_matrix, summary
from continual.report import text
from continual.report.table import PREQUENTIAL, STANDARD

COLUMNS, LINES = 100, 40
"""Wider and longer matrices leave out tasks in the middle."""


def render(path: Path) -> str:
    """Status, config, metrics and accuracy matrix of the one run at or below ``path``.

    Raises:
        UserError: there is no run, or several.
    """
    found = ledger.find_runs([path])
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} runs; name one, e.g. {found[0]}, or use: continual compare {path}")
    data = ledger.read(found[0])
    metrics = summary(data.records)
    rows = [(name.replace("_", " "), text.number(name, value), text.unit(name)) for name, value in metrics.items()]
    parts = [_head(data), _lined(rows), matrix(accuracy_matrix(data.records))]
    return "\n\n".join(part for part in parts if part)


def brief(path: Path, metrics: Mapping[str, float], accuracies: Matrix) -> str:
    """The standard metrics on a few lines, the accuracy matrix and where the run lies."""
    told = [f"{name.replace('_', ' ')} {text.number(name, metrics[name])} {text.unit(name)}".rstrip()
            for name in (*PREQUENTIAL, *STANDARD) if name in metrics]  # fmt: skip
    lines = [", ".join(told[at : at + 4]) for at in range(0, len(told), 4)]
    return "\n\n".join(part for part in ("\n".join(lines), matrix(accuracies), str(path)) if part)


def matrix(accuracies: Matrix, columns: int = COLUMNS) -> str:
    """Accuracy in percent on each task's probe (columns), before training and after each task (rows).

    Tasks count from 0. In parentheses: the task has not been trained yet. Empty if nothing was measured.
    """
    values = accuracies.values
    if not values.size or all(map(math.isnan, values.flat)):
        return ""
    tasks, learned = _few(values.shape[1], (columns - 12) // 9), accuracies.learned
    header = ["", *("…" if task is None else f"task {task} " for task in tasks)]
    rows = []
    for row in _few(len(values), LINES):
        if row is None:
            rows.append(["…"] * len(header))
            continue
        name = f"after {accuracies.trained[row - 1]}" if row else "before"
        cells = ("…" if task is None else _cell(values[row, task], learned.get(task, row + 1) <= row) for task in tasks)
        rows.append([name, *cells])
    return "accuracy (%) on each task; in parentheses: not trained yet\n" + text.table(header, rows)


def _cell(value: float, trained: bool) -> str:
    if math.isnan(value):
        return f"{text.ABSENT} "
    return f"{100 * value:.1f} " if trained else f"({100 * value:.1f})"


def _few(n: int, most: int) -> list[int | None]:
    """0..n-1, or ``most`` of them with a None for the gap in the middle."""
    if n <= most:
        return list(range(n))
    return [*range(most // 2), None, *range(n - (most - most // 2 - 1), n)]


def _head(data: RunData) -> str:
    about = data.manifest
    ended = "" if data.seconds is None else f" after {text.figures(data.seconds)} s"
    reason = f": {data.reason}" if data.reason else ""
    versions = about["versions"]
    commit = f", commit {about['commit'][:7]}{' with changes' if about['dirty'] else ''}" if about["commit"] else ""
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    rows = [
        ("run", f"{about['name']} on {about['scenario']}, seed {about['seed']}"),
        ("status", f"{data.status}{ended}{reason}"),
        ("path", str(data.path)),
        ("config", " ".join(overrides(about)) or "the defaults"),
        ("made", f"{about['created'][:16].replace('T', ' ')} UTC on {about['device']}, {threads}"),
        ("with", f"continual {versions['continual']}, torch {versions['torch']}{commit}"),
    ]
    return _lined(rows)


def overrides(manifest: Mapping[str, Any], compose: Callable[..., Config] = configs.compose) -> list[str]:
    """The overrides that make this run's config from the defaults, choices first.

    Where the config cannot be composed here (a choice came from a ``--config-dir``), only its plain values are told.
    ``compose`` may remember what it composed before, for many runs.
    """
    written = yaml.load(manifest["config"], getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    chosen = dict(manifest["chosen"]) | {group: f"[{','.join(written[group])}]" for group in _composed(manifest)}
    base, picked = compose(), list[str]()
    for inner in (False, True):  # a group within a choice (memory@strategy.er.memory) has its default from the choice
        lines = [f"{g}={c}" for g, c in chosen.items() if ("@" in g) is inner and base.chosen.get(g) != c]
        for several in (lines, *([line] for line in lines)):  # all at once if they can be had: composing is slow
            with suppress(UserError):
                if several and several[0] not in picked:
                    base = compose(*picked, *several)
                    picked += several
    plain = _leaves(base.unresolved)
    changed = {key: value for key, value in _leaves(written).items() if key not in plain or plain[key] != value}
    return picked + [f"{key}={_written(value)}" for key, value in changed.items()]


def _composed(manifest: Mapping[str, Any]) -> list[str]:
    """Groups of which several were chosen: a list is not among the choices that are kept."""
    return [group for group in ("strategy", "operator") if group not in manifest["chosen"]]


def _leaves(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return found


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _lined(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    numbers = len(widths) == 3
    lines = []
    for name, value, *rest in rows:
        lines.append("  ".join([name.ljust(widths[0]), value.rjust(widths[1]) if numbers else value, *rest]).rstrip())
    return "\n".join(lines)
