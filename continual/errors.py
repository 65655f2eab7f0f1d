"""One error type for everything a user can get wrong."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in config, data or command: the message names the thing, the value, the bound and the fix.

    The command line prints it as one line without a traceback.
    """


class DivergedError(UserError):
    """A loss that is nan or infinite: nothing that follows would mean anything."""


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM)."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest of ``choices``, or ``; choose from ...`` if none is close."""
    options = sorted(set(choices))
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from {', '.join(options)}" if options else ""
