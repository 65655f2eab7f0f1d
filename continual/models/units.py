"""Hidden units of a network: which weights come in, which go out, and how active they are.

Covered: ``Classifier`` whose features are a sequence of Linear or Conv2d layers, each followed by ReLU and perhaps by
pooling, and Flatten (``mlp``, ``cnn``), with a fixed or a growing head. Not covered: what mixes units in other ways
(batch normalisation, residual connections, attention), where a unit cannot be made anew without touching others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continual.errors import UserError
from continual.models.growing import GrowingHead
from continual.models.network import Classifier, Network

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Hidden:
    """One layer of U hidden units.

    Attributes:
        weight: name of its weight (U, ...): row u comes into unit u.
        bias: name of its bias (U,), None without one.
        outgoing: names of the next layer's weights (K, U p, ...): columns u p to u p + p - 1 go out of unit u, where p
            is 1, or after Flatten the positions of a channel. Several with a growing head, none before it grows.
        n_units: U.
        active: the module whose output is the units' activations (B, U, ...).
    """

    weight: str
    bias: str | None
    outgoing: tuple[str, ...]
    n_units: int
    active: nn.Module


def hidden_layers(network: Network) -> list[Hidden]:
    """The hidden layers, from the input to the head.

    Raises:
        UserError: the model is not one of those covered; says which part is in the way.
    """
    model = network.model
    if not isinstance(model, Classifier):
        raise _unfit(type(model).__name__)
    features = model.features if isinstance(model.features, nn.Sequential) else [model.features]
    layers: list[tuple[str, nn.Module]] = []  # linear or convolutional, with the name of its parameters
    active: list[nn.Module] = []  # the activation behind each
    for number, module in enumerate(features):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            layers.append((f"model.features.{number}", module))
        elif isinstance(module, nn.ReLU) and len(active) == len(layers) - 1:
            active.append(module)
        elif not isinstance(module, (nn.Flatten, *POOLS)):
            raise _unfit(type(module).__name__)
        if len(layers) > len(active) + 1:
            raise _unfit("two layers without ReLU between them")
    if len(active) < len(layers):
        raise _unfit("a layer without ReLU before the head")
    if not layers:
        raise _unfit("no hidden layer")
    outgoing = [(f"{name}.weight",) for name, _ in layers[1:]] + [_of_head(model.head)]
    return [
        Hidden(f"{name}.weight", f"{name}.bias" if layer.bias is not None else None, out, len(layer.weight), act)  # type: ignore[arg-type]
        for (name, layer), out, act in zip(layers, outgoing, active, strict=False)
    ]


def activations(network: Network, layers: Sequence[Hidden], x: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Features (B, F) of rows ``x`` (B, *in_shape), None if there are none; activations (B, U, ...) of each layer."""
    model, active = network.model, [layer.active for layer in layers]
    if not layers or not isinstance(model, Classifier) or not isinstance(model.features, nn.Sequential):
        features: Tensor | None = network(x).features
        return features, []
    x, found = network.scaled(x), []
    for module in model.features:  # forward hooks would take as long as the layers
        x = module(x)
        if module in active:
            found.append(x)
    return x, found


def strength(activation: Tensor) -> Tensor:
    """(U,) mean |h_u| over rows and positions of activations (B, U, ...)."""
    return activation.abs().mean((0, *range(2, activation.dim())))


def outgoing_size(params: Mapping[str, Tensor], layer: Hidden) -> Tensor:
    """(U,) sum of |w| over the weights that go out of each unit."""
    sizes = [params[name].detach().abs().transpose(0, 1).reshape(layer.n_units, -1).sum(1) for name in layer.outgoing]
    if not sizes:
        return params[layer.weight].new_zeros(layer.n_units)
    return sizes[0] if len(sizes) == 1 else torch.stack(sizes).sum(0)


def renewed(
    params: Mapping[str, Tensor], layer: Hidden, units: Tensor, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights by which ``units``, (n,) indices, begin anew, and masks of what they take the place of.

    Incoming weights and bias are drawn as ``torch.nn.Linear`` and ``Conv2d`` draw them, uniform in
    [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]; outgoing weights are 0. Others stay as they are.
    """
    weights, masks = {}, {}
    bound = params[layer.weight][0].numel() ** -0.5
    chosen = torch.zeros(layer.n_units, dtype=torch.bool, device=units.device).index_fill_(0, units, True)
    for name in (layer.weight, layer.bias):
        if name is not None:
            old = params[name].detach()
            fresh = torch.empty(len(units), *old.shape[1:], dtype=old.dtype)
            fresh = fresh.uniform_(-bound, bound, generator=generator).to(old.device)
            masks[name] = chosen.view(-1, *[1] * (old.ndim - 1)).expand(old.shape)
            weights[name] = old.index_copy(0, units, fresh)
    for name in layer.outgoing:
        old = params[name].detach()
        columns = chosen.repeat_interleave(old.shape[1] // layer.n_units)
        masks[name] = columns.view(1, -1, *[1] * (old.ndim - 2)).expand(old.shape)
        weights[name] = old.masked_fill(masks[name], 0)
    return weights, masks


def _of_head(head: nn.Module) -> tuple[str, ...]:
    if isinstance(head, GrowingHead):
        return tuple(f"model.head.blocks.{number}.weight" for number in range(len(head.blocks)))
    if isinstance(head, nn.Linear):
        return ("model.head.weight",)
    raise _unfit(f"a head of type {type(head).__name__}")


def _unfit(what: str) -> UserError:
    return UserError(
        f"this model's hidden units cannot be told apart: it has {what}, and only Linear or Conv2d, ReLU, pooling and "
        "Flatten in a row are understood; use model=mlp or model=cnn"
    )
