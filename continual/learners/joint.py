"""The upper bound: keep every row, and after each experience train anew on all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual.augment import Augment
from continual.errors import UserError
from continual.learner import SGDLearner, make_optimizer
from continual.types import Batch, Experience, Rows, Spec

MAX_EXPERIENCES = 100


class Joint(SGDLearner):
    """Train from the initial weights on all rows so far, ``epochs`` passes (or ``iterations``) after each experience.

    Not a continual learner: it keeps everything (its bytes say so), and its cost is quadratic in the number
    of experiences. It takes no strategies; the arguments are those of ``SGDLearner``.
    """

    def __init__(
        self,
        model: Callable[[Spec], nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        spec: Spec,
        batch_size: int = 10,
        epochs: int = 1,
        iterations: int | None = None,
        head: str = "all",
        clip: Callable[[list[Tensor]], object] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if spec.n_experiences is not None and spec.n_experiences > MAX_EXPERIENCES:
            raise UserError(
                f"learner=joint trains anew after each of the stream's {spec.n_experiences} experiences "
                f"(at most {MAX_EXPERIENCES}); let tasks arrive whole (scenario.arrival_rows=null)"
            )
        if head == "multi_head":
            raise UserError("train.head=multi_head: learner=joint mixes the rows of all tasks; use train.head=per_task")
        super().__init__(
            model,
            optimizer,
            {},
            spec=spec,
            batch_size=batch_size,
            epochs=epochs,
            iterations=iterations,
            head=head,
            clip=clip,
            augment=augment,
            seed=seed,
            device=device,
        )
        self.initial = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.make_optimizer = optimizer
        self.kept_x = torch.empty(0, *spec.in_shape, dtype=spec.dtype)
        self.kept_y = torch.empty(0, dtype=torch.int64)

    def rows_for(self, experience: Experience) -> Rows:
        if self.updates == 0:  # not in the middle of an experience that is being resumed
            batch = experience.rows.take(torch.arange(len(experience.rows)))
            self.kept_x, self.kept_y = torch.cat([self.kept_x, batch.x]), torch.cat([self.kept_y, batch.y])
            self.head.arrive(batch.y.to(self.device), experience.task)
            self.network.load_state_dict(self.initial)
            self.optimizer = make_optimizer(self.make_optimizer, list(self.view.params.values()))
        return _Kept(self.kept_x, self.kept_y)

    def grow(self, experience: Experience) -> None:
        known = set(self.view.params)
        super().grow(experience)
        self.initial |= {name: p.detach().clone() for name, p in self.view.params.items() if name not in known}

    def note(self, y: Tensor) -> None:
        self.head.arrive(y, None)  # a batch mixes the rows of all tasks

    def _tensors(self) -> dict[str, Any]:
        return super()._tensors() | {"initial": self.initial, "kept": {"x": self.kept_x, "y": self.kept_y}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.initial = dict(state["initial"])
        self.kept_x, self.kept_y = state["kept"]["x"], state["kept"]["y"]


class _Kept:
    """Rows held as two tensors."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> Batch:
        n = len(indices)
        return Batch(self.x[indices], self.y[indices], torch.full((n,), 1 / max(n, 1)), n)

    def fetch(self, ids: Tensor) -> Tensor:
        return self.x[ids]
