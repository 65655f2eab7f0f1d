"""Random crops and flips of images, for arrived rows, replayed rows or both."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from continual.errors import UserError
from continual.seeding import generator
from continual.types import Batch


class Augment(Protocol):
    """Changes the inputs that the network sees; memories keep the rows as they arrived."""

    def __call__(self, batch: Batch) -> Tensor:
        """The inputs (B, *in_shape) of ``batch`` to train on; the batch is left alone."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class CropFlip:
    """Shift each image by up to ``crop`` pixels (zeros come in) and mirror half of them.

    Args:
        crop: largest shift in pixels in either direction, >= 0.
        flip: whether half of the images are mirrored left to right.
        stream: augment arrived rows.
        memory: augment replayed rows.
        seed: of the run.
    """

    def __init__(
        self, crop: int = 4, flip: bool = True, stream: bool = True, memory: bool = True, seed: int = 0
    ) -> None:
        if crop < 0:
            raise UserError(f"augment.crop={crop} must be at least 0 pixels")
        self.crop, self.flip, self.stream, self.memory = crop, flip, stream, memory
        self.generator = generator(seed, "augment")

    def __call__(self, batch: Batch) -> Tensor:
        """The inputs of ``batch`` (B, C, H, W), augmented; the batch is left alone."""
        if batch.x.dim() != 4:
            raise UserError(f"augment needs images of shape (channels, height, width), got {tuple(batch.x.shape[1:])}")
        start = 0 if self.stream else batch.arrived
        stop = len(batch) if self.memory else batch.arrived
        if start >= stop:
            return batch.x
        changed = crop_flip(batch.x[start:stop], self.crop, self.flip, self.generator)
        return torch.cat([batch.x[:start], changed, batch.x[stop:]])

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def crop_flip(x: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """(B, C, H, W): each image shifted by its own (dy, dx) in [-crop, crop], mirrored with probability 1/2."""
    n, _, height, width = x.shape
    top, left = torch.randint(2 * crop + 1, (2, n, 1), generator=generator)  # (n, 1) each
    rows = top + torch.arange(height)  # (n, H) into the padded image
    columns = left + torch.arange(width)  # (n, W)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = pad(x, (crop,) * 4)  # (n, C, H + 2 crop, W + 2 crop)
    image = torch.arange(n)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
