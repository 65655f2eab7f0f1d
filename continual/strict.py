"""JSON as it is defined, where Python's own reader takes more: NaN, floats that are too large, the same key twice."""

import json
import math
from collections.abc import Callable
from typing import Any


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object. Errors: ValueError if a key comes twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key comes twice")
    return members


def finite(digits: str) -> float:
    """What a float is. Errors: ValueError if it is not finite."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return value


def decoder(members: Callable[[list[tuple[str, Any]]], dict[str, Any]] = once) -> json.JSONDecoder:
    """A reader whose ``decode(text)`` raises a ValueError at anything else; ``members`` judges each object."""
    return json.JSONDecoder(object_pairs_hook=members, parse_float=finite, parse_constant=finite)
