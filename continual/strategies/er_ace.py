"""Asymmetric cross-entropy: arrived rows compete only among the classes that arrived with them.

    L = mean_arrived CE(logits over the arrived classes) + mean_replayed CE(logits over all classes)

New classes then push no old class down. Caccia et al. 2022, "New Insights on Reducing Abrupt
Representation Change in Online Continual Learning", https://arxiv.org/abs/2104.05025
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from continual.memory import Memory
from continual.strategies.er import ER
from continual.strategy import View
from continual.types import Batch


class ERACE(ER):
    """Experience replay whose two parts are averaged apart, the arrived part over its own classes.

    The arguments are those of ``ER`` without its strength, which is 1. With ``n_replay=0`` only the mask acts.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    def __init__(
        self, memory: Callable[..., Memory], n_replay: int = 10, exclude_current: bool = False, seed: int = 0
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, strength=1.0, seed=seed)

    def mask(self, view: View, batch: Batch, mask: Tensor) -> Tensor:
        return asymmetric(mask, batch.y, batch.arrived)


def asymmetric(mask: Tensor, y: Tensor, arrived: int) -> Tensor:
    """``mask`` (B, C) with the first ``arrived`` rows limited to the classes among their own labels ``y``."""
    present = mask.new_zeros(mask.shape[1]).scatter(0, y[:arrived], True)  # (C,)
    return torch.cat([mask[:arrived] & present, mask[arrived:]])
