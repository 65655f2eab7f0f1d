"""The network a learner trains: input scaling around any model, features where the model has them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from continual.errors import UserError
from continual.types import Output, Spec

PRECISIONS = ("float32", "bf16")


class Classifier(nn.Module):
    """A backbone and a head: ``features`` (B, *in_shape) -> (B, F), ``head`` (B, F) -> (B, n_classes)."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Output:
        features = self.features(x)  # (B, F)
        return Output(self.head(features), features)


class Staged(nn.Module):
    """A model with parts of its own for each experience."""

    def begin(self, experience: int) -> None:
        """Before the first step on the ``experience``-th one, from 0: from now on train its parts."""


class Network(nn.Module):
    """``model`` behind the stream's dtype: uint8 rows are mapped from 0..255 to ``spec.input_range``.

    Args:
        model: what is trained.
        spec: the stream's spec.
        precision: ``float32``, or ``bf16``: the model computes in bfloat16 where torch's autocast holds that safe; its
            weights and what it answers stay float32.
        channels_last: whether images and the weights of convolutions lie in memory with the channels last.
    """

    def __init__(self, model: nn.Module, spec: Spec, precision: str = "float32", channels_last: bool = False) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"train.precision='{precision}' is unknown; use one of {', '.join(PRECISIONS)}")
        if channels_last and len(spec.in_shape) != 3:
            raise UserError(
                f"train.channels_last=true needs rows of shape (channels, height, width), got {spec.in_shape}; "
                "leave it out"
            )
        self.model, self.halves, self.channels_last = model, precision == "bf16", channels_last
        if channels_last:
            model.to(memory_format=torch.channels_last)
        low, high = spec.input_range
        self.scale, self.shift = (high - low) / 255, low

    def forward(self, x: Tensor) -> Output:
        x = self.scaled(x)
        with torch.autocast(x.device.type, torch.bfloat16) if self.halves else nullcontext():
            out = self.model(x)
        out = out if isinstance(out, Output) else Output(out)
        return _whole(out) if self.halves else out

    def scaled(self, x: Tensor) -> Tensor:
        """Rows as the model gets them."""
        if x.dtype == torch.uint8:
            x = x.float().mul_(self.scale)
            x = x.add_(self.shift) if self.shift else x
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def begin(self, experience: int) -> None:
        """Tell a model that has parts of its own for each experience, from 0, that one begins."""
        if isinstance(self.model, Staged):
            self.model.begin(experience)


class Places:
    """Where a network keeps its tensors and modes, so that it can answer with other weights, in eval mode.

    As ``torch.func.functional_call`` and ``eval()`` do, without walking through the modules at each question; to be
    made anew when the network gets new parameters.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modes = [vars(module) for module in network.modules()]  # without nn.Module's look at each attribute
        first: dict[int, str] = {}  # a tensor that has several names goes by its first
        self.tensors: list[tuple[dict[str, Any], str, str]] = []
        for prefix, module in network.named_modules():
            for kept in (module._parameters, module._buffers):
                for key, tensor in kept.items():
                    if tensor is not None:
                        name = first.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                        self.tensors.append((kept, key, name))
        self.plain = all(
            "train" not in vars(module) and type(module).train is nn.Module.train for module in network.modules()
        )

    def answer(self, weights: Mapping[str, Tensor], x: Tensor) -> Any:
        """What it answers with ``weights``, by name, in the place of its own; in eval mode, without gradient."""
        own = [kept[key] for kept, key, _ in self.tensors]
        try:
            for kept, key, name in self.tensors:
                kept[key] = weights.get(name, kept[key])
            with self.still(), torch.no_grad():
                return self.network(x)
        finally:
            for (kept, key, _), tensor in zip(self.tensors, own, strict=True):
                kept[key] = tensor

    @contextmanager
    def still(self) -> Iterator[None]:
        """Within it, all modules are in eval mode; afterwards each is in the mode that it had."""
        before = [own["training"] for own in self.modes]
        try:
            if self.plain:
                for own in self.modes:
                    own["training"] = False
            else:  # some module decides itself what its mode means
                self.network.eval()
            yield
        finally:
            for own, mode in zip(self.modes, before, strict=True):
                own["training"] = mode


def _whole(out: Output) -> Output:
    """The same in float32."""
    features, loss = (None if part is None else part.float() for part in out[1:])
    return Output(out.logits.float(), features, loss)


def draws_randomness(network: nn.Module, x: Tensor) -> bool:
    """Whether a forward pass in train mode draws from the global generator (dropout, stochastic depth)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        network.train()(x)
        return not torch.equal(before, torch.get_rng_state())


def least_rows(network: nn.Module, x: Tensor) -> int:
    """Rows that a training batch must have: 2 where batch normalisation cannot do with one row of ``x``, else 1."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            network.train()(x[:1])
        except ValueError:
            return 2
    return 1
