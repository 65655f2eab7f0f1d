"""Use-balanced replay: the rows that were replayed least come first, ties at random.

    the n_replay slots of the smallest count; their counts go up by one; a new row begins at 0

A plain baseline of no paper and no extra cost: in a memory that does not change, all rows are replayed equally often,
one time apart at most; in one that does, rows that came lately are preferred.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from continual.errors import UserError
from continual.memory import Column, Memory
from continual.strategies.er import ER
from continual.strategy import View
from continual.types import Batch, Output


class UseBalancedER(ER):
    """Experience replay in turns.

    Args:
        memory: partial of a ``continual.memory.Memory`` without replacement; a row's count is stored beside it.
        n_replay: rows replayed per update, >= 0; 0 only remembers.
        exclude_current: replay no row of the current experience (uses task boundaries).
        strength: weight of the replayed rows' own mean, >= 0; None makes one mean of all rows.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        exclude_current: bool = False,
        strength: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, strength=strength, seed=seed)

    def start(self, view: View) -> None:
        super().start(view)
        if self.memory.replacement:
            raise UserError("strategy.use_balanced_er.memory.replacement=true has no meaning: rows come in turns")

    def columns(self, view: View) -> dict[str, Column]:
        return {"uses": ((), torch.int64)}

    def beside(self, view: View, batch: Batch, out: Output) -> dict[str, Tensor]:
        return {"uses": batch.y.new_zeros(batch.arrived)}

    def draw(self, view: View, batch: Batch) -> Tensor:
        shuffled = self.memory.draw(len(self.memory), self.among(view))
        uses = self.memory.column("uses", shuffled)
        least = uses.argsort(stable=True)[: self.n_replay]
        chosen = shuffled[least]
        self.memory.write("uses", chosen, uses[least] + 1)
        return chosen
