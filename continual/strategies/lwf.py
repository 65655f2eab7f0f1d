"""Learning without forgetting: keep answering about old classes as the network before this experience did.

    L = L_task + strength * T^2 * mean_b KL( softmax(z_teacher / T) || softmax(z / T) ),  over the old classes

The teacher is asked about every row of the batch, replayed ones too, and all count alike. Li & Hoiem 2016,
https://arxiv.org/abs/1606.09282; there each old task has a softmax of its own, here all old classes share one, so that
no task labels are needed, and T^2 (Hinton et al. 2015) keeps the pull as strong at any temperature.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from continual.errors import UserError
from continual.refusals import at_least_0
from continual.step import MASKED
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output


class LwF(Strategy):
    """Distil from a frozen copy of the network, taken before each experience, in eval mode.

    Args:
        strength: weight of the distillation, >= 0; 0 switches it off.
        temperature: T > 0; higher looks more at the small probabilities.
    """

    needs_boundaries: ClassVar[bool] = True

    def __init__(self, strength: float = 1.0, temperature: float = 2.0) -> None:
        at_least_0(self, strength=strength)
        if temperature <= 0:
            raise UserError(f"strategy.lwf.temperature={temperature} must be above 0")
        self.strength, self.temperature = strength, temperature
        self.teacher: dict[str, Tensor] = {}
        self.old: Tensor | None = None  # (C,) bool, classes that the teacher has learned

    def start(self, view: View) -> None:
        self.device = view.classes.device

    def begin(self, view: View, experience: Experience) -> None:
        if bool(view.classes.any()):
            self.teacher, self.old = view.copy(), view.classes.clone()

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if self.old is None or not self.strength:
            return 0.0
        taught = view.answer(self.teacher, batch.x).logits
        return self.strength * distillation(out.logits, taught, self.old, self.temperature)

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "old": self.old}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher = {name: w.to(self.device) for name, w in state["teacher"].items()}
        self.old = None if state["old"] is None else state["old"].to(self.device)


def distillation(logits: Tensor, taught: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """T^2 * mean over rows of KL(teacher || student) between (B, C) logits, over ``classes`` (C,) bool."""
    student = log_softmax(logits.masked_fill(~classes, MASKED) / temperature, dim=1)
    teacher = log_softmax(taught.masked_fill(~classes, MASKED) / temperature, dim=1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
