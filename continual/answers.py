"""The rows of probes, answered in batches, and which of the answers were right."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor

from continual.batches import batches, joined, parts
from continual.step import MASKED
from continual.types import Learner, Rows, Stream

READ = 1024  # rows read at once for their labels
GROUP = 8  # batches of small probes that are answered together
Asked = tuple[Tensor, Tensor]
"""Rows x (n, *in_shape) and their labels y (n,)."""
KEPT = 64 << 20  # bytes of rows that lie in memory anyway and are kept in the order in which they are asked about


class Asker:
    """Asks a learner about the probes of a stream.

    Where the stream tells no tasks, the rows of several probes share batches. Rows of a source in memory are gathered
    once, if those of all probes take at most ``KEPT`` bytes, and stay where the learner computes.
    """

    def __init__(self, stream: Stream, learner: Learner, batch_size: int) -> None:
        self.rows, self.spec, self.learner, self.batch_size = stream.probes, stream.spec, learner, batch_size
        self.sizes = [len(rows) for rows in self.rows]
        self.n_probes = sum(map(bool, self.sizes))
        size = sum(self.sizes) * prod(self.spec.in_shape) * self.spec.dtype.itemsize
        self.keeps = size <= KEPT and all(getattr(rows, "resident", False) for rows in self.rows)
        self.kept: dict[tuple[int, ...], list[Asked]] = {}

    def answers(self, probes: Sequence[int], at_most: int | None = None) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(probes, logits (n, C), labels (n,)): the rows of some probes, one probe after another, until all came.

        Of each probe at most so many rows, evenly spaced. Probes without rows are not to be asked about.
        """
        for group in self._groups(probes, at_most):
            kept = self.kept.get(tuple(group)) if at_most is None else None  # whole probes only
            keep = self.keeps and kept is None and at_most is None and len(probes) == self.n_probes
            logits, labels, gathered = list[Tensor](), list[Tensor](), list[Asked]()
            for x, y in kept or self._read(group, at_most):
                logits.append(self.ask(x, group[0] if self.spec.task_aware else None))
                labels.append(y.to(logits[-1].device))
                if keep:
                    gathered.append((x.to(logits[-1].device), labels[-1]))
            if keep:
                self.kept[tuple(group)] = gathered
            yield group, torch.cat(logits), torch.cat(labels)

    def ask(self, x: Tensor, task: int | None) -> Tensor:
        """Logits (n, C) of the rows ``x`` (n, *in_shape), under inference mode, where the learner puts them."""
        with torch.inference_mode():
            return self.learner.predict(x, task)

    def _read(self, group: Sequence[int], at_most: int | None) -> Iterator[Asked]:
        """(x, y) of each batch of the rows of a group's probes."""
        rows = joined([self.rows[probe] for probe in group])
        chosen = parts(rows, self.batch_size)
        if at_most is not None:
            starts = accumulate((self.sizes[probe] for probe in group), initial=0)
            own = [start + spaced(self.sizes[probe], at_most) for start, probe in zip(starts, group, strict=False)]
            chosen = iter(torch.split(torch.cat(own), self.batch_size))
        return ((batch.x, batch.y) for batch in batches(rows, chosen))

    def _groups(self, probes: Sequence[int], at_most: int | None) -> Iterator[list[int]]:
        """Probes that are answered together: each alone where the stream tells tasks."""
        group, n_rows = list[int](), 0
        for probe in probes:
            group.append(probe)
            n_rows += fewest(self.sizes[probe], at_most)
            if self.spec.task_aware or n_rows >= GROUP * self.batch_size:
                yield group
                group, n_rows = [], 0
        if group:
            yield group


class Answered:
    """Which rows were answered right, group by group: among all classes, and among the classes seen."""

    def __init__(self) -> None:
        self.right, self.among_seen = ([torch.zeros(0, dtype=torch.bool)] for _ in range(2))

    def add(self, logits: Tensor, y: Tensor, seen: Tensor) -> None:
        """Judge logits (n, C) by labels ``y`` (n,), where the classes ``seen`` (C,) were seen."""
        right = [logits.argmax(1) == y]
        if not seen.all():
            right.append(logits.masked_fill(~seen.to(logits.device), MASKED).argmax(1) == y)
        told = torch.stack(right).cpu()
        self.right.append(told[0])
        self.among_seen.append(told[-1])


class ClassCounts:
    """Rows of each class, and how many of them were right, over several probes."""

    def __init__(self, n_classes: int) -> None:
        self.rows, self.right = (torch.zeros(n_classes, dtype=torch.int64) for _ in range(2))

    def add(self, y: Tensor, right: Tensor) -> None:
        """Count labels ``y`` (n,) of which ``right`` (n,) were answered."""
        self.rows += y.bincount(minlength=len(self.rows))
        self.right += y[right].bincount(minlength=len(self.rows))

    def accuracies(self) -> Iterator[tuple[int, float]]:
        """(class, share of its rows that were right) of each class that has rows."""
        labels = self.rows.nonzero()[:, 0]
        yield from zip(labels.tolist(), (self.right[labels].double() / self.rows[labels]).tolist(), strict=True)


def fewest(rows: int, at_most: int | None) -> int:
    """``rows``, or ``at_most`` if that is less."""
    return rows if at_most is None else min(at_most, rows)


def spaced(rows: int, at_most: int) -> Tensor:
    """(n,) positions of ``at_most`` rows, evenly spaced: test rows may lie sorted by class."""
    n = fewest(rows, at_most)
    return torch.arange(n) * rows // n


def labels_of(rows: Rows) -> Tensor:
    """(n,) labels: as they are told by rows that hold them in a column, else read with the rows."""
    y = getattr(rows, "y", None)
    return y.long() if isinstance(y, Tensor) else torch.cat([rows.take(part).y for part in parts(rows, READ)])


def shares(flags: Tensor, sizes: Sequence[int]) -> list[float]:
    """The share of ``flags`` (n,) that is set, of each stretch of ``sizes``, which sum to n and are at least 1."""
    if not sizes:
        return []
    counts = np.add.reduceat(flags.numpy(), [0, *accumulate(sizes[:-1])], dtype=np.int64)
    return [n / size for n, size in zip(counts.tolist(), sizes, strict=True)]
