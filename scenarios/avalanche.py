"""Avalanche's benchmarks as streams: a benchmark is read by its attributes.

From a config it is named by the function that makes it, which the fence does not let through by itself, as most of them
download what they do not find (to where ``+scenario.benchmark.dataset_root=FOLDER`` says)::

    continual run --allow avalanche.benchmarks scenario=avalanche scenario.benchmark.n_experiences=10
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from continual.errors import UserError
from continual.types import Spec
from scenarios.sources.base import TensorSource
from scenarios.stream import IndexRows, IndexStream


class Generators(Protocol):
    """A context in which the global generators are others."""

    def own(self) -> AbstractContextManager[None]: ...


def built_benchmark(generators: Generators, benchmark: Callable[[], Any]) -> IndexStream:
    """The stream of what ``benchmark()`` makes.

    Args:
        generators: ``continual.bridges.avalanche.Noise``, as Avalanche seeds the global generators and draws from them.
        benchmark: partial of a function of ``avalanche.benchmarks``, e.g. ``classic.SplitMNIST``.
    """
    with generators.own():
        made = benchmark()
    return stream_from_avalanche(made)


def stream_from_avalanche(benchmark: Any) -> IndexStream:
    """The experiences of ``benchmark.train_stream`` as tasks, those of ``benchmark.test_stream`` as their probes.

    All rows are read once, through the benchmark's transforms for evaluation, and kept in memory; augment with the
    learner instead. Experience i is task i. Task labels make the stream task-aware if they tell the experiences apart.

    Args:
        benchmark: what e.g. ``avalanche.benchmarks.classic.SplitMNIST(n_experiences=5)`` returns.

    Raises:
        UserError: no test experience for each training experience; rows that are not tensors of one shape.
    """
    train, test = list(benchmark.train_stream), list(benchmark.test_stream)
    if len(train) != len(test):
        raise UserError(
            f"the benchmark has {len(train)} training and {len(test)} test experiences; each task needs its own test"
        )
    x_train, y_train, sizes = _columns(train)
    x_test, y_test, test_sizes = _columns(test)
    source = TensorSource(x_train, y_train, x_test, y_test)
    labels = {frozenset(getattr(experience.dataset, "targets_task_labels", ())) for experience in train}
    task = torch.arange(len(train)).repeat_interleave(torch.tensor(sizes))
    tests = torch.split(torch.arange(source.n_train, len(source.y)), test_sizes)
    return IndexStream(
        base=Spec(
            source.in_shape,
            source.n_classes,
            source.dtype,
            source.input_range,
            task_aware=len(train) > 1 and len(labels) == len(train),
        ),
        inputs=source,
        ids=torch.arange(source.n_train),
        y=source.y[: source.n_train],
        task=task,
        segment=task,
        probes=tuple(IndexRows(source, ids, source.y[ids]) for ids in tests),
    )


def _columns(experiences: Sequence[Any]) -> tuple[Tensor, Tensor, list[int]]:
    """Rows (N, *in_shape) and labels (N,) of all experiences in their order, and how many rows each has."""
    rows = [row for experience in experiences for row in experience.dataset.eval()]
    kinds = {(row[0].dtype, row[0].shape) if isinstance(row[0], Tensor) else type(row[0]).__name__ for row in rows}
    if len(kinds) != 1 or not isinstance(rows[0][0], Tensor):
        found = " and ".join(sorted(map(str, kinds))) or "nothing"
        raise UserError(
            f"rows must be tensors of one shape, this benchmark has {found}; add transforms such as ToTensor"
        )
    labels = torch.tensor([int(row[1]) for row in rows])
    return torch.stack([row[0] for row in rows]), labels, [len(experience.dataset) for experience in experiences]
