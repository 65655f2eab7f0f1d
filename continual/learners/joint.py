"""The upper bound: keep every row, and after each experience train anew on all of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.batches import TensorRows
from continual.learners.retrained import Retrained
from continual.types import Experience, Rows


class Joint(Retrained):
    """Train from the initial weights on all rows so far.

    Not a continual learner: it keeps everything (its bytes say so), and its cost is quadratic in the number
    of experiences. The arguments are those of ``Retrained``.
    """

    def prepare(self) -> None:
        self.kept_x = torch.empty(0, *self.spec.in_shape, dtype=self.spec.dtype)
        self.kept_y = torch.empty(0, dtype=torch.int64)

    def take_in(self, experience: Experience) -> Tensor:
        batch = experience.rows.take(torch.arange(len(experience.rows)))
        self.kept_x, self.kept_y = torch.cat([self.kept_x, batch.x]), torch.cat([self.kept_y, batch.y])
        return batch.y

    def kept(self, experience: Experience) -> Rows:
        return TensorRows(self.kept_x, self.kept_y)

    def _tensors(self) -> dict[str, Any]:
        return super()._tensors() | {"kept": {"x": self.kept_x, "y": self.kept_y}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept_x, self.kept_y = state["kept"]["x"], state["kept"]["y"]
