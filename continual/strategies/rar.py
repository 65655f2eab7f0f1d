"""Repeated augmented rehearsal: several steps on the same arrived rows, each with a fresh draw and fresh augmentation.

    repeat n_repeats times: a step on mean_arrived CE + strength * mean_replayed CE; then remember the arrived rows

The control that other ways to spend computation must beat. Augmentation is the learner's own (``augment=crop_flip``):
it draws anew in each step. Zhang et al. 2022, "A simple but strong baseline for online continual learning: Repeated
Augmented Rehearsal", https://arxiv.org/abs/2209.13917
"""

from collections.abc import Callable

from continual.errors import UserError
from continual.memory import Memory
from continual.strategies.er import ER


class RAR(ER):
    """Experience replay that makes ``n_repeats`` steps on every batch; a scheduler goes on by one for all of them.

    With ``n_replay=0`` the steps are still repeated.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        n_replay: rows replayed per step, >= 0.
        n_repeats: steps on each batch, >= 1; 1 is ``ER``.
        exclude_current: replay no row of the current experience (uses task boundaries).
        strength: weight of the replayed rows' own mean, >= 0; 1 as in the authors' code, None for one mean of all rows.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        n_repeats: int = 10,
        exclude_current: bool = False,
        strength: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, strength=strength, seed=seed)
        if n_repeats < 1:
            raise UserError(f"strategy.rar.n_repeats={n_repeats} must be at least 1")
        self.n_repeats = n_repeats
