"""GDumb: keep a balanced memory, and train a fresh network on that memory alone when it is to answer.

Prabhu et al. 2020, https://www.robots.ox.ac.uk/~tvg/publications/2020/gdumb.pdf: whatever beats it learns from more
than what it stores. Theirs keeps the first rows of each class; ``memory=class_balanced`` gives classes the same equal
share, with a uniform sample within each. Their cosine schedule and CutMix are left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual.augment import Augment
from continual.batches import TensorRows, batches
from continual.learners.retrained import Retrained
from continual.memory import Memory
from continual.refusals import check_each_class, settings_of
from continual.seeding import derive
from continual.types import Experience, Rows, Spec

CHUNK = 1024  # rows offered to the memory at once


class GDumb(Retrained):
    """Train at the end of every ``every``-th experience, and of the last; between them the last network answers.

    On streams of many small arrivals ``every`` must be large: more than a hundred trainings are refused.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        model, optimizer, spec, batch_size, iterations, head, clip, augment, seed, device: see ``SGDLearner``.
        epochs: passes over the memory in each training, >= 1.
        every: experiences from one training to the next, >= 1.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        model: Callable[[Spec], nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        spec: Spec,
        batch_size: int = 10,
        epochs: int = 30,
        iterations: int | None = None,
        every: int = 1,
        head: str = "all",
        clip: Callable[[list[Tensor]], object] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.make_memory = memory
        protocol: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "iterations": iterations, "head": head}
        around: dict[str, Any] = {"clip": clip, "augment": augment, "seed": seed, "device": device}
        super().__init__(model, optimizer, spec=spec, every=every, **protocol, **around)

    def prepare(self) -> None:
        seed = derive(self.seed, "gdumb", "memory")
        with settings_of("learner.memory"):
            self.memory = self.make_memory(spec=self.spec, seed=seed, device=self.device)
        check_each_class("learner.memory", self.memory, self.spec)

    def take_in(self, experience: Experience) -> Tensor:
        labels, rows = [], experience.rows
        for batch in batches(rows, torch.split(torch.arange(len(rows)), CHUNK)):
            self.memory.add(batch)
            labels.append(batch.y)
        return torch.cat(labels)

    def kept(self, experience: Experience) -> Rows:
        slots = torch.arange(len(self.memory), device=self.device)
        x = self.memory.inputs(slots, lambda ids: experience.rows.fetch(ids.cpu()))
        return TensorRows(x, self.memory.column("y", slots))

    def _tensors(self) -> dict[str, Any]:
        return super()._tensors() | {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])
