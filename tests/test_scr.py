"""Supervised contrastive replay: its loss by hand, and that rows, weights and answers are the right ones."""

import copy
from collections.abc import Callable
from functools import partial
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual.augment import CropFlip
from continual.class_means import class_means, nearest
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.memory import Reservoir
from continual.strategies.er import ER
from continual.strategies.icarl import ICaRL
from continual.strategies.scr import SCR, contrastive_losses
from continual.strategy import View
from continual.types import Batch, Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((2,), 4, dtype=DOUBLE)
MEMORY = partial(Reservoir, 6)


def numbers(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


class Plane(nn.Module):
    """Features W x (B, 3)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3, dtype=DOUBLE), nn.Linear(3, 4, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Output:
        features = self.body(x)
        return Output(self.head(features), features)


class Doubled(SCR):
    """Its projection is float64 as its model; it keeps every batch that it made and the losses of its rows."""

    def extra(self, spec: Spec, n_features: int | None) -> nn.Module | None:
        self.mixed, self.losses = list[Batch](), list[Tensor]()
        self.projection = nn.Linear(3, 2, bias=False, dtype=DOUBLE)
        return self.projection

    def mix(self, view: View, batch: Batch) -> Batch:
        self.mixed.append(super().mix(view, batch))
        return self.mixed[-1]

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        self.losses.append(super().rows(view, batch, out, rows))
        return self.losses[-1]


def learner(strategies: dict[str, Any], model: Callable[[Spec], nn.Module] = Plane, **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 3} | options
    return SGDLearner(model, partial(torch.optim.SGD, lr=0.1), strategies, **chosen)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def by_loop(v: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The formula, index by index."""
    v, losses = v / v.norm(dim=1, keepdim=True), []
    for i in range(len(y)):
        others = [a for a in range(len(y)) if a != i]
        below = sum(exp(float(v[i] @ v[a]) / temperature) for a in others)
        alike = [p for p in others if y[p] == y[i]]
        logs = [log(exp(float(v[i] @ v[p]) / temperature) / below) for p in alike]
        losses.append(-sum(logs) / len(alike) if alike else 0.0)
    return numbers(*losses)


def test_the_loss_of_four_rows_by_hand() -> None:
    """v = (1, 0), (0, 1), (-1, 0) of class 0 and (0, -1) of class 1, T = 1/2: so exp is 1 or e^-2.

    Row 0: 0 with rows 1 and 3, -1 with row 2. Both positives: (log(2 + e^-2) + log(2 + e^-2) + 2) / 2. Row 2 alike.
    Row 1: 0 with rows 0 and 2, both positive: log(2 + e^-2). Row 3 is alone in its class.
    """
    below = log(2 + exp(-2))
    projected = numbers([5, 0], [0, 1], [-2, 0], [0, -3])  # made of length 1
    close(contrastive_losses(projected, torch.tensor([0, 0, 0, 1]), 0.5), numbers(below + 1, below, below + 1, 0))


def test_the_loss_equals_the_formula_index_by_index() -> None:
    draws = torch.Generator().manual_seed(0)
    v, y = torch.randn(7, 4, generator=draws, dtype=DOUBLE), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    close(contrastive_losses(v, y, 0.07), by_loop(v, y, 0.07))


def test_a_row_alone_in_its_class_has_no_gradient_of_its_own() -> None:
    v = numbers([1.0, 2.0], [0.5, -1.0]).requires_grad_()
    contrastive_losses(v, torch.tensor([0, 1]), 0.1).sum().backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    assert v.grad.abs().max() == 0


@pytest.fixture
def experience(table: Callable[..., Any]) -> Callable[..., Experience]:
    def make(index: int, x: Tensor, y: list[int]) -> Experience:
        return Experience(index, table(x, torch.tensor(y)))

    return make


X = numbers([1.0, 0.5], [0.8, 0.9], [0.2, -1.0])


def test_rows_stand_twice_in_the_batch_and_are_remembered_once(experience: Callable[..., Experience]) -> None:
    scr = Doubled(MEMORY, n_replay=2)
    sgd = learner({"scr": scr})
    list(sgd.learn(experience(0, X, [0, 0, 1])))
    assert len(scr.memory) == scr.memory.seen == 3
    list(sgd.learn(experience(1, X + 1, [2, 2, 3])))
    assert scr.memory.seen == 6
    first, second = scr.mixed
    assert (len(first), first.arrived, len(second), second.arrived) == (6, 3, 10, 3)
    for batch in (first, second):
        half = len(batch) // 2
        assert torch.equal(batch.x[:half], batch.x[half:])
        assert torch.equal(batch.y[:half], batch.y[half:])
        close(batch.weight, torch.full((len(batch),), 1 / len(batch), dtype=DOUBLE))
    assert torch.equal(second.x[:3], X + 1)
    assert second.extra["id"].tolist() == [0, 1, 2]


def test_an_update_follows_the_gradient_of_the_mean(experience: Callable[..., Experience]) -> None:
    scr = Doubled(MEMORY, n_replay=2, temperature=0.5)
    sgd = learner({"scr": scr})
    body, head = sgd.network.get_submodule("model.body"), sgd.network.get_submodule("model.head")
    before = [p.detach().clone() for p in (*body.parameters(), *scr.projection.parameters())]
    kept = [p.detach().clone() for p in head.parameters()]
    w, b, p = (tensor.clone().requires_grad_() for tensor in before)
    twice, y = torch.cat([X, X]), torch.tensor([0, 0, 1, 0, 0, 1])
    loss = contrastive_losses((twice @ w.T + b) @ p.T, y, 0.5).mean()
    gradients = torch.autograd.grad(loss, (w, b, p))
    list(sgd.learn(experience(0, X, [0, 0, 1])))
    after = [*body.parameters(), *scr.projection.parameters()]
    for now, then, gradient in zip(after, before, gradients, strict=True):
        assert gradient.abs().max() > 0
        close(now.detach(), then - 0.1 * gradient)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), kept, strict=True)), "it is not trained"
    close(scr.losses[0].detach(), by_loop((twice @ before[0].T + before[1]) @ before[2].T, y, 0.5))


def test_answers_are_the_nearest_class_means_of_the_memory(experience: Callable[..., Experience]) -> None:
    scr = Doubled(MEMORY, n_replay=2)
    sgd = learner({"scr": scr}, batch_size=1)
    held, asked = list[int](), X * 2
    for _ in sgd.learn(experience(0, X, [0, 0, 1])):
        held.append(len(scr.memory))
        x, y = scr.memory.columns["x"][: held[-1]], scr.memory.columns["y"][: held[-1]]
        expected = nearest(sgd.network(asked).features, *class_means(sgd.network(x).features, y, 4))
        spent = sgd.cost().forward_equivalents
        close(sgd.predict(asked), expected.detach())
        assert sgd.cost().forward_equivalents == spent, "answers are not charged"
    assert held == [1, 2, 3]
    stored, said = copy.deepcopy(sgd.state_dict()), sgd.predict(asked)
    list(sgd.learn(experience(1, X - 1, [1, 2, 3])))
    assert not torch.equal(sgd.predict(asked), said)
    sgd.load_state_dict(stored)
    assert torch.equal(sgd.predict(asked), said)


def test_with_an_augmentation_the_views_differ(experience: Callable[..., Experience]) -> None:
    """Each copy is changed by itself, and what is remembered is the row as it arrived."""
    seen = list[Tensor]()

    class Seeing(SCR):
        def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
            seen.append(batch.x)
            return super().rows(view, batch, out, rows)

    spec = Spec((1, 4, 4), 4)
    scr = Seeing(MEMORY, n_replay=2)
    images = torch.arange(48.0).view(3, 1, 4, 4) + 1
    flat = lambda spec: nn.Sequential(nn.Flatten(), Split())  # noqa: E731
    sgd = learner({"scr": scr}, flat, spec=spec, augment=CropFlip(crop=1))
    list(sgd.learn(experience(0, images, [0, 0, 1])))
    assert not torch.equal(seen[0][:3], seen[0][3:])
    assert torch.equal(scr.memory.columns["x"][:3], images)


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Output:
        return Output(self.head(x), x)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SCR(MEMORY, n_replay=-1), "n_replay=-1 must be at least 0"),
    (lambda: SCR(MEMORY, temperature=0), "strategy.scr.temperature=0 must be above 0"),
    (lambda: SCR(MEMORY, n_projected=0), "strategy.scr.n_projected=0 must be at least 1"),
    (lambda: learner({"scr": Doubled(partial(Reservoir, 6, store="indices"))}), "store=indices cannot answer"),
    (lambda: learner({"scr": SCR(MEMORY)}, lambda spec: nn.Linear(2, 4, dtype=DOUBLE)), "reads the network's features"),
    (lambda: learner({"scr": Doubled(MEMORY), "icarl": ICaRL()}), "both decide the loss"),
])  # fmt: skip
def test_mistakes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_it_stands_beside_experience_replay() -> None:
    learner({"er": ER(MEMORY), "scr": Doubled(MEMORY)})
