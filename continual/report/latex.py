r"""A comparison as LaTeX: per stream a ``tabular`` for booktabs, to be put into a table of your own.

The figures are those of :mod:`continual.report.table`. The best mean of a column is bold only if its interval overlaps
no other row's and no note forbids the comparison; joint training, an upper bound, does not compete, and neither do
costs.
"""

import math
import re
from collections.abc import Mapping, Sequence

from continual.report import text
from continual.report.compare import Block, Row
from continual.report.notes import forbidding, notes
from continual.report.sense import BETTER, COSTS, role
from continual.report.table import PREQUENTIAL, STANDARD, check
from continual.statistics import Estimate

ESCAPED: Mapping[str, str] = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},  # after the end of a row they mean something
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\symbol{34}",
}
ABSENT = "--"
Cells = Sequence[tuple[Row, int, Sequence[Estimate | None]]]


def render(blocks: Sequence[Block], baselines: Sequence[Row | None], metrics: Sequence[str] = ()) -> str:
    """All blocks, one after another; arguments and errors as in :func:`continual.report.table.render`."""
    check(blocks, metrics)
    parts = ["% UTF-8; needs \\usepackage{booktabs}"]
    for block, baseline in zip(blocks, baselines, strict=True):
        chosen = metrics or [m for m in (*PREQUENTIAL, *STANDARD) if any(row.values(m) for row in block.rows)]
        means = [(row, len(row.runs), [row.estimate(metric) for metric in chosen]) for row in block.rows]
        told = [block.label, *(f"! {note}" for note in notes(block))]
        parts.append(_tabular(told, chosen, means, _bold(block, means, chosen), signed=False))
        if baseline is not None and len(block.rows) > 1:
            told = [f"{block.label}: difference to {baseline.label}, paired by seed"]
            parts.append(_tabular(told, chosen, _differences(block, baseline, chosen), set(), signed=True))
    return "\n\n".join(parts) + "\n"


def escape(words: str) -> str:
    """User text on one line that LaTeX prints as it is; what cannot be printed becomes ``?``."""
    escaped = "".join(ESCAPED.get(c, c if c.isprintable() else "?") for c in " ".join(words.split()))
    return re.sub("-(?=-)", "-{}", escaped)  # no dash from two hyphens


def _differences(block: Block, baseline: Row, metrics: Sequence[str]) -> Cells:
    others = [row for row in block.rows if row is not baseline]
    found = [(row, [row.difference(baseline, metric) for metric in metrics]) for row in others]
    return [(row, max((value.n for value in values if value), default=0), values) for row, values in found]


def _bold(block: Block, rows: Cells, metrics: Sequence[str]) -> set[tuple[int, int]]:
    """(row, column) of the means that are best beyond their intervals."""
    found = set()
    for column, metric in enumerate(metrics):
        sign = 0 if metric in COSTS else BETTER.get(metric, 1)
        if not sign or forbidding(block, [metric]):
            continue
        values = {i: values[column] for i, (row, _, values) in enumerate(rows) if role(row) != "bound"}
        ranges = sorted((*_range(value, sign), i) for i, value in values.items() if value is not None)
        if len(ranges) > 1 and ranges[-1][0] > max(high for _, high, _ in ranges[:-1]):
            found.add((ranges[-1][2], column))
    return found


def _range(value: Estimate, sign: int) -> tuple[float, float]:
    """(worst, best) end of the interval where ``sign`` 1 says that more is better; anything where there is none."""
    if value.low is None or value.high is None:
        return -math.inf, math.inf
    low, high = sorted((sign * value.low, sign * value.high))
    return low, high


def _tabular(
    told: Sequence[str], metrics: Sequence[str], rows: Cells, bold: set[tuple[int, int]], *, signed: bool
) -> str:
    columns = [[values[column] for _, _, values in rows] for column in range(len(metrics))]
    units = [_unit(metric, column) for metric, column in zip(metrics, columns, strict=True)]
    header = ["", *(_title(metric, unit) for metric, (unit, _) in zip(metrics, units, strict=True)), "$n$"]
    lines = []
    for i, (row, n, values) in enumerate(rows):
        cells = [
            _cell(metric, value, power, n, signed=signed, bold=(i, column) in bold)
            for column, (metric, value, (_, power)) in enumerate(zip(metrics, values, units, strict=True))
        ]
        lines.append([escape(row.label), *cells, str(n)])
    comments = [*told, _bars([value for column in columns for value in column if value])]
    competes = "joint training does not compete, nor does what a line with ! forbids comparing"
    comments += [f"bold: the best mean, if its interval overlaps no other row's; {competes}"] * (not signed)
    return "\n".join(
        [
            *("% " + " ".join(comment.split()) for comment in comments),
            f"\\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}",
            "\\toprule",
            " & ".join(header) + r" \\",
            "\\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            "\\bottomrule",
            "\\end{tabular}",
        ]
    )


def _title(metric: str, unit: str) -> str:
    title = escape((PREQUENTIAL | STANDARD).get(metric, metric.replace("_", " ")))
    return title + (f" ({escape(unit)})" if unit else "")


def _unit(metric: str, values: Sequence[Estimate | None]) -> tuple[str, int]:
    """A column's unit, and the power of 1000 that its bytes are divided by."""
    if metric != "peak_bytes":
        return text.unit(metric), 0
    largest = max((abs(value.mean) for value in values if value), default=0)
    power = min(int(math.log10(largest) // 3), 4) if largest >= 1 else 0
    return ("B", "kB", "MB", "GB", "TB")[power], power


def _cell(metric: str, value: Estimate | None, power: int, n: int, *, signed: bool, bold: bool) -> str:
    r"""``$83.2 \pm 1.2$``; where the interval is not symmetric ``$83.2_{-1.0}^{+1.4}$``; else the mean alone."""
    if value is None:
        return ABSENT
    mean = _number(metric, value.mean, value.mean, power)
    mean = f"+{mean}" if signed and value.mean > 0 else mean
    mean = f"\\mathbf{{{mean}}}" if bold else mean
    bar = ""
    if value.low is not None and value.high is not None and value.low != value.high:
        ends = (value.mean - value.low, value.high - value.mean)
        below, above = (_number(metric, end, value.mean, power) for end in ends)
        bar = f" \\pm {above}" if "Student" in value.method else f"_{{-{below}}}^{{+{above}}}"
    fewer = f"\\ [{value.n}]" if value.n != n else ""
    return f"${mean}{bar}{fewer}$"


def _number(metric: str, value: float, like: float, power: int) -> str:
    shown = f"{100 * value:.1f}"
    if metric in text.NOT_FRACTIONS:
        shown = text.figures(value / 1000**power, like / 1000**power)
    return shown.replace("inf", r"\infty")


def _bars(values: Sequence[Estimate]) -> str:
    """What stands beside the means."""
    methods = sorted({value.method for value in values if value.low != value.high})
    bars = [f"\\pm is half of the {m} interval of the mean over n seeds" for m in methods if "Student" in m]
    bars += [f"- and + tell how far the {m} interval of the mean reaches" for m in methods if "Student" not in m]
    bars += ["no interval where n = 1"] if any(value.n == 1 for value in values) else []
    bars += ["[k]: k seeds only"] if len({value.n for value in values}) > 1 else []
    return "; ".join(bars) or "no interval, as all values are equal"
