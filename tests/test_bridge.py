"""Avalanche behind its door: the same results as ours where they must be equal, honest costs, nothing left behind."""

import inspect
import pkgutil
import random
import re
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import continual
from continual import snapshot
from continual.bridges import networks
from continual.bridges.avalanche import AvalancheLearner, Noise, Offers, _quiet, _solve_qp, filled, to_avalanche
from continual.choices import choices, conf_directory
from continual.contract import NATIVE_LAWS, STRATEGY_LAWS, STREAM_LAWS
from continual.contract.tools import Globals, whole
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.models import mlp
from continual.types import Experience, Stream
from scenarios.avalanche import built_benchmark, stream_from_avalanche
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


def numbers(node: Any, path: str = "learner.strategy") -> Iterator[tuple[str, float]]:
    """Every number below a node of a config, with its key."""
    items = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, dict) else ()
    for name, value in items:
        key = f"{path}[{name}]" if isinstance(node, list) else f"{path}.{name}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
        yield from numbers(value, key)


def numbers_of_all() -> list[tuple[str, str]]:
    folder = conf_directory() / "learner" / "avalanche"
    read = {path.stem: yaml.safe_load(path.read_text())["strategy"] for path in sorted(folder.glob("*.yaml"))}
    return [(name, key) for name, node in read.items() for key, _ in numbers(node)]


def with_number(name: str, key: str, value: float) -> None:
    """Build the learner of a YAML with one of its numbers changed."""
    config = continual.compose(f"learner=avalanche/{name}", *BLOBS, *NEEDS.get(name, ()))
    changed = deepcopy(config.resolved)
    *parents, last = re.findall(r"[^.\[\]]+", key)
    node: Any = changed
    for parent in parents:
        node = node[int(parent) if parent.isdigit() else parent]
    node[last] = value
    config = replace(config, resolved=changed)
    continual.config.build_learner(config, continual.config.build_stream(config).spec)


def test_no_number_of_any_of_its_strategies_may_be_below_0() -> None:
    checked = []
    for name, key in numbers_of_all():
        if key.endswith("max_it_cnt"):
            continue
        with pytest.raises(UserError, match=rf"^{re.escape(key)}=-1 must be at least [01]$"):
            with_number(name, key, -1)
        checked.append(key.rpartition(".")[2])
    strengths = {"ewc_lambda", "si_lambda", "alpha", "beta", "lambda_e", "mem_strength", "memory_strength"}
    assert strengths | {"temperature", "mem_size", "lr"} <= set(checked)
    with pytest.raises(UserError, match=r"ewc_lambda=nan must be at least 0"):
        with_number("ewc", "learner.strategy.ewc_lambda", float("nan"))
    with pytest.raises(UserError, match=r"temperature=0 must be above 0"):
        with_number("lwf", "learner.strategy.temperature", 0)
    with_number("ewc", "learner.strategy.ewc_lambda", 0)


def test_a_stream_that_hides_what_a_strategy_needs_is_refused(stream: Stream) -> None:
    with pytest.raises(UserError, match=r"hides where its tasks begin.*arrival_rows=null"):
        bridged(replace(stream, arrival_rows=4))  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"asks for task labels, and this stream hides them; use scenario.kind=task"):
        bridged(stream, needs_tasks=True)


def test_joint_training_learns_one_experience(stream: Stream) -> None:
    learner, (first, second) = bridged(stream, THEIRS.JointTraining, epochs=5), stream
    before = answers(learner, stream)
    assert list(learner.learn(first)) == [24]
    assert not torch.equal(answers(learner, stream), before)
    with pytest.raises(UserError, match="JointTraining learns one experience, all at once, and no other; use scenario"):
        list(learner.learn(second))


def test_ar1_replays_features_of_the_network_that_it_is_given() -> None:
    """In place of the one that it downloads. From the second experience on only the head moves."""
    learner, stream = composed("avalanche/ar1", "learner.strategy.rm_sz=30")
    strategy = learner.strategy
    assert type(strategy).__module__ == "avalanche.training.supervised.ar1"
    assert [group["lr"] for group in strategy.optimizer.param_groups] == [0.05], "the config's"
    first, second, _ = stream
    list(learner.learn(first))
    assert (strategy.rm[0].shape, len(strategy.rm[1])) == ((30, 8), 30)
    assert set(strategy.rm[1].tolist()) == set(whole(first.rows).y.tolist())
    features = {name: w.clone() for name, w in strategy.model.lat_features.state_dict().items()}
    head = strategy.model.output.weight.clone()
    list(learner.learn(second))
    assert set(strategy.rm[1].tolist()) > set(whole(first.rows).y.tolist())
    assert all(torch.equal(w, features[name]) for name, w in strategy.model.lat_features.state_dict().items())
    assert not torch.equal(strategy.model.output.weight, head)


def test_ar1_gives_replayed_features_the_labels_of_other_rows() -> None:
    """It stores features in the order of its first pass, and labels in the order of the data."""
    learner, stream = composed("avalanche/ar1", "learner.strategy.lr=0", "learner.strategy.rm_sz=30")
    first = next(iter(stream))
    list(learner.learn(first))
    batch, (features, labels) = whole(first.rows), learner.strategy.rm
    with torch.no_grad():
        nearest = torch.cdist(features, learner.strategy.model.lat_features(batch.x)).min(1)
    assert nearest.values.max() < 0.01
    assert (batch.y[nearest.indices] == labels).float().mean() < 0.75


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


# ---------------------------------------------------------------- every strategy and plug-in of Avalanche


def strategies_and_plugins() -> set[str]:
    """Names of all of them that Avalanche defines; one name that is given twice with its module."""
    base = import_module("avalanche.training.templates.base").BaseTemplate
    plugin = import_module("avalanche.core").BasePlugin
    found = set()
    for package in ("avalanche.training.supervised", "avalanche.training.plugins"):
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            for name, value in vars(imported(module.name)).items():
                if inspect.isclass(value) and value.__module__ == module.name and issubclass(value, (base, plugin)):
                    found.add("lamaml.LaMAML" if value.__module__.endswith("lamaml") else name)
    return found | {"OnlineNaive"}  # a deprecated class is a function


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not here
        return import_module(name)


@pytest.fixture(scope="module")
def page(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("avalanche_page")


def test_every_strategy_and_plugin_has_a_config_or_a_reason(page: ModuleType) -> None:
    every, named, without = strategies_and_plugins(), set(page.yamls()), set(page.WITHOUT)
    assert len(every) > 60
    assert named | without == every
    assert not named & without
    started = {name for names in page.yamls().values() for name in names}
    assert {f"avalanche/{name}" for name in started} == set(NAMES)


def test_the_page_about_avalanche_is_what_the_configs_say(page: ModuleType) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render()
    assert "breaks `modes_are_restored`: its teacher stays in train mode" in page.about("lwf")
    for law in (*NATIVE_LAWS, *(law for law, _ in STRATEGY_LAWS)):
        assert f"`{law.__name__}`" in page.HEAD, "the page says why a law of native learners is not applied"


BLOBS = ("scenario/source=gaussian", "scenario.source.n_classes=6", "scenario.source.rows_per_class=20",
         "scenario.n_tasks=3", "model.hidden=[8]", "optimizer.lr=0.05", "track=none")  # fmt: skip
NEEDS = dict.fromkeys(("multi_head", "pnn", "packnet"), ("scenario.kind=task",))
NAMES = [choice.name for choice in choices("learner") if choice.name.startswith("avalanche/")]
TWINS = [name for name in NAMES if name.removesuffix("_plugin") in NAMES and name.endswith("_plugin")]


def composed(name: str, *overrides: str) -> tuple[AvalancheLearner, Stream]:
    config = continual.compose(f"learner={name}", *BLOBS, *overrides)
    stream = continual.config.build_stream(config)
    return continual.config.build_learner(config, stream.spec), stream


ENOUGH = {"avalanche/gss_greedy_plugin": ("train.batch_size=20", "scenario.source.rows_per_class=40")}


@pytest.mark.parametrize("name", [name for name in TWINS if "cope" not in name])
def test_a_plugin_on_naive_is_its_strategy(name: str) -> None:
    """So the laws that one obeys are obeyed by the other."""
    states = []
    for each in (name, name.removesuffix("_plugin")):
        learner, stream = composed(each, *ENOUGH.get(name, ()))
        states.append(run_through(learner, stream).state_dict())
    assert states[0]["spent"] == states[1]["spent"]
    assert states[0]["network"].keys() == states[1]["network"].keys()
    for key, tensor in states[0]["network"].items():
        assert torch.equal(tensor, states[1]["network"][key]), key


# ---------------------------------------------------------------- what strategies are given


class Asks:
    """Keeps what it is called with."""

    def __init__(self, model: Any, criterion: Any, alpha: int = 3, input_size: Any = (), **rest: Any) -> None:
        self.got = {"model": model, "criterion": criterion, "alpha": alpha, "input_size": input_size, **rest}


class Wants:
    def __init__(self, n_classes: int, device: str = "here", model: Any = None) -> None:
        self.got = (n_classes, device, model)


def offers(stream: Stream) -> Offers:
    return Offers(nn.Linear(2, 3), SGD, stream.spec, {"device": "there", "train_epochs": 5})


def test_what_is_left_open_is_filled_in(stream: Stream) -> None:
    make = partial(Asks, alpha=7, plugins=[partial(Wants)], inner=partial(Wants, 9))
    got = filled(partial(make), offers(stream), {"input_size": "in_shape"}).got
    assert isinstance(got["model"], nn.Linear)
    assert isinstance(got["criterion"], nn.CrossEntropyLoss)
    assert (got["alpha"], tuple(got["input_size"])) == (7, (1, 4, 4))
    assert got["plugins"][0].got == (4, "there", None)  # what has a default stays, but for what the run decides
    assert make.keywords["plugins"][0].keywords == {}  # nothing is written to the caller's own
    with pytest.raises(UserError, match=r"parts\.input_size=shape is no part; use one of classifier, criterion"):
        filled(Asks, offers(stream), {"input_size": "shape"})


def test_no_two_learners_share_a_criterion(stream: Stream) -> None:
    """Avalanche's default is one object for all strategies, and MIR writes to it."""
    one, other = bridged(stream), bridged(stream)
    assert one.strategy._criterion is not other.strategy._criterion


@pytest.mark.parametrize(
    ("strategy", "path"),
    [
        (partial(Naive, plugins=[partial(Replay, mem_size=0)]), r"learner.strategy.plugins\[0\].mem_size"),
        (partial(THEIRS.AGEM, patterns_per_exp=0), "learner.strategy.patterns_per_exp"),
    ],
)
def test_empty_memories_are_refused_wherever_they_are(stream: Stream, strategy: Any, path: str) -> None:
    with pytest.raises(UserError, match=f"{path}=0 must be at least 1"):
        bridged(stream, strategy)


def test_a_network_without_features_is_refused_where_it_is_taken_apart(stream: Stream) -> None:
    flat = lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(16, spec.n_classes))  # noqa: E731
    with pytest.raises(UserError, match=r"takes the network apart, and Sequential has no features"):
        AvalancheLearner(Naive, flat, SGD, spec=stream.spec, network=networks.halves)


def test_rows_can_be_given_as_floats(stream: Stream) -> None:
    """They are the same numbers to the network: the weights agree, and what is kept of them is in [0, 1]."""
    kept: list[Tensor] = []
    plain = run_through(bridged(stream), stream)
    floats = run_through(bridged(stream, partial(Naive, plugins=[Keeps(kept)]), floats=True), stream)
    assert torch.allclose(answers(plain, stream), answers(floats, stream), atol=1e-6)
    assert {x.dtype for x in kept} == {torch.float32}
    assert 0.9 < max(float(x.max()) for x in kept) <= 1


class Keeps(SupervisedPlugin):  # type: ignore[misc]
    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.kept.append(strategy.mb_x)


# ---------------------------------------------------------------- answers


class Doubles(SupervisedPlugin):  # type: ignore[misc]
    """Acts on evaluations as BiC's correction does, and leaves traces."""

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.mb_output = strategy.mb_output * 2
        strategy.model.traces = [1]
        random.random()


def test_plugins_share_in_the_answers_and_leave_no_trace(stream: Stream) -> None:
    plain, doubled = bridged(stream), bridged(stream, partial(Naive, plugins=[Doubles()]))
    spent, before = doubled.cost().forward_equivalents, snapshot.dumps(doubled.state_dict())
    assert torch.equal(answers(doubled, stream), 2 * answers(plain, stream))
    assert not hasattr(doubled.strategy.model, "traces")
    assert doubled.cost().forward_equivalents == spent
    assert snapshot.dumps(doubled.state_dict()) == before
    run_through(doubled, stream)
    state = snapshot.loads(snapshot.dumps(doubled.state_dict()))
    with pytest.raises(UserError, match=r"answers through Avalanche's Doubles, whose state no snapshot holds"):
        bridged(stream, partial(Naive, plugins=[Doubles()])).load_state_dict(state)


GROWN = [
    "multi_head",
    "incremental",
    "pnn",
    "packnet",
    "ncm_memory",
    "fecam_memory",
    "icarl",
    "scr",
    "slda",
    "cwr_star",
]


@pytest.mark.parametrize("name", GROWN)
def test_what_grew_and_what_answers_beside_a_network_can_be_loaded(name: str) -> None:
    settings = ("scenario.kind=task", "train.epochs=2")
    learner, stream = composed(f"avalanche/{name}", *settings)
    task_answers = [learner.predict(whole(rows).x, task) for task, rows in enumerate(stream.probes)]
    run_through(learner, stream)
    other, _ = composed(f"avalanche/{name}", *settings, "seed=5")
    other.load_state_dict(snapshot.loads(snapshot.dumps(learner.state_dict())))
    for task, rows in enumerate(stream.probes):
        mine = learner.predict(whole(rows).x, task)
        assert torch.equal(other.predict(whole(rows).x, task), mine)
        assert mine.shape == task_answers[task].shape == (len(rows), 6)
        assert mine.isfinite().all()
        assert not torch.equal(mine, task_answers[task])
    with pytest.raises(UserError, match="only predicts"):
        list(other.learn(next(iter(stream))))


@pytest.mark.parametrize("name", ["multi_head", "pnn", "packnet"])
def test_a_task_without_a_head_is_answered_with_zeros(name: str) -> None:
    learner, stream = composed(f"avalanche/{name}", "scenario.kind=task", "train.epochs=2")
    first = next(iter(stream))
    list(learner.learn(first))
    probes = [whole(rows).x for rows in stream.probes]
    assert learner.predict(probes[1], 1).count_nonzero() == 0
    assert learner.predict(probes[0], 0).count_nonzero() > 0
    if name == "multi_head":  # only classes of a task are answered in its head
        chosen = learner.predict(probes[0], 0).argmax(1)
        assert set(chosen.tolist()) <= set(whole(first.rows).y.tolist())


# ---------------------------------------------------------------- traps


def test_a_memory_group_smaller_than_a_batch_ends_with_an_error_and_not_in_an_endless_loop() -> None:
    learner, stream = composed("avalanche/er_aml", "learner.strategy.mem_size=12")
    with pytest.raises(UserError, match=r"a group of the memory has \d rows, fewer than a batch of 10.*mem_size"):
        run_through(learner, stream)


@pytest.mark.parametrize(
    ("p", "q", "h"),
    [
        ([[2.0, 0.0], [0.0, 2.0]], [-2.0, 4.0], [0.5, 0.5]),  # by hand: v = (1, -0.5) as v >= -h
        ([[2.0, 1.0], [1.0, 2.0]], [3.0, -1.0], [0.5, 0.25]),
        ([[1.0]], [-3.0], [0.0]),
    ],
)
def test_the_solver_of_gem_finds_the_minimum(p: Any, q: Any, h: Any) -> None:
    matrix, linear, bound = np.array(p), np.array(q), np.array(h)
    found = _solve_qp(P=matrix, q=linear, G=-np.eye(len(q)), h=bound, solver="quadprog")
    axes = [np.linspace(-b, 4, 451) if len(q) == 2 else np.linspace(-b, 4, 4001) for b in bound]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, len(q))
    values = 0.5 * np.einsum("ni,ij,nj->n", grid, matrix, grid) + grid @ linear
    best = 0.5 * found @ matrix @ found + linear @ found
    assert (found >= -bound - 1e-12).all()
    assert best <= values.min() + 1e-9
    assert best > values.min() - 1e-2
    if len(q) == 2 and p[0][1] == 0:
        assert np.allclose(found, [1.0, -0.5])


class Says(SupervisedPlugin):  # type: ignore[misc]
    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        print("training")


def test_what_avalanche_prints_does_not_get_between_results(stream: Stream, capfd: Any) -> None:
    run_through(bridged(stream, partial(Naive, plugins=[Says()])), stream)
    assert capfd.readouterr() == ("", "training\n" * 2)


# ---------------------------------------------------------------- online streams


ONLINE = [
    name for name in NAMES if "needs_boundaries: false" in (conf_directory() / "learner" / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize("name", ONLINE)
def test_online_strategies_take_arrivals_that_are_no_tasks(name: str) -> None:
    learner, stream = composed(name, "scenario.arrival_rows=10")
    assert not stream.spec.boundaries
    run_through(learner, stream)
    probed = torch.cat([whole(rows).x for rows in stream.probes])
    assert learner.predict(probed).isfinite().all()
    assert learner.lap == len(list(stream)) > 3


def test_a_uniform_memory_holds_rows_of_all_arrivals_and_the_default_one_of_the_first_only() -> None:
    """Why replay is for whole tasks only: shares of a memory of 8 for 12 arrivals are 1 and 0."""
    learner, stream = composed("avalanche/replay_reservoir", "scenario.arrival_rows=10")
    run_through(learner, stream)
    (plugin,) = (p for p in learner.strategy.plugins if type(p).__name__ == "ReplayPlugin")
    assert len(plugin.storage_policy.buffer) == 96
    policy = import_module("avalanche.training.storage_policy").ExperienceBalancedBuffer(8)
    assert policy.get_group_lengths(12) == [1] * 8 + [0] * 4


# ---------------------------------------------------------------- Avalanche's own loop on our streams, and back


@pytest.mark.parametrize(("kind", "strategy"), [("class", "naive"), ("class", "replay"), ("task", "multi_head")])
def test_avalanche_itself_trains_and_evaluates_on_our_stream_as_the_bridge_does(kind: str, strategy: str) -> None:
    """Its own ``train`` and ``eval`` on ``to_avalanche``: the accuracies are those of the learner's answers."""
    metrics = import_module("avalanche.evaluation.metrics")
    stream, form = make_stream(kind), networks.multi_head if strategy == "multi_head" else networks.plain
    make = REPLAY if strategy == "replay" else Naive
    learner = run_through(bridged(stream, make, batch_size=4, epochs=20, network=form), stream)
    theirs = bridged(stream, make, batch_size=4, epochs=20, network=form)
    benchmark = to_avalanche(stream)
    evaluator = import_module("avalanche.training.plugins").EvaluationPlugin(
        metrics.accuracy_metrics(experience=True), loggers=[import_module("avalanche.logging").BaseLogger()]
    )
    theirs.strategy.plugins[theirs.strategy.plugins.index(theirs.strategy.evaluator)] = evaluator
    theirs.strategy.evaluator = evaluator
    with _quiet(), theirs.noise.own():
        for experience in benchmark.train_stream:
            theirs.strategy.train(experience, eval_streams=[])
        measured = theirs.strategy.eval(benchmark.test_stream)
    accuracies = [value for key, value in measured.items() if "Top1_Acc_Exp" in key]
    ours = []
    for task, rows in enumerate(stream.probes):
        logits = learner.predict(whole(rows).x, task if stream.spec.task_aware else None)
        ours.append(float((logits.argmax(1) == whole(rows).y).double().mean()))
    assert accuracies == ours
    assert max(ours) == 1.0


@pytest.mark.parametrize("task_labels", [False, True])
def test_a_benchmark_of_avalanche_is_learned_as_a_stream(task_labels: bool) -> None:
    """nc_benchmark deals classes out; our learner sees its experiences, its labels, and its test rows as probes."""
    x, y = torch.eye(4).repeat(12, 1) + 0.01 * torch.arange(48.0)[:, None], torch.arange(48) % 4
    train, test = (torch.utils.data.TensorDataset(x + shift, y) for shift in (0.0, 0.001))
    split = import_module("avalanche.benchmarks").nc_benchmark
    made = partial(split, train, test, n_experiences=2, task_labels=task_labels, fixed_class_order=[2, 0, 3, 1])
    stream = built_benchmark(Noise(0), made)
    assert stream.spec.task_aware == task_labels
    assert [sorted(set(whole(e.rows).y.tolist())) for e in stream] == [[0, 2], [1, 3]]
    learner = SGDLearner(SMALL, partial(torch.optim.SGD, lr=0.5), {}, spec=stream.spec, batch_size=4, epochs=30)
    run_through(learner, stream)
    last = whole(stream.probes[1])
    assert (learner.predict(last.x, 1 if task_labels else None).argmax(1) == last.y).all()


def test_the_generators_are_put_back_after_a_benchmark_was_made() -> None:
    def made() -> Any:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        return to_avalanche(make_stream("class"))

    before = Globals.now()
    built_benchmark(Noise(0), made)
    assert before.moved() == ""
