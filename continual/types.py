"""The nouns that every module shares. Frozen data and protocols, no behaviour.

One way, no arrow points back::

    conf --config.build--> Stream --Experience--> Learner(strategies)
                             | probes                | predict
                             v                       v
                            loop() ---------------> Record --> Ledger --> metrics --> report
                                                         `--> Tracker (wandb)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from continual.record import Record as Record


@dataclass(frozen=True, slots=True)
class Batch:
    """Labelled rows of one update, the rows that arrived now first, replayed rows after them.

    Attributes:
        x: (B, *in_shape) in the stream's own dtype (images stay uint8; the network scales them).
        y: (B,) int64 in [0, n_classes).
        weight: (B,) float, each row's share of the loss; sums to 1 for a plain mean.
        arrived: how many leading rows arrived from the stream now; the other rows were replayed.
        extra: columns kept beside the arrived rows, (arrived, ...) each: ``id`` (int64) names the
            row in its stream. Where the batch lies on a device, they and ``y`` (the labels) are the host's.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    arrived: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> Tensor:
        """Labels of the arrived rows, and perhaps more, that can be read without waiting for a device."""
        return self.extra.get("y", self.y)


class Output(NamedTuple):
    """What a network answers: ``logits`` (B, n_classes); ``features`` (B, F), or None if it has none.

    ``loss`` is a scalar that a model adds to its own task loss in train mode, e.g. of a prompt's keys; None for none.
    """

    logits: Tensor
    features: Tensor | None = None
    loss: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a learner may know about a stream before its first row.

    Attributes:
        in_shape: shape of one row, e.g. (1, 28, 28) or (8,).
        n_classes: labels are in [0, n_classes).
        dtype: dtype in which rows arrive; uint8 rows are mapped from 0..255 to ``input_range``.
        input_range: (low, high) that 0 and 255 map to; floating rows are left as they are.
        task_aware: whether experiences carry their task label, and predictions are asked with one.
        boundaries: whether one experience is one whole task (False: many small arrivals, blurred).
        n_experiences: how many experiences there will be, None if unknown.
        smallest: rows of the smallest experience, None if unknown.
    """

    in_shape: tuple[int, ...]
    n_classes: int
    dtype: torch.dtype = torch.float32
    input_range: tuple[float, float] = (0.0, 1.0)
    task_aware: bool = False
    boundaries: bool = True
    n_experiences: int | None = None
    smallest: int | None = None


class Rows(Protocol):
    """Rows that may live anywhere: in memory, in a Parquet file, in a folder of images."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Batch:
        """Rows at positions ``indices`` (B,) int64 in [0, len) as a fresh batch that shares no memory."""
        ...

    def fetch(self, ids: Tensor) -> Tensor:
        """Inputs (B, *in_shape) of the rows named by ``extra['id']`` of any batch of the same stream."""
        ...


@dataclass(frozen=True, slots=True)
class Experience:
    """One arrival of a stream.

    Attributes:
        index: position in the stream, from 0.
        rows: the labelled rows that arrive now.
        task: origin task, only if the stream's spec is ``task_aware``; else None.
        ask: rows to predict now whose labels come later or never; their ``y`` is -1.
    """

    index: int
    rows: Rows
    task: int | None = None
    ask: Rows | None = None


@runtime_checkable
class Stream(Protocol):
    """A re-iterable, seeded sequence of experiences.

    ``probes`` (one ``Rows`` per task) and ``origins`` (the task each experience came from; the
    majority where tasks are blurred) are for the evaluator only: no learner sees them.
    ``origins`` is how metrics know the task of an arrival on a stream that hides it.
    """

    @property
    def spec(self) -> Spec: ...

    @property
    def probes(self) -> Sequence[Rows]: ...

    @property
    def origins(self) -> Sequence[int]: ...

    def __iter__(self) -> Iterator[Experience]: ...


@dataclass(frozen=True, slots=True)
class Cost:
    """What a learner has spent.

    Attributes:
        forward_equivalents: forward passes of one row since the start; a backward pass counts 2.
        bytes: what it holds now: parameters, optimizer, memories, frozen copies (dtype counted).
    """

    forward_equivalents: float
    bytes: int


@runtime_checkable
class Learner(Protocol):
    """Two verbs, learn and answer.

    ::

        for experience in stream:
            for rows_consumed in learner.learn(experience):
                ...  # here the caller may predict, snapshot or stop
            logits = learner.predict(x)
    """

    def learn(self, experience: Experience) -> Iterator[int]:
        """Yield after each update the stream rows it consumed; they sum to ``len(experience.rows)``.

        A learner that was snapshotted between two yields and loaded into a fresh one continues
        there when it is given the same experience again.
        """
        ...

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Map (B, *in_shape) in the stream's dtype to (B, n_classes) logits and change nothing."""
        ...

    def cost(self) -> Cost: ...

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of tensors, numbers, strings, bools and None; complete."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Inspection(NamedTuple):
    """What a network looks like inside: ``features`` (B, F) or None, and all its parameters.

    ``activations``: (B, U, ...) of each hidden layer; none where the model's units cannot be told apart.
    """

    features: Tensor | None
    parameters: Sequence[Tensor]
    activations: Sequence[Tensor] = ()


@runtime_checkable
class Inspectable(Protocol):
    """A learner whose network may be looked into, for measures of plasticity."""

    def inspect(self, x: Tensor) -> Inspection:
        """Features of ``x`` (B, *in_shape) in eval mode, and the weights; changes nothing."""
        ...
