"""Losses for labels that may be wrong, against their formulas and gradients written out, in double precision.

The three-parameter model is logits = (w_0 x, w_1 x, w_2 x) for a number x: every gradient can be written down.
"""

from collections.abc import Callable
from functools import partial
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual import compose
from continual.contract import Subject
from continual.contract.strategies import neutral_element, strength_acts
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.memory import Reservoir
from continual.step import MASKED
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.er_ace import ERACE
from continual.strategies.gce import GCE, generalised
from continual.strategies.label_refurbishment import LabelRefurbishment, refurbished
from continual.strategies.small_loss import SmallLoss, reshare, smallest
from continual.strategies.teacher_weight import TeacherWeight, proportions
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((1,), 3, dtype=DOUBLE)
LR = 0.1
MEMORY = partial(Reservoir, 10)
BLOBS = (
    "scenario/source=gaussian",
    "scenario.source.n_classes=6",
    "scenario.source.rows_per_class=12",
    "scenario.n_tasks=3",
    "track=none",
)
ALL = torch.ones(3, dtype=torch.bool)
Arrival = Callable[..., Experience]
Model = Callable[[Spec], nn.Module]


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


def learner(strategies: dict[str, Strategy], model: Model, **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 4} | options
    return SGDLearner(model, partial(torch.optim.SGD, lr=LR), strategies, **chosen)


def weights(sgd: SGDLearner) -> Tensor:
    """(3,) of the three-parameter model."""
    return sgd.view.params["model.weight"].detach()[:, 0].clone()


def probabilities(w: Tensor, x: Tensor, allowed: Tensor = ALL) -> Tensor:
    """(B, 3) over the ``allowed`` (3,) or (B, 3) classes."""
    powers = torch.exp(x[:, None] * w) * allowed
    return powers / powers.sum(1, keepdim=True)


def pulls(p: Tensor, target: Tensor, x: Tensor) -> Tensor:
    """(B, 3) d/dw of each row's cross-entropy with a ``target`` (B, 3) that sums to 1."""
    return (p - target) * x[:, None]


def one_hot(y: Tensor) -> Tensor:
    return torch.eye(3, dtype=DOUBLE)[y]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def rows_of(experience: Experience) -> tuple[Tensor, Tensor]:
    batch = experience.rows.take(torch.arange(len(experience.rows)))
    return batch.x[:, 0], batch.y


def batch_of(weight: Tensor, arrived: int) -> Batch:
    n = len(weight)
    return Batch(torch.zeros(n, 1, dtype=weight.dtype), torch.zeros(n, dtype=torch.int64), weight, arrived)


@pytest.fixture
def first(arrival: Arrival) -> Experience:
    return arrival(0, [0.5, -1.0, 2.0, 1.5], [0, 1, 0, 1])


@pytest.fixture
def second(arrival: Arrival) -> Experience:
    return arrival(1, [1.0, -0.5, 3.0], [2, 1, 2])


# ---------------------------------------------------------------- what the seam gets


@pytest.mark.parametrize(("head", "masked"), [("all", []), ("seen", [2])])
def test_rows_get_the_logits_that_compete(head: str, masked: list[int], three: Model, first: Experience) -> None:
    """What ``after_step`` gets is the network's own output, whatever competes."""
    got: list[Tensor] = []

    class Spy(Strategy):
        def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
            got.append(out.logits.detach())
            return rows

        def after_step(self, view: View, batch: Batch, out: Output) -> None:
            got.append(out.logits.detach())

    sgd = learner({"spy": Spy()}, three, head=head)
    logits = rows_of(first)[0][:, None] * weights(sgd)
    list(sgd.learn(first))
    close(got[1], logits)
    logits[:, masked] = MASKED
    close(got[0], logits)


# ---------------------------------------------------------------- generalised cross-entropy


def test_generalised_cross_entropy_by_hand() -> None:
    rows = -numbers(1.0, 0.25, 0.5).log()
    close(generalised(rows, 0.5), numbers(0.0, 1.0, 2 * (1 - 0.5**0.5)))
    close(generalised(rows, 1.0), numbers(0.0, 0.75, 0.5))
    torch.testing.assert_close(generalised(rows, 1e-9), rows, rtol=1e-8, atol=1e-12)
    sure = torch.tensor([1e-6, 1e9], dtype=torch.float32)
    torch.testing.assert_close(generalised(sure, 0.7), torch.tensor([1e-6, 1 / 0.7]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("head", ["all", "seen"])
def test_gce_beside_replay_by_hand(q: float, head: str, three: Model, first: Experience, second: Experience) -> None:
    """Each row's pull is p_y^q times that of cross-entropy, over the classes that the head lets compete."""
    sgd = learner({"er": ER(MEMORY, n_replay=9), "gce": GCE(q)}, three, head=head)
    w, (x, y), (new_x, new_y) = weights(sgd), rows_of(first), rows_of(second)
    seen = torch.tensor([True, True, False]) if head == "seen" else ALL
    steps = ((first, x, y, seen), (second, torch.cat([new_x, x]), torch.cat([new_y, y]), ALL))
    for experience, batch_x, batch_y, allowed in steps:
        p = probabilities(w, batch_x, allowed)
        believed = p.gather(1, batch_y[:, None]) ** q
        w = w - LR * (believed * pulls(p, one_hot(batch_y), batch_x)).mean(0)
        list(sgd.learn(experience))
        close(weights(sgd), w)


@pytest.mark.parametrize("order", [("er_ace", "gce"), ("gce", "er_ace")])
def test_gce_heeds_the_asymmetric_mask(
    order: tuple[str, str], three: Model, first: Experience, second: Experience
) -> None:
    """Arrived rows (classes 1 and 2) do not see class 0; replayed rows see all; two means are added."""
    made = {"er_ace": ERACE(MEMORY, n_replay=9), "gce": GCE(0.7)}
    sgd = learner({name: made[name] for name in order}, three)
    w, (x, y), (new_x, new_y) = weights(sgd), rows_of(first), rows_of(second)

    def mean(x: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
        p = probabilities(w, x, allowed)
        return (p.gather(1, y[:, None]) ** 0.7 * pulls(p, one_hot(y), x)).mean(0)

    w = w - LR * mean(x, y, torch.tensor([True, True, False]))
    list(sgd.learn(first))
    close(weights(sgd), w)
    list(sgd.learn(second))
    close(weights(sgd), w - LR * (mean(new_x, new_y, torch.tensor([False, True, True])) + mean(x, y, ALL)))


# ---------------------------------------------------------------- shares


def test_shares_by_hand() -> None:
    """Arrived: 1 and 3 parts of a weight of 0.6; replayed: 1 and 1 of 0.8, and a row without weight changes nothing."""
    batch = batch_of(numbers(0.3, 0.3, 0.4, 0.4, 0.0), arrived=2)
    factors = reshare([numbers(1.0, 3.0), numbers(5.0, 5.0, 1e6)], batch)
    close(factors[:4], numbers(0.5, 1.5, 1.0, 1.0))
    close(reshare([numbers(1.0, 3.0)], batch_of(numbers(0.1, 0.5), 2)), numbers(0.6 / 1.6, 1.8 / 1.6))
    assert reshare([numbers(1.0, 3.0)], batch_of(numbers(0.0, 0.0), 2)).tolist() == [0, 0], "nothing is divided by 0"


def test_proportions_of_hardly_anything() -> None:
    """The least probabilities are compared with each other; a row without weight is no measure."""
    close(proportions(numbers(1.0, 3.0, 1e6).log(), numbers(0.3, 0.3, 0.0)), numbers(0.25, 0.75, 0.0))
    assert proportions(torch.tensor([-1e5, -1e5]), torch.tensor([0.5, 0.5])).tolist() == [0.5, 0.5]
    assert proportions(torch.tensor([0.0, -1e5]), torch.tensor([0.0, 0.5])).tolist() == [0, 1]
    assert proportions(torch.tensor([0.0, -1.0]), torch.zeros(2)).isfinite().all()


# ---------------------------------------------------------------- small losses


def test_the_smallest_by_hand() -> None:
    losses, one = numbers(3.0, 1.0, 4.0, 1.5, 9.0), torch.ones(5, dtype=DOUBLE)
    assert smallest(losses, one, 0.2).tolist() == [True, True, True, True, False]
    assert smallest(losses, one, 0.39).tolist() == [True, True, True, True, False], "a whole row or none"
    assert smallest(losses, one, 0.4).tolist() == [True, True, False, True, False]
    assert smallest(losses, one, 0.99).tolist() == [False, True, False, False, False]
    assert smallest(losses, one, 0.19).all()
    without = numbers(1.0, 0.0, 1.0, 1.0, 0.0)
    assert smallest(losses, without, 0.34).tolist() == [True, False, False, True, False], "1 of 3 with weight"
    assert not smallest(losses, torch.zeros(5, dtype=DOUBLE), 0.2).any()
    assert smallest(losses[:1], one[:1], 0.9).all()
    assert int(smallest(torch.rand(75), torch.ones(75), 0.84).sum()) == 12, "0.84 * 75 is 62.999996 in single precision"
    assert int(smallest(torch.rand(25), torch.ones(25), 0.4).sum()) == 15, "0.6 * 25 is 15.000001 in single precision"
    assert smallest(losses, one, 0.99999).tolist() == [False, True, False, False, False], "never none"


def test_small_loss_by_hand(three: Model, first: Experience, second: Experience) -> None:
    """Half of the arrived rows and half of the replayed ones count, and each part has the weight that it had."""
    sgd = learner({"er": ER(MEMORY, n_replay=9), "small_loss": SmallLoss(0.5, n_warmup=0)}, three)
    w, (x, y), (new_x, new_y) = weights(sgd), rows_of(first), rows_of(second)

    def total(x: Tensor, y: Tensor, left_out: int) -> Tensor:
        """Of the kept rows' pulls, each of which counts as n / kept rows."""
        p = probabilities(w, x)
        losses = -p.gather(1, y[:, None])[:, 0].log()
        kept = losses.argsort()[: len(y) - left_out]
        return pulls(p, one_hot(y), x)[kept].sum(0) * len(y) / len(kept)

    w = w - LR * total(x, y, 2) / 4
    list(sgd.learn(first))
    close(weights(sgd), w)
    w = w - LR * (total(new_x, new_y, 1) + total(x, y, 2)) / 7
    list(sgd.learn(second))
    close(weights(sgd), w)


def test_the_share_left_out_grows(three: Model, first: Experience) -> None:
    """Of 4 arrived rows and 0, 4, 8, 9, 9, 9 replayed ones: 0, 1/8, 1/4, 3/8, 1/2, 1/2; a snapshot in between."""
    counted: list[int] = []

    class Spy(Strategy):
        def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
            counted.append(int((rows > 0).sum()))
            return rows

    def made() -> SGDLearner:
        return learner({"er": ER(MEMORY, n_replay=9), "s": SmallLoss(0.5, n_warmup=4), "spy": Spy()}, three)

    sgd = made()
    for _ in range(2):
        list(sgd.learn(first))
    other = made()
    other.load_state_dict(sgd.state_dict())
    for _ in range(4):
        list(other.learn(first))
    assert counted == [4 + 0, 4 + 4, 3 + 6, 3 + 6, 2 + 5, 2 + 5]


def test_small_loss_beside_derpp_counts_only_rows_with_weight(
    three: Model, first: Experience, second: Experience
) -> None:
    """The rows whose logits derpp replays have no weight; without its labels nothing replayed is left to choose."""
    derpp = DERPP(MEMORY, n_replay=9, strength=0.5, label_strength=0.0)
    sgd = learner({"derpp": derpp, "small_loss": SmallLoss(0.4, n_warmup=0)}, three)
    alone = learner({"derpp": DERPP(MEMORY, n_replay=9, strength=0.5, label_strength=0.0)}, three)
    for experience in (first, second):
        list(sgd.learn(experience))
        list(alone.learn(experience))
    assert weights(sgd).isfinite().all()
    assert not torch.equal(weights(sgd), weights(alone))


# ---------------------------------------------------------------- refurbished labels


def test_refurbished_by_hand() -> None:
    """Student (1/2, 1/2), teacher (3/4, 1/4) over two of three classes, label 0: the masked class takes no part."""
    logits = torch.tensor([[0.0, 0.0, MASKED]], dtype=DOUBLE)
    taught = torch.log_softmax(torch.tensor([[log(3.0), 0.0, MASKED]], dtype=DOUBLE), dim=1)
    student = logits.requires_grad_()
    loss = refurbished(numbers(log(2.0)), student, taught, 0.4)
    close(loss.detach(), numbers(log(2.0)))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    close(student.grad[0], numbers(0.4 * (0.5 - 0.75), 0.4 * (0.5 - 0.25), 0.0))
    close(refurbished(numbers(7.0), logits.detach(), taught, 0.25), numbers(0.75 * 7 + 0.25 * log(2.0)))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("replay", ["er", "er_ace"])
def test_label_refurbishment_by_hand(
    strength: float, replay: str, three: Model, first: Experience, second: Experience
) -> None:
    """The target of each row, arrived or replayed, is mixed with the teacher's belief over the competing classes."""
    made: dict[str, Callable[[], Strategy]] = {
        "er": lambda: ER(MEMORY, n_replay=9),
        "er_ace": lambda: ERACE(MEMORY, n_replay=9),
    }
    sgd = learner({"replay": made[replay](), "l": LabelRefurbishment(strength, decay=0.6)}, three)
    w = teacher = weights(sgd)
    (x, y), (new_x, new_y) = rows_of(first), rows_of(second)

    def mean(x: Tensor, y: Tensor, arrived: bool) -> Tensor:
        allowed = one_hot(y).any(0) if arrived and replay == "er_ace" else ALL
        target = (1 - strength) * one_hot(y) + strength * probabilities(teacher, x, allowed)
        return pulls(probabilities(w, x, allowed), target, x).mean(0)

    steps = [(first, mean(x, y, True))]
    w1 = w - LR * steps[0][1]
    list(sgd.learn(first))
    close(weights(sgd), w1)
    w = teacher = w1  # the first update forgets what the teacher began with
    shares = (3 / 7, 4 / 7) if replay == "er" else (1.0, 1.0)
    w = w - LR * (shares[0] * mean(new_x, new_y, True) + shares[1] * mean(x, y, False))
    list(sgd.learn(second))
    close(weights(sgd), w)
    teacher = 0.5 * teacher + 0.5 * w
    strategy = sgd.strategies["l"]
    assert isinstance(strategy, LabelRefurbishment)
    close(strategy.teacher.weights["model.weight"][:, 0], teacher)


# ---------------------------------------------------------------- weights by a teacher


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("head", ["all", "seen"])
def test_teacher_weight_by_hand(
    strength: float, head: str, three: Model, first: Experience, second: Experience
) -> None:
    """A row counts as p_teacher(y)^strength over its part's sum; the parts keep 3/7 and 4/7."""
    strategy = TeacherWeight(strength, decay=1.0)
    sgd = learner({"er": ER(MEMORY, n_replay=9), "t": strategy}, three, head=head)
    w = teacher = weights(sgd)
    (x, y), (new_x, new_y) = rows_of(first), rows_of(second)

    def mean(x: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
        parts = probabilities(teacher, x, allowed).gather(1, y[:, None]) ** strength
        return (parts / parts.sum() * pulls(probabilities(w, x, allowed), one_hot(y), x)).sum(0)

    w = teacher = w - LR * mean(x, y, torch.tensor([True, True, False]) if head == "seen" else ALL)
    list(sgd.learn(first))
    close(weights(sgd), w)
    for update in (2, 3):
        old = (x, y) if update == 2 else (torch.cat([x, new_x]), torch.cat([y, new_y]))
        share = 3 / (3 + len(old[0]))
        w = w - LR * (share * mean(new_x, new_y, ALL) + (1 - share) * mean(*old, ALL))
        list(sgd.learn(second))
        close(weights(sgd), w)
        teacher = teacher + (w - teacher) / update


# ---------------------------------------------------------------- neutral elements, order, mistakes


@pytest.mark.parametrize(("name", "off", "on"), [
    ("gce", {"q": 0.0}, {"q": 1.0}),
    ("small_loss", {"forget_rate": 0.0}, {"forget_rate": 0.5, "n_warmup": 2}),
    ("label_refurbishment", {"strength": 0.0}, {"strength": 1.0}),
    ("teacher_weight", {"strength": 0.0}, {"strength": 1.0}),
])  # fmt: skip
def test_what_switches_each_off(name: str, off: dict[str, float], on: dict[str, float]) -> None:
    subject = Subject(compose(f"strategy=[er_ace,{name}]", "operator=noise", "train.head=seen", *BLOBS))
    neutral_element(subject.switched(name, off), subject.without(name), subject.make_stream)
    strength_acts(subject.switched(name, on), subject.without(name), subject.make_stream)


def test_what_is_chosen_is_the_loss_that_is_given(three: Model, first: Experience) -> None:
    """small_loss behind gce keeps the rows of smallest loss, and of these the generalised loss."""
    sgd = learner({"gce": GCE(1.0), "small_loss": SmallLoss(0.5, n_warmup=0)}, three)
    w, (x, y) = weights(sgd), rows_of(first)
    p = probabilities(w, x)
    believed = p.gather(1, y[:, None])
    kept = (-believed[:, 0]).argsort()[:2]
    list(sgd.learn(first))
    close(weights(sgd), w - LR * (believed * pulls(p, one_hot(y), x))[kept].mean(0))


def test_two_losses_in_the_place_of_one_are_refused(three: Model) -> None:
    with pytest.raises(UserError, match="both decide the loss"):
        learner({"gce": GCE(), "l": LabelRefurbishment()}, three)
    learner({"gce": GCE(), "small_loss": SmallLoss(), "teacher_weight": TeacherWeight()}, three)


def test_a_wrong_label_pulls_less_by_each(three: Model, arrival: Arrival) -> None:
    """x = 3, which the weights (0.3, -0.2, 0.5) give label 2, comes with label 1, beside two right rows."""
    rows = arrival(0, [3.0, 2.5, 3.5], [1, 2, 2])

    def moved(**strategies: Strategy) -> float:
        """Away from the right answer: how far w_1 rises above w_2."""
        sgd = learner(dict(strategies), three)
        before = weights(sgd)
        list(sgd.learn(rows))
        return float((weights(sgd) - before)[1] - (weights(sgd) - before)[2])

    plain = moved()
    for strategy in (GCE(0.7), SmallLoss(0.34, 0), LabelRefurbishment(0.5), TeacherWeight(1.0)):
        assert moved(s=strategy) < plain
    assert plain > exp(-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: GCE(-0.1), r"strategy.gce.q=-0.1 must be in \[0, 1\]"),
    (lambda: GCE(1.1), r"strategy.gce.q=1.1 must be in \[0, 1\]"),
    (lambda: SmallLoss(1.0), r"strategy.small_loss.forget_rate=1.0 must be in \[0, 1\)"),
    (lambda: SmallLoss(-0.1), r"strategy.small_loss.forget_rate=-0.1 must be in \[0, 1\)"),
    (lambda: SmallLoss(n_warmup=-1), r"strategy.small_loss.n_warmup=-1 must be at least 0"),
    (lambda: LabelRefurbishment(1.5), r"strategy.label_refurbishment.strength=1.5 must be in \[0, 1\]"),
    (lambda: LabelRefurbishment(-1), r"strategy.label_refurbishment.strength=-1 must be in \[0, 1\]"),
    (lambda: LabelRefurbishment(decay=2), r"strategy.label_refurbishment.decay=2 must be in \[0, 1\]"),
    (lambda: TeacherWeight(-1), r"strategy.teacher_weight.strength=-1 must be at least 0"),
    (lambda: TeacherWeight(decay=-1), r"strategy.teacher_weight.decay=-1 must be in \[0, 1\]"),
])  # fmt: skip
def test_values_out_of_range_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
