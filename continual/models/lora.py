"""A low-rank adapter for each experience over a frozen transformer, by the peft library (pip install continual[lora]).

    W_t = W + sum_{s <= t} B_s A_s,   A_s (rank, in) random,   B_s (out, rank) 0 at first

Experience t trains A_t and B_t; earlier adapters are kept, added and held fast, which is the same as merging each one
into W when its experience ends, except that W itself never changes. Hu et al. 2022, https://arxiv.org/abs/2106.09685
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from continual.errors import UserError
from continual.models.network import Staged
from continual.models.prompted import Prompted, check_counts, stages
from continual.types import Output, Spec


class LoRA(Prompted, Staged):
    """Args: as ``lora``."""

    stage: Tensor

    def __init__(self, spec: Spec, backbone: Callable[[Spec], nn.Module], rank: int, layers: Sequence[str]) -> None:
        check_counts(rank=rank)
        super().__init__(spec, backbone)
        self.n_stages = stages(spec, "lora")
        _inject(self.features, self.n_stages, rank, list(layers))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def begin(self, experience: int) -> None:
        """Train the adapter of this experience; beyond the last one foreseen, go on with the last one."""
        self.stage.fill_(min(experience, self.n_stages - 1))

    def forward(self, x: Tensor) -> Output:
        own = f".{int(self.stage)}.weight"  # adapters of later experiences add 0 and need no gradient either
        held = {
            name: p.detach()
            for name, p in self.features.named_parameters()
            if ".lora_" in name and not name.endswith(own)
        }
        features = functional_call(self.features, held, (x,))
        return Output(self.head(features), features)


def _inject(backbone: nn.Module, n: int, rank: int, layers: list[str]) -> None:
    """Put adapters named 0 to n - 1 into the layers called so, all of them active and trainable."""
    try:
        from peft import LoraConfig, LoraModel, PeftConfig
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise UserError("model=lora needs the package 'peft': pip install continual[lora]") from error
    names = [str(number) for number in range(n)]
    configs: dict[str, PeftConfig] = {
        name: LoraConfig(r=rank, lora_alpha=rank, target_modules=layers) for name in names
    }
    try:
        tuner = LoraModel(backbone, configs, names[0])
        for name in names[1:]:
            tuner.inject_adapter(backbone, name)
    except ValueError as error:
        raise UserError(f"model.layers={layers} cannot be adapted: {str(error).splitlines()[0]}") from error
    for module in backbone.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(names)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def lora(
    spec: Spec, backbone: Callable[[Spec], nn.Module], rank: int = 4, layers: Sequence[str] = ("qkv",)
) -> nn.Module:
    """A low-rank adapter per experience; the stream must say how many experiences it has.

    Args:
        spec: the stream's spec; rows are images.
        backbone: partial of ``continual.models.vit``.
        rank: of each adapter, >= 1.
        layers: names of the linear layers that get them: of ``qkv``, ``proj``, ``fc1``, ``fc2``.
    """
    return LoRA(spec, backbone, rank, layers)
