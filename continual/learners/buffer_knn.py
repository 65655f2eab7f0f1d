"""Nearest neighbours over a memory: no training at all, so that what a method gains over it is learned.

    logits_c = log( share of class c among the k stored rows nearest in Euclidean distance ), at least log(1e-6)

over the inputs, or over a frozen backbone's features, which are then what the memory stores. Fix & Hodges 1951; of an
online memory as a baseline: Ghunaim et al. 2023, https://arxiv.org/abs/2302.01047
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from continual.batches import batches, parts
from continual.devices import usable
from continual.errors import UserError
from continual.heads import Head
from continual.learners.features import Frozen, Model
from continual.memory import FIFO, Memory
from continual.refusals import check_each_class, settings_of
from continual.seeding import derive
from continual.state import nbytes
from continual.types import Cost, Experience, Spec

LEAST = 1e-6  # share of a class without a neighbour
CHUNK = 2**22  # distances held at once


class BufferKNN:
    """Remember rows; answer by their labels. It charges one forward-equivalent per row that a backbone reads.

    Args:
        memory: partial of a ``continual.memory.Memory`` that stores rows, at least 1 for each class unless it is FIFO.
        spec: the stream's spec.
        k: neighbours that vote, >= 1; all rows while there are fewer. Equal votes: the lower class.
        backbone: see ``learners.features.Frozen``; None for the inputs.
        weights: of the backbone, see there.
        batch_size: rows taken in at once, >= 1.
        head: which classes may be answered, see ``continual.heads``.
        seed: of the run.
        device: where the memory lives.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        *,
        spec: Spec,
        k: int = 1,
        backbone: Model | None = None,
        weights: str | None = None,
        batch_size: int = 10,
        head: str = "all",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        for name, value in (("k", k), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"learner.{name}={value} must be at least 1")
        self.spec, self.k, self.batch_size, self.device = spec, k, batch_size, usable(device)
        self.encodes = backbone is not None
        self.features = Frozen(spec, backbone, weights, seed=seed).to(self.device)
        self.head = Head(head, spec, self.device)
        stored = replace(spec, in_shape=(self.features.width,), dtype=torch.float32) if self.encodes else spec
        with settings_of("learner.memory"):
            self.memory = memory(spec=stored, seed=derive(seed, "buffer_knn", "memory"), device=self.device)
        if not isinstance(self.memory, FIFO):  # which is for the classes of late, not for all at once
            check_each_class("learner.memory", self.memory, spec)
        if "x" not in self.memory.columns:
            raise UserError("learner.memory.store=indices: an answer cannot fetch rows from the stream; store rows")
        self.updates, self.spent = 0, 0.0

    def learn(self, experience: Experience) -> Iterator[int]:
        """Offer ``batch_size`` rows at a time to the memory."""
        rows = experience.rows
        for batch in batches(rows, parts(rows, self.batch_size, since=self.updates)):
            x, y = batch.x.to(self.device), batch.y.to(self.device)
            self.head.arrive(y, experience.task)
            self.memory.add(replace(batch, x=self.features(x) if self.encodes else x, y=y))
            self.spent += len(batch) if self.encodes else 0
            self.updates += 1
            yield len(batch)
        self.updates = 0

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """(B, n_classes) logarithms of votes; nothing changes."""
        if task is not None and not self.spec.task_aware:
            raise UserError(f"predict got task={task}, and this stream hides task labels; leave it out")
        if not len(self.memory):
            return torch.zeros(len(x), self.spec.n_classes, device=self.device)
        slots = torch.arange(len(self.memory), device=self.device)
        kept, y = self.memory.column("x", slots), self.memory.column("y", slots)
        kept = kept if self.encodes else self.features(kept)  # (N, F)
        parts = torch.split(self.features(x.to(self.device)), max(1, CHUNK // len(kept)))
        shares = torch.cat([votes(part, kept, y, self.k, self.spec.n_classes) for part in parts])
        return self.head.restrict(shares.clamp_min(LEAST).log(), task)

    def cost(self) -> Cost:
        """Rows that the backbone read, and bytes of the memory and of the backbone."""
        return Cost(self.spent, nbytes(self._tensors()))

    def _tensors(self) -> dict[str, Any]:
        return {
            "features": self.features.state_dict(),
            "head": self.head.state_dict(),
            "memory": self.memory.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**self._tensors(), "updates": self.updates, "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.features.load_state_dict(state["features"])
        self.head.load_state_dict(state["head"])
        self.memory.load_state_dict(state["memory"])
        self.updates, self.spent = state["updates"], state["spent"]


def votes(z: Tensor, kept: Tensor, y: Tensor, k: int, n_classes: int) -> Tensor:
    """(B, C) share of each class among the ``k`` rows of ``kept`` (N, F) nearest to each row of z (B, F)."""
    distances = kept.square().sum(1) - 2 * z @ kept.T  # (B, N), less |z|^2, which is the same for all
    nearest = distances.topk(min(k, len(kept)), largest=False).indices  # (B, k)
    return one_hot(y[nearest], n_classes).float().mean(1)
