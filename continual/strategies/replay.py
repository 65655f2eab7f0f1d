"""What strategies with a memory share: when arrived rows are offered to it, and which rows may be drawn."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from continual.batches import batches
from continual.class_means import features_of
from continual.errors import UserError
from continual.memory import Column, Herding, Memory
from continual.refusals import at_least_0, check_boundaries, name_of, settings_of
from continual.seeding import derive
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output, Rows, Spec

CHUNK = 256  # rows that are read at once at the end of an experience


class Replay(Strategy):
    """Remember arrived rows, each once for every time that it was trained on, or once when its experience ends.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        n_replay: rows of a draw, >= 0.
        exclude_current: draw no row of the current experience (uses task boundaries).
        remember: ``step`` offers each batch to the memory after its update, once in each pass; ``end`` offers all rows
            once, in random order, when their experience ends, which takes real task boundaries.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int,
        exclude_current: bool = False,
        remember: str = "step",
        seed: int = 0,
    ) -> None:
        at_least_0(self, n_replay=n_replay)
        if remember not in ("step", "end"):
            raise UserError(f"strategy.{name_of(self)}.remember='{remember}' is unknown; use 'step' or 'end'")
        self.make_memory, self.n_replay, self.exclude_current = memory, n_replay, exclude_current
        self.remember, self.seed = remember, seed

    def start(self, view: View) -> None:
        name = name_of(self)
        for setting, asked, instead in (
            ("exclude_current=true", self.exclude_current, "exclude_current=false"),
            ("remember=end", self.remember == "end", "remember=step"),
        ):
            if asked:
                check_boundaries(f"strategy.{name}.{setting}", view.spec, f"strategy.{name}.{instead}")
        columns = self.columns(view) | ({"experience": ((), torch.int64)} if self.exclude_current else {})
        seed = derive(self.seed, type(self).__name__, "memory")
        place = view.classes.device
        with settings_of(f"strategy.{name}.memory"):
            self.memory = self.make_memory(spec=self.layout(view), columns=columns, seed=seed, device=place)
        if isinstance(self.memory, Herding) and self.remember != "end":
            raise UserError(
                f"strategy.{name}: herding chooses among all rows of an experience when it ends; use a strategy that "
                f"can remember then (strategy.er.remember=end), or memory@strategy.{name}.memory=ring"
            )
        if isinstance(self.memory, Herding) and view.n_features is None:
            raise UserError("herding reads the network's features, and this model tells none; use model=mlp or cnn")

    def layout(self, view: View) -> Spec:
        """The spec that the memory is made for."""
        return view.spec

    def columns(self, view: View) -> dict[str, Column]:
        """What is kept beside a row."""
        return {}

    def beside(self, view: View, batch: Batch, out: Output) -> dict[str, Tensor]:
        """The values (arrived, ...) of ``columns`` for the arrived rows of an update."""
        return {}

    def among(self, view: View) -> Tensor | None:
        """Slots that may be drawn; None for all."""
        if not self.exclude_current:
            return None
        stored = self.memory.columns["experience"][: len(self.memory)]
        return (stored != view.experience).nonzero()[:, 0]

    def drawable(self, view: View) -> Tensor:
        """All slots that may be drawn."""
        among = self.among(view)
        return torch.arange(len(self.memory), device=view.classes.device) if among is None else among

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        if self.remember == "step" and not view.again:
            self.offer(view, batch, **self.beside(view, batch, out))

    def end(self, view: View, experience: Experience) -> None:
        if self.remember == "end":
            rows = experience.rows
            order = torch.randperm(len(rows), generator=self.memory.generator)
            if isinstance(self.memory, Herding):
                order = order[self.memory.order(*_features(view, rows, order))]
            for batch in batches(rows, torch.split(order, CHUNK)):
                columns = self.beside(view, batch, _answered(view, batch)) if self.columns(view) else {}
                self.offer(view, batch, **columns)

    def offer(self, view: View, batch: Batch, **columns: Tensor) -> None:
        """Add the arrived rows of ``batch`` and what is kept beside them."""
        if self.exclude_current:
            columns["experience"] = batch.y.new_full((batch.arrived,), view.experience)
        self.memory.add(batch, **columns)

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)


def _answered(view: View, batch: Batch) -> Output:
    """What the network answers about a batch now, in eval mode."""
    return view.answer(view.params | view.buffers, batch.x.to(view.classes.device))


def _features(view: View, rows: Rows, order: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, F), in eval mode, and labels (N,) of ``rows`` in this order."""
    features, labels = [], []
    for batch in batches(rows, torch.split(order, CHUNK)):
        features.append(features_of(view, batch.x).cpu())
        labels.append(batch.y)
    return torch.cat(features), torch.cat(labels)
