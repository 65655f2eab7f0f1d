"""The page's data: curves worked out by hand, rows and runs as they are told, and what is kept of runs."""

import functools
import json
import os
import random
import shutil
from dataclasses import fields

import numpy as np
import pytest
import yaml

import continual
from continual import config, ledger
from continual.dashboard import curves
from continual.dashboard import store as stores
from continual.dashboard.cache import Cache
from continual.dashboard.collect import Follower, collect, link
from continual.dashboard.store import Store
from continual.dashboard.trace import PREQUENTIAL, Trace, windows
from continual.errors import UserError
from continual.ledger import Ledger
from continual.statistics import interval
from continual.timeline import prequential_windows
from continual.types import Record

T2 = 12.706204736  # t_1(0.975)
NAN = float("nan")
STREAM = {"scenario": {"n_tasks": 2, "seed": "${seed}"}, "operator": {}, "strategy": {}}
WRITTEN = STREAM | {"train": {"epochs": 1}, "track": {}, "device": "cpu", "output": "runs", "name": None}
PROBE = {"every": None, "max_rows": None, "prequential": False, "window": 100}


def at(rows, task, kind, *values, metric="accuracy"):
    """One moment: ``metric`` of probes 0, 1, ...; None was not measured."""
    return [Record(rows, rows, task, kind, p, metric, v) for p, v in enumerate(values) if v is not None]


def two_tasks(scale=1, kept=0.6, dip=0.2):
    """R = [[.5, .5], [1, .4], [kept, 1]], each task of 10 ``scale`` rows with one moment in its middle."""
    return [
        *at(0, None, "start", 0.5, 0.5),
        *at(5 * scale, 0, "step", 0.8),
        *at(10 * scale, 0, "end", 1.0, 0.4),
        *at(15 * scale, 1, "step", dip, 0.6),
        *at(20 * scale, 1, "end", kept, 1.0),
    ]


def arrivals(*found, task=0):
    """Windows of arrivals: (rows seen, rows scored, accuracy of the learner, of the last label, of the blind)."""
    names = ("prequential_rows", *PREQUENTIAL)
    return [
        Record(seen, seen, task, "arrival", None, name, float(value))
        for seen, *values in found
        for name, value in zip(names, values, strict=True)
    ]


def row(*runs, n_tasks=2):
    return curves.of_row({seed: Trace.of(records) for seed, records in enumerate(runs)}, n_tasks)


@pytest.fixture
def make(tmp_path):
    """Writes a run: ``make("er", seed=1, records=...)``; further words change its config, or its manifest."""

    def write(name="er", seed=0, records=None, status="finished", at="runs", config=None, probe=None, **manifest):
        written = WRITTEN | {"probe": PROBE | (probe or {}), "seed": seed} | (config or {})
        path = tmp_path / at / name.replace("/", "_") / f"seed{seed}-{len(list(tmp_path.rglob('seed*')))}"
        about = {
            "created": "2030-01-01T00:00:00+00:00",
            "config": yaml.safe_dump(written),
            "resolved": written,
            "seed": seed,
            "device": "cpu",
            "data_digest": f"data{seed}",
            "commit": "c0ffee0000",
            "versions": {"continual": "0.1.0", "torch": "2.10"},
            "scenario": "split-digits",
            "name": name,
            "chosen": {"scenario": "split", "strategy": "none"},
            "spec": {"in_shape": [8], "n_classes": 4},
            "schedule": [0, 1],
        }
        book = Ledger.create(path, about | manifest)
        book.append(two_tasks() if records is None else records)
        if status in ("finished", "failed", "interrupted"):
            book.end(status, None if status == "finished" else "because")
        if status != "running":
            book.close()
        opened.append(book)
        return path

    opened = []
    yield write
    for book in opened:
        book.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The user's cache folder of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "continual" / "dashboard"


@pytest.fixture(scope="session")
def composed():
    """Composes a config once for all tests."""
    return functools.cache(config.compose)


@pytest.fixture(autouse=True)
def composed_once(composed, monkeypatch):
    monkeypatch.setattr(config, "compose", composed)


@pytest.fixture
def reads(monkeypatch):
    """The run directories whose records were read."""
    found, read = [], ledger.read
    monkeypatch.setattr(ledger, "read", lambda path: (found.append(path), read(path))[1])
    return found


def only(page):
    """The one row of the one scenario."""
    (scenario,) = page["scenarios"]
    (found,) = scenario["rows"]
    return found


def same(a, b):
    """Whether two pages say the same, whenever they were made."""
    return a | {"made": ""} == b | {"made": ""}


def equal(a, b):
    """Whether two traces hold the same numbers in the same types."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Trace)]
    return all(x == y if not isinstance(x, np.ndarray) else _equal(x, y) for x, y in pairs)


def _equal(x, y):
    return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)


# ---------------------------------------------------------------- curves by hand


def test_one_seed_by_hand():
    found = row(two_tasks())
    one = {"low": [None], "high": [None], "n": [1]}
    assert found["matrices"] == [[[0.5, 0.5], [1, 0.4], [0.6, 1]]]
    assert (found["seeds"], found["trained"], found["switches"]) == ([0], [0, 1], [10, 20])
    assert found["forgetting"] == {"x": [0], "mean": [0.4], **one}
    assert found["damage"] == {"x": [2], "mean": [-0.4], **one}
    nothing = {"low": [None] * 4, "high": [None] * 4, "n": [1] * 4}
    assert found["anytime"] == {"x": [5, 10, 15, 20], "mean": [0.8, 1, 0.4, 0.8], **nothing}
    assert found["newest"] == {"x": [5, 10, 15, 20], "mean": [0.8, 1, 0.6, 1], **nothing}
    assert found["gap"]["x"] == [0, 5, 10]
    assert found["gap"]["mean"] == [0, -0.8, -0.4]
    absent = ("prequential", "last_label", "blind", "classes", "class_matrix")
    assert [found[name] for name in absent] == [None] * 5


def test_two_seeds_are_aligned_by_segment_and_place():
    """The second seed's tasks have 20 rows and a moment more, which the first seed has not: it is left out."""
    second = [*two_tasks(scale=2, kept=0.4, dip=0.0), *at(35, 1, "step", 0.1, 0.1)]
    found = row(two_tasks(), second)
    assert found["switches"] == [15, 30]
    assert found["anytime"]["x"] == [8, 15, 22, 30]  # 7.5 and 22.5 to the even neighbour
    assert found["anytime"]["mean"] == [0.8, 1, 0.35, 0.75]
    half = T2 * 0.05  # values .4 and .3: deviation .0707, over sqrt(2)
    assert found["anytime"]["low"] == [0.8, 1, round(0.35 - half, 4), round(0.75 - half, 4)]
    assert found["anytime"]["high"][2] == round(0.35 + half, 4)
    assert found["gap"]["x"] == [0, 8, 15]
    assert found["gap"]["mean"] == [0, -0.9, -0.5]
    assert found["forgetting"]["mean"] == [0.5]
    assert found["forgetting"]["n"] == [2]


def test_the_end_of_a_task_stays_even_if_one_seed_alone_has_it():
    found = row(two_tasks(), two_tasks()[:5])
    assert found["anytime"]["x"] == [5, 10, 20]  # 15 is a moment that the second has not, and no end
    assert found["anytime"]["n"] == [2, 2, 1]
    assert found["anytime"]["low"][2] is None
    assert found["matrices"][1] == [[0.5, 0.5], [1, 0.4], [None, None]]


@pytest.mark.parametrize("n", [2, 3, 10, 19])
def test_intervals_are_those_of_the_tables(n):
    values = np.random.default_rng(n).random((n, 5))
    found = curves.curve(np.arange(5.0), values)
    expected = [interval(column) for column in values.T]
    for key in ("mean", "low", "high"):
        assert found[key] == pytest.approx([getattr(e, key) for e in expected], abs=5.1e-5)
    assert found["n"] == [n] * 5


def test_what_one_seed_did_not_measure_is_not_counted():
    found = curves.curve(np.array([1.0, 2.0, 3.0]), np.array([[0.2, NAN, NAN], [0.4, 0.5, NAN]]))
    assert (found["x"], found["mean"], found["n"]) == ([1, 2], [0.3, 0.5], [2, 1])
    assert found["low"] == [round(0.3 - T2 * 0.1, 4), None]
    assert curves.curve(np.array([1.0]), np.array([[NAN]])) is None


def test_missing_cells_are_null_and_make_no_mean():
    records = [
        *at(10, 0, "end", 1.0, None, 0.0),
        *at(20, 1, "end", None, 1.0, 0.0),
        *at(30, 2, "end", 0.5, 0.5, 1.0),
    ]
    found = row(records, n_tasks=3)
    assert found["matrices"] == [[[None] * 3, [1, None, 0], [None, 1, 0], [0.5, 0.5, 1]]]
    assert found["damage"] is None  # task 0 was not measured at the second end, so neither difference is known
    assert found["anytime"]["x"] == [10, 30]
    assert found["forgetting"]["x"] == [0, 1]


def test_a_task_that_returns():
    found = row([*two_tasks(), *at(30, 0, "end", 0.9, 0.7)])
    assert found["trained"] == [0, 1, 0]
    assert found["damage"]["x"] == [2, 3]
    assert found["damage"]["mean"] == [-0.4, -0.3]  # at the third end only task 1 was another's
    assert found["forgetting"]["x"] == [0]
    assert found["forgetting"]["mean"] == [0.1]
    assert found["switches"] == [10, 20, 30]


def test_blurred_tasks_end_once_however_often_they_arrive():
    pieces = [
        *at(10, 0, "end", 0.6, 0.1),
        *at(20, 0, "end", 0.9, 0.2),
        *at(30, 1, "end", 0.5, 0.5),
        *at(40, 1, "end", 0.4, 0.8),
    ]
    found = row(pieces)
    assert found["trained"] == [0, 1]
    assert found["matrices"] == [[[None, None], [0.9, 0.2], [0.4, 0.8]]]
    assert found["switches"] == [20, 40]
    assert found["damage"]["mean"] == [-0.5]
    assert found["gap"]["x"] == [0, 10, 20]
    assert found["gap"]["mean"] == [0, -0.4, -0.5]


def test_seeds_that_trained_in_another_order_are_not_mixed_into_the_matrix():
    swapped = [*at(10, 1, "end", 0.4, 1.0), *at(20, 0, "end", 1.0, 0.5)]
    found = row(two_tasks(), swapped, two_tasks(kept=0.2))
    assert found["seeds"] == [0, 2]
    assert len(found["matrices"]) == 2
    assert found["damage"]["n"] == [3]


def test_a_single_task_and_a_run_without_a_record():
    found = row(at(10, 0, "end", 0.9), n_tasks=1)
    assert (found["matrices"], found["trained"]) == ([[[None], [0.9]]], [0])
    assert [found[name] for name in ("forgetting", "damage", "gap")] == [None] * 3
    assert found["anytime"]["mean"] == [0.9]
    for empty in (row([], n_tasks=0), row([], [], n_tasks=0), row(n_tasks=0)):
        assert (empty["matrices"], empty["trained"], empty["switches"]) == ([], [], [])
        assert [empty[name] for name in ("anytime", "newest", "gap", "prequential", "classes")] == [None] * 5
    mixed = row(two_tasks(), [])
    assert mixed["seeds"] == [0]
    assert mixed["anytime"]["x"] == [10, 20]  # of the other moments the second seed has none
    assert mixed["anytime"]["n"] == [1, 1]


def test_a_gap_is_absent_if_nothing_was_measured_between_two_ends():
    records = [*at(10, 0, "end", 1.0, 0.4), *at(20, 1, "end", 0.6, 1.0)]
    assert row(records)["gap"] is None


def test_the_gap_is_a_mean_over_switches_aligned_by_place():
    """After the first switch two moments, after the second one: the second place is left out, the ends are kept."""
    records = [
        *at(10, 0, "end", 1.0, 0.0, 0.0),
        *at(14, 1, "step", 0.4, 0.5),
        *at(18, 1, "step", 0.5, 0.6),
        *at(20, 1, "end", 0.8, 1.0, 0.0),
        *at(26, 2, "step", 0.4, 0.8, 0.3),
        *at(40, 2, "end", 0.6, 1.0, 1.0),
    ]
    found = row(records, n_tasks=3)["gap"]
    assert found["x"] == [0, 5, 15]  # (4 + 6) / 2 and (10 + 20) / 2
    assert found["mean"] == [0, -0.45, -0.15]  # (-.6 + .6 - .9) / 2 and (-.2 + .8 - .9) / 2


def test_long_curves_keep_ends_and_extremes(monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 20)
    y = np.random.default_rng(0).random(1000)
    y[[333, 777]] = -1.0, 2.0
    ends = np.array([100, 500, 999])
    found = curves.thinned(np.arange(1000.0), y[None], ends)
    assert {100, 333, 500, 777, 999} <= set(found["x"])
    assert 20 <= len(found["x"]) <= 23
    assert found["x"] == sorted(found["x"])
    assert found["mean"] == [round(y[x], 4) for x in found["x"]]


def test_a_long_gap_is_thinned(monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 20)
    within = [fact for rows in range(11, 111) for fact in at(rows, 1, "step", 0.0 if rows == 50 else 0.5, 0.5)]
    found = row([*at(10, 0, "end", 1.0, 0.0), *within, *at(111, 1, "end", 0.9, 0.9)])["gap"]
    assert len(found["x"]) <= 22
    assert (found["x"][0], found["x"][-1], found["mean"][-1]) == (0, 101, -0.1)
    assert found["mean"][found["x"].index(40)] == -1


# ---------------------------------------------------------------- arrivals and classes


def test_a_stream_of_arrivals_without_probes():
    first, second = arrivals((100, 100, 0.5, 0.4, 0.3), (200, 100, 0.7, 0.4, 0.2)), arrivals((100, 100, 0.7, 0.4, 0.3))
    found = row(first, second, n_tasks=0)
    assert found["prequential"]["x"] == [100]  # the second seed has no second window
    assert found["prequential"]["mean"] == [0.6]
    assert found["last_label"]["low"] == [0.4]
    assert found["blind"]["mean"] == [0.3]
    assert found["anytime"] is None
    assert row(first, n_tasks=0)["prequential"]["mean"] == [0.5, 0.7]


def test_windows_in_which_nothing_was_scored_are_left_out():
    assert windows(arrivals((100, 100, 0.5, 0.4, 0.3), (200, 0, NAN, NAN, NAN))).tolist() == [
        [100.0],
        [100.0],
        [0.5],
        [0.4],
        [0.3],
    ]


def test_two_windows_of_one_moment_both_count():
    """The last rows of a task are scored at its end, the first of the next task on their arrival: nothing between."""
    records = arrivals((100, 50, 0.2, 0, 0), task=1) + arrivals((100, 150, 0.6, 0, 0), task=0)
    assert windows(records)[1:3].tolist() == [[50, 150], [0.2, 0.6]]
    values, rows = prequential_windows(records)
    assert (values.tolist(), rows.tolist()) == ([0.2, 0.6], [50, 150])


def test_many_windows_are_merged_by_their_rows(monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 2)
    records = arrivals((10, 10, 0.5, 0, 0), (40, 30, 0.9, 0, 0), (50, 10, 0.1, 0, 0))
    found = row(records, n_tasks=0)["prequential"]
    assert (found["x"], found["mean"]) == ([40, 50], [0.8, 0.1])


def test_classes_by_hand():
    def run(last):
        first = at(10, 0, "end", 1.0, None, 0.25, metric="class_accuracy")
        return [*two_tasks(), *first, *at(20, 1, "end", last, None, 0.5, metric="class_accuracy")]

    found = row(run(0.2), run(0.4))
    assert found["classes"]["x"] == [0, 2]
    assert found["classes"]["mean"] == [0.3, 0.5]
    assert found["classes"]["low"] == [round(0.3 - T2 * 0.1, 4), 0.5]
    assert found["class_matrix"] == [[1, None, 0.25], [0.3, None, 0.5]]


# ---------------------------------------------------------------- the page


def test_the_page_says_what_the_comparison_says(tmp_path, cli):
    small = ("scenario/source=gaussian", "scenario.n_tasks=4", "model.hidden=[8]", "track=none", "probe.every=15")
    for strategy in ("none", "er"):
        for seed in (0, 1):
            continual.run(*small, f"strategy={strategy}", f"seed={seed}", f"output={tmp_path / 'runs'}")
    _, out, _ = cli("compare", str(tmp_path / "runs"), "--json")
    (told,) = json.loads(out)["scenarios"]
    (scenario,) = collect([tmp_path / "runs"])["scenarios"]
    assert [r["label"] for r in scenario["rows"]] == [r["name"] for r in told["rows"]] == ["none", "er"]
    for shown, expected in zip(scenario["rows"], told["rows"], strict=True):
        assert shown["metrics"].keys() == expected["metrics"].keys() > {"average_accuracy", "stability_gap"}
        for name, value in shown["metrics"].items():
            assert value == {key: expected["metrics"][name][key] for key in ("mean", "low", "high", "n", "method")}
        assert np.mean([m[-1] for m in shown["matrices"]]) == pytest.approx(
            shown["metrics"]["average_accuracy"]["mean"], abs=1e-4
        )
        assert shown["forgetting"]["x"] == [0, 1, 2]
        assert np.mean(shown["forgetting"]["mean"]) == pytest.approx(shown["metrics"]["forgetting"]["mean"], abs=1e-4)
        assert shown["anytime"]["n"] == [2] * len(shown["anytime"]["x"])
        assert len(shown["class_matrix"]) == 4
    assert scenario["n_tasks"] == 4
    assert scenario["schedules"] == ["every 15 rows, all probe rows"]
    run = scenario["runs"][-1]
    assert (run["row"], run["seed"], run["state"], run["counted"]) == ("er", 1, "finished", True)
    assert (run["ended"], run["tasks"]) == (4, 4)
    assert set(run["difference"]) == {
        *("strategy=er", "scenario/source=gaussian", "scenario.n_tasks=4", "model.hidden=[8]", "probe.every=15")
    }


def test_a_page_by_hand(make, tmp_path):
    make("none", 0, config={"learner": {"_target_": "continual.learner.SGDLearner"}}, created="2030-01-01")
    make("slda", 0, config={"learner": {"_target_": "continual.learners.slda.SLDA"}}, created="2030-01-02")
    make("joint", 0, config={"learner": {"_target_": "continual.learners.joint.Joint"}}, created="2030-01-03")
    page = collect([tmp_path / "runs"])
    assert (page["format"], page["title"], page["notes"]) == (1, "split-digits", [])
    (scenario,) = page["scenarios"]
    assert [(r["label"], r["role"], r["colour"], r["n"]) for r in scenario["rows"]] == [
        ("none", None, 0, 1),
        ("slda", "floor", 1, 1),
        ("joint", "bound", 2, 1),
    ]
    described = {metric["name"]: metric for metric in scenario["metrics"]}
    assert list(described)[:2] == ["average_accuracy", "forgetting"]
    assert described["forgetting"] == {
        "name": "forgetting",
        "title": "forgetting",
        "unit": "%",
        "better": -1,
        "standard": True,
        "over_time": False,
        "cost": False,
    }
    assert described["evaluation_period"]["unit"] == "rows"
    assert [described[n]["better"] for n in ("average_accuracy", "evaluation_period", "stability_gap")] == [1, 0, -1]
    assert scenario["rows"][0]["metrics"]["average_accuracy"]["mean"] == 0.8
    run = scenario["runs"][0]
    assert (run["path"], run["rows_seen"], run["reason"], run["wandb"]) == (
        str(next((tmp_path / "runs" / "none").iterdir())),
        20,
        None,
        None,
    )


def test_a_label_keeps_its_colour_when_runs_come_and_over_scenarios(make, tmp_path):
    other = {"scenario": "permuted", "config": {"scenario": {"n_tasks": 9}}}
    make("er", 0, created="2030-01-02")
    make("ewc", 0, created="2030-01-03", **other)
    before = {r["label"]: r["colour"] for s in collect([tmp_path])["scenarios"] for r in s["rows"]}
    make("lwf", 0, created="2030-01-04")
    make("er", 0, created="2030-01-05", **other)
    rows = [r for s in collect([tmp_path])["scenarios"] for r in s["rows"]]
    after = {r["label"]: r["colour"] for r in rows}
    assert before == {"er": 0, "ewc": 1}
    assert after == {"er": 0, "ewc": 1, "lwf": 2}
    assert len(rows) == 4


def test_unfinished_runs_are_not_mixed_with_finished_ones(make, tmp_path):
    make("er", 0, two_tasks(kept=0.6))
    make("er", 1, two_tasks(kept=0.0), status="failed")
    found = only(collect([tmp_path]))
    assert (found["n"], found["provisional"], found["seeds"]) == (1, False, [0])
    assert found["metrics"]["average_accuracy"]["n"] == 1
    assert found["forgetting"]["mean"] == [0.4]
    runs = collect([tmp_path])["scenarios"][0]["runs"]
    assert [(r["seed"], r["state"], r["counted"], r["reason"]) for r in runs] == [
        (0, "finished", True, None),
        (1, "failed", False, "because"),
    ]


def test_a_row_without_a_finished_run_is_provisional(make, tmp_path):
    make("er", 0, two_tasks()[:5], status="killed", created="2030-01-01")
    make("er", 1, two_tasks()[:7], status="interrupted", created="2030-01-02")
    found = only(collect([tmp_path]))
    assert (found["n"], found["provisional"], found["trained"]) == (0, True, [0])
    assert (found["seeds"], found["matrices"]) == ([1], [[[0.5, 0.5], [1, 0.4]]])  # the furthest, not a mean
    assert found["metrics"]["average_accuracy"] == {
        "mean": 0.7,
        "low": None,
        "high": None,
        "n": 1,
        "method": "no interval: n = 1",
    }
    make("er", 1, two_tasks()[:3], status="running", created="2030-01-03")
    make("er", 2, [], status="running", created="2030-01-04")
    page = collect([tmp_path])
    found = only(page)
    assert (found["seeds"], found["matrices"]) == ([1], [[[0.5, 0.5]]])  # one that is running before all others
    runs = page["scenarios"][0]["runs"]
    assert [(r["state"], r["ended"], r["tasks"], r["rows_seen"]) for r in runs] == [
        ("killed", 1, 2, 10),
        ("interrupted", 1, 2, 15),
        ("running", 0, 2, 5),
        ("running", 0, 2, 0),
    ]
    assert not any(r["counted"] for r in runs)


def test_runs_without_a_single_record(make, tmp_path):
    make("er", 0, [], status="running")
    page = collect([tmp_path])
    assert page["scenarios"][0]["n_tasks"] == 0
    assert only(page)["metrics"] == {}
    json.dumps(page, allow_nan=False)


def test_progress_of_a_stream_without_probes(make, tmp_path):
    records = arrivals((100, 100, 0.5, 0.4, 0.3)) + arrivals((200, 100, 0.5, 0.4, 0.3), task=1)
    make("a", 0, records)
    make("b", 0, records, status="running")
    page = collect([tmp_path])
    assert [(r["state"], r["ended"]) for r in page["scenarios"][0]["runs"]] == [("finished", 2), ("running", 1)]


def test_a_learner_that_takes_in_a_task_at_once_is_on_a_schedule_of_its_own(make, tmp_path):
    """It was asked for as often as the others, and measured at ends of tasks only."""
    make("er", probe={"every": 5})
    make("slda", records=[r for r in two_tasks() if r.at != "step"], probe={"every": 5})
    make("begun", records=two_tasks()[:2], status="running", probe={"every": 5})
    (scenario,) = collect([tmp_path])["scenarios"]
    told = {r["label"]: scenario["schedules"][r["schedule"]] for r in scenario["rows"]}
    often = "every 5 rows, all probe rows"
    assert told == {"er": often, "slda": "at ends of tasks only", "begun": often}
    assert (
        "rows between evaluations: up to 5, but more in slda (10): anytime metrics are not comparable"
        in scenario["notes"]
    )


def test_a_path_that_is_no_text_is_read_and_kept(make, tmp_path, own_cache):
    moved = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    make("er").parent.rename(moved)
    assert only(collect([moved])) == only(collect([moved]))
    assert len(list(own_cache.glob("*.npz"))) == 1


def test_an_interval_is_worked_out_once(make, tmp_path, monkeypatch):
    for seed in range(3):
        make("er", seed, two_tasks(kept=0.5 + seed / 10))
    asked = []
    monkeypatch.setattr("continual.dashboard.cache.interval", lambda values: asked.append(values) or interval(values))
    follow = Follower([tmp_path])
    follow()
    first = len(asked)
    follow()
    assert first == len(asked) > 0


def test_evaluation_schedules_are_told_apart_in_words(make, tmp_path):
    probes = [
        *({}, {"max_rows": 5}, {"window": 7}),  # without steps and arrivals these change nothing
        *({"every": 50}, {"every": 50, "max_rows": 200}, {"every": 100}),
        {"every": 50, "prequential": True, "window": 30},
    ]
    for number, probe in enumerate(probes):
        make(f"m{number}", 0, probe=probe)
    (scenario,) = collect([tmp_path])["scenarios"]
    assert [r["schedule"] for r in scenario["rows"]] == [0, 0, 0, 1, 2, 3, 4]
    assert scenario["schedules"] == [
        "at ends of tasks only",
        "every 50 rows, all probe rows",
        "every 50 rows, at most 200 rows of a probe",
        "every 100 rows, all probe rows",
        "every 50 rows, all probe rows; arrivals before they are learned, in windows of 30 rows",
    ]


def test_user_text_passes_unchanged_and_the_page_is_strict_json(make, tmp_path):
    hostile = "</script><script>alert('é\u2028\ud800')</script>"
    infinite = [*two_tasks(), Record(20, 20, 1, "final", None, "peak_bytes", float("inf"))]
    make("er", 0, infinite, scenario=hostile, device='"><img src=x onerror=alert(1)>', config={"name": "<b>"})
    page = collect([tmp_path])
    assert page["title"] == page["scenarios"][0]["label"] == hostile
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    peak = only(page)["metrics"]["peak_bytes"]
    assert (peak["mean"], peak["method"]) == (None, "no interval: a value is infinite")
    assert "name=<b>" in page["scenarios"][0]["runs"][0]["difference"]


def test_a_run_names_what_makes_its_config_without_seed_and_place(make, tmp_path):
    made = config.compose("strategy=[er,ewc]", "train.epochs=2", "track=none", "seed=3", "output=elsewhere")
    make("er+ewc", 3, config=made.unresolved, chosen=made.chosen)
    assert collect([tmp_path])["scenarios"][0]["runs"][0]["difference"] == ["strategy=[er,ewc]", "train.epochs=2"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"https://wandb.ai/me/p/runs/1\n", "https://wandb.ai/me/p/runs/1"),
        (b"http://localhost:8080/x", "http://localhost:8080/x"),
        (b"javascript:alert(1)", None),
        (b"\xff", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_link_to_wandb(tmp_path, text, shown):
    if text is not None:
        (tmp_path / "wandb-url.txt").write_bytes(text)
    assert link(tmp_path) == shown


def test_the_version_changes_with_the_content_only(make, tmp_path):
    make("er", 0)
    first, again = collect([tmp_path]), collect([tmp_path])
    assert same(first, again)
    assert first["made"].endswith("+00:00")
    make("er", 1)
    assert collect([tmp_path])["version"] != first["version"]


def test_a_damaged_run_is_an_error_that_names_the_file_or_a_note(make, tmp_path):
    make("er", 0)
    damaged = make("none", 0) / "records.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"0.4", b"0.9", 1))
    with pytest.raises(UserError, match=f"{damaged}, line 6 is damaged"):
        collect([tmp_path])
    page = collect([tmp_path], strict=False)
    assert only(page)["label"] == "er"
    (note,) = page["notes"]
    assert note.startswith(f"left out: {damaged}, line 6 is damaged")


def test_a_follower_waits_for_runs_and_finds_those_that_appear(make, tmp_path):
    (tmp_path / "runs").mkdir()
    follow = Follower([tmp_path / "runs", tmp_path / "runs" / ".." / "runs"])
    empty = follow()
    assert (empty["scenarios"], empty["title"], len(empty["notes"])) == ([], "no runs yet", 2)
    with pytest.raises(UserError, match="holds no run"):
        collect([tmp_path / "runs"])
    make("er", 0)
    assert len(follow()["scenarios"][0]["runs"]) == 1
    make("er", 1)
    page = follow()
    assert len(page["scenarios"][0]["runs"]) == 2
    assert page["notes"] == []
    shutil.rmtree(tmp_path / "runs" / "er")
    assert follow()["scenarios"] == []


# ---------------------------------------------------------------- what is kept


def test_a_run_is_read_once_for_all_commands(make, tmp_path, reads, own_cache):
    make("er", 0, [*two_tasks(), *at(20, 1, "end", 0.5, metric="class_accuracy"), *arrivals((20, 9, 0.5, 0.4, 0.3))])
    make("er", 1, two_tasks()[:5], status="failed")
    first = collect([tmp_path / "runs"])
    assert len(reads) == len(list(own_cache.iterdir())) == 2
    assert same(collect([tmp_path / "runs"]), first)
    assert len(reads) == 2


def test_runs_that_did_not_end_are_kept_in_memory_only(make, tmp_path, reads, own_cache):
    path = make("er", 0, two_tasks()[:5], status="running")
    follow = Follower([tmp_path / "runs"])
    follow()
    follow()
    assert len(reads) == 1
    assert not own_cache.exists()
    with (path / "lock").open():
        assert only(follow())["provisional"]


def test_a_run_that_goes_on_is_read_again_and_its_death_is_seen(make, tmp_path, reads):
    path = make("er", 0, two_tasks()[:3], status="killed")
    follow = Follower([tmp_path / "runs"])
    assert follow()["scenarios"][0]["runs"][0]["state"] == "killed"
    with Ledger.resume(path) as book:
        states = [follow()["scenarios"][0]["runs"][0]["state"]]
        book.append(two_tasks()[3:5])
        states.append(follow()["scenarios"][0]["runs"][0]["state"])
        ended = follow()["scenarios"][0]["runs"][0]["ended"]
        reads.clear()
        book.close()
    states.append(follow()["scenarios"][0]["runs"][0]["state"])
    assert (states, ended) == (["running", "running", "killed"], 1)
    assert reads == []  # the lock alone says that it died


def test_curves_are_drawn_anew_only_for_rows_that_changed(make, tmp_path, monkeypatch):
    drawn, of_row = [], curves.of_row
    monkeypatch.setattr(curves, "of_row", lambda *arguments: (drawn.append(1), of_row(*arguments))[1])
    make("er", 0)
    make("none", 0)
    follow = Follower([tmp_path / "runs"])
    first = follow()
    assert same(follow(), first)
    assert len(drawn) == 2
    make("none", 1, two_tasks(kept=0.1))
    assert follow()["scenarios"][0]["rows"][1]["forgetting"]["n"] == [2]
    assert len(drawn) == 3


@pytest.mark.parametrize("change", ["records", "manifest", "code"])
def test_what_is_stale_is_not_used(make, tmp_path, reads, monkeypatch, change):
    path = make("er", 0)
    collect([tmp_path / "runs"])
    if change == "code":
        monkeypatch.setattr(stores, "READERS", stores.READERS[1:])
    else:
        file = path / ("records.jsonl" if change == "records" else "manifest.json")
        os.utime(file, ns=(0, 0))
    collect([tmp_path / "runs"])
    assert len(reads) == 2


def test_another_size_is_another_run_even_at_the_same_time(make, tmp_path, reads):
    path = make("er", 0, two_tasks()[:5], status="failed")
    then = (path / "records.jsonl").stat().st_mtime_ns
    collect([tmp_path / "runs"])
    with Ledger.resume(path) as book:
        book.append(two_tasks()[5:])
    os.utime(path / "records.jsonl", ns=(then, then))
    assert only(collect([tmp_path / "runs"]))["n"] == 1


def test_a_damaged_file_is_read_past(make, tmp_path, own_cache):
    path, generator = make("er", 0), random.Random(0)
    page = collect([path])
    (file,) = own_cache.iterdir()
    kept, whole = file.read_bytes(), Store().get(path, stores.stamp(path))
    damaged = [b"", b"{}", kept[: len(kept) // 2], kept[:-1], kept[:-30]]
    for _ in range(300):
        data = bytearray(kept)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        run = Store().get(path, stores.stamp(path))
        refused += run is None
        assert run is None or (run.entry == whole.entry and equal(run.trace, whole.trace))
    assert refused > 200
    file.write_bytes(kept[:-1])
    assert same(collect([path]), page)


@pytest.mark.parametrize("blocked", ["cache", "cache/continual/dashboard"])
def test_a_folder_that_cannot_be_written_costs_only_time(make, tmp_path, reads, blocked):
    make("er", 0)
    (tmp_path / blocked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / blocked).write_text("a file, not a folder")
    first = collect([tmp_path / "runs"])
    assert same(collect([tmp_path / "runs"]), first)
    assert len(reads) == 2


def test_old_files_are_thrown_away_and_others_left(tmp_path, own_cache):
    own_cache.mkdir(parents=True)
    old, new, foreign = (own_cache / name for name in ("a.npz", "b.npz", "c.txt"))
    for file in (old, new, foreign):
        file.touch()
    for file in (old, foreign):
        os.utime(file, (0, 0))
    assert Store().folder == own_cache
    assert sorted(own_cache.iterdir()) == [new, foreign]
    assert Store(tmp_path).folder == tmp_path


def test_a_kept_trace_is_the_trace(make, tmp_path):
    records = [*two_tasks(), *at(20, 1, "end", 0.5, metric="class_accuracy"), *arrivals((20, 9, 0.5, 0.4, 0.3))]
    for number, facts in enumerate((records, [])):
        path = make(f"m{number}", 0, facts)
        fresh, kept = (Cache(Store(tmp_path / "kept")).read(path) for _ in range(2))
        assert fresh is not kept
        assert equal(fresh.trace, kept.trace)
        assert (fresh.entry, fresh.seconds, fresh.difference) == (kept.entry, kept.seconds, kept.difference)
