"""CODA-Prompt: a prompt is a sum of components, each weighted by how well the row's attended query meets its key.

    q = f(x) of the frozen backbone,   alpha_m = cos(q * A_m, K_m),   p = sum_m alpha_m P_m
    the first half of p stands in front of the keys, the second half in front of the values, in the first blocks
    L = L_task + strength * sum over blocks of O(K) + O(A) + O(P),   O(B) = mean_ij (B B^T - I)_ij^2

Each experience trains ``n_components`` new ones; those of earlier experiences take part, held fast. Smith et al. 2023,
https://arxiv.org/abs/2211.13218; the mean of squares in O is that of its authors' code, the paper writes a norm.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from continual.errors import UserError
from continual.models.network import Staged
from continual.models.prompted import Prompted, check_counts, check_strength, stages
from continual.types import Output, Spec


class CodaPrompt(Prompted, Staged):
    """Args: as ``coda_prompt``.

    One parameter per experience and kind, so that the optimizer leaves the others alone: they get no gradient.
    """

    stage: Tensor

    def __init__(
        self,
        spec: Spec,
        backbone: Callable[[Spec], nn.Module],
        n_components: int,
        length: int,
        n_blocks: int,
        strength: float,
    ) -> None:
        check_counts(n_components=n_components, length=length, n_blocks=n_blocks)
        check_strength(strength)
        if length % 2:
            raise UserError(f"model.length={length} must be even: one half goes to the keys, one to the values")
        super().__init__(spec, backbone)
        self.n_stages, self.strength = stages(spec, "coda_prompt"), strength
        self.n_blocks, width = min(n_blocks, len(self.features.blocks)), self.features.width
        n = self.n_stages * n_components
        self.keys = self._split(_orthonormal(self.n_blocks, n, width))
        self.attention = self._split(_orthonormal(self.n_blocks, n, width))
        self.prompts = self._split(_orthonormal(self.n_blocks, n, length * width).view(-1, n, length, width))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def _split(self, components: Tensor) -> nn.ParameterList:
        return nn.ParameterList(nn.Parameter(part.clone()) for part in components.chunk(self.n_stages, dim=1))

    def begin(self, experience: int) -> None:
        """Train the components of this experience; beyond the last one foreseen, go on with the last ones."""
        self.stage.fill_(min(experience, self.n_stages - 1))

    def forward(self, x: Tensor) -> Output:
        keys, attention, prompts = map(self._so_far, (self.keys, self.attention, self.prompts))  # (blocks, M, ...)
        query = self.query(x)
        mixed = [mix(query, k, a, p) for k, a, p in zip(keys, attention, prompts, strict=True)]  # (B, length, width)
        prefixes = [torch.stack(p.chunk(2, dim=1), dim=1) for p in mixed]  # (B, 2, length / 2, width)
        features = self.features.tokens(x, prefixes=prefixes)[:, 0]  # (B, width)
        penalty = None
        if self.training:
            terms = [orthogonality(rows) for kind in (keys, attention, prompts.flatten(2)) for rows in kind]
            penalty = self.strength * torch.stack(terms).sum()
        return Output(self.head(features), features, penalty)

    def _so_far(self, parts: nn.ParameterList) -> Tensor:
        """(blocks, M, ...) components up to this stage, the earlier ones without gradient."""
        stage = int(self.stage)
        return torch.cat([*(part.detach() for part in parts[:stage]), parts[stage]], dim=1)


def mix(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> Tensor:
    """(B, length, D): sum_m cos(q * A_m, K_m) P_m for queries (B, D), (M, D), (M, D), (M, length, D)."""
    attended = normalize(query[:, None] * attention, dim=2)  # (B, M, D)
    alpha = (attended * normalize(keys, dim=1)).sum(2)  # (B, M)
    return torch.einsum("bm,mld->bld", alpha, prompts)


def orthogonality(rows: Tensor) -> Tensor:
    """mean_ij (R R^T - I)_ij^2 of rows R (M, D), >= 0; 0 for orthonormal ones."""
    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()


def _orthonormal(n_blocks: int, n: int, width: int) -> Tensor:
    """(blocks, n, width): orthonormal rows in each block, as far as ``width`` allows."""
    return torch.stack([nn.init.orthogonal_(torch.empty(n, width)) for _ in range(n_blocks)])


def coda_prompt(
    spec: Spec,
    backbone: Callable[[Spec], nn.Module],
    n_components: int = 10,
    length: int = 8,
    n_blocks: int = 5,
    strength: float = 0.1,
) -> nn.Module:
    """CODA-Prompt over a frozen transformer; the stream must say how many experiences it has.

    Args:
        spec: the stream's spec; rows are images.
        backbone: partial of ``continual.models.vit``.
        n_components: new components per experience, >= 1.
        length: tokens of a prompt, even, >= 2.
        n_blocks: the first blocks of the backbone get prompts, >= 1; at most all.
        strength: of the orthogonality of components, >= 0; 0 leaves it out.
    """
    return CodaPrompt(spec, backbone, n_components, length, n_blocks, strength)
