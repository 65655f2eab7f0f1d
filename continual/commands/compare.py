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
    into.add_argument("--csv", metavar="FILE", nargs="?", const="-", help="write all metrics as CSV; - is stdout")


def act(options: Namespace) -> int:
    """Read, compare, print or write."""
    from continual.report.compare import Row, compare, pick_baseline
    from continual.report.export import as_csv, as_json
    from continual.report.table import render

    target = options.json or options.csv
    if target and Path(target).is_dir():
        raise UserError(f"{target} is a folder; write the file's name, or the folders of runs before --json or --csv")
    blocks = compare(options.runs or ["runs"])
    baselines: list[Row | None] = [None] * len(blocks)
    if options.baseline is not None:
        baselines = pick_baseline(blocks, options.baseline)
    table = render(blocks, baselines, [name for name in options.metrics.split(",") if name])
    if not target:
        print(table)
        return 0
    written = as_json(blocks, baselines) + "\n" if options.json else as_csv(blocks, baselines)
    if target == "-":
        print(written, end="")
    else:
        _write(Path(target), written)
    return 0


def _write(path: Path, content: str) -> None:
    from continual.files import write_atomic

    try:
        write_atomic(path, content.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(f"written to {path}")
