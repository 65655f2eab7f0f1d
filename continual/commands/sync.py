"""``continual sync``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.sync import Upload


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders with runs at or below them")
    parser.add_argument(
        "--wait", type=float, default=30.0, metavar="SECONDS", help="how long the server may take to show what was sent"
    )


def act(options: Namespace) -> int:
    """Upload, read back, tell; 1 if anything is missing on the server."""
    from continual.errors import UserError
    from continual.ledger import find_runs
    from continual.sync import sync
    from continual.trackers import wandb

    if not options.wait >= 0:
        raise UserError(f"--wait is {options.wait}; it is in seconds and must be at least 0")
    n_missing = 0
    try:
        for upload in sync(find_runs([Path(run) for run in options.runs]), options.wait):
            n_missing += bool(upload.missing)
            print(f"{upload.path}: {_told(upload)}", flush=True)
    finally:
        wandb.close()
    return 1 if n_missing else 0


def _told(upload: "Upload") -> str:
    if upload.skipped is not None:
        return f"skipped, {upload.skipped}"
    if upload.missing:
        return f"MISSING on the server: {'; '.join(upload.missing)}"
    return f"{'ok' if upload.sent else 'ok, was there before'}, {upload.url}"
