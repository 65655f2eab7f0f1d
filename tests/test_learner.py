"""The SGD learner: its updates against plain torch, what it tells strategies and when, and going on from a snapshot."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from continual.augment import CropFlip
from continual.batches import Schedule
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.memory import ClassBalanced, Reservoir
from continual.models import linear, mlp
from continual.seeding import derive
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.er_ace import ERACE
from continual.strategies.ewc import EWC
from continual.strategies.lwf import LwF
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output, Spec
from scenarios.sources.base import TensorSource
from scenarios.stream import IndexRows


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


SPEC = Spec((4,), 4, dtype=torch.float64)
SGD = partial(torch.optim.SGD, lr=0.1)
MEMORY = partial(Reservoir, 20)


@dataclass
class Table:
    """Rows in two tensors."""

    x: Tensor
    y: Tensor
    ids: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.ids = torch.arange(len(self.y))

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> Batch:
        n = len(indices)
        weight = torch.full((n,), 1 / max(n, 1), dtype=self.x.dtype)
        return Batch(self.x[indices], self.y[indices], weight, n, {"id": self.ids[indices]})

    def fetch(self, ids: Tensor) -> Tensor:
        return self.x[ids]


def blobs(n: int, labels: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Table:
    draws = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)[torch.randint(len(labels), (n,), generator=draws)]
    return Table((torch.randn(n, 4, generator=draws, dtype=torch.float64) + y[:, None]).to(dtype), y)


def experiences(*sizes: int, task_aware: bool = False) -> list[Experience]:
    """Experience e has the classes 2 (e mod 2) and 2 (e mod 2) + 1."""
    return [
        Experience(e, blobs(n, (2 * (e % 2), 2 * (e % 2) + 1), seed=e), e if task_aware else None)
        for e, n in enumerate(sizes)
    ]


def net(spec: Spec) -> nn.Module:
    return mlp(spec, hidden=(5,)).double()


def noisy_net(spec: Spec) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 4)).double()


def learner(strategies: dict[str, Strategy] | None = None, **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"model": net, "optimizer": SGD, "spec": SPEC, "batch_size": 5} | options
    model, optimizer = chosen.pop("model"), chosen.pop("optimizer")
    return SGDLearner(model, optimizer, strategies or {}, **chosen)


def learn(sgd: SGDLearner, *arrivals: Experience) -> list[list[int]]:
    return [list(sgd.learn(experience)) for experience in arrivals]


def tensors(sgd: SGDLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sgd.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize(("epochs", "iterations"), [(1, None), (3, None), (1, 7), (2, 1)])
def test_it_equals_a_torch_loop_over_the_same_batches_bit_for_bit(epochs: int, iterations: int | None) -> None:
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    ours = learner(optimizer=optimizer, epochs=epochs, iterations=iterations, seed=3)
    theirs = copy.deepcopy(ours.network)
    plain = optimizer(theirs.parameters())
    arrivals = experiences(12, 8)
    for lap, experience in enumerate(arrivals):
        for indices in Schedule(len(experience.rows), 5, epochs, iterations, seed=3, lap=lap):
            batch = experience.rows.take(indices)
            plain.zero_grad()
            torch.dot(batch.weight, cross_entropy(theirs(batch.x).logits, batch.y, reduction="none")).backward()  # type: ignore[no-untyped-call]
            plain.step()
    learn(ours, *arrivals)
    assert same(tensors(ours), theirs.state_dict())


@pytest.mark.parametrize(("rows", "epochs", "iterations", "consumed"), [
    (12, 1, None, [5, 5, 2]),
    (12, 2, None, [2, 3, 1, 2, 3, 1]),
    (12, 1, 2, [6, 6]),
    (3, 1, None, [3]),
    (1, 1, None, [1]),
    (1, 3, None, [0, 0, 1]),
    (0, 3, None, []),
    (0, 1, 4, []),
])  # fmt: skip
def test_updates_share_the_rows_that_arrived(
    rows: int, epochs: int, iterations: int | None, consumed: list[int]
) -> None:
    (experience,) = experiences(rows)
    assert learn(learner(epochs=epochs, iterations=iterations), experience) == [consumed]


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 4), st.none() | st.integers(1, 15))
def test_every_schedule_is_made_of_whole_shuffled_passes(
    rows: int, batch_size: int, epochs: int, iterations: int | None
) -> None:
    updates = [indices.tolist() for indices in Schedule(rows, batch_size, epochs, iterations, seed=1, lap=2)]
    per_pass = -(-rows // batch_size)
    assert len(updates) == (0 if not rows else iterations or epochs * per_pass)
    for start in range(0, len(updates) - per_pass + 1, max(per_pass, 1)):
        one_pass = [row for indices in updates[start : start + per_pass] for row in indices]
        assert sorted(one_pass) == list(range(rows))
    assert all(len(indices) == batch_size for k, indices in enumerate(updates, 1) if k % per_pass)


def test_the_order_differs_between_passes_laps_and_seeds() -> None:
    def order(epochs: int = 1, seed: int = 0, lap: int = 0) -> list[int]:
        return [row for indices in Schedule(30, 7, epochs, None, seed, lap) for row in indices.tolist()]

    both = order(epochs=2)
    assert both[:30] == order()
    assert both[30:] != order()
    assert order(lap=1) != order()
    assert order(seed=1) != order()
    assert order() != list(range(30))


def test_rows_that_fit_one_batch_keep_their_order() -> None:
    assert [indices.tolist() for indices in Schedule(5, 5, 2, None, 0, 0)] == [[0, 1, 2, 3, 4]] * 2


def test_the_scheduler_is_stepped_and_gradients_are_clipped_after_every_update() -> None:
    clipped: list[float] = []

    def clip(parameters: list[Tensor]) -> None:
        clipped.append(float(nn.utils.clip_grad_norm_(parameters, 0.01)))

    sgd = learner(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5), clip=clip, batch_size=4)
    rates, moves, before = [], [], tensors(sgd)
    for _ in sgd.learn(experiences(20)[0]):
        rates.append(sgd.view.lr())
        after = tensors(sgd)
        moves.append(sum(float((after[name] - before[name]).square().sum()) for name in after) ** 0.5)
        before = after
    assert rates == [0.1, 0.05, 0.05, 0.025, 0.025]
    assert min(clipped) > 0.01
    assert moves == pytest.approx([0.001, 0.001, 0.0005, 0.0005, 0.00025], rel=1e-3)


def test_frozen_parameters_stay_and_are_no_parameters_to_strategies() -> None:
    def half_frozen(spec: Spec) -> nn.Module:
        network = net(spec)
        next(network.parameters()).requires_grad_(False)
        return network

    sgd = learner({"ewc": EWC()}, model=half_frozen)
    name, frozen = next(iter(sgd.network.named_parameters()))
    before = frozen.clone()
    learn(sgd, *experiences(10, 10))
    assert torch.equal(frozen, before)
    assert name not in sgd.view.params
    assert name in sgd.view.buffers
    assert sgd.view.copy().keys() == dict(sgd.network.state_dict()).keys()


def test_the_seed_decides_the_weights_and_global_generators_do_not() -> None:
    def trained(seed: int, outside: int) -> dict[str, Tensor]:
        torch.manual_seed(outside)
        sgd = learner({"er": ER(MEMORY, n_replay=3, seed=seed)}, model=noisy_net, seed=seed)
        learn(sgd, *experiences(10, 10))
        return tensors(sgd)

    first = trained(0, outside=1)
    assert same(first, trained(0, outside=2))
    assert not same(first, trained(1, outside=1))


def test_nothing_draws_from_the_global_generator_even_with_dropout() -> None:
    before = torch.get_rng_state()
    sgd = learner({"ewc": EWC(), "er": ER(MEMORY)}, model=noisy_net)
    learn(sgd, *experiences(10, 10))
    sgd.predict(torch.zeros(3, 4, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)


def test_looking_for_dropout_leaves_the_batch_statistics_as_they_were() -> None:
    sgd = learner(model=noisy_net)
    found = {name.removeprefix("model.1."): tensor.tolist() for name, tensor in sgd.network.named_buffers()}
    assert found == {"running_mean": [0.0] * 6, "running_var": [1.0] * 6, "num_batches_tracked": 0}


def test_dropout_differs_from_update_to_update() -> None:
    """Two updates on one row, with the weights put back between them, differ only by their dropout."""
    sgd = learner(model=noisy_net, batch_size=2)
    before, (experience,) = tensors(sgd), experiences(2)
    after = []
    for _ in range(2):
        sgd.network.load_state_dict(before)
        learn(sgd, experience)
        after.append(tensors(sgd))
    assert not same(*after)


# ---------------------------------------------------------------- what strategies are told, and when


class Scribe(Strategy):
    """Writes down what it is told."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self.diary = name, diary

    def _note(self, seam: str, view: View) -> None:
        classes = view.classes.nonzero()[:, 0].tolist() if seam != "start" else []
        self.diary.append(f"{self.name} {seam} {view.experience} {view.task} {classes}")

    def start(self, view: View) -> None:
        assert not view.classes.any()
        assert view.spec is SPEC or view.spec.task_aware
        self.diary.append(f"{self.name} start")

    def begin(self, view: View, experience: Experience) -> None:
        assert view.experience == experience.index
        self._note("begin", view)

    def mix(self, view: View, batch: Batch) -> Batch:
        assert torch.equal(view.fetch(batch.extra["id"]), batch.x)
        assert view.classes[batch.y].all(), "the current batch included"
        self._note("mix", view)
        return batch

    def end(self, view: View, experience: Experience) -> None:
        self._note("end", view)


def test_strategies_are_told_in_order_with_the_view_up_to_date() -> None:
    diary: list[str] = []
    sgd = learner({"b": Scribe("b", diary), "a": Scribe("a", diary)}, spec=Spec((4,), 4, SPEC.dtype, task_aware=True))
    tables = [Table(torch.randn(2, 4, dtype=torch.float64), torch.tensor([c, c])) for c in (3, 1)]
    for e, table in enumerate(tables):
        list(sgd.learn(Experience(e, table, task=7 + e)))
    assert diary == [
        "b start", "a start",
        "b begin 0 7 []", "a begin 0 7 []",
        "b mix 0 7 [3]", "a mix 0 7 [3]",
        "b end 0 7 [3]", "a end 0 7 [3]",
        "b begin 1 8 [3]", "a begin 1 8 [3]",
        "b mix 1 8 [1, 3]", "a mix 1 8 [1, 3]",
        "b end 1 8 [1, 3]", "a end 1 8 [1, 3]",
    ]  # fmt: skip


def test_an_experience_without_labels_begins_and_ends_and_changes_nothing_else() -> None:
    diary: list[str] = []
    for iterations in (None, 3):
        sgd = learner({"s": Scribe("s", diary), "er": ER(MEMORY)}, iterations=iterations)
        before = tensors(sgd)
        learn(sgd, *experiences(0, 0))
        assert same(tensors(sgd), before)
        assert sgd.cost().forward_equivalents == 0
    assert diary == ["s start", "s begin 0 None []", "s end 0 None []", "s begin 1 None []", "s end 1 None []"] * 2


def test_arrivals_of_one_row_equal_one_update_per_row() -> None:
    rows = blobs(6, (0, 1), seed=0)
    online, batchwise = learner(), learner(batch_size=1)
    for i in range(6):
        list(online.learn(Experience(i, Table(rows.x[i : i + 1], rows.y[i : i + 1]))))
    order = torch.cat(list(Schedule(6, 1, 1, None, seed=0, lap=0)))
    list(batchwise.learn(Experience(0, Table(rows.x[order.argsort()], rows.y[order.argsort()]))))
    assert same(tensors(online), tensors(batchwise))


def test_the_same_stream_again_is_a_new_lap() -> None:
    sgd = learner({"er": ER(MEMORY, n_replay=2)}, epochs=2)
    (experience,) = experiences(15)
    learn(sgd, experience)
    once = tensors(sgd)
    learn(sgd, experience)
    assert sgd.lap == 2
    assert not same(tensors(sgd), once)


# ---------------------------------------------------------------- the view


def test_view_gradient_is_autograd_s_and_costs_three_forwards_a_row() -> None:
    sgd = learner()
    batch = experiences(6)[0].rows.take(torch.arange(6))
    found = sgd.view.gradient(batch)
    assert sgd.cost().forward_equivalents == 3 * 6
    assert all(p.grad is None for p in sgd.network.parameters())
    cross_entropy(sgd.network(batch.x).logits, batch.y).backward()  # type: ignore[no-untyped-call]
    for name, p in sgd.network.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad, rtol=1e-12, atol=1e-15)


def single_row_gradients(sgd: SGDLearner, batch: Batch, allowed: Tensor) -> dict[str, Tensor]:
    """One backward pass per row, in eval mode."""
    sgd.network.eval()
    rows: dict[str, list[Tensor]] = {name: [] for name in sgd.view.params}
    for i in range(len(batch)):
        sgd.network.zero_grad()
        logits = sgd.network(batch.x[i : i + 1]).logits.masked_fill(~allowed, -float("inf"))
        cross_entropy(logits, batch.y[i : i + 1]).backward()  # type: ignore[no-untyped-call]
        for name, p in sgd.view.params.items():
            assert p.grad is not None
            rows[name].append(p.grad.clone())
    sgd.network.zero_grad()
    sgd.network.train()
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


@pytest.mark.parametrize("model", [net, noisy_net])
@pytest.mark.parametrize(("head", "classes"), [
    ("all", [0, 1, 2, 3]), ("seen", [0, 1, 2, 3]), ("current", [2, 3]), ("per_task", [2, 3])
])  # fmt: skip
@pytest.mark.parametrize("company", [{}, {"er_ace": ERACE(MEMORY)}], ids=["alone", "beside er_ace"])
def test_row_gradients_equal_one_backward_per_row(
    model: Callable[[Spec], nn.Module], head: str, classes: list[int], company: dict[str, Strategy]
) -> None:
    sgd = learner(company, model=model, head=head, spec=Spec((4,), 4, SPEC.dtype, task_aware=True))
    arrivals = experiences(10, 10, task_aware=True)
    learn(sgd, *arrivals)
    spent, batch = sgd.cost().forward_equivalents, arrivals[1].rows.take(torch.arange(7))
    found = sgd.view.row_gradients(batch)
    assert sgd.cost().forward_equivalents - spent == 3 * 7
    allowed = torch.zeros(4, dtype=torch.bool).scatter(0, torch.tensor(classes), True)
    for name, expected in single_row_gradients(sgd, batch, allowed).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-14)
        assert found[name].abs().max() > 0
    assert sgd.network.training


def test_a_copied_network_stays_as_it_was_and_answers_in_eval_mode() -> None:
    sgd = learner(model=noisy_net)
    x = torch.randn(4, 4, dtype=torch.float64)
    teacher, before = sgd.view.copy(), sgd.predict(x)
    learn(sgd, *experiences(20))
    spent = sgd.cost().forward_equivalents
    taught = sgd.view.answer(teacher, x).logits
    assert torch.equal(taught, before)
    assert not taught.requires_grad
    assert not torch.equal(sgd.predict(x), before)
    assert sgd.cost().forward_equivalents == spent + 4
    assert sgd.network.training, "train mode is back"


def test_a_forward_pass_through_other_weights_is_differentiable_in_them() -> None:
    sgd = learner()
    x = torch.randn(4, 4, dtype=torch.float64)
    other = {name: (p.detach() + 1).requires_grad_() for name, p in sgd.view.params.items()}
    sgd.view.forward(other, x).logits.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in other.values())
    assert all(p.grad is None for p in sgd.view.params.values())


# ---------------------------------------------------------------- prediction


class Shift(Strategy):
    def __init__(self, factor: float, add: float) -> None:
        self.factor, self.add = factor, add

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        assert out.features is not None
        assert not torch.is_grad_enabled()
        return out.logits * self.factor + self.add


def test_prediction_passes_through_the_strategies_in_turn() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    plain = learner().predict(x)
    shifted = learner({"a": Shift(2, 0), "b": Shift(1, 5)}).predict(x)
    torch.testing.assert_close(shifted, 2 * plain + 5, rtol=1e-14, atol=1e-14)


def test_prediction_changes_nothing_and_rows_do_not_see_each_other() -> None:
    sgd = learner({"er": ER(MEMORY)}, model=noisy_net)
    learn(sgd, *experiences(20))
    before = copy.deepcopy(sgd.state_dict())
    x = torch.randn(6, 4, dtype=torch.float64)
    logits = sgd.predict(x)
    torch.testing.assert_close(torch.cat([sgd.predict(row[None]) for row in x]), logits, rtol=1e-13, atol=1e-13)
    assert equal(before, sgd.state_dict())
    assert sgd.network.training
    assert not logits.requires_grad


def test_prediction_answers_among_the_classes_of_the_head() -> None:
    sgd = learner(head="seen")
    learn(sgd, experiences(20)[0])
    assert set(sgd.predict(torch.randn(50, 4, dtype=torch.float64)).argmax(1).tolist()) <= {0, 1}


# ---------------------------------------------------------------- snapshots


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


IMAGES = Spec((1, 2, 2), 4, dtype=torch.float64)


def on_images() -> SGDLearner:
    """Everything that has state at once: momentum, schedule, dropout, batch statistics, augmentation, memories."""
    strategies: dict[str, Strategy] = {
        "er": ER(partial(ClassBalanced, 8), n_replay=2),
        "derpp": DERPP(partial(Reservoir, 8), n_replay=2),
        "ewc": EWC(strength=0.5, decay=0.5),
        "lwf": LwF(),
    }
    return SGDLearner(
        lambda spec: nn.Sequential(nn.Flatten(), noisy_net(spec)),
        partial(torch.optim.Adam, lr=0.01),
        strategies,
        spec=IMAGES,
        batch_size=4,
        epochs=2,
        head="current",
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=9),
        augment=CropFlip(crop=1),
    )


def image_arrivals() -> list[Experience]:
    arrivals = []
    for experience in experiences(8, 6):
        table = experience.rows.take(torch.arange(len(experience.rows)))
        arrivals.append(Experience(experience.index, Table(table.x.view(-1, 1, 2, 2), table.y)))
    return arrivals


def steps(sgd: SGDLearner, arrivals: list[Experience]) -> Iterator[tuple[int, int]]:
    """(index of the experience, update) after each update."""
    for experience in arrivals:
        for k, _ in enumerate(sgd.learn(experience)):
            yield experience.index, k


@pytest.mark.parametrize("stop", range(8))
def test_a_fresh_learner_goes_on_from_any_update_bit_for_bit(stop: int) -> None:
    arrivals, whole, part = image_arrivals(), on_images(), on_images()
    assert len(list(steps(whole, arrivals))) == 8
    at, state = 0, part.state_dict()
    for count, (index, _) in enumerate(steps(part, arrivals)):
        at, state = index, copy.deepcopy(part.state_dict())
        if count == stop:
            break
    fresh = on_images()
    fresh.load_state_dict(state)
    list(steps(fresh, arrivals[at:]))
    assert equal(fresh.state_dict(), whole.state_dict())


def test_loading_shares_no_memory_with_the_snapshot() -> None:
    arrivals, first = image_arrivals(), on_images()
    list(steps(first, arrivals[:1]))
    state = copy.deepcopy(first.state_dict())
    kept = copy.deepcopy(state)
    second = on_images()
    second.load_state_dict(state)
    list(steps(second, arrivals[1:]))
    assert equal(state, kept)


def test_a_snapshot_of_other_strategies_is_refused() -> None:
    with pytest.raises(UserError, match=r"the snapshot holds strategies \['er'\], this learner has \['lwf'\]"):
        learner({"lwf": LwF()}).load_state_dict(learner({"er": ER(MEMORY)}).state_dict())


def test_a_strategy_without_state_refuses_one() -> None:
    with pytest.raises(ValueError, match=r"Shift keeps no state, got keys \['x'\]"):
        Shift(1, 0).load_state_dict({"x": 1})


# ---------------------------------------------------------------- mistakes


class Bounded(Strategy):
    needs_boundaries: ClassVar[bool] = True


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, r"train.batch_size=0 must be at least 1"),
    ({"epochs": 0}, r"train.epochs=0 must be at least 1"),
    ({"iterations": 0}, r"train.iterations=0 must be at least 1"),
    ({"batch_size": 8, "spec": Spec((4,), 4, smallest=7)},
     r"train.batch_size=8 is larger than the smallest experience of 7 rows; use at most train.batch_size=7"),
    ({"strategies": {"mine": Bounded()}, "spec": Spec((4,), 4, boundaries=False)},
     r"strategy 'mine' needs task boundaries, and this stream hides them"),
    ({"augment": CropFlip()}, r"augment needs images .* got \(4,\)"),
    ({"head": "per_task"}, r"per_task asks for task labels"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_the_first_row(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner(**options)


def test_a_batch_as_large_as_the_smallest_experience_is_fine_and_so_are_small_arrivals() -> None:
    learner(batch_size=7, spec=Spec((4,), 4, SPEC.dtype, smallest=7))
    learner(batch_size=8, spec=Spec((4,), 4, SPEC.dtype, smallest=1, boundaries=False))


def test_a_task_label_is_refused_where_the_stream_hides_it() -> None:
    x = torch.zeros(1, 4, dtype=torch.float64)
    with pytest.raises(UserError, match=r"predict got task=1, and this stream hides task labels"):
        learner().predict(x, task=1)
    learner(spec=Spec((4,), 4, SPEC.dtype, task_aware=True)).predict(x, task=1)


def test_trying_the_augmentation_draws_nothing_from_it() -> None:
    augment, fresh = CropFlip(seed=1), CropFlip(seed=1)
    SGDLearner(linear, SGD, {}, spec=Spec((1, 4, 4), 2), augment=augment)
    assert torch.equal(augment.generator.get_state(), fresh.generator.get_state())


def test_the_model_is_drawn_from_its_own_seed() -> None:
    sgd = SGDLearner(linear, SGD, {}, spec=Spec((4,), 4), seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(5, "model"))
        expected = linear(Spec((4,), 4))
    assert all(torch.equal(a, b) for a, b in zip(sgd.network.parameters(), expected.parameters(), strict=True))
    assert functional_call(expected, {}, (torch.zeros(1, 4),)).logits.shape == (1, 4)


def test_a_single_last_row_joins_the_batch_before_it_where_the_model_needs_two():
    sizes = [len(indices) for indices in Schedule(21, 10, 2, None, seed=0, lap=0, least=2)]
    assert sizes == [10, 11, 10, 11]
    assert [len(indices) for indices in Schedule(21, 10, 1, None, seed=0, lap=0)] == [10, 10, 1]
    assert [len(indices) for indices in Schedule(22, 10, 1, None, seed=0, lap=0, least=2)] == [10, 10, 2]
    assert [len(indices) for indices in Schedule(1, 10, 1, None, seed=0, lap=0, least=2)] == [1]


def test_batch_normalisation_refuses_batches_of_one_row_before_training():
    def normed(spec):
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

    single = Spec((2,), 2, boundaries=False, smallest=1)
    with pytest.raises(UserError, match=r"smallest experience is 1 row.*at least 2"):
        SGDLearner(normed, partial(torch.optim.SGD, lr=0.1), {}, spec=single)
    with pytest.raises(UserError, match="batch_size is 1 row"):
        SGDLearner(normed, partial(torch.optim.SGD, lr=0.1), {}, spec=Spec((2,), 2), batch_size=1)


class Gradients(Strategy):
    """Draws through the network's dropout outside the step."""

    def begin(self, view, experience):
        view.gradient(experience.rows.take(torch.arange(4)))

    end = begin


def test_dropout_in_begin_and_end_draws_from_the_learners_own_noise():
    def dropping(spec):
        return nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))

    stream = TwoFeatures()
    learner = SGDLearner(dropping, partial(torch.optim.SGD, lr=0.1), {"s": Gradients()}, spec=stream.spec, batch_size=5)
    before = torch.get_rng_state()
    for _ in learner.learn(stream.experience):
        pass
    assert torch.equal(before, torch.get_rng_state())


def test_eval_mode_within_eval_mode_stays_eval_mode():
    stream = TwoFeatures()
    learner = SGDLearner(linear, partial(torch.optim.SGD, lr=0.1), {}, spec=stream.spec, batch_size=5)
    with learner.view.still():
        learner.view.answer(learner.view.copy(), torch.zeros(1, 2))
        assert not learner.network.training
    assert learner.network.training


class TwoFeatures:
    """Twelve rows of two features and two classes in one experience."""

    def __init__(self):
        x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
        y = torch.arange(12) % 2
        self.spec = Spec((2,), 2)
        self.experience = Experience(0, IndexRows(TensorSource(x, y), torch.arange(12), y))
