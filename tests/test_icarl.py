"""iCaRL and answers by class means, against numbers worked out by hand.

The model has two features, the numbers x themselves, and logits W x: with the sigmoid losses of iCaRL the gradient of a
row of W is sum_b share_b (sigmoid(z_bc) - t_bc) x_b.
"""

import copy
from collections.abc import Callable
from functools import partial
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from continual.class_means import class_means, nearest
from continual.errors import UserError
from continual.exemplars import Exemplars
from continual.herding import herd
from continual.learner import SGDLearner
from continual.step import MASKED
from continual.strategies.icarl import ICaRL, binary_losses
from continual.types import Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((2,), 4, dtype=DOUBLE)
LR = 0.1


def numbers(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


class Plane(nn.Module):
    """Features x (B, 2), logits x W^T (B, 4)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers([0.3, -0.2], [0.5, 0.1], [-0.4, 0.2], [0.7, 0.6]))

    def forward(self, x: Tensor) -> Output:
        return Output(x @ self.weight.T, x)


class Tilted(Plane):
    """Features that depend on the weights."""

    def forward(self, x: Tensor) -> Output:
        return Output(tilted(self.weight, x), x * self.weight[:2].sum(0))


def tilted(w: Tensor, x: Tensor) -> Tensor:
    return x * w[:2].sum(0) @ w.T


def learner(strategy: ICaRL, model: Callable[[Spec], nn.Module] = Plane, **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 10} | options
    return SGDLearner(model, partial(torch.optim.SGD, lr=LR), {"icarl": strategy}, **chosen)


@pytest.fixture
def experience(table: Callable[..., Any]) -> Callable[..., Experience]:
    def make(index: int, x: Tensor, y: list[int]) -> Experience:
        return Experience(index, table(x, torch.tensor(y)))

    return make


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def gradient(w: Tensor, x: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """(4, 2) of the mean over rows of the sum over ``classes`` of the binary cross-entropy."""
    away = (torch.sigmoid(x @ w.T) - targets) * classes
    return away.T @ x / len(x)


def weight(sgd: SGDLearner) -> Tensor:
    return sgd.view.params["model.weight"].detach().clone()


# ---------------------------------------------------------------- answers by class means


def test_class_means_by_hand() -> None:
    """Class 0: directions (0.6, 0.8) and (1, 0), mean (0.8, 0.4); class 2: (0, -1), whatever its length."""
    means, known = class_means(numbers([3, 4], [2, 0], [0, -7]), torch.tensor([0, 0, 2]), 3)
    close(means, numbers([0.8 / sqrt(0.8), 0.4 / sqrt(0.8)], [0, 0], [0, -1]))
    assert known.tolist() == [True, False, True]
    logits = nearest(numbers([0, 2], [-1, 0]), means, known)
    far = 2 - 2 * 0.4 / sqrt(0.8)  # |u - m|^2 = 2 - 2 u m for lengths of 1
    close(logits, numbers([-far, MASKED, -4], [-2 - 2 * 0.8 / sqrt(0.8), MASKED, -2]))


def test_features_without_a_direction_are_no_nan() -> None:
    means, known = class_means(numbers([0, 0], [0, 1]), torch.tensor([0, 1]), 2)
    close(nearest(numbers([0, 0], [0, 2]), means, known), numbers([0, -1], [-1, 0]))


def test_exemplars_hold_what_they_were_last_given() -> None:
    held = Exemplars(3, spec=Spec((2,), 4, torch.uint8), seed=0)
    held.refill(torch.arange(8, dtype=torch.uint8).view(4, 2), torch.tensor([0, 1, 2, 3]))
    assert (len(held), held.columns["y"].tolist()) == (3, [0, 1, 2])
    held.refill(torch.full((2, 2), 9, dtype=torch.uint8), torch.tensor([3, 3]))
    slots = torch.arange(len(held))
    assert held.column("x", slots).tolist() == [[9, 9], [9, 9]]
    assert held.column("y", slots).tolist() == [3, 3]
    assert sorted(held.draw(10).tolist()) == [0, 1]


# ---------------------------------------------------------------- the loss


def test_binary_losses_by_hand() -> None:
    """Old class 0 is taught sigmoid(log 3) = 3/4, new classes 1 and 2 by the label, class 3 has not arrived."""
    logits, taught = numbers([0.0, log(2), -log(4), 5.0]), numbers([log(3), 9.0, 9.0, 9.0])
    old, arrived = torch.tensor([True, False, False, False]), torch.tensor([True, True, True, False])
    rows = binary_losses(logits, torch.tensor([1]), taught, old, arrived)
    close(rows, numbers(log(2) - log(2 / 3) - log(4 / 5)))  # -log sigmoid(log 2) and -log(1 - sigmoid(-log 4))
    of_old = binary_losses(logits, torch.tensor([0]), taught, old, arrived)
    close(of_old, numbers(log(2) - log(1 / 3) - log(4 / 5)))
    other = binary_losses(numbers([log(2), 0, 0, 0]), torch.tensor([0]), taught, old, old)
    close(other, numbers(-0.75 * log(2 / 3) - 0.25 * log(1 / 3)))


X1 = numbers([1.0, 0.5], [0.8, 0.9], [0.2, -1.0], [0.1, -0.7])
X2 = numbers([-1.0, 0.3], [-0.9, 0.1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_two_experiences_by_hand(temperature: float, experience: Callable[..., Experience]) -> None:
    """Two rows a class are kept, all of them replayed; rows of old classes are taught, old labels no longer count."""
    icarl = ICaRL(capacity=8, n_per_class=2, n_replay=10, temperature=temperature)
    sgd = learner(icarl)
    w, y1 = weight(sgd), torch.tensor([0, 0, 1, 1])
    list(sgd.learn(experience(0, X1, y1.tolist())))
    w = w - LR * gradient(w, X1, torch.eye(4, dtype=DOUBLE)[y1], numbers(1, 1, 0, 0))
    close(weight(sgd), w)
    assert len(icarl.exemplars) == 4
    list(sgd.learn(experience(1, X2, [2, 2])))
    x = torch.cat([X2, X1])
    targets = torch.sigmoid(x @ w.T / temperature)  # of the network after the first experience
    targets[:, 2] = numbers(1, 1, 0, 0, 0, 0)
    close(weight(sgd), w - LR * gradient(w, x, targets, numbers(1, 1, 1, 0)))
    means, known = class_means(x, torch.tensor([2, 2, 0, 0, 1, 1]), 4)
    close(sgd.predict(X1), nearest(X1, means, known))
    assert sgd.predict(X1)[:, 3].unique().tolist() == [MASKED]


def test_the_old_network_teaches_as_it_was(experience: Callable[..., Experience]) -> None:
    """Several updates of weights that all classes share: the targets stay those from before all of them."""
    sgd = learner(ICaRL(capacity=8, n_per_class=2, n_replay=10), Tilted)
    list(sgd.learn(experience(0, X1, [0, 0, 1, 1])))
    sgd.iterations, w, x = 3, weight(sgd), torch.cat([X2, X1])
    targets = torch.sigmoid(tilted(w, x)[:, :3])
    targets[:, 2] = numbers(1, 1, 0, 0, 0, 0)
    for _ in range(3):
        w = w.requires_grad_()
        loss = binary_cross_entropy_with_logits(tilted(w, x)[:, :3], targets, reduction="sum") / 6
        w = (w - LR * torch.autograd.grad(loss, w)[0]).detach()
    list(sgd.learn(experience(1, X2, [2, 2])))
    close(weight(sgd), w)


def test_a_class_that_comes_again_counts_as_new(experience: Callable[..., Experience]) -> None:
    icarl = ICaRL(capacity=8, n_replay=0)
    sgd = learner(icarl)
    list(sgd.learn(experience(0, X1, [0, 0, 1, 1])))
    w = weight(sgd)
    list(sgd.learn(experience(1, X2, [1, 1])))
    targets = torch.sigmoid(X2 @ w.T)
    targets[:, 1] = 1
    close(weight(sgd), w - LR * gradient(w, X2, targets, numbers(1, 1, 0, 0)))
    both = torch.cat([X1[2:][herd(unit(X1[2:]), 2)], X2])  # exemplars in their order, then the new rows
    assert rows_of(icarl, 1) == both[herd(unit(both), 4)].tolist()


# ---------------------------------------------------------------- exemplars


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def rows_of(icarl: ICaRL, label: int) -> list[list[float]]:
    slots = (icarl.exemplars.columns["y"][: len(icarl.exemplars)] == label).nonzero()[:, 0]
    rows: list[list[float]] = icarl.exemplars.column("x", slots).tolist()
    return rows


def test_classes_share_the_capacity_and_keep_their_first(experience: Callable[..., Experience]) -> None:
    """Six rows: three for each of two classes, then two for each of three, the first two of the three before."""
    icarl = ICaRL(capacity=6)
    sgd = learner(icarl)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(10, 2, generator=draws, dtype=DOUBLE)
    list(sgd.learn(experience(0, x, [0, 1] * 5)))
    expected = {c: x[c::2][herd(unit(x[c::2]), 3)].tolist() for c in (0, 1)}
    assert {c: rows_of(icarl, c) for c in (0, 1)} == expected
    new = torch.randn(4, 2, generator=draws, dtype=DOUBLE)
    list(sgd.learn(experience(1, new, [2] * 4)))
    assert {c: rows_of(icarl, c) for c in (0, 1)} == {c: rows[:2] for c, rows in expected.items()}
    assert rows_of(icarl, 2) == new[herd(unit(new), 2)].tolist()


def test_a_class_has_at_most_its_own_budget(experience: Callable[..., Experience]) -> None:
    icarl = ICaRL(capacity=6, n_per_class=1)
    list(learner(icarl).learn(experience(0, X1, [0, 0, 1, 1])))
    assert icarl.exemplars.columns["y"][: len(icarl.exemplars)].tolist() == [0, 1]


def test_directions_are_herded_not_lengths(experience: Callable[..., Experience]) -> None:
    """The mean is (0.08, 0.02) at length 1, nearest to (1, 0), and (2/3, 1/3) as it is, nearest to (-1, -2)."""
    icarl = ICaRL(capacity=4)
    x = numbers([4.0, 0.0], [-1.0, -2.0], [-1.0, 3.0])
    assert herd(x, 1).tolist() == [1]
    list(learner(icarl).learn(experience(0, x, [0, 0, 0])))
    assert rows_of(icarl, 0)[0] == [4.0, 0.0]


def test_exemplars_mix_evenly_into_the_rows(experience: Callable[..., Experience]) -> None:
    """4 exemplars beside 5 rows: ceil(4 * 2 / 5) = 2 with two rows, and ceil(4 / 5) = 1 with the last one."""
    icarl = ICaRL(capacity=4)
    sgd = learner(icarl, batch_size=2)
    list(sgd.learn(experience(0, X1, [0, 0, 1, 1])))
    draw, sizes = icarl.exemplars.draw, list[int]()
    icarl.exemplars.draw = lambda n, among=None: (sizes.append(n), draw(n, among))[1]  # type: ignore[method-assign,func-returns-value]
    list(sgd.learn(experience(1, torch.cat([X2, X2, X2])[:5], [2] * 5)))
    assert sizes == [2, 2, 1]


def test_bytes_are_those_of_the_stream(experience: Callable[..., Experience]) -> None:
    icarl = ICaRL(capacity=10 * (784 + 8) + 5, unit="bytes")
    learner(icarl, lambda spec: Features(784), spec=Spec((784,), 4, torch.uint8))
    assert icarl.exemplars.columns["x"].shape == (10, 784)
    assert icarl.exemplars.columns["x"].dtype == torch.uint8


class Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Output:
        return Output(self.head(x), x)


def test_answers_follow_the_network(experience: Callable[..., Experience]) -> None:
    """Means that were derived for an answer are not those of the next update, nor of a state that is loaded."""
    icarl = ICaRL(capacity=8, n_replay=2)
    sgd = learner(icarl, Tilted, batch_size=1)
    list(sgd.learn(experience(0, X1, [0, 0, 1, 1])))
    said, stored = sgd.predict(X1), copy.deepcopy(sgd.state_dict())
    cost = sgd.cost().forward_equivalents
    for _ in sgd.learn(experience(1, X2, [2, 2])):
        held = [icarl.exemplars.columns[name][:4] for name in ("x", "y")]
        features = [sgd.network(rows).features.detach() for rows in (held[0], X1)]
        before = sgd.cost().forward_equivalents
        close(sgd.predict(X1), nearest(features[1], *class_means(features[0], held[1], 4)))
        assert sgd.cost().forward_equivalents == before > cost, "answers are not charged"
    assert bool((sgd.predict(X1)[:, 2] > MASKED).all()), "exemplars of the second experience answer now"
    sgd.load_state_dict(stored)
    assert torch.equal(sgd.predict(X1), said)


def test_before_there_are_exemplars_the_network_answers(experience: Callable[..., Experience]) -> None:
    sgd = learner(ICaRL())
    w = weight(sgd)
    close(sgd.predict(X1), X1 @ w.T)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("options", "message"), [
    ({"n_replay": -1}, "strategy.icarl.n_replay=-1 must be at least 0"),
    ({"temperature": 0}, "strategy.icarl.temperature=0 must be above 0"),
    ({"n_per_class": 0}, "strategy.icarl.n_per_class=0 must be at least 1"),
    ({"capacity": 3}, "capacity=3 rows holds 3 rows, and 4 classes need 4; raise it"),
    ({"capacity": 100, "unit": "bytes"}, "capacity=100 bytes holds 4 rows, and 4 classes need 8; .* n_per_class=2"),
    ({"unit": "kilo"}, "unit='kilo' is unknown"),
])  # fmt: skip
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    given = options | ({"n_per_class": 2} if options.get("unit") == "bytes" else {})
    with pytest.raises(UserError, match=message):
        learner(ICaRL(**given))


def test_a_model_without_features_and_a_stream_without_boundaries_are_refused() -> None:
    with pytest.raises(UserError, match="reads the network's features"):
        learner(ICaRL(), lambda spec: nn.Linear(2, 4, dtype=DOUBLE))
    with pytest.raises(UserError, match="needs task boundaries"):
        learner(ICaRL(), spec=Spec((2,), 4, dtype=DOUBLE, boundaries=False))
