"""Hidden units told apart, units made anew, and UPGD: against numbers worked by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual.config import compose
from continual.contract import Subject
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.models import Classifier, cnn, linear, mlp, slim_resnet18
from continual.models.units import outgoing_size, renewed, strength
from continual.optim.upgd import UPGD
from continual.seeding import generator
from continual.strategies.continual_backprop import ContinualBackprop, least_useful
from continual.strategies.redo import ReDo, dormant
from continual.strategy import Strategy
from continual.types import Experience, Spec

Arrival = Callable[..., Experience]
SPEC = Spec((1,), 2, dtype=torch.float64)
FIRST, HEAD = "model.features.1.weight", "model.head.weight"


def frozen(parameters: Any) -> torch.optim.Optimizer:
    """At the end of its schedule, so that only the strategy moves weights."""
    optimizer = torch.optim.SGD(parameters)
    optimizer.param_groups[0]["lr"] = 0.0
    return optimizer


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def two_units(spec: Spec) -> nn.Module:
    """h = relu(2 x), relu(-x - 1); logits 3 h_1 + 0.5 h_2, -h_1 + 1.5 h_2."""
    model = mlp(spec, hidden=(2,)).double()
    values = {"features.1.weight": tensor([2.0], [-1.0]), "features.1.bias": tensor(0.0, -1.0),
              "head.weight": tensor([3.0, 0.5], [-1.0, 1.5]), "head.bias": tensor(0.1, -0.1)}  # fmt: skip
    model.load_state_dict(values)
    return model


def learner(
    strategy: Strategy | None = None, model: Callable[[Spec], nn.Module] = two_units, **options: Any
) -> SGDLearner:
    strategies = {} if strategy is None else {"s": strategy}
    chosen: dict[str, Any] = {"optimizer": frozen, "spec": SPEC, "batch_size": 2} | options
    return SGDLearner(model, chosen.pop("optimizer"), strategies, **chosen)


def learn(sgd: SGDLearner, *arrivals: Experience) -> SGDLearner:
    for experience in arrivals:
        list(sgd.learn(experience))
    return sgd


# ---------------------------------------------------------------- units


def test_units_and_activations_of_a_perceptron_by_hand() -> None:
    sgd = learner()
    (layer,) = sgd.view.units()
    assert (layer.weight, layer.bias, layer.outgoing, layer.n_units) == (FIRST, "model.features.1.bias", (HEAD,), 2)
    before = sgd.cost().forward_equivalents
    (h,) = sgd.view.activations(tensor([1.0], [-3.0], [0.5]))
    assert h.tolist() == [[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]
    assert sgd.cost().forward_equivalents == before + 3
    assert strength(h).tolist() == [1.0, 2 / 3]
    assert outgoing_size(sgd.view.params, layer).tolist() == [4.0, 2.0]


def images(model: nn.Module, size: int = 4) -> SGDLearner:
    return learner(model=lambda _: model, spec=Spec((1, size, size), 3))


def test_each_unit_of_a_convolutional_network_feels_its_rows_and_is_felt_through_its_columns() -> None:
    """An independent account of whose weights they are: what the answers do when a unit is silenced or cut off."""
    sgd = images(cnn(Spec((1, 8, 8), 3), channels=(4, 5)), size=8)
    x = torch.rand(3, 1, 8, 8, generator=generator(0, "x"))
    weights = {name: p.detach() for name, p in sgd.view.params.items()}
    layers = sgd.view.units()
    assert [layer.n_units for layer in layers] == [4, 5]
    for number, layer in enumerate(layers):
        weights[str(layer.bias)] = torch.ones(layer.n_units)  # so that all units act
        for unit in range(layer.n_units):
            new, masks = renewed(weights, layer, torch.tensor([unit]), generator(0, "fresh"))
            silent = {name: weights[name].masked_fill(masks[name], 0) for name in (layer.weight, str(layer.bias))}
            loud = {name: weights[name].masked_fill(masks[name], 9) for name in layer.outgoing}
            cut = {name: new[name] for name in layer.outgoing}
            plain, quiet = (sgd.view.answer(weights | changed, x).logits for changed in ({}, silent))
            assert not torch.allclose(plain, quiet, rtol=0, atol=1e-4)
            assert torch.equal(sgd.view.answer(weights | silent | loud, x).logits, quiet), "silent: no column acts"
            assert torch.allclose(sgd.view.answer(weights | cut, x).logits, quiet, rtol=0, atol=1e-6), "cut off: silent"
        h = sgd.view.activations(x)[number]
        assert h.shape[:2] == (3, layer.n_units)
        assert torch.allclose(strength(h)[1], h[:, 1].abs().mean())


def test_columns_behind_flatten_are_all_positions_of_the_channel() -> None:
    sgd = images(cnn(Spec((1, 4, 4), 3), channels=(2,)))
    (layer,) = sgd.view.units()
    weights, masks = renewed(sgd.view.params, layer, torch.tensor([1]), generator(0, "fresh"))
    assert masks[HEAD].int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 3
    assert weights[HEAD][:, 4:].eq(0).all()
    assert torch.equal(weights[HEAD][:, :4], sgd.view.params[HEAD][:, :4])


def test_fresh_weights_have_the_layer_s_own_distribution_and_the_rest_stays() -> None:
    """Uniform up to 1 / sqrt(fan_in): of 3510 draws the largest is near the bound, their variance bound^2 / 3."""
    sgd = learner(model=partial(mlp, hidden=(400,)), spec=Spec((9,), 2))
    (layer,) = sgd.view.units()
    chosen = torch.arange(390)
    weights, masks = renewed(sgd.view.params, layer, chosen, generator(0, "fresh"))
    fresh = weights[FIRST][chosen]
    assert 0.99 / 3 < float(fresh.abs().max()) <= 1 / 3
    assert float(fresh.var()) == pytest.approx(1 / 27, rel=0.05)
    assert not torch.equal(fresh, sgd.view.params[FIRST][chosen])
    for name, mask in masks.items():
        assert torch.equal(weights[name][~mask], sgd.view.params[name][~mask])
        assert not weights[name].requires_grad


def test_as_much_is_drawn_as_begins_anew_and_each_row_is_where_it_belongs() -> None:
    sgd, draws = learner(), generator(3, "fresh")
    (layer,) = sgd.view.units()
    none, masks = renewed(sgd.view.params, layer, torch.tensor([], dtype=torch.int64), draws)
    assert torch.equal(draws.get_state(), generator(3, "fresh").get_state())
    assert all(torch.equal(value, sgd.view.params[name]) for name, value in none.items())
    assert not any(mask.any() for mask in masks.values())
    back, _ = renewed(sgd.view.params, layer, torch.tensor([1, 0]), generator(3, "fresh"))
    forth, _ = renewed(sgd.view.params, layer, torch.tensor([0, 1]), generator(3, "fresh"))
    assert torch.equal(back[FIRST], forth[FIRST].flip(0))
    assert not torch.equal(back[FIRST], forth[FIRST])


def unclear(*layers: nn.Module, head: nn.Module | None = None) -> Callable[[Spec], nn.Module]:
    return lambda _: Classifier(nn.Sequential(*layers), head or nn.Linear(4, 2)).double()


@pytest.mark.parametrize(("model", "message"), [
    (unclear(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.ReLU()), "it has BatchNorm1d"),
    (lambda spec: linear(spec).double(), "it has no hidden layer"),
    (lambda _: nn.Linear(1, 2).double(), "it has Linear"),
    (unclear(nn.Linear(1, 4)), "a layer without ReLU before the head"),
    (unclear(nn.Linear(1, 4), nn.Linear(4, 4), nn.ReLU()), "two layers without ReLU between them"),
    (unclear(nn.Linear(1, 4), nn.Tanh()), "it has Tanh"),
    (unclear(nn.Linear(1, 4), nn.ReLU(), head=nn.Sequential(nn.Linear(4, 2))), "a head of type Sequential"),
])  # fmt: skip
def test_a_model_whose_units_cannot_be_told_apart_is_refused_with_what_is_in_the_way(model: Any, message: str) -> None:
    for strategy in (ReDo(), ContinualBackprop()):
        with pytest.raises(UserError, match=message):
            learner(strategy, model=model)


@pytest.mark.parametrize(("strategy", "takes"), [("redo", False), ("er", True)])
def test_the_laws_leave_out_a_network_that_the_learner_refuses(strategy: str, takes: bool) -> None:
    blobs = ("scenario/source=gaussian", "scenario.n_tasks=2", "track=none")
    moody = Subject(compose(f"strategy={strategy}", *blobs)).moody()
    assert (moody is not None) == takes


def test_a_residual_network_is_refused_and_its_measures_go_by_its_features() -> None:
    with pytest.raises(UserError, match="it has BatchNorm2d"):
        learner(ReDo(), model=partial(slim_resnet18, width=2), spec=Spec((1, 8, 8), 3))
    sgd = learner(model=partial(slim_resnet18, width=2), spec=Spec((1, 8, 8), 3))
    assert (len(sgd.inspect(torch.zeros(2, 1, 8, 8)).activations), sgd.view.n_features) == (0, 16)


def test_inspection_tells_all_hidden_layers_and_is_free() -> None:
    sgd = learner(model=lambda spec: mlp(spec, hidden=(3, 4)).double())
    seen = sgd.inspect(tensor([1.0], [2.0]))
    assert [h.shape for h in seen.activations] == [(2, 3), (2, 4)]
    assert seen.features is not None
    assert torch.equal(seen.activations[-1], seen.features)
    assert sgd.cost().forward_equivalents == 0


# ---------------------------------------------------------------- ReDo


def test_dormant_scores_by_hand() -> None:
    h = tensor([4.0, 0.0, 0.1, 0.0], [-2.0, 0.0, 0.1, 0.0])  # means 3, 0, .1, 0 of mean .775; scores 3.87, 0, .129, 0
    assert dormant(h, 0.0).tolist() == [False, True, False, True]
    assert dormant(h, 0.128).tolist() == [False, True, False, True]
    assert dormant(h, 0.13).tolist() == [False, True, True, True]
    assert dormant(torch.zeros(2, 3), 0.0).tolist() == [True] * 3, "a silent layer begins anew as a whole"


def test_redo_makes_the_silent_unit_anew_and_the_function_stays_as_it_was(arrival: Arrival) -> None:
    """On x > 0 unit 2 is always 0: it gets a fresh weight and bias, and nobody hears it; unit 1 is not touched."""
    sgd = learner(ReDo(every=1, threshold=0.0, seed=4))
    x = tensor([0.5], [2.0])
    before, inputs = sgd.predict(x), sgd.view.params[FIRST].clone()
    learn(sgd, arrival(0, [0.5, 2.0], [0, 1]))
    draws = generator(4, "ReDo")
    weight, bias = (torch.empty(1, dtype=torch.float64).uniform_(-1, 1, generator=draws).item() for _ in range(2))
    assert sgd.view.params[FIRST].tolist() == [inputs[0].tolist(), [weight]]
    assert sgd.view.params["model.features.1.bias"].tolist() == [0.0, bias]
    assert sgd.view.params[HEAD].tolist() == [[3.0, 0.0], [-1.0, 0.0]]
    assert torch.equal(sgd.predict(x), before)


def test_a_unit_that_was_not_quite_dead_takes_its_contribution_with_it(arrival: Arrival) -> None:
    """h = (2, 0) and (0, 2): scores 1 and 1; at threshold 1 both begin anew and the biases of the head remain."""
    sgd = learn(learner(ReDo(every=1, threshold=1.0)), arrival(0, [1.0, -3.0], [0, 1]))
    assert torch.equal(sgd.predict(tensor([7.0], [-7.0])), tensor([0.1, -0.1]).expand(2, 2))


def test_redo_looks_every_so_many_updates_counted_over_experiences(arrival: Arrival) -> None:
    sgd = learner(ReDo(every=3, threshold=0.0))
    cost = []
    for number in range(4):
        learn(sgd, arrival(number, [0.5, 2.0], [0, 1]))
        cost.append(sgd.cost().forward_equivalents)
    assert [b - a for a, b in zip([0, *cost], cost, strict=False)] == [6, 6, 8, 6], "a look costs a forward pass a row"
    assert sgd.view.params[HEAD][:, 1].eq(0).all()


def test_redo_that_finds_nothing_changes_nothing(arrival: Arrival) -> None:
    adam = partial(torch.optim.Adam, lr=0.01)
    arrivals = [arrival(0, [1.0, -3.0], [0, 1]), arrival(1, [2.0, -2.0], [1, 0])]
    sgd, plain = (learn(learner(s, optimizer=adam), *arrivals) for s in (ReDo(every=1, threshold=0.0), None))
    assert all(torch.equal(a, b) for a, b in zip(sgd.view.params.values(), plain.view.params.values(), strict=True))


def test_what_the_optimizer_keeps_about_replaced_weights_is_emptied_and_nothing_else(arrival: Arrival) -> None:
    momentum = partial(torch.optim.SGD, lr=0.001, momentum=0.9)
    first = arrival(0, [1.0, -3.0], [0, 1])  # both units act: every weight has a momentum
    sgd, plain = (learn(learner(s, optimizer=momentum), first) for s in (ReDo(every=2, threshold=0.0), None))
    for one in (sgd, plain):
        learn(one, arrival(1, [1.0, 2.0], [0, 1]))
    kept, full = ([one.optimizer.state[p]["momentum_buffer"] for p in one.view.params.values()] for one in (sgd, plain))
    dead = [torch.tensor([[False], [True]]), torch.tensor([False, True]), torch.tensor([[False, True]] * 2)]
    for slots, without, mask in zip(kept[:3], full[:3], dead, strict=True):
        assert slots[mask.expand(slots.shape)].eq(0).all()
        assert without[mask.expand(slots.shape)].ne(0).all()
        assert torch.equal(slots[~mask.expand(slots.shape)], without[~mask.expand(slots.shape)])
    assert torch.equal(kept[3], full[3])


# ---------------------------------------------------------------- continual backpropagation


def test_utilities_ages_and_dues_by_hand(arrival: Arrival) -> None:
    """mean |h| is 1 and 1 for x = 1, -3; outgoing 4 and 2. Then 2 and 0 for x = 1, 1."""
    strategy = ContinualBackprop(rate=0.2, maturity=1, decay=0.5)
    sgd = learn(learner(strategy), arrival(0, [1.0, -3.0], [0, 1]))
    assert strategy.utility[0].tolist() == [2.0, 1.0]
    assert (strategy.age[0].tolist(), strategy.due) == ([1, 1], [0.0])
    learn(sgd, arrival(1, [1.0, 1.0], [0, 1]))
    assert strategy.utility[0].tolist() == [5.0, 0.5]
    assert (strategy.age[0].tolist(), strategy.due) == ([2, 2], [0.4])
    learn(sgd, arrival(2, [1.0, 1.0], [0, 1]))
    assert strategy.due == [0.8]
    assert sgd.view.params[HEAD].tolist() == [[3.0, 0.5], [-1.0, 1.5]]
    learn(sgd, arrival(3, [1.0, 1.0], [0, 1]))  # 1.2 are due: unit 2 goes
    assert strategy.due == [pytest.approx(0.2)]
    assert strategy.utility[0].tolist() == [pytest.approx(7.25), 0.0]
    assert strategy.age[0].tolist() == [4, 0]
    assert sgd.view.params[HEAD].tolist() == [[3.0, 0.0], [-1.0, 0.0]]
    assert sgd.view.params[FIRST][0].item() == 2.0
    assert -1 <= sgd.view.params[FIRST][1].item() <= 1
    assert sgd.view.params[FIRST][1].item() != -1.0


def test_a_new_unit_is_safe_until_it_is_mature(arrival: Arrival) -> None:
    """At rate 1 all mature units go at once, then none for three updates."""
    strategy = ContinualBackprop(rate=1.0, maturity=2, decay=0.0)
    sgd, ages = learner(strategy), []
    for number in range(7):
        learn(sgd, arrival(number, [1.0, -3.0], [0, 1]))
        ages.append(strategy.age[0].tolist())
    assert ages == [[1, 1], [2, 2], [0, 0], [1, 1], [2, 2], [0, 0], [1, 1]]


def test_the_least_useful_of_the_mature() -> None:
    utility, mature = tensor(0.5, 0.1, 3.0, 0.2), torch.tensor([True, False, True, True])
    assert least_useful(utility, mature, 1).tolist() == [3]
    assert least_useful(utility, mature, 2).tolist() == [3, 0]


def test_rate_0_learns_what_is_learned_without_it(arrival: Arrival) -> None:
    adam = partial(torch.optim.Adam, lr=0.01)
    first = arrival(0, [1.0, -3.0], [0, 1])
    sgd, plain = (learn(learner(s, optimizer=adam, epochs=5), first) for s in (ContinualBackprop(rate=0.0), None))
    assert all(torch.equal(a, b) for a, b in zip(sgd.view.params.values(), plain.view.params.values(), strict=True))


def test_outgoing_weights_to_a_head_that_has_not_grown_are_none(arrival: Arrival) -> None:
    sgd = learner(head="growing", model=lambda spec: mlp(spec, hidden=(2,)).double())
    (layer,) = sgd.view.units()
    assert outgoing_size(sgd.view.params, layer).tolist() == [0.0, 0.0]
    learn(sgd, arrival(0, [1.0], [0]), arrival(1, [1.0], [1]))
    (layer,) = sgd.view.units()
    whole = torch.cat([sgd.view.params[f"model.head.blocks.{n}.weight"] for n in (0, 1)])
    assert torch.allclose(outgoing_size(sgd.view.params, layer), whole.detach().abs().sum(0))


@pytest.mark.parametrize(("make", "message"), [
    (partial(ReDo, every=0), r"strategy.redo.every=0 must be at least 1"),
    (partial(ReDo, threshold=-0.1), r"strategy.redo.threshold=-0.1 must be in \[0, 1\]"),
    (partial(ContinualBackprop, rate=1.5), r"strategy.continual_backprop.rate=1.5 must be in \[0, 1\]"),
    (partial(ContinualBackprop, maturity=-1), r"strategy.continual_backprop.maturity=-1 must be at least 0"),
    (partial(ContinualBackprop, decay=1.0), r"strategy.continual_backprop.decay=1.0 must be at least 0 and below 1"),
    (partial(UPGD, [], lr=0.0), r"optimizer.lr=0.0 must be above 0"),
    (partial(UPGD, [], sigma=-1.0), r"optimizer.sigma=-1.0 must be at least 0"),
    (partial(UPGD, [], weight_decay=-1.0), r"optimizer.weight_decay=-1.0 must be at least 0"),
    (partial(UPGD, [], decay=1.0), r"optimizer.decay=1.0 must be at least 0 and below 1"),
])  # fmt: skip
def test_wrong_values_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# ---------------------------------------------------------------- UPGD


def stepped(optimizer: UPGD, weights: list[Tensor], *gradients: list[Tensor]) -> None:
    for each in gradients:
        for w, g in zip(weights, each, strict=True):
            w.grad = g.clone()
        optimizer.step()


def test_two_steps_of_upgd_by_hand() -> None:
    """No noise, decay .5, lr .1, weight decay .2, weights (1, -2) and (4).

    g = (.5, .25), (-.25): -g w = (-.5, .5), (1); the bias-free mean after one step is the same, the largest 1.
    sigmoid(-.5) = .377540669, sigmoid(.5) = .622459331, sigmoid(1) = .731058579;
    w = .98 (1, -2), .98 * 4  -  .1 (.5 * .622459331, .25 * .377540669), .1 * -.25 * .268941421
    """
    a, b = (nn.Parameter(w) for w in (tensor(1.0, -2.0), tensor(4.0)))
    optimizer = UPGD([a, b], lr=0.1, sigma=0.0, decay=0.5, weight_decay=0.2)
    stepped(optimizer, [a, b], [tensor(0.5, 0.25), tensor(-0.25)])
    assert a.tolist() == pytest.approx([0.98 - 0.05 * 0.622459331, -1.96 - 0.025 * 0.377540669], abs=1e-10)
    assert b.tolist() == pytest.approx([3.92 + 0.025 * 0.268941421], abs=1e-10)
    old_a, old_b = a.detach().clone(), b.detach().clone()
    stepped(optimizer, [a, b], [tensor(1.0, 0.0), tensor(0.5)])
    # utilities: .5 * half of (-g w) before + half of (-g w) now, divided by 1 - .25
    u = [(0.25 * -0.5 - 0.5 * float(old_a[0])) / 0.75, 0.25 * 0.5 / 0.75, (0.25 * 1.0 - 0.25 * float(old_b)) / 0.75]
    largest = max(u)
    assert largest == u[1]
    kept = [1 - 1 / (1 + 2.718281828459045 ** (-value / largest)) for value in u]
    expected = (0.98 * old_a - tensor(0.1 * kept[0], 0.0), 0.98 * old_b - 0.05 * kept[2])
    assert torch.allclose(a, expected[0], rtol=0, atol=1e-12)
    assert torch.allclose(b, expected[1], rtol=0, atol=1e-12)


def test_a_weight_that_comes_later_is_judged_by_its_own_few_steps() -> None:
    """Decay .5. Old: -g w = 0, then 1, mean (0 + .5) / .75 = 2/3. New: 1, mean .5 / .5 = 1, the largest.

    1 - sigmoid(2/3) = .339243631, 1 - sigmoid(1) = .268941421
    """
    old, new = nn.Parameter(tensor(1.0)), nn.Parameter(tensor(1.0))
    optimizer = UPGD([old, new], lr=1.0, sigma=0.0, decay=0.5)
    old.grad = tensor(0.0)
    optimizer.step()
    stepped(optimizer, [old, new], [tensor(-1.0), tensor(-1.0)])
    assert (old.item(), new.item()) == (pytest.approx(1.339243631), pytest.approx(1.268941421))


def test_without_a_useful_weight_the_more_useful_still_moves_less() -> None:
    a = nn.Parameter(tensor(1.0, 2.0, 0.0))
    stepped(UPGD([a], lr=1.0, sigma=0.0, decay=0.0), [a], [tensor(1.0, 1.0, 1.0)])  # utilities -1, -2, 0
    assert a.tolist() == pytest.approx([1 - 0.731058579, 2 - 0.880797078, -0.5], abs=1e-9)


def test_no_gradient_and_a_gradient_of_zero_move_nothing_without_noise() -> None:
    a, b = nn.Parameter(tensor(1.0)), nn.Parameter(tensor(2.0))
    optimizer = UPGD([a, b], sigma=0.0)
    a.grad = torch.zeros_like(a)
    optimizer.step()
    assert (a.tolist(), b.tolist()) == ([1.0], [2.0])
    assert b not in optimizer.state


def test_noise_has_its_size_and_comes_from_a_generator_of_its_own_that_goes_on() -> None:
    def run(optimizer: UPGD, w: nn.Parameter, steps: int) -> list[float]:
        stepped(optimizer, [w], *[[torch.zeros_like(w)]] * steps)
        return w.tolist()

    before = torch.get_rng_state()
    w = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    optimizer = UPGD([w], lr=2.0, sigma=0.3, seed=5)
    run(optimizer, w, 1)
    assert float(w.detach().std()) == pytest.approx(0.3, rel=0.05), "lr x sigma x (1 - sigmoid(0))"
    assert torch.equal(torch.get_rng_state(), before)
    copy_of_w = nn.Parameter(w.detach().clone())
    again = UPGD([copy_of_w], lr=2.0, sigma=0.3, seed=99)
    again.load_state_dict(optimizer.state_dict())
    assert run(again, copy_of_w, 2) == run(optimizer, w, 2)


def test_closures_are_called_with_gradients() -> None:
    w = nn.Parameter(tensor(1.0))
    optimizer = UPGD([w], lr=0.1, sigma=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (w * 3).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    assert w.item() < 1.0
