"""Teacher weighting: a row counts as much as a slow average of the network believes its label.

    rows_b <- rows_b * k_b,       k_b in proportion to p_teacher(y_b | x_b)^strength, over the classes that compete

The factors leave the arrived rows their total weight, and the replayed rows theirs: rows of a new class, which the
teacher does not know, compete with each other only. It is no paper's method: the teacher is that of ``ema_teacher``
(Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780); losses weighed by how likely a label is to be right are
reviewed by Song et al. 2022, https://arxiv.org/abs/2007.08199.
"""

import torch
from torch import Tensor

from continual.refusals import at_least_0
from continual.strategies.ema_teacher import SlowTeacher
from continual.strategies.small_loss import parts, reshare
from continual.strategy import View
from continual.types import Batch, Output


class TeacherWeight(SlowTeacher):
    """Weigh each row by the slow teacher's probability of its label. It asks the teacher about every row.

    It stands behind what changes the loss of a row (``[gce,teacher_weight]``).

    Args:
        strength: exponent of the probability, >= 0; 0 weighs all alike, which switches it off.
        decay: of the teacher, see ``ema_teacher``.
    """

    def __init__(self, strength: float = 1.0, decay: float = 0.95) -> None:
        at_least_0(self, strength=strength)
        super().__init__(decay)
        self.strength = strength

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        if not self.strength:
            return rows
        believed = self.log_probabilities(view, batch, out).gather(1, batch.y[:, None])[:, 0]  # (B,)
        apart = zip(parts(self.strength * believed, batch), parts(batch.weight, batch), strict=True)
        return rows * reshare([proportions(logs, weight) for logs, weight in apart], batch)


def proportions(logs: Tensor, weight: Tensor) -> Tensor:
    """(n,) in proportion to exp(``logs``) (n,), of sum 1; rows of ``weight`` 0 are none of them, if any has weight."""
    return logs.masked_fill(weight <= 0, torch.finfo(logs.dtype).min).softmax(0)
