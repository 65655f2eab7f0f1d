"""Penalties that hold weights near earlier ones, and their importances, against loops written out with torch.

The three-parameter model is logits = (w_0 x, w_1 x, w_2 x) for a number x, in float64.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from continual import compose
from continual.batches import Schedule
from continual.contract import Subject
from continual.contract.strategies import neutral_element, strength_acts
from continual.errors import UserError
from continual.importance import Anchored, quadratic
from continual.learner import SGDLearner
from continual.seeding import generator
from continual.strategies.ewc import EWC, empirical_fisher, fisher, weighted_anchor
from continual.strategies.l2_anchor import L2Anchor
from continual.strategies.l2_init import L2Init
from continual.strategies.mas import MAS, sensitivities
from continual.strategies.rwalk import RWalk, normalized
from continual.strategies.shrink_perturb import ShrinkPerturb
from continual.strategies.si import SI
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((1,), 3, dtype=DOUBLE)
LR = 0.1
Model = Callable[[Spec], nn.Module]
Arrival = Callable[..., Experience]
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=LR),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


@pytest.fixture
def experiences(arrival: Arrival) -> list[Experience]:
    rows = [([0.5, -1.0, 2.0, 1.5, 0.3], [0, 1, 0, 1, 1]), ([1.0, -0.5, 3.0], [2, 1, 2]), ([-2.0, 0.7, 0.1], [0, 0, 2])]
    return [arrival(index, x, y) for index, (x, y) in enumerate(rows)]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def wide(spec: Spec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(1, 5), nn.Dropout(0.4), nn.Tanh(), nn.Linear(5, 3)).double()


def learner(model: Model, strategies: dict[str, Strategy], optimizer: str = "sgd", **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 2} | options
    return SGDLearner(model, OPTIMIZERS[optimizer], strategies, **chosen)


def learn(sgd: SGDLearner, *experiences: Experience) -> SGDLearner:
    for experience in experiences:
        list(sgd.learn(experience))
    return sgd


def weights(sgd: SGDLearner) -> Tensor:
    """(3,) of the three-parameter model."""
    return sgd.view.params["model.weight"].detach()[:, 0].clone()


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return tensors["model.weight"][:, 0]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def batches(experience: Experience, lap: int, epochs: int, size: int = 2) -> Iterator[Batch]:
    for indices in Schedule(len(experience.rows), size, epochs, None, seed=0, lap=lap):
        yield experience.rows.take(indices)


def loss_of(w: Tensor, batch: Batch) -> Tensor:
    return cross_entropy(batch.x * w, batch.y)


def whole(experience: Experience) -> Batch:
    return experience.rows.take(torch.arange(len(experience.rows)))


def fisher_by_hand(w: Tensor, experience: Experience) -> Tensor:
    """(3,) mean over rows of (x (p_c - 1[y = c]))^2."""
    batch = whole(experience)
    p = torch.softmax(batch.x * w, dim=1)
    return ((p - torch.eye(3, dtype=DOUBLE)[batch.y]) * batch.x).square().mean(0)


# ---------------------------------------------------------------- the pull and its bound


def test_the_pull_is_cut_where_it_would_overshoot() -> None:
    params = {"a": numbers(1.0, 2.0).requires_grad_(), "b": numbers(5.0).requires_grad_()}
    anchor, importance = {"a": numbers(0.0, 4.0), "b": numbers(2.0)}, {"a": numbers(3.0, 0.5), "b": numbers(0.1)}
    value = quadratic(params, anchor, importance, most=2.0)
    assert value.item() == pytest.approx(2 * 1 + 0.5 * 4 + 0.1 * 9, rel=1e-14)
    value.backward()  # type: ignore[no-untyped-call]
    close(params["a"].grad, numbers(2 * 2 * 1, 2 * 0.5 * -2))  # type: ignore[arg-type]
    close(params["b"].grad, numbers(2 * 0.1 * 3))  # type: ignore[arg-type]


class Fixed(Anchored):
    """Pulls towards (1, 1, 1) by importances of (0.5, 2, 0)."""

    def begin(self, view: View, experience: Experience) -> None:
        self.hold({"model.weight": numbers(0.5, 2.0, 0.0)[:, None]}, {"model.weight": numbers(1.0, 1.0, 1.0)[:, None]})


@pytest.mark.parametrize(("strength", "most", "ways"), [
    (1.0, 1.0, (0.1, 0.4, 0.0)),  # lr * 2 * strength * importance of the way to the anchor
    (2.5, 1.0, (0.25, 1.0, 0.0)),  # just at the bound
    (4.0, 1.0, (0.4, 1.0, 0.0)),  # the second is cut, the first is as ever
    (1e9, 1.0, (1.0, 1.0, 0.0)),  # whatever the strength: one whole way, and a weight of no importance is free
    (4.0, 0.5, (0.4, 0.5, 0.0)),  # another bound
    (4.0, None, (0.4, 1.6, 0.0)),  # none: as published
])  # fmt: skip
def test_a_step_goes_at_most_the_whole_way_to_the_anchor(
    three: Model, arrival: Arrival, strength: float, most: float | None, ways: tuple[float, ...]
) -> None:
    sgd = learner(three, {"fixed": Fixed(strength, most)})
    only = arrival(0, [0.5, -1.0], [0, 1])
    w = weights(sgd).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(w, whole(only)), w)
    learn(sgd, only)
    close(weights(sgd), (w + numbers(*ways) * (1.0 - w) - LR * gradient).detach())


def test_without_a_learning_rate_there_is_no_bound(three: Model, arrival: Arrival) -> None:
    sgd = learner(three, {"fixed": Fixed(4.0)})
    sgd.optimizer.param_groups[0]["lr"] = 0.0  # as at the end of a schedule
    before = weights(sgd)
    assert torch.equal(weights(learn(sgd, arrival(0, [0.5, -1.0], [0, 1]))), before)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("make", [EWC, SI, MAS, RWalk, L2Anchor, L2Init])
def test_no_strength_diverges(
    three: Model, experiences: list[Experience], make: Callable[..., Anchored], optimizer: str
) -> None:
    sgd = learner(three, {"s": make(strength=1e6)}, optimizer, epochs=10)
    for lap in range(4):
        learn(sgd, *(Experience(3 * lap + e.index, e.rows) for e in experiences))
    assert float(weights(sgd).abs().max()) < 10


# ---------------------------------------------------------------- elastic weight consolidation


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_separate_penalties_collapse_into_two_tensors(
    three: Model, experiences: list[Experience], decay: float
) -> None:
    """sum_t decay^(T-t) F_t (w - w_t)^2 by autograd, and its difference to ours, which is the constant."""
    ewc = EWC(strength=3.0, mode="separate", decay=decay)
    sgd = learner(three, {"ewc": ewc}, epochs=2)
    held: list[tuple[Tensor, Tensor]] = []
    for experience in experiences:
        learn(sgd, experience)
        held.append((fisher_by_hand(weights(sgd), experience), weights(sgd)))
        differences = []
        for w in (numbers(0.1, -2.0, 1.0).requires_grad_(), numbers(3.0, 0.4, -0.5).requires_grad_()):
            age = len(held) - 1
            naive = sum(decay ** (age - t) * (f * (w - anchor) ** 2).sum() for t, (f, anchor) in enumerate(held))
            assert isinstance(naive, Tensor)
            ours = ewc.penalty(sgd.view, {"model.weight": w[:, None]}, whole(experience), Output(w))
            assert isinstance(ours, Tensor)
            (expected,), (found,) = torch.autograd.grad(1.5 * naive, w), torch.autograd.grad(ours, w)
            close(found, expected)
            differences.append((1.5 * naive - ours).detach())
        close(differences[0], differences[1])
    a, b = (sum(decay ** (2 - t) * f * (anchor if k else 1) for t, (f, anchor) in enumerate(held)) for k in (0, 1))
    close(flat(ewc.importance), torch.as_tensor(a))
    close(flat(ewc.importance) * flat(ewc.anchor), torch.as_tensor(b))


def test_separate_penalties_act_as_a_loop_over_them(three: Model, experiences: list[Experience]) -> None:
    sgd = learner(three, {"ewc": EWC(strength=2.0, mode="separate")}, epochs=2)
    w, held = weights(sgd), list[tuple[Tensor, Tensor]]()
    for lap, experience in enumerate(experiences):
        for batch in batches(experience, lap, epochs=2):
            live = w.clone().requires_grad_()
            loss = loss_of(live, batch) + sum((f * (live - anchor) ** 2).sum() for f, anchor in held)  # 2 / 2 = 1
            w = w - LR * torch.autograd.grad(loss, live)[0]
        held.append((fisher_by_hand(w, experience), w))
        close(weights(learn(sgd, experience)), w)


def test_an_anchor_without_importance_is_the_last_weight() -> None:
    before, now = numbers(1.0, 2.0, 3.0), numbers(5.0, 6.0, 7.0)
    new, total = numbers(0.0, 3.0, 0.0), numbers(0.0, 4.0, 2.0)
    assert weighted_anchor(before, now, new, total).tolist() == [5.0, 2.0 + 0.75 * 4.0, 3.0]


def test_the_fisher_information_does_not_depend_on_the_batch_size(experiences: list[Experience]) -> None:
    """Networks that stand still and see batches of 1, 2 and 5 rows have the same."""
    found = []
    for size in (1, 2, 5):
        ewc = EWC(chunk=size)
        still = partial(torch.optim.SGD, lr=1e-300)
        learn(SGDLearner(wide, still, {"ewc": ewc}, spec=SPEC, batch_size=size), experiences[0])
        found.append(ewc.importance)
    for other in found[1:]:
        for name, importance in found[0].items():
            close(other[name], importance)
            assert importance.max() > 0


def test_an_experience_without_rows_has_no_fisher_information(three: Model, arrival: Arrival) -> None:
    fisher = empirical_fisher(learner(three, {}).view, arrival(0, [], []), chunk=4)
    assert fisher["model.weight"].tolist() == [[0.0], [0.0], [0.0]]


EVERY_SIGN = torch.cartesian_prod(*[torch.tensor([0, 1])] * 3)  # (8, 3), as they are drawn


@pytest.mark.parametrize("head", ["all", "per_task"])
def test_the_fisher_information_of_the_models_labels_by_hand(
    three: Model, arrival: Arrival, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sum_c p_c (x (1[c = k] - p_k))^2 = x^2 p_k (1 - p_k) is the mean over all signs that could be drawn."""
    ewc = EWC(labels="model", chunk=8)
    sgd = learner(three, {"ewc": ewc}, head=head, spec=Spec((1,), 3, dtype=DOUBLE, task_aware=True), iterations=2)
    learn(sgd, arrival(0, [0.5, -1.0], [0, 0], 0))
    before = flat(ewc.importance)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: EVERY_SIGN)
    learn(sgd, arrival(1, [0.5] * 8 + [-1.5] * 8, [2] * 8 + [1] * 8, 1))
    competes = numbers(1, 1, 1) if head == "all" else numbers(0, 1, 1)
    found = numbers(0, 0, 0)
    for x in (0.5, -1.5):
        powers = torch.exp(x * weights(sgd)) * competes
        p = powers / powers.sum()
        found += x**2 * p * (1 - p) / 2
    close(flat(ewc.importance) - before, found)


def test_the_fisher_information_of_the_models_labels_is_of_single_rows_in_eval_mode(
    experiences: list[Experience],
) -> None:
    """A loop over rows through a network with dropout, for the signs that are drawn; whatever the chunk."""
    ewc = EWC(labels="model", seed=3)
    sgd = learn(learner(wide, {"ewc": ewc}), experiences[0])
    spent = sgd.cost().forward_equivalents
    found = [fisher(sgd.view, experiences[0], chunk, generator(3, "EWC")) for chunk in (2, 100)]
    assert sgd.cost().forward_equivalents == spent + 2 * 3 * 5, "a forward and a backward of each row"
    network, batch = copy.deepcopy(sgd.network).eval(), whole(experiences[0])
    signs = 2 * torch.randint(2, (5, 3), generator=generator(3, "EWC")) - 1
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for x, s in zip(batch.x, signs, strict=True):
        logs = torch.log_softmax(network(x[None]).logits[0], dim=0)
        roots = [int(s[c]) * math.exp(logs[c].item() / 2) for c in range(3)]
        network.zero_grad()
        sum(roots[c] * logs[c] for c in range(3)).backward()  # type: ignore[union-attr]
        for name, p in network.named_parameters():
            total[name] += p.grad.square() / 5  # type: ignore[union-attr]
    for name, expected in total.items():
        for fishers in (*found, ewc.importance):
            close(fishers[name], expected)
        assert expected.max() > 0
    other = fisher(sgd.view, experiences[0], 100, generator(4, "EWC"))
    assert any(not torch.equal(other[name], found[1][name]) for name in other)


# ---------------------------------------------------------------- synaptic intelligence


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_si_equals_a_loop_that_walks_the_same_path(three: Model, experiences: list[Experience], optimizer: str) -> None:
    """The path of the task's gradient alone, beside its own penalty and that of l2_init, under any optimizer."""
    si, l2 = SI(strength=0.1, damping=0.02), L2Init(strength=0.3)
    sgd = learner(three, {"si": si, "l2_init": l2}, optimizer, epochs=3)
    w = weights(sgd).requires_grad_()
    optim = OPTIMIZERS[optimizer]([w])
    initial, anchor, importance = w.detach().clone(), w.detach().clone(), torch.zeros(3, dtype=DOUBLE)
    for lap, experience in enumerate(experiences):
        path = torch.zeros(3, dtype=DOUBLE)
        for batch in batches(experience, lap, epochs=3):
            before = w.detach().clone()
            loss = loss_of(w, batch)
            (gradient,) = torch.autograd.grad(loss, w, retain_graph=True)
            pulls = 0.1 * (importance * (w - anchor) ** 2).sum() + 0.3 * ((w - initial) ** 2).sum()
            optim.zero_grad()
            (loss + pulls).backward()
            optim.step()
            path -= gradient * (w.detach() - before)
        importance = (importance + path / ((w.detach() - anchor) ** 2 + 0.02)).clamp(min=0)
        anchor = w.detach().clone()
        learn(sgd, experience)
        close(weights(sgd), w.detach())
        close(flat(si.importance), importance)
        close(flat(si.anchor), anchor)
    assert importance.max() > 0


def test_si_cuts_the_sum_at_zero(three: Model, experiences: list[Experience]) -> None:
    """A path uphill first takes from what was there, and never leaves a weight with less than nothing."""
    si = SI(damping=1.0)
    sgd = learner(three, {"si": si})
    si.begin(sgd.view, experiences[0])
    for path, expected in (([1.0, 3.0, 0.0], [1.0, 3.0, 0.0]), ([-2.0, -1.0, 0.5], [0.0, 2.0, 0.5])):
        si.path = {"model.weight": numbers(*path)[:, None]}
        si.end(sgd.view, experiences[0])
        assert flat(si.importance).tolist() == expected


def test_the_anchor_of_si_is_where_the_last_experience_ended(three: Model, experiences: list[Experience]) -> None:
    """Also where another strategy has moved the weights since."""
    si = SI()
    sgd = learn(learner(three, {"shrink_perturb": ShrinkPerturb(0.5, 0.0), "si": si}), experiences[0])
    ended = weights(sgd)
    next(iter(sgd.learn(experiences[1])))
    assert torch.equal(flat(si.anchor), ended)


@pytest.mark.parametrize("make", [EWC, SI, MAS, RWalk, L2Anchor, L2Init])
def test_anchors_are_copies_of_the_weights(
    three: Model, experiences: list[Experience], make: Callable[..., Anchored]
) -> None:
    s = make()
    sgd = learn(learner(three, {"s": s}), experiences[0])
    before = flat(s.anchor).clone()
    with torch.no_grad():
        sgd.view.params["model.weight"].add_(1.0)
    assert torch.equal(flat(s.anchor), before)


@pytest.mark.parametrize("make", [SI, RWalk])
def test_switched_off_it_asks_for_no_gradient(make: Callable[..., Anchored]) -> None:
    assert make(strength=0.0).needs_task_gradient is False
    assert make(strength=0.1).needs_task_gradient is True


# ---------------------------------------------------------------- memory aware synapses


@pytest.mark.parametrize("normalize", [True, False])
def test_mas_by_hand(three: Model, arrival: Arrival, normalize: bool) -> None:
    """|d (x^2 sum_c w_c^2) / dw_c| = 2 x^2 |w_c|, over the classes that have arrived; what is kept is the sum."""
    mas = MAS(strength=0.5, normalize=normalize)
    sgd = learner(three, {"mas": mas}, batch_size=3, epochs=2)
    w = anchor = weights(sgd)
    importance = share = numbers(0, 0, 0)
    first, second = ([0.5, -1.0, 2.0], [0, 1, 0]), ([1.0, -3.0, 1.0], [2, 1, 2])
    for index, ((x, y), seen) in enumerate([(first, numbers(1, 1, 0)), (second, 1), (first, 1)]):
        experience = arrival(index, x, y)
        for _ in range(2):  # the second step is no longer at the anchor
            live = w.clone().requires_grad_()
            loss = loss_of(live, whole(experience)) + 0.5 * (share * (live - anchor) ** 2).sum()
            w = w - LR * torch.autograd.grad(loss, live)[0]
        close(weights(learn(sgd, experience)), w)
        importance = importance + 2 * sum(v * v for v in x) / 3 * w.abs() * seen
        share, anchor = importance / importance.max() if normalize else importance, w
        close(flat(mas.importance), importance)


def test_the_penalty_of_mas_by_hand(three: Model, arrival: Arrival) -> None:
    only, away = arrival(0, [0.5, -1.0], [0, 1]), numbers(0.1, -0.2, 5.0)
    for normalize in (True, False):
        mas = MAS(strength=0.5, normalize=normalize)
        sgd = learn(learner(three, {"mas": mas}), only)
        w, importance = weights(sgd), flat(mas.importance)
        penalty = mas.penalty(sgd.view, {"model.weight": (w + away)[:, None]}, whole(only), Output(w))
        share = importance / importance.max() if normalize else importance
        assert float(penalty) == pytest.approx(float(0.5 * (share * away**2).sum()), rel=1e-12)


@pytest.mark.parametrize("strength", [0.5, 30.0])  # 30 is beyond the bound for some weights
def test_in_shares_of_the_largest_mas_is_as_published_with_another_strength(
    three: Model, arrival: Arrival, strength: float
) -> None:
    importance, anchor = {"model.weight": numbers(4.0, 50.0, 0.3)[:, None]}, {"model.weight": numbers(1, 2, 3)[:, None]}
    pulls = []
    for mas in (MAS(strength), MAS(strength / 50.0, normalize=False)):
        sgd, grads = learner(three, {"mas": mas}), dict[str, Tensor]()
        mas.hold(importance, anchor)
        mas.pull(sgd.view, grads)
        pulls.append(flat(grads))
    close(pulls[0], pulls[1])
    k = (2 * strength * numbers(4.0, 50.0, 0.3) / 50).clamp(max=1 / LR)
    close(pulls[0], k * (numbers(0.3, -0.2, 0.5) - numbers(1, 2, 3)))


def test_where_nothing_matters_mas_pulls_nothing(three: Model, arrival: Arrival) -> None:
    mas = MAS()
    sgd = learner(three, {"mas": mas})
    mas.hold({"model.weight": numbers(0, 0, 0)[:, None]}, {"model.weight": numbers(1, 2, 3)[:, None]})
    grads: dict[str, Tensor] = {}
    mas.pull(sgd.view, grads)
    assert flat(grads).tolist() == [0, 0, 0]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_sensitivities_are_of_single_rows_in_eval_mode(arrival: Arrival, chunk: int) -> None:
    """One backward pass per row through a network with dropout; labels are not looked at."""
    mas = MAS(chunk=chunk)
    sgd = learner(wide, {"mas": mas})
    learn(sgd, arrival(0, [0.5, 1.0, -1.5, 2.5, 0.1], [1, 0, 1, 0, 0]))
    network = wide(SPEC).eval()
    network.load_state_dict({name.removeprefix("model."): p for name, p in sgd.network.state_dict().items()})
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for x in (0.5, 1.0, -1.5, 2.5, 0.1):
        network.zero_grad()
        network(numbers(x)[None])[0, :2].square().sum().backward()
        for name, p in network.named_parameters():
            assert p.grad is not None
            total[name] += p.grad.abs() / 5
    for name, expected in total.items():
        close(mas.importance[f"model.{name}"], expected)
    assert sgd.network.training


def test_sensitivities_are_charged(three: Model, arrival: Arrival) -> None:
    """A forward and a backward pass for each of five rows, besides training on them."""
    rows = arrival(0, [0.5, 1.0, -1.5, 2.5, 0.1], [1, 2, 1, 2, 2])
    plain, with_mas = learn(learner(three, {}), rows), learn(learner(three, {"mas": MAS(chunk=2)}), rows)
    assert with_mas.cost().forward_equivalents - plain.cost().forward_equivalents == 3 * 5
    assert sensitivities(plain.view, whole(rows))["model.weight"].shape == (5, 3, 1)


@pytest.mark.parametrize("make", [SI, RWalk, L2Anchor, L2Init])
def test_what_needs_no_pass_of_its_own_costs_none(
    three: Model, experiences: list[Experience], make: Callable[..., Anchored]
) -> None:
    plain, other = learn(learner(three, {}), *experiences), learn(learner(three, {"s": make()}), *experiences)
    assert other.cost().forward_equivalents == plain.cost().forward_equivalents


# ---------------------------------------------------------------- Riemannian walk


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("window", [1, 2, 4])
def test_rwalk_equals_a_loop(three: Model, experiences: list[Experience], optimizer: str, window: int) -> None:
    rwalk = RWalk(strength=0.7, decay=0.6, window=window, damping=0.01)
    sgd = learner(three, {"rwalk": rwalk}, optimizer, epochs=3)
    w = weights(sgd).requires_grad_()
    optim = OPTIMIZERS[optimizer]([w])
    fisher: Tensor | None = None
    score: Tensor | None = None
    importance, anchor = torch.zeros(3, dtype=DOUBLE), w.detach().clone()
    for lap, experience in enumerate(experiences):
        path, walked = torch.zeros(3, dtype=DOUBLE), list[tuple[Tensor, Tensor, Tensor]]()
        steps = list(batches(experience, lap, epochs=3))
        for i, batch in enumerate(steps, start=1):
            before = w.detach().clone()
            loss = loss_of(w, batch)
            (gradient,) = torch.autograd.grad(loss, w, retain_graph=True)
            optim.zero_grad()
            (loss + 0.7 * (importance * (w - anchor) ** 2).sum()).backward()
            optim.step()
            fisher = gradient**2 if fisher is None else 0.6 * fisher + 0.4 * gradient**2
            walked.append((gradient, before, w.detach().clone()))
            if i % window == 0 or i == len(steps):
                saved = torch.stack([-g * (b - a) for g, a, b in walked]).sum(0)
                way = w.detach() - walked[0][1]
                path += torch.relu(saved / (0.5 * fisher * way**2 + 0.01))
                walked.clear()
        assert fisher is not None
        score = path if score is None else (score + path) / 2
        importance, anchor = fisher / fisher.max() + score / score.max(), w.detach().clone()
        learn(sgd, experience)
        close(weights(sgd), w.detach())
        close(flat(rwalk.fisher), fisher)
        close(flat(rwalk.score), score)
        close(flat(rwalk.importance), importance)


def test_normalized_by_hand() -> None:
    found = normalized({"a": numbers(1.0, 4.0), "b": numbers(2.0)})
    assert (found["a"].tolist(), found["b"].tolist()) == ([0.25, 1.0], [0.5])
    assert normalized({"a": numbers(0.0, 0.0)})["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("make", [SI, RWalk, MAS])
def test_it_trains_in_train_mode(experiences: list[Experience], make: Callable[..., Anchored]) -> None:
    modes: list[bool] = []

    class Watch(Strategy):
        def penalty(self, view: View, *arguments: Any) -> float:
            modes.append(sgd.network.training)
            return 0.0

    sgd = learner(wide, {"s": make(), "watch": Watch()})
    learn(sgd, *experiences)
    assert modes
    assert all(modes)


# ---------------------------------------------------------------- uniform penalties


def test_l2_anchor_by_hand(three: Model, experiences: list[Experience]) -> None:
    sgd = learner(three, {"s": L2Anchor(strength=2.0)})
    w = weights(sgd)
    anchor = None
    for lap, experience in enumerate(experiences):
        for batch in batches(experience, lap, epochs=1):
            live = w.clone().requires_grad_()
            gradient = torch.autograd.grad(loss_of(live, batch), live)[0]
            w = w - LR * (gradient + (0 if anchor is None else 2.0 * (w - anchor)))
        anchor = w
        close(weights(learn(sgd, experience)), w)


def test_l2_init_by_hand(three: Model, experiences: list[Experience]) -> None:
    """Also within the first experience, and without boundaries."""
    sgd = learner(three, {"s": L2Init(strength=2.0)}, spec=Spec((1,), 3, dtype=DOUBLE, boundaries=False))
    w = initial = weights(sgd)
    for lap, experience in enumerate(experiences):
        for batch in batches(experience, lap, epochs=1):
            live = w.clone().requires_grad_()
            gradient = torch.autograd.grad(loss_of(live, batch), live)[0]
            w = w - LR * (gradient + 2 * 2.0 * (w - initial))
        close(weights(learn(sgd, experience)), w)


# ---------------------------------------------------------------- shrink and perturb


class Before(Strategy):
    """Keeps the weights at the first update of each experience, behind what the strategies before it did."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def mix(self, view: View, batch: Batch) -> Batch:
        if view.update == 0:
            self.found.append(view.params["model.weight"].detach()[:, 0].clone())
        return batch


def test_shrink_perturb_by_hand_at_each_experience_but_the_first(three: Model, experiences: list[Experience]) -> None:
    watch = Before()
    sgd = learner(three, {"s": ShrinkPerturb(shrink=0.5, noise=0.2, seed=3), "watch": watch})
    initial = weights(sgd)
    draws = generator(3, "ShrinkPerturb")
    mean, spread = initial.mean(), initial.std(correction=0)
    expected = initial
    for experience in experiences:
        learn(sgd, experience)
        close(watch.found[-1], expected)
        fresh = mean + spread * torch.randn(3, 1, generator=draws, dtype=DOUBLE)[:, 0]
        expected = 0.5 * weights(sgd) + 0.2 * fresh


def test_shrink_perturb_every_so_many_updates(three: Model, experiences: list[Experience]) -> None:
    """With a still optimizer: 3 + 2 + 2 updates, every third of them halves the weights."""
    spec = Spec((1,), 3, dtype=DOUBLE, boundaries=False)
    still = partial(torch.optim.SGD, lr=1e-300)
    sgd = SGDLearner(three, still, {"s": ShrinkPerturb(0.5, 0.0, every=3)}, spec=spec, batch_size=2)
    w = weights(sgd)
    for experience, halves in zip(experiences, (1, 1, 2), strict=True):
        close(weights(learn(sgd, experience)), w / 2**halves)


def test_fresh_weights_are_as_large_as_new_ones_are(three: Model) -> None:
    """10 000 draws have the mean and the spread of the initial tensor; one that was constant has no noise."""
    s = ShrinkPerturb()
    learner(three, {"s": s})
    s.initial = {"a": [2.0, 0.5], "b": [1.0, 0.0]}
    drawn = s.fresh("a", torch.empty(10_000))
    assert abs(float(drawn.mean()) - 2.0) < 0.03
    assert abs(float(drawn.std()) - 0.5) < 0.03
    assert s.fresh("b", torch.empty(2)).tolist() == [1.0, 1.0]


SHRUNK = ("strategy=shrink_perturb", "scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[8]", "track=none")


@pytest.mark.parametrize("every", [None, 2])
def test_shrink_perturb_is_neutral_at_one_and_zero_and_acts_otherwise(every: int | None) -> None:
    """The laws of strategies, whose settings it has under other names than strength."""
    one = Subject(compose(*SHRUNK))
    plain = one.without("shrink_perturb")
    neutral_element(one.switched("shrink_perturb", {"shrink": 1, "noise": 0, "every": every}), plain, one.make_stream)
    for setting in ({"shrink": 0.9, "noise": 0}, {"shrink": 1, "noise": 0.1}):
        strength_acts(one.switched("shrink_perturb", {**setting, "every": every}), plain, one.make_stream)


# ---------------------------------------------------------------- networks that grow


class Grown(nn.Module):
    """The three-parameter model, and biases that may come later."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers(0.3, -0.2, 0.5)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + (self.bias if hasattr(self, "bias") else 0)


@pytest.mark.parametrize("make", [
    EWC, partial(EWC, mode="separate"), SI, MAS, RWalk, L2Anchor, L2Init, lambda strength: ShrinkPerturb(),
])  # fmt: skip
def test_weights_that_come_later_are_free_until_they_have_learned(
    experiences: list[Experience], make: Callable[..., Strategy]
) -> None:
    s = make(strength=1.0)
    sgd = learn(learner(Grown, {"s": s}), experiences[0])
    bias = nn.Parameter(numbers(0.1, 0.2, 0.3))
    sgd.network.model.register_parameter("bias", bias)  # type: ignore[union-attr]
    sgd.view.params["model.bias"] = bias
    sgd.optimizer.add_param_group({"params": [bias]})
    watch: list[float] = []
    if isinstance(s, Anchored):
        s.begin(sgd.view, experiences[1])
        bias.requires_grad_(True)
        penalty = s.penalty(sgd.view, sgd.view.params, whole(experiences[1]), Output(bias))
        grads = torch.autograd.grad(penalty, bias, allow_unused=True) if isinstance(penalty, Tensor) else (None,)
        watch = [0.0 if grads[0] is None else float(grads[0].abs().max())]
        assert watch == [0.0]
    learn(sgd, experiences[1], experiences[2])
    assert not torch.equal(bias.detach(), numbers(0.1, 0.2, 0.3))
    if isinstance(s, Anchored):
        assert s.importance.keys() == s.anchor.keys() == sgd.view.params.keys()
    if isinstance(s, L2Init):
        assert torch.equal(flat(s.anchor), numbers(0.3, -0.2, 0.5))
        assert torch.equal(s.anchor["model.bias"], numbers(0.1, 0.2, 0.3))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("make", "message"), [
    (lambda: EWC(strength=-1), "strategy.ewc.strength=-1 must be at least 0"),
    (lambda: EWC(mode="both"), "strategy.ewc.mode=both must be one of online, separate"),
    (lambda: EWC(labels="all"), "strategy.ewc.labels=all must be one of rows, model"),
    (lambda: SI(strength=-1), "strategy.si.strength=-1 must be at least 0"),
    (lambda: SI(strength=float("nan")), "strategy.si.strength=nan must be at least 0"),
    (lambda: SI(damping=0), "strategy.si.damping=0 must be above 0"),
    (lambda: MAS(strength=-0.1), "strategy.mas.strength=-0.1 must be at least 0"),
    (lambda: MAS(chunk=0), "strategy.mas.chunk=0 must be at least 1"),
    (lambda: RWalk(strength=-1), "strategy.rwalk.strength=-1 must be at least 0"),
    (lambda: RWalk(decay=1), r"strategy.rwalk.decay=1 must be in \[0, 1\)"),
    (lambda: RWalk(window=0), "strategy.rwalk.window=0 must be at least 1"),
    (lambda: RWalk(damping=-1), "strategy.rwalk.damping=-1 must be above 0"),
    (lambda: L2Anchor(strength=-1), "strategy.l2_anchor.strength=-1 must be at least 0"),
    (lambda: L2Init(strength=-1), "strategy.l2_init.strength=-1 must be at least 0"),
    (lambda: ShrinkPerturb(shrink=1.5), r"strategy.shrink_perturb.shrink=1.5 must be in \[0, 1\]"),
    (lambda: ShrinkPerturb(shrink=-0.5), r"strategy.shrink_perturb.shrink=-0.5 must be in \[0, 1\]"),
    (lambda: ShrinkPerturb(noise=-1), "strategy.shrink_perturb.noise=-1 must be at least 0"),
    (lambda: ShrinkPerturb(every=0), "strategy.shrink_perturb.every=0 must be at least 1, or null"),
])  # fmt: skip
def test_values_out_of_range_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize("make", [EWC, SI, MAS, RWalk, L2Anchor, ShrinkPerturb])
def test_streams_that_hide_boundaries_are_refused(three: Model, make: Callable[[], Strategy]) -> None:
    with pytest.raises(UserError, match="needs task boundaries, and this stream hides them"):
        learner(three, {"s": make()}, spec=Spec((1,), 3, dtype=DOUBLE, boundaries=False))


# ---------------------------------------------------------------- the gradient that is added without a backward pass


@pytest.mark.parametrize("strength", [0.5, 30.0])  # 30 is beyond the bound for some weights
@pytest.mark.parametrize("max_pull", [1.0, None])
@pytest.mark.parametrize("shape", [(3, 1), ()])
def test_the_pull_is_the_gradient_of_the_penalty(
    three: Model, strength: float, max_pull: float | None, shape: tuple[int, ...]
) -> None:
    anchored = Anchored(strength, max_pull)
    view = learner(three, {"anchored": anchored}).view
    w = view.params["model.weight"]
    importance = torch.linspace(0.1, 2.0, math.prod(shape), dtype=DOUBLE).view(shape)
    anchored.hold({"model.weight": importance}, {"model.weight": w.detach() + numbers(0.1, -2.0, 0.5)[:, None]})
    penalty = anchored.penalty(view, view.params, Batch(w, w, w, 0), Output(w))
    assert isinstance(penalty, Tensor)
    (expected,) = torch.autograd.grad(penalty, w)
    grad, apart = numbers(1.0, 2.0, 3.0)[:, None], numbers(1.0, 2.0, 3.0)[:, None]
    grads = {"model.weight": grad}
    anchored.pull(view, grads)
    close(grads["model.weight"], expected + apart)
    assert grads["model.weight"] is grad, "in place, where nobody else holds it"

    view.task_gradient, grads = {"model.weight": apart}, {"model.weight": apart}
    anchored.pull(view, grads)
    close(grads["model.weight"], expected + apart)
    assert apart.tolist() == [[1], [2], [3]], "the task's own gradient is left alone"
    grads = {}
    anchored.pull(view, grads)  # of a weight that the loss does not reach
    close(grads["model.weight"], expected)
