"""Runs that are trained together: each is what it would be alone, and the work of a step does not grow with them."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from continual import config as configs
from continual import lifting
from continual.choices import choices
from continual.cohort import CannotJoinError, Cohort
from continual.config import Config, expand
from continual.errors import DivergedError, Terminated
from continual.experiment import Run
from continual.launchers.basic import Basic
from continual.launchers.cohort import Cohorts, alike
from continual.learner import SGDLearner
from continual.models import linear
from continual.state import named_tensors
from continual.stopping import Stop
from continual.strategies.ewc import EWC
from continual.strategy import Seams, Strategy, View
from continual.sweep import Outcome
from continual.types import Batch, Experience, Spec, Stream
from continual.worker import jobs_of

BLOBS = (
    "scenario/source=gaussian",
    "scenario.source.n_classes=6",
    "scenario.source.rows_per_class=12",
    "scenario.n_tasks=3",
    "train.epochs=2",
    "model=mlp",
    "model.hidden=[16]",
    "track=none",
)
SMALL = {
    "redo": ("strategy.redo.every=2", "strategy.redo.threshold=0.5"),
    "continual_backprop": ("strategy.continual_backprop.rate=0.1", "strategy.continual_backprop.maturity=3"),
    "packnet": ("scenario.kind=task", "train.head=per_task"),
    "rwalk": ("strategy.rwalk.window=3",),
}
APART = {  # whose loss cannot be computed for several runs at once, and a word of the reason
    "scr": "projection",
}
CLOSE = 2e-6


def learners(cases: Sequence[Sequence[str]]) -> list[tuple[SGDLearner, Stream]]:
    """A fresh learner and its stream for the overrides of each case."""
    composed = [configs.compose(*BLOBS, *case) for case in cases]
    streams = [configs.build_stream(config) for config in composed]
    return [
        (configs.build_learner(config, stream.spec), stream) for config, stream in zip(composed, streams, strict=True)
    ]


def learn(learner: SGDLearner, stream: Stream) -> Exception | None:
    try:
        for experience in stream:
            for _ in learner.learn(experience):
                pass
    except DivergedError as error:
        return error
    return None


def alone(cases: Sequence[Sequence[str]]) -> list[SGDLearner]:
    made = learners(cases)
    for learner, stream in made:
        learn(learner, stream)
    return [learner for learner, _ in made]


def together(cases: Sequence[Sequence[str]]) -> tuple[list[SGDLearner], Cohort, list[Exception | None]]:
    """The learners after they were trained in a cohort, and how each of them ended."""
    made = learners(cases)
    cohort = Cohort(Stop(0))
    for learner, _ in made:
        cohort.join(learner)
    ends = dict(cohort.run([partial(learn, learner, stream) for learner, stream in made]))
    return [learner for learner, _ in made], cohort, [ends[place] for place in range(len(made))]


def distance(one: SGDLearner, other: SGDLearner) -> float:
    """The largest difference between the tensors of two learners: network, optimizer, strategies and memories.

    In parts of the largest number of the tensor, where that is above 1.
    """
    mine, theirs = (dict(named_tensors(learner.state_dict())) for learner in (one, other))
    assert mine.keys() == theirs.keys()
    pairs = [(mine[name].double(), theirs[name].double()) for name in mine if mine[name].numel()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


def seeds(*overrides: str, n: int = 3) -> list[tuple[str, ...]]:
    return [(*overrides, f"seed={seed}") for seed in range(n)]


def case_of(strategy: str) -> list[tuple[str, ...]]:
    return seeds(f"strategy={strategy}", *SMALL.get(strategy, ()))


@pytest.mark.parametrize("strategy", ["er_ace", "derpp", "lwf", "si", "mir", "agem", "scr"])
def test_a_member_equals_the_same_run_alone(strategy: str) -> None:
    members, _, _ = together(case_of(strategy))
    reference = alone(case_of(strategy))
    for member, other in zip(members, reference, strict=True):
        assert distance(member, other) < CLOSE
        assert member.cost() == other.cost()
    assert distance(reference[0], reference[1]) > 1e-2  # two runs are not alike by themselves


@pytest.mark.parametrize("strategy", [choice.name for choice in choices("strategy", None)])
def test_steps_are_computed_at_once(strategy: str) -> None:
    _, cohort, _ = together(seeds(f"strategy={strategy}", "train.epochs=1", *SMALL.get(strategy, ()), n=2))
    if strategy in APART:
        assert cohort.together == 0
        assert APART[strategy] in str(cohort.apart)
    else:
        assert cohort.apart is None
        assert cohort.alone == 0


@pytest.mark.parametrize("strategy", ["derpp", "lwf", "er_ace", "ema_teacher,strategy.ema_teacher.strength=1"])
def test_a_lift_that_gives_all_members_the_values_of_the_first_is_noticed(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *settings = strategy.split(",")
    stack = lifting.Lift._stack

    def first_only(self: lifting.Lift, values: Sequence[torch.Tensor], path: str) -> torch.Tensor:
        ours = path.startswith("strategy.") or (name == "er_ace" and path == "batch.y")
        return stack(self, [values[0]] * len(values) if ours else values, path)

    monkeypatch.setattr(lifting.Lift, "_stack", first_only)
    cases = seeds(f"strategy={name}", *settings)
    members, _, _ = together(cases)
    assert max(distance(member, other) for member, other in zip(members, alone(cases), strict=True)) > 1e-4


def test_stacks_are_made_anew_only_of_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}
    stack = torch.stack

    def counting(self: lifting.Lift, values: Sequence[torch.Tensor], path: str) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(
                torch, "stack", lambda tensors: counts.update({path: counts.get(path, 0) + 1}) or stack(tensors)
            )
            return original(self, values, path)

    original = lifting.Lift._stack
    monkeypatch.setattr(lifting.Lift, "_stack", counting)
    _, cohort, _ = together(seeds("strategy=lwf"))
    teachers = {path: n for path, n in counts.items() if ".teacher." in path}
    assert set(teachers.values()) == {2}  # once after each of the first two tasks
    assert counts["batch.x"] == cohort.together / 3


@pytest.mark.parametrize(
    "cases",
    [
        [
            ("optimizer=adam", "strategy=er", f"seed={seed}", f"optimizer.lr={lr}")
            for seed, lr in enumerate((0.01, 0.001, 0.01))
        ],
        [("strategy=er", "optimizer.momentum=0.9", f"optimizer.lr={lr}") for lr in (0.1, 0.1, 0.01, 0.01)],
        seeds("strategy=ewc", "optimizer=adamw", "scheduler=cosine"),
        seeds("strategy=si", "clip=norm", "optimizer=adam"),
        seeds("strategy=[er,ewc]", "train.head=current"),
        seeds("strategy=[er,lwf]", "train.head=seen"),
        seeds("strategy=ewc", "train.head=per_task", "scenario.kind=task"),
        [("strategy=ewc", f"strategy.ewc.strength={strength}") for strength in (0.5, 1, 3.0)],
        [("strategy=lwf", f"strategy.lwf.strength={strength}") for strength in (0.5, 1, 3.0)],
        [("strategy=[si,derpp]", f"strategy.derpp.strength={s}", f"optimizer.lr={s / 10}") for s in (0.5, 0.7, 0.9)],
        [("strategy=ewc", f"strategy.ewc.strength={s}", "optimizer.lr=0.3") for s in (1.0, 30.0, 60.0)],
    ],
    ids=lambda cases: " ".join(cases[0]),
)
def test_members_may_differ_in_numbers(cases: list[tuple[str, ...]]) -> None:
    members, cohort, _ = together(cases)
    for member, other in zip(members, alone(cases), strict=True):
        assert distance(member, other) < 5 * CLOSE
    assert cohort.together > 0
    assert cohort.apart is None


def test_numbers_that_change_what_is_computed_are_computed_one_by_one() -> None:
    cases = [("strategy=lwf", f"strategy.lwf.strength={strength}") for strength in (0, 1, 2)]
    members, cohort, _ = together(cases)
    for member, other in zip(members, alone(cases), strict=True):
        assert distance(member, other) < CLOSE
    assert cohort.alone > 0
    assert cohort.apart is None


def test_members_of_streams_of_different_lengths_go_on_without_those_that_are_over() -> None:
    cases = [
        ("strategy=er", f"seed={seed}", f"scenario.rows_per_task={rows}") for seed, rows in enumerate((10, 17, 24))
    ]
    members, cohort, _ = together(cases)
    for member, other in zip(members, alone(cases), strict=True):
        assert distance(member, other) < CLOSE
    assert cohort.together > 0


def test_a_member_that_diverges_ends_and_the_others_go_on() -> None:
    cases = [("strategy=er", f"seed={seed}", f"optimizer.lr={lr}") for seed, lr in enumerate((0.1, 1e30, 0.1))]
    members, _, ends = together(cases)
    assert ends[0] is ends[2] is None
    assert isinstance(ends[1], DivergedError)
    assert "the cross-entropy is" in str(ends[1])
    assert "of experience 0" in str(ends[1])
    reference = alone(cases)
    assert distance(members[0], reference[0]) < CLOSE
    assert distance(members[2], reference[2]) < CLOSE


def test_what_a_memory_cannot_fetch_ends_its_own_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cohort = learners(seeds("strategy=er")), Cohort(Stop(0))
    broken = made[1][0].strategies["er"]
    monkeypatch.setattr(broken, "mix", lambda view, batch: (_ for _ in ()).throw(DivergedError("broken")))
    for learner, _ in made:
        cohort.join(learner)
    ends = dict(cohort.run([partial(learn, learner, stream) for learner, stream in made]))
    assert str(ends[1]) == "broken"
    assert ends[0] is ends[2] is None


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("train.head=growing",), "head grows"),
        (("model._target_=continual.contract.tools.moody", "model.hidden=[16]"), "random numbers"),
        (("model=slim_resnet18", "model.width=2"), "statistics of batches"),
        (("optimizer=upgd",), "UPGD is none of"),
        (("model=mlp", "train.precision=bf16"), "rounds so coarsely"),
        (("model=mlp", "model.hidden=[500,500]"), "its network has 288,010 weights, and above 200,000"),
        (("learner=slda",), "takes no steps of this kind"),
    ],
)
def test_what_cannot_join_says_why(overrides: tuple[str, ...], why: str) -> None:
    config = configs.compose("track=none", *overrides, allow=("continual",))
    learner = configs.build_learner(config, configs.build_stream(config).spec)
    with pytest.raises(CannotJoinError, match=why):
        Cohort(Stop(0)).join(learner)


class KeepsATensor(torch.nn.Module):
    """A random projection that is no buffer."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.projection = torch.randn(2, 4)
        self.head = torch.nn.Linear(4, spec.n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x @ self.projection)


class KeepsAMean(torch.nn.Module):
    """A buffer that each pass replaces."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.head = torch.nn.Linear(2, spec.n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.head(x - self.mean)


@pytest.mark.parametrize(("model", "kept"), [(KeepsATensor, "projection"), (KeepsAMean, "mean")])
def test_a_model_that_keeps_something_else_than_weights_cannot_join(model: Any, kept: str) -> None:
    spec = Spec((2,), 3)
    learner = SGDLearner(model, partial(torch.optim.SGD, lr=0.1), {}, spec=spec)
    with pytest.raises(CannotJoinError, match=rf"its model keeps \w*\.?{kept}"):
        Cohort(Stop(0)).join(learner)


class Late(Strategy):
    """Has an attribute of its own only once an experience has ended."""

    factor = 1.0

    def rows(self, view: View, batch: Batch, out: Any, rows: torch.Tensor) -> torch.Tensor:
        return rows * self.factor

    def end(self, view: View, experience: Experience) -> None:
        self.factor = 0.1


class Spare(torch.nn.Module):
    """A parameter that its answers do not depend on."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spare = torch.nn.Parameter(torch.ones(3))
        self.head = torch.nn.Linear(2, spec.n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def unequal(table: Any, make: Callable[[], SGDLearner]) -> None:
    """Two members whose experiences have other lengths are what they are alone."""
    draw = torch.Generator().manual_seed(0)
    lengths = ((25, 30, 20), (40, 20, 20))
    streams = [
        [
            Experience(index, table(torch.rand(n, 2, generator=draw), torch.randint(3, (n,), generator=draw)))
            for index, n in enumerate(sizes)
        ]
        for sizes in lengths
    ]
    for order in (streams, streams[::-1]):
        references, members, cohort = [make() for _ in order], [make() for _ in order], Cohort(Stop(0))
        for reference, stream in zip(references, order, strict=True):
            assert learn(reference, stream) is None
        for member in members:
            cohort.join(member)
        ends = dict(cohort.run([partial(learn, *pair) for pair in zip(members, order, strict=True)]))
        assert ends == {0: None, 1: None}
        assert cohort.together > 0
        assert max(distance(*pair) for pair in zip(members, references, strict=True)) < CLOSE


def test_an_attribute_that_a_member_has_not_yet_is_not_taken_for_its_class(table: Any) -> None:
    unequal(table, lambda: SGDLearner(linear, partial(torch.optim.SGD, lr=0.1), {"late": Late()}, spec=Spec((2,), 3)))


@pytest.mark.parametrize("strategies", [dict, lambda: {"ewc": EWC()}], ids=["none", "ewc"])
def test_a_weight_without_a_gradient_is_left_alone(table: Any, strategies: Callable[[], Any]) -> None:
    decaying = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    unequal(table, lambda: SGDLearner(Spare, decaying, strategies(), spec=Spec((2,), 3)))


class Halved(EWC):
    """Acts on the loss of each row, and adds a gradient that it knows."""

    def rows(self, view: View, batch: Batch, out: Any, rows: torch.Tensor) -> torch.Tensor:
        return rows / 2


def test_a_strategy_that_pulls_goes_on_acting_at_its_other_seams(table: Any) -> None:
    unequal(table, lambda: SGDLearner(linear, partial(torch.optim.SGD, lr=0.1), {"h": Halved()}, spec=Spec((2,), 3)))


def test_what_breaks_the_backward_pass_ends_each_run_by_itself() -> None:
    class Cut(Strategy):
        def rows(self, view: View, batch: Batch, out: Any, rows: torch.Tensor) -> torch.Tensor:
            return rows.detach()

    made, cohort = learners(seeds("strategy=none")), Cohort(Stop(0))
    for learner, _ in made:
        cut = Cut()
        learner.strategies["cut"], learner.seams = cut, Seams({"cut": cut})
        cohort.join(learner)

    def act(learner: SGDLearner, stream: Stream) -> Exception | None:
        try:
            return learn(learner, stream)
        except RuntimeError as error:
            return error

    ends = dict(cohort.run([partial(act, learner, stream) for learner, stream in made]))
    assert all("does not require grad" in str(end) for end in ends.values())
    assert len(ends) == 3


def test_a_network_of_another_shape_cannot_join() -> None:
    (one, _), (other, _) = learners([(), ("model.hidden=[17]",)])
    cohort = Cohort(Stop(0))
    cohort.join(one)
    with pytest.raises(CannotJoinError, match="are not those of the others"):
        cohort.join(other)


class Products(TorchDispatchMode):
    """Counts products of batches of matrices."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", ["er", "si"])
def test_the_products_of_a_step_do_not_grow_with_the_members(strategy: str) -> None:
    def products(n: int) -> int:
        with Products() as counted:
            _, cohort, _ = together(seeds(f"strategy={strategy}", n=n))
        assert cohort.alone == 0
        return counted.n

    assert products(2) == products(5) > 0


# ---------------------------------------------------------------- the launcher


class Watch:
    """Takes what it is told, and does something once the first run of a group is half done."""

    def __init__(self, halfway: Callable[[], object] = lambda: None) -> None:
        self.halfway, self.done = halfway, False

    def begin(self, job: Config) -> Callable[[float, int], None]:
        def progress(done: float, total: int) -> None:
            if done > total / 2 and not self.done:
                self.done = True
                self.halfway()

        return progress

    def end(self, outcome: Outcome) -> None:
        pass


def sweep(launcher: Any, output: Path, *overrides: str, watch: Watch | None = None) -> dict[str, Outcome]:
    """How the jobs ended, by seed and number."""
    jobs = jobs_of(expand([*BLOBS, f"output={output}", *overrides]))
    outcomes = list(launcher(jobs, watch or Watch()))
    assert len(outcomes) == len(jobs)
    return {outcome.config.directory.name: outcome for outcome in outcomes}


def runs(outcomes: dict[str, Outcome]) -> Iterator[Run]:
    for name in sorted(outcomes):
        run = outcomes[name].run
        assert run is not None, outcomes[name].error
        yield run


def shape(run: Run) -> list[tuple[Any, ...]]:
    return [(r.rows_seen, r.step, r.task, r.at, r.probe, r.metric) for r in run.records]


def test_each_run_has_a_directory_and_a_ledger_of_its_own_as_if_it_were_alone(tmp_path: Path) -> None:
    options = ("strategy=er", "seed=range(4)", "probe.every=7", "snapshot.share=null", "optimizer.lr=0.1,0.05")
    one_by_one, cohort = (
        list(runs(sweep(launcher, tmp_path / name, *options)))
        for name, launcher in (("basic", Basic()), ("cohort", Cohorts(size=5)))
    )
    assert [run.path.name for run in one_by_one] == [run.path.name for run in cohort]
    for alone_run, member in zip(one_by_one, cohort, strict=True):
        assert shape(alone_run) == shape(member)
        for metric in ("average_accuracy", "forgetting", "anytime_accuracy"):
            assert member.metrics[metric] == pytest.approx(alone_run.metrics[metric], abs=1e-9)
        manifest = json.loads((member.path / "manifest.json").read_text())
        assert manifest["cohort"] is True
        assert json.loads((alone_run.path / "manifest.json").read_text())["cohort"] is False
        assert (member.path / "snapshots").is_dir()


def test_jobs_that_differ_in_more_than_numbers_are_in_different_cohorts() -> None:
    jobs = jobs_of(expand([*BLOBS, "strategy=er,ewc", "seed=range(5)", "optimizer.lr=0.1,0.2"]))
    groups = alike(jobs, size=8)
    assert [len(group) for group in groups] == [8, 2, 8, 2]
    for group in groups:
        assert len({group_job.config.name for group_job in group}) == 1
    rates = [job.config.resolved["optimizer"]["lr"] for job in groups[0]]
    assert rates == sorted(rates)


def test_runs_that_cannot_join_say_so_and_are_run_one_after_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = sweep(Cohorts(), tmp_path, "train.head=growing", "seed=range(3)")
    assert [run.status for run in runs(made)] == ["finished"] * 3
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "3 of 3 runs are run one after the other: it cannot be trained together with others: its head grows"
    ]
    assert all(json.loads((run.path / "manifest.json").read_text())["cohort"] is False for run in runs(made))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cohort_that_is_stopped_goes_on_as_a_cohort(tmp_path: Path, number: int) -> None:
    options = ("strategy=er", "seed=range(3)", "train.epochs=8")
    stopping = Watch(lambda: os.kill(os.getpid(), number))
    with pytest.raises((KeyboardInterrupt, Terminated)):
        sweep(Cohorts(), tmp_path / "stopped", *options, watch=stopping)
    found = [Run.read(path.parent) for path in sorted((tmp_path / "stopped").rglob("manifest.json"))]
    assert [run.status for run in found] == ["interrupted"] * 3
    went_on, whole = (list(runs(sweep(Cohorts(), tmp_path / name, *options))) for name in ("stopped", "whole"))
    for run, reference in zip(went_on, whole, strict=True):
        assert run.since is not None
        assert run.since > 0
        assert shape(run) == shape(reference)
        assert run.metrics["average_accuracy"] == pytest.approx(reference.metrics["average_accuracy"], abs=1e-9)


def test_a_member_does_not_go_on_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ("strategy=er", "seed=range(2)", "train.epochs=8")
    with pytest.raises(KeyboardInterrupt):
        sweep(Cohorts(), tmp_path, *options, watch=Watch(lambda: os.kill(os.getpid(), signal.SIGINT)))
    with caplog.at_level(logging.WARNING):
        run = next(runs(sweep(Basic(), tmp_path, "strategy=er", "seed=0", "train.epochs=8")))
    assert run.since is None
    assert "was begun in a cohort, where results differ in their last digits, so it starts over" in caplog.text
    assert (run.path / "manifest.0.json").exists() or (run.path / "manifest.1.json").exists()


def test_members_have_the_rows_of_a_source_in_memory_once() -> None:
    first, second = (configs.compose(*BLOBS, f"seed={seed}") for seed in range(2))
    assert configs.build_stream(first).inputs is not configs.build_stream(second).inputs
    sources: dict[str, Any] = {}
    one, other = configs.build_stream(first, sources), configs.build_stream(second, sources)
    assert one.inputs is other.inputs
    assert one.digest() == configs.build_stream(first).digest()
    assert [len(e.rows) for e in one] == [len(e.rows) for e in configs.build_stream(first)]


def test_a_cohort_on_the_command_line(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = cli("run", "-m", *BLOBS, "seed=range(3)", "hydra/launcher=cohort", f"output={tmp_path}")
    assert code == 0
    assert f"3 runs in {tmp_path}" in out
    code, _, err = cli("run", "-m", *BLOBS, "seed=1", "hydra/launcher=cohort", "hydra.launcher.size=0")
    assert code == 2
    assert "hydra.launcher.size=0 must be at least 1" in err
