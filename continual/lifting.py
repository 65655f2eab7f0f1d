"""Values of several runs side by side, so that a function written for one run works on all at once under ``vmap``.

Tensors are stacked along a leading axis of runs, numbers that differ become an ``Each``, and any other object becomes a
copy that can only be read and whose parts are lifted when they are asked for. So the seams of a strategy need not know
that they act on several runs; what they do that cannot be done for several at once raises ``ApartError``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Never

import torch
from torch import Tensor

Lifted = Callable[[Sequence[Tensor]], Any]
"""From the stacked tensors, as ``vmap`` hands them over, to the value that stands for all runs."""

Stacks = dict[str, tuple[list[tuple[Tensor, int]], Tensor]]
"""What was stacked last under a path: of which tensors, in which version, and the result."""

PLAIN = (bool, int, float, str, type(None), slice, torch.dtype, torch.device)


_ABSENT = object()  # an attribute that some have and others have not


class ApartError(Exception):
    """Why runs cannot be computed together, as the end of a sentence."""


class DifferError(ApartError):
    """The values of some runs have another structure than those of others, at this step."""


class NeedsError(Exception):
    """Something was asked for that had not been lifted yet: ``path`` names it."""

    def __init__(self, path: str) -> None:
        self.path = path


class Lift:
    """Collects the tensors to be stacked. One per computation; ``stacks`` and ``wanted`` outlive it.

    Args:
        stacks: what is unchanged since is not stacked again.
        wanted: paths of the attributes that have been asked for.
    """

    def __init__(self, stacks: Stacks, wanted: set[str]) -> None:
        self.stacks, self.wanted = stacks, wanted
        self.tensors: list[Tensor] = []

    def put(self, stacked: Tensor) -> Lifted:
        """A tensor (R, ...) that is stacked already."""
        self.tensors.append(stacked)
        place = len(self.tensors) - 1
        return lambda given: given[place]

    def add(self, values: Sequence[Any], path: str) -> Lifted:
        """The values of all runs, which are called ``path``.

        Errors:
            DifferError: they are not alike, e.g. tensors of different shapes.
        """
        first = values[0]
        if any(type(value) is not type(first) for value in values) and not all(_number(value) for value in values):
            raise DifferError(f"{path} is of different types")
        if isinstance(first, Tensor):
            return self.put(self._stack(values, path))
        if isinstance(first, PLAIN):
            return self._plain(values, path)
        if isinstance(first, Mapping):
            if any(value.keys() != first.keys() for value in values):
                raise DifferError(f"{path} has different keys")
            parts = {key: self.add([value[key] for value in values], f"{path}.{key}") for key in first}
            return lambda given: MappingProxyType({key: part(given) for key, part in parts.items()})
        if isinstance(first, list | tuple):
            if any(len(value) != len(first) for value in values):
                raise DifferError(f"{path} has different lengths")
            items = [self.add(list(column), f"{path}.{i}") for i, column in enumerate(zip(*values, strict=True))]
            return lambda given: tuple(item(given) for item in items)
        if not hasattr(first, "__dict__") or callable(first):
            raise ApartError(f"{path} is a {type(first).__name__}, of which each run has its own")
        return self.add_object(values, path)

    def add_object(self, values: Sequence[Any], path: str, given_parts: Mapping[str, Lifted] | None = None) -> Lifted:
        """Objects of one class: a read-only copy with ``given_parts`` in place of its own attributes of these names."""
        known = dict(given_parts or {})
        hidden = set()
        for name in {name: None for each in values for name in vars(each)}:
            if name in known:
                continue
            column = [vars(each).get(name, _ABSENT) for each in values]
            value = column[0]
            if f"{path}.{name}" in self.wanted:
                known[name] = self.add(column, f"{path}.{name}")
            elif isinstance(value, PLAIN) and all(type(other) is type(value) and other == value for other in column):
                known[name] = _constant(value)
            else:
                hidden.add(name)
        own: Any = type(values[0])
        kind = _readable(own)
        return lambda given: _made(kind, path, {name: part(given) for name, part in known.items()}, hidden)

    def _plain(self, values: Sequence[Any], path: str) -> Lifted:
        first = values[0]
        if all(value == first for value in values):
            return _constant(first)
        if not all(_number(value) for value in values):
            raise DifferError(f"{path} differs")
        if len({bool(value) for value in values}) > 1:
            raise DifferError(f"{path} is 0 for some")
        device = self.tensors[0].device if self.tensors else None
        place = self.put(torch.tensor([float(value) for value in values], device=device))
        return lambda given: Each(place(given), [float(value) for value in values])

    def _stack(self, values: Sequence[Tensor], path: str) -> Tensor:
        now = [(value, value._version) for value in values]
        before, stacked = self.stacks.get(path, ([], values[0]))
        if len(before) == len(now) and all(a[0] is b[0] and a[1] == b[1] for a, b in zip(before, now, strict=True)):
            return stacked
        if any(value.shape != values[0].shape or value.dtype != values[0].dtype for value in values):
            raise DifferError(f"{path} has different shapes")
        stacked = torch.stack([value.detach() for value in values])
        self.stacks[path] = now, stacked
        return stacked


class Each:
    """A number of each run. It multiplies and adds as a number does; a question about it needs one answer for all."""

    def __init__(self, lifted: Tensor, values: Sequence[float]) -> None:
        self.lifted, self.values = lifted, list(values)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any function of torch takes it as a tensor without dimensions."""
        plain = [arg.lifted if isinstance(arg, Each) else arg for arg in args]
        named = {name: arg.lifted if isinstance(arg, Each) else arg for name, arg in (kwargs or {}).items()}
        return func(*plain, **named)

    def __bool__(self) -> bool:
        return self._agreed([bool(value) for value in self.values])

    def __lt__(self, other: Any) -> bool:
        return self._agreed([a < b for a, b in self._pairs(other)])

    def __gt__(self, other: Any) -> bool:
        return self._agreed([a > b for a, b in self._pairs(other)])

    def __le__(self, other: Any) -> bool:
        return self._agreed([a <= b for a, b in self._pairs(other)])

    def __ge__(self, other: Any) -> bool:
        return self._agreed([a >= b for a, b in self._pairs(other)])

    def __eq__(self, other: object) -> bool:
        return self._agreed([a == b for a, b in self._pairs(other)])

    __hash__ = None  # type: ignore[assignment]

    def __mul__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a * b)

    def __add__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: b - a)

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a / b)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: b / a)

    def __pow__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a**b)

    def __rpow__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: b**a)

    def __neg__(self) -> "Each":
        return Each(-self.lifted, [-value for value in self.values])

    __rmul__, __radd__ = __mul__, __add__

    def _with(self, other: Any, act: Callable[[Any, Any], Any]) -> Any:
        if isinstance(other, Tensor):
            return act(self.lifted, other)
        lifted = other.lifted if isinstance(other, Each) else other
        return Each(act(self.lifted, lifted), [act(a, b) for a, b in self._pairs(other)])

    def _pairs(self, other: Any) -> list[tuple[float, Any]]:
        others = other.values if isinstance(other, Each) else [other] * len(self.values)
        return list(zip(self.values, others, strict=True))

    def _agreed(self, answers: list[bool]) -> bool:
        if len(set(answers)) > 1:
            raise DifferError("a number is on one side of a bound for some and on the other for others")
        return answers[0]


def _constant(value: Any) -> Lifted:
    return lambda _given: value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Readable:
    """What every read-only copy does beside what its class does."""

    def __getattribute__(self, name: str) -> Any:
        given = object.__getattribute__(self, "__dict__")
        if name in given:
            return given[name]
        if name in given["_hidden"]:
            raise NeedsError(f"{given['_path']}.{name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> Never:
        raise ApartError(f"{vars(self)['_path']}.{name} is set within a loss")


@cache
def _readable(kind: type) -> type:
    return type(kind.__name__, (_Readable, kind), {})


def _made(kind: type, path: str, values: Mapping[str, Any], hidden: set[str]) -> Any:
    made: Any = object.__new__(kind)
    object.__getattribute__(made, "__dict__").update(values, _path=path, _hidden=hidden)
    return made
