"""A head whose rows come into being when the stream first brings their class.

``growing`` holds one row of weights per class that has arrived, ``multi_head`` one per class and task. A row's initial
values are uniform in [-1 / sqrt(F), 1 / sqrt(F)], as of ``torch.nn.Linear``, and depend on nothing but the seed, the
class and, with ``multi_head``, the task.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from continual.errors import UserError
from continual.models.network import Classifier, Network
from continual.seeding import generator
from continual.types import Rows, Spec

KINDS = ("growing", "multi_head")
CHUNK = 1024  # rows whose labels are read at once


class Block(nn.Module):
    """The rows that came at the same time: weight (k, F), bias (k,) or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)


class GrowingHead(nn.Module):
    """(B, F) -> (B, C) logits; a class without a row of its own has logit 0, as a row of zeros would give.

    Rows that come at the same time are one block with parameters of its own: no parameter ever changes its shape.

    Args:
        like: the fixed head that it takes the place of.
        per_task: whether each task has rows of its own for its classes.
        seed: of the run.

    Attributes:
        made: (task, classes) of each block; the task is None unless ``per_task``.
        used: the blocks that answer: of each class its row for the selected task, or else its last one. What does not
            answer gets no gradient, so that no momentum moves it.
        columns: (C,) position of each class among the rows of ``used``, from 1; 0 for a class without one.
        repeats: whether a class has rows of several tasks.
    """

    def __init__(self, like: nn.Linear, per_task: bool, seed: int) -> None:
        super().__init__()
        self.n_features, self.dtype, self.per_task, self.seed = like.in_features, like.weight.dtype, per_task, seed
        self.blocks = nn.ModuleList()
        self.has_bias = like.bias is not None
        self.made: list[tuple[int | None, list[int]]] = []
        self.repeats = False
        self.task: int | None = None
        self.used: list[int] = []
        self.columns = torch.zeros(like.out_features, dtype=torch.int64, device=like.weight.device)

    def forward(self, features: Tensor) -> Tensor:
        if not self.used:
            return features.new_zeros(len(features), len(self.columns))
        blocks = [block for n, block in enumerate(self.blocks) if n in self.used and isinstance(block, Block)]
        biases: list[Tensor] = [block.bias for block in blocks if block.bias is not None]
        weight = pad(torch.cat([block.weight for block in blocks]), (0, 0, 1, 0))  # zeros, then all rows
        bias = pad(torch.cat(biases), (1, 0)).index_select(0, self.columns) if biases else None
        return linear(features, weight.index_select(0, self.columns), bias)  # with (C, F) and (C,)

    def admit(self, rows: Rows, task: int | None) -> None:
        """Make rows for the classes among the labels of ``rows`` that have none yet."""
        task = task if self.per_task else None
        known = {label for of, classes in self.made if of == task for label in classes}
        new = sorted(_labels(rows) - known)
        if new:
            self._make(task, new)

    def select(self, task: int | None) -> None:
        """Answer for ``task`` from now on; without effect unless ``per_task``."""
        self.task = task if self.per_task else None
        placed: dict[int, tuple[int, int]] = {}  # class -> block and row in it; its own task's come last
        for own in (False, True):
            for block, (of, classes) in enumerate(self.made):
                if of == self.task or not own:
                    placed |= {label: (block, row) for row, label in enumerate(classes)}
        self.used = sorted({block for block, _ in placed.values()})
        starts = dict(zip(self.used, accumulate((len(self.made[b][1]) for b in self.used), initial=1), strict=False))
        columns = [0] * len(self.columns)
        for label, (block, row) in placed.items():
            columns[label] = starts[block] + row
        self.columns = self.columns.new_tensor(columns)

    @contextmanager
    def asked(self, task: int | None) -> Iterator[None]:
        """Within it, it answers for ``task``; for None, for the task that it was selected for."""
        before = self.task, self.used, self.columns
        if task is not None:
            self.select(task)
        try:
            yield
        finally:
            self.task, self.used, self.columns = before

    def growth(self) -> dict[str, Any]:
        """Which rows exist; their values are in ``state_dict``."""
        return {
            "made": [[task, list(classes)] for task, classes in self.made],
            "task": self.task,
            "columns": self.columns.clone(),
        }

    def regrow(self, growth: Mapping[str, Any]) -> None:
        """Drop all rows and make those that ``growth`` names."""
        self.blocks, self.made, self.repeats = nn.ModuleList(), [], False
        for task, classes in growth["made"]:
            self._make(task, list(classes))
        self.select(growth["task"])

    def _make(self, task: int | None, classes: list[int]) -> None:
        bound, device = self.n_features**-0.5, self.columns.device
        rows = torch.empty(len(classes), self.n_features + 1, dtype=self.dtype)
        for row, label in zip(rows, classes, strict=True):
            names = ("head", label) if task is None else ("head", label, "task", task)
            row.uniform_(-bound, bound, generator=generator(self.seed, *names))
        weight, bias = rows[:, :-1].to(device, copy=True), rows[:, -1].to(device, copy=True)
        self.blocks.append(Block(weight, bias if self.has_bias else None))
        self.repeats |= any(label in others for _, others in self.made for label in classes)
        self.made.append((task, classes))


def grow_head(network: Network, kind: str, spec: Spec, seed: int) -> GrowingHead | None:
    """Put a growing head in the place of the network's fixed one, if ``kind`` asks for it.

    Raises:
        UserError: the model is not made of features and a linear head, or its stream hides task labels.
    """
    if kind not in KINDS:
        return None
    model = network.model
    fixed = getattr(model, "head", None)
    if not (isinstance(model, Classifier) and isinstance(fixed, nn.Linear) and fixed.out_features == spec.n_classes):
        raise UserError(
            f"train.head={kind} needs a model of features and a linear head (continual.models.Classifier), got "
            f"{type(model).__name__}; use model=linear, mlp, cnn or slim_resnet18, or train.head=seen"
        )
    model.head = head = GrowingHead(fixed, kind == "multi_head", seed)
    return head


def _labels(rows: Rows) -> set[int]:
    chunks = torch.split(torch.arange(len(rows)), CHUNK)
    return {label for chunk in chunks for label in rows.take(chunk).y.tolist()}
