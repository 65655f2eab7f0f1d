"""Learning to prompt: a pool of prompts with keys; each row takes those whose keys are nearest to its query.

    q = f(x) of the frozen backbone,   S = the n_chosen keys k_m of largest cos(q, k_m)
    features = mean over the chosen prompts' tokens after the backbone has read [P_s, s in S; class token; patches]
    L = L_task + strength * mean_b sum_{s in S} (1 - cos(q, k_s))

Wang et al. 2022, https://arxiv.org/abs/2112.08654. Left out: choosing rarely used prompts more often during training,
which the paper has as an option.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from continual.errors import UserError
from continual.models.prompted import Prompted, check_counts, check_strength
from continual.types import Output, Spec


class L2P(Prompted):
    """Args: as ``l2p``."""

    def __init__(
        self,
        spec: Spec,
        backbone: Callable[[Spec], nn.Module],
        n_prompts: int,
        length: int,
        n_chosen: int,
        strength: float,
    ) -> None:
        check_counts(n_prompts=n_prompts, length=length, n_chosen=n_chosen)
        check_strength(strength)
        if n_chosen > n_prompts:
            raise UserError(f"model.n_chosen={n_chosen} must be at most n_prompts={n_prompts}")
        super().__init__(spec, backbone)
        self.n_chosen, self.strength = n_chosen, strength
        self.keys = nn.Parameter(torch.empty(n_prompts, self.features.width).uniform_(-1, 1))
        self.prompts = nn.Parameter(torch.empty(n_prompts, length, self.features.width).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Output:
        chosen, distance = select(self.query(x), self.keys, self.n_chosen)  # (B, S), (B, S)
        prompts = self.prompts[chosen].flatten(1, 2)  # (B, S * length, width)
        features = self.features.tokens(x, prompts)[:, : prompts.shape[1]].mean(1)  # (B, width)
        pull = self.strength * distance.sum(1).mean() if self.training else None
        return Output(self.head(features), features, pull)


def select(query: Tensor, keys: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(B, n) the keys (M, D) nearest to each query (B, D), nearest first, and 1 - cosine, in [0, 2], of each."""
    cosine = normalize(query, dim=1) @ normalize(keys, dim=1).T  # (B, M)
    found = cosine.topk(n, dim=1)
    return found.indices, 1 - found.values


def l2p(
    spec: Spec,
    backbone: Callable[[Spec], nn.Module],
    n_prompts: int = 10,
    length: int = 5,
    n_chosen: int = 5,
    strength: float = 0.5,
) -> nn.Module:
    """L2P over a frozen transformer.

    Args:
        spec: the stream's spec; rows are images.
        backbone: partial of ``continual.models.vit``.
        n_prompts: prompts in the pool, >= 1; it does not grow.
        length: tokens of each, >= 1.
        n_chosen: prompts that a row takes, in [1, n_prompts].
        strength: of the pull of the chosen keys towards the query, >= 0; 0 leaves the keys where they were.
    """
    return L2P(spec, backbone, n_prompts, length, n_chosen, strength)
