"""What every bare loop shares: the setup, the clock, the network, plain SGD and a reservoir.

A bare loop is what a careful user would write by hand in plain torch for one strategy: the same arithmetic on the same
rows in the same order as ours, no seams, no checks. ``tests/test_benchmark.py`` compares the weights.

The loops are in the files ``bare_*.py`` beside this one. Each has a dictionary ``BARE`` from the name of the strategy
under ``conf/strategy`` to its loop, a subclass of ``Bare``; ``contenders.py`` finds the files by itself.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from continual.models import mlp, slim_resnet18
from continual.seeding import derive, generator
from continual.types import Spec
from scenarios.stream import IndexStream


@dataclass(frozen=True)
class Setup:
    """What a case of the benchmark is made of.

    Attributes:
        batch: rows that arrive in a step; as many are replayed.
        model: ``mlp`` or ``slim_resnet18``.
        hidden: widths of the perceptron.
        capacity: rows of a memory.
        lr: of plain SGD.
    """

    batch: int = 10
    model: str = "mlp"
    hidden: tuple[int, ...] = (400, 400)
    capacity: int = 640
    lr: float = 0.01


class Moment(NamedTuple):
    """Seconds of CPU time of this process, and of wall time."""

    cpu: float
    wall: float


class Laps(NamedTuple):
    """When a task began, when its last step was made, when it ended; and how many steps it had."""

    began: Moment
    stepped: Moment
    ended: Moment
    steps: int


Contender = Callable[[int], Laps]


def now() -> Moment:
    return Moment(time.process_time(), time.perf_counter())


def network(setup: Setup, spec: Spec) -> nn.Sequential:
    """The network of ours with its initial weights, without its wrappers; the last module is the head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "model"))
        model: Any = mlp(spec, setup.hidden) if setup.model == "mlp" else slim_resnet18(spec)
    return nn.Sequential(*model.features, model.head)


class Bare:
    """Plain torch: shuffle, gather, scale, cross-entropy, SGD. The rows of ours, in its order.

    Args:
        stream: as ours gets it; ``task``, ``data``, ``class`` or ``domain`` by ``KIND``.
        setup: of this case.
        options: the settings of the strategy, as its YAML gives them with ``settings`` in their place.
    """

    KIND: ClassVar[str] = "data"
    """Which stream it is measured on, see ``scenarios.split``."""

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:  # noqa: ARG004
        """Settings of the strategy that differ from its YAML, by dotted key."""
        return {}

    def __init__(self, stream: IndexStream, setup: Setup, options: Mapping[str, Any]) -> None:
        source: Any = stream.inputs
        self.images, self.labels = source.x, source.y
        self.spec, self.setup, self.options = stream.spec, setup, options
        self.ids = stream.ids.split(stream.starts.diff().tolist())
        self.network = network(setup, stream.spec)
        self.start()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=setup.lr)

    def __call__(self, task: int) -> Laps:
        ids, self.task = self.ids[task], task
        began = now()
        self.begin(ids)
        order = ids
        if len(ids) > self.setup.batch:
            order = ids[torch.randperm(len(ids), generator=generator(0, "order", task, 0))]
        batches = order.split(self.setup.batch)
        for rows in batches:
            self.step(self.images.index_select(0, rows), self.labels.index_select(0, rows))
        stepped = now()
        self.end(ids)
        return Laps(began, stepped, now(), len(batches))

    def step(self, x: Tensor, y: Tensor) -> None:
        """One update on the arrived rows ``x`` (B, *in_shape) uint8, ``y`` (B,)."""
        loss = self.loss(x, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.project()
        self.optimizer.step()
        self.remember(x, y)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order of ours."""
        return list(self.network.parameters())

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x.float().mul_(1 / 255))

    @torch.inference_mode()
    def accuracies(self, x: Tensor, y: Tensor, rows: int) -> list[float]:
        """Accuracies of probes of ``rows`` rows each, which lie behind one another in ``x`` and ``y``."""
        self.network.eval()
        answers = torch.cat([self.logits(part) for part in x.split(1024)]).argmax(1)
        self.network.train()
        return (answers == y).view(-1, rows).double().mean(1).tolist()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.logits(x), y)

    def start(self) -> None:
        """Once, before the first row."""

    def begin(self, ids: Tensor) -> None:
        """Before the first step on the rows ``ids`` of a task."""

    def project(self) -> None:
        """Between backward and the optimizer's step."""

    def remember(self, x: Tensor, y: Tensor) -> None:
        """After the optimizer's step on the arrived rows."""

    def end(self, ids: Tensor) -> None:
        """After the last step on the rows ``ids`` of a task."""


class Sample:
    """A reservoir in tensors that are allocated once, filled batch by batch.

    Args:
        name: class of our strategy, from which the seed of its memory is derived.
        columns: what is kept beside a row, by name: tensors of ``capacity`` rows.
    """

    def __init__(self, name: str, capacity: int, spec: Spec, **columns: Tensor) -> None:
        x, y = torch.zeros(capacity, *spec.in_shape, dtype=spec.dtype), torch.zeros(capacity, dtype=torch.int64)
        self.columns = {"x": x, "y": y, **columns}
        self.capacity, self.seen, self.draws = capacity, 0, generator(derive(0, name, "memory"))

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def draw(self, n: int) -> Tensor:
        return torch.randperm(len(self), generator=self.draws)[:n]

    def take(self, name: str, slots: Tensor) -> Tensor:
        return self.columns[name].index_select(0, slots)

    def add(self, **rows: Tensor) -> None:
        n = len(rows["y"])
        slots = torch.arange(self.seen, self.seen + n)
        free = max(0, min(n, self.capacity - self.seen))
        if free < n:
            drawn = torch.rand(n - free, generator=self.draws, dtype=torch.float64)
            slots[free:] = (drawn * (slots[free:] + 1)).long()
        self.seen += n
        kept = (slots < self.capacity).nonzero()[:, 0]
        if len(kept):
            slots = slots.index_select(0, kept)
            for name, column in self.columns.items():
                column.index_copy_(0, slots, rows[name].detach().index_select(0, kept))
