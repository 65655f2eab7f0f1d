"""A comparison as one figure for a paper: a column wide, with the interval of every mean.

For each stream a dot per row with its interval, the best by the first metric on top, and below it how accuracy on the
tasks seen so far changed from task to task. Colour and marker of a row are the same in both, so the dots are the
legend. Equal runs give equal bytes.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from continual import ledger
from continual.errors import UserError
from continual.metrics import accuracy_matrix
from continual.report.compare import Block, Row
from continual.report.figure import COLOURS, GREY, MARKERS, STYLE, Line, Shown, draw
from continual.report.sense import BETTER, colours, role
from continual.report.table import check as check_measured
from continual.statistics import Estimate, interval
from continual.timeline import seen_accuracy

SUFFIXES = (".png", ".svg", ".pdf")
MOST = 3
"""Metrics that stand side by side in a column."""

STANDARD = (("average_accuracy", "forgetting"), ("prequential_accuracy",))
"""The first of these of which something was measured."""

LABELS_ONLY = (("last label", "last_label_accuracy"), ("labels only", "blind_accuracy"))
"""What a prequential accuracy is to be compared with: learners that see no inputs."""


def check(path: Path) -> None:
    """Raise a UserError unless ``path`` ends in one of ``SUFFIXES``."""
    if path.suffix.lower() not in SUFFIXES:
        ending = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        raise UserError(f"--plot {path} {ending}; choose from {', '.join(SUFFIXES)}")


def render(blocks: Sequence[Block], suffix: str, metrics: Sequence[str] = ()) -> bytes:
    """The figure as a file.

    Args:
        blocks: what to show, one below the other.
        suffix: one of ``SUFFIXES``.
        metrics: at most 3, to show instead of the standard ones and their curve.

    Raises:
        UserError: nothing to show: a metric that no finished run has measured or that is infinite in every row, too
            many, or no finished run.
    """
    from matplotlib import style

    _check(blocks, metrics)
    looks = _looks(blocks)
    panels = [_panel(block, metrics or _standard(block), looks, curve=not metrics) for block in blocks]
    shown = [panel for panel in panels if panel[2]]
    if not shown:
        raise UserError("there is nothing to plot: no finished run has measured an accuracy")
    out = io.BytesIO()
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix.lower())
    with style.context(["default", dict(STYLE)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)  # drawn as a box
        draw(shown).savefig(out, format=suffix[1:].lower(), metadata=dates)
    return out.getvalue()


def _standard(block: Block) -> Sequence[str]:
    for metrics in STANDARD:
        if any(row.values(metrics[0]) for row in block.rows):
            return [metric for metric in metrics if any(row.values(metric) for row in block.rows)]
    return STANDARD[0]


def _looks(blocks: Sequence[Block]) -> dict[str, tuple[str, str]]:
    """{label: (colour, marker)}, the same in all blocks."""
    return {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for label, i in colours(blocks).items()}


def _panel(block: Block, metrics: Sequence[str], looks: Mapping[str, tuple[str, str]], *, curve: bool) -> Shown:
    """The lines of one block, the best by the first metric first, those that have not measured it last."""
    lines = []
    for row in block.rows:
        means = {metric: value for metric in metrics if (value := row.estimate(metric)) is not None}
        if means:
            lines.append(Line(row.label, *looks[row.label], role(row), means, _curve(row) if curve else {}))
    if "prequential_accuracy" in metrics:
        lines += _labels_only(block)
    return block, metrics, sorted(lines, key=lambda line: _place(line, metrics[0]))


def _place(line: Line, metric: str) -> tuple[bool, float]:
    """What lines are sorted by; where neither more nor less is better, more comes first."""
    if metric not in line.means:
        return True, 0.0
    return False, -(BETTER.get(metric, 1) or 1) * line.means[metric].mean


def _labels_only(block: Block) -> list[Line]:
    """The label-only learners; they do not depend on the learner, so the row with most seeds tells them."""
    lines = []
    for label, metric in LABELS_ONLY:
        row = max(block.rows, key=lambda row: len(row.values(metric)))
        value = row.estimate(metric)
        if value is not None:
            lines.append(Line(label, GREY, "|", None, {"prequential_accuracy": value}, {}))
    return lines


def _curve(row: Row) -> dict[int, Estimate]:
    """{k: accuracy on the tasks seen so far at the k-th end of a task}, for the ends that every seed has measured."""
    matrices = [accuracy_matrix(ledger.read(run.path).records) for run in row.runs.values()]
    curves = zip(*(seen_accuracy(matrix.values[1:], matrix.trained) for matrix in matrices), strict=False)
    return {k: interval(values) for k, values in enumerate(curves, start=1) if not any(map(math.isnan, values))}


def _check(blocks: Sequence[Block], metrics: Sequence[str]) -> None:
    if len(metrics) > MOST:
        raise UserError(f"--plot draws at most {MOST} metrics side by side, and --metrics names {len(metrics)}")
    check_measured(blocks, metrics)
    for metric in metrics:
        means = [value.mean for block in blocks for row in block.rows if (value := row.estimate(metric))]
        if not any(map(math.isfinite, means)):
            raise UserError(f"--plot: '{metric}' is infinite in every row, so there is nothing to draw; leave it out")
