"""Experience replay: train on the arrived rows together with rows from a memory.

    L = mean over arrived and replayed rows of cross-entropy,  or, weighted by tasks (t experiences so far, from 1),
    L = 1/t mean_arrived CE + (1 - 1/t) mean_replayed CE,      or, with a strength of their own,
    L = mean_arrived CE + strength * mean_replayed CE

Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning", https://arxiv.org/abs/1902.10486; by tasks,
with rows remembered when an experience ends: van de Ven et al. 2022, https://doi.org/10.1038/s42256-022-00568-3
"""

from collections.abc import Callable

from torch import Tensor

from continual.batches import extend
from continual.errors import UserError
from continual.memory import Memory
from continual.refusals import at_least_0, check_boundaries, name_of
from continual.strategies.replay import Replay
from continual.strategy import View
from continual.types import Batch


class ER(Replay):
    """Append ``n_replay`` remembered rows to every batch.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        n_replay: rows replayed per update, >= 0; 0 only remembers.
        exclude_current: replay no row of the current experience (uses task boundaries).
        remember: ``step`` (each batch after its update) or ``end`` (all rows once, when their experience ends).
        weighting: ``rows`` (one mean of all rows) or ``tasks`` (as the formula above; uses task boundaries).
        strength: weight of the replayed rows' own mean, >= 0, in place of ``weighting``; 0 replays nothing.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        exclude_current: bool = False,
        remember: str = "step",
        weighting: str = "rows",
        strength: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, remember, seed)
        at_least_0(self, strength=strength)
        if weighting not in ("rows", "tasks"):
            raise UserError(f"strategy.{name_of(self)}.weighting='{weighting}' is unknown; use 'rows' or 'tasks'")
        self.strength, self.by_tasks = strength, weighting == "tasks" and strength is None

    def start(self, view: View) -> None:
        if self.by_tasks:
            key = f"strategy.{name_of(self)}"
            check_boundaries(f"{key}.weighting=tasks", view.spec, f"{key}.weighting=rows or a strength")
        super().start(view)

    def mix(self, view: View, batch: Batch) -> Batch:
        if self.strength == 0 or (self.by_tasks and view.experience == 0):
            return batch
        slots = self.draw(view, batch)
        if not len(slots):
            return batch
        keep, weight = self.weights(view, len(batch), len(slots))
        return extend(batch, self.memory.inputs(slots, view.fetch), self.memory.column("y", slots), weight, keep)

    def weights(self, view: View, rows: int, replayed: int) -> tuple[float, float]:
        """What scales the shares of the ``rows`` so far, and the share of each of the ``replayed`` ones."""
        if self.strength is not None:
            return 1.0, self.strength / replayed
        if self.by_tasks:
            tasks = view.experience + 1
            return 1 / tasks, (1 - 1 / tasks) / replayed
        return rows / (rows + replayed), 1 / (rows + replayed)

    def draw(self, view: View, batch: Batch) -> Tensor:
        """(<= n_replay,) slots to replay beside ``batch``."""
        return self.memory.draw(self.n_replay, self.among(view))
