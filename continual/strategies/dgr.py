"""Deep generative replay: a generator of the stream's rows is trained beside the model and replays what it has learned.

    L = r mean_arrived CE + (1 - r) mean_generated CE,     r = 1/t in the t-th experience, or ``new_share``

Generated rows come from the generator as it was before this experience, their labels from the network as it was then:
its likeliest old class (``hard``) or its softmax over the old classes (``soft``, against the model's softmax over all
classes that have arrived). The generator (a VAE, ``continual.models.vae``) learns from the same rows in the same ratio.

Shin et al. 2017, "Continual Learning with Deep Generative Replay", https://arxiv.org/abs/1705.08690 (there a GAN)
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual.batches import extend
from continual.errors import UserError
from continual.models.vae import VAE
from continual.optim.eager import eager
from continual.refusals import at_least_0
from continual.seeding import derive, generator
from continual.step import MASKED
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output


class DGR(Strategy):
    """Replay generated rows of earlier experiences.

    A pass of a row through the generator costs as many forward-equivalents as it has parameters per parameter of the
    model, rounded up to whole ones in each update: right for dense layers, too much beside a convolutional model.

    Args:
        n_replay: rows generated per update, >= 0; 0 generates nothing and trains no generator.
        new_share: r, in [0, 1]; 1 replays with weight 0, None is 1/t.
        targets: ``hard`` or ``soft`` labels of generated rows.
        hidden: widths of the generator's layers, from the input to z.
        n_latent: width of z, >= 1.
        lr: of the generator's Adam, > 0.
        seed: of the run.
    """

    steady: ClassVar[tuple[str, ...] | None] = ("taught",)

    needs_boundaries: ClassVar[bool] = True

    def __init__(
        self,
        n_replay: int = 10,
        new_share: float | None = None,
        targets: str = "hard",
        hidden: Sequence[int] = (200,),
        n_latent: int = 32,
        lr: float = 0.001,
        seed: int = 0,
    ) -> None:
        at_least_0(self, n_replay=n_replay)
        if new_share is not None and not 0 <= new_share <= 1:
            raise UserError(f"strategy.dgr.new_share={new_share} must be in [0, 1]")
        if targets not in ("hard", "soft"):
            raise UserError(f"strategy.dgr.targets='{targets}' is unknown; use 'hard' or 'soft'")
        if lr <= 0:
            raise UserError(f"strategy.dgr.lr={lr} must be above 0")
        self.n_replay, self.new_share, self.targets = n_replay, new_share, targets
        self.hidden, self.n_latent, self.lr, self.seed = hidden, n_latent, lr, seed
        self.generator, self.t = generator(seed, "DGR"), 0
        self.solver: dict[str, Tensor] = {}
        self.old: Tensor | None = None  # (C,) bool, classes that the solver has learned
        self.taught: Tensor | None = None  # (n_replay, C) soft labels, handed from mix to penalty

    def start(self, view: View) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "DGR", "generator"))
            self.vae = VAE(view.spec, self.hidden, self.n_latent).to(view.classes.device)
        self.past = deepcopy(self.vae.decoder).requires_grad_(False)
        self.device, self.dtype = view.classes.device, next(self.past.parameters()).dtype
        self.optimizer = eager(lambda: torch.optim.Adam(self.vae.parameters(), lr=self.lr, fused=True))
        model = sum(tensor.numel() for tensor in view.params.values())
        self.cost, self.cost_past = (sum(p.numel() for p in m.parameters()) / model for m in (self.vae, self.past))

    def begin(self, view: View, experience: Experience) -> None:
        if bool(view.classes.any()) and self.n_replay:
            self.solver, self.old = view.copy(), view.classes.clone()
            self.past.load_state_dict(self.vae.decoder.state_dict())
        self.t += 1 if len(experience.rows) else 0

    @property
    def share(self) -> float:
        """Of the arrived rows in both losses."""
        return 1.0 if self.old is None else 1 / self.t if self.new_share is None else self.new_share

    def mix(self, view: View, batch: Batch) -> Batch:
        self.first = len(batch)
        if self.old is None:
            return batch
        x = self.vae.rows(self.past(self._noise(self.n_replay)))
        view.charge(ceil(self.cost_past * len(x)))
        logits = view.answer(self.solver, x).logits.masked_fill(~self.old, MASKED)
        weight = 0.0
        if self.targets == "soft":
            self.taught = logits.softmax(1)
        else:
            weight = (1 - self.share) / len(x)
        return extend(batch, x, logits.argmax(1), weight, keep=self.share)

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if self.taught is None:
            return 0.0
        logits = out.logits[self.first : self.first + self.n_replay].masked_fill(~view.classes, MASKED)
        return (1 - self.share) * cross_entropy(logits, self.taught)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.taught = None  # it has served
        if view.again or not self.n_replay:
            return
        n, x = batch.arrived, batch.x[: batch.arrived]
        if self.old is not None:
            x = torch.cat([x, batch.x[self.first : self.first + self.n_replay]])
        losses = self.vae.losses(x, self._noise(len(x)))
        loss = self.share * losses[:n].mean()
        if self.old is not None:
            loss = loss + (1 - self.share) * losses[n:].mean()
        view.watch("dgr", "of its generator", loss)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        view.charge(ceil(3 * self.cost * len(x)))

    def _noise(self, n: int) -> Tensor:
        """(n, D) from N(0, 1), as the generator's weights are."""
        return torch.randn(n, self.n_latent, generator=self.generator, dtype=self.dtype).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "vae": self.vae.state_dict(),
            "past": self.past.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "solver": self.solver,
            "old": self.old,
            "t": self.t,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.past.load_state_dict(state["past"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it would keep the very tensors
        self.t, self.solver = state["t"], {name: w.to(self.device) for name, w in state["solver"].items()}
        self.old = None if state["old"] is None else state["old"].to(self.device)
        self.generator.set_state(state["generator"])
