"""iCaRL: sigmoid outputs, old ones taught by the network before this experience, and answers by exemplars' means.

    L = mean over arrived rows and replayed exemplars of sum_c BCE(sigmoid(z_c), t_c), over classes that have arrived
    t_c = sigmoid(z_c / T of the network before this experience) for old classes c, 1[c = y] for new ones

After an experience each class keeps its first ``min(capacity / classes, n_per_class)`` rows in the order of herding,
and a row is answered with the class whose exemplars' mean feature is nearest (``continual.class_means``).

Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", https://arxiv.org/abs/1611.07725
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from continual.batches import extend
from continual.class_means import NearestMean, features_of
from continual.errors import UserError
from continual.exemplars import Exemplars
from continual.herding import herd
from continual.refusals import require, settings_of
from continual.seeding import derive
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output


class ICaRL(Strategy):
    """Distil and replay exemplars, answer by their means.

    A class that arrives again counts as new while it does, and herds among its exemplars and the new rows. Before there
    are exemplars (the first experience) the network's own logits answer; after that a class can be answered once the
    experience that brought it has ended.

    Args:
        capacity: exemplars of all classes together, in ``unit``s; at least one row for each class of the stream.
        unit: ``rows``, or ``bytes`` of inputs in the stream's dtype and labels.
        n_per_class: at most so many exemplars of a class, >= 1, all of which must fit; None shares the capacity.
        n_replay: exemplars replayed per update, >= 0, None as many as mix them evenly into the experience's rows.
        temperature: T > 0; 1 as in the paper, higher brings the old network's targets nearer to 1/2.
        seed: of the run.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    needs_boundaries: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    replaces_loss: ClassVar[bool] = True
    replaces_answers: ClassVar[bool] = True

    def __init__(
        self,
        capacity: int = 200,
        unit: str = "rows",
        n_per_class: int | None = None,
        n_replay: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("n_per_class", n_per_class, 1), ("n_replay", n_replay, 0)):
            if value is not None and value < least:
                raise UserError(f"strategy.icarl.{name}={value} must be at least {least}")
        require(self, "temperature", temperature, temperature > 0, "above 0")
        self.temperature = temperature
        self.capacity, self.unit, self.n_per_class, self.n_replay = capacity, unit, n_per_class, n_replay
        self.seed, self.means, self.n_rows = seed, NearestMean(), 0
        self.teacher: dict[str, Tensor] = {}

    def start(self, view: View) -> None:
        device, n_classes = view.classes.device, view.spec.n_classes
        seed = derive(self.seed, "ICaRL", "memory")
        with settings_of("strategy.icarl"):
            self.exemplars = Exemplars(self.capacity, self.unit, spec=view.spec, seed=seed, device=device)
        needed, rows = n_classes * (self.n_per_class or 1), self.exemplars.capacity
        if rows < needed:
            raise UserError(
                f"strategy.icarl.capacity={self.capacity} {self.unit} holds {rows} rows, and {n_classes} classes need "
                f"{needed}; raise it" + (f" or lower n_per_class={self.n_per_class}" if self.n_per_class else "")
            )
        self.old, self.current = torch.zeros_like(view.classes), torch.zeros_like(view.classes)  # (C,) bool each

    def begin(self, view: View, experience: Experience) -> None:
        self.means.drop()
        self.old, self.current, self.n_rows = view.classes.clone(), torch.zeros_like(self.old), len(experience.rows)
        if bool(self.old.any()):
            self.teacher = view.copy()

    def mix(self, view: View, batch: Batch) -> Batch:
        self.current.index_fill_(0, batch.y[: batch.arrived], True)
        in_proportion = -(-len(self.exemplars) * batch.arrived // self.n_rows)
        slots = self.exemplars.draw(in_proportion if self.n_replay is None else self.n_replay)
        if not len(slots):
            return batch
        total = len(batch) + len(slots)
        x, y = self.exemplars.inputs(slots, view.fetch), self.exemplars.column("y", slots)
        return extend(batch, x, y, weight=1 / total, keep=len(batch) / total)

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        taught = view.answer(self.teacher, batch.x).logits if self.teacher else out.logits.detach()
        return binary_losses(out.logits, batch.y, taught / self.temperature, self.old & ~self.current, view.classes)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.means.drop()

    def end(self, view: View, experience: Experience) -> None:
        self.means.drop()
        if len(experience.rows):
            self.exemplars.refill(*self._chosen(view, experience))

    def _chosen(self, view: View, experience: Experience) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the exemplars to hold now, class after class, the most preferred first."""
        seen = view.classes.nonzero()[:, 0].tolist()
        quota = min(self.exemplars.capacity // len(seen), self.n_per_class or self.exemplars.capacity)
        rows, device = experience.rows, view.classes.device
        arrived = torch.cat([rows.take(part).y for part in torch.split(torch.arange(len(rows)), 512)])  # (N,)
        held = self.exemplars.columns["y"][: len(self.exemplars)]
        chosen = []
        for label in seen:
            x = self.exemplars.column("x", (held == label).nonzero()[:, 0])
            new = (arrived == label).nonzero()[:, 0]
            if len(new):
                x = torch.cat([x, rows.take(new).x.to(device)])
                x = x[herd(normalize(features_of(view, x), dim=1), quota)]
            chosen.append(x[:quota])
        return torch.cat(chosen), torch.cat([held.new_full((len(x),), c) for x, c in zip(chosen, seen, strict=True)])

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        return self.means.answer(view, out, self.exemplars)

    def state_dict(self) -> dict[str, Any]:
        return {
            "exemplars": self.exemplars.state_dict(),
            "teacher": self.teacher,
            "old": self.old,
            "current": self.current,
            "n_rows": self.n_rows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.exemplars.load_state_dict(state["exemplars"])
        device, self.n_rows = self.old.device, state["n_rows"]
        self.teacher = {name: w.to(device) for name, w in state["teacher"].items()}
        self.old, self.current = (state[name].to(device, copy=True) for name in ("old", "current"))
        self.means.drop()


def binary_losses(logits: Tensor, y: Tensor, taught: Tensor, old: Tensor, classes: Tensor) -> Tensor:
    """(B,) sum over ``classes`` (C,) of the binary cross-entropy of ``logits`` (B, C).

    The target of a class is 1[c = y], or sigmoid(``taught``) (B, C), the old network's, where it is ``old`` (C,).
    """
    target = torch.where(old, taught.sigmoid(), torch.zeros_like(logits).scatter(1, y[:, None], 1.0))
    return (binary_cross_entropy_with_logits(logits, target, reduction="none") * classes).sum(1)
