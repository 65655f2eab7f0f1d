"""Shrink and perturb: make old weights small and mix in fresh ones, so that the network stays able to learn.

    w <- shrink * w + noise * fresh

at the beginning of each experience but the first, or every so many updates. Ash & Adams 2020, "On Warm-Starting Neural
Network Training", https://arxiv.org/abs/1910.08475, whose code mixes in a newly initialised network; here ``fresh`` is
normal with the mean and the spread that each tensor had at its own initialisation, which needs two numbers a tensor.
shrink=1 with noise=0 changes nothing; the defaults (0.4, 0.1) are those of the authors' code. The optimizer keeps its
momenta.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual.errors import UserError
from continual.seeding import generator
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output


class ShrinkPerturb(Strategy):
    """Shrink all weights and add noise of the size of their initialisation.

    Args:
        shrink: factor of the old weights, in [0, 1]; 1 keeps them, 0 starts anew.
        noise: factor of the fresh weights, >= 0.
        every: updates between two times, >= 1, on any stream; None: at the beginning of each experience but the first.
        seed: of the run.
    """

    def __init__(self, shrink: float = 0.4, noise: float = 0.1, every: int | None = None, seed: int = 0) -> None:
        for name, value, holds, bound in (
            ("shrink", shrink, 0 <= shrink <= 1, "in [0, 1]"),
            ("noise", noise, noise >= 0, "at least 0"),
            ("every", every, every is None or every >= 1, "at least 1, or null"),
        ):
            if not holds:
                raise UserError(f"strategy.shrink_perturb.{name}={value} must be {bound}")
        self.shrink, self.noise, self.every, self.seed = shrink, noise, every, seed
        self.initial: dict[str, list[float]] = {}  # mean and spread of each tensor when it was new
        self.updates = 0

    def start(self, view: View) -> None:
        if self.every is None and not view.spec.boundaries:
            raise UserError(
                "strategy 'shrink_perturb' needs task boundaries, and this stream hides them; "
                "let it act every so many updates (strategy.shrink_perturb.every=100)"
            )
        self.generator = generator(self.seed, "ShrinkPerturb")

    def begin(self, view: View, experience: Experience) -> None:
        if self.every is None:
            self.act(view)  # on none before the first experience
        for name, p in view.params.items():
            self.initial.setdefault(name, [float(p.detach().mean()), float(p.detach().std(correction=0))])

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.updates += 1
        if self.every is not None and self.updates % self.every == 0:
            self.act(view)

    def act(self, view: View) -> None:
        """Shrink and perturb now, all but weights that are new in this experience."""
        if self.shrink == 1 and self.noise == 0:
            return
        old = {name: view.params[name].detach() for name in self.initial}
        view.replace({name: self.shrink * p + self.noise * self.fresh(name, p) for name, p in old.items()})

    def fresh(self, name: str, p: Tensor) -> Tensor:
        """Normal draws of the shape of ``p``, as large as ``p`` was when it was new."""
        mean, spread = self.initial[name]
        return torch.randn(p.shape, generator=self.generator, dtype=p.dtype).to(p.device) * spread + mean

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial, "updates": self.updates, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.initial = {name: list(numbers) for name, numbers in state["initial"].items()}
        self.updates = state["updates"]
        self.generator.set_state(state["generator"])
