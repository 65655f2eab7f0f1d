"""A vision transformer that takes prompts: tokens in front of its own, or keys and values in each block.

Pre-norm blocks as in Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929. Its tensors are called as in timm's
``vit_*`` models without distillation, so that a safetensors file of one of those fits where the shapes are the same.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from continual.errors import UserError
from continual.models.network import Classifier
from continual.models.weights import load_weights
from continual.types import Spec

GAIN, POSITION = 1.5, 0.5
"""Random weights are N(0, GAIN^2 / fan-in), positions N(0, POSITION^2): larger than what training usually starts from,
so that the features of a frozen random transformer tell images apart (0.9 of the digits by a linear classifier, against
0.5 with deviations of 0.02)."""


class _Patches(nn.Module):
    """(B, C, H, W) -> (B, N, width): one token per patch, by a linear map."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)  # (B, width, H / patch_size, W / patch_size)
        return patches.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V per head; a prefix (B, 2, P, width) stands in front of keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=2)  # (B, T, width) each
        if prefix is not None:
            key, value = torch.cat([prefix[:, 0], key], dim=1), torch.cat([prefix[:, 1], value], dim=1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))  # (B, H, T, d)
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)  # (B, H, T, P + T)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class _Feedforward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), _Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), _Feedforward(width)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), prefix)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """(B, C, H, W) -> (B, width): the class token after the last block."""

    def __init__(self, in_shape: tuple[int, ...], patch_size: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        channels, height, breadth = in_shape
        n_patches = (height // patch_size) * (breadth // patch_size)
        self.width = width
        self.patch_embed = _Patches(channels, patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, n_patches + 1, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(_draw)
        nn.init.normal_(self.cls_token, std=POSITION)
        nn.init.normal_(self.pos_embed, std=POSITION)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x)[:, 0]

    def tokens(self, x: Tensor, prompts: Tensor | None = None, prefixes: Sequence[Tensor] = ()) -> Tensor:
        """(B, P + 1 + N, width): what becomes of the prompts, of the class token and of the patches.

        Args:
            x: (B, C, H, W).
            prompts: (B, P, width) put in front of the class token, without position.
            prefixes: for each of the first blocks (B, 2, L, width): keys and values in front of the tokens'.
        """
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        if prompts is not None:
            z = torch.cat([prompts, z], dim=1)
        for block, prefix in zip_longest(self.blocks, prefixes):
            z = block(z, prefix)
        out: Tensor = self.norm(z)
        return out


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.normal_(module.weight, std=GAIN * module.weight[0].numel() ** -0.5)
        nn.init.zeros_(module.bias)


def vit(
    spec: Spec,
    patch_size: int = 2,
    depth: int = 4,
    width: int = 64,
    heads: int = 4,
    weights: str | None = None,
    frozen: bool = False,
) -> nn.Module:
    """Vision transformer: (B, C, H, W) -> (B, n_classes), features (B, width).

    Args:
        spec: the stream's spec; rows are images whose sides are multiples of ``patch_size``.
        patch_size: side of the squares that become tokens, >= 1.
        depth: blocks, >= 1.
        width: of a token, >= 1.
        heads: of the attention, >= 1, a divisor of ``width``.
        weights: safetensors file of its weights, see ``continual.models.weights``; None leaves them random.
        frozen: whether only the head is trained.
    """
    for name, value in (("patch_size", patch_size), ("depth", depth), ("width", width), ("heads", heads)):
        if value < 1:
            raise UserError(f"model.{name}={value} must be at least 1")
    if len(spec.in_shape) != 3 or any(side % patch_size for side in spec.in_shape[1:]):
        raise UserError(
            f"model=vit needs rows of shape (channels, height, width) whose sides are multiples of "
            f"patch_size={patch_size}, got {spec.in_shape}; change patch_size, or use model=mlp"
        )
    if width % heads:
        raise UserError(f"model.width={width} must be a multiple of heads={heads}")
    backbone = VisionTransformer(spec.in_shape, patch_size, depth, width, heads)
    model = Classifier(backbone, nn.Linear(width, spec.n_classes))
    if weights is not None:
        load_weights(model, weights)
    backbone.requires_grad_(not frozen)
    return model
