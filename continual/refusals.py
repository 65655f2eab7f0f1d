"""What a strategy cannot be set to, and what a learner by gradient steps cannot do: said before it starts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations

from continual.errors import UserError
from continual.memory import Memory, one_each
from continual.strategy import Strategy
from continual.types import Spec


def name_of(strategy: Strategy) -> str:
    """The name that configs give it: that of its module."""
    return type(strategy).__module__.rpartition(".")[2]


def require(strategy: Strategy, name: str, value: object, holds: bool, bound: str) -> None:
    """Refuse ``value`` for the setting ``name`` of ``strategy`` unless ``holds``, which a nan never makes true."""
    if not holds:
        raise UserError(f"strategy.{name_of(strategy)}.{name}={value} must be {bound}")


@contextmanager
def settings_of(key: str) -> Iterator[None]:
    """Within it, a refusal that begins with a setting's own name gets the rest of its key: ``key.capacity=0 ...``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}.{error}") from error


def at_least_0(strategy: Strategy, **values: float | None) -> None:
    """Refuse settings of ``strategy`` below 0; None is none."""
    for name, value in values.items():
        require(strategy, name, value, value is None or value >= 0, "at least 0")


def check_each_class(key: str, memory: Memory, spec: Spec) -> None:
    """Refuse a memory, set at ``key``, without a row for each class where each has to have one."""
    with settings_of(key):
        one_each(memory.capacity, spec.n_classes)


def check_boundaries(setting: str, spec: Spec, instead: str) -> None:
    """Refuse a ``setting``, ``key=value``, that acts at the ends of tasks, on a stream that hides these."""
    if not spec.boundaries:
        raise UserError(
            f"{setting} needs task boundaries, and this stream hides them; use {instead}, or let tasks arrive whole "
            "(scenario.arrival_rows=null)"
        )


def check_protocol(spec: Spec, batch_size: int, epochs: int, iterations: int | None) -> None:
    """Refuse counts below 1, and a batch larger than the data."""
    for name, value in (("batch_size", batch_size), ("epochs", epochs), ("iterations", iterations)):
        if value is not None and value < 1:
            raise UserError(f"train.{name}={value} must be at least 1")
    if spec.boundaries and spec.smallest is not None and batch_size > spec.smallest:
        raise UserError(
            f"train.batch_size={batch_size} is larger than the smallest experience of {spec.smallest} rows; "
            f"use at most train.batch_size={spec.smallest}"
        )


def check_strategies(spec: Spec, strategies: Mapping[str, Strategy]) -> None:
    """Refuse a strategy that needs what the stream does not have, and a pair that makes no sense."""
    for name, s in strategies.items():
        if s.needs_boundaries and not spec.boundaries:
            raise UserError(
                f"strategy '{name}' needs task boundaries, and this stream hides them; "
                f"let tasks arrive whole (scenario.arrival_rows=null) or use a strategy that does not"
            )
        if s.needs_tasks and not spec.task_aware:
            raise UserError(
                f"strategy '{name}' needs task labels, and this stream hides them; use a task-incremental stream "
                f"(scenario.kind=task, or scenario.task_aware=true) or a strategy that does not"
            )
    for (one, a), (other, b) in combinations(strategies.items(), 2):
        reason = a.clash(b) or b.clash(a)
        if reason:
            raise UserError(f"strategies '{one}' and '{other}' do not go together: {reason}; leave one out")


def check_features(strategies: Mapping[str, Strategy], n_features: int | None) -> None:
    """Refuse a strategy that reads features of a model that tells none."""
    for name, s in strategies.items():
        if s.needs_features and n_features is None:
            raise UserError(
                f"strategy '{name}' reads the network's features, and this model tells none; "
                f"use model=mlp, cnn or slim_resnet18, or return continual.types.Output(logits, features)"
            )


def check_least(least: int, batch_size: int, spec: Spec) -> None:
    """Refuse batches smaller than what the model's batch normalisation needs."""
    for name, rows in (("train.batch_size", batch_size), ("the stream's smallest experience", spec.smallest)):
        if rows is not None and 0 < rows < least:
            raise UserError(
                f"{name} is {rows} row, and this model's batch normalisation needs at least {least} rows; "
                f"use larger batches or arrivals, or a model without it (model=mlp, model=cnn)"
            )
