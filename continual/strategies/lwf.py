"""Learning without forgetting: keep answering about old classes as the network before this experience did.

    L = L_task + strength * T^2 * mean_b KL( softmax(z_teacher / T) || softmax(z / T) ),  over the old classes

The teacher is asked about every row of the batch, replayed ones too, and all count alike. Li & Hoiem 2016,
https://arxiv.org/abs/1606.09282; there each old task has a softmax of its own, here by default all old classes share
one, so that no task labels are needed, and T^2 (Hinton et al. 2015) keeps the pull as strong at any temperature.

In van de Ven et al. 2022, https://doi.org/10.1038/s42256-022-00568-3, strength is 1 / T^2 and the softmax is over
``all`` classes (class-incremental), weighted by ``tasks`` (domain-incremental), or ``per_task`` and weighted by
``tasks``, which is the sum over the old tasks (task-incremental).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from continual.errors import UserError
from continual.refusals import at_least_0, require
from continual.step import MASKED
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output

SOFTMAXES, WEIGHTINGS = ("old", "all", "per_task"), ("constant", "tasks")


class LwF(Strategy):
    """Distil from a frozen copy of the network, taken before each experience, in eval mode.

    Args:
        strength: weight of the distillation, >= 0; 0 switches it off.
        temperature: T > 0; higher looks more at the small probabilities.
        softmax: over which classes: ``old``, those learned before; ``all`` of the stream, also those yet to come;
            ``per_task``, one for each old task over its classes, and the mean of them (uses task labels).
        weighting: ``constant``, or ``tasks``: strength times the number of experiences before this one.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    needs_boundaries: ClassVar[bool] = True

    def __init__(
        self, strength: float = 1.0, temperature: float = 2.0, softmax: str = "old", weighting: str = "constant"
    ) -> None:
        at_least_0(self, strength=strength)
        require(self, "temperature", temperature, temperature > 0, "above 0")
        require(self, "softmax", softmax, softmax in SOFTMAXES, f"one of {', '.join(SOFTMAXES)}")
        require(self, "weighting", weighting, weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}")
        self.strength, self.temperature, self.softmax, self.weighting = strength, temperature, softmax, weighting
        self.teacher: dict[str, Tensor] = {}
        self.old: Tensor | None = None  # (S, C) bool, classes of each softmax that is distilled
        self.tasks: dict[int, Tensor] = {}  # (C,) bool, classes of each task so far; only for softmax per_task

    def start(self, view: View) -> None:
        if self.softmax == "per_task" and not view.spec.task_aware:
            raise UserError(
                "strategy.lwf.softmax=per_task needs task labels, and this stream hides them; use softmax=old or all, "
                "or a task-incremental stream (scenario.kind=task)"
            )
        self.device = view.classes.device

    def begin(self, view: View, experience: Experience) -> None:
        if bool(view.classes.any()):
            self.teacher = view.copy()
            shared = view.classes if self.softmax == "old" else torch.ones_like(view.classes)
            self.old = torch.stack(list(self.tasks.values()) or [shared])

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if self.old is None or not self.strength:
            return 0.0
        taught = view.answer(self.teacher, batch.x).logits
        losses = [distillation(out.logits, taught, classes, self.temperature) for classes in self.old]
        weight = self.strength * (view.experience if self.weighting == "tasks" else 1)
        return weight * (losses[0] if len(losses) == 1 else sum(losses) / len(losses))

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        if self.softmax == "per_task" and view.task is not None:
            known = self.tasks.setdefault(view.task, torch.zeros_like(view.classes))
            known.index_fill_(0, batch.y[: batch.arrived], True)

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "old": self.old, "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher = {name: w.to(self.device) for name, w in state["teacher"].items()}
        self.old = None if state["old"] is None else state["old"].to(self.device)
        self.tasks = {task: classes.to(self.device, copy=True) for task, classes in state["tasks"].items()}


def distillation(logits: Tensor, taught: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """T^2 * mean over rows of KL(teacher || student) between (B, C) logits, over ``classes`` (C,) bool."""
    others = ~classes
    student = log_softmax(logits.masked_fill(others, MASKED) / temperature, dim=1)
    teacher = log_softmax(taught.masked_fill(others, MASKED) / temperature, dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum() / len(logits)
