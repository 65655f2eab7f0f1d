"""Label refurbishment: learn in part from what a slow average of the network believes, for labels that may be wrong.

    rows_b <- cross-entropy with the target (1 - strength) * 1[y_b] + strength * p_teacher(x_b)
            = (1 - strength) * rows_b - strength * sum_c p_teacher,bc log p_bc,      over the classes that compete

Soft bootstrapping of Reed et al. 2014, https://arxiv.org/abs/1412.6596 (there strength = 0.05, and the network teaches
itself), with the slow teacher of ``ema_teacher``, which has not yet fitted the wrong labels. SELFIE (Song et al. 2019,
http://proceedings.mlr.press/v97/song19b.html), which gave the name, replaces only labels of rows answered consistently.
Replayed rows are treated alike: wrong labels are remembered too.
"""

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import log_softmax

from continual.errors import UserError
from continual.strategies.ema_teacher import SlowTeacher
from continual.strategy import View
from continual.types import Batch, Output


class LabelRefurbishment(SlowTeacher):
    """Mix each label with the slow teacher's probabilities. It asks the teacher about every row: a forward pass more.

    Args:
        strength: the teacher's share of the target, in [0, 1]; 0 switches it off, 1 reads no label.
        decay: of the teacher, see ``ema_teacher``.
    """

    replaces_loss: ClassVar[bool] = True

    def __init__(self, strength: float = 0.1, decay: float = 0.95) -> None:
        if not 0 <= strength <= 1:
            raise UserError(f"strategy.label_refurbishment.strength={strength} must be in [0, 1]")
        super().__init__(decay)
        self.strength = strength

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        if not self.strength:
            return rows
        return refurbished(rows, out.logits, self.log_probabilities(view, batch, out), self.strength)


def refurbished(rows: Tensor, logits: Tensor, log_taught: Tensor, strength: float) -> Tensor:
    """(B,) of cross-entropies ``rows``, masked ``logits`` (B, C) and the teacher's log-probabilities (B, C)."""
    soft = -(log_taught.exp() * log_softmax(logits, dim=1)).sum(1)
    return (1 - strength) * rows + strength * soft
