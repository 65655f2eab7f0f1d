"""Any network of torchvision.models or timm behind the same function of the spec."""

from collections.abc import Callable

from torch import Tensor, nn

from continual.errors import UserError
from continual.types import Spec


class _ToChannels(nn.Module):
    """Repeat one grey channel, as networks for colour images expect."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.expand(-1, self.channels, -1, -1))
        return logits


def library(spec: Spec, network: Callable[..., nn.Module]) -> nn.Module:
    """``network(num_classes=...)`` of torchvision or timm; grey images are repeated to three channels.

    Args:
        spec: the stream's spec; rows must be images of shape (channels, height, width).
        network: partial of a constructor that takes ``num_classes``, e.g. ``torchvision.models.resnet18``.
    """
    if len(spec.in_shape) != 3:
        raise UserError(f"a library model needs rows of shape (channels, height, width), got {spec.in_shape}")
    built = network(num_classes=spec.n_classes)
    return _ToChannels(built, 3) if spec.in_shape[0] == 1 else built
