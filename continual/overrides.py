"""What the command line asks for: ``key=value`` overrides, read, checked, and explained where they name nothing."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from continual import fence
from continual.choices import LAUNCHER, choices, groups
from continual.errors import UserError, nearest

COMPOSED = ("strategy", "operator", "experiment")
"""Groups of which several may be chosen at once."""

CLOSE = 0.6
"""Similarity in [0, 1] from which on a key is suggested for a misspelt one."""


def parse(texts: Sequence[str], folder: Path | None) -> list[Override]:
    """Read overrides; a choice that a group does not have is refused, an empty list is read as ``none``.

    Raises:
        UserError: an override that cannot be read, names no choice, or asks for what is not to be had.
    """
    known = groups(folder)
    return [_checked(read(text), known, folder) for text in texts]


def values(override: Override, folder: Path | None) -> Iterator[str]:
    """The overrides that a sweep stands for, e.g. ``seed=0``, ``seed=1`` for ``seed=range(2)``; else the one."""
    if not override.is_sweep_override():
        return iter([str(override.input_line)])
    return iter([f"{override.get_key_element()}={value}" for value in _swept(override, folder)])


def read(text: str) -> Override:
    """One override as Hydra's grammar has it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException:
        key, equals, value = text.partition("=")
        fix = f"""quote it twice: '{key}="{value}"'""" if equals and key and value else "write key=value"
        raise UserError(f"{text}: this override cannot be read; {fix}") from None


def _checked(override: Override, known: Sequence[str], folder: Path | None) -> Override:
    group, line = str(override.key_or_group), override.input_line
    if group.split(".")[0].split("/")[0] == "hydra":
        raise UserError(f"{line}: hydra's own settings are not used here, only {LAUNCHER}=... of 'continual run -m'")
    if override.is_delete():
        if "." not in group:
            raise UserError(f"{line}: '{group}' cannot be taken away; give it another value")
        return override
    if group.replace(".", "/") in known and "." in group and not isinstance(override.value(), dict):
        group = group.replace(".", "/")
        raise UserError(f"{line}: '{group}' is a group; write {group}={line.partition('=')[2] if line else ''}")
    if group not in known:
        return override
    if group == "memory" and override.package is None:
        value = str(line).partition("=")[2]
        raise UserError(f"{line}: say whose memory, e.g. memory@strategy.er.memory={value}")
    if override.value() == []:
        return read(f"{override.get_key_element()}=none")
    _check_names(group, override, folder)
    return override


def _check_names(group: str, override: Override, folder: Path | None) -> None:
    """Each name chosen must be there, and be chosen once."""
    offered = [choice.name for choice in choices(group, folder)]
    for value in _swept(override, folder) if override.is_sweep_override() else [override.value()]:
        several = isinstance(value, list) or str(value).startswith("[")
        names = list(map(str, value if isinstance(value, list) else str(value).strip("[]").split(",")))
        if several and group not in COMPOSED:
            raise UserError(f"{override.input_line}: one {group} at a time; -m {group}={','.join(names)} runs each")
        for name in names if names != [""] or not several else []:
            if name not in offered:
                raise UserError(f"{group}={name} does not exist{nearest(name, offered)}")
            if names.count(name) > 1:
                raise UserError(f"{override.input_line} names '{name}' {names.count(name)} times; once is enough")


def _swept(override: Override, folder: Path | None) -> list[str]:
    """The values of a sweep as they are written."""
    pattern: Any = override.value()
    if isinstance(pattern, Glob):
        found = pattern.filter([choice.name for choice in choices(str(override.key_or_group), folder)])
    else:
        try:
            found = list(override.sweep_string_iterator())
        except (HydraException, ValueError) as error:
            raise UserError(f"{override.input_line}: this sweep cannot be read: {error}") from None
    if not found:
        raise UserError(f"{override.input_line} names no value; e.g. 'seed=range(5)' names 0, 1, 2, 3 and 4")
    return found


def explain(parsed: Sequence[Override], config: Mapping[str, Any], folder: Path | None) -> UserError | None:
    """The first override that changes a key which ``config`` (the choices composed, unresolved) does not have."""
    known = groups(folder)
    for override in parsed:
        key = str(override.key_or_group)
        changes = not (override.is_add() or override.is_force_add())
        parent, _, last = key.rpartition(".")
        if key not in known and changes and last not in _at(config, parent):
            return UserError(f"{override.input_line}: there is no key '{key}'{_hint(override, config, known, folder)}")
    return None


def _hint(override: Override, config: Mapping[str, Any], known: Sequence[str], folder: Path | None) -> str:
    key = str(override.key_or_group)
    group, _, rest = key.partition(".")
    part = rest.partition(".")[0]
    if group in known and part not in config.get(group, {}) and part in {c.name for c in choices(group, folder)}:
        return f", as {group}={part} is not chosen; add {group}={part}"
    parent, _, last = key.rpartition(".")
    node = _at(config, parent)
    if "_target_" in node and last in _parameters(node["_target_"]):
        return f" in the config; {parent} takes it all the same: +{override.input_line}"
    closest = _closest(key, [*_keys(config), *known])
    if closest:
        as_group = closest.replace(".", "/")
        return f"; did you mean '{as_group if as_group in known else closest}'?"
    return nearest("", [name for name in node or config if not name.startswith("_")])


def _closest(key: str, keys: Sequence[str]) -> str | None:
    """The key most like ``key``, in its last part and as a whole, if the last parts are close."""
    last = key.split(".")[-1]
    scores = {other: _alike(last, other.split(".")[-1]) for other in keys}
    close = [other for other in keys if scores[other] >= CLOSE]
    return max(close, key=lambda other: scores[other] + _alike(key, other), default=None)


def _alike(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def _at(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    node: Any = config
    for part in path.split(".") if path else []:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _keys(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of all values, without those that Hydra reads (``_target_``)."""
    for name, value in config.items():
        if not name.startswith("_"):
            yield above + name
        if isinstance(value, Mapping):
            yield from _keys(value, f"{above}{name}.")


def _parameters(target: str) -> Sequence[str]:
    try:
        return list(inspect.signature(fence.locate(target)).parameters)
    except (UserError, TypeError, ValueError):
        return []
