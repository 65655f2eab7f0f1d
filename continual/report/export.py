"""A comparison for other programs: everything, unrounded, in the units of the metrics (accuracies in [0, 1])."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from continual.report.compare import Block, Row
from continual.report.notes import notes
from continual.statistics import Estimate

FORMAT = 1
FIELDS = ("scenario", "name", "metric", "mean", "low", "high", "deviation", "n", "method")
DIFFERENCE = ("mean", "low", "high", "n")


def as_json(blocks: Sequence[Block], baselines: Sequence[Row | None]) -> str:
    """One object; what is not finite is written ``"nan"``, ``"inf"`` or ``"-inf"``, what was not measured is absent."""
    told = [_block(block, baseline) for block, baseline in zip(blocks, baselines, strict=True)]
    return json.dumps(_strict({"format": FORMAT, "scenarios": told}), indent=1, allow_nan=False)


def as_csv(blocks: Sequence[Block], baselines: Sequence[Row | None]) -> str:
    """One line per scenario, name and metric; the difference to a baseline in further columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    compared = any(baselines)
    writer.writerow([*FIELDS, *(f"difference_{name}" for name in DIFFERENCE if compared)])
    for block, baseline in zip(blocks, baselines, strict=True):
        for row in block.rows:
            for metric in _metrics(row):
                line = [block.label, row.label, metric, *_values(row.estimate(metric), FIELDS[3:])]
                difference = row.difference(baseline, metric) if baseline and row is not baseline else None
                writer.writerow([*line, *(_values(difference, DIFFERENCE) if compared else ())])
    return out.getvalue()


def _block(block: Block, baseline: Row | None) -> dict[str, Any]:
    return {
        "scenario": block.scenario,
        "variant": list(block.variant),
        "baseline": baseline.label if baseline else None,
        "notes": notes(block),
        "rows": [_row(row, baseline) for row in block.rows],
    }


def _row(row: Row, baseline: Row | None) -> dict[str, Any]:
    return {
        "name": row.name,
        "variant": list(row.variant),
        "runs": {seed: str(run.path) for seed, run in sorted(row.runs.items())},
        "left_out": [{"path": str(run.path), "seed": run.seed, "status": run.status} for run in row.left_out],
        "metrics": {metric: _metric(row, baseline, metric) for metric in _metrics(row)},
    }


def _metric(row: Row, baseline: Row | None, metric: str) -> dict[str, Any]:
    estimate = row.estimate(metric)
    difference = row.difference(baseline, metric) if baseline and row is not baseline else None
    told: dict[str, Any] = {"values": row.values(metric)} | (asdict(estimate) if estimate else {})
    return told | ({"difference": asdict(difference)} if difference else {})


def _metrics(row: Row) -> list[str]:
    return sorted({metric for run in row.runs.values() for metric in run.metrics})


def _values(estimate: Estimate | None, names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        value = getattr(estimate, name) if estimate else None
        yield "" if value is None else value


def _strict(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _strict(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_strict(value) for value in node]
    return repr(node) if isinstance(node, float) and not math.isfinite(node) else node
