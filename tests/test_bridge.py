"""Avalanche behind its door: the same results as ours where they must be equal, honest costs, nothing left behind."""

import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import continual
from continual import snapshot
from continual.bridges.avalanche import AvalancheLearner, to_avalanche
from continual.contract import STREAM_LAWS
from continual.contract.tools import Globals, whole
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.models import mlp
from continual.types import Experience, Stream
from scenarios.avalanche import stream_from_avalanche
from scenarios.sources.base import TensorSource
from scenarios.split import split

THEIRS = import_module("avalanche.training.supervised")  # after the door, which knows what importing it warns of
SupervisedPlugin: Any = import_module("avalanche.training.plugins").SupervisedPlugin
Naive, Replay, EWC, LwF = THEIRS.Naive, THEIRS.Replay, THEIRS.EWC, THEIRS.LwF

SMALL = partial(mlp, hidden=(5,))
SGD = partial(torch.optim.SGD, lr=0.1)
OWN_BYTES = 4 * (16 * 5 + 5 + 5 * 4 + 4 + 1)  # its weights, and the last loss
CRITERION = nn.CrossEntropyLoss()
REPLAY = partial(Replay, criterion=CRITERION, mem_size=8)


@pytest.fixture
def stream() -> Stream:
    """Two tasks of two classes, 24 training rows each, of 16 bytes; the two rows of a class differ from the others."""
    return make_stream("class")


def make_stream(kind: str) -> Stream:
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = torch.randint(60, (64, 1, 4, 4), generator=draws, dtype=torch.uint8)
    x.flatten(1)[torch.arange(64), y] += 190
    return split(TensorSource(x[:48], y[:48], x[48:], y[48:]), n_tasks=2, kind=kind, shuffle_classes=False)


def bridged(stream: Stream, strategy: Any = Naive, **options: Any) -> AvalancheLearner:
    return AvalancheLearner(strategy, SMALL, options.pop("optimizer", SGD), spec=stream.spec, **options)


def run_through(learner: Any, stream: Stream) -> Any:
    for experience in stream:
        assert sum(learner.learn(experience)) == len(experience.rows)
    return learner


def answers(learner: Any, stream: Stream) -> Tensor:
    return torch.cat([learner.predict(whole(rows).x) for rows in stream.probes])


# ---------------------------------------------------------------- the same as ours, where it must be


def test_one_batch_per_experience_gives_the_weights_of_the_native_learner(stream: Stream) -> None:
    theirs = run_through(bridged(stream, batch_size=24, epochs=3), stream)
    ours = run_through(SGDLearner(SMALL, SGD, {}, spec=stream.spec, batch_size=24, epochs=3), stream)
    difference = answers(theirs, stream) - answers(ours, stream)
    weights = theirs.strategy.model.network.state_dict()
    assert difference.abs().max() < 1e-5
    for name, weight in ours.network.state_dict().items():
        assert (weights[name] - weight).abs().max() < 1e-6
    fresh = SGDLearner(SMALL, SGD, {}, spec=stream.spec, batch_size=24)
    assert (answers(fresh, stream) - answers(ours, stream)).abs().max() > 0.01  # they did learn


def test_naive_forgets_as_the_native_learner_does_and_replay_forgets_less(stream: Stream) -> None:
    def accuracies(learner: Any) -> list[float]:
        run_through(learner, stream)
        return [float((learner.predict(whole(r).x).argmax(1) == whole(r).y).float().mean()) for r in stream.probes]

    native = SGDLearner(SMALL, SGD, {}, spec=stream.spec, batch_size=4, epochs=40)
    assert accuracies(native) == [0.0, 1.0]
    assert accuracies(bridged(stream, batch_size=4, epochs=40)) == [0.0, 1.0]
    assert accuracies(bridged(stream, REPLAY, batch_size=4, epochs=40))[0] > 0.5


def test_a_run_from_config_ends_with_a_learner_that_can_be_loaded(tmp_path: Any, capfd: Any) -> None:
    run = continual.run("learner=avalanche/replay", "model=linear", "track=none", f"output={tmp_path}")
    assert run.path.parent.name == "avalanche_replay"
    assert capfd.readouterr() == ("", "")  # no progress bar, no metric, no deprecated call
    learner, digits = continual.load(run.path), continual.config.build_stream(continual.compose())
    probed = whole(digits.probes[4])
    accuracy = float((learner.predict(probed.x).argmax(1) == probed.y).double().mean())
    measured = [r.value for r in run.records if (r.at, r.task, r.probe, r.metric) == ("end", 4, 4, "accuracy")]
    assert [accuracy] == measured
    assert accuracy > 0.5


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize(
    ("strategy", "per_row"),
    [
        (Naive, [3 * 2, 3 * 2]),
        (REPLAY, [3 * 2, 3 * 2 * 2]),  # from the second experience on a replayed row beside each that arrives
        (
            partial(EWC, criterion=CRITERION, ewc_lambda=1.0),
            [3 * 2 + 3, 3 * 2 + 3],
        ),  # one pass more for its importances
        (
            partial(LwF, criterion=CRITERION, alpha=1.0, temperature=2.0),
            [3 * 2, 3 * 2 + 2],
        ),  # its teacher answers from the second on
    ],
)
def test_rows_are_charged_for_each_pass_also_through_a_copied_network(
    stream: Stream, strategy: Any, per_row: list[int]
) -> None:
    learner = bridged(stream, strategy, batch_size=4, epochs=2)
    spent = [0.0]
    for experience in stream:
        list(learner.learn(experience))
        learner.predict(whole(experience.rows).x)  # free
        spent.append(learner.cost().forward_equivalents)
    assert [after - before for before, after in pairwise(spent)] == [24 * n for n in per_row]


def test_bytes_are_all_that_the_strategy_keeps_alive(stream: Stream) -> None:
    first = next(iter(stream))
    naive, replay = bridged(stream), bridged(stream, REPLAY)
    assert naive.cost().bytes == OWN_BYTES
    for learner in (naive, replay):
        list(learner.learn(first))
    assert naive.cost().bytes == OWN_BYTES
    kept = replay.cost().bytes - OWN_BYTES
    assert 24 * (16 + 8) <= kept < 24 * (16 + 8) + 400  # all 24 rows for a memory of 8, and their priorities


# ---------------------------------------------------------------- randomness


class Draws(SupervisedPlugin):  # type: ignore[misc]
    """Draws from every global generator before each update."""

    def __init__(self, drawn: list[tuple[float, float, float]]) -> None:
        super().__init__()
        self.drawn = drawn

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))


def test_it_draws_from_generators_of_its_own_which_the_seed_decides(stream: Stream) -> None:
    outcomes = {}
    for seed, noise in ((0, 1), (0, 2), (5, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            drawn: list[tuple[float, float, float]] = []
            before = Globals.now()
            learner = bridged(stream, partial(Naive, plugins=[Draws(drawn)]), seed=seed)
            run_through(learner, stream)
            assert before.moved() == ""
            outcomes[seed, noise] = drawn
    assert outcomes[0, 1] == outcomes[0, 2]
    assert len({value for drawn in (outcomes[0, 1], outcomes[5, 1]) for row in drawn for value in row}) == 2 * 3 * 6


# ---------------------------------------------------------------- snapshots


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Adam])
def test_a_snapshot_answers_alike_and_does_not_go_on_learning(stream: Stream, optimizer: Any) -> None:
    learner = run_through(bridged(stream, REPLAY, optimizer=optimizer), stream)
    stored = snapshot.dumps(learner.state_dict())
    other = bridged(stream, REPLAY, optimizer=optimizer, seed=7)
    other.load_state_dict(snapshot.loads(stored))
    assert torch.equal(answers(other, stream), answers(learner, stream))
    assert snapshot.dumps(other.state_dict()) == stored
    with pytest.raises(UserError, match=r"loaded from a snapshot.*only predicts"):
        list(other.learn(next(iter(stream))))


def test_a_snapshot_of_the_beginning_is_complete(stream: Stream) -> None:
    learner, other = bridged(stream), bridged(stream, seed=7)
    other.load_state_dict(snapshot.loads(snapshot.dumps(learner.state_dict())))
    outcomes = [answers(run_through(each, stream), stream) for each in (learner, other)]
    assert torch.equal(*outcomes)


# ---------------------------------------------------------------- what is refused, and what is passed on


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (Naive, {"batch_size": 0}, r"train.batch_size=0 must be at least 1"),
        (Naive, {"epochs": 0}, r"train.epochs=0 must be at least 1"),
        (Naive, {"batch_size": 25}, r"train.batch_size=25 is larger than the smallest experience of 24 rows"),
        (partial(Replay, mem_size=0), {}, r"learner.strategy.mem_size=0 must be at least 1"),
    ],
)
def test_numbers_out_of_bounds_are_refused(stream: Stream, strategy: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bridged(stream, strategy, **options)


def test_a_stream_that_hides_its_boundaries_is_refused(stream: Stream) -> None:
    with pytest.raises(UserError, match=r"hides where its tasks begin.*arrival_rows=null"):
        bridged(replace(stream, arrival_rows=4))  # type: ignore[type-var]


def test_a_task_label_on_a_stream_that_hides_them_is_refused(stream: Stream) -> None:
    with pytest.raises(UserError, match="predict got task=1"):
        bridged(stream).predict(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 1)


def test_an_experience_without_rows_changes_nothing(stream: Stream) -> None:
    class Nothing:
        def __len__(self) -> int:
            return 0

    learner = bridged(stream)
    before = snapshot.dumps(learner.state_dict())
    assert list(learner.learn(Experience(0, Nothing()))) == []  # type: ignore[arg-type]
    assert snapshot.dumps(learner.state_dict()) == before


class Warns(SupervisedPlugin):  # type: ignore[misc]
    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        warnings.warn("loss is nan", RuntimeWarning, stacklevel=1)


def test_warnings_that_are_not_about_avalanche_itself_get_through(stream: Stream) -> None:
    learner = bridged(stream, partial(REPLAY, plugins=[Warns()]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        list(learner.learn(next(iter(stream))))
        assert list(warnings.filters) == filters
    assert [str(warning.message) for warning in caught] == ["loss is nan"]


class Reads(SupervisedPlugin):  # type: ignore[misc]
    """Notes what a strategy may read of each experience."""

    def __init__(self, read: list[Any]) -> None:
        super().__init__()
        self.read = read

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        e = strategy.experience
        classes = (e.previous_classes, e.classes_in_this_experience, e.classes_seen_so_far)
        self.read.append((e.current_experience, e.task_label, *map(sorted, classes)))


@pytest.mark.parametrize(("kind", "labels"), [("class", [0, 0]), ("task", [0, 1])])
def test_a_strategy_can_read_what_avalanche_tells_about_an_experience(kind: str, labels: list[int]) -> None:
    stream, read = make_stream(kind), []
    run_through(bridged(stream, partial(Naive, plugins=[Reads(read)])), stream)
    assert read == [(0, labels[0], [], [0, 1], [0, 1]), (1, labels[1], [0, 1], [2, 3], [0, 1, 2, 3])]


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize(("kind", "labels"), [("class", [0, 0]), ("task", [0, 1])])
def test_a_stream_becomes_a_benchmark(kind: str, labels: list[int]) -> None:
    stream = make_stream(kind)
    benchmark = to_avalanche(stream)
    parts = zip(
        [*benchmark.train_stream, *benchmark.test_stream], [*(e.rows for e in stream), *stream.probes], strict=True
    )
    for (experience, rows), label in zip(parts, labels * 2, strict=True):
        batch = whole(rows)
        got = [experience.dataset[i] for i in range(len(experience.dataset))]
        assert torch.equal(torch.stack([x for x, _, _ in got]), batch.x)
        assert [int(y) for _, y, _ in got] == batch.y.tolist()
        assert {t for _, _, t in got} == {label} == set(experience.task_labels)
    assert [sorted(e.classes_in_this_experience) for e in benchmark.train_stream] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("kind", ["class", "task", "data"])
def test_there_and_back_a_stream_is_the_same(kind: str) -> None:
    stream = make_stream(kind)
    back = stream_from_avalanche(to_avalanche(stream))
    assert back.spec == stream.spec
    assert list(back.origins) == list(stream.origins)
    assert [e.task for e in back] == [e.task for e in stream]
    for ours, theirs in zip(rows_of(stream), rows_of(back), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    for law in STREAM_LAWS:
        law(lambda: stream_from_avalanche(to_avalanche(stream)))


def rows_of(stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in (*(e.rows for e in stream), *stream.probes):
        batch = whole(rows)
        yield batch.x, batch.y


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([[(torch.zeros(2), 0)]], [], "1 training and 0 test experiences"),
        ([[("a picture", 0)]], [[("a picture", 0)]], "rows must be tensors of one shape, this benchmark has str"),
        ([[(torch.zeros(2), 0), (torch.zeros(3), 0)]], [[(torch.zeros(2), 0)]], r"Size\(\[2\]\).*Size\(\[3\]\)"),
    ],
)
def test_benchmarks_that_are_no_streams_are_refused(train: Any, test: Any, message: str) -> None:
    class Dataset(list[Any]):
        def eval(self) -> "Dataset":
            return self

    streams = [[SimpleNamespace(dataset=Dataset(rows)) for rows in part] for part in (train, test)]
    with pytest.raises(UserError, match=message):
        stream_from_avalanche(SimpleNamespace(train_stream=streams[0], test_stream=streams[1]))
