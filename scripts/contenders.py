"""The training loops that ``benchmark.py`` compares: ours, a bare one of the same arithmetic, Avalanche's.

Each is called with the number of a task, trains on it, and says when it began, made its last step, and ended.
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bare import Bare, Laps, Setup, now
from torch import Tensor

from continual.config import Config, build_learner, compose
from continual.seeding import generator
from continual.types import Spec
from scenarios.sources.base import TensorSource
from scenarios.stream import IndexRows, IndexStream

BARE: dict[str, type[Bare]] = {
    name: loop
    for file in sorted(Path(__file__).parent.glob("bare_*.py"))
    for name, loop in import_module(file.stem).BARE.items()
}
"""The bare loop of each strategy under ``conf/strategy``."""


def random_rows(rows: int) -> tuple[Tensor, Tensor]:
    """Images (rows, 1, 28, 28) uint8, and labels from 0 to 9 in turn; a step takes as long whatever they show."""
    x = torch.randint(256, (rows, 1, 28, 28), dtype=torch.uint8, generator=generator(0, "images"))
    return x, torch.arange(rows) % 10


def random_stream(
    n_tasks: int, rows: int, kind: str = "data", test_rows: int = 10, arrival_rows: int | None = None
) -> IndexStream:
    """``n_tasks`` tasks of ``rows`` rows and ``test_rows`` test rows.

    ``data``: of ten classes; ``class`` and ``task``: of two classes each, with the task's label told if ``task``.
    """
    n_train, n_test = n_tasks * rows, n_tasks * test_rows
    x, y = random_rows(n_train + n_test)
    task = torch.cat([torch.arange(n_tasks).repeat_interleave(n) for n in (rows, test_rows)])
    y = y if kind == "data" else 2 * task + y % 2
    n_classes = 10 if kind == "data" else 2 * n_tasks
    source = TensorSource(x[:n_train], y[:n_train], x[n_train:], y[n_train:], n_classes=n_classes)
    probes = torch.arange(n_train, n_train + n_test).split(test_rows)
    return IndexStream(
        base=Spec(
            in_shape=source.in_shape,
            n_classes=n_classes,
            dtype=source.dtype,
            input_range=source.input_range,
            task_aware=kind == "task",
        ),
        inputs=source,
        ids=torch.arange(n_train),
        y=y[:n_train],
        task=task[:n_train],
        segment=task[:n_train],
        probes=tuple(IndexRows(source, ids, y[ids]) for ids in probes),
        arrival_rows=arrival_rows,
    )


@cache
def composed(setup: Setup) -> Config:
    """One config with all strategies that have a bare loop: their YAMLs, with what the loops say differs."""
    strategies = sorted(BARE.keys() - {"none"})
    own = [
        f"strategy.{method}.{key}={'null' if value is None else value}"
        for method in strategies
        for key, value in BARE[method].settings(setup).items()
    ]
    return compose(f"strategy=[{','.join(strategies)}]", *shared(setup), *own)


def strategy(method: str, setup: Setup) -> dict[str, Any]:
    """The settings of a strategy by its name; empty for none."""
    return {name: node for name, node in composed(setup).resolved["strategy"].items() if name == method}


def shared(setup: Setup) -> list[str]:
    """What ours and Avalanche's have in common."""
    hidden = [f"model.hidden={list(setup.hidden)}"] if setup.model == "mlp" else []
    return [f"model={setup.model}", *hidden, f"optimizer.lr={setup.lr}", f"train.batch_size={setup.batch}"]


class Ours:
    """The native learner."""

    def __init__(self, method: str, stream: IndexStream, setup: Setup) -> None:
        made = composed(setup)
        learner = made.resolved["learner"] | {"strategies": strategy(method, setup)}
        self.learner = build_learner(replace(made, resolved=made.resolved | {"learner": learner}), stream.spec)
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
    return BARE[method](stream, setup, strategy(method, setup).get(method, {}))


# ---------------------------------------------------------------- Avalanche's


def avalanche_settings(method: str, setup: Setup, n_tasks: int) -> tuple[str, dict[str, Any]] | None:
    """The learner under ``conf/learner/avalanche`` that is nearest to ours, with its settings; None if there is none.

    Not among them: RAR, by which Avalanche means another method (rows shifted towards other classes); PackNet, which
    cannot do with one pass there; generative replay, whose generator is another and learns at another time.
    """
    replay = {"mem_size": setup.capacity, "batch_size_mem": setup.batch}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("naive", {}),
        "er": ("replay", {"mem_size": setup.capacity}),
        "er_ace": ("er_ace", replay),
        "mir": ("mir", replay | {"subsample": 5 * setup.batch}),
        "der": ("der", replay | {"alpha": 0.3, "beta": 0.0}),
        "derpp": ("der", replay | {"alpha": 0.5, "beta": 0.5}),
        "scr": ("scr", replay),
        "agem": ("agem", {"patterns_per_exp": setup.capacity // n_tasks, "sample_size": max(setup.batch, n_tasks)}),
        "gem": ("gem", {"patterns_per_exp": setup.capacity // n_tasks}),
        "icarl": ("icarl", {"memory_size": setup.capacity}),
        "ewc": ("ewc", {"ewc_lambda": 0.5, "mode": "online", "decay_factor": 1.0}),
        "si": ("si", {"si_lambda": 1.0}),
        "mas": ("mas", {}),
        "rwalk": ("rwalk", {}),
        "lwf": ("lwf", {}),
        "feature_distillation": ("feature_distillation", {}),
    }
    return found.get(method)


def avalanche_learner(method: str, setup: Setup, spec: Spec, online: bool = False) -> Any:
    """Our wrapper of Avalanche's strategy, which makes it, and hands it what it trains on; None if there is none."""
    found = avalanche_settings(method, setup, spec.n_experiences or 1)
    if found is None:
        return None
    if online and method == "er":
        found = "replay_reservoir", {}  # a memory that arrivals of a few rows can be added to
    choice, settings = found
    made = compose(f"learner=avalanche/{choice}", *shared(setup))
    learner = deepcopy(made.resolved["learner"])
    learner["strategy"] |= settings
    if choice == "replay_reservoir":
        plugin = learner["strategy"]["plugins"][0]
        plugin["mem_size"] = plugin["storage_policy"]["max_size"] = setup.capacity
    return build_learner(replace(made, resolved=made.resolved | {"learner": learner}), spec)


class Theirs:
    """Avalanche's strategy of that name, metrics off, timed from its first step to its last, its set-up left out.

    Args:
        learner: of ``avalanche_learner``.
        experiences: ours, whose tensors it is given, or its own.
        evaluated: whether it measures the accuracy of each experience that it evaluates.
    """

    def __init__(self, learner: Any, experiences: Sequence[Any], evaluated: bool = False) -> None:
        bridge = import_module("continual.bridges.avalanche")
        from avalanche.evaluation.metrics import accuracy_metrics
        from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin

        class Clock(SupervisedPlugin):  # type: ignore[misc]
            def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
                self.began = now()

            def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
                self.stepped, self.steps = now(), strategy.clock.train_exp_iterations  # more where the memory is larger

        self.bridge, self.learner, self.experiences, self.clock = bridge, learner, experiences, Clock()
        learner.strategy.plugins.append(self.clock)
        if evaluated:
            learner.strategy.eval_mb_size = 1024
            with self.quietly():
                learner.strategy.plugins.append(EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]))

    def __call__(self, task: int) -> Laps:
        experience = self.experiences[task]
        with self.quietly():
            if hasattr(experience, "rows"):  # one of ours
                experience = self.learner._translate(experience)
                self.learner.lap += 1
            self.learner.strategy.train(experience, eval_streams=[])
        return Laps(self.clock.began, self.clock.stepped, now(), self.clock.steps)

    def through(self, experiences: Iterator[Any], n: int, turn: int) -> None:
        """Train on the next ``n`` of its own experiences, one after the other, whatever the turn."""
        with self.quietly():
            for experience in islice(experiences, n):
                self.learner.strategy.train(experience, eval_streams=[])

    def evaluate(self, probes: Sequence[Any], turn: int) -> Any:
        """Its evaluation of its own test experiences, whatever the turn."""
        with self.quietly():
            return self.learner.strategy.eval(probes)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Within it Avalanche prints and warns of nothing, and finds what it misses, as in our bridge to it."""
        with self.learner.noise.own(), self.bridge._quiet(), self.bridge._mended():
            yield


@cache
def usual_pipeline(rows: int, test_rows: int = 10) -> Any:
    """Avalanche's ``SplitFMNIST`` in ten tasks of ``rows`` rows, on random rows written in the layout of the real data.

    Rows go through PIL images, ToTensor and Normalize, as in its benchmarks of CIFAR and most others.
    """
    import_module("continual.bridges.avalanche")
    from avalanche.benchmarks.classic import SplitFMNIST

    x, y = random_rows(10 * max(rows, test_rows))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True):
        raw = Path(folder) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for part, n in (("train", 10 * rows), ("t10k", 10 * test_rows)):
            write_idx(raw / f"{part}-images-idx3-ubyte", x[:n, 0])
            write_idx(raw / f"{part}-labels-idx1-ubyte", y[:n].to(torch.uint8))
        return SplitFMNIST(n_experiences=10, shuffle=False, dataset_root=folder)


def write_idx(path: Path, values: Tensor) -> None:
    """The format of MNIST's files: two zeros, the type, the number of dimensions, each dimension, the bytes."""
    header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.numpy().tobytes())
