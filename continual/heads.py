"""Which classes compete in the softmax of a row: all, those seen, those of the current task, or per task.

A named protocol switch: it moves results more than most methods do, and ``current`` and
``per_task`` use a boundary or a task label.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.errors import UserError
from continual.step import MASKED
from continual.types import Batch, Spec

KINDS = ("all", "seen", "current", "per_task")


class Head:
    """The label mask of a learner.

    ``all``: every class of the spec. ``seen``: classes that have arrived. ``current``: arrived rows
    compete among the classes of their experience, replayed rows among all seen. ``per_task``: rows
    compete among the classes that share a task with their own; prediction needs the task label.

    Attributes:
        seen: (C,) bool, classes that have arrived.
        current: (C,) bool, classes of the current experience so far.
        tasks: (T, C) bool, classes of each task; empty unless the stream is task-aware.
    """

    def __init__(self, kind: str, spec: Spec, device: torch.device) -> None:
        if kind not in KINDS:
            raise UserError(f"train.head='{kind}' is unknown; use one of {', '.join(KINDS)}")
        if kind == "per_task" and not spec.task_aware:
            raise UserError(
                "train.head=per_task asks for task labels, and this stream hides them; "
                "use train.head=seen, or a task-incremental stream (scenario.kind=task)"
            )
        self.kind = kind
        self.aware = spec.task_aware
        self.seen = torch.zeros(spec.n_classes, dtype=torch.bool, device=device)
        self.current = torch.zeros_like(self.seen)
        self.tasks = torch.zeros(0, spec.n_classes, dtype=torch.bool, device=device)

    def begin(self) -> None:
        """A new experience: no class has arrived in it yet."""
        self.current.zero_()

    def arrive(self, y: Tensor, task: int | None) -> None:
        """Note the labels (B,) that arrived."""
        self.seen.index_fill_(0, y, True)
        if self.kind == "current":
            self.current.index_fill_(0, y, True)
        if self.kind == "per_task" and task is not None:
            missing = task + 1 - len(self.tasks)
            if missing > 0:
                self.tasks = torch.cat([self.tasks, self.tasks.new_zeros(missing, len(self.seen))])
            self.tasks[task, y] = True

    def mask(self, batch: Batch) -> Tensor | None:
        """(B, C) bool, True where a class competes; None for all."""
        if self.kind == "all":
            return None
        if self.kind == "per_task":
            together = (self.tasks.float().T @ self.tasks.float()) > 0  # (C, C): do two classes share a task?
            return together[batch.y]
        mask = self.seen.expand(len(batch), -1)
        if self.kind == "current":
            mask = torch.cat([self.current.expand(batch.arrived, -1), mask[batch.arrived :]])
        return mask

    def restrict(self, logits: Tensor, task: int | None) -> Tensor:
        """Logits (B, C) to answer with: classes that may not be answered get a very low one."""
        if self.kind == "all":
            return logits
        allowed = self.seen
        if self.kind == "per_task" and task is not None and bool(self.tasks[task : task + 1].any()):
            allowed = self.tasks[task]
        return logits.masked_fill(~allowed, MASKED) if bool(allowed.any()) else logits

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen.clone(), "current": self.current.clone(), "tasks": self.tasks.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen.copy_(state["seen"])
        self.current.copy_(state["current"])
        self.tasks = state["tasks"].to(self.seen.device, copy=True)
