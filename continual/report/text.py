"""Numbers and tables as plain text."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.statistics import Estimate

ABSENT = "–"
NOT_FRACTIONS = frozenset(
    {
        "effective_rank",
        "evaluation_period",
        "forward_equivalents_per_row",
        "peak_bytes",
        "probe_rows",
        "relative_negative_flips",
        "samples_to_threshold",
        "seconds",
        "weight_norm",
    }
)
"""All other metrics are fractions and printed in percent."""


def number(metric: str, value: float, like: float | None = None) -> str:
    """``value`` in the unit in which ``metric`` is printed: percent, bytes or at least three figures.

    With ``like`` in the unit and with the decimals that suit that value: for the half-width beside a mean.
    """
    like = value if like is None else like
    if metric not in NOT_FRACTIONS:
        return f"{100 * value:.1f}"
    if metric != "peak_bytes":
        return figures(value, like)
    power = min(int(math.log10(abs(like)) // 3), 4) if abs(like) >= 1 else 0
    return f"{figures(value / 1000**power, like / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def unit(metric: str) -> str:
    """What :func:`number` leaves unsaid."""
    rows = dict.fromkeys(("evaluation_period", "probe_rows", "samples_to_threshold"), "rows")
    return ({"seconds": "s"} | rows).get(metric, "" if metric in NOT_FRACTIONS else "%")


def figures(value: float, like: float | None = None) -> str:
    """At least three figures of ``like`` (default: ``value``), without exponent: ``0.0123``, ``1.23``, ``12345``."""
    like = value if like is None else like
    if not math.isfinite(value) or not math.isfinite(like) or like == 0:
        return f"{value:g}"
    decimals = min(max(0, 2 - math.floor(math.log10(abs(like)))), 12)
    return f"{value:.{0 if float(like).is_integer() and float(value).is_integer() else decimals}f}"


def estimate(metric: str, value: "Estimate | None", signed: bool = False) -> str:
    """``83.2±1.2``; where the interval is not symmetric its ends stand below; without an interval the mean alone."""
    if value is None:
        return ABSENT
    mean = number(metric, value.mean)
    mean = f"+{mean}" if signed and value.mean > 0 else mean
    if value.low is None or value.high is None or value.low == value.high:
        return mean
    below, above = (
        number(metric, half, value.mean).split()[0] for half in (value.mean - value.low, value.high - value.mean)
    )
    if metric in NOT_FRACTIONS and float(below) == float(above) == 0:
        return mean
    head, *unit_ = mean.split()
    bar = f"±{above}" if "Student" in value.method else f"\n-{below}+{above}"
    return f"{head}{bar}{' ' if unit_ else ''}{''.join(unit_)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Columns side by side, the first to the left and the others to the right; a cell may have several lines."""
    lines = [line for row in (header, *rows) for line in _lines(row)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "─" * (sum(widths) + len(gap) * (len(widths) - 1))
    text = [gap.join(_aligned(line, widths)).rstrip() for line in lines]
    height = len(_lines(header))
    return "\n".join([*text[:height], rule, *text[height:]])


def _lines(row: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip_longest(*(cell.split("\n") for cell in row), fillvalue=""))


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if at else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
