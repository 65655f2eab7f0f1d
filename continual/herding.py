"""Choose the rows whose mean of features stays nearest to the mean of all rows.

The k-th choice is the row f, not chosen before, that minimises |mean - (sum of the chosen + f) / k|: greedily, so a
longer list begins with the shorter one. Welling 2009, "Herding Dynamical Weights to Learn",
https://doi.org/10.1145/1553374.1553517; as used by Rebuffi et al. 2017, "iCaRL", https://arxiv.org/abs/1611.07725
"""

import torch
from torch import Tensor


def herd(features: Tensor, n: int) -> Tensor:
    """(min(n, N),) int64 positions among the rows of ``features`` (N, F), the most preferred first.

    No row twice; of rows that are equally near the one that comes first. Features are taken as they are: whoever wants
    them of length 1 (as iCaRL does) makes them so before.
    """
    mean = features.mean(0)  # (F,)
    chosen, total = (
        torch.zeros(min(n, len(features)), dtype=torch.int64, device=features.device),
        torch.zeros_like(mean),
    )
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for k in range(len(chosen)):
        away = (mean - (total + features) / (k + 1)).square().sum(1)  # (N,)
        best = away.masked_fill(taken, torch.inf).argmin()
        chosen[k], taken[best] = best, True
        total += features[best]
    return chosen
