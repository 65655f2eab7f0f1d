"""Learners that are sums over rows: one pass, no gradient, no replay; only rounding depends on the order of rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual.batches import batches, parts
from continual.devices import usable
from continual.errors import UserError
from continual.heads import Head
from continual.state import nbytes
from continual.types import Batch, Cost, Experience, Spec


class ClosedForm(ABC):
    """Linear discriminants ``z @ weight + bias`` of frozen features z, solved from sums whenever it is asked.

    ::

        sums = empty(F)                               once
            add(z, batch)                             for each batch
        weight, bias = solve(sums)                    at the first answer after a batch

    The sums are float32. Its cost counts one forward-equivalent per row: one pass over the row through its own
    features, a backbone's among them.

    Args:
        features: (B, *in_shape) -> (B, F), frozen.
        spec: the stream's spec.
        batch_size: rows taken in at once, >= 1; the result does not depend on it but for rounding.
        head: which classes may be answered, see ``continual.heads``.
        device: where features and sums live.
    """

    def __init__(self, features: nn.Module, *, spec: Spec, batch_size: int, head: str, device: str) -> None:
        if batch_size < 1:
            raise UserError(f"learner.batch_size={batch_size} must be at least 1")
        self.spec, self.batch_size, self.device = spec, batch_size, usable(device)
        self.features = features.eval().requires_grad_(False).to(self.device)
        self.head = Head(head, spec, self.device)
        trial = torch.zeros(1, *spec.in_shape, dtype=spec.dtype, device=self.device)
        self.sums = {name: tensor.to(self.device) for name, tensor in self.empty(self.features(trial).shape[1]).items()}
        self.updates, self.spent = 0, 0.0
        self._solution: tuple[Tensor, Tensor] | None = None  # derived from the sums, rebuilt when asked for

    @abstractmethod
    def empty(self, n_features: int) -> dict[str, Tensor]:
        """The sums over no row; one of them is ``count`` (C,), rows of each class."""

    @abstractmethod
    def add(self, z: Tensor, batch: Batch) -> None:
        """Add the features z (B, F) of ``batch`` to the sums."""

    @abstractmethod
    def solve(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weights (F, C) and biases (C,) from the sums in float64, at least one row in them."""

    def learn(self, experience: Experience) -> Iterator[int]:
        """Take in ``batch_size`` rows at a time."""
        rows = experience.rows
        for batch in batches(rows, parts(rows, self.batch_size, since=self.updates)):
            y = batch.y.to(self.device)
            self.head.arrive(y, experience.task)
            self.sums["count"] += torch.bincount(y, minlength=self.spec.n_classes)
            self.add(self.features(batch.x.to(self.device)), batch)
            self.spent += len(batch)
            self.updates += 1
            self._solution = None
            yield len(batch)
        self.updates = 0

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Discriminants (B, n_classes); classes without a row get the lowest of the others minus 1."""
        if task is not None and not self.spec.task_aware:
            raise UserError(f"predict got task={task}, and this stream hides task labels; leave it out")
        seen = self.sums["count"] > 0  # (C,)
        if not seen.any():
            return torch.zeros(len(x), self.spec.n_classes, device=self.device)
        if self._solution is None:
            weight, bias = self.solve({name: tensor.cpu().double() for name, tensor in self.sums.items()})
            self._solution = weight.float().to(self.device), bias.float().to(self.device)
        weight, bias = self._solution
        logits = self.features(x.to(self.device)) @ weight + bias  # (B, C)
        lowest = logits[:, seen].min(dim=1, keepdim=True).values
        return self.head.restrict(torch.where(seen, logits, lowest - 1), task)

    def cost(self) -> Cost:
        """Rows taken in, and bytes of the sums and of the frozen features."""
        return Cost(self.spent, nbytes(self._tensors()))

    def _tensors(self) -> dict[str, Any]:
        return {"sums": self.sums, "features": self.features.state_dict(), "head": self.head.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        return {**self._tensors(), "updates": self.updates, "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, tensor in self.sums.items():
            tensor.copy_(state["sums"][name])
        self.features.load_state_dict(state["features"])
        self.head.load_state_dict(state["head"])
        self.updates, self.spent, self._solution = state["updates"], state["spent"], None
