"""Pull all weights towards their initial values, so that the network stays able to learn.

    L = L_task + strength * sum_i (w_i - w_0_i)^2

Weights that the recent loss does not need drift back to where learning is easy. Kumar et al. 2023, "Maintaining
Plasticity in Continual Learning via Regenerative Regularization", https://arxiv.org/abs/2308.11958

An idle weight goes back with a time constant of 1 / (2 lr strength) updates, whatever the batch's size: 500 at the
default strength of 0.01 and a learning rate of 0.1. The default has no other derivation. A weight's pull is cut at
1 / lr (``continual.importance``).
"""

from continual.importance import Anchored, copies
from continual.strategy import View
from continual.types import Experience


class L2Init(Anchored):
    """Pull every weight towards its initial value; a weight that comes later, towards the value that it came with.

    Args:
        strength: weight of the penalty, >= 0; 0 switches it off.
    """

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__(strength)

    def begin(self, view: View, experience: Experience) -> None:
        if view.params.keys() != self.anchor.keys():
            self.hold({name: p.new_ones(()) for name, p in view.params.items()}, copies(view) | self.anchor)
