"""A teacher that follows slowly: an exponential moving average of the weights, to answer with and to learn from.

    w_teacher <- average of the weights after every update (``continual.averages``)
    L = L_task + strength * mean (z - z_teacher)^2       over all rows of the batch, replayed ones too, and all classes

It averages over the last 1 / (1 - decay) updates: if these reach back to before the last task, its classes are missed.
The default was chosen by `continual tune`, beside er, on held-out training rows of the first two tasks of Split
Fashion-MNIST (100 updates a task, 3 seeds): 0.9 gave 91.7% accuracy, 0.95 92.2%, 0.98 91.3%, 0.99 60.9%, 0.999 49.3%.

Mean teacher: Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780. There the distance is between probabilities of
two noisy views of a row; here it is between logits, as in DER and CLS-ER, and the teacher is in eval mode.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import log_softmax, mse_loss

from continual.averages import Average
from continual.errors import UserError
from continual.refusals import at_least_0, name_of
from continual.step import MASKED
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Output


class SlowTeacher(Strategy):
    """Keeps the average of the network that it is trained with; subclasses say what it is asked.

    Args:
        decay: in [0, 1]; 0 is the network itself, 1 the plain mean of its weights after every update.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"strategy.{name_of(self)}.decay={decay} must be in [0, 1]")
        self.decay = decay

    def start(self, view: View) -> None:
        self.teacher = Average(view)

    def log_probabilities(self, view: View, batch: Batch, out: Output) -> Tensor:
        """(B, C) the teacher's, over the classes that compete in ``out``, as the seam ``rows`` gets it."""
        taught = view.answer(self.teacher.weights, batch.x).logits
        return log_softmax(taught.masked_fill(out.logits == MASKED, MASKED), dim=1)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.teacher.follow(view, self.decay)

    def state_dict(self) -> dict[str, Any]:
        return self.teacher.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.load_state_dict(state)


class EMATeacher(SlowTeacher):
    """Answer with the slow teacher, hold the logits near its own, or both. ``decay``: see ``SlowTeacher``.

    Args:
        answers: whether predictions are the teacher's; training is the same either way.
        strength: weight of the squared error to its logits, >= 0; 0 asks it nothing in training.
    """

    def __init__(self, decay: float = 0.95, answers: bool = True, strength: float = 0.0) -> None:
        at_least_0(self, strength=strength)
        super().__init__(decay)
        self.strength = strength
        self.replaces_answers = answers  # type: ignore[misc]  # of the class, where it is no choice

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if not self.strength:
            return 0.0
        return self.strength * mse_loss(out.logits, view.answer(self.teacher.weights, batch.x).logits)

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        return view.answer(self.teacher.weights, x).logits if self.replaces_answers else out.logits
