"""Tuning: what it may look at, what it may choose from, how many trials, and what it writes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from continual import config as configs
from continual.errors import UserError
from continual.manifest import commit
from continual.overrides import parse
from continual.tuning.holdout import Holdout
from continual.tuning.space import Axis, axis, texts, usual
from continual.tuning.study import Plan, plan_studies, search
from continual.types import Experience, Spec

SMALL = (
    "scenario/source=gaussian",
    "scenario.source.n_classes=6",
    "scenario.source.rows_per_class=20",
    "scenario.n_tasks=3",
    "model=linear",
    "track=none",
)

SPEC = Spec((1,), 4)


@dataclass
class Stream:
    """Tasks of one experience each; rows, and the order of their origins, are the test's."""

    experiences: list[Experience]
    origins: list[int]
    spec: Spec = SPEC

    @property
    def probes(self) -> Any:
        raise AssertionError("tuning read the stream's own probes")

    def __iter__(self) -> Iterator[Experience]:
        return iter(self.experiences)


class Forbidden:
    """Rows that must not be read."""

    def __len__(self) -> int:
        raise AssertionError("tuning read a later task")

    take = fetch = __len__


@pytest.fixture
def stream(table):
    def make(*sizes: int, origins: list[int] | None = None) -> Stream:
        starts = torch.tensor([0, *sizes]).cumsum(0)
        made = []
        for index, size in enumerate(sizes):
            x = starts[index] + torch.arange(size, dtype=torch.float32)[:, None]
            made.append(Experience(index, table(x, torch.arange(size) % 2)))
        return Stream(made, list(range(len(sizes))) if origins is None else origins)

    return make


# ---------------------------------------------------------------- what it may look at


def test_later_tasks_and_test_rows_are_never_read(stream):
    whole = stream(40, 40, 40)
    whole.experiences[2] = replace(whole.experiences[2], rows=Forbidden())
    held = Holdout(whole, 2, 0.25)
    assert [e.index for e in held] == [0, 1]
    assert list(held.origins) == [0, 1]
    assert len(held.probes) == 2
    assert held.spec.n_experiences == 2


def test_rows_are_either_trained_on_or_held_out(stream):
    held = Holdout(stream(200, 100, 10), 2, 0.25)
    for experience, probe, first, size in zip(held, held.probes, (0, 200), (200, 100), strict=True):
        rows, out = (r.take(torch.arange(len(r))) for r in (experience.rows, probe))
        assert sorted([*rows.x[:, 0].tolist(), *out.x[:, 0].tolist()]) == list(range(first, first + size))
        assert torch.equal(rows.y, ((rows.x[:, 0] - first) % 2).long())
        assert torch.equal(out.y, ((out.x[:, 0] - first) % 2).long())
        assert 0.15 * size < len(out) < 0.35 * size
    assert held.spec.smallest == min(len(e.rows) for e in held)


def test_the_seed_decides_what_is_held_out(stream):
    def drawn(seed: int) -> list[float]:
        probe = Holdout(stream(40, 40), 1, 0.25, seed).probes[0]
        return probe.take(torch.arange(len(probe))).x[:, 0].tolist()

    assert drawn(0) == drawn(0) != drawn(1)


def test_many_arrivals_of_a_task_are_one_task_and_it_ends_where_a_further_one_begins(stream):
    held = Holdout(stream(30, 30, 30, 30, 30, origins=[0, 0, 1, 2, 0]), 2, 0.25)
    assert list(held.origins) == [0, 0, 1]
    assert len(list(held)) == 3
    first = held.probes[0]
    assert {int(x) // 30 for x in first.take(torch.arange(len(first))).x[:, 0]} == {0, 1}


def test_tasks_keep_their_numbers(stream):
    held = Holdout(stream(30, 30, 30, origins=[2, 0, 1]), 2, 0.25)
    assert [bool(len(probe)) for probe in held.probes] == [True, False, True]


@pytest.mark.parametrize(("sizes", "n_tasks", "fraction", "message"), [
    ((40, 40), 2, 0.1, "--tasks 2: the stream has 2, .* use from 1 to 1"),
    ((40, 40), 0, 0.1, "--tasks 0: "),
    ((40, 40), 1, 0.0, "--fraction 0 must be above 0 and at most 0.5"),
    ((40, 40), 1, 0.6, "--fraction 0.6 must be above 0 and at most 0.5"),
    ((1, 40), 1, 0.1, "task 0 has 1 rows, too few"),
])  # fmt: skip
def test_what_cannot_be_held_out_is_refused(stream, sizes, n_tasks, fraction, message):
    with pytest.raises(UserError, match=message):
        Holdout(stream(*sizes), n_tasks, fraction)


# ---------------------------------------------------------------- what it may choose from


@pytest.mark.parametrize(("text", "expected"), [
    ("a.b=interval(0.5,2)", Axis("a.b", 0.5, 2)),
    ("a.b=tag(log,interval(0.5,2))", Axis("a.b", 0.5, 2, log=True)),
    ("a.b=int(interval(1,9))", Axis("a.b", 1, 9, step=1)),
    ("a.b=range(5,50,5)", Axis("a.b", 5, 45, step=5)),
    ("a.b=1,2.5,x", Axis("a.b", choices=("1", "2.5", "x"))),
])  # fmt: skip
def test_a_sweep_is_an_axis(text, expected):
    assert axis(parse([text], None)[0]) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("a=interval(2,1)", "its ends must rise"),
    ("a=tag(log,interval(0,1))", "its ends must rise from above 0"),
])  # fmt: skip
def test_an_empty_interval_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        axis(parse([text], None)[0])


def test_without_a_space_it_is_the_learning_rate_and_every_strength_above_0():
    config = {
        "optimizer": {"lr": 0.1},
        "strategy": {"a": {"strength": 2.0, "label_strength": 0.0, "decay": 0.5}, "b": {"strength": None}},
    }
    found = [(a.key, a.low, a.high, a.log) for a in usual(config, {"optimizer", "strategy"})]
    assert found == [("optimizer.lr", 1e-3, 0.3, True), ("strategy.a.strength", 0.2, 20.0, True)]
    assert usual(config, {"model"}) == []


@pytest.mark.parametrize(("made", "value", "expected"), [
    (Axis("k", 0.5, 2), 1.0, 1.0), (Axis("k", 0.5, 2), 3.0, None), (Axis("k", 0.5, 2), None, None),
    (Axis("k", 5, 45, step=5), 20, 20), (Axis("k", 5, 45, step=5), 21, None),
    (Axis("k", choices=("1", "x")), 1, "1"), (Axis("k", choices=("1", "x")), "y", None),
])  # fmt: skip
def test_a_default_counts_if_it_lies_in_the_space(made, value, expected):
    assert made.default({"k": value}) == expected


# ---------------------------------------------------------------- the search


def test_every_method_gets_as_many_trials_and_its_own_space():
    space = ["strategy.er.n_replay=int(interval(1,20))", "optimizer.lr=0.05,0.1"]
    plan = Plan(n_tasks=2, n_trials=2)
    studies = [search(s, plan) for s in plan_studies([*SMALL, "strategy=none,er", *space, "seed=range(2)"], plan)]
    assert [[a.key for a in s.axes] for s in studies] == [["optimizer.lr"], ["strategy.er.n_replay", "optimizer.lr"]]
    assert [len(s.trials) for s in studies] == [2, 2]
    assert all(len(trial.reached) == 2 for s in studies for trial in s.trials)
    assert studies[1].trials[0].values == {"strategy.er.n_replay": 10, "optimizer.lr": "0.1"}  # the defaults
    configs_of = [configs.compose(*SMALL, f"seed={seed}") for seed in (0, 1)]
    rows = sum(len(e.rows) for c in configs_of for e in Holdout(configs.build_stream(c), 2, 0.1, c.resolved["seed"]))
    assert [trial.forward_equivalents for trial in studies[0].trials] == [3 * rows] * 2  # of the first tasks only
    for study in studies:
        assert study.best.value == max(trial.value for trial in study.trials)
        assert all(trial.forward_equivalents > 0 for trial in study.trials)


def test_a_space_of_few_choices_is_tried_whole_and_each_once():
    plan = Plan(n_trials=9)
    (study,) = plan_studies([*SMALL, "optimizer.lr=0.01,0.1,0.2", "train.batch_size=5,10"], plan)
    tried = [tuple(trial.values.values()) for trial in search(study, plan).trials]
    assert len(tried) == len(set(tried)) == 6
    assert tried[0] == ("0.1", "10")  # the defaults


def test_a_metric_of_which_less_is_better_is_minimised():
    plan = Plan(n_trials=3, metric="calibration_error")
    (study,) = plan_studies([*SMALL, "optimizer.lr=tag(log,interval(0.0001,1))"], plan)
    found = search(study, plan)
    values = [trial.value for trial in found.trials]
    assert found.best.value == min(values) < max(values)


def test_a_trial_that_diverges_counts_and_is_never_chosen():
    plan = Plan(n_trials=4)
    (study,) = plan_studies([*SMALL, "optimizer.lr=1e38,0.1"], plan)
    found = search(study, plan)
    fallen = [trial for trial in found.trials if not trial.reached]
    assert len(found.trials) == 2
    assert len(fallen) == 1
    assert "the loss is" in fallen[0].error
    assert found.best.values == {"optimizer.lr": "0.1"}
    (study,) = plan_studies([*SMALL, "optimizer.lr=1e38,2e38"], plan)
    with pytest.raises(UserError, match="none: all 2 trials diverged; the last one: the loss is"):
        search(study, plan)


@pytest.mark.parametrize(("words", "plan", "message"), [
    (["strategy=er", "strategy.er.n_repaly=1,2"], Plan(), "did you mean 'strategy.er.n_replay'"),
    (["model=lineal"], Plan(), "model=lineal does not exist; did you mean 'linear'"),
    (["learner=slda"], Plan(), "slda has no space of its own; name one"),
    ([], Plan(n_tasks=3), "--tasks 3: the stream has 3"),
])  # fmt: skip
def test_a_mistake_is_told_before_the_first_trial(words, plan, message):
    model = () if "learner=slda" in words else ("model=linear",)
    with pytest.raises(UserError, match=message):
        plan_studies([*(word for word in SMALL if not word.startswith("model")), *model, *words], plan)


def test_a_plan_is_checked():
    with pytest.raises(UserError, match="--trials 0 must be at least 1"):
        Plan(n_trials=0)
    with pytest.raises(UserError, match="--metric weight_norm: neither more nor less of it is better"):
        Plan(metric="weight_norm")
    plan = Plan(n_trials=1, metric="acuracy")
    (study,) = plan_studies(SMALL, plan)
    with pytest.raises(UserError, match="--metric acuracy is not measured here"):
        search(study, plan)


# ---------------------------------------------------------------- what it writes


def test_the_experiment_is_what_was_tried(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = [*SMALL, "strategy=[er,ewc]", "memory@strategy.er.memory=class_balanced", "train.epochs=2"]
    code, out, _ = cli("tune", *fixed, "strategy.er.n_replay=5,10,15", "--trials", "3", "--tasks", "2")
    path = Path("tuned/experiment/tuned_split-gaussian_er_ewc.yaml")
    assert code == 0
    assert f"  {path}\n" in out
    told = json.loads(path.with_suffix(".json").read_text())
    assert len(told["trials"]) == 3
    best = max(told["trials"], key=lambda trial: sum(trial["reached"]))
    assert told["chosen"] == best["values"]
    written = configs.compose(f"experiment={path.stem}", config_dir="tuned")
    assert written.resolved == configs.compose(*fixed, *texts(told["chosen"])).resolved
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# @package _global_"
    assert "3 trials on the first 2 tasks; 0.1 of their training rows held out; seeds 0" in comments[2]
    assert [told["commit"], told["dirty"]] == list(commit(Path(__file__).parent)), "the folder is no repository"


def test_an_experiment_may_be_built_on(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("tune", "experiment=split_digits", "scenario.rows_per_task=30", "train.epochs=1", "track=none",
                       "strategy=er", "optimizer.lr=0.1,0.1", "--trials", "1", "--quiet")  # fmt: skip
    (path,) = map(Path, out.splitlines())
    assert code == 0
    assert yaml.safe_load(path.read_text())["defaults"][0] == "split_digits"
    written = configs.compose(f"experiment={path.stem}", config_dir="tuned")
    assert written.resolved["scenario"]["rows_per_task"] == 30
    assert written.resolved["probe"]["every"] == 50


def test_a_place_that_cannot_be_written_is_refused_first(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = cli("tune", *SMALL, "--write", str(tmp_path / "file"))
    assert code == 2
    assert "is a file; choose another place with --write" in err
