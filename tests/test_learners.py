"""Learners that are no plain SGD: joint against training on everything at once, streaming LDA against scikit-learn."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from continual.batches import Schedule
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.learners.joint import Joint
from continual.learners.retrained import MAX_TRAININGS
from continual.learners.slda import SLDA, discriminants
from continual.models import mlp
from continual.types import Batch, Experience, Spec


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

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> Batch:
        n = len(indices)
        return Batch(self.x[indices], self.y[indices], torch.full((n,), 1 / max(n, 1)), n, {"id": indices.clone()})

    def fetch(self, ids: Tensor) -> Tensor:
        return self.x[ids]


def blobs(n: int, labels: list[int], seed: int, dim: int = 4) -> Table:
    """Correlated rows around a centre for each label; labels take turns."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)[torch.arange(n) % len(labels)]
    centres = torch.randn(10, dim, generator=torch.Generator().manual_seed(99))
    mix = torch.eye(dim) + 0.3 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(98))
    return Table(2 * centres[y] + torch.randn(n, dim, generator=draws) @ mix, y)


def both(*tables: Table) -> Table:
    return Table(torch.cat([t.x for t in tables]), torch.cat([t.y for t in tables]))


# ---------------------------------------------------------------- joint

SPEC = Spec((4,), 4)
OPTIMIZER = partial(torch.optim.Adam, lr=0.01)


def net(spec: Spec) -> nn.Module:
    return mlp(spec, hidden=(6,))


def joint(**options: Any) -> Joint:
    chosen: dict[str, Any] = {"spec": SPEC, "batch_size": 5} | options
    return Joint(net, OPTIMIZER, **chosen)


def state(learner: SGDLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


TABLES = [blobs(12, [0, 1], seed=1), blobs(9, [2, 3], seed=2), blobs(5, [1, 2], seed=3)]


@pytest.mark.parametrize(("epochs", "iterations"), [(1, None), (2, None), (1, 7)])
def test_joint_equals_sgd_on_everything_so_far_bit_for_bit(epochs: int, iterations: int | None) -> None:
    ours = joint(epochs=epochs, iterations=iterations)
    for lap, table in enumerate(TABLES):
        list(ours.learn(Experience(lap, table)))
        plain = SGDLearner(net, OPTIMIZER, {}, spec=SPEC, batch_size=5, epochs=epochs, iterations=iterations)
        plain.lap = lap  # the order of rows depends on it
        list(plain.learn(Experience(0, both(*TABLES[: lap + 1]))))
        assert same(state(ours), state(plain))


def test_joint_equals_a_torch_loop_on_everything_so_far_bit_for_bit() -> None:
    ours = joint(epochs=2)
    network = copy.deepcopy(ours.network)
    optimizer = OPTIMIZER(network.parameters())
    for lap, table in enumerate(TABLES):
        list(ours.learn(Experience(lap, table)))
    rows = both(*TABLES)
    for indices in Schedule(len(rows), 5, 2, None, seed=0, lap=2):
        batch = rows.take(indices)
        optimizer.zero_grad()
        torch.dot(batch.weight, cross_entropy(network(batch.x).logits, batch.y, reduction="none")).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert same(state(ours), network.state_dict())


def test_joint_consumes_the_rows_that_arrived_and_keeps_them_all() -> None:
    learner = joint(epochs=2)
    for e, table in enumerate(TABLES):
        assert sum(learner.learn(Experience(e, table))) == len(table)
    assert torch.equal(learner.kept_x, both(*TABLES).x)
    assert torch.equal(learner.kept_y, both(*TABLES).y)
    before = copy.deepcopy(learner.state_dict())
    assert set(learner.learn(Experience(3, blobs(0, [0], seed=0)))) == {0}
    assert equal(learner.state_dict()["kept"], before["kept"])


@pytest.mark.parametrize("stop", [0, 2, 3, 4, 7])
def test_joint_goes_on_from_any_update_bit_for_bit(stop: int) -> None:
    arrivals = [Experience(e, table) for e, table in enumerate(TABLES)]
    whole, part, fresh = joint(), joint(), joint()
    for experience in arrivals:
        list(whole.learn(experience))
    count = 0
    for experience in arrivals:
        for _ in part.learn(experience):
            if count == stop:
                fresh.load_state_dict(copy.deepcopy(part.state_dict()))
                at = experience.index
            count += 1
    assert count == 3 + 5 + 6
    for experience in arrivals[at:]:
        list(fresh.learn(experience))
    assert equal(fresh.state_dict(), whole.state_dict())


def test_joint_knows_which_classes_belong_to_which_task() -> None:
    """Its batches mix tasks; the classes of a task are still those that arrived with it."""
    learner = joint(head="per_task", spec=Spec((4,), 4, task_aware=True))
    for task, table in enumerate(TABLES[:2]):
        list(learner.learn(Experience(task, table, task)))
    assert learner.head.tasks.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    x = torch.randn(40, 4)
    assert set(learner.predict(x, 0).argmax(1).tolist()) <= {0, 1}
    assert set(learner.predict(x, 1).argmax(1).tolist()) <= {2, 3}


def test_joint_restarts_batch_statistics_too() -> None:
    def normed(spec: Spec) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))

    learner = Joint(normed, OPTIMIZER, spec=SPEC, batch_size=6)
    for e, table in enumerate(TABLES[:2]):
        list(learner.learn(Experience(e, table)))
    assert int(state(learner)["model.0.num_batches_tracked"]) == 4  # 21 rows in batches of 6: of the last run only


def test_joint_is_refused_on_streams_of_many_arrivals() -> None:
    joint(spec=Spec((4,), 4, n_experiences=MAX_TRAININGS))
    with pytest.raises(UserError, match=r"learner=joint trains anew after each of the stream's 101 experiences"):
        joint(spec=Spec((4,), 4, n_experiences=MAX_TRAININGS + 1))


# ---------------------------------------------------------------- streaming linear discriminant analysis


def slda(**options: Any) -> SLDA:
    return SLDA(**({"spec": SPEC} | options))


def fed(table: Table, cuts: tuple[int, ...] = (), **options: Any) -> SLDA:
    """A learner that saw ``table`` in experiences cut at the rows ``cuts``."""
    learner, bounds = slda(**options), [0, *cuts, len(table)]
    for e, (start, stop) in enumerate(pairwise(bounds)):
        list(learner.learn(Experience(e, Table(table.x[start:stop], table.y[start:stop]))))
    return learner


@pytest.mark.parametrize("shrinkage", [1e-4, 0.1, 0.7])
@pytest.mark.parametrize("balanced", [True, False])
def test_it_is_scikit_learn_s_discriminant_analysis(shrinkage: float, balanced: bool) -> None:
    """Both invert a shrunk within-class covariance W: ours (1-a) W + a I, theirs (1-s) W + s m I, m = tr(W) / F.

    They are proportional for s = a / (a + (1 - a) m), ours then being (1 - a) / (1 - s) times theirs. Theirs adds the
    logarithm of the prior to each logit; ours has none.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows = blobs(200, [0, 1, 2, 3], seed=5)
    if not balanced:
        kept = torch.cat([(rows.y == c).nonzero()[:, 0][:n] for c, n in enumerate((50, 30, 20, 7))])
        rows = Table(rows.x[kept], rows.y[kept])
    x, y = rows.x.double().numpy(), rows.y.numpy()
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    within = (x - means[y]).T @ (x - means[y]) / len(y)
    m = np.trace(within) / len(within)
    s = shrinkage / (shrinkage + (1 - shrinkage) * m)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s).fit(x, y)
    expected = (theirs.decision_function(x) - np.log(theirs.priors_)) * (1 - s) / (1 - shrinkage)
    ours = fed(rows, cuts=(17, 60), shrinkage=shrinkage).predict(rows.x)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2e-4 * np.abs(expected).max())  # float32 sums
    if balanced:
        assert (ours.argmax(1).numpy() == theirs.predict(x)).all()


def test_the_discriminants_by_hand() -> None:
    """One feature; class 0 at 1 and 3, class 1 at 10. W = 2/3, so with shrinkage 1/2 the denominator is 5/6."""
    count, total = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([[4.0], [10.0], [0.0]])
    weight, bias = discriminants(count, total, torch.tensor([[110.0]]), shrinkage=0.5)
    assert weight[0, :2].tolist() == pytest.approx([2 * 6 / 5, 10 * 6 / 5])
    assert bias[:2].tolist() == pytest.approx([-0.5 * 2 * 2 * 6 / 5, -0.5 * 10 * 10 * 6 / 5])


@pytest.mark.parametrize("n_features", [0, 50])
def test_neither_order_nor_cuts_nor_batch_size_matter(n_features: int) -> None:
    rows, x = blobs(120, [0, 1, 2, 3], seed=6), torch.randn(20, 4)
    order = torch.randperm(120)
    by_class = rows.y.argsort(stable=True)
    expected = fed(rows, n_features=n_features, shrinkage=0.05).predict(x)
    others = [
        fed(Table(rows.x[order], rows.y[order]), n_features=n_features, shrinkage=0.05),
        fed(Table(rows.x[by_class], rows.y[by_class]), cuts=(30, 60, 90), n_features=n_features, shrinkage=0.05),
        fed(rows, cuts=tuple(range(1, 120)), n_features=n_features, shrinkage=0.05),
        fed(rows, n_features=n_features, shrinkage=0.05, batch_size=7),
    ]
    for other in others:
        torch.testing.assert_close(other.predict(x), expected, rtol=1e-3, atol=1e-3)


def test_random_features_approximate_the_kernel() -> None:
    """z(x) . z(x') -> exp(-gamma |x - x'|^2); the error falls with the square root of the features."""
    x = torch.randn(30, 4)
    kernel = torch.exp(-0.3 * torch.cdist(x, x).square())
    errors = []
    for n_features in (100, 10_000):
        z = slda(n_features=n_features, gamma=0.3).features(x)
        assert z.shape == (30, n_features)
        errors.append(float((z @ z.T - kernel).square().mean().sqrt()))
    assert errors[0] < 3 / 100**0.5
    assert errors[1] < 3 / 10_000**0.5
    assert float(kernel.std()) > 5 * errors[1], "the kernel is not constant"


def test_random_features_are_the_seed_s() -> None:
    x = torch.randn(3, 4)
    torch.manual_seed(1)
    first = slda(n_features=8, seed=2).features(x)
    torch.manual_seed(2)
    assert torch.equal(slda(n_features=8, seed=2).features(x), first)
    assert not torch.equal(slda(n_features=8, seed=3).features(x), first)


def test_bytes_are_mapped_to_the_input_range() -> None:
    learner = slda(spec=Spec((1, 1, 2), 2, torch.uint8, (-1.0, 1.0)))
    torch.testing.assert_close(
        learner.features(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)), torch.tensor([[-1.0, 1.0]])
    )


def test_a_class_without_rows_is_never_answered() -> None:
    learner = fed(blobs(40, [1, 3], seed=7))
    logits = learner.predict(torch.randn(200, 4) * 10)
    assert set(logits.argmax(1).tolist()) == {1, 3}
    torch.testing.assert_close(logits[:, 0], logits[:, [1, 3]].min(dim=1).values - 1)
    assert logits.isfinite().all()


def test_before_the_first_row_all_answers_are_equal() -> None:
    learner = slda()
    assert list(learner.learn(Experience(0, blobs(0, [0], seed=0)))) == []
    assert torch.equal(learner.predict(torch.randn(3, 4)), torch.zeros(3, 4))


def test_what_was_learned_after_an_answer_counts() -> None:
    learner, x = fed(blobs(40, [0, 1], seed=8)), torch.randn(5, 4)
    before = learner.predict(x)
    list(learner.learn(Experience(1, blobs(40, [0, 1], seed=9))))
    assert not torch.equal(learner.predict(x), before)
    assert torch.equal(
        learner.predict(x), fed(both(blobs(40, [0, 1], seed=8), blobs(40, [0, 1], seed=9)), (40,)).predict(x)
    )


@pytest.mark.parametrize("n_features", [0, 6])
def test_slda_goes_on_from_any_batch_bit_for_bit(n_features: int) -> None:
    rows = blobs(50, [0, 1, 2], seed=4)
    for stop in range(4):
        whole, part, fresh = (slda(n_features=n_features, batch_size=13) for _ in range(3))
        assert list(whole.learn(Experience(0, rows))) == [13, 13, 13, 11]
        for k, _ in enumerate(part.learn(Experience(0, rows))):
            if k == stop:
                break
        fresh.predict(rows.x)
        fresh.load_state_dict(copy.deepcopy(part.state_dict()))
        list(fresh.learn(Experience(0, rows)))
        assert equal(fresh.state_dict(), whole.state_dict())
        assert torch.equal(fresh.predict(rows.x), whole.predict(rows.x))


@pytest.mark.parametrize(("options", "message"), [
    ({"n_features": -1}, r"learner.n_features=-1 must be at least 0"),
    ({"gamma": 0.0}, r"learner.gamma=0.0 must be above 0"),
    ({"shrinkage": 0.0}, r"learner.shrinkage=0.0 must be in \(0, 1\]"),
    ({"shrinkage": 1.5}, r"learner.shrinkage=1.5 must be in \(0, 1\]"),
    ({"batch_size": 0}, r"learner.batch_size=0 must be at least 1"),
])  # fmt: skip
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        slda(**options)
