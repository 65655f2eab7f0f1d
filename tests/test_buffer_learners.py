"""GDumb, nearest neighbours over a memory, the last label, cumulative training: against loops and scikit-learn."""

import copy
from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual.batches import TensorRows
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.learners.buffer_knn import LEAST, BufferKNN, votes
from continual.learners.cumulative import Cumulative
from continual.learners.gdumb import GDumb
from continual.learners.joint import Joint
from continual.learners.last_label import LastLabel
from continual.memory import FIFO, ClassBalanced, Reservoir
from continual.models import mlp
from continual.types import Experience, Spec

DIM, CLASSES = 3, 4
SPEC = Spec((DIM,), CLASSES)
NET = partial(mlp, hidden=(5,))
ADAM = partial(torch.optim.Adam, lr=0.01)
MEMORY = partial(ClassBalanced, 10)


def rows(n: int, labels: list[int], seed: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), torch.tensor(labels * n)[:n]


PARTS = [rows(17, [0, 1], 1), rows(12, [2, 3], 2), rows(15, [1, 2], 3)]


@pytest.fixture
def arrivals(table: Any) -> list[Experience]:
    return [Experience(index, table(x, y)) for index, (x, y) in enumerate(PARTS)]


def learn(learner: Any, *arrivals: Experience) -> Any:
    for experience in arrivals:
        assert sum(learner.learn(experience)) == len(experience.rows)
    return learner


def weights(learner: SGDLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- GDumb


def test_gdumb_is_a_fresh_network_trained_on_the_memory_alone(arrivals: list[Experience]) -> None:
    """After each experience: bit for bit what plain SGD makes of the memory's rows."""
    ours = GDumb(MEMORY, NET, ADAM, spec=SPEC, batch_size=4, epochs=3)
    for lap, experience in enumerate(arrivals):
        learn(ours, experience)
        slots = torch.arange(len(ours.memory))
        kept = TensorRows(ours.memory.column("x", slots), ours.memory.column("y", slots))
        assert len(kept) == 10
        plain = SGDLearner(NET, ADAM, {}, spec=SPEC, batch_size=4, epochs=3)
        plain.lap = lap  # the order of rows depends on it
        learn(plain, Experience(0, kept))
        assert same(weights(ours), weights(plain))
    assert sorted(ours.memory.columns["y"].bincount().tolist()) == [2, 2, 3, 3]


def test_gdumb_trains_rarely_where_it_is_told_to_and_after_the_last_experience(arrivals: list[Experience]) -> None:
    spec = Spec((DIM,), CLASSES, n_experiences=3)
    ours = GDumb(MEMORY, NET, ADAM, spec=spec, batch_size=4, every=2)
    before = weights(ours)
    assert list(ours.learn(arrivals[0])) == [17]
    assert same(weights(ours), before)
    assert len(ours.memory) == 10
    assert ours.cost().forward_equivalents == 0
    learn(ours, arrivals[1])
    after = weights(ours)
    assert not same(after, before)
    learn(ours, arrivals[2])  # the last one
    assert not same(weights(ours), after)
    assert ours.cost().forward_equivalents == 2 * 30 * 10 * 3  # trainings, epochs, rows, forward and backward


@pytest.mark.parametrize("stop", range(5))
def test_gdumb_goes_on_between_trainings_bit_for_bit(stop: int, arrivals: list[Experience]) -> None:
    make = partial(GDumb, MEMORY, NET, ADAM, spec=SPEC, batch_size=4, epochs=1, every=2)
    whole, part, fresh = learn(make(), *arrivals), make(), make()
    at, count = 0, 0
    for experience in arrivals:
        for _ in part.learn(experience):
            if count == stop:
                fresh.load_state_dict(copy.deepcopy(part.state_dict()))
                at = experience.index
            count += 1
    assert count == 1 + 3 + 1
    for experience in arrivals[at:]:
        list(fresh.learn(experience))
    assert same(weights(fresh), weights(whole))
    assert torch.equal(fresh.memory.columns["x"], whole.memory.columns["x"])
    assert fresh.lap == whole.lap == 3


def test_many_trainings_are_refused_with_what_to_do() -> None:
    online = Spec((DIM,), CLASSES, boundaries=False, n_experiences=12_000)
    message = r"learner=gdumb trains anew after each of the stream's 12000 experiences \(at most 100 times\); .*=120"
    with pytest.raises(UserError, match=message):
        GDumb(MEMORY, NET, ADAM, spec=online)
    with pytest.raises(UserError, match=r"after every 119 of the stream's"):
        GDumb(MEMORY, NET, ADAM, spec=online, every=119)
    GDumb(MEMORY, NET, ADAM, spec=online, every=120)
    with pytest.raises(UserError, match=r"learner.every=0 must be at least 1"):
        GDumb(MEMORY, NET, ADAM, spec=SPEC, every=0)


# ---------------------------------------------------------------- cumulative


def test_cumulative_goes_on_with_weights_and_optimizer_on_everything_so_far(arrivals: list[Experience]) -> None:
    ours = Cumulative(NET, ADAM, spec=SPEC, batch_size=5, epochs=2)
    plain = SGDLearner(NET, ADAM, {}, spec=SPEC, batch_size=5, epochs=2)
    for lap, experience in enumerate(arrivals):
        learn(ours, experience)
        x, y = (torch.cat([part[column] for part in PARTS[: lap + 1]]) for column in (0, 1))
        learn(plain, Experience(lap, TensorRows(x, y)))
        assert same(weights(ours), weights(plain))
    joint = learn(Joint(NET, ADAM, spec=SPEC, batch_size=5, epochs=2), *arrivals)
    assert not same(weights(joint), weights(ours))
    assert joint.cost().bytes - ours.cost().bytes == sum(t.numel() * 4 for t in weights(ours).values())


# ---------------------------------------------------------------- nearest neighbours over a memory


def test_votes_by_hand() -> None:
    """At 0.9: distances .9, .1, 1.1, 4.1 to the kept 0, 1, 2, 5 of classes 0, 1, 1, 0."""
    kept, y = torch.tensor([[0.0], [1.0], [2.0], [5.0]]), torch.tensor([0, 1, 1, 0])
    z = torch.tensor([[0.9], [4.0]])
    assert votes(z, kept, y, 1, 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert votes(z, kept, y, 2, 3).tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0]]
    torch.testing.assert_close(votes(z, kept, y, 3, 3), torch.tensor([[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0]]))
    assert votes(z, kept, y, 9, 3).tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0]]  # no more than there are


@pytest.mark.parametrize("k", [1, 4, 7])
def test_the_neighbours_are_scikit_learn_s(k: int, arrivals: list[Experience], monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr("continual.learners.buffer_knn.CHUNK", 70)  # a few questions at once
    ours = learn(BufferKNN(partial(Reservoir, 25), spec=SPEC, k=k, batch_size=4), *arrivals)
    x, y = ours.memory.columns["x"], ours.memory.columns["y"]
    assert len(ours.memory) == 25
    asked = torch.randn(60, DIM, generator=torch.Generator().manual_seed(9))
    theirs = KNeighborsClassifier(k).fit(x.double().numpy(), y.numpy())
    expected = np.log(np.maximum(theirs.predict_proba(asked.double().numpy()), LEAST))
    np.testing.assert_allclose(ours.predict(asked).numpy(), expected, rtol=1e-5)
    assert ours.cost().forward_equivalents == 0


def test_neighbours_of_bytes_are_sought_on_the_scale_of_the_inputs(table: Any) -> None:
    """Differences of bytes would wrap around; the memory keeps them as bytes."""
    spec = Spec((1,), 2, torch.uint8, (-1.0, 1.0))
    x = torch.tensor([[0], [250]], dtype=torch.uint8)
    learner = learn(BufferKNN(partial(Reservoir, 5), spec=spec), Experience(0, table(x, torch.tensor([0, 1]))))
    assert learner.memory.columns["x"].dtype == torch.uint8
    assert learner.predict(torch.tensor([[100], [140]], dtype=torch.uint8)).argmax(1).tolist() == [0, 1]


def test_neighbours_among_a_backbone_s_features_which_are_what_is_stored(arrivals: list[Experience]) -> None:
    over = learn(BufferKNN(partial(Reservoir, 25), spec=SPEC, k=3, backbone=NET), *arrivals)
    assert over.memory.columns["x"].shape == (25, 5)
    asked = torch.randn(20, DIM)
    slots = torch.arange(25)
    kept, y = over.memory.column("x", slots), over.memory.column("y", slots)
    torch.testing.assert_close(
        over.predict(asked), votes(over.features(asked), kept, y, 3, CLASSES).clamp_min(LEAST).log()
    )
    assert over.cost().forward_equivalents == 17 + 12 + 15


def test_a_memory_in_bytes_holds_as_many_rows_as_fit(arrivals: list[Experience]) -> None:
    learner = learn(BufferKNN(partial(Reservoir, 100, "bytes"), spec=SPEC), *arrivals)
    assert len(learner.memory) == 100 // (4 * DIM + 8)


def test_below_a_row_for_each_class_only_the_last_rows_make_sense() -> None:
    """A window of the last rows is for the classes of late; no other memory can answer every class."""
    for kind in (Reservoir, ClassBalanced):
        with pytest.raises(UserError, match=r"memory\.capacity=3 must be at least 1 row for each of 4"):
            BufferKNN(partial(kind, 3), spec=SPEC)
        BufferKNN(partial(kind, 4), spec=SPEC)
    BufferKNN(partial(FIFO, 1), spec=SPEC)


def test_a_class_without_a_neighbour_has_the_least_logit(table: Any) -> None:
    learner = learn(BufferKNN(MEMORY, spec=SPEC), Experience(0, table(torch.zeros(1, DIM), torch.tensor([2]))))
    expected = [[log(LEAST), log(LEAST), 0.0, log(LEAST)]]
    assert learner.predict(torch.ones(1, DIM)).tolist()[0] == pytest.approx(expected[0])


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, r"learner.k=0 must be at least 1"),
    ({"batch_size": 0}, r"learner.batch_size=0 must be at least 1"),
    ({"memory": partial(Reservoir, 5, "rows", "indices")}, r"learner.memory.store=indices: an answer cannot fetch"),
    ({"weights": "w"}, r"learner.weights=w are of no backbone"),
])  # fmt: skip
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BufferKNN(**({"memory": MEMORY, "spec": SPEC} | options))


# ---------------------------------------------------------------- the last label


def test_the_last_label_is_answered_whatever_is_asked(arrivals: list[Experience], table: Any) -> None:
    learner = LastLabel(spec=SPEC)
    assert learner.predict(torch.ones(2, DIM)).tolist() == [[0.0] * 4] * 2
    for experience, last in zip(arrivals, (0, 3, 1), strict=True):
        learn(learner, experience)
        assert learner.predict(torch.randn(3, DIM)).argmax(1).tolist() == [last] * 3
    learn(learner, Experience(3, table(torch.empty(0, DIM), torch.empty(0, dtype=torch.int64))))
    assert learner.predict(torch.ones(1, DIM)).tolist() == [[0, 1, 0, 0]]
    assert (learner.cost().forward_equivalents, learner.cost().bytes) == (0, 8)


@pytest.mark.parametrize("make", [LastLabel, partial(BufferKNN, MEMORY)])
def test_a_task_label_that_the_stream_hides_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"predict got task=0, and this stream hides task labels"):
        make(spec=SPEC).predict(torch.ones(1, DIM), task=0)


def test_every_learner_composes_from_the_command_line() -> None:
    """A memory and a backbone inside a learner are chosen by their groups."""
    from continual import config as configs

    chosen = configs.compose(
        "learner=buffer_knn", "memory@learner.memory=ring", "learner.memory.capacity=8", "model@learner.backbone=mlp"
    )
    assert chosen.name == "buffer_knn"
    learner = configs.build_learner(chosen, SPEC)
    assert isinstance(learner.features.network.model, nn.Module)
    assert learner.memory.capacity == 8
    with pytest.raises(UserError, match=r"learner=buffer_knn takes no model, so model=cnn has no effect"):
        configs.compose("learner=buffer_knn", "model=cnn")
    made = configs.build_learner(configs.compose("learner=gdumb", "memory@learner.memory=reservoir"), SPEC)
    assert type(made.memory) is Reservoir
