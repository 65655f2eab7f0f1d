"""Check a config's keys and types against the constructors they go to, before anything is built."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from continual import fence
from continual.errors import UserError, nearest

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})
PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {  # the types of values that fit, and how they are called
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((float, int), "a number"),
    str: ((str,), "text"),
    types.NoneType: ((types.NoneType,), "null"),
}


def check_calls(node: Any, allow: tuple[str, ...], path: str = "") -> None:
    """Check every ``_target_`` below ``node``: each key is a parameter, each value has its type.

    Raises:
        UserError: names the key, the value and the nearest parameter or the type.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, allow, path)
        for key, value in node.items():
            check_calls(value, allow, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_calls(value, allow, f"{path}[{index}]")


def _check_call(node: Mapping[str, Any], allow: tuple[str, ...], path: str) -> None:
    target = fence.locate(node["_target_"], allow)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key not in parameters:
            if open_ended:
                continue
            raise UserError(f"{path}.{key} is not a parameter of {node['_target_']}{nearest(key, parameters)}")
        if value == "???":
            raise UserError(f"{path}.{key} has no default; set it, e.g. {path}.{key}=...")
        if key in hints and not _fits(value, hints[key]):
            raise UserError(f"{path}.{key}={_written(value)} must be {_told(hints[key])}")


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML may be what a hint asks for; what cannot be judged fits."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if hint in PLAIN:
        is_number = not (isinstance(value, float) and math.isnan(value))
        return is_number and type(value) in PLAIN[hint][0]
    container = isinstance(origin or hint, type) and issubclass(origin or hint, Collection)
    if isinstance(value, list) and container:
        return not parts or all(_fits(item, parts[0]) for item in value)
    needs_object = container or origin is Callable or _is_tensor(hint)
    return isinstance(value, Mapping) or not needs_object


def _told(hint: Any) -> str:
    """``hint`` in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_told(part) for part in parts if not _is_tensor(part))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, parts))
    if hint in PLAIN:
        return PLAIN[hint][1]
    if origin is Callable:
        return "an object of its own (with a _target_)"
    if isinstance(origin or hint, type) and issubclass(origin or hint, Collection):
        return "a list, each item " + _told(parts[0]) if parts and parts[0] in PLAIN else "a list"
    return str(getattr(hint, "__name__", hint))


def _is_tensor(hint: Any) -> bool:
    return (getattr(hint, "__module__", ""), getattr(hint, "__name__", "")) == ("torch", "Tensor")  # without its import


def _written(value: Any) -> str:
    """``value`` as it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
