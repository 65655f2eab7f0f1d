"""Check a config's keys and plain types against the constructors they go to, before anything is built."""

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from continual import fence
from continual.errors import UserError, nearest

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})
PLAIN = (bool, int, float, str)


def check_calls(node: Any, allow: tuple[str, ...], path: str = "") -> None:
    """Check every ``_target_`` below ``node``: each key is a parameter, each plain value has its type.

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
            raise UserError(f"{path}.{key}={value!r} must be {_told(hints[key])}, got {type(value).__name__}")


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a plain type; anything that is not plain is left to the constructor."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not all(member in (*PLAIN, types.NoneType) for member in members):
        return True
    if value is None:
        return types.NoneType in members
    if isinstance(value, bool):
        return bool in members
    if isinstance(value, int):
        return int in members or float in members
    return type(value) in members


def _told(hint: Any) -> str:
    names = [getattr(member, "__name__", str(member)) for member in typing.get_args(hint) or (hint,)]
    return " or ".join("null" if name == "NoneType" else name for name in names)
