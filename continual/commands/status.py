"""``continual status``."""

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from continual.errors import UserError

ABOUT = """Runs that a sweep has yet to begin have no directory and are not counted. "?" is what cannot be told. The
exit code is 0 whatever the states of the runs; 2 if there is no run.

examples:
  continual status                   all runs below runs/
  continual status sweep --watch 5   again every 5 seconds
  continual status sweep --failed    only what failed or cannot be read, with the last lines of its traceback
  continual status sweep --json"""
CLEAR = "\x1b[H\x1b[2J"


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = ABOUT
    parser.add_argument("runs", nargs="*", metavar="DIR", help="folders with runs at or below them (default: runs)")
    parser.add_argument("--failed", action="store_true", help="tell only what failed or cannot be read, all of it")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again every so many seconds, until Ctrl-C")


def act(options: Namespace) -> int:
    """Look and print, once or again and again."""
    if options.watch is not None and not 0 < options.watch < float("inf"):
        raise UserError(f"--watch {options.watch} must be above 0 seconds")
    try:
        _show(options)
        while options.watch is not None:
            time.sleep(options.watch)
            _show(options)
    except KeyboardInterrupt:
        if options.watch is None:
            raise
        print()
    return 0


def _show(options: Namespace) -> None:
    from continual.report.status import as_json, look, render

    found = look([Path(path) for path in options.runs or ["runs"]], time.time())
    told = as_json(found, options.failed) if options.json else render(found, options.failed)
    print(f"{CLEAR if options.watch is not None and sys.stdout.isatty() else ''}{told}", flush=True)
