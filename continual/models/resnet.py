"""SlimResNet18, the field's usual network for CIFAR-sized images.

A ResNet18 (He et al. 2016, https://arxiv.org/abs/1512.03385) with a 3x3 stem without pooling and
``width`` instead of 64 first channels (Lopez-Paz & Ranzato 2017, https://arxiv.org/abs/1706.08840).
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from continual.errors import UserError
from continual.models.network import Classifier
from continual.types import Spec


class _Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(inner + self.shortcut(x))


def slim_resnet18(spec: Spec, width: int = 20) -> nn.Module:
    """(B, C, H, W) -> (B, n_classes); about 1.1 million parameters at width 20 and 10 classes."""
    if len(spec.in_shape) != 3:
        raise UserError(
            f"model=slim_resnet18 needs rows of shape (channels, height, width), got {spec.in_shape}; use model=mlp"
        )
    stem = [nn.Conv2d(spec.in_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks: list[nn.Module] = []
    fan_in = width
    for stage in range(4):
        fan_out = width * 2**stage
        blocks += [_Block(fan_in, fan_out, stride=1 if stage == 0 else 2), _Block(fan_out, fan_out, stride=1)]
        fan_in = fan_out
    features = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(features, nn.Linear(fan_in, spec.n_classes))
