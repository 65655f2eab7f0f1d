"""Replay: what is remembered and when, which rows are drawn, how they are weighed, and what gradients become.

The three-parameter model is logits = (w_0 x, w_1 x, w_2 x) for a number x: every gradient can be written down.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.errors import UserError
from continual.herding import herd
from continual.learner import SGDLearner
from continual.memory import FIFO, ClassBalanced, Herding, Memory, Reservoir, Ring
from continual.strategies.agem import AGEM, projected
from continual.strategies.der import DER
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.gem import GEM, feasible
from continual.strategies.loss_balanced_er import LossBalancedER, losses
from continual.strategies.mir import MIR, row_losses, virtual_step
from continual.strategies.rar import RAR
from continual.strategies.use_balanced_er import UseBalancedER
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output, Spec

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


def test_logits_remembered_at_the_end_are_those_of_then_and_cost_a_pass(learner: Any, arrival: Arrival) -> None:
    each, once = DERPP(partial(Reservoir, 100)), DERPP(partial(Reservoir, 100), remember="end")
    experience = arrival(0, X, Y)
    for strategy in (each, once):
        sgd = learner(strategy, batch_size=2)
        list(sgd.learn(experience))
        slots = torch.arange(len(strategy.memory))
        x, kept = strategy.memory.column("x", slots), strategy.memory.column("logits", slots)
        now = (x * weights(sgd)).float()
        assert torch.allclose(kept, now, rtol=1e-6) == (strategy is once)
        assert len(slots) == 4
    spent = sgd.cost().forward_equivalents
    assert spent == 3 * 4 + 4  # nothing was replayed: the memory was empty


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


# ---------------------------------------------------------------- dark experience replay


def test_der_by_hand(learner: Any, arrival: Arrival) -> None:
    """L = mean CE of the arrived + strength mean (z - z*)^2 over four replayed rows and three classes."""
    sgd, w0 = learner(DER(partial(Reservoir, 10), n_replay=10, strength=0.7)), numbers(0.3, -0.2, 0.5)
    list(sgd.learn(arrival(0, X, Y)))
    w1 = w0 - LR * slope(w0, X, Y)
    close(weights(sgd), w1)
    list(sgd.learn(arrival(1, [1.0, -0.5, 3.0], [2, 1, 2])))
    stored = (numbers(*X)[:, None] * w0).float().double()  # kept as float32, of before the update
    pull = (2 / 12) * ((numbers(*X)[:, None] * w1 - stored) * numbers(*X)[:, None]).sum(0)
    close(weights(sgd), w1 - LR * (slope(w1, [1.0, -0.5, 3.0], [2, 1, 2]) + 0.7 * pull))


# ---------------------------------------------------------------- maximally interfered retrieval


@pytest.mark.parametrize("strength", [1.0, 0.5, None])
@pytest.mark.parametrize(("new_x", "new_y"), [([3.0, 1.0], [2, 0]), ([2.0, 0.5], [0, 0])])
def test_mir_replays_the_row_that_a_step_would_hurt_most(
    learner: Any, arrival: Arrival, strength: float | None, new_x: list[float], new_y: list[int]
) -> None:
    sgd, w = learner(MIR(partial(Reservoir, 9), n_replay=1, n_candidates=9, strength=strength)), numbers(0.3, -0.2, 0.5)
    list(sgd.learn(arrival(0, X, Y)))
    w = w - LR * slope(w, X, Y)
    hurt = loss(w - LR * slope(w, new_x, new_y), X, Y) - loss(w, X, Y)
    list(sgd.learn(arrival(1, new_x, new_y)))
    chosen, new = row_of(X[int(hurt.argmax())]), slope(w, new_x, new_y)
    old = slope(w, *chosen)
    close(weights(sgd), w - LR * ((2 * new + old) / 3 if strength is None else new + strength * old))


def test_the_virtual_step_is_on_the_mean_of_the_arrived_rows_and_is_not_made(learner: Any) -> None:
    sgd, w = learner(), numbers(0.3, -0.2, 0.5)
    share = torch.full((4,), 0.1, dtype=DOUBLE)  # as another strategy may have left them
    batch = Batch(numbers(*X)[:, None], torch.tensor(Y), share, arrived=3)
    close(virtual_step(sgd.view, batch)["model.weight"][:, 0], w - LR * slope(w, X[:3], Y[:3]))
    assert torch.equal(weights(sgd), w)
    assert sgd.cost().forward_equivalents == 9


def test_the_choice_of_mir_depends_on_what_arrived(arrival: Arrival) -> None:
    """As the two cases of the test above: else it would pass with a rule that looks at the memory alone."""
    w = numbers(0.3, -0.2, 0.5)
    w = w - LR * slope(w, X, Y)
    hurt = [
        loss(w - LR * slope(w, x, y), X, Y) - loss(w, X, Y) for x, y in (([3.0, 1.0], [2, 0]), ([2.0, 0.5], [0, 0]))
    ]
    assert hurt[0].argmax() != hurt[1].argmax()
    assert all(h.argmax() != loss(w, X, Y).argmax() for h in hurt[:1])


def test_mir_pays_for_its_virtual_step_and_for_its_candidates(learner: Any, arrival: Arrival) -> None:
    """A batch of 2: 3 * 2 for itself, 3 * 2 for the virtual step, 2 * 3 for candidates, 3 for the replayed row."""
    sgd = learner(MIR(partial(Reservoir, 9), n_replay=1, n_candidates=3), batch_size=4)
    list(sgd.learn(arrival(0, X, Y)))
    assert sgd.cost().forward_equivalents == 12
    list(sgd.learn(arrival(1, [1.0, 2.0], [0, 2])))
    assert sgd.cost().forward_equivalents == 12 + 6 + 6 + 6 + 3


def test_mir_scores_nothing_while_all_candidates_are_replayed(learner: Any, arrival: Arrival) -> None:
    sgd = learner(MIR(partial(Reservoir, 9), n_replay=10, n_candidates=50))
    for index in range(2):
        list(sgd.learn(arrival(index, X, Y)))
    assert sgd.cost().forward_equivalents == 12 + 24


def test_mir_leaves_out_the_current_experience(learner: Any, arrival: Arrival) -> None:
    drawn: list[list[int]] = []

    class Spy(MIR):
        def draw(self, view: View, batch: Batch) -> Tensor:
            slots = super().draw(view, batch)
            drawn.append(self.memory.columns["experience"][slots].tolist())
            return slots

    sgd = learner(Spy(partial(Reservoir, 100), n_replay=1, n_candidates=9, exclude_current=True), batch_size=2)
    for index in range(3):
        list(sgd.learn(arrival(index, X, Y)))
    assert drawn[:4] == [[], [], [0], [0]]
    assert {row for draw in drawn[4:] for row in draw} <= {0, 1}


@pytest.mark.parametrize("head", ["all", "seen"])
def test_losses_of_rows_are_those_of_eval_mode_under_the_head(learner: Any, arrival: Arrival, head: str) -> None:
    def noisy(spec: Spec) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(), torch.nn.Linear(4, 3)
        ).double()

    sgd = learner(None, noisy, head=head)
    list(sgd.learn(arrival(0, X, Y)))
    before, spent = {k: v.clone() for k, v in sgd.network.state_dict().items()}, sgd.cost().forward_equivalents
    batch = Batch(numbers(*X)[:, None], torch.tensor(Y), torch.ones(4, dtype=DOUBLE), arrived=0)
    found = row_losses(sgd.view, sgd.view.params, batch)
    logits = sgd.network.eval()(batch.x).logits.detach()[:, : 3 if head == "all" else 2]
    close(found, logits.exp().sum(1).log() - logits[range(4), Y])
    assert all(torch.equal(value, before[name]) for name, value in sgd.network.state_dict().items())
    assert sgd.cost().forward_equivalents == spent + 4
    assert not found.requires_grad


# ---------------------------------------------------------------- averaged gradient episodic memory


def test_the_projection_by_hand() -> None:
    """g = (1, 0 | 0), r = (-1, 1 | 1): g r = -1, r r = 3; a third of r is added: nothing is left against r."""
    g, r = {"a": numbers(1.0, 0.0), "b": numbers(0.0)}, {"a": numbers(-1.0, 1.0), "b": numbers(1.0)}
    found = projected(deepcopy(g), r)
    close(torch.cat([found["a"], found["b"]]), numbers(2 / 3, 1 / 3, 1 / 3))
    for other in (-1, 0):  # nothing is changed where they agree, nor by a reference of length 0
        same = projected(deepcopy(g), {name: other * value for name, value in r.items()})
        assert all(torch.equal(same[name], g[name]) for name in g)


@pytest.mark.parametrize(("new_x", "new_y", "against"), [([2.0, -1.0], [2, 2], True), ([0.5, 2.0], [0, 0], False)])
def test_agem_by_hand(learner: Any, arrival: Arrival, new_x: list[float], new_y: list[int], against: bool) -> None:
    sgd, w = learner(AGEM(partial(Reservoir, 9), n_replay=9), epochs=2), numbers(0.3, -0.2, 0.5)
    list(sgd.learn(arrival(0, X, Y)))
    for _ in range(2):
        w = w - LR * slope(w, X, Y)
    close(weights(sgd), w)  # nothing is remembered before the end of the experience
    list(sgd.learn(arrival(1, new_x, new_y)))
    for _ in range(2):
        g, r = slope(w, new_x, new_y), slope(w, X, Y)
        assert (torch.dot(g, r) < 0) == against
        w = w - LR * (g - torch.dot(g, r) / torch.dot(r, r) * r if against else g)
    close(weights(sgd), w)
    assert sgd.cost().forward_equivalents == 2 * 3 * 4 + 2 * 3 * (2 + 4)


# ---------------------------------------------------------------- gradient episodic memory


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_gem_with_one_constraint_by_hand(margin: float) -> None:
    """g = (1, 0), r = (-2, 1): v = 2/5 makes it orthogonal; a larger margin is the bound of v instead."""
    g, r = numbers(1.0, 0.0), numbers(-2.0, 1.0)
    close(feasible(g, r[None], margin), g + 0.4 * r)
    close(feasible(g, r[None], 0.7), g + 0.7 * r)
    assert feasible(g, -r[None], margin) is g, "no constraint is broken"


def test_gem_finds_the_nearest_gradient_that_breaks_no_constraint() -> None:
    """The conditions of Karush, Kuhn and Tucker, which no other point fulfils; with two constraints also each case."""
    draws = torch.Generator().manual_seed(0)
    broken = 0
    for trial in range(50):
        n = 2 if trial < 25 else 4
        rows, (g,) = (torch.randn(k, n + 1, generator=draws, dtype=DOUBLE) for k in (n, 1))
        found = feasible(g, rows, 0.0)
        v = torch.linalg.lstsq(rows.T, (found - g)[:, None]).solution[:, 0]
        torch.testing.assert_close(g + rows.T @ v, found)  # a sum of constraints is added
        assert (v >= -1e-9).all()
        assert (rows @ found >= -1e-9).all()
        assert (v * (rows @ found)).abs().max() < 1e-9  # only of those that would be broken
        broken += int((rows @ g < 0).any())
        if n == 2:
            close(found, nearest(g, rows))
    assert broken > 30


def nearest(g: Tensor, rows: Tensor) -> Tensor:
    """Of ``g`` and its projections across one or both rows of ``rows``: the nearest that breaks no constraint."""
    across = [g - a.T @ torch.linalg.solve(a @ a.T, a @ g) for a in (rows[:1], rows[1:], rows)]
    allowed = [point for point in (g, *across) if (rows @ point >= -1e-12).all()]
    return min(allowed, key=lambda point: float((point - g).norm()))


def test_constraints_that_repeat_or_vanish_are_borne() -> None:
    """Two equal ones act as one; one of length 0 does not act."""
    g, r = numbers(1.0, 0.0), numbers(-2.0, 1.0)
    for others in (r[None], 0 * r[None], torch.cat([r[None], 0 * r[None], 3 * r[None]])):
        found = feasible(g, torch.cat([r[None], others]), 0.0)
        torch.testing.assert_close(found, g + 0.4 * r, rtol=1e-9, atol=1e-9)


def test_gem_by_hand(learner: Any, arrival: Arrival) -> None:
    """Three experiences of a memory of 7: the last two rows of each one; two constraints in the third one."""
    gem = GEM(partial(Ring, 7), margin=0.0)
    sgd, w = learner(gem, batch_size=3), numbers(0.3, -0.2, 0.5)
    arrivals = [([0.5, -1.0, 2.0], [0, 1, 0]), ([1.0, 2.0, -0.7], [1, 1, 2]), ([2.0, -1.5, 1.0], [2, 0, 2])]
    changed = 0
    for index, (x, y) in enumerate(arrivals):
        g, earlier = slope(w, x, y), [slope(w, old_x[-2:], old_y[-2:]) for old_x, old_y in arrivals[:index]]
        rows = torch.stack([*earlier, *earlier][:2]) if earlier else torch.zeros(2, 3, dtype=DOUBLE)
        follow = nearest(g, rows) if index == 2 else g - float(torch.dot(g, rows[0]).clamp(max=0)) * unit(rows[0])
        changed += int(not torch.equal(follow, g))
        w = w - LR * follow
        list(sgd.learn(arrival(index, x, y)))
        torch.testing.assert_close(weights(sgd), w, rtol=1e-9, atol=1e-11)
    assert changed == 2
    assert sgd.cost().forward_equivalents == 3 * (3 + 3 + 2 + 3 + 4)
    list(sgd.learn(arrival(3, [0.1, 0.2, 0.3], [0, 0, 0])))  # more than announced: in the place of the first
    assert gem.memory.column("label", torch.arange(6)).tolist() == [0, 0, 2, 1, 2, 0]


def test_the_current_experience_is_no_constraint_of_itself(learner: Any, arrival: Arrival) -> None:
    """Two passes over 3 rows, then two over 3 rows beside the 2 remembered ones: seen by what it costs."""
    sgd = learner(GEM(partial(Ring, 7)), epochs=2)
    for index in range(2):
        list(sgd.learn(arrival(index, X[:3], Y[:3])))
    assert sgd.cost().forward_equivalents == 2 * 3 * 3 + 2 * 3 * (3 + 2)


def unit(r: Tensor) -> Tensor:
    """r / (r r), 0 for 0."""
    return r / torch.dot(r, r).clamp(min=1e-300)


# ---------------------------------------------------------------- repeated augmented rehearsal


def test_rar_by_hand(learner: Any, arrival: Arrival) -> None:
    """Three steps on each batch beside the rows of earlier ones; each row is remembered once."""
    rar = RAR(partial(Reservoir, 100), n_replay=100, n_repeats=3, strength=0.5)
    scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    sgd, w = learner(rar, batch_size=2, scheduler=scheduler), numbers(0.3, -0.2, 0.5)
    assert list(sgd.learn(arrival(0, X[:2], Y[:2]))) == [2]
    for _ in range(3):
        w = w - LR * slope(w, X[:2], Y[:2])
    close(weights(sgd), w)
    list(sgd.learn(arrival(1, X[2:], Y[2:])))
    for _ in range(3):
        w = w - LR / 2 * (slope(w, X[2:], Y[2:]) + 0.5 * slope(w, X[:2], Y[:2]))
    close(weights(sgd), w)
    assert contents(rar.memory) == sorted(X)
    assert sgd.cost().forward_equivalents == 3 * 3 * (2 + 4)


def test_beside_rar_every_memory_keeps_a_row_once(three: Model, arrival: Arrival) -> None:
    beside: list[Any] = [
        ER(partial(Reservoir, 99)),
        DER(partial(Reservoir, 99)),
        AGEM(partial(Reservoir, 99), remember="step"),
    ]
    strategies = {"rar": RAR(partial(Reservoir, 99), n_repeats=4)} | {type(s).__name__: s for s in beside}
    sgd = SGDLearner(three, partial(torch.optim.SGD, lr=LR), strategies, spec=SPEC, batch_size=2)
    list(sgd.learn(arrival(0, X, Y)))
    for s in beside:
        assert contents(s.memory) == sorted(X)


def test_each_repetition_draws_and_augments_anew(learner: Any, arrival: Arrival) -> None:
    class Shift:
        """Adds a number that grows from call to call."""

        calls = 0

        def __call__(self, batch: Batch) -> Tensor:
            self.calls += 1
            seen.append(batch.x[batch.arrived :, 0].tolist())
            return batch.x + self.calls

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: Any) -> None:
            self.calls = state["calls"]

    seen: list[list[float]] = []
    shift = Shift()
    sgd = learner(RAR(partial(Reservoir, 100), n_replay=2, n_repeats=5), augment=shift)
    list(sgd.learn(arrival(0, X, Y)))
    seen.clear()
    list(sgd.learn(arrival(1, X, Y)))
    assert shift.calls == 10
    assert len(seen) == 5
    assert len({tuple(sorted(draw)) for draw in seen}) > 1


# ---------------------------------------------------------------- unequal chances


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_chances_grow_with_the_loss(learner: Any, arrival: Arrival, exponent: float) -> None:
    er = LossBalancedER(partial(Reservoir, 9), n_replay=1, exponent=exponent)
    sgd = learner(er)
    list(sgd.learn(arrival(0, X, Y)))
    er.memory.columns["loss"][:4] = torch.tensor([1.0, 2.0, 0.0, 3.0])
    batch = arrival(1, X, Y).rows.take(torch.arange(4))
    counts = torch.zeros(4)
    for _ in range(2000):
        er.mix(sgd.view, batch)
        counts[er.slots] += 1
    expected = torch.tensor([1.0, 2.0, 1e-6, 3.0]) ** exponent
    share = expected / expected.sum()
    spread = (2000 * share * (1 - share)).sqrt()
    assert ((counts - 2000 * share).abs() <= 5 * spread + 1e-2).all(), counts


def test_a_loss_counts_the_classes_that_compete_and_its_own() -> None:
    logits, y = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], dtype=DOUBLE), torch.tensor([0, 2])
    competing = torch.tensor([[False, True, False], [True, False, True]])
    expected = torch.tensor([log(1 + exp(1)), log(1 + exp(-2))], dtype=DOUBLE)
    torch.testing.assert_close(losses(logits, y, competing), expected)
    torch.testing.assert_close(losses(logits, y, None), -logits.log_softmax(1)[[0, 1], y])


def test_losses_are_those_of_the_last_time_that_a_row_was_trained_on(three: Model, arrival: Arrival) -> None:
    """Also where another strategy asks for gradients of other rows in the same step, or puts rows in front."""
    known: dict[float, float] = {}
    refreshed: list[int] = []

    class Spy(LossBalancedER):
        def mix(self, view: View, batch: Batch) -> Batch:
            mixed = super().mix(view, batch)
            w = view.params["model.weight"].detach()[:, 0].clone()
            trained = torch.cat([mixed.x[: batch.arrived, 0], mixed.x[self.first :, 0]]).tolist()
            labels = torch.cat([mixed.y[: batch.arrived], mixed.y[self.first :]]).tolist()
            known.update(zip(trained, loss(w, trained, labels).tolist(), strict=True))
            refreshed.append(len(self.slots))
            return mixed

    er = Spy(partial(FIFO, 6), n_replay=2)
    others = {name: MIR(partial(Reservoir, 9), n_replay=1, seed=seed) for seed, name in enumerate(("before", "after"))}
    strategies = {"before": others["before"], "er": er, "after": others["after"], "agem": AGEM(partial(Reservoir, 9))}
    sgd = SGDLearner(three, partial(torch.optim.SGD, lr=LR), strategies, spec=SPEC, batch_size=2)
    for index in range(3):
        for _ in sgd.learn(arrival(index, [x + 0.01 * index for x in X], Y)):
            slots = torch.arange(len(er.memory))
            stored, x = er.memory.column("loss", slots), er.memory.column("x", slots)[:, 0].tolist()
            torch.testing.assert_close(stored, torch.tensor([known[value] for value in x]))
    assert refreshed == [0, 2, 2, 2, 2, 2]


def test_rows_are_replayed_in_turns_the_least_replayed_first(learner: Any, arrival: Arrival) -> None:
    er = UseBalancedER(partial(FIFO, 5), n_replay=2)
    sgd = learner(er)
    list(sgd.learn(arrival(0, X, Y)))
    batch = arrival(1, X, Y).rows.take(torch.arange(4))
    first: list[tuple[int, ...]] = []
    for turn in range(1, 21):
        mixed = er.mix(sgd.view, batch)
        uses = er.memory.columns["uses"][:4]
        assert uses.sum() == 2 * turn
        assert uses.max() - uses.min() <= 1
        if turn % 2:
            first.append(tuple(sorted(mixed.x[4:, 0].tolist())))
    assert len(set(first)) > 2, "ties are broken at random"
    list(sgd.learn(arrival(1, [7.0], [2])))
    assert sorted(er.memory.columns["uses"].tolist()) == [0, 10, 10, 11, 11], "a new row begins at 0"
    assert 7.0 in er.mix(sgd.view, batch).x[4:, 0].tolist(), "and comes first"


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ER(partial(Reservoir, 4), n_replay=-1), r"strategy.er.n_replay=-1 must be at least 0"),
    (lambda: ER(partial(Reservoir, 4), strength=-0.5), r"strategy.er.strength=-0.5 must be at least 0"),
    (lambda: ER(partial(Reservoir, 4), remember="never"), r"strategy.er.remember='never' is unknown"),
    (lambda: ER(partial(Reservoir, 4), weighting="task"), r"strategy.er.weighting='task' is unknown"),
    (lambda: DER(partial(Reservoir, 4), strength=-1), r"strategy.der.strength=-1 must be at least 0"),
    (lambda: MIR(partial(Reservoir, 4), strength=-1), r"strategy.mir.strength=-1 must be at least 0"),
    (lambda: MIR(partial(Reservoir, 4), n_candidates=-1), r"strategy.mir.n_candidates=-1 must be at least 0"),
    (lambda: AGEM(partial(Reservoir, 4), n_replay=-1), r"strategy.agem.n_replay=-1 must be at least 0"),
    (lambda: GEM(partial(Ring, 4), margin=-0.1), r"strategy.gem.margin=-0.1 must be at least 0"),
    (lambda: RAR(partial(Reservoir, 4), n_repeats=0), r"strategy.rar.n_repeats=0 must be at least 1"),
    (lambda: LossBalancedER(partial(Reservoir, 4), exponent=-1), r"loss_balanced_er.exponent=-1 must be at least 0"),
])  # fmt: skip
def test_wrong_values_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("strategy", "message"), [
    (lambda: ER(partial(Reservoir, 4), weighting="tasks"), r"er.weighting=tasks needs task boundaries"),
    (lambda: ER(partial(Reservoir, 4), exclude_current=True), r"exclude_current=true needs task boundaries"),
    (lambda: ER(partial(Herding, 4)), r"strategy.er.remember=end"),
    (lambda: ER(partial(Reservoir, 4), remember="end"), r"er.remember=end needs .* use strategy.er.remember=step"),
    (lambda: AGEM(partial(Reservoir, 4)), r"agem.remember=end needs .* use strategy.agem.remember=step"),
    (lambda: DER(partial(Reservoir, 4), remember="end"), r"der.remember=end needs task boundaries"),
    (lambda: ER(partial(ClassBalanced, 2)), r"er.memory.capacity=2 must be at least 1 row for each of 3"),
    (lambda: ER(partial(Ring, 2)), r"at least 1 row for each of 3 classes"),
    (lambda: MIR(partial(Reservoir, 4), exclude_current=True), r"mir.exclude_current=true needs task boundaries"),
    (lambda: GEM(partial(Ring, 9)), r"strategy 's' needs task boundaries"),
    (lambda: UseBalancedER(partial(FIFO, 4, replacement=True)), r"replacement=true has no meaning"),
    (lambda: DER(partial(Herding, 4)), r"herding chooses among all rows of an experience"),
])  # fmt: skip
def test_what_cannot_work_on_a_stream_is_refused_at_the_start(
    learner: Any, strategy: Callable[[], Strategy], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        learner(strategy(), spec=ONLINE)


def test_herding_needs_a_model_that_tells_features(learner: Any) -> None:
    with pytest.raises(UserError, match="this model tells none"):
        learner(ER(partial(Herding, 4), remember="end"))


def test_gem_needs_a_row_for_each_experience_and_to_know_how_many_there_are(learner: Any) -> None:
    with pytest.raises(UserError, match="a class is one of 5 experiences for strategy 'gem'"):
        learner(GEM(partial(Ring, 4)), spec=Spec((1,), 3, dtype=DOUBLE, n_experiences=5))
    with pytest.raises(UserError, match="does not say how many there will be; use strategy=agem"):
        learner(GEM(partial(Ring, 4)), spec=Spec((1,), 3, dtype=DOUBLE))
