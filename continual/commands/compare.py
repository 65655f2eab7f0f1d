"""``continual compare``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from continual.errors import UserError


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
    from continual.report import export, latex, plot, table
    from continual.report.compare import Row, compare, pick_baseline
    from continual.report.notes import notes

    target = options.json or options.csv or options.latex or options.plot
    if options.plot:
        plot.check(Path(options.plot))
        if options.baseline is not None:
            raise UserError(f"--baseline {options.baseline} is not drawn by --plot; leave it out, or use --latex")
    if target and Path(target).is_dir():
        ways = "--json, --csv or --latex"
        raise UserError(f"{target} is a folder; write the file's name, or the folders of runs before {ways}")
    blocks = compare(options.runs or ["runs"])
    baselines: list[Row | None] = [None] * len(blocks)
    if options.baseline is not None:
        baselines = pick_baseline(blocks, options.baseline)
    metrics = [name for name in options.metrics.split(",") if name]
    shown = table.render(blocks, baselines, metrics)
    if options.json:
        shown = export.as_json(blocks, baselines) + "\n"
    elif options.csv:
        shown = export.as_csv(blocks, baselines)
    elif options.latex:
        shown = latex.render(blocks, baselines, metrics)
    elif options.plot:
        _write(Path(target), plot.render(blocks, Path(target).suffix, metrics))
        print("".join(f"! {note}\n" for block in blocks for note in notes(block)), end="")
        return 0
    if target in (None, "-"):
        print(shown, end="" if target else "\n")
    else:
        _write(Path(target), shown.encode())
    return 0


def _write(path: Path, content: bytes) -> None:
    from continual.files import write_atomic

    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(f"written to {path}")
