"""PackNet on networks small enough to follow: what is kept, what may move, and answers of earlier tasks bit for bit."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual.contract.tools import moody
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.strategies.icarl import ICaRL
from continual.strategies.packnet import PackNet, largest
from continual.types import Experience, Spec

DOUBLE = torch.float64
SPEC = Spec((1,), 3, dtype=DOUBLE, task_aware=True)
LR = 0.1


def numbers(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def learner(packnet: PackNet, model: Callable[[Spec], nn.Module], **options: Any) -> SGDLearner:
    optimizer = options.pop("optimizer", partial(torch.optim.SGD, lr=LR))
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 4} | options
    return SGDLearner(model, optimizer, {"packnet": packnet}, **chosen)


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(("share", "expected"), [
    (0.5, [[False, True, False], [False, True, True]]),  # 5 free, 2 given back
    (0.0, [[True, True, False], [True, True, True]]),
    (0.9, [[False, True, False], [False, False, False]]),  # 4 given back
    (0.79, [[False, True, False], [False, True, False]]),  # floor(3.95)
])  # fmt: skip
def test_the_largest_free_weights_are_kept(share: float, expected: list[list[bool]]) -> None:
    weight = numbers([0.1, -5.0, 9.0], [0.2, 2.0, -1.0])
    free = torch.tensor([[True, True, False], [True, True, True]])
    assert largest(weight, free, share).tolist() == expected


def test_a_weight_of_zero_is_not_kept() -> None:
    free = torch.ones(1, 4, dtype=torch.bool)
    assert largest(numbers([0.0, 0.0, 3.0, 0.0]), free, 0.25).tolist() == [[False, False, True, False]]
    assert largest(numbers([1.0, 2.0]), ~free[:, :2], 0.5).tolist() == [[False, False]]


# ---------------------------------------------------------------- three weights


def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(3,) of the mean cross-entropy of logits w x."""
    p = torch.softmax(x[:, None] * w, 1)
    return ((p - torch.eye(3, dtype=DOUBLE)[y]) * x[:, None]).mean(0)


def weights(sgd: SGDLearner) -> Tensor:
    return sgd.view.params["model.weight"].detach()[:, 0].clone()


X, Y = numbers(0.5, -1.0, 2.0), torch.tensor([0, 1, 2])
X2, Y2 = numbers(1.0, -0.5), torch.tensor([1, 0])


@pytest.mark.parametrize("n_passes", [0, 2])
def test_two_tasks_by_hand(arrival: Any, three: Any, n_passes: int) -> None:
    """The first task keeps two of three weights and trains them on; the second moves the third, and keeps it."""
    packnet = PackNet(share=0.5, n_passes=n_passes, lr=0.05)
    sgd = learner(packnet, three, epochs=3)
    w = weights(sgd)
    list(sgd.learn(arrival(0, X.tolist(), Y.tolist(), task=7)))
    for _ in range(3):
        w = w - LR * gradient(w, X, Y)
    kept = torch.ones(3, dtype=DOUBLE)
    kept[w.abs().argmin()] = 0
    w = w * kept
    for _ in range(n_passes):
        w = w - 0.05 * gradient(w, X, Y) * kept
    close(weights(sgd), w)
    assert packnet.owner["model.weight"][:, 0].tolist() == kept.tolist()
    first, asked = w, numbers([0.3], [2.0])
    close(sgd.predict(asked, task=7), asked * first)
    list(sgd.learn(arrival(1, X2.tolist(), Y2.tolist(), task=2)))
    for _ in range(3):
        w = w - LR * gradient(w, X2, Y2) * (1 - kept)
    for _ in range(n_passes):
        w = w - 0.05 * gradient(w, X2, Y2) * (1 - kept)
    close(weights(sgd), w)
    assert not torch.equal(w, first)
    close(sgd.predict(asked, task=2), asked * w)
    close(sgd.predict(asked, task=7), asked * first)
    assert packnet.owner["model.weight"][:, 0].tolist() == (2 - kept).tolist()
    assert sgd.cost().forward_equivalents == 3 * (3 + n_passes) * 5, "three a row and pass, answers cost nothing"


def test_what_is_given_back_is_zero_and_the_learners_rate_is_taken(arrival: Any, three: Any) -> None:
    sgd = learner(PackNet(share=0.7, n_passes=1), three)
    w = weights(sgd) - LR * gradient(weights(sgd), X, Y)
    kept = (w.abs() == w.abs().max()).double()  # 1 of 3: floor(2.1) given back
    list(sgd.learn(arrival(0, X.tolist(), Y.tolist(), task=0)))
    close(weights(sgd), w * kept - LR * gradient(w * kept, X, Y) * kept)


def test_frozen_weights_have_no_gradient(arrival: Any, three: Any) -> None:
    """It would count in the norm that gradients are clipped by, and fill the optimizer's slots."""
    packnet = PackNet(n_passes=0)
    sgd = learner(packnet, three)
    list(sgd.learn(arrival(0, X.tolist(), Y.tolist(), task=0)))
    owned = packnet.owner["model.weight"] > 0
    assert sorted(owned[:, 0].tolist()) == [False, True, True]
    list(sgd.learn(arrival(1, X2.tolist(), Y2.tolist(), task=1)))
    grad = sgd.view.params["model.weight"].grad
    assert grad is not None
    assert torch.equal(grad == 0, owned)


def test_the_optimizer_forgets_with_each_task(arrival: Any, three: Any) -> None:
    """Momentum of weights that were set to 0 would move them before they have learned anything."""
    sgd = learner(PackNet(), three, optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9))
    updates = sgd.learn(arrival(0, X.tolist(), Y.tolist(), task=0))
    next(iter(updates))
    (slots,) = sgd.optimizer.state.values()
    assert slots["momentum_buffer"].abs().max() > 0
    assert list(updates) == []
    assert slots["momentum_buffer"].abs().max() == 0


# ---------------------------------------------------------------- earlier tasks stay as they are

OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


@pytest.fixture
def tasks(table: Any) -> list[Experience]:
    """Three tasks of two classes, in eight dimensions."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for task in range(3):
        y = torch.arange(20) % 2 + 2 * task
        x = torch.randn(20, 8, generator=draws) + torch.eye(8)[y] * 3
        found.append(Experience(task, table(x, y), task))
    return found


@pytest.mark.parametrize("head", ["all", "per_task", "multi_head"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_earlier_tasks_are_answered_bit_for_bit_as_before(optimizer: Any, head: str, tasks: list[Experience]) -> None:
    """With batch normalisation, dropout, momentum and weight decay, at every update of later tasks and after them."""
    spec = Spec((8,), 6, task_aware=True)
    sgd = learner(PackNet(), moody, spec=spec, optimizer=optimizer, head=head, epochs=2, batch_size=10)
    asked, said = torch.randn(15, 8, generator=torch.Generator().manual_seed(1)), dict[int, Tensor]()
    for experience in tasks:
        before = sgd.predict(asked, experience.task).clone()
        for _ in sgd.learn(experience):
            for task, answer in said.items():
                assert torch.equal(sgd.predict(asked, task)[:, 2 * task : 2 * task + 2], answer)
        assert not torch.equal(sgd.predict(asked, experience.task), before)
        for task, answer in said.items():
            assert torch.equal(sgd.predict(asked, task)[:, 2 * task : 2 * task + 2], answer)
        own = slice(2 * experience.index, 2 * experience.index + 2)
        said[experience.index] = sgd.predict(asked, experience.task)[:, own].clone()


def test_each_layer_is_shared_out_and_biases_stay_with_the_first_task(tasks: list[Experience]) -> None:
    packnet = PackNet(share=0.5)
    spec = Spec((8,), 6, task_aware=True)
    sgd = learner(packnet, moody, spec=spec, head="multi_head", batch_size=10)
    layer, bias = "model.features.1.weight", "model.features.1.bias"
    counted, biases = list[list[int]](), list[Tensor]()
    for experience in tasks:
        list(sgd.learn(experience))
        counted.append(packnet.owner[layer].flatten().bincount(minlength=4).tolist())
        biases.append(sgd.view.params[bias].detach().clone())
    assert counted == [[64, 64, 0, 0], [32, 64, 32, 0], [16, 64, 32, 16]]  # of 8 * 16 weights
    assert torch.equal(biases[0], biases[2])
    for slot in (1, 2, 3):
        for kind in ("weight", "bias"):
            assert packnet.owner[f"model.head.blocks.{slot - 1}.{kind}"].unique().tolist() == [slot]
    assert all(owner.dtype == torch.uint8 for owner in packnet.owner.values())
    free = sgd.view.params[layer][packnet.owner[layer] == 0]
    assert free.abs().max() == 0


def test_a_state_in_the_middle_of_a_task_answers_as_the_learner_did(tasks: list[Experience]) -> None:
    spec = Spec((8,), 6, task_aware=True)
    make = partial(learner, model=moody, spec=spec, head="per_task", batch_size=10)
    sgd, asked = make(PackNet()), torch.linspace(-2, 2, 40).view(5, 8)
    list(sgd.learn(tasks[0]))
    updates = sgd.learn(tasks[1])
    next(iter(updates))
    again = make(PackNet())
    again.load_state_dict(sgd.state_dict())
    for task in (0, 1):
        assert torch.equal(again.predict(asked, task), sgd.predict(asked, task))


def test_a_task_that_comes_again_gets_more_weights(tasks: list[Experience]) -> None:
    packnet = PackNet()
    sgd = learner(packnet, moody, spec=Spec((8,), 6, task_aware=True), head="per_task", batch_size=10)
    for experience in (tasks[0], tasks[1], tasks[0]):
        list(sgd.learn(experience))
    assert packnet.slots == {0: 3, 1: 2}


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("options", "message"), [
    ({"share": 1.0}, "strategy.packnet.share=1.0 must be at least 0 and below 1"),
    ({"share": -0.1}, "strategy.packnet.share=-0.1 must be at least 0"),
    ({"n_passes": -1}, "strategy.packnet.n_passes=-1 must be at least 0"),
    ({"batch_size": 0}, "strategy.packnet.batch_size=0 must be at least 1"),
    ({"lr": 0.0}, "strategy.packnet.lr=0.0 must be above 0"),
])  # fmt: skip
def test_values_out_of_range_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackNet(**options)


@pytest.mark.parametrize(("spec", "message"), [
    (Spec((1,), 3, dtype=DOUBLE), "needs task labels, and this stream hides them"),
    (Spec((1,), 3, dtype=DOUBLE, task_aware=True, boundaries=False), "needs task boundaries"),
    (Spec((1,), 3, dtype=DOUBLE, task_aware=True, n_experiences=256), "at most 255 tasks, and this stream has 256"),
])  # fmt: skip
def test_streams_that_it_cannot_serve_are_refused(three: Any, spec: Spec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner(PackNet(), three, spec=spec)


def test_one_task_too_many_is_refused_when_it_comes(arrival: Any, three: Any) -> None:
    packnet = PackNet(n_passes=0)
    sgd = learner(packnet, three)
    packnet.slot = 254
    list(sgd.learn(arrival(0, [0.5], [0], task=0)))
    assert packnet.owner["model.weight"].max() == 255
    with pytest.raises(UserError, match="at most 255 tasks, and this is one more"):
        list(sgd.learn(arrival(1, [0.5], [0], task=1)))


def test_a_question_must_name_its_task(arrival: Any, three: Any) -> None:
    sgd = learner(PackNet(), three)
    with pytest.raises(UserError, match="say which"):
        sgd.predict(numbers([0.3]))


def test_two_strategies_that_answer_are_refused() -> None:
    assert "both decide the answers" in str(PackNet().clash(ICaRL()))
