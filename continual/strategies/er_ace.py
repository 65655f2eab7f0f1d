"""Asymmetric cross-entropy: arrived rows compete only among the classes that arrived with them.

    L = mean_arrived CE(logits over the arrived classes) + mean_replayed CE(logits over all classes)

New classes then push no old class down. Caccia et al. 2022, "New Insights on Reducing Abrupt
Representation Change in Online Continual Learning", https://arxiv.org/abs/2104.05025
"""

import torch
from torch import Tensor

from continual.batches import extend
from continual.strategies.er import ER
from continual.strategy import View
from continual.types import Batch


class ERACE(ER):
    """Experience replay whose two parts are averaged apart, the arrived part over its own classes.

    The arguments are those of ``ER``. With ``n_replay=0`` only the mask acts.
    """

    def mix(self, view: View, batch: Batch) -> Batch:
        slots = self.draw(view)
        if not len(slots):
            return batch
        x, y = self.memory.inputs(slots, view.fetch), self.memory.column("y", slots)
        return extend(batch, x, y, weight=1 / len(slots))

    def mask(self, view: View, batch: Batch, mask: Tensor) -> Tensor:
        return asymmetric(mask, batch.y, batch.arrived)


def asymmetric(mask: Tensor, y: Tensor, arrived: int) -> Tensor:
    """``mask`` (B, C) with the first ``arrived`` rows limited to the classes among their own labels ``y``."""
    present = mask.new_zeros(mask.shape[1]).scatter(0, y[:arrived], True)  # (C,)
    replayed = (torch.arange(len(y), device=y.device) >= arrived)[:, None]  # (B, 1)
    return mask & (present | replayed)
