"""Hold all weights near those after the last experience, all alike: what importances must beat.

    L = L_task + strength / 2 * sum_i (w_i - w_end_i)^2

The uniform penalty that elastic weight consolidation is compared with in Kirkpatrick et al. 2017,
https://arxiv.org/abs/1612.00796

A direction in which the task's loss curves more than ``strength`` follows the data, a flatter one stays, whatever the
batch's size; an idle weight goes back with a time constant of 1 / (lr strength) updates: 100 at the default strength of
0.1 and a learning rate of 0.1. The default is a middle value and has no derivation: beside replay, on 5 tasks of
digits, it cost 4 to 10 points of accuracy at 1 to 32 rows an update and 20 to 28 at 128. A weight's pull is cut at
1 / lr (``continual.importance``).
"""

from typing import ClassVar

from continual.importance import Anchored, copies
from continual.strategy import View
from continual.types import Experience


class L2Anchor(Anchored):
    """Pull every weight towards its value after the last experience.

    Args:
        strength: weight of the penalty, >= 0; 0 switches it off.
    """

    needs_boundaries: ClassVar[bool] = True
    curvature: ClassVar[float] = 1.0

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__(strength)

    def end(self, view: View, experience: Experience) -> None:
        self.hold({name: p.new_ones(()) for name, p in view.params.items()}, copies(view))
