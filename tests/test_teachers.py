"""Slow and frozen teachers against averages and gradients written out, in double precision.

The three-parameter model is logits = (w_0 x, w_1 x, w_2 x) for a number x: every gradient can be written down.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from continual import compose
from continual.averages import Average, blend
from continual.contract import Subject
from continual.contract.strategies import neutral_element
from continual.contract.tools import moody
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.memory import Reservoir
from continual.models.network import Classifier
from continual.seeding import generator
from continual.strategies.cls_er import CLSER, surer
from continual.strategies.ema_teacher import EMATeacher
from continual.strategies.er import ER
from continual.strategies.feature_distillation import FeatureDistillation, turned
from continual.strategies.lwf import LwF
from continual.strategy import Strategy, View, Weights
from continual.types import Experience, Output, Spec

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
W = "model.weight"
Arrival = Callable[..., Experience]
Model = Callable[[Spec], nn.Module]


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


def learner(strategies: dict[str, Strategy], model: Model, **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 4} | options
    return SGDLearner(model, partial(torch.optim.SGD, lr=LR), strategies, **chosen)


def weights(sgd: SGDLearner) -> Tensor:
    """(3,) of the three-parameter model."""
    return sgd.view.params[W].detach()[:, 0].clone()


def pull(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(3,) d/dw of the mean cross-entropy: mean_b x_b (p_bc - 1[y_b = c])."""
    p = torch.softmax(x[:, None] * w, dim=1)
    return ((p - torch.eye(3, dtype=DOUBLE)[y]) * x[:, None]).mean(0)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def rows_of(experience: Experience) -> tuple[Tensor, Tensor]:
    batch = experience.rows.take(torch.arange(len(experience.rows)))
    return batch.x[:, 0], batch.y


@pytest.fixture
def first(arrival: Arrival) -> Experience:
    return arrival(0, [0.5, -1.0, 2.0, 1.5], [0, 1, 0, 1])


@pytest.fixture
def second(arrival: Arrival) -> Experience:
    return arrival(1, [1.0, -0.5, 3.0], [2, 1, 2])


# ---------------------------------------------------------------- averages


def test_blending_by_hand() -> None:
    average = {"w": numbers(1.0, 2.0), "n": torch.tensor(3), "wide": numbers(1.0)}
    held = average["w"]
    live = {"w": numbers(3.0, -2.0), "n": torch.tensor(8), "wide": numbers(5.0, 6.0), "new": numbers(7.0)}
    blend(average, live, 0.75)
    assert average["w"].tolist() == [1.5, 1.0]
    assert average["w"] is held, "in place"
    assert average["n"].item() == 8, "a counter is no average"
    assert average["wide"].tolist() == [5, 6], "what has grown begins anew"
    assert average["new"].tolist() == [7]
    for name in live:
        live[name] += 1
    assert (average["n"].item(), average["wide"].tolist(), average["new"].tolist()) == (8, [5, 6], [7])


def averaged(history: list[Tensor], decay: float) -> Tensor:
    """Sum over t of the weight of w_t, each product written out: w_t is kept by every later update."""
    kept = [min(decay, 1 - 1 / t) for t in range(1, len(history) + 1)]
    total = torch.zeros_like(history[0])
    for t, w in enumerate(history):
        share = 1 - kept[t]
        for later in kept[t + 1 :]:
            share *= later
        total = total + share * w
    return total


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.8, 1.0])
def test_the_teacher_is_the_average_of_the_weights_after_every_update(
    decay: float, three: Model, first: Experience, second: Experience
) -> None:
    ema = EMATeacher(decay)
    sgd = learner({"ema_teacher": ema}, three, batch_size=2, epochs=3)
    assert torch.equal(ema.teacher.weights[W], sgd.view.params[W])
    history = []
    for experience in (first, second):
        for _ in sgd.learn(experience):
            history.append(weights(sgd))
            close(ema.teacher.weights[W][:, 0], averaged(history, decay))
    assert len(history) > 10
    mean = torch.stack(history).mean(0)
    at_once = {0.0: history[-1], 1.0: mean}
    if decay in at_once:
        close(ema.teacher.weights[W][:, 0], at_once[decay])
    assert ema.teacher.weights[W].data_ptr() != sgd.view.params[W].data_ptr()
    assert not ema.teacher.weights[W].requires_grad
    x = numbers(1.0, -2.0)[:, None]
    close(sgd.predict(x), x * ema.teacher.weights[W][:, 0])
    assert (decay == 0) == torch.equal(sgd.predict(x), x * weights(sgd))


def test_while_it_warms_up_it_is_the_plain_mean(three: Model, first: Experience) -> None:
    ema = EMATeacher(0.999)
    sgd = learner({"ema_teacher": ema}, three, epochs=7)
    history = [weights(sgd) for _ in sgd.learn(first)]
    close(ema.teacher.weights[W][:, 0], torch.stack(history).mean(0))


def test_batch_statistics_are_averaged_and_the_teacher_answers_in_eval_mode(first: Experience) -> None:
    ema = EMATeacher(0.6)
    sgd = learner({"ema_teacher": ema}, lambda spec: moody(spec).double(), epochs=5)
    history: list[dict[str, Tensor]] = []
    for _ in sgd.learn(first):
        history.append({name: tensor.detach().clone() for name, tensor in sgd.network.state_dict().items()})
    floats = [name for name, tensor in history[0].items() if tensor.is_floating_point()]
    assert any("running_var" in name for name in floats)
    for name in floats:
        close(ema.teacher.weights[name], averaged([state[name] for state in history], 0.6))
    counters = [name for name in history[0] if name not in floats]
    assert counters
    for name in counters:
        assert ema.teacher.weights[name].item() == 5
    twin = copy.deepcopy(sgd.network)
    twin.load_state_dict(ema.teacher.weights)
    x = numbers(1.0, -2.0)[:, None]
    assert sgd.network.training
    spent = sgd.cost().forward_equivalents
    assert torch.equal(sgd.predict(x), twin.eval()(x).logits)
    assert sgd.network.training
    assert sgd.cost().forward_equivalents == spent, "predictions are not counted"


def test_without_answers_the_network_answers(three: Model, first: Experience) -> None:
    sgd = learner({"ema_teacher": EMATeacher(0.9, answers=False)}, three, epochs=3)
    list(sgd.learn(first))
    x = numbers(1.0, -2.0)[:, None]
    close(sgd.predict(x), x * weights(sgd))


def test_parameters_that_appear_later_are_followed(three: Model, first: Experience) -> None:
    ema = EMATeacher(0.5)
    sgd = learner({"ema_teacher": ema}, three)
    list(sgd.learn(first))
    sgd.view.params["model.later"] = nn.Parameter(numbers(4.0))
    list(sgd.learn(first))
    assert ema.teacher.weights["model.later"].tolist() == [4.0]
    with torch.no_grad():
        sgd.view.params["model.later"] += 2.0
    assert ema.teacher.weights["model.later"].tolist() == [4.0], "a copy"
    view = sgd.view
    average = Average(view)
    average.load_state_dict(ema.teacher.state_dict())
    average.follow(view, 0.5)
    assert average.weights["model.later"].tolist() == [5.0], "half of the way"


def test_what_is_loaded_is_not_written_to(three: Model, first: Experience) -> None:
    sgd, other = (learner({"e": EMATeacher(0.9)}, three, epochs=2) for _ in range(2))
    list(sgd.learn(first))
    saved = copy.deepcopy(sgd.state_dict())
    given = copy.deepcopy(saved)
    other.load_state_dict(given)
    list(other.learn(first))
    assert torch.equal(given["strategies"]["e"]["weights"][W], saved["strategies"]["e"]["weights"][W])
    assert other.strategies["e"].state_dict()["updates"] == 4


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_the_logits_are_held_near_the_teachers(
    strength: float, three: Model, first: Experience, second: Experience
) -> None:
    """d/dw of strength mean (x w - x w_teacher)^2 is strength 2 / 3 mean x^2 (w - w_teacher), replayed rows too."""
    sgd = learner({"er": ER(MEMORY, n_replay=9), "e": EMATeacher(0.6, strength=strength)}, three)
    w = teacher = weights(sgd)
    (x, y), (new_x, new_y) = rows_of(first), rows_of(second)
    batches = [(x, y), (torch.cat([x, x]), torch.cat([y, y]))]
    batches.append((torch.cat([new_x, x, x]), torch.cat([new_y, y, y])))
    for t, (batch_x, batch_y) in enumerate(batches, start=1):
        away = strength * 2 / 3 * batch_x.square().mean() * (w - teacher)
        w = w - LR * (pull(w, batch_x, batch_y) + away)
        kept = min(0.6, 1 - 1 / t)
        teacher = kept * teacher + (1 - kept) * w
        list(sgd.learn(replace((first, first, second)[t - 1], index=t - 1)))
        close(weights(sgd), w)
    rows = sum(len(batch_x) for batch_x, _ in batches)
    assert sgd.cost().forward_equivalents == rows * (4 if strength else 3), "a pass more where it is asked"


@pytest.mark.parametrize("off", [{"strength": 0.0, "answers": False}, {"strength": 0.0, "decay": 0.0}])
def test_an_ema_teacher_that_is_switched_off_is_not_there(off: dict[str, Any]) -> None:
    subject = Subject(compose("strategy=[er,ema_teacher]", *BLOBS))
    neutral_element(subject.switched("ema_teacher", off), subject.without("ema_teacher"), subject.make_stream)


# ---------------------------------------------------------------- complementary learning systems


def test_the_surer_one_by_hand() -> None:
    """Row 0: 1/2 against 3/4 for label 0; row 1: 1/2 against 1/4 for label 1; row 2: alike."""
    plastic = numbers(2.0, 2.0).log().expand(3, 2)
    stable = torch.stack([numbers(3.0, 1.0), numbers(3.0, 1.0), numbers(20.0, 20.0)]).log()
    chosen = surer(plastic, stable, torch.tensor([0, 1, 0]))
    assert torch.equal(chosen, torch.stack([stable[0], plastic[1], plastic[2]]))


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_cls_er_by_hand(strength: float, three: Model, first: Experience, second: Experience) -> None:
    """Both averages follow every update, with decays 0.3 and 0.6; replayed rows only are held near the surer one."""
    cls_er = CLSER(
        MEMORY, n_replay=9, strength=strength, plastic_frequency=1.0, stable_frequency=1.0,
        plastic_decay=0.3, stable_decay=0.6,
    )  # fmt: skip
    sgd = learner({"cls_er": cls_er}, three)
    w = plastic = stable = weights(sgd)
    (x, y), old = rows_of(first), torch.tensor([], dtype=DOUBLE)
    chosen = []
    for t, experience in enumerate((first, second, replace(second, index=2)), start=1):
        new_x, new_y = rows_of(experience)
        old_x, old_y = (old, old.long()) if t == 1 else (x, y)
        both = torch.cat([new_x, old_x]), torch.cat([new_y, old_y])
        gradient = pull(w, *both)
        if len(old_x):
            logits = [old_x[:, None] * a for a in (plastic, stable)]
            p, s = (torch.softmax(z, dim=1)[torch.arange(len(old_y)), old_y] for z in logits)
            chosen += (s > p).tolist()
            target = torch.where((s > p)[:, None], logits[1], logits[0])
            away = old_x[:, None] * w - target
            gradient = gradient + strength * 2 / away.numel() * (away * old_x[:, None]).sum(0)
        w = w - LR * gradient
        kept = min(0.3, 1 - 1 / t), min(0.6, 1 - 1 / t)
        plastic, stable = kept[0] * plastic + (1 - kept[0]) * w, kept[1] * stable + (1 - kept[1]) * w
        list(sgd.learn(experience))
        close(weights(sgd), w)
        close(cls_er.plastic.weights[W][:, 0], plastic)
        close(cls_er.stable.weights[W][:, 0], stable)
        x, y = both
    probe = numbers(1.0, -2.0)[:, None]
    close(sgd.predict(probe), probe * stable)
    assert len(set(chosen)) == 2, "each was the surer one of some row"


def test_each_average_follows_with_its_own_frequency(three: Model, first: Experience) -> None:
    cls_er = CLSER(MEMORY, plastic_frequency=0.75, stable_frequency=0.25, seed=3)
    sgd = learner({"cls_er": cls_er}, three, batch_size=1, epochs=10)
    list(sgd.learn(first))
    draws = generator(3, "CLSER", "updates")
    drawn = torch.stack([torch.rand(2, generator=draws, dtype=DOUBLE) for _ in range(40)])
    expected = (drawn < numbers(0.75, 0.25)).sum(0).tolist()
    assert [cls_er.plastic.updates, cls_er.stable.updates] == expected
    assert 40 > expected[0] > expected[1] > 0


def test_cls_er_holds_its_own_rows_wherever_it_stands(three: Model, first: Experience, second: Experience) -> None:
    """er puts its rows behind, or before, those that cls_er replays; these alone are held near an average."""
    for order in (("er", "cls_er"), ("cls_er", "er")):
        made = {"er": ER(partial(Reservoir, 2), n_replay=4), "cls_er": CLSER(MEMORY, n_replay=9, strength=0.7)}
        asked: list[Tensor] = []
        sgd = learner({name: made[name] for name in order}, three)
        list(sgd.learn(first))
        answer = sgd.view.answer

        def spied(params: Weights, x: Tensor, answer: Any = answer, asked: list[Tensor] = asked) -> Output:
            asked.append(x)
            out: Output = answer(params, x)
            return out

        sgd.view.answer = spied
        list(sgd.learn(second))
        assert [sorted(x[:, 0].tolist()) for x in asked] == [sorted(rows_of(first)[0].tolist())] * 2


# ---------------------------------------------------------------- distillation of features


def featured(spec: Spec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Classifier(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Dropout(0.5)), nn.Linear(4, 3)).double()


def test_the_turn_by_hand() -> None:
    """cos((3, 4), (4, 3)) = 24/25 whatever the lengths; opposite 2, across 1, nothing 1."""
    features = torch.stack([numbers(3.0, 4.0), numbers(1.0, 0.0), numbers(2.0, 0.0), numbers(0.0, 0.0)])
    taught = torch.stack([numbers(8.0, 6.0), numbers(-5.0, 0.0), numbers(0.0, 3.0), numbers(1.0, 1.0)])
    close(turned(features[:1], taught[:1]), numbers(1 / 25)[0])
    close(turned(features, taught), numbers((1 / 25 + 2 + 1 + 1) / 4)[0])


def test_feature_distillation_equals_a_loop_in_plain_torch(first: Experience, second: Experience) -> None:
    """Nothing in the first experience; then 1 - cosine to the frozen network, without its dropout, by hand."""
    fd = FeatureDistillation(1.5)
    sgd = learner({"f": fd}, featured, epochs=3)
    plain = learner({}, featured, epochs=3)
    for one in (sgd, plain):
        list(one.learn(first))
    network, teacher = sgd.network, copy.deepcopy(sgd.network).eval()
    same = plain.network.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in network.state_dict().items())
    network = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    batch = second.rows.take(torch.arange(3))
    assert sgd.noise is not None
    noise = sgd.noise.clone()
    list(sgd.learn(second))
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(noise)
        for _ in range(3):
            out, taught = network(batch.x), teacher(batch.x).features.detach()
            lengths = out.features.square().sum(1).sqrt() * taught.square().sum(1).sqrt()
            cosine = (out.features * taught).sum(1) / lengths
            optimizer.zero_grad()
            (cross_entropy(out.logits, batch.y) + 1.5 * (1 - cosine).mean()).backward()
            optimizer.step()
    for name, tensor in network.state_dict().items():
        close(sgd.network.state_dict()[name], tensor)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(fd.teacher[name], tensor), "it is not trained"


@pytest.mark.parametrize("make", [lambda: FeatureDistillation(1.0), lambda: LwF(1.0)], ids=["features", "logits"])
def test_frozen_teachers_are_asked_about_replayed_rows_too(
    make: Callable[[], Strategy], first: Experience, second: Experience
) -> None:
    asked: list[Tensor] = []
    sgd = learner({"er": ER(MEMORY, n_replay=9), "t": make()}, featured)
    list(sgd.learn(first))
    answer = sgd.view.answer

    def spied(params: Weights, x: Tensor) -> Output:
        asked.append(x)
        return answer(params, x)

    sgd.view.answer = spied
    list(sgd.learn(second))
    assert [x.shape for x in asked] == [(7, 1)]


def test_feature_distillation_refuses_what_it_cannot_do(three: Model) -> None:
    with pytest.raises(UserError, match="features"):
        learner({"f": FeatureDistillation()}, three)
    with pytest.raises(UserError, match="boundaries"):
        learner({"f": FeatureDistillation()}, featured, spec=replace(SPEC, boundaries=False))


@pytest.mark.parametrize("kind", [LwF, FeatureDistillation])
def test_a_frozen_teacher_is_loaded_to_where_the_learner_is(
    kind: Callable[[], Strategy], first: Experience, second: Experience
) -> None:
    sgd = learner({"t": kind()}, featured)
    list(sgd.learn(first))
    list(sgd.learn(second))
    elsewhere = kind()
    view = View()
    view.classes = torch.zeros(3, dtype=torch.bool, device="meta")
    elsewhere.start(view)
    elsewhere.load_state_dict(sgd.strategies["t"].state_dict())
    held = elsewhere.state_dict()
    tensors = [*held["teacher"].values(), *([held["old"]] if "old" in held else [])]
    assert tensors
    assert all(tensor.is_meta for tensor in tensors)


# ---------------------------------------------------------------- distillation of logits


def distilled(w: Tensor, teacher: Tensor, x: Tensor, classes: list[int]) -> Tensor:
    """(3,) d/dw of 4 mean_b KL(teacher || student) over ``classes`` at T = 2: 2 mean_b x_b (q_bc - t_bc)."""
    student, taught = (torch.softmax(x[:, None] * z[classes] / 2, dim=1) for z in (w, teacher))
    gradient = torch.zeros(3, dtype=DOUBLE)
    gradient[classes] = 2 * ((student - taught) * x[:, None]).mean(0)
    return gradient


@pytest.mark.parametrize("weighting", ["constant", "tasks"])
@pytest.mark.parametrize(
    ("softmax", "sets"),  # that are distilled in the second and in the third experience
    [
        ("old", ([[0, 1]], [[0, 1, 2]])),
        ("all", ([[0, 1, 2]], [[0, 1, 2]])),
        ("per_task", ([[0, 1]], [[0, 1], [1, 2]])),
    ],
)
def test_lwf_over_each_softmax_by_hand(
    softmax: str, sets: tuple[list[list[int]], ...], weighting: str, three: Model, arrival: Arrival
) -> None:
    lwf = LwF(strength=0.75, softmax=softmax, weighting=weighting)
    sgd = learner({"er": ER(MEMORY, n_replay=0), "lwf": lwf}, three, epochs=3, spec=replace(SPEC, task_aware=True))
    stream = [([0.5, -1.0, 2.0], [0, 1, 0], 0), ([1.0, -0.5], [2, 1], 1), ([0.7, 1.5, -0.3], [0, 0, 2], 5)]
    w = weights(sgd)
    for index, (x, y, task) in enumerate(stream):
        teacher, rows = w, (numbers(*x), torch.tensor(y))
        for _ in range(3):
            gradient = pull(w, *rows)
            if index:
                each = [distilled(w, teacher, rows[0], classes) for classes in sets[index - 1]]
                times = index if weighting == "tasks" else 1
                gradient = gradient + 0.75 * times * sum(each, torch.zeros(3, dtype=DOUBLE)) / len(each)
            w = w - LR * gradient
        list(sgd.learn(arrival(index, x, y, task)))
        close(weights(sgd), w)


def test_a_task_has_the_classes_of_all_its_experiences_but_none_of_replayed_rows(
    three: Model, arrival: Arrival
) -> None:
    lwf = LwF(softmax="per_task")
    sgd = learner({"er": ER(MEMORY, n_replay=9), "lwf": lwf}, three, spec=replace(SPEC, task_aware=True))
    for index, (y, task) in enumerate((([0, 0], 3), ([1, 1], 4), ([2, 2], 3), ([0, 1], 5))):
        list(sgd.learn(arrival(index, [0.5, -1.0], y, task)))
        if index == 1:
            stored = copy.deepcopy(sgd.state_dict())
    assert lwf.old is not None
    assert lwf.old.tolist() == [[True, False, True], [False, True, False]]
    sgd.load_state_dict(stored)
    list(sgd.learn(arrival(2, [0.5], [2], 3)))
    assert {task: classes.tolist() for task, classes in lwf.tasks.items()} == {
        3: [True, False, True],
        4: [False, True, False],
    }
    assert stored["strategies"]["lwf"]["tasks"][3].tolist() == [True, False, False], "what is loaded is not written to"


def test_a_softmax_per_task_needs_task_labels(three: Model) -> None:
    with pytest.raises(UserError, match=r"strategy.lwf.softmax=per_task needs task labels, .* use softmax=old or all"):
        learner({"lwf": LwF(softmax="per_task")}, three)


# ---------------------------------------------------------------- pairs and mistakes


@pytest.mark.parametrize(("one", "other"), [
    (EMATeacher(), CLSER(MEMORY)),
    (CLSER(MEMORY), EMATeacher()),
    (EMATeacher(), EMATeacher()),
])  # fmt: skip
def test_two_that_answer_are_refused(one: Strategy, other: Strategy, three: Model) -> None:
    with pytest.raises(UserError, match="both decide the answers"):
        learner({"one": one, "other": other}, three)


def test_a_teacher_that_does_not_answer_goes_with_one_that_does(three: Model, first: Experience) -> None:
    """Predictions are those of the stable average, wherever the teacher stands."""
    for names in (("silent", "cls_er"), ("cls_er", "silent")):
        made = {"silent": EMATeacher(answers=False), "cls_er": CLSER(MEMORY, stable_frequency=1.0)}
        sgd = learner({name: made[name] for name in names}, three, epochs=2)
        list(sgd.learn(first))
        x, cls_er = numbers(1.0, -2.0)[:, None], made["cls_er"]
        assert isinstance(cls_er, CLSER)
        close(sgd.predict(x), x * cls_er.stable.weights[W][:, 0])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: EMATeacher(decay=1.1), r"strategy.ema_teacher.decay=1.1 must be in \[0, 1\]"),
    (lambda: EMATeacher(decay=-0.1), r"strategy.ema_teacher.decay=-0.1 must be in \[0, 1\]"),
    (lambda: EMATeacher(strength=-1), r"strategy.ema_teacher.strength=-1 must be at least 0"),
    (lambda: CLSER(MEMORY, strength=-1), r"strategy.cls_er.strength=-1 must be at least 0"),
    (lambda: CLSER(MEMORY, n_replay=-1), r"n_replay=-1 must be at least 0"),
    (lambda: CLSER(MEMORY, stable_frequency=0), r"strategy.cls_er.stable_frequency=0 must be in \(0, 1\]"),
    (lambda: CLSER(MEMORY, plastic_frequency=1.5), r"strategy.cls_er.plastic_frequency=1.5 must be in \(0, 1\]"),
    (lambda: CLSER(MEMORY, stable_decay=2), r"strategy.cls_er.stable_decay=2 must be in \[0, 1\]"),
    (lambda: CLSER(MEMORY, plastic_decay=-1), r"strategy.cls_er.plastic_decay=-1 must be in \[0, 1\]"),
    (lambda: FeatureDistillation(-1), r"strategy.feature_distillation.strength=-1 must be at least 0"),
    (lambda: LwF(temperature=0), r"strategy.lwf.temperature=0 must be above 0"),
    (lambda: LwF(softmax="task"), r"strategy.lwf.softmax=task must be one of old, all, per_task"),
    (lambda: LwF(weighting="rows"), r"strategy.lwf.weighting=rows must be one of constant, tasks"),
])  # fmt: skip
def test_values_out_of_range_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
