"""UPGD: steps and noise are small for useful weights, large for useless ones.

    utility <- decay utility + (1 - decay) (-g w)
    w <- (1 - lr weight_decay) w - lr (g + noise) (1 - sigmoid(utility' / max utility'))

with noise ~ N(0, sigma^2), utility' = utility / (1 - decay^steps), and the maximum over all weights. -g w is the change
of the loss, to first order, if the weight were 0. This is the first-order method with global scaling that protects
weights from the gradient too. Where no utility is above 0 it is divided by 1, for dividing by a negative maximum would
turn the order around. Elsayed & Mahmood 2024, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual
Learning", https://arxiv.org/abs/2404.00781
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from continual.errors import UserError
from continual.seeding import generator


class UPGD(torch.optim.Optimizer):
    """Utility-based perturbed gradient descent, with noise from a generator of its own.

    Args:
        params: to optimise.
        lr: step size, > 0. A weight of utility 0 moves by half of it.
        sigma: standard deviation of the noise, >= 0.
        decay: of the utilities per step, in [0, 1).
        weight_decay: shrinks all weights alike, >= 0.
        seed: of the run.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        sigma: float = 0.001,
        decay: float = 0.999,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("sigma", sigma), ("weight_decay", weight_decay)):
            if value < 0:
                raise UserError(f"optimizer.{name}={value} must be at least 0")
        if lr <= 0:
            raise UserError(f"optimizer.lr={lr} must be above 0")
        if not 0 <= decay < 1:
            raise UserError(f"optimizer.decay={decay} must be at least 0 and below 1")
        self.generator = generator(seed, "UPGD")
        super().__init__(params, {"lr": lr, "sigma": sigma, "decay": decay, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [(group, p, *self._utility(group, p)) for group in self.param_groups for p in group["params"]
                 if p.grad is not None]  # fmt: skip
        if moved:
            largest = torch.stack([utility.max() * factor for *_, utility, factor in moved]).max()
            largest = torch.where(largest > 0, largest, 1.0)
        for group, p, utility, factor in moved:  # in place: fresh tensors of this size take longer than the arithmetic
            noise = torch.randn(p.shape, generator=self.generator, dtype=p.dtype).to(p.device)
            step = noise.mul_(group["sigma"]).add_(p.grad)
            useless = (utility * (-factor / largest)).sigmoid_()  # 1 - sigmoid(u) = sigmoid(-u)
            if group["weight_decay"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            p.addcmul_(step, useless, value=-group["lr"])
        return loss

    def _utility(self, group: dict[str, Any], p: Tensor) -> tuple[Tensor, float]:
        """The decayed mean of -g w, and by what to multiply it to free it of the bias towards its first value 0."""
        state, decay = self.state[p], group["decay"]
        if not state:
            state["steps"], state["utility"] = 0, torch.zeros_like(p)
        assert p.grad is not None
        state["steps"] += 1
        state["utility"].mul_(decay).addcmul_(p.grad, p, value=decay - 1)
        return state["utility"], 1 / (1 - decay ** state["steps"])

    def __getstate__(self) -> dict[str, Any]:  # for copies, which torch makes of its own fields alone
        return super().__getstate__() | {"generator": self.generator}

    def state_dict(self) -> dict[str, Any]:
        """With the generator's state."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "generator"})
        self.generator.set_state(state_dict["generator"])
