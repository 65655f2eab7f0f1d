"""How a comparison is drawn: dots with their intervals side by side, curves below them, what they mean at the foot."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from continual.report import text
from continual.report.compare import Block
from continual.report.notes import forbidding
from continual.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.3
"""Inches: one column of the usual two-column layouts."""

ABOUT = {"floor": "closed-form floor", "bound": "joint training (bound)"}
BANDS = 12
"""Lines; the bands of more cover each other and the lines."""
COLOURS = ("#0617ae", "#b53900", "#067571", "#f61bc0", "#c28601", "#1891ff", "#5b2853", "#1d002d")
"""Those of the dashboard on a light ground."""

CURVES = 1.0
"""Height in inches of a panel of curves."""

COLUMNS = 6
"""Of the grid; any of 1 to ``MOST`` panels divides it."""

MARKERS = "os^D*Pv"
GREY = "0.45"

ROW = 0.147
"""Height in inches of a row whose label is one line."""

FURTHER = 0.8
"""Height of a label's further line, in rows."""

STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "continual",
    "pdf.fonttype": 42,  # journals refuse matplotlib's default, Type 3
    "savefig.dpi": 400,
}


@dataclass(frozen=True)
class Line:
    """One row of a panel: its label, how it is drawn, its mean by metric, and its curve, which may be empty."""

    label: str
    colour: str
    marker: str
    role: str | None
    means: Mapping[str, Estimate]
    curve: Mapping[int, Estimate]


Shown = tuple[Block, Sequence[str], list[Line]]
"""A stream with its metrics and lines."""


def draw(shown: Sequence[Shown]) -> "Figure":
    """The figure of ``shown``, one stream below the other."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    counts = {value.n for _, _, lines in shown for line in lines for value in line.means.values()}
    labels = [[_label(line, tell_n=len(counts) > 1) for line in lines] for _, _, lines in shown]
    footer = _footer(shown)
    heights = []  # of the frames; what is written around them comes on top
    for (_, _, lines), own in zip(shown, labels, strict=True):
        heights += [ROW * sum(map(_rows, own))]
        heights += [CURVES] if _has_curve(lines) else []
    titles = [textwrap.fill(plain(block.label), 50) for block, _, _ in shown]
    words = 0.14 * len("\n".join(titles).split("\n")) + 0.1 * len(footer.split("\n"))
    figure.set_size_inches(WIDTH, sum(heights) + 0.45 * len(heights) + words + 0.12)
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
    at = iter(range(len(heights)))
    for (_, metrics, lines), own, title in zip(shown, labels, titles, strict=True):
        line, span = next(at), COLUMNS // len(metrics)
        dots = [figure.add_subplot(grid[line, i * span : (i + 1) * span]) for i in range(len(metrics))]
        for axes, metric in zip(dots, metrics, strict=True):
            _dots(axes, lines, metric, own)
        dots[0].set_yticklabels(own)
        dots[0].set_title(title, loc="left")
        if _has_curve(lines):
            _curves(figure.add_subplot(grid[next(at), :]), lines)
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=6)
    return figure


def _rows(label: str) -> float:
    return 1 + FURTHER * label.count("\n")


def _dots(axes: "Axes", lines: Sequence[Line], metric: str, labels: Sequence[str]) -> None:
    scale = 1 if metric in text.NOT_FRACTIONS else 100
    sizes = list(map(_rows, labels))
    places = [sum(sizes[:i]) + (size - 1) / 2 for i, size in enumerate(sizes)]
    for y, line in zip(places, lines, strict=True):
        value = line.means.get(metric)
        if value is None:
            continue
        if not math.isfinite(value.mean):
            _beyond(axes, y, line.colour)
            continue
        bar = None
        if value.low is not None and value.high is not None:
            bar = [[scale * (value.mean - value.low)], [scale * (value.high - value.mean)]]
        axes.errorbar(scale * value.mean, y, xerr=bar, capsize=1.5, **_look(line))
        if line.role:
            axes.axvline(scale * value.mean, color=GREY, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
    if not axes.containers:  # nothing finite: no scale
        axes.set_xticks([])
    axes.set_ylim(sum(sizes) - 0.5, -0.5)
    axes.set_yticks(places, [""] * len(lines))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    unit = text.unit(metric)
    axes.set_xlabel(metric.replace("_", " ") + (f" ({unit})" if unit else ""))
    if metric not in text.NOT_FRACTIONS:
        axes.set_xlim(*_within(axes.get_xlim(), 0 if metric.endswith("accuracy") else -100))


def _beyond(axes: "Axes", y: float, colour: str) -> None:
    """A sign at the right edge for an infinite mean."""
    axes.text(1, y, "∞", color=colour, ha="right", va="center", transform=axes.get_yaxis_transform())


def _curves(axes: "Axes", lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, line in enumerate(lines):
        tasks, step = list(line.curve), max(1, len(line.curve) // 8)
        means = [100 * value.mean for value in line.curve.values()]
        axes.plot(tasks, means, markevery=(number % step, step), **_look(line))
        sure = {task: v for task, v in line.curve.items() if v.low is not None and v.high is not None}
        low, high = ([100 * getattr(v, end) for v in sure.values()] for end in ("low", "high"))
        if sure and len(lines) <= BANDS:
            axes.fill_between(list(sure), low, high, color=line.colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(*_within(axes.get_ylim(), 0))
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("accuracy on\ntasks so far (%)")


def _look(line: Line) -> dict[str, Any]:
    """A floor and a bound are hollow."""
    return {"color": line.colour, "marker": line.marker, "markerfacecolor": "white" if line.role else line.colour}


def _within(limits: tuple[float, float], lowest: float) -> tuple[float, float]:
    """``limits`` cut to what a mean can be in percent, with room for half a marker; an interval may reach beyond."""
    return max(limits[0], lowest - 3), min(limits[1], 103)


def _has_curve(lines: Iterable[Line]) -> bool:
    return any(len(line.curve) > 1 for line in lines)


def _label(line: Line, tell_n: bool) -> str:
    n = max(value.n for value in line.means.values())
    facts = [*([line.role] if line.role else []), *([f"n = {n}"] if tell_n else [])]
    return textwrap.fill(plain(line.label) + (f" ({', '.join(facts)})" if facts else ""), 24)


def _footer(shown: Sequence[Shown]) -> str:
    """What the bars are, over how many seeds, and what forbids the comparison."""
    values = [value for _, _, lines in shown for line in lines for value in line.means.values()]
    counts = sorted({value.n for value in values})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    bars = sorted({value.method for value in values if value.low != value.high})
    seeds = "seed" if counts == [1] else "seeds"
    parts = [f"Means over {n} {seeds}" + (f" with {' or '.join(bars)} intervals" if bars else "")]
    parts += ["no interval where n = 1"] if counts[0] == 1 else []
    roles = {line.role for _, _, lines in shown for line in lines}
    marked = [about for name, about in ABOUT.items() if name in roles]
    parts += [f"hollow and dotted: {', '.join(marked)}"] if marked else []
    crowded = any(len(lines) > BANDS and _has_curve(lines) for _, _, lines in shown)
    parts += [f"curves of more than {BANDS} rows without intervals"] if bars and crowded else []
    parts += ["∞: infinite for at least one seed"] if any(math.isinf(value.mean) for value in values) else []
    forbidden = [note for block, metrics, _ in shown for note in forbidding(block, metrics)]
    return "\n".join(
        textwrap.fill(plain(part), 76, break_on_hyphens=False) for part in ["; ".join(parts) + ".", *forbidden]
    )


def plain(words: str) -> str:
    """User text on one line, without characters that a file format may refuse."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(words.split()))
