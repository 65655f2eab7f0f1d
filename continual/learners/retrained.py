"""What learners share that pass over kept rows, not over those that arrive."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from continual.augment import Augment
from continual.errors import UserError
from continual.learner import SGDLearner, make_optimizer
from continual.types import Experience, Rows, Spec

MAX_TRAININGS = 100


class Retrained(SGDLearner):
    """Take in what arrives, and at the end of every ``every``-th experience, and of the last, train on what is kept.

    ``epochs`` passes (or ``iterations``) each time. It takes no strategies; the arguments are those of ``SGDLearner``.

    Attributes:
        fresh: whether each training starts from the initial weights and a new optimizer.
    """

    fresh: ClassVar[bool] = True

    def __init__(
        self,
        model: Callable[[Spec], nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        spec: Spec,
        batch_size: int = 10,
        epochs: int = 1,
        iterations: int | None = None,
        every: int = 1,
        head: str = "all",
        clip: Callable[[list[Tensor]], object] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.every = every
        self._check_trainings(spec)
        if head == "multi_head":
            name = type(self).__name__.lower()
            raise UserError(
                f"train.head=multi_head: learner={name} mixes the rows of all tasks; use train.head=per_task"
            )
        protocol: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "iterations": iterations, "head": head}
        around: dict[str, Any] = {"clip": clip, "augment": augment, "seed": seed, "device": device}
        super().__init__(model, optimizer, {}, spec=spec, **protocol, **around)
        weights = self.network.state_dict() if self.fresh else {}
        self.initial = {name: tensor.clone() for name, tensor in weights.items()}
        self.make_optimizer = optimizer
        self.prepare()

    def prepare(self) -> None:
        """Make room for what is kept."""

    @abstractmethod
    def take_in(self, experience: Experience) -> Tensor:
        """Keep what is to be kept of the rows that arrive, which are read once; their labels (N,)."""

    @abstractmethod
    def kept(self, experience: Experience) -> Rows:
        """The rows to train on, those of ``experience`` having been taken in."""

    def learn(self, experience: Experience) -> Iterator[int]:
        """Yield after each update its share of the rows that arrived; all of them at once without a training."""
        if (self.lap + 1) % self.every == 0 or self.lap + 1 == self.spec.n_experiences:
            yield from super().learn(experience)
            return
        if self.updates == 0:
            self._arrive(experience)
            self.grow(experience)
            self.updates = 1
            yield len(experience.rows)
        self.lap, self.updates = self.lap + 1, 0

    def rows_for(self, experience: Experience) -> Rows:
        if self.updates == 0:  # not in the middle of an experience that is being resumed
            self._arrive(experience)
            if self.fresh:
                self.network.load_state_dict(self.initial)
                self.optimizer = make_optimizer(self.make_optimizer, list(self.view.params.values()))
        return self.kept(experience)

    def grow(self, experience: Experience) -> None:
        known = set(self.view.params)
        super().grow(experience)
        if self.fresh:
            self.initial |= {name: p.detach().clone() for name, p in self.view.params.items() if name not in known}

    def note(self, y: Tensor) -> None:
        self.head.arrive(y, None)  # a batch mixes the rows of all tasks

    def _arrive(self, experience: Experience) -> None:
        self.head.arrive(self.take_in(experience).to(self.device), experience.task)

    def _check_trainings(self, spec: Spec) -> None:
        if self.every < 1:
            raise UserError(f"learner.every={self.every} must be at least 1")
        n = spec.n_experiences
        if n is not None and ceil(n / self.every) > MAX_TRAININGS:
            each = "after each" if self.every == 1 else f"after every {self.every}"
            raise UserError(
                f"learner={type(self).__name__.lower()} trains anew {each} of the stream's {n} experiences (at most "
                f"{MAX_TRAININGS} times); let tasks arrive whole (scenario.arrival_rows=null), or train more rarely "
                f"(learner.every={ceil(n / MAX_TRAININGS)})"
            )

    def _tensors(self) -> dict[str, Any]:
        return super()._tensors() | {"initial": self.initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.initial = dict(state["initial"])
