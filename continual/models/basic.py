"""Small networks: linear, multilayer perceptron, convolutional."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from continual.errors import UserError
from continual.models.network import Classifier
from continual.types import Spec


def linear(spec: Spec) -> nn.Module:
    """Softmax regression: (B, *in_shape) -> (B, n_classes)."""
    return Classifier(nn.Flatten(), nn.Linear(prod(spec.in_shape), spec.n_classes))


def mlp(spec: Spec, hidden: Sequence[int] = (100, 100)) -> nn.Module:
    """ReLU layers of the widths ``hidden``, e.g. (400, 400): (B, *in_shape) -> (B, n_classes)."""
    if not hidden or min(hidden) < 1:
        raise UserError(f"model.hidden={list(hidden)} must name at least one width of at least 1; or use model=linear")
    widths = [prod(spec.in_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), nn.Linear(widths[-1], spec.n_classes))


def cnn(spec: Spec, channels: Sequence[int] = (16, 32)) -> nn.Module:
    """3x3 convolution, ReLU and 2x2 max pooling per entry of ``channels``: (B, C, H, W) -> (B, n_classes)."""
    if len(spec.in_shape) != 3:
        raise UserError(f"model=cnn needs rows of shape (channels, height, width), got {spec.in_shape}; use model=mlp")
    if not channels or min(channels) < 1:
        raise UserError(f"model.channels={list(channels)} must name at least one number of channels of at least 1")
    in_channels, height, width = spec.in_shape
    smallest = 2 ** len(channels)
    if min(height, width) < smallest:
        raise UserError(
            f"model.channels={list(channels)} halves the image {len(channels)} times and needs at least "
            f"{smallest}x{smallest} pixels, got {height}x{width}; use fewer channels"
        )
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip([in_channels, *channels], channels, strict=False):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    n_features = channels[-1] * (height // smallest) * (width // smallest)
    return Classifier(nn.Sequential(*layers, nn.Flatten()), nn.Linear(n_features, spec.n_classes))
