"""What hyper-parameters may be chosen on: the first tasks of a stream, a share of their training rows held out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from continual.batches import Part, TensorRows
from continual.errors import UserError
from continual.seeding import generator
from continual.types import Batch, Experience, Rows, Spec, Stream


class Holdout:
    """The first ``n_tasks`` tasks of a stream; its probes are held-out training rows, its own probes are never read.

    It ends before the first arrival of a further task. Labels of held-out rows are as they would have arrived: with
    label noise they are noisy too.

    Args:
        stream: any stream of more tasks than ``n_tasks``.
        n_tasks: how many, >= 1 and fewer than the stream has.
        fraction: of each arrival's rows that is held out, in (0, 0.5]; rows are drawn by ``seed``.
        seed: of the draw.

    Raises:
        UserError: a value outside its bounds; a task of which no row is held out, or none is left.
    """

    def __init__(self, stream: Stream, n_tasks: int, fraction: float = 0.1, seed: int = 0) -> None:
        there = len(set(stream.origins))
        if not 1 <= n_tasks < there:
            raise UserError(
                f"--tasks {n_tasks}: the stream has {there}, and what is chosen on all of them is chosen on what it is "
                f"compared on; use from 1 to {there - 1}"
            )
        if not 0 < fraction <= 0.5:
            raise UserError(f"--fraction {fraction:g} must be above 0 and at most 0.5")
        self.stream, self.fraction, self.seed = stream, fraction, seed
        self.origins: Sequence[int] = _first(stream.origins, n_tasks)
        self._experiences = [self._cut(e) for e, _ in zip(stream, self.origins, strict=False)]
        self.probes: Sequence[Rows] = self._probes()

    def __iter__(self) -> Iterator[Experience]:
        for experience, held in self._experiences:
            yield replace(experience, rows=Part(experience.rows, (~held).nonzero()[:, 0]))

    @property
    def spec(self) -> Spec:
        sizes = [int((~held).sum()) for _, held in self._experiences]
        return replace(self.stream.spec, n_experiences=len(sizes), smallest=min(sizes))

    def _cut(self, experience: Experience) -> tuple[Experience, Tensor]:
        draws = generator(self.seed, "holdout", experience.index)
        return experience, torch.rand(len(experience.rows), generator=draws) < self.fraction

    def _probes(self) -> list[Rows]:
        spec = self.stream.spec
        probes: list[Rows] = []
        for task in range(max(self.origins) + 1):
            mine = [cut for cut, origin in zip(self._experiences, self.origins, strict=True) if origin == task]
            batches = [e.rows.take(held.nonzero()[:, 0]) for e, held in mine]
            left = sum(int((~held).sum()) for _, held in mine)
            if mine and (not left or not sum(map(len, batches))):
                raise UserError(
                    f"task {task} has {sum(len(e.rows) for e, _ in mine)} rows, too few to hold {self.fraction:g} of "
                    "them out; hold out a larger share, or take larger tasks"
                )
            probes.append(_joined(batches, spec))
        return probes


def _first(origins: Sequence[int], n_tasks: int) -> list[int]:
    """``origins`` up to the first arrival of a task that is not among the first ``n_tasks`` distinct ones."""
    kept = list(dict.fromkeys(origins))[:n_tasks]
    end = next(position for position, origin in enumerate(origins) if origin not in kept)
    return list(origins[:end])


def _joined(batches: Sequence[Batch], spec: Spec) -> TensorRows:
    x = [batch.x for batch in batches] or [torch.empty(0, *spec.in_shape, dtype=spec.dtype)]
    y = [batch.y for batch in batches] or [torch.empty(0, dtype=torch.int64)]
    return TensorRows(torch.cat(x), torch.cat(y))
