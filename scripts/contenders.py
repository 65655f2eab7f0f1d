"""The training loops that ``benchmark.py`` compares: ours, a bare one of the same arithmetic, Avalanche's.

Each is called with the number of a task, trains on it, and says when it began, made its last step, and ended.
"""

import warnings
from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from bare import Bare, Contender, Laps, Setup, network, now
from torch import Tensor, nn

from continual.config import Config, build_learner, compose
from continual.seeding import generator
from continual.types import Spec
from scenarios.sources.base import TensorSource
from scenarios.split import split
from scenarios.stream import IndexStream

BARE: dict[str, type[Bare]] = {
    name: loop
    for file in sorted(Path(__file__).parent.glob("bare_*.py"))
    for name, loop in import_module(file.stem).BARE.items()
}
"""The bare loop of each strategy under ``conf/strategy``."""


def random_rows(rows: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Images (rows, 1, 28, 28) uint8, and labels in turn; a step takes as long whatever they show."""
    x = torch.randint(256, (rows, 1, 28, 28), dtype=torch.uint8, generator=generator(0, "images"))
    return x, torch.arange(rows) % classes


def random_stream(n_tasks: int, rows: int, kind: str = "data") -> IndexStream:
    """``n_tasks`` tasks of ``rows`` rows: of ten classes, or where classes come task by task of two each."""
    classes = 10 if kind == "data" else 2 * n_tasks
    x, y = random_rows(n_tasks * rows, classes)
    return split(TensorSource(x, y, x[: classes * n_tasks], y[: classes * n_tasks]), n_tasks=n_tasks, kind=kind)


@cache
def config(method: str, setup: Setup) -> Config:
    """The config of ours: the strategy's YAML with what its bare loop says differs."""
    settings = BARE[method].settings(setup)
    return compose(
        f"strategy={method}",
        f"model={setup.model}",
        *([f"model.hidden={list(setup.hidden)}"] if setup.model == "mlp" else []),
        f"optimizer.lr={setup.lr}",
        f"train.batch_size={setup.batch}",
        *(f"strategy.{method}.{key}={'null' if value is None else value}" for key, value in settings.items()),
    )


class Ours:
    """The native learner."""

    def __init__(self, method: str, stream: IndexStream, setup: Setup) -> None:
        self.learner = build_learner(config(method, setup), stream.spec)
        self.experiences, self.batch = list(stream), setup.batch

    def __call__(self, task: int) -> Laps:
        experience = self.experiences[task]
        steps = -(-len(experience.rows) // self.batch)
        stepped = began = now()
        for step, _ in enumerate(self.learner.learn(experience), start=1):
            if step == steps:
                stepped = now()
        return Laps(began, stepped, now(), steps)


def bare(method: str, stream: IndexStream, setup: Setup) -> Bare:
    """The bare loop of a strategy, with the settings of ours."""
    return BARE[method](stream, setup, config(method, setup).resolved["strategy"].get(method, {}))


# ---------------------------------------------------------------- Avalanche's


class Scaled(nn.Module):
    """The network of ``Bare`` for rows that may still be bytes."""

    def __init__(self, setup: Setup, spec: Spec) -> None:
        super().__init__()
        self.network = network(setup, spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.float().mul_(1 / 255) if x.dtype == torch.uint8 else x)


def theirs(method: str, experiences: Sequence[Any], setup: Setup, spec: Spec) -> Contender:
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
        "er": partial(Replay, mem_size=setup.capacity),
        "derpp": partial(DER, mem_size=setup.capacity, alpha=0.5, beta=0.5),
        "ewc": partial(EWC, ewc_lambda=0.5, mode="online", decay_factor=1.0),
    }[method]
    model, clock = Scaled(setup, spec), Clock()
    with warnings.catch_warnings(record=True):
        strategy = make(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=setup.lr),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=setup.batch,
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
