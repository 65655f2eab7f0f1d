"""Each strategy's loss and gradient against the formula in closed form, and against loops written out with torch.

The three-parameter model is logits = (w_0 x, w_1 x, w_2 x) for a number x: every gradient can be written down.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from continual import compose, snapshot
from continual import config as configs
from continual.augment import CropFlip
from continual.batches import Schedule, extend
from continual.contract import Subject
from continual.errors import UserError
from continual.importance import quadratic
from continual.learner import SGDLearner
from continual.memory import Memory, Reservoir
from continual.seeding import derive
from continual.state import tensors
from continual.step import MASKED
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.er_ace import ERACE, asymmetric
from continual.strategies.ewc import EWC, empirical_fisher
from continual.strategies.lwf import LwF, distillation
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((1,), 3, dtype=DOUBLE)
LR = 0.1
MEMORY = partial(Reservoir, 4)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


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


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


def arrival(index: int, x: list[float], y: list[int]) -> Experience:
    return Experience(index, Table(numbers(*x)[:, None], torch.tensor(y)))


FIRST = arrival(0, [0.5, -1.0, 2.0, 1.5], [0, 1, 0, 1])
SECOND = arrival(1, [1.0, -0.5, 3.0], [2, 1, 2])


def three(spec: Spec) -> nn.Module:
    """Logits w x, w = (0.3, -0.2, 0.5)."""
    model = nn.Linear(1, 3, bias=False, dtype=DOUBLE)
    model.weight.data[:, 0] = numbers(0.3, -0.2, 0.5)
    return model


def wide(spec: Spec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(1, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).double()


def learner(strategies: dict[str, Strategy], model: Callable[[Spec], nn.Module] = three, **options: Any) -> SGDLearner:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 4} | options
    return SGDLearner(model, partial(torch.optim.SGD, lr=LR), strategies, **chosen)


def weights(sgd: SGDLearner) -> Tensor:
    """(3,) of the three-parameter model."""
    return sgd.view.params["model.weight"].detach()[:, 0].clone()


def state(sgd: SGDLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sgd.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def softmax_gradient(w: Tensor, x: Tensor, y: Tensor, share: Tensor, allowed: Tensor | None = None) -> Tensor:
    """(3,) d/dw sum_b share_b CE_b = sum_b share_b x_b (p_bc - 1[y_b = c]), p over the ``allowed`` (B, 3) classes."""
    powers = torch.exp(x[:, None] * w) * (1.0 if allowed is None else allowed)
    p = powers / powers.sum(1, keepdim=True)
    return ((p - torch.eye(3, dtype=DOUBLE)[y]) * (share * x)[:, None]).sum(0)


def shares(n: int, each: float) -> Tensor:
    return torch.full((n,), each, dtype=DOUBLE)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def all_of(experience: Experience) -> tuple[Tensor, Tensor]:
    batch = experience.rows.take(torch.arange(len(experience.rows)))
    return batch.x[:, 0], batch.y


# ---------------------------------------------------------------- putting rows behind a batch


def test_extend_by_hand() -> None:
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([0.5, 0.5]), 2, {"id": torch.tensor([7, 8])})
    longer = extend(batch, torch.ones(3, 1), torch.tensor([2, 2, 0]), weight=0.25, keep=0.5)
    assert longer.x[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert longer.y.tolist() == [0, 1, 2, 2, 0]
    assert longer.weight.tolist() == [0.25, 0.25, 0.25, 0.25, 0.25]
    assert longer.arrived == 2
    assert longer.extra["id"].tolist() == [7, 8], "columns are beside arrived rows only"
    assert batch.weight.tolist() == [0.5, 0.5], "the batch is left alone"


# ---------------------------------------------------------------- experience replay


def test_er_by_hand() -> None:
    """Two updates of two rows; the second replays the two remembered rows: a plain mean over four."""
    er = ER(MEMORY, n_replay=3)
    sgd = learner({"er": er}, batch_size=2)
    x, y = all_of(arrival(0, [0.5, -1.0], [0, 1]))
    w = weights(sgd)
    list(sgd.learn(arrival(0, [0.5, -1.0], [0, 1])))
    w = w - LR * softmax_gradient(w, x, y, shares(2, 1 / 2))
    close(weights(sgd), w)
    list(sgd.learn(arrival(1, [2.0, 1.5], [2, 2])))
    both = torch.cat([numbers(2.0, 1.5), x]), torch.cat([torch.tensor([2, 2]), y])
    close(weights(sgd), w - LR * softmax_gradient(w, *both, shares(4, 1 / 4)))
    assert len(er.memory) == 4


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_er_with_a_strength_adds_two_means(strength: float) -> None:
    """Three arrived rows and two replayed: each part is averaged apart, and the second counts ``strength`` times."""
    sgd = learner({"er": ER(MEMORY, n_replay=3, strength=strength)}, batch_size=3)
    before = arrival(0, [0.5, -1.0], [0, 1])
    (x, y), w = all_of(before), weights(sgd)
    list(sgd.learn(before))
    w = w - LR * softmax_gradient(w, x, y, shares(2, 1 / 2))
    list(sgd.learn(arrival(1, [2.0, 1.5, 1.0], [2, 1, 1])))
    new = softmax_gradient(w, numbers(2.0, 1.5, 1.0), torch.tensor([2, 1, 1]), shares(3, 1 / 3))
    old = softmax_gradient(w, x, y, shares(2, 1 / 2))
    close(weights(sgd), w - LR * (new + strength * old))


@pytest.mark.parametrize("replacement", [False, True])
def test_er_equals_a_loop_with_the_same_draws_bit_for_bit(replacement: bool) -> None:
    make = partial(Reservoir, 5, replacement=replacement)
    sgd = learner({"er": ER(make, n_replay=3, seed=9)}, wide_without_noise, seed=9, batch_size=3, epochs=2)
    network = copy.deepcopy(sgd.network)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    memory = make(spec=SPEC, seed=derive(9, "ER", "memory"))
    replayed = []
    for lap, experience in enumerate((FIRST, SECOND)):
        for indices in Schedule(len(experience.rows), 3, 2, None, seed=9, lap=lap):
            batch = experience.rows.take(indices)
            slots = memory.draw(3)
            replayed.append(len(slots))
            x = torch.cat([batch.x, memory.column("x", slots)])
            y = torch.cat([batch.y, memory.column("y", slots)])
            new, old, total = len(batch), len(slots), len(batch) + len(slots)
            share = torch.cat(
                [shares(new, 1 / new) * (new / total) if old else shares(new, 1 / new), shares(old, 1 / total)]
            )
            optimizer.zero_grad()
            torch.dot(share, cross_entropy(network(x).logits, y, reduction="none")).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            memory.add(batch)
        list(sgd.learn(experience))
    assert same(state(sgd), network.state_dict())
    assert replayed[0] == 0
    assert max(replayed) == 3


def wide_without_noise(spec: Spec) -> nn.Module:
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def test_a_memory_smaller_than_the_replay_gives_what_it_has() -> None:
    sizes: list[int] = []

    class Spy(ER):
        def mix(self, view: View, batch: Batch) -> Batch:
            mixed = super().mix(view, batch)
            sizes.append(len(mixed))
            torch.testing.assert_close(mixed.weight, shares(len(mixed), 1 / len(mixed)))
            assert mixed.arrived == len(batch)
            return mixed

    sgd = learner({"er": Spy(partial(Reservoir, 2), n_replay=10)}, batch_size=1)
    list(sgd.learn(FIRST))
    assert sizes == [1, 2, 3, 3]
    sizes.clear()
    sgd = learner({"er": Spy(partial(Reservoir, 2, replacement=True), n_replay=10)}, batch_size=1)
    list(sgd.learn(FIRST))
    assert sizes == [1, 11, 11, 11]


@pytest.mark.parametrize("kind", [ER, ERACE, DERPP])
def test_indices_into_the_stream_replay_what_stored_rows_replay(kind: Callable[..., Strategy]) -> None:
    def trained(store: str) -> SGDLearner:
        sgd = learner({"s": kind(partial(Reservoir, 5, store=store), n_replay=3)}, wide_without_noise, batch_size=2)
        table = FIRST.rows
        for i in range(4):  # the ids of all arrivals name rows of one table
            list(sgd.learn(Experience(i, Part(table, [i, (i + 1) % 4]))))
        return sgd

    assert same(state(trained("rows")), state(trained("indices")))


class Part:
    """Some rows of a table, under the table's own ids."""

    def __init__(self, table: Any, positions: list[int]) -> None:
        self.table, self.positions = table, torch.tensor(positions)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, indices: Tensor) -> Batch:
        batch: Batch = self.table.take(self.positions[indices])
        return batch

    def fetch(self, ids: Tensor) -> Tensor:
        x: Tensor = self.table.fetch(ids)
        return x


def test_rows_of_the_current_experience_can_be_kept_out_of_the_replay() -> None:
    drawn: list[list[int]] = []

    class Spy(ER):
        def draw(self, view: View, batch: Batch) -> Tensor:
            slots = super().draw(view, batch)
            drawn.append(sorted(self.memory.columns["experience"][slots].tolist()))
            return slots

    sgd = learner({"er": Spy(partial(Reservoir, 100), n_replay=3, exclude_current=True)}, batch_size=2)
    for experience in (FIRST, SECOND, Experience(2, FIRST.rows)):
        list(sgd.learn(experience))
    assert drawn[:2] == [[], []], "nothing but the current experience is stored"
    assert drawn[2:4] == [[0, 0, 0], [0, 0, 0]]
    assert all(len(d) == 3 and set(d) <= {0, 1} for d in drawn[4:])


# ---------------------------------------------------------------- asymmetric cross-entropy


def test_the_asymmetric_mask_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False]]).expand(4, 4)
    y = torch.tensor([0, 2, 1, 0])
    assert asymmetric(mask, y, arrived=2).int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]


def test_er_ace_by_hand() -> None:
    """Arrived rows (classes 1 and 2) do not see class 0; replayed rows see all; two means are added."""
    sgd = learner({"er_ace": ERACE(MEMORY, n_replay=3)}, batch_size=3)
    before = arrival(0, [0.5, -1.0], [0, 1])
    (x, y), w = all_of(before), weights(sgd)
    list(sgd.learn(before))
    w = w - LR * softmax_gradient(w, x, y, shares(2, 1 / 2), numbers(1, 1, 0).expand(2, 3))
    close(weights(sgd), w)
    list(sgd.learn(arrival(1, [2.0, 1.5, 1.0], [2, 1, 1])))
    new_x, new_y = numbers(2.0, 1.5, 1.0), torch.tensor([2, 1, 1])
    new = softmax_gradient(w, new_x, new_y, shares(3, 1 / 3), numbers(0, 1, 1).expand(3, 3))
    old = softmax_gradient(w, x, y, shares(2, 1 / 2))
    close(weights(sgd), w - LR * (new + old))


def test_er_ace_moves_no_class_that_did_not_arrive_with_the_row() -> None:
    sgd = learner({"er_ace": ERACE(MEMORY, n_replay=0)})
    before = weights(sgd)
    list(sgd.learn(FIRST))
    assert weights(sgd)[2] == before[2]
    assert weights(sgd)[0] != before[0]


def test_er_ace_alone_with_one_row_learns_nothing_from_it() -> None:
    """Its own class is the only one that competes: the loss is 0, whatever the weights."""
    sgd = learner({"er_ace": ERACE(MEMORY, n_replay=0)}, batch_size=1)
    before = weights(sgd)
    list(sgd.learn(FIRST))
    assert torch.equal(weights(sgd), before)


# ---------------------------------------------------------------- dark experience replay


class Spied(DERPP):
    """Keeps its last two draws."""

    def start(self, view: View) -> None:
        super().start(view)
        self.draws: list[Tensor] = []
        original = self.memory.draw

        def draw(n: int, among: Tensor | None = None) -> Tensor:
            self.draws.append(original(n, among))
            return self.draws[-1]

        self.memory.draw = draw  # type: ignore[method-assign]


@pytest.mark.parametrize(("strength", "label_strength"), [(0.7, 0.4), (0.7, 0.0), (0.0, 0.4), (0.0, 0.0)])
def test_derpp_by_hand(strength: float, label_strength: float) -> None:
    """L = mean CE of the arrived + strength mean (z - z*)^2 over one draw + label_strength mean CE over another."""
    derpp = Spied(partial(Reservoir, 10), n_replay=2, strength=strength, label_strength=label_strength)
    sgd = learner({"derpp": derpp})
    w0 = weights(sgd)
    (x, y), (new_x, new_y) = all_of(FIRST), all_of(SECOND)
    list(sgd.learn(FIRST))
    w1 = w0 - LR * softmax_gradient(w0, x, y, shares(4, 1 / 4))
    close(weights(sgd), w1)
    stored = derpp.memory.columns["logits"][:4].double()
    torch.testing.assert_close(stored, x[:, None] * w0, rtol=1e-6, atol=1e-7)  # before the update; kept as float32

    derpp.draws.clear()
    list(sgd.learn(SECOND))
    assert len(derpp.draws) == (strength > 0) + (label_strength > 0)
    gradient = softmax_gradient(w1, new_x, new_y, shares(3, 1 / 3))
    if strength:
        slots = derpp.draws[0]
        away = x[slots][:, None] * w1 - stored[slots]  # (2, 3)
        gradient = gradient + strength * (2 / away.numel()) * (away * x[slots][:, None]).sum(0)
    if label_strength:
        slots = derpp.draws[-1]
        gradient = gradient + softmax_gradient(w1, x[slots], y[slots], shares(2, label_strength / 2))
    close(weights(sgd), w1 - LR * gradient)


def test_the_two_draws_differ() -> None:
    derpp = Spied(partial(Reservoir, 100), n_replay=2)
    sgd = learner({"derpp": derpp}, batch_size=1, epochs=10)
    list(sgd.learn(FIRST))
    pairs = list(zip(derpp.draws[::2], derpp.draws[1::2], strict=True))
    assert any(len(a) and not torch.equal(a, b) for a, b in pairs)


def test_stored_logits_are_of_the_rows_as_the_network_saw_them() -> None:
    """With augmentation the memory keeps the plain row and the logits of the augmented one, as published."""
    derpp = DERPP(partial(Reservoir, 10))
    spec = Spec((1, 2, 2), 3, dtype=DOUBLE)
    sgd = learner({"derpp": derpp}, image_model, spec=spec, augment=CropFlip(crop=1, seed=4))
    before = copy.deepcopy(sgd.network)
    x = torch.randn(4, 1, 2, 2, dtype=DOUBLE)
    augmented = CropFlip(crop=1, seed=4)(Batch(x, FIRST.rows.take(torch.arange(4)).y, shares(4, 1 / 4), 4))
    assert not torch.equal(augmented, x)
    list(sgd.learn(Experience(0, Table(x, torch.tensor([0, 1, 0, 1])))))
    assert torch.equal(derpp.memory.columns["x"][:4], x)
    with torch.no_grad():
        assert torch.equal(derpp.memory.columns["logits"][:4], before(augmented).logits.float())


def image_model(spec: Spec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


# ---------------------------------------------------------------- elastic weight consolidation


def fisher_by_hand(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(3,) mean_b (x_b (p_bc - 1[y_b = c]))^2."""
    return torch.stack([
        softmax_gradient(w, x[b : b + 1], y[b : b + 1], shares(1, 1.0)).square() for b in range(len(x))
    ]).mean(0)  # fmt: skip


@pytest.mark.parametrize("decay", [1.0, 0.25, 0.0])
def test_ewc_by_hand(decay: float) -> None:
    ewc = EWC(strength=3.0, decay=decay)
    sgd = learner({"ewc": ewc}, epochs=2)
    w = weights(sgd)
    fisher, anchor = numbers(0, 0, 0), w
    for experience in (FIRST, SECOND, Experience(2, FIRST.rows)):
        x, y = all_of(experience)
        for _ in range(2):  # each experience fits one batch
            w = w - LR * (softmax_gradient(w, x, y, shares(len(x), 1 / len(x))) + 3.0 * fisher * (w - anchor))
        list(sgd.learn(experience))
        close(weights(sgd), w)
        fisher, anchor = decay * fisher + fisher_by_hand(w, x, y), w
        close(ewc.importance["model.weight"][:, 0], fisher)
        close(ewc.anchor["model.weight"][:, 0], anchor)


def test_the_penalty_by_hand() -> None:
    params, anchor = {"a": numbers(1.0, 2.0), "b": numbers(5.0)}, {"a": numbers(0.0, 4.0), "b": numbers(2.0)}
    importance = {"a": numbers(3.0, 0.5), "b": numbers(0.1)}
    assert float(quadratic(params, anchor, importance)) == pytest.approx(3 * 1 + 0.5 * 4 + 0.1 * 9, rel=1e-14)


@pytest.mark.parametrize("head", ["all", "seen", "current"])
def test_the_fisher_information_is_of_single_rows_in_eval_mode_under_the_head(head: str) -> None:
    """One backward pass per row through a network with dropout, over the classes that the head lets compete."""
    sgd = learner({}, wide, head=head)
    list(sgd.learn(arrival(0, [1.0, -2.0], [0, 0])))
    list(sgd.learn(arrival(1, [0.5, 1.0, -1.5], [1, 2, 1])))
    rows = arrival(2, [0.5, 1.0, -1.5, 2.5, 0.1], [1, 2, 1, 2, 2])
    found = empirical_fisher(sgd.view, rows, chunk=2)
    allowed = {"all": [True] * 3, "seen": [True] * 3, "current": [False, True, True]}[head]
    network = copy.deepcopy(sgd.network).eval()
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for i in range(5):
        batch = rows.rows.take(torch.tensor([i]))
        network.zero_grad()
        logits = network(batch.x).logits.masked_fill(~torch.tensor(allowed), MASKED)
        cross_entropy(logits, batch.y).backward()  # type: ignore[no-untyped-call]
        for name, p in network.named_parameters():
            assert p.grad is not None
            total[name] += p.grad.square() / 5
    for name, expected in total.items():
        close(found[name], expected)
        assert expected.max() > 0
    for name, other in empirical_fisher(sgd.view, rows, chunk=100).items():
        close(other, found[name])


def test_the_fisher_information_beside_er_ace_is_the_same() -> None:
    """ER-ACE's mask leaves a single row only its own class, and would make every gradient 0."""
    ewc = EWC()
    sgd = learner({"er_ace": ERACE(MEMORY), "ewc": ewc})
    list(sgd.learn(FIRST))
    close(ewc.importance["model.weight"][:, 0], fisher_by_hand(weights(sgd), *all_of(FIRST)))


# ---------------------------------------------------------------- learning without forgetting


def distilled(w: Tensor, teacher: Tensor, x: Tensor, classes: list[int], temperature: float) -> Tensor:
    """(3,) d/dw of T^2 mean_b KL(teacher || student) over ``classes``: T mean_b x_b (q_bc - t_bc)."""
    gradient = numbers(0, 0, 0)
    student = torch.softmax(x[:, None] * w[classes] / temperature, dim=1)
    taught = torch.softmax(x[:, None] * teacher[classes] / temperature, dim=1)
    gradient[classes] = temperature * ((student - taught) * x[:, None]).mean(0)
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_lwf_by_hand(temperature: float) -> None:
    sgd = learner({"lwf": LwF(strength=1.5, temperature=temperature)}, epochs=3)
    w = weights(sgd)
    seen: list[int] = []
    for experience, classes in ((FIRST, [0, 1]), (SECOND, [0, 1, 2]), (Experience(2, FIRST.rows), [0, 1, 2])):
        (x, y), teacher = all_of(experience), w
        for _ in range(3):
            gradient = softmax_gradient(w, x, y, shares(len(x), 1 / len(x)))
            w = w - LR * (gradient + (1.5 * distilled(w, teacher, x, seen, temperature) if seen else 0))
        list(sgd.learn(experience))
        close(weights(sgd), w)
        seen = classes


def test_distillation_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2) over two classes; the third, however wrong, is not asked."""
    taught, logits = numbers(3.0, 1.0, 1e6).log()[None], numbers(2.0, 2.0, 1e-6).log()[None]
    classes = torch.tensor([True, True, False])
    expected = 0.75 * numbers(1.5).log() + 0.25 * numbers(0.5).log()
    close(distillation(logits, taught, classes, 1.0), expected[0])
    mean = distillation(torch.cat([logits, taught]), torch.cat([taught, taught]), classes, 1.0)
    close(mean, expected[0] / 2)
    # at T = 2 the probabilities are the square roots, made to sum to 1
    t, s = numbers(3.0, 1.0).sqrt() / numbers(3.0, 1.0).sqrt().sum(), numbers(0.5, 0.5)
    close(distillation(logits, taught, classes, 2.0), 4 * (t * (t / s).log()).sum())


def test_the_teacher_answers_in_eval_mode_and_is_not_trained() -> None:
    lwf = LwF()
    sgd = learner({"lwf": lwf}, wide)
    list(sgd.learn(FIRST))
    before = state(sgd)
    answers: list[Tensor] = []
    answer = sgd.view.answer

    def spied(params: Weights, x: Tensor) -> Output:
        out = answer(params, x)
        answers.append(out.logits)
        return out

    sgd.view.answer = spied
    sgd.epochs = 3
    list(sgd.learn(SECOND))
    assert same(lwf.teacher, before)
    network = wide(SPEC).eval()
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in before.items()})
    assert len(answers) == 3
    for taught in answers:
        close(taught, network(SECOND.rows.take(torch.arange(3)).x).detach())


# ---------------------------------------------------------------- neutral elements


def images_or_rows() -> list[Experience]:
    return [FIRST, SECOND, Experience(2, FIRST.rows)]


@pytest.mark.parametrize("strategies", [
    {"er": ER(MEMORY, n_replay=0)},
    {"derpp": DERPP(MEMORY, n_replay=0)},
    {"derpp": DERPP(MEMORY, strength=0, label_strength=0)},
    {"ewc": EWC(strength=0)},
    {"lwf": LwF(strength=0)},
    {"ewc": EWC(strength=0), "er": ER(MEMORY, n_replay=0), "lwf": LwF(strength=0)},
], ids=lambda strategies: "+".join(strategies))  # fmt: skip
@pytest.mark.parametrize("head", ["all", "current"])
def test_nothing_replayed_and_no_strength_is_plain_training_bit_for_bit(
    strategies: dict[str, Strategy], head: str
) -> None:
    plain = learner({}, wide, batch_size=2, epochs=2, head=head)
    neutral = learner(copy.deepcopy(strategies), wide, batch_size=2, epochs=2, head=head)
    for experience in images_or_rows():
        list(plain.learn(experience))
        list(neutral.learn(experience))
    assert same(state(plain), state(neutral))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ER(MEMORY, n_replay=2),
        lambda: ERACE(MEMORY, n_replay=2),
        lambda: DERPP(MEMORY, n_replay=2),
        lambda: EWC(strength=10),
        lambda: LwF(strength=10),
    ],
)
def test_every_strategy_changes_the_weights(make: Callable[[], Strategy]) -> None:
    plain, acting = learner({}, epochs=2), learner({"s": make()}, epochs=2)
    for experience in images_or_rows():
        list(plain.learn(experience))
        list(acting.learn(experience))
    assert not torch.equal(weights(plain), weights(acting))


# ---------------------------------------------------------------- together


def test_penalties_and_replay_act_together_by_hand() -> None:
    """er and ewc: the mean over arrived and replayed rows, plus the quadratic pull."""
    ewc, er = EWC(strength=3.0), ER(partial(Reservoir, 10), n_replay=10)
    sgd = learner({"er": er, "ewc": ewc}, epochs=2)
    w, (x, y), (new_x, new_y) = weights(sgd), all_of(FIRST), all_of(SECOND)
    w = w - LR * softmax_gradient(w, x, y, shares(4, 1 / 4))
    w = w - LR * softmax_gradient(w, torch.cat([x, x]), torch.cat([y, y]), shares(8, 1 / 8))
    list(sgd.learn(FIRST))
    close(weights(sgd), w)
    fisher, anchor = fisher_by_hand(w, x, y), w
    assert len(er.memory) == 8  # both passes were offered
    both_x, both_y = torch.cat([new_x, x, x]), torch.cat([new_y, y, y])
    sgd.epochs = 1
    list(sgd.learn(SECOND))
    close(weights(sgd), w - LR * (softmax_gradient(w, both_x, both_y, shares(11, 1 / 11)) + 3 * fisher * (w - anchor)))


@pytest.mark.parametrize("order", [("er", "derpp"), ("derpp", "er")])
def test_derpp_finds_its_own_rows_wherever_it_stands(order: tuple[str, str]) -> None:
    """Its penalty is of the rows that it drew itself, in a batch that another strategy makes longer.

    er makes a plain mean of the batch that it gets and its own rows, so what it adds weighs less behind derpp's rows.
    """
    derpp = Spied(partial(Reservoir, 10), n_replay=2, strength=0.7, label_strength=0.0)
    strategies = {"derpp": derpp, "er": ER(partial(Reservoir, 10), n_replay=10)}
    sgd = learner({name: strategies[name] for name in order})
    (x, y), (new_x, new_y) = all_of(FIRST), all_of(SECOND)
    list(sgd.learn(FIRST))
    w, stored = weights(sgd), derpp.memory.columns["logits"][:4].double()
    derpp.draws.clear()
    list(sgd.learn(SECOND))
    total, before = (7, 3) if order[0] == "er" else (9, 5)  # 3 arrived, 4 from er, 2 from derpp
    gradient = softmax_gradient(w, new_x, new_y, shares(3, before / total / 3))
    gradient = gradient + softmax_gradient(w, x, y, shares(4, 1 / total))
    slots = derpp.draws[0]
    away = x[slots][:, None] * w - stored[slots]
    gradient = gradient + 0.7 * (2 / away.numel()) * (away * x[slots][:, None]).sum(0)
    close(weights(sgd), w - LR * gradient)


def test_masks_of_head_and_strategy_are_both_heeded() -> None:
    """head=seen forbids class 2, er_ace forbids arrived rows the classes of other rows."""
    sgd = learner({"er_ace": ERACE(MEMORY, n_replay=3)}, head="seen", batch_size=2)
    w = weights(sgd)
    list(sgd.learn(arrival(0, [0.5, 1.0], [0, 0])))
    close(weights(sgd), w)  # class 0 competes alone
    list(sgd.learn(arrival(1, [2.0, 1.5], [1, 1])))
    old = softmax_gradient(w, numbers(0.5, 1.0), torch.tensor([0, 0]), shares(2, 1 / 2), numbers(1, 1, 0).expand(2, 3))
    close(weights(sgd), w - LR * old)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ER(MEMORY, n_replay=-1), r"n_replay=-1 must be at least 0"),
    (lambda: ER(MEMORY, strength=-0.5), r"strength=-0.5 must be at least 0"),
    (lambda: ERACE(MEMORY, n_replay=-1), r"n_replay=-1 must be at least 0"),
    (lambda: DERPP(MEMORY, n_replay=-1), r"n_replay=-1 must be at least 0"),
    (lambda: DERPP(MEMORY, strength=-0.5), r"strength=-0.5 must be at least 0"),
    (lambda: DERPP(MEMORY, label_strength=-0.5), r"label_strength=-0.5 must be at least 0"),
    (lambda: EWC(strength=-1), r"strength=-1 must be at least 0"),
    (lambda: EWC(decay=1.5), r"decay=1.5 must be in \[0, 1\]"),
    (lambda: EWC(decay=-0.1), r"decay=-0.1 must be in \[0, 1\]"),
    (lambda: EWC(chunk=0), r"chunk=0 must be at least 1"),
    (lambda: LwF(strength=-1), r"strength=-1 must be at least 0"),
    (lambda: LwF(temperature=0), r"temperature=0 must be above 0"),
])  # fmt: skip
def test_values_out_of_range_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("strategies", [
    {"ewc": EWC()}, {"lwf": LwF()}, {"er": ER(MEMORY, exclude_current=True)}
], ids=lambda strategies: "+".join(strategies))  # fmt: skip
def test_what_uses_boundaries_is_refused_where_the_stream_hides_them(strategies: dict[str, Strategy]) -> None:
    with pytest.raises(UserError, match="needs task boundaries, and this stream hides them"):
        learner(strategies, spec=Spec((1,), 3, dtype=DOUBLE, boundaries=False))


def test_memories_of_two_strategies_draw_apart() -> None:
    er, ace = ER(MEMORY), ERACE(MEMORY)
    learner({"er": er, "er_ace": ace})
    assert isinstance(er.memory, Memory)
    assert not torch.equal(er.memory.generator.get_state(), ace.memory.generator.get_state())


@pytest.mark.parametrize("name", ["dgr", "ema_teacher", "feature_distillation", "icarl", "lwf", "packnet"])
def test_what_is_loaded_lies_where_the_weights_are(name: str) -> None:
    """Snapshots come back on the CPU; here the weights are on another device."""
    data = ("scenario/source=gaussian", "scenario.n_tasks=2", "scenario.kind=task", "train.head=per_task")
    subject = Subject(compose(f"strategy={name}", *data, "model.hidden=[8]", "track=none"))
    stream, there = subject.make_stream(), torch.device("meta")
    trained, fresh = (configs.build_learner(subject.config, stream.spec) for _ in range(2))
    for experience in stream:
        updates = iter(trained.learn(experience))
        next(updates)
        if experience.index == 0:
            list(updates)
    stored, view = snapshot.loads(snapshot.dumps(trained.state_dict()))["strategies"][name], fresh.view
    view.classes, view.params, view.buffers = (
        view.classes.to(there),
        {key: p.to(there) for key, p in view.params.items()},
        {key: b.to(there) for key, b in view.buffers.items()},
    )
    strategy = fresh.strategies[name]
    strategy.start(view)
    with warnings.catch_warnings(action="ignore"):  # that nothing can be copied there
        strategy.load_state_dict(stored)
    found = list(tensors({key: value for key, value in strategy.state_dict().items() if key != "optimizer"}))
    assert found
    assert {tensor.device.type for tensor in found} == {"meta"}
