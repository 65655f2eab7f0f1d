"""The command ``continual``: finds the command, hands it its words, and turns every error into one line."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from continual.errors import Terminated, UserError, nearest

COMMANDS = {
    "run": "run an experiment, or with -m a sweep of them",
    "compare": "table over seeds, with intervals and paired differences",
    "dashboard": "a page of charts: a file to send, or live while runs are going on",
    "status": "how far runs are, which failed and why; thousands at once",
    "show": "metrics and accuracy matrix of one run",
    "tune": "choose hyper-parameters on the first tasks only, with as many trials for each method",
    "sync": "upload runs that were tracked offline in wandb, and check that all arrived",
    "wandb-workspace": "put the forgetting dashboard into a wandb project",
    "list": "what a config can choose from",
    "check": "apply the laws to a config, e.g. to a strategy of your own",
}
"""Each is a module of ``continual.commands`` with ``configure(parser)`` and ``act(options) -> exit code``."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all our errors are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code: 0; 1 something failed; 2 the user's mistake; 130, 143 it was stopped."""
    words = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output (head, less) has left
        return 0
    except KeyboardInterrupt as stop:
        return _stopped(stop, "interrupted", signal.SIGINT)
    except Terminated as stop:
        return _stopped(stop, "terminated", signal.SIGTERM)
    except Exception as error:
        return _failed(error, debug="--debug" in words)


def _command(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"continual {version('continual')}")
        return 0
    if words[0] not in COMMANDS:
        raise UserError(f"there is no command '{words[0]}'{nearest(words[0], COMMANDS)}; see continual --help")
    command = import_module(f"continual.commands.{words[0].replace('-', '_')}")
    about = COMMANDS[words[0]]
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(f"continual {words[0]}", description=about, allow_abbrev=False, formatter_class=formatter)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    command.configure(parser)
    try:
        options = parser.parse_intermixed_args(words[1:])
    except SystemExit:  # it has printed its help
        return 0
    return int(command.act(options))


def _help() -> str:
    about = "Run streams of shifting tasks, swap strategies by config, see what was forgotten."
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}} {what}" for name, what in COMMANDS.items()]
    more = "continual COMMAND --help tells more; continual --version tells the version."
    return "\n".join(["usage: continual COMMAND ...", "", about, "", *lines, "", more])


def _stopped(stop: BaseException, how: str, number: int) -> int:
    print("; ".join([how, *getattr(stop, "__notes__", [])]), file=sys.stderr)
    return 128 + number


def _failed(error: Exception, debug: bool) -> int:
    from continual.environment import explained

    if debug:
        traceback.print_exception(error)
    known = error if isinstance(error, UserError) else explained(error)
    if known is not None:
        print(f"error: {' '.join(str(known).split())}", file=sys.stderr)
        return 2
    notes = getattr(error, "__notes__", None) or ["add --debug for its traceback"]
    told = f"{type(error).__name__}: {error}"
    if not isinstance(error, OSError | MemoryError):
        told += f" ({_place(error)}); this is a bug in continual or in your own code"
    print(f"error: {'; '.join([' '.join(told.split()), *notes])}", file=sys.stderr)
    return 1


def _place(error: Exception) -> str:
    """Where it was raised: the innermost frame that is not an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    return f"{os.path.relpath(own[-1].filename)}, line {own[-1].lineno}" if own else "nowhere"
