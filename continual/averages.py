"""Exponential moving averages of a network's weights.

    after update t = 1, 2, ...:   average <- d average + (1 - d) w,      d = min(decay, 1 - 1 / t)

Why the minimum: without it the random first weights would keep a share of decay^t, 37% after 1000 updates at a decay of
0.999. With it the first update forgets them, the average is the plain mean of the weights after every update while
t <= 1 / (1 - decay), and the exponential mean from then on. Batch statistics are averaged like weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.strategy import View, Weights


class Average:
    """A moving average of a network: ``weights`` (parameters and buffers by name), and how many ``updates`` it made."""

    def __init__(self, view: View) -> None:
        self.weights, self.updates, self.device = view.copy(), 0, view.classes.device

    def follow(self, view: View, decay: float) -> None:
        """One update towards the live weights."""
        self.updates += 1
        blend(self.weights, view.params | view.buffers, min(decay, 1 - 1 / self.updates))

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = {name: w.to(self.device, copy=True) for name, w in state["weights"].items()}
        self.updates = int(state["updates"])


@torch.no_grad()
def blend(average: dict[str, Tensor], weights: Weights, decay: float) -> None:
    """Average <- decay average + (1 - decay) weights, in place; what is new, has grown or is no float is copied."""
    olds, news = list[Tensor](), list[Tensor]()
    for name, w in weights.items():
        old = average.get(name)
        if old is None or old.shape != w.shape:
            average[name] = w.detach().clone()
        elif w.is_floating_point():
            olds.append(old)
            news.append(w)
        else:
            old.copy_(w)
    if olds:
        torch._foreach_lerp_(olds, news, 1 - decay)
