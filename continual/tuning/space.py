"""What may be chosen: overrides that name several values, read as axes of a search space."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from continual.errors import UserError

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Axis:
    """One hyper-parameter.

    Attributes:
        key: dotted, e.g. ``optimizer.lr``.
        low, high: both ends, included; not read where there are ``choices``.
        log: whether it is drawn evenly in its logarithm.
        step: between values, None for a continuous one.
        choices: values as they are written, instead of an interval.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: int | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key} in {{{', '.join(self.choices)}}}"
        kind = ", logarithmic" if self.log else ""
        return f"{self.key} in [{self.low:g}, {self.high:g}]{kind}" + (f" by {self.step}" if self.step else "")

    @property
    def values(self) -> Sequence[Any] | None:
        """All that lie on it, None if there is no end of them."""
        if self.choices:
            return list(dict.fromkeys(self.choices))
        return None if self.step is None else range(int(self.low), int(self.high) + 1, self.step)

    def suggest(self, trial: "optuna.Trial") -> Any:
        """A value that the engine draws."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.step is not None:
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=self.step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def default(self, config: Mapping[str, Any]) -> Any:
        """The value in ``config`` (nested, resolved) if it lies on this axis, else None."""
        value = at(config, self.key)
        if self.choices:
            return str(value) if str(value) in self.choices else None
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        fits = self.step is None or (isinstance(value, int) and (value - self.low) % self.step == 0)
        return value if inside and fits else None


def axis(override: Any) -> Axis:
    """The axis of an override, as ``continual.overrides.parse`` gives it.

    ``key=interval(a,b)``, ``key=tag(log,interval(a,b))``, ``key=range(a,b)`` or ``key=a,b,c``.

    Raises:
        UserError: an empty interval, or a logarithmic one that reaches 0.
    """
    key, value = override.get_key_element(), override.value()
    if override.is_interval_sweep():
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        made = Axis(key, value.start, value.end, "log" in value.tags, 1 if whole else None)
        if not made.low < made.high or (made.log and made.low <= 0):
            raise UserError(f"{override.input_line}: its ends must rise" + (" from above 0" if made.log else ""))
        return made
    if override.is_range_sweep():
        numbers = [int(text) for text in override.sweep_string_iterator() if text.lstrip("-").isdigit()]
        if len(numbers) > 1:
            return Axis(key, min(numbers), max(numbers), step=abs(numbers[1] - numbers[0]))
    return Axis(key, choices=tuple(map(str, override.sweep_string_iterator())))


def usual(config: Mapping[str, Any], read: Container[str]) -> list[Axis]:
    """The space if none is named: the learning rate, and each strength above 0, a tenth to ten times its default.

    Of groups that are ``read`` by the learner.
    """
    with_rate = "optimizer" in read and at(config, "optimizer.lr") is not None
    axes = [Axis("optimizer.lr", 1e-3, 0.3, log=True)] if with_rate else []
    for name, node in config["strategy"].items() if "strategy" in read else ():
        for key, value in node.items():
            if (key == "strength" or key.endswith("_strength")) and isinstance(value, int | float) and value > 0:
                axes.append(Axis(f"strategy.{name}.{key}", value / 10, value * 10, log=True))
    return axes


def at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def has(config: Mapping[str, Any], key: str) -> bool:
    """Whether a dotted key is there, whatever its value."""
    parent, _, last = key.rpartition(".")
    node = at(config, parent) if parent else config
    return isinstance(node, Mapping) and last in node


def texts(values: Mapping[str, Any]) -> Sequence[str]:
    """``key=value`` overrides of chosen values."""
    return [f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()]
