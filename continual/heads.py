"""Which classes compete in the softmax of a row: all, those seen, those of the current task, or per task.

With ``growing`` and ``multi_head`` the head's rows come into being as classes arrive (``continual.models.growing``).

A named protocol switch: it moves results more than most methods do, and ``current`` and
``per_task`` use a boundary or a task label.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.errors import UserError
from continual.models.growing import GrowingHead
from continual.refusals import check_boundaries
from continual.step import MASKED
from continual.types import Batch, Spec

KINDS = ("all", "seen", "current", "per_task", "growing", "multi_head")


class Head:
    """The label mask of a learner.

    ``all``: every class of the spec. ``seen``: classes that have arrived. ``current``: arrived rows
    compete among the classes of their experience, a whole task, replayed rows among all seen. ``per_task``: rows
    compete among the classes that share a task with their own; prediction needs the task label.
    ``growing``: as ``seen``, and only these classes have parameters. ``multi_head``: as ``per_task``,
    and each task has parameters of its own, also for labels that it shares with others; such a stream
    allows no replay, whose rows do not say which task they are of.

    Attributes:
        seen: (C,) bool, classes that have arrived.
        current: (C,) bool, classes of the current experience so far.
        tasks: (T, C) bool, classes of each task; empty unless the stream is task-aware.
    """

    def __init__(self, kind: str, spec: Spec, device: torch.device, growing: GrowingHead | None = None) -> None:
        if kind not in KINDS:
            raise UserError(f"train.head='{kind}' is unknown; use one of {', '.join(KINDS)}")
        self.by_task = kind in ("per_task", "multi_head")
        if self.by_task and not spec.task_aware:
            raise UserError(
                f"train.head={kind} asks for task labels, and this stream hides them; "
                "use train.head=seen, or a task-incremental stream (scenario.kind=task)"
            )
        if kind == "current":
            check_boundaries("train.head=current", spec, "train.head=seen")
        self.kind, self.growing = kind, growing
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
        if self.by_task and task is not None:
            missing = task + 1 - len(self.tasks)
            if missing > 0:
                self.tasks = torch.cat([self.tasks, self.tasks.new_zeros(missing, len(self.seen))])
            self.tasks[task, y] = True

    def mask(self, batch: Batch) -> Tensor | None:
        """(B, C) bool, True where a class competes; None for all."""
        if self.kind == "all":
            return None
        if self.growing is not None and self.growing.repeats:
            return self._of_task(self.growing.task, batch)
        if self.by_task:
            together = (self.tasks.float().T @ self.tasks.float()) > 0  # (C, C): do two classes share a task?
            return together[batch.y]
        mask = self.seen.expand(len(batch), -1)
        if self.kind == "current":
            mask = torch.cat([self.current.expand(batch.arrived, -1), mask[batch.arrived :]])
        return mask

    def _of_task(self, task: int | None, batch: Batch) -> Tensor:
        if len(batch) > batch.arrived:
            raise UserError(
                "train.head=multi_head: a label came with several tasks, and replayed rows do not say which task they "
                "are of; leave out the strategy that replays, or use train.head=per_task"
            )
        return self.tasks[task].expand(len(batch), -1)

    def restrict(self, logits: Tensor, task: int | None) -> Tensor:
        """Logits (B, C) to answer with: classes that may not be answered get a very low one."""
        if self.kind == "all":
            return logits
        allowed = self.seen
        if self.by_task and task is not None and bool(self.tasks[task : task + 1].any()):
            allowed = self.tasks[task]
        return logits.masked_fill(~allowed, MASKED) if bool(allowed.any()) else logits

    def state_dict(self) -> dict[str, Any]:
        state = {"seen": self.seen.clone(), "current": self.current.clone(), "tasks": self.tasks.clone()}
        return state | ({"growing": self.growing.growth()} if self.growing else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen.copy_(state["seen"])
        self.current.copy_(state["current"])
        self.tasks = state["tasks"].to(self.seen.device, copy=True)
