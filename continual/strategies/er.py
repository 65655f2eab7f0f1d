"""Experience replay: train on the arrived rows together with rows from a memory.

    L = mean over arrived and replayed rows of cross-entropy, or, with a strength,
    L = mean_arrived CE + strength * mean_replayed CE

Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning", https://arxiv.org/abs/1902.10486
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from continual.batches import extend
from continual.errors import UserError
from continual.memory import Memory
from continual.seeding import derive
from continual.strategy import Strategy, View
from continual.types import Batch, Output


class ER(Strategy):
    """Append ``n_replay`` remembered rows to every batch.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        n_replay: rows replayed per update, >= 0; 0 only remembers.
        exclude_current: replay no row of the current experience (uses task boundaries).
        strength: weight of the replayed rows' own mean, >= 0; 0 replays nothing, None makes one mean of all rows.
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
        for name, value in (("n_replay", n_replay), ("strength", strength)):
            if value is not None and value < 0:
                raise UserError(f"{type(self).__name__}: {name}={value} must be at least 0")
        self.make_memory, self.n_replay, self.exclude_current, self.seed = memory, n_replay, exclude_current, seed
        self.strength = strength

    def start(self, view: View) -> None:
        if self.exclude_current and not view.spec.boundaries:
            raise UserError("exclude_current=true needs task boundaries, and this stream hides them")
        columns = {"experience": ((), torch.int64)} if self.exclude_current else {}
        seed = derive(self.seed, type(self).__name__, "memory")
        self.memory = self.make_memory(spec=view.spec, columns=columns, seed=seed, device=view.classes.device)

    def mix(self, view: View, batch: Batch) -> Batch:
        slots = self.draw(view)
        if self.strength == 0 or not len(slots):
            return batch
        x, y = self.memory.inputs(slots, view.fetch), self.memory.column("y", slots)
        if self.strength is not None:
            return extend(batch, x, y, weight=self.strength / len(slots))
        total = len(batch) + len(slots)
        return extend(batch, x, y, weight=1 / total, keep=len(batch) / total)

    def draw(self, view: View) -> Tensor:
        """(<= n_replay,) slots to replay."""
        if not self.exclude_current:
            return self.memory.draw(self.n_replay)
        stored = self.memory.columns["experience"][: len(self.memory)]
        return self.memory.draw(self.n_replay, among=(stored != view.experience).nonzero()[:, 0])

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        experience = {"experience": batch.y.new_full((batch.arrived,), view.experience)} if self.exclude_current else {}
        self.memory.add(batch, **experience)

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)
