"""Which classes compete, and heads whose rows come into being as classes arrive."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual import snapshot
from continual.errors import UserError
from continual.heads import KINDS, Head
from continual.learner import SGDLearner
from continual.learners.joint import Joint
from continual.memory import Reservoir
from continual.models import Classifier, linear, mlp
from continual.seeding import generator
from continual.step import MASKED
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.types import Batch, Experience, Spec

CPU = torch.device("cpu")


def head(kind: str, n_classes: int = 5, task_aware: bool = True) -> Head:
    return Head(kind, Spec((1,), n_classes, task_aware=task_aware), CPU)


def batch(labels: list[int], arrived: int) -> Batch:
    n = len(labels)
    return Batch(torch.zeros(n, 1), torch.tensor(labels), torch.full((n,), 1 / n), arrived)


def arrive(h: Head, labels: list[int], task: int | None = None) -> None:
    h.arrive(torch.tensor(labels, dtype=torch.int64), task)


def mask(h: Head, labels: list[int], arrived: int) -> list[list[int]]:
    allowed = h.mask(batch(labels, arrived))
    assert allowed is not None
    return allowed.int().tolist()


def answered(h: Head, task: int | None = None) -> list[int]:
    """Classes that may be answered."""
    logits = h.restrict(torch.arange(5.0)[None], task)
    return (logits[0] > MASKED).nonzero()[:, 0].tolist()


def test_all_lets_every_class_compete_and_be_answered() -> None:
    h = head("all")
    arrive(h, [0, 1], task=0)
    assert h.mask(batch([0, 1], 2)) is None
    assert answered(h) == answered(h, 0) == [0, 1, 2, 3, 4]


def test_seen_grows_with_the_labels_that_arrive() -> None:
    h = head("seen")
    arrive(h, [3])
    assert mask(h, [3, 3], arrived=1) == [[0, 0, 0, 1, 0]] * 2
    h.begin()
    arrive(h, [0, 3])
    assert mask(h, [0, 3], arrived=1) == [[1, 0, 0, 1, 0]] * 2
    assert answered(h) == [0, 3]


def test_current_limits_arrived_rows_to_their_experience_and_replayed_rows_to_the_classes_seen() -> None:
    h = head("current")
    arrive(h, [0, 1])
    h.begin()
    arrive(h, [2])
    arrive(h, [4])
    assert mask(h, [2, 4, 0], arrived=2) == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 1], [1, 1, 1, 0, 1]]
    assert answered(h) == [0, 1, 2, 4], "prediction is among all classes seen"


def test_per_task_lets_classes_of_one_task_compete_whoever_arrived() -> None:
    h = head("per_task")
    arrive(h, [0, 1], task=0)
    h.begin()
    arrive(h, [2, 4], task=1)
    assert mask(h, [2, 0, 4], arrived=1) == [[0, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert answered(h, 0) == [0, 1]
    assert answered(h, 1) == [2, 4]
    assert answered(h, None) == [0, 1, 2, 4]


def test_per_task_joins_the_tasks_that_share_a_class() -> None:
    h = head("per_task")
    arrive(h, [0, 1], task=0)
    arrive(h, [1, 2], task=1)
    assert mask(h, [0, 1, 2], arrived=3) == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0]]


def test_per_task_answers_a_task_that_never_came_among_the_classes_seen() -> None:
    h = head("per_task")
    arrive(h, [0, 1], task=2)
    assert answered(h, 0) == [0, 1], "tasks before the newest one that were skipped"
    assert answered(h, 7) == [0, 1], "tasks beyond the newest one"


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_row_every_class_may_be_answered(kind: str) -> None:
    assert answered(head(kind)) == answered(head(kind), 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_labels_change_nothing(kind: str) -> None:
    h = head(kind)
    arrive(h, [1], task=0)
    before = h.state_dict()
    arrive(h, [], task=0)
    assert all(torch.equal(before[name], value) for name, value in h.state_dict().items())


def test_restrict_leaves_the_logits_it_allows_and_the_tensor_it_was_given() -> None:
    h = head("seen", n_classes=3)
    arrive(h, [0, 2])
    logits = torch.tensor([[1.5, 9.0, -2.0]])
    assert h.restrict(logits, None).tolist() == [[1.5, MASKED, -2.0]]
    assert logits.tolist() == [[1.5, 9.0, -2.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_head_masks_alike_and_shares_no_memory(kind: str) -> None:
    old, new = head(kind), head(kind)
    for task, labels in enumerate([[0, 1], [2, 3]]):
        old.begin()
        arrive(old, labels, task)
    state = old.state_dict()
    new.load_state_dict(state)
    asked = batch([2, 0], arrived=1)
    assert as_lists(new.mask(asked)) == as_lists(old.mask(asked))
    assert answered(new, 1) == answered(old, 1)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    arrive(new, [4], task=0)
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


def as_lists(allowed: Tensor | None) -> object:
    return None if allowed is None else allowed.tolist()


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"train.head='sen' is unknown; use one of all, seen, current, per_task, growing, multi_head"
    ):
        head("sen")


@pytest.mark.parametrize("kind", ["per_task", "multi_head"])
def test_heads_by_task_are_refused_where_task_labels_are_hidden(kind: str) -> None:
    with pytest.raises(UserError, match=rf"train.head={kind} asks for task labels, and this stream hides them"):
        head(kind, task_aware=False)


# ---------------------------------------------------------------- heads that grow


def net(spec: Spec) -> nn.Module:
    return mlp(spec, hidden=(5,)).double()


def grown(head: str, task_aware: bool = False, model: Callable[[Spec], nn.Module] = net, **options: Any) -> SGDLearner:
    spec = Spec((1,), 5, dtype=torch.float64, task_aware=task_aware)
    optimizer = options.pop("optimizer", partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    return SGDLearner(model, optimizer, options.pop("strategies", {}), spec=spec, batch_size=2, head=head, **options)


def learn(sgd: SGDLearner, *arrivals: Experience) -> SGDLearner:
    for experience in arrivals:
        list(sgd.learn(experience))
    return sgd


Arrival = Callable[..., Experience]


def names(sgd: SGDLearner) -> list[str]:
    return [name for name in sgd.view.params if ".head." in name]


def test_a_growing_head_learns_bit_for_bit_what_a_fixed_one_of_the_same_values_learns(arrival: Arrival) -> None:
    """Classes that have not arrived have no part in it, whatever their rows hold."""
    arrivals = arrival(0, [0.5, -1.0, 2.0], [3, 1, 3]), arrival(1, [1.0, 0.3], [0, 3]), arrival(2, [0.1], [1])
    growing = learn(grown("growing", seed=2), *arrivals)
    fixed = grown("seen", seed=2)
    fresh = [head_row(2, label) for label in range(5)]
    fixed.network.model.head.weight.data = torch.stack([row[:-1] for row in fresh])  # type: ignore[operator, union-attr]
    fixed.network.model.head.bias.data = torch.stack([row[-1] for row in fresh])  # type: ignore[operator, union-attr]
    learn(fixed, *arrivals)
    x = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    assert torch.equal(growing.predict(x), fixed.predict(x))
    assert growing.predict(x)[:, [2, 4]].eq(MASKED).all()


def head_row(seed: int, label: int) -> Tensor:
    """(F + 1,) initial weights and bias of a class."""
    return torch.empty(6, dtype=torch.float64).uniform_(-(5**-0.5), 5**-0.5, generator=generator(seed, "head", label))


def test_initial_rows_depend_on_the_seed_and_the_class_alone(arrival: Arrival) -> None:
    for order in ([[0, 1], [2, 3]], [[3, 2], [1, 0]], [[0, 1, 2, 3]]):
        sgd = grown("growing", seed=7, optimizer=partial(torch.optim.SGD, lr=1e-300))
        learn(sgd, *(arrival(i, [0.0] * len(labels), labels) for i, labels in enumerate(order)))
        head = sgd.growing
        assert head is not None
        assert [classes for _, classes in head.made] == [sorted(labels) for labels in order]
        parts = [torch.cat([block.weight, block.bias[:, None]], 1) for block in head.blocks]  # type: ignore[operator, index, list-item]
        rows = dict(zip([label for _, classes in head.made for label in classes], torch.cat(parts), strict=True))
        assert all(torch.equal(row, head_row(7, label)) for label, row in rows.items())


def test_rows_appear_with_their_class_in_the_view_and_the_optimizer(arrival: Arrival) -> None:
    sgd = grown("growing")
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert (names(sgd), sgd.predict(x).tolist()) == ([], [[0.0] * 5])
    params = sgd.view.params
    learn(sgd, arrival(0, [0.5, 1.0], [1, 3]))
    assert names(sgd) == ["model.head.blocks.0.weight", "model.head.blocks.0.bias"]
    learn(sgd, arrival(1, [0.5], [3]))
    learn(sgd, arrival(2, [0.5, 0.1, 0.2], [3, 4, 0]))
    assert names(sgd)[2:] == ["model.head.blocks.1.weight", "model.head.blocks.1.bias"]
    assert sgd.view.params is params, "strategies hold on to it"
    assert all(a is b for a, b in zip(sgd.optimizer.param_groups[0]["params"], params.values(), strict=True))
    assert all(p in sgd.optimizer.state for p in params.values())
    assert dict(sgd.network.named_parameters()).keys() == params.keys()


def test_new_rows_follow_the_schedule_of_the_others(arrival: Arrival) -> None:
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    sgd = learn(grown("growing", scheduler=scheduler), arrival(0, [0.5], [0]), arrival(1, [0.5], [1]))
    assert len(sgd.optimizer.param_groups) == 1
    assert sgd.view.lr() == 0.1 * 0.25


def test_softmax_regression_grows_from_no_parameter_at_all(arrival: Arrival) -> None:
    sgd = grown("growing", model=lambda spec: linear(spec).double(), iterations=40)
    learn(sgd, arrival(0, [0.5, -1.0], [0, 2]))
    assert list(sgd.view.params) == names(sgd)
    assert sgd.predict(torch.tensor([[5.0], [-9.0]], dtype=torch.float64)).argmax(1).tolist() == [0, 2]


def test_a_head_without_bias_grows_without_one(arrival: Arrival) -> None:
    def plain(spec: Spec) -> nn.Module:
        return Classifier(nn.Flatten(), nn.Linear(1, spec.n_classes, bias=False, dtype=torch.float64))

    sgd = learn(grown("growing", model=plain), arrival(0, [0.5, -1.0], [0, 2]))
    assert names(sgd) == ["model.head.blocks.0.weight"]
    assert sgd.predict(torch.zeros(1, 1, dtype=torch.float64))[0, [0, 2]].tolist() == [0.0, 0.0]


def test_each_task_has_a_head_of_its_own_where_labels_repeat(arrival: Arrival) -> None:
    """Tasks that contradict each other; each is learned as if it were alone, by rows of the same initial values."""
    tasks = [arrival(0, [1.0, -1.0], [0, 1], 0), arrival(1, [1.0, -1.0], [1, 0], 1)]
    flat = partial(grown, "multi_head", task_aware=True, model=lambda spec: linear(spec).double(), iterations=40)
    sgd = learn(flat(), *tasks)
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert [sgd.predict(x, task).argmax(1).tolist() for task in (0, 1)] == [[0, 1], [1, 0]]
    assert torch.equal(sgd.predict(x, 1), learn(flat(), tasks[1]).predict(x, 1))
    sgd.predict(x, 0)
    assert torch.equal(sgd.predict(x), sgd.predict(x, 1)), "without a label it answers for the task in training"
    assert torch.equal(sgd.predict(x, 0), learn(flat(), tasks[0]).predict(x, 0)), "momentum may not move it any further"


def test_row_gradients_of_rows_without_part_are_zeros_that_may_be_written_to(arrival: Arrival) -> None:
    sgd = learn(grown("multi_head", task_aware=True), arrival(0, [1.0], [0], 0), arrival(1, [1.0], [0], 1))
    gradients = sgd.view.row_gradients(arrival(2, [1.0, 2.0], [0, 0]).rows.take(torch.arange(2)))
    assert gradients["model.head.blocks.0.weight"].add_(torch.arange(2.0)[:, None, None]).sum().item() == 5.0


def test_a_task_that_never_came_is_answered_by_the_last_head_with_the_class(arrival: Arrival) -> None:
    sgd = learn(grown("multi_head", task_aware=True), arrival(0, [1.0], [0], 0), arrival(1, [1.0, 0.1], [0, 1], 1))
    x = torch.tensor([[1.0]], dtype=torch.float64)
    assert torch.equal(sgd.predict(x, 7), sgd.predict(x, 1))
    assert sgd.predict(x, 0)[0, 1:].eq(MASKED).all()


def test_rows_of_a_task_compete_among_its_own_classes_where_labels_repeat(arrival: Arrival) -> None:
    sgd = learn(
        grown("multi_head", task_aware=True), arrival(0, [1.0, 0.1], [0, 1], 0), arrival(1, [1.0, 0.1], [1, 2], 1)
    )
    allowed = sgd.head.mask(batch([1, 2], arrived=2))
    assert allowed is not None
    assert allowed.int().tolist() == [[0, 1, 1, 0, 0]] * 2


def test_replay_is_refused_where_rows_do_not_say_which_head_is_theirs(arrival: Arrival) -> None:
    memory = {"er": ER(partial(Reservoir, 5), n_replay=1)}
    apart = [arrival(0, [1.0], [0], 0), arrival(1, [1.0, 0.1], [1, 2], 1)]
    learn(grown("multi_head", task_aware=True, strategies=memory), *apart)
    again = grown("multi_head", task_aware=True, strategies={"er": ER(partial(Reservoir, 5), n_replay=1)})
    with pytest.raises(UserError, match=r"a label came with several tasks, and replayed rows do not say which task"):
        learn(again, *apart, arrival(2, [0.1], [0], 2))


@pytest.mark.parametrize("kind", ["growing", "multi_head"])
@pytest.mark.parametrize("scheduler", [None, partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)])
def test_a_used_learner_takes_over_a_snapshot_of_another_growth(kind: str, scheduler: Any, arrival: Arrival) -> None:
    make = partial(grown, kind, task_aware=True, scheduler=scheduler, optimizer=partial(torch.optim.Adam, lr=0.1))
    arrivals = [arrival(0, [1.0, 0.1], [0, 1], 0), arrival(1, [1.0, 0.1], [1, 2], 1), arrival(2, [1.0], [4], 2)]
    old = learn(make(), *arrivals[:2])
    used = learn(make(), arrival(0, [2.0, 1.0, -1.0], [3, 2, 1], 0), arrivals[2])
    used.load_state_dict(copy.deepcopy(old.state_dict()))
    assert snapshot.dumps(used.state_dict()) == snapshot.dumps(old.state_dict())
    assert list(used.view.params) == list(old.view.params)
    assert snapshot.dumps(learn(used, arrivals[2]).state_dict()) == snapshot.dumps(learn(old, arrivals[2]).state_dict())


def test_derpp_replays_logit_0_for_classes_that_did_not_exist(arrival: Arrival) -> None:
    strategy = DERPP(partial(Reservoir, 5), n_replay=2)
    learn(grown("growing", strategies={"derpp": strategy}), arrival(0, [1.0, 0.1], [0, 1]))
    stored = strategy.memory.column("logits", torch.tensor([0, 1]))
    assert stored[:, 2:].eq(0).all()
    assert stored[:, :2].ne(0).all()


@pytest.mark.parametrize("kind", ["growing", "multi_head"])
def test_a_model_without_features_and_a_head_cannot_grow_one(kind: str) -> None:
    with pytest.raises(
        UserError, match=rf"train.head={kind} needs a model of features and a linear head .* got Linear"
    ):
        grown(kind, task_aware=True, model=lambda spec: nn.Linear(1, spec.n_classes))


def test_joint_refuses_a_head_for_each_task() -> None:
    with pytest.raises(UserError, match=r"learner=joint mixes the rows of all tasks; use train.head=per_task"):
        Joint(net, partial(torch.optim.SGD, lr=0.1), spec=Spec((1,), 5, task_aware=True), head="multi_head")


def test_joint_trains_anew_from_the_first_values_of_all_rows(table: Any) -> None:
    """After two experiences it is where it would be had all their rows come at once."""
    spec = Spec((1,), 5)
    make = partial(Joint, mlp, partial(torch.optim.SGD, lr=0.1), spec=spec, head="growing", epochs=3)
    x, y = torch.tensor([[1.0], [0.1], [1.5], [0.3]]), torch.tensor([0, 1, 3, 1])
    twice, once = make(), make()
    for number, part in enumerate((slice(0, 2), slice(2, 4))):
        list(twice.learn(Experience(number, table(x[part], y[part]))))
    list(once.learn(Experience(0, table(x, y))))
    assert torch.allclose(twice.predict(x), once.predict(x), rtol=0, atol=1e-6)
    assert not torch.allclose(make().predict(x), once.predict(x), rtol=0, atol=1e-2)
