"""Replay: what is remembered and when, which rows are drawn, how they are weighed, and what gradients become.

The three-parameter model is logits = (w_0 x, w_1 x, w_2 x) for a number x: every gradient can be written down.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.errors import UserError
from continual.herding import herd
from continual.learner import SGDLearner
from continual.memory import ClassBalanced, Herding, Memory, Reservoir, Ring
from continual.strategies.er import ER
from continual.strategy import Strategy
from continual.types import Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((1,), 3, dtype=DOUBLE, n_experiences=3)
ONLINE = Spec((1,), 3, dtype=DOUBLE, boundaries=False)
LR = 0.1
X, Y = [0.5, -1.0, 2.0, 1.5], [0, 1, 0, 1]

Arrival = Callable[..., Experience]
Model = Callable[[Spec], torch.nn.Module]


@pytest.fixture
def learner(three: Model) -> Callable[..., SGDLearner]:
    """``learner(strategy, batch_size=4, ...)`` with the three-parameter model."""

    def make(strategy: Strategy | None = None, model: Model = three, **options: Any) -> SGDLearner:
        chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 4} | options
        strategies = {} if strategy is None else {"s": strategy}
        return SGDLearner(model, partial(torch.optim.SGD, lr=LR), strategies, **chosen)

    return make


def weights(sgd: SGDLearner) -> Tensor:
    """(3,) of the three-parameter model."""
    return sgd.view.params["model.weight"].detach()[:, 0].clone()


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


def loss(w: Tensor, x: list[float], y: list[int]) -> Tensor:
    """(B,) cross-entropy of each row, written out."""
    logits = numbers(*x)[:, None] * w
    return logits.exp().sum(1).log() - logits[range(len(y)), y]


def slope(w: Tensor, x: list[float], y: list[int]) -> Tensor:
    """(3,) d/dw of the mean cross-entropy: mean_b x_b (p_bc - 1[y_b = c])."""
    p = torch.softmax(numbers(*x)[:, None] * w, dim=1)
    p[range(len(y)), y] -= 1
    return (numbers(*x)[:, None] * p).mean(0)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def contents(memory: Memory) -> list[float]:
    slots = torch.arange(len(memory))
    x: list[float] = sorted(memory.column("x", slots)[:, 0].tolist())
    return x


def row_of(x: float) -> tuple[list[float], list[int]]:
    return [x], [Y[X.index(x)]]


# ---------------------------------------------------------------- when rows are remembered


def test_remembering_at_the_end_takes_every_row_once_however_many_epochs(learner: Any, arrival: Arrival) -> None:
    each, once = ER(partial(Reservoir, 100)), ER(partial(Reservoir, 100), remember="end")
    for er in (each, once):
        sgd = learner(er, batch_size=2, epochs=3)
        updates = sgd.learn(arrival(0, X, Y))
        for _ in range(6):
            next(updates)
        assert len(er.memory) == (12 if er is each else 0)
        assert list(updates) == []
    assert contents(each.memory) == sorted(X * 3)
    assert contents(once.memory) == sorted(X)


def test_a_ring_filled_at_the_end_holds_random_rows_of_each_class(learner: Any, arrival: Arrival) -> None:
    """Not the last ones of the stream: which rows of a class stay depends on the seed alone."""
    x = [float(i) for i in range(40)]
    kept = []
    for seed in (0, 0, 1):
        er = ER(partial(Ring, 30), remember="end", seed=seed)
        list(learner(er).learn(arrival(0, x, [0, 1] * 20)))
        assert er.memory.columns["y"][: len(er.memory)].bincount().tolist() == [10, 10]
        kept.append(contents(er.memory))
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]
    assert min(kept[0]) < 20, "the ring of a single pass would hold 20, 21, ... 39"


def test_the_batch_protocol_of_a_hundred_rows_per_class(learner: Any, arrival: Arrival) -> None:
    """remember=end with any policy that shares by class stores as many rows of each class of each task."""
    for kind in (Ring, ClassBalanced):
        er = ER(partial(kind, 12), n_replay=128, remember="end", weighting="tasks")
        sgd = learner(er, batch_size=8, iterations=5)
        for index in range(3):
            list(sgd.learn(arrival(index, [0.1 * i for i in range(20)], [index] * 20)))
        assert er.memory.columns["y"].bincount().tolist() == [4, 4, 4]


def test_an_excluded_experience_is_known_to_rows_remembered_at_its_end(learner: Any, arrival: Arrival) -> None:
    er = ER(partial(Reservoir, 100), exclude_current=True, remember="end")
    sgd = learner(er)
    for index in range(2):
        list(sgd.learn(arrival(index, X, Y)))
    assert er.memory.columns["experience"][:8].tolist() == [0] * 4 + [1] * 4


# ---------------------------------------------------------------- weighting


def test_weighting_by_tasks_in_numbers(learner: Any, arrival: Arrival) -> None:
    """L = 1/t L_arrived + (1 - 1/t) L_replayed: 1 and 0, then 1/2 and 1/2, then 1/3 and 2/3."""
    er = ER(partial(Reservoir, 100), n_replay=100, remember="end", weighting="tasks")
    sgd, w = learner(er), numbers(0.3, -0.2, 0.5)
    arrivals = [(X, Y), ([1.0, -0.5, 3.0], [2, 1, 2]), ([0.7, 0.1], [2, 0])]
    old_x: list[float] = []
    old_y: list[int] = []
    for index, (x, y) in enumerate(arrivals):
        new = slope(w, x, y)
        w = w - LR * (new if not old_x else new / (index + 1) + slope(w, old_x, old_y) * index / (index + 1))
        list(sgd.learn(arrival(index, x, y)))
        close(weights(sgd), w)
        old_x, old_y = old_x + x, old_y + y


def test_a_strength_takes_the_place_of_the_weighting(learner: Any, arrival: Arrival) -> None:
    both = []
    for weighting in ("rows", "tasks"):
        sgd = learner(ER(partial(Reservoir, 100), strength=0.7, weighting=weighting), batch_size=2)
        for index in range(2):
            list(sgd.learn(arrival(index, X, Y)))
        both.append(weights(sgd))
    assert torch.equal(*both)


# ---------------------------------------------------------------- herding


def featured(spec: Spec) -> torch.nn.Module:
    """Features (x, 1), whose direction tells x."""

    class Featured(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 3, dtype=DOUBLE)

        def forward(self, x: Tensor) -> Output:
            features = torch.cat([x, torch.ones_like(x)], dim=1)
            return Output(self.head(features), features)

    return Featured()


def test_herding_stores_what_is_nearest_to_the_mean_of_features(learner: Any, arrival: Arrival) -> None:
    """4 of 20 rows of each class; those that the pure function prefers among the class's unit features."""
    er = ER(partial(Herding, 12), remember="end")
    sgd = learner(er, featured)
    draws = torch.Generator().manual_seed(0)
    for index in range(2):
        x, y = torch.randn(20, generator=draws, dtype=DOUBLE).tolist(), [2 * index, 1] * 10
        list(sgd.learn(arrival(index, x, y)))
        for label in {2 * index, 1}:
            own = numbers(*[value for value, of in zip(x, y, strict=True) if of == label])
            unit = torch.stack([own, torch.ones_like(own)], dim=1)
            chosen = own[herd(unit / unit.norm(dim=1, keepdim=True), 4)]
            stored = er.memory.columns["x"][: len(er.memory), 0][er.memory.columns["y"][: len(er.memory)] == label]
            assert sorted(stored.tolist()) == sorted(chosen.tolist())


def test_herding_pays_a_forward_pass_for_each_row(learner: Any, arrival: Arrival) -> None:
    spent = []
    for kind in (Ring, Herding):
        sgd = learner(ER(partial(kind, 12), n_replay=0, remember="end"), featured)
        list(sgd.learn(arrival(0, X, Y)))
        spent.append(sgd.cost().forward_equivalents)
    assert spent == [12, 16]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ER(partial(Reservoir, 4), n_replay=-1), r"strategy.er.n_replay=-1 must be at least 0"),
    (lambda: ER(partial(Reservoir, 4), strength=-0.5), r"strategy.er.strength=-0.5 must be at least 0"),
    (lambda: ER(partial(Reservoir, 4), remember="never"), r"strategy.er.remember='never' is unknown"),
    (lambda: ER(partial(Reservoir, 4), weighting="task"), r"strategy.er.weighting='task' is unknown"),
])  # fmt: skip
def test_wrong_values_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("strategy", "message"), [
    (lambda: ER(partial(Reservoir, 4), weighting="tasks"), r"er.weighting=tasks counts tasks, and this stream hides"),
    (lambda: ER(partial(Reservoir, 4), exclude_current=True), r"exclude_current=true needs task boundaries"),
    (lambda: ER(partial(Herding, 4)), r"strategy.er.remember=end"),
    (lambda: ER(partial(Herding, 4), remember="end"), r"this model tells none"),
    (lambda: ER(partial(Ring, 2)), r"at least 1 row for each of 3 classes"),
])  # fmt: skip
def test_what_cannot_work_on_a_stream_is_refused_at_the_start(
    learner: Any, strategy: Callable[[], Strategy], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        learner(strategy(), spec=ONLINE)
