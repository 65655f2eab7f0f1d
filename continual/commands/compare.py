"""``continual compare``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from continual.errors import UserError

if TYPE_CHECKING:
    from continual.report.compare import Block, Row


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="folders with runs at or below them (default: runs)")
    parser.add_argument("--baseline", metavar="NAME", help="add the paired differences to this row")
    parser.add_argument(
        "--metrics", metavar="A,B,...", default="", help="columns to show; any metric that was measured"
    )
    into = parser.add_mutually_exclusive_group()
    into.add_argument("--json", metavar="FILE", nargs="?", const="-", help="write all metrics as JSON; - is stdout")
    into.add_argument("--latex", metavar="FILE", nargs="?", const="-", help="write tables for LaTeX; - is stdout")
    into.add_argument("--plot", metavar="FILE", help="draw a figure for a paper: .png, .svg or .pdf")
    into.add_argument("--csv", metavar="FILE", nargs="?", const="-", help="write all metrics as CSV; - is stdout")


def act(options: Namespace) -> int:
    """Read, compare, print or write."""
    from continual.report import table
    from continual.report.compare import compare, pick_baseline
    from continual.report.notes import notes

    target = options.json or options.csv or options.latex or options.plot
    _check(options, target)
    blocks = compare(options.runs or ["runs"])
    baselines: list[Row | None] = [None] * len(blocks)
    if options.baseline is not None:
        baselines = pick_baseline(blocks, options.baseline)
    metrics = [name for name in options.metrics.split(",") if name]
    table.check(blocks, metrics)
    if options.plot:
        from continual.report import plot

        _write(Path(target), plot.render(blocks, Path(target).suffix, metrics))
        print("".join(f"! {note}\n" for block in blocks for note in notes(block)), end="")
        return 0
    shown = _text(options, blocks, baselines, metrics)
    if target in (None, "-"):
        print(shown, end="")
    else:
        _write(Path(target), shown.encode())
    return 0


def _check(options: Namespace, target: str | None) -> None:
    """Refuse what can be refused before anything is read."""
    if options.plot:
        from continual.report import plot

        plot.check(Path(options.plot))
        if options.baseline is not None:
            raise UserError(f"--baseline {options.baseline} is not drawn by --plot; leave it out, or use --latex")
    if target and Path(target).is_dir():
        ways = "--json, --csv or --latex"
        raise UserError(f"{target} is a folder; write the file's name, or the folders of runs before {ways}")


def _text(options: Namespace, blocks: "list[Block]", baselines: "list[Row | None]", metrics: list[str]) -> str:
    from continual.report import export, latex, table

    if options.json:
        return export.as_json(blocks, baselines) + "\n"
    if options.csv:
        return export.as_csv(blocks, baselines)
    if options.latex:
        return latex.render(blocks, baselines, metrics)
    return table.render(blocks, baselines, metrics) + "\n"


def _write(path: Path, content: bytes) -> None:
    from continual.files import write_atomic

    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(f"written to {path}")
