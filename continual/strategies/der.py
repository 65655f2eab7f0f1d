"""Dark experience replay: hold the logits that the network had when rows arrived.

    L = mean_arrived CE + strength * mean (z - z_stored)^2 over one draw, the mean over rows and classes

Buzzega et al. 2020, "Dark Experience for General Continual Learning", https://arxiv.org/abs/2004.07211
"""

from collections.abc import Callable

from continual.memory import Memory
from continual.strategies.derpp import DERPP


class DER(DERPP):
    """``DERPP`` without its replayed labels.

    Args:
        memory: partial of a ``continual.memory.Memory``; a row's logits are stored beside it.
        n_replay: rows of the draw, >= 0.
        strength: weight of the logits' squared error, >= 0; 0 leaves its draw out.
        remember: ``step`` keeps the logits with which a row was trained on, as in the paper; ``end`` offers all rows
            once, when their experience ends, with the logits of then, at a forward pass a row.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        strength: float = 0.3,
        remember: str = "step",
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, strength, 0.0, remember, seed)
