"""What laws are made of: the beginning of a stream, a network with moods, a learner in bytes."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from continual import snapshot
from continual.batches import Part
from continual.models.network import Classifier
from continual.types import Batch, Experience, Learner, Rows, Spec, Stream

MakeLearner = Callable[[], Learner]
"""A fresh learner, each time of the same config and seed."""

MakeStream = Callable[[], Stream]
"""The stream that it learns, each time the same."""

LearnerLaw = Callable[[MakeLearner, MakeStream], None]
"""Raises AssertionError, saying what was broken and the likely cause."""


class Brief:
    """The beginning of a stream, so that laws take milliseconds.

    Args:
        stream: any stream.
        rows: at most so many rows of each experience and probe, spread evenly over it; what is asked is asked whole.
        experiences: so many experiences, and more of small ones until there are ``rows`` rows of each.
    """

    def __init__(self, stream: Stream, rows: int = 24, experiences: int = 3) -> None:
        self.stream, self.rows, self.experiences = stream, rows, experiences

    def __iter__(self) -> Iterator[Experience]:
        for experience in islice(self.stream, self._length):
            yield replace(experience, rows=some(experience.rows, self.rows))

    @cached_property
    def _length(self) -> int:
        wanted, got, length = self.experiences * self.rows, 0, 0
        for experience in self.stream:
            got, length = got + min(len(experience.rows), self.rows), length + 1
            if length >= self.experiences and (got >= wanted or length == wanted):
                break
        return length

    @cached_property
    def spec(self) -> Spec:
        sizes = [len(experience.rows) for experience in self]
        return replace(self.stream.spec, n_experiences=len(sizes), smallest=min(sizes))

    @property
    def origins(self) -> Sequence[int]:
        return list(islice(self.stream.origins, self._length))

    @property
    def probes(self) -> Sequence[Rows]:
        return [some(rows, self.rows) for rows in islice(self.stream.probes, max(self.origins) + 1)]


def some(rows: Rows, n: int) -> Part:
    """At most ``n`` rows of ``rows``, spread evenly over them."""
    kept = min(n, len(rows))
    return Part(rows, torch.arange(kept) * len(rows) // max(kept, 1))


class _Norm(nn.BatchNorm1d):
    """Batch normalisation that takes a single row by its running statistics, as it has none of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return super().forward(x)


def moody(spec: Spec, hidden: Sequence[int] = (16,)) -> nn.Module:
    """A perceptron with batch normalisation and dropout: train and eval mode, and luck, all make a difference."""
    widths = [prod(spec.in_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), _Norm(fan_out), nn.ReLU(), nn.Dropout(0.2)]
    return Classifier(nn.Sequential(*layers), nn.Linear(widths[-1], spec.n_classes))


def whole(rows: Rows) -> Batch:
    """All rows as one batch."""
    return rows.take(torch.arange(len(rows)))


def questions(stream: Stream) -> list[tuple[Tensor, int | None]]:
    """(inputs, task label) of every probe, and of every experience with rows."""
    aware = stream.spec.task_aware
    probed = [(whole(rows).x, task if aware else None) for task, rows in enumerate(stream.probes)]
    return probed + [(whole(e.rows).x, e.task) for e in stream if len(e.rows)]


def answers(learner: Learner, stream: Stream) -> Tensor:
    """Logits (N, n_classes) for all ``questions``."""
    return torch.cat([learner.predict(x, task).detach().cpu() for x, task in questions(stream)])


def fingerprint(learner: Learner) -> bytes:
    """The snapshot of a learner: equal bytes, equal learner."""
    return snapshot.dumps(learner.state_dict())


def learn(learner: Learner, experience: Experience) -> list[int]:
    """What the updates of one experience yield."""
    return list(learner.learn(experience))


def run_through(learner: Learner, stream: Stream, first: int = 0) -> Learner:
    """``learner``, after it has learned ``stream`` from the experience ``first`` on."""
    for experience in stream:
        if experience.index >= first:
            learn(learner, experience)
    return learner


@dataclass(frozen=True)
class Globals:
    """The global generators' states: torch's, NumPy's and Python's."""

    torch: bytes
    numpy: bytes
    python: int

    @classmethod
    def now(cls) -> "Globals":
        """As they are."""
        _, key, *rest = np.random.get_state(legacy=True)
        drawn = np.asarray(key).tobytes() + str(rest).encode()
        return cls(torch.get_rng_state().numpy().tobytes(), drawn, hash(random.getstate()))

    def moved(self) -> str:
        """Names of the generators that are no longer as they were, '' if all are."""
        now = Globals.now()
        names = {"torch": "torch", "numpy": "numpy.random", "python": "Python's random"}
        return ", ".join(name for field, name in names.items() if getattr(self, field) != getattr(now, field))


@contextmanager
def stirred(seed: int) -> Iterator[None]:
    """Within it, the global generators are in another state; outside they are as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
