"""A comparison as text for a terminal: one table per stream, and below it what its numbers mean."""

from collections.abc import Iterable, Sequence

from continual.errors import UserError, nearest
from continual.report import text
from continual.report.compare import Block, Row
from continual.report.notes import notes
from continual.statistics import Estimate

PREQUENTIAL = {
    "prequential_accuracy": "prequential\naccuracy",
    "last_label_accuracy": "last\nlabel",
    "blind_accuracy": "labels\nonly",
}
STANDARD = {
    "average_accuracy": "average\naccuracy",
    "forgetting": "\nforgetting",
    "backward_transfer": "backward\ntransfer",
    "forward_transfer": "forward\ntransfer",
    "anytime_accuracy": "anytime\naccuracy",
    "peak_bytes": "\nmemory",
    "forward_equivalents_per_row": "forwards\nper row",
    "seconds": "\nseconds",
}
"""Columns and their titles."""


def render(blocks: Sequence[Block], baselines: Sequence[Row | None], metrics: Sequence[str] = ()) -> str:
    """All blocks, one after another.

    Args:
        blocks: what to show.
        baselines: the row of each block to which the others are compared, or None.
        metrics: columns to show instead of the standard ones.

    Raises:
        UserError: a metric that no finished run has measured.
    """
    check(blocks, metrics)
    return "\n\n".join(
        part
        for block, baseline in zip(blocks, baselines, strict=True)
        for part in _block(block, baseline, metrics or _columns(block))
    )


def check(blocks: Sequence[Block], metrics: Sequence[str]) -> None:
    """Raise a UserError that names the first of ``metrics`` that no finished run has measured."""
    measured = {metric for block in blocks for row in block.rows for run in row.runs.values() for metric in run.metrics}
    for metric in metrics:
        if metric not in measured:
            raise UserError(f"--metrics: no finished run has measured '{metric}'{nearest(metric, measured)}")


def _columns(block: Block) -> list[str]:
    """The standard columns that at least one row has; those of prequential runs before them."""
    return [metric for metric in (*PREQUENTIAL, *STANDARD) if any(row.values(metric) for row in block.rows)]


def _block(block: Block, baseline: Row | None, metrics: Sequence[str]) -> list[str]:
    means = [(row, len(row.runs), [row.estimate(metric) for metric in metrics]) for row in block.rows]
    shown = [value for _, _, values in means for value in values]
    parts = [f"{block.label}\n" + _table(means, metrics, signed=False)]
    fewer = any(value and value.n != n for _, n, values in means for value in values)
    if baseline is not None and len(block.rows) > 1:
        others = [
            (row, [row.difference(baseline, metric) for metric in metrics]) for row in block.rows if row is not baseline
        ]
        paired = [(row, max((v.n for v in values if v), default=0), values) for row, values in others]
        shown += [value for _, _, values in paired for value in values]
        parts.append(f"difference to {baseline.label}, paired by seed\n" + _table(paired, metrics, signed=True))
    return [
        *parts,
        "\n".join([*_legend(shown, metrics), *["[k]: k seeds only"] * fewer, *(f"! {note}" for note in notes(block))]),
    ]


def _table(rows: Iterable[tuple[Row, int, Sequence[Estimate | None]]], metrics: Sequence[str], signed: bool) -> str:
    titles = PREQUENTIAL | STANDARD
    header = ["\n", *(titles.get(metric, metric.replace("_", "\n", 1)) for metric in metrics), "\nn"]
    lines = []
    for row, n, values in rows:
        cells = [
            text.estimate(metric, value, signed) + (f" [{value.n}]" if value and value.n != n else "")
            for metric, value in zip(metrics, values, strict=True)
        ]
        lines.append([row.label, *cells, f"{n}*" if row.left_out else str(n)])
    return text.table(header, lines)


def _legend(values: Iterable[Estimate | None], metrics: Sequence[str]) -> list[str]:
    """What is printed after the means, and in which units."""
    found = [value for value in values if value is not None]
    methods = {value.method for value in found if value.low is not None and value.high != value.low}
    bars = [f"± half of the {m} interval of the mean over n seeds" for m in sorted(methods) if "Student" in m]
    bars += [f"below a mean how far its {m} interval reaches" for m in sorted(methods) if "Student" not in m]
    if any(value.n == 1 for value in found):
        bars.append("no interval where n = 1")
    percent = ["accuracies, forgetting and transfer in %"] if set(metrics) - text.NOT_FRACTIONS else []
    return [*percent, *(bars or ["no interval, as all values are equal"])]
