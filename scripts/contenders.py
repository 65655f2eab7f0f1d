"""The training loops that ``benchmark.py`` compares: ours, a bare one of the same arithmetic, Avalanche's.

Each is called with the number of a task, trains on it, and says when it began, made its last step, and ended.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, mse_loss

from continual.learner import SGDLearner
from continual.memory import Reservoir
from continual.models import mlp
from continual.seeding import derive, generator
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.ewc import EWC
from continual.strategy import Strategy
from scenarios.sources.base import TensorSource
from scenarios.split import split
from scenarios.stream import IndexStream

METHODS = ("none", "er", "derpp", "ewc")
HIDDEN = (400, 400)
LEARNING_RATE = 0.01
CAPACITY = 640  # a multiple of both batch sizes, so that a memory is full between two batches
STRENGTH = 1.0  # of EWC's penalty
SHARE = 0.5  # of the squared error of the logits, and of the replayed labels, in DER++
CHUNK = 64  # rows whose gradients EWC holds at once


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


def random_rows(rows: int) -> tuple[Tensor, Tensor]:
    """Images (rows, 1, 28, 28) uint8, and labels 0 to 9 in turn; a step takes as long whatever they show."""
    x = torch.randint(256, (rows, 1, 28, 28), dtype=torch.uint8, generator=generator(0, "images"))
    return x, torch.arange(rows) % 10


def random_stream(n_tasks: int, rows: int) -> IndexStream:
    """``n_tasks`` tasks of ``rows`` rows of ten classes."""
    x, y = random_rows(n_tasks * rows)
    return split(TensorSource(x, y, x[: 10 * n_tasks], y[: 10 * n_tasks]), n_tasks=n_tasks, kind="data")


# ---------------------------------------------------------------- ours


class Ours:
    """The native learner; as many rows are replayed as arrive, in each draw of DER++."""

    def __init__(self, method: str, stream: IndexStream, batch: int) -> None:
        memory = partial(Reservoir, CAPACITY)
        strategies: dict[str, dict[str, Strategy]] = {
            "none": {},
            "er": {"er": ER(memory, n_replay=batch)},
            "derpp": {"derpp": DERPP(memory, n_replay=batch, strength=SHARE, label_strength=SHARE)},
            "ewc": {"ewc": EWC(strength=STRENGTH, chunk=CHUNK)},
        }
        model, optimizer = partial(mlp, hidden=HIDDEN), partial(torch.optim.SGD, lr=LEARNING_RATE)
        self.learner = SGDLearner(model, optimizer, strategies[method], spec=stream.spec, batch_size=batch)
        self.experiences, self.batch = list(stream), batch

    def __call__(self, task: int) -> Laps:
        experience = self.experiences[task]
        steps = -(-len(experience.rows) // self.batch)
        stepped = began = now()
        for step, _ in enumerate(self.learner.learn(experience), start=1):
            if step == steps:
                stepped = now()
        return Laps(began, stepped, now(), steps)


# ---------------------------------------------------------------- bare


def network() -> nn.Sequential:
    """The network of ``Ours`` with its initial weights, without its wrappers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "model"))
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
            nn.Linear(HIDDEN[1], 10),
        )


class Bare:
    """Plain torch: shuffle, gather, scale, cross-entropy, SGD. The rows of ``Ours``, in its order."""

    def __init__(self, stream: IndexStream, batch: int) -> None:
        source: Any = stream.inputs
        self.images, self.labels, self.batch = source.x, source.y, batch
        self.ids = stream.ids.split(stream.starts.diff().tolist())
        self.network = network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE)

    def __call__(self, task: int) -> Laps:
        ids = self.ids[task]
        began = now()
        batches = ids[torch.randperm(len(ids), generator=generator(0, "order", task, 0))].split(self.batch)
        for rows in batches:
            x, y = self.images.index_select(0, rows), self.labels.index_select(0, rows)
            loss = self.loss(x, y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.remember(x, y)
        stepped = now()
        self.end(ids)
        return Laps(began, stepped, now(), len(batches))

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x.float().mul_(1 / 255))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.logits(x), y)

    def remember(self, x: Tensor, y: Tensor) -> None:
        pass

    def end(self, ids: Tensor) -> None:
        pass


class BareER(Bare):
    """A reservoir in preallocated tensors, filled batch by batch; one forward pass over arrived and replayed rows."""

    NAME = "ER"

    def __init__(self, stream: IndexStream, batch: int) -> None:
        super().__init__(stream, batch)
        self.x, self.y = torch.zeros(CAPACITY, 1, 28, 28, dtype=torch.uint8), torch.zeros(CAPACITY, dtype=torch.int64)
        self.seen, self.draws = 0, generator(derive(0, self.NAME, "memory"))

    def sample(self) -> Tensor:
        return torch.randperm(min(self.seen, CAPACITY), generator=self.draws)[: self.batch]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.seen:
            slots = self.sample()
            x = torch.cat([x, self.x.index_select(0, slots)])
            y = torch.cat([y, self.y.index_select(0, slots)])
        return cross_entropy(self.logits(x), y)

    def remember(self, x: Tensor, y: Tensor) -> None:
        slots = torch.arange(self.seen, self.seen + len(y))
        if self.seen >= CAPACITY:
            slots = (torch.rand(len(y), generator=self.draws, dtype=torch.float64) * (slots + 1)).long()
        self.seen += len(y)
        kept = (slots < CAPACITY).nonzero()[:, 0]
        if len(kept):
            self.write(slots.index_select(0, kept), kept, x, y)

    def write(self, slots: Tensor, kept: Tensor, x: Tensor, y: Tensor) -> None:
        self.x[slots], self.y[slots] = x.index_select(0, kept), y.index_select(0, kept)


class BareDERPP(BareER):
    """A draw for the logits and one for the labels, one forward pass over all three parts."""

    NAME = "DERPP"

    def __init__(self, stream: IndexStream, batch: int) -> None:
        super().__init__(stream, batch)
        self.stored = torch.zeros(CAPACITY, 10)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.seen:
            self.out = self.logits(x)
            return cross_entropy(self.out, y)
        n, first, second = len(y), self.sample(), self.sample()
        self.out = self.logits(torch.cat([x, self.x.index_select(0, first), self.x.index_select(0, second)]))
        arrived, told, labelled = torch.split(self.out, [n, len(first), len(second)])
        distance = mse_loss(told, self.stored.index_select(0, first))
        replayed = cross_entropy(labelled, self.y.index_select(0, second))
        return cross_entropy(arrived, y) + SHARE * distance + SHARE * replayed

    def write(self, slots: Tensor, kept: Tensor, x: Tensor, y: Tensor) -> None:
        super().write(slots, kept, x, y)
        self.stored[slots] = self.out.detach().index_select(0, kept)


class BareEWC(Bare):
    """The quadratic penalty, and at the end of a task the Fisher diagonal from each row's own gradient."""

    def __init__(self, stream: IndexStream, batch: int) -> None:
        super().__init__(stream, batch)
        self.params = dict(self.network.named_parameters())
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().loss(x, y)
        for name, fisher in self.fisher.items():
            loss = loss + STRENGTH / 2 * (fisher * (self.params[name] - self.anchor[name]).square()).sum()
        return loss

    def end(self, ids: Tensor) -> None:
        self.anchor = {name: p.detach().clone() for name, p in self.params.items()}
        total = {name: torch.zeros_like(p) for name, p in self.anchor.items()}
        gradients = vmap(grad(self.row_loss), in_dims=(None, 0, 0))
        for rows in ids.split(CHUNK):
            x, y = self.images.index_select(0, rows), self.labels.index_select(0, rows)
            for name, gradient in gradients(self.anchor, x, y).items():
                total[name] += gradient.square_().sum(0)
        self.fisher = {name: t / len(ids) + self.fisher.get(name, 0) for name, t in total.items()}

    def row_loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(self.network, params, (x[None].float() * (1 / 255),))
        return cross_entropy(logits, y[None])


BARE: dict[str, type[Bare]] = {"none": Bare, "er": BareER, "derpp": BareDERPP, "ewc": BareEWC}


# ---------------------------------------------------------------- Avalanche's


class Scaled(nn.Module):
    """The network of ``Bare`` for rows that may still be bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.float().mul_(1 / 255) if x.dtype == torch.uint8 else x)


def theirs(method: str, experiences: Sequence[Any], batch: int) -> Contender:
    """Avalanche's strategy of that name, metrics off, timed from its first step to its last, its set-up left out."""
    import_module("continual.bridges.avalanche")  # first: it knows what importing Avalanche warns of
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.supervised import DER, EWC, Naive, Replay

    class Clock(SupervisedPlugin):  # type: ignore[misc]
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            self.began = now()

        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            self.stepped, self.steps = now(), strategy.clock.train_exp_iterations  # more where the memory is larger

    make = {
        "none": Naive,
        "er": partial(Replay, mem_size=CAPACITY),
        "derpp": partial(DER, mem_size=CAPACITY, alpha=SHARE, beta=SHARE),
        "ewc": partial(EWC, ewc_lambda=STRENGTH / 2, mode="online", decay_factor=1.0),
    }[method]
    model, clock = Scaled(), Clock()
    with warnings.catch_warnings(record=True):
        strategy = make(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=batch,
            plugins=[clock],
            evaluator=None,
        )

    def train(task: int) -> Laps:
        with warnings.catch_warnings(record=True):  # it warns of its own deprecated calls
            strategy.train(experiences[task], eval_streams=[])
        return Laps(clock.began, clock.stepped, now(), clock.steps)

    return train


def usual_pipelines(folder: Path, rows: int) -> dict[str, Any]:
    """Avalanche's own benchmarks, ten tasks of ``rows`` rows, on random rows written in the layout of the real data.

    ``SplitFMNIST`` goes through PIL images, ToTensor and Normalize, as do its benchmarks of CIFAR and most others;
    ``SplitMNIST`` of Avalanche 0.6 goes through float tensors and Normalize.
    """
    import_module("continual.bridges.avalanche")
    from avalanche.benchmarks.classic import SplitFMNIST, SplitMNIST

    x, y = random_rows(10 * rows)
    for name in ("MNIST", "FashionMNIST"):
        raw = folder / name / "raw"
        raw.mkdir(parents=True)
        for part, n in (("train", len(y)), ("t10k", 10)):
            write_idx(raw / f"{part}-images-idx3-ubyte", x[:n, 0])
            write_idx(raw / f"{part}-labels-idx1-ubyte", y[:n].to(torch.uint8))
    options = {"n_experiences": 10, "shuffle": False, "dataset_root": str(folder)}
    with warnings.catch_warnings(record=True):
        made = {"avalanche_pil": SplitFMNIST(**options), "avalanche_splitmnist": SplitMNIST(**options)}
    return {name: list(benchmark.train_stream) for name, benchmark in made.items()}


def write_idx(path: Path, values: Tensor) -> None:
    """The format of MNIST's files: two zeros, the type, the number of dimensions, each dimension, the bytes."""
    header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.numpy().tobytes())
