"""PackNet: one network for several tasks, each with weights of its own that later tasks may use but not change.

After task k, in every layer: keep the (1 - share) largest of its free weights, |w|, for k; set the other free ones to
0, train the kept ones a little longer, and then never again. Task k is answered by the weights of tasks <= k alone.

Biases and normalisation belong to the first task; parameters that came with a task (``train.head=multi_head``, as in
the paper) belong to it whole. A shared head (``train.head=per_task``) is pruned like any layer; a weight that is 0 is
not kept, so that from the second task on rows of classes that have not arrived stay free. Batch statistics are kept for
each task. A task that comes again counts as one more task; when it ends, its answers take the place of the first ones.

Mallya & Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
https://arxiv.org/abs/1711.05769
"""

from collections.abc import Mapping
from dataclasses import replace
from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor

from continual.batches import Schedule, batches
from continual.errors import UserError
from continual.refusals import at_least_0
from continual.seeding import derive
from continual.step import looks
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output

MOST = 255  # tasks that an owner of one byte can name; 0 is nobody


class PackNet(Strategy):
    """Prune, keep and freeze after each task; answer a task by its own and earlier weights.

    Args:
        share: of a layer's free weights that each task gives back, in [0, 1); 0 lets the first task keep all.
        n_passes: passes over the experience after pruning, >= 0, by plain gradient steps without augmentation.
        batch_size: rows of each of their updates, >= 1.
        lr: their learning rate, > 0; None for the learner's.
        seed: of the run.
    """

    needs_boundaries: ClassVar[bool] = True
    needs_tasks: ClassVar[bool] = True
    replaces_answers: ClassVar[bool] = True

    def __init__(
        self, share: float = 0.5, n_passes: int = 1, batch_size: int = 32, lr: float | None = None, seed: int = 0
    ) -> None:
        if not 0 <= share < 1:
            raise UserError(f"strategy.packnet.share={share} must be at least 0 and below 1")
        at_least_0(self, n_passes=n_passes)
        if batch_size < 1:
            raise UserError(f"strategy.packnet.batch_size={batch_size} must be at least 1")
        if lr is not None and lr <= 0:
            raise UserError(f"strategy.packnet.lr={lr} must be above 0, or null for that of the learner")
        self.share, self.n_passes, self.batch_size, self.lr = share, n_passes, batch_size, lr
        self.seed, self.slot = derive(seed, "PackNet"), 0  # of the last experience, from 1
        self.slots: dict[int, int] = {}  # task -> its last slot
        self.owner: dict[str, Tensor] = {}  # uint8 like each parameter: slot that it belongs to, 0 while it is free
        self.free: dict[str, Tensor] = {}  # 1 where the owner is nobody, else 0: a product with it is far faster
        self.kept: dict[str, Tensor] = {}  # parameters as the last task left them, 0 where they are free
        self.statistics: dict[int, dict[str, Tensor]] = {}  # task -> batch statistics

    def start(self, view: View) -> None:
        expected = view.spec.n_experiences
        if expected is not None and expected > MOST:
            raise UserError(f"strategy 'packnet' can hold at most {MOST} tasks, and this stream has {expected}")
        self.shared = frozenset(view.params)  # what is there before any task
        self.device = view.classes.device

    def begin(self, view: View, experience: Experience) -> None:
        self.slot += 1
        if self.slot > MOST:
            raise UserError(f"strategy 'packnet' can hold at most {MOST} tasks, and this is one more")

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        for name, g in grads.items():
            if name in self.free:
                g.mul_(self.free[name])
        return grads

    @torch.no_grad()
    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        """Momentum, Adam and weight decay move what has no gradient: put it back, in place for speed."""
        for name, free in self.free.items():
            p = view.params[name]
            torch.addcmul(self.kept[name], p, free, out=p)

    def end(self, view: View, experience: Experience) -> None:
        mine = {}
        for name, p in view.params.items():
            owner = self.owner.setdefault(name, torch.zeros_like(p, dtype=torch.uint8))
            layer = name in self.shared and p.dim() > 1
            mine[name] = largest(p.detach(), owner == 0, self.share) if layer else owner == 0
            owner[mine[name]] = self.slot
        everything = {name: torch.ones_like(owned, dtype=torch.bool) for name, owned in self.owner.items()}
        view.replace({name: p.where(self.owner[name] > 0, 0.0) for name, p in view.params.items()}, everything)
        self._train(view, experience, mine)
        self.kept = {name: p.detach().clone() for name, p in view.params.items()}
        self.free = {name: (owned == 0).to(self.kept[name].dtype) for name, owned in self.owner.items()}
        if experience.task is not None:
            self.slots[experience.task] = self.slot
            self.statistics[experience.task] = {name: b.clone() for name, b in view.buffers.items() if b.dim() < 2}

    def _train(self, view: View, experience: Experience, mine: Mapping[str, Tensor]) -> None:
        """Gradient steps of the weights that are ``mine``, bool by name."""
        rows, lr, device = experience.rows, self.lr or view.lr(), view.classes.device
        updates = Schedule(len(rows), self.batch_size, self.n_passes, None, self.seed, lap=self.slot, least=2)
        for update, batch in enumerate(batches(rows, updates)):
            on = replace(batch, x=batch.x.to(device), y=batch.y.to(device), weight=batch.weight.to(device))
            loss, grads = view.loss_and_gradient(on)
            if looks(device, update, len(updates)):
                view.watch("packnet", f"at update {update} after pruning", loss)
            view.replace({name: view.params[name] - lr * g * mine[name] for name, g in grads.items()})

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        if task is None:
            raise UserError("strategy 'packnet' answers by the weights of a task; say which: predict(x, task=...)")
        if task not in self.slots:
            return out.logits
        last, params = self.slots[task], view.params
        masked = {name: params[name].where((own > 0) & (own <= last), 0.0) for name, own in self.owner.items()}
        return view.answer(params | view.buffers | masked | self.statistics[task], x).logits

    def state_dict(self) -> dict[str, Any]:
        names = ("slot", "slots", "owner", "free", "kept", "statistics")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slot, self.slots = state["slot"], dict(state["slots"])
        self.owner = {name: owner.to(self.device, copy=True) for name, owner in state["owner"].items()}
        self.free, self.kept = (
            {name: w.to(self.device) for name, w in state[kind].items()} for kind in ("free", "kept")
        )
        self.statistics = {
            task: {name: b.to(self.device) for name, b in found.items()} for task, found in state["statistics"].items()
        }


def largest(weight: Tensor, free: Tensor, share: float) -> Tensor:
    """Bool like ``weight``: of its ``free`` ones all but floor(share * free) are chosen, by |w|, and never a 0."""
    n_free = int(free.sum())
    size = weight.abs().masked_fill(~free, -1.0).reshape(-1)
    chosen = size.topk(n_free - floor(share * n_free)).indices
    return torch.zeros_like(free).reshape(-1).scatter(0, chosen, True).view_as(free) & (weight != 0)
