"""RanPAC: ridge regression of the labels on randomly projected frozen features, from sums alone.

    h = max(0, z W),   G = sum h h^T,   Q = sum h onehot(y)^T,   logits = h . (G + ridge I)^-1 Q

over the inputs z or a frozen backbone's features. The ridge is given, or the one of 10^-8, 10^-7, ..., 10^8 whose
solution from 4/5 of the rows has the least squared error on the other 1/5. McDonnell et al. 2023,
https://arxiv.org/abs/2307.02251, who split the rows of the newest task; here every row so far takes part, and on which
side a row stands is a hash of its content, so that the order of rows does not matter.
"""

from collections.abc import Mapping
from zlib import crc32

import torch
from torch import Tensor, nn

from continual.errors import UserError
from continual.learners.closed_form import ClosedForm
from continual.learners.features import Frozen, Model, Rectified, check_n_features
from continual.seeding import generator
from continual.types import Batch, Spec

RIDGES = tuple(10.0**k for k in range(-8, 9))
ROUNDING = 2**-23  # of the float32 sums, relative to the largest eigenvalue: a smaller ridge would fit rounding errors
HELD = 5  # one row in so many is held out


class RanPAC(ClosedForm):
    """Gram matrix and class prototypes of random features; the ridge is chosen whenever it is asked to answer.

    Args:
        spec: the stream's spec.
        n_features: random projections, the paper's M; 0 uses the inputs, or the backbone's features, themselves.
        ridge: >= 0 (0 only where the Gram matrix is regular); None chooses it, at the price of a second Gram matrix.
            Until both sides hold a row it is 1.
        backbone, weights: see ``learners.features.Frozen``.
        batch_size, head, device: see ``ClosedForm``.
        seed: of the run; the projection and a random backbone depend on it.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        n_features: int = 2000,
        ridge: float | None = None,
        backbone: Model | None = None,
        weights: str | None = None,
        batch_size: int = 1024,
        head: str = "all",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        check_n_features(n_features)
        if ridge is not None and ridge < 0:
            raise UserError(f"learner.ridge={ridge} must be at least 0, or null to choose it")
        self.ridge = ridge
        base = Frozen(spec, backbone, weights, seed=seed)
        projection = Rectified(base.width, n_features, generator(seed, "ranpac")) if n_features else nn.Identity()
        super().__init__(nn.Sequential(base, projection), spec=spec, batch_size=batch_size, head=head, device=device)

    def empty(self, n_features: int) -> dict[str, Tensor]:
        c, f, sides = self.spec.n_classes, n_features, 2 if self.ridge is None else 1
        gram, cross = torch.zeros(sides, f, f), torch.zeros(sides, c, f)
        return {"count": torch.zeros(c), "gram": gram, "cross": cross, "rows": torch.zeros(sides)}

    def add(self, z: Tensor, batch: Batch) -> None:
        sides = held_out(batch.x) if self.ridge is None else torch.zeros(len(z), dtype=torch.bool)
        for side in range(len(self.sums["rows"])):
            chosen = (sides == bool(side)).to(z.device)
            h, y = z[chosen], batch.y.to(z.device)[chosen]
            self.sums["gram"][side].addmm_(h.T, h)
            self.sums["cross"][side].index_add_(0, y, h)
            self.sums["rows"][side] += len(h)

    def solve(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        gram, cross = sums["gram"].sum(0), sums["cross"].sum(0)
        ridge = choose_ridge(sums["gram"], sums["cross"], sums["rows"]) if self.ridge is None else self.ridge
        return ridge_solution(gram, cross, ridge), torch.zeros(len(cross), dtype=torch.float64)


def ridge_solution(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """(F, C): (G + ridge I)^-1 Q from G (F, F) and Q^T (C, F); UserError if there is no such inverse."""
    solution: Tensor
    solution, failed = torch.linalg.solve_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), cross.T)
    if bool(failed):
        raise UserError(
            f"learner.ridge={ridge:g}: the Gram matrix of {len(gram)} features has no inverse yet; raise the ridge, or "
            "null to choose it"
        )
    return solution


def choose_ridge(gram: Tensor, cross: Tensor, rows: Tensor) -> float:
    """The ridge whose solution from side 0 of the sums, (2, F, F), (2, C, F), (2,), fits side 1 best.

    The squared error on side 1 is tr(W^T G W) - 2 tr(W^T Q) + rows, for W of side 0; one eigendecomposition serves
    all ridges.
    """
    if not bool((rows > 0).all()):
        return 1.0
    values, basis = torch.linalg.eigh(gram[0])  # (F,), (F, F)
    values = values.clamp_min(0)
    fitted, held = basis.T @ cross[0].T, basis.T @ cross[1].T  # (F, C) each
    turned = basis.T @ gram[1] @ basis  # (F, F)
    errors = {}
    for ridge in RIDGES:
        if ridge >= ROUNDING * float(values[-1]) or ridge == RIDGES[-1]:
            w = fitted / (values + ridge)[:, None]
            errors[ridge] = float(((turned @ w) * w).sum() - 2 * (held * w).sum())
    return min(errors, key=lambda ridge: errors[ridge])


def held_out(x: Tensor) -> Tensor:
    """(B,) bool: one row in five, by a hash of its bytes."""
    rows = x.detach().cpu().contiguous().flatten(1).numpy()
    return torch.tensor([crc32(row.tobytes()) % HELD == 0 for row in rows], dtype=torch.bool)
