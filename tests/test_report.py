"""Comparisons and single runs as text, JSON and CSV, from ledgers whose numbers were worked out by hand."""

import csv
import io
import json

import numpy as np
import pytest
import yaml

from continual.errors import UserError
from continual.ledger import Ledger, read
from continual.metrics import Matrix
from continual.report import export, listing, show, table, text
from continual.report.compare import compare, pick_baseline
from continual.report.notes import notes
from continual.statistics import Estimate, interval
from continual.types import Record

WRITTEN = {
    "scenario": {"n_tasks": 2, "source": {"_target_": "scenarios.sources.digits"}, "seed": "${seed}"},
    "operator": {},
    "strategy": {},
    "train": {"epochs": 1},
    "probe": {"every": None},
    "track": {"mode": "offline"},
    "device": "cpu",
    "output": "runs",
    "name": None,
}


def facts(kept, extra=()):
    """Two tasks: R = [[.5, .5], [1, .5], [kept, 1]], so average accuracy is (kept + 1) / 2 and forgetting 1 - kept."""
    rows = [(0, None, "start", (0.5, 0.5)), (10, 0, "end", (1.0, 0.5)), (20, 1, "end", (kept, 1.0))]
    for seen, task, at, values in rows:
        yield from (Record(seen, seen, task, at, probe, "accuracy", value) for probe, value in enumerate(values))
    yield Record(20, 20, 1, "final", None, "peak_bytes", 1500.0)
    yield Record(20, 20, 1, "final", None, "seconds", 0.5)
    yield from extra


@pytest.fixture
def make(tmp_path):
    """Writes a run: ``make("er", seed=1, kept=0.6)``; further words change its config or its manifest."""

    def write(name, seed=0, kept=0.5, status="finished", at="runs", config=None, extra=(), records=None, **manifest):
        written = WRITTEN | (config or {})
        path = tmp_path / at / "split" / name / f"seed{seed}-{len(list(tmp_path.rglob('seed*')))}"
        about = {
            "created": "2030-01-01T00:00:00+00:00",
            "config": yaml.safe_dump(written),
            "seed": seed,
            "threads": 1,
            "device": "cpu",
            "data_digest": f"data{seed}",
            "commit": "c0ffee0000",
            "dirty": False,
            "versions": {"continual": "0.1.0", "torch": "2.10"},
            "scenario": "split-digits",
            "name": name,
            "chosen": {"scenario": "split", "strategy": "none"},
            "spec": {"in_shape": [8], "n_classes": 4},
        }
        ledger = Ledger.create(path, about | manifest)
        ledger.append(facts(kept, extra) if records is None else records)
        if status in ("finished", "failed"):
            ledger.end(status, "because" if status == "failed" else None)
        ledger.close()
        return path

    return write


def rendered(paths, baseline=None, metrics=()):
    blocks = compare(paths)
    rows = pick_baseline(blocks, baseline) if baseline else [None] * len(blocks)
    return table.render(blocks, rows, metrics)


# Comparing


def test_classes_of_one_name_are_told_by_their_modules(make, tmp_path):
    for module in ("mine", "yours"):
        make("er", config={"model": {"_target_": f"{module}.Net"}})
    (block,) = compare([tmp_path])
    assert [row.label for row in block.rows] == ["er (model=mine.Net)", "er (model=yours.Net)"]
    make("er", config={"model": {"_target_": "mine.Other"}})
    assert len({row.label for row in compare([tmp_path])[0].rows}) == 3


def test_what_comes_with_a_class_is_not_told_beside_it(make, tmp_path):
    make("none", config={"model": {"_target_": "m.MLP", "hidden": [9]}, "lr": 0.1})
    for length in (5, 6):
        prompts = {"_target_": "m.L2P", "length": length, "backbone": {"_target_": "m.vit", "depth": 4}}
        make("none", config={"model": prompts, "lr": 0.2})
    assert {row.label for row in compare([tmp_path])[0].rows} == {
        "none (lr=0.1, model=MLP)",
        "none (lr=0.2, model=L2P, model.length=5)",
        "none (lr=0.2, model=L2P, model.length=6)",
    }


def test_a_table_by_hand(make, tmp_path):
    for seed, none, er in ((0, 0.1, 0.6), (1, 0.3, 0.8)):
        make("none", seed, none, created="2030-01-01")
        make("er", seed, er, created="2030-01-02")
    # none: average accuracies .55 and .65, so .6 ± 12.706 * .0707 / sqrt(2) = .635; the difference is .25 in each pair
    lines = rendered([tmp_path], "none").splitlines()
    assert [line.split() for line in lines if line.startswith(("none", "er"))] == [
        ["none", "60.0±63.5", "80.0±127.1", "-80.0±127.1", "0.0", "80.0±31.8", "1.50", "kB", "0.500", "2"],
        ["er", "85.0±63.5", "30.0±127.1", "-30.0±127.1", "0.0", "92.5±31.8", "1.50", "kB", "0.500", "2"],
        ["er", "+25.0", "-50.0", "+50.0", "0.0", "+12.5", "0", "B", "0", "2"],
    ]
    assert lines[0] == "split-digits"
    assert "± half of the 95% Student t interval of the mean over n seeds" in lines
    assert not any(line.startswith("!") for line in lines)


def test_the_standard_table_fits_a_hundred_columns(make, tmp_path):
    extra = [Record(20, 20, 1, "final", None, "forward_equivalents_per_row", 18.1)]
    for seed, kept in enumerate((0.1, 0.15, 0.2, 0.11, 0.14)):
        make("er_ace", seed, kept, extra=extra)
        make("none", seed, kept / 2, extra=extra)
    assert max(map(len, rendered([tmp_path], "none").splitlines())) <= 100


def test_one_seed_has_no_interval_and_says_so(make, tmp_path):
    make("er", kept=0.5)
    shown = rendered([tmp_path])
    assert "75.0 " in shown
    assert "±" not in shown.replace("± half", "")
    assert "no interval where n = 1" in shown


def test_from_twenty_seeds_the_ends_of_the_bootstrap_stand_below(make, tmp_path):
    values = [0.02 * seed for seed in range(20)]
    for seed, kept in enumerate(values):
        make("er", seed, kept)
    bar = interval([(kept + 1) / 2 for kept in values])
    assert "BCa" in bar.method
    lines = rendered([tmp_path]).splitlines()
    assert f"{100 * bar.mean:.1f}" in lines[4]
    assert f"-{100 * (bar.mean - bar.low):.1f}+{100 * (bar.high - bar.mean):.1f}" in lines[5].split()
    assert "below a mean how far its 95% BCa bootstrap interval reaches" in lines


def test_what_was_not_measured_is_absent(make, tmp_path):
    make("er", 0)
    make("none", 0, records=[Record(0, 0, None, "start", 0, "accuracy", 0.5)])
    line = next(line for line in rendered([tmp_path]).splitlines() if line.startswith("none"))
    assert line.split() == ["none", *["–"] * 7, "1"]
    told = json.loads(export.as_json(compare([tmp_path]), [None]))
    assert {row["name"]: set(row["metrics"]) for row in told["scenarios"][0]["rows"]}["none"] == set()


def test_a_metric_that_some_seeds_lack_names_its_own_n(make, tmp_path):
    make("er", 0, 0.5, extra=[Record(20, 20, 1, "final", None, "weight_norm", 2.0)])
    make("er", 1, 0.5)
    shown = rendered([tmp_path], metrics=["weight_norm", "forgetting"])
    assert shown.splitlines()[4].split() == ["er", "2", "[1]", "50.0", "2"]
    assert "[k]: k seeds only" in shown


def test_prequential_runs_show_what_labels_alone_would_have_done(make, tmp_path):
    names = ("prequential_accuracy", "last_label_accuracy", "blind_accuracy")
    arrivals = [Record(50, 5, 0, "arrival", None, "prequential_rows", 50)]
    arrivals += [
        Record(50, 5, 0, "arrival", None, name, value) for name, value in zip(names, (0.8, 0.9, 0.7), strict=True)
    ]
    make("sgd", records=arrivals)
    lines = rendered([tmp_path]).splitlines()
    assert lines[1].split() == ["prequential", "last", "labels"]
    assert lines[4].split() == ["sgd", "80.0", "90.0", "70.0", "1"]


def test_runs_that_did_not_finish_are_marked_and_not_counted(make, tmp_path):
    make("er", 0, 0.5)
    make("er", 1, 0.7, status="failed")
    make("none", 0, 0.1, status="killed")
    shown = rendered([tmp_path])
    rows = {line.split()[0]: line.split() for line in shown.splitlines()[4:6]}
    assert rows["er"][1] == "75.0"
    assert rows["er"][-1] == "1*"
    assert rows["none"] == ["none", *["–"] * 7, "0*"]
    assert "! not counted, failed:" in shown
    assert "(because)" in shown
    assert "! not counted, killed:" in shown


def test_of_two_runs_with_one_seed_the_newest_counts(make, tmp_path):
    old = make("er", 0, 0.1, at="a", created="2030-01-01")
    make("er", 0, 0.5, at="b", created="2030-01-02")
    shown = rendered([tmp_path])
    assert "75.0" in shown
    assert f"! not counted, older run of the same seed: {old}" in shown


def test_configs_of_one_name_are_rows_of_their_own_and_show_what_differs(make, tmp_path):
    make("er", 0, config={"train": {"epochs": 1}})
    make("er", 0, config={"train": {"epochs": 5}, "device": "cuda", "output": "x", "track": {}})
    (block,) = compare([tmp_path])
    assert [row.label for row in block.rows] == ["er (train.epochs=1)", "er (train.epochs=5)"]
    with pytest.raises(UserError, match=r"names 2 rows; write one of 'er \(train.epochs=1\)'"):
        pick_baseline([block], "er")
    assert pick_baseline([block], "er (train.epochs=5)") == [block.rows[1]]


def test_another_stream_is_a_table_of_its_own(make, tmp_path):
    make("er", 0)
    make("er", 0, config={"scenario": WRITTEN["scenario"] | {"n_tasks": 5}})
    make("none", 0, config={"scenario": WRITTEN["scenario"] | {"n_tasks": 5}})
    blocks = compare([tmp_path])
    assert [block.label for block in blocks] == [
        "split-digits (scenario.n_tasks=2)",
        "split-digits (scenario.n_tasks=5)",
    ]
    assert pick_baseline(blocks, "none") == [None, blocks[1].find("none")[0]]
    assert table.render(blocks, pick_baseline(blocks, "none")).count("difference to none") == 1


def test_what_keeps_rows_from_being_comparable_is_said(make, tmp_path):
    make("none", 0, created="2029")
    assert notes(compare([tmp_path])[0]) == []
    make("er", 0, data_digest="other", commit="beef000", device="cuda:0", config={"probe": {"every": 50}})
    make("er", 1, spec={"in_shape": [8], "n_classes": 10}, config={"probe": {"every": 50}})
    told = notes(compare([tmp_path])[0])
    shapes = "different shapes of rows and numbers of classes: [[8], 4] (er, none); [[8], 10] (er)"
    assert told == [
        f"NOT COMPARABLE: {shapes}",
        "NOT COMPARABLE on seeds 0: different data: data0 (none); other (er)",
        "different probe.every: null (none); 50 (er): anytime metrics are not comparable",
        "different commits: c0ffee0 (er, none); beef000 (er)",
        "different devices: cpu (er, none); cuda:0 (er)",
    ]
    (block,) = compare([tmp_path])
    er, none = block.find("er")[0], block.find("none")[0]
    assert er.difference(none, "average_accuracy") is None  # no seed on which both saw the same data


def test_differences_use_the_seeds_of_both(make, tmp_path):
    for seed, kept in enumerate((0.1, 0.2, 0.3)):
        make("none", seed, kept)
    for seed, kept in enumerate((0.5, 0.4)):
        make("er", seed, kept)
    (block,) = compare([tmp_path])
    difference = block.find("er")[0].difference(block.find("none")[0], "average_accuracy")
    assert difference.n == 2
    assert difference.mean == pytest.approx((0.2 + 0.1) / 2)


def test_json_holds_everything_unrounded(make, tmp_path):
    for seed, kept in enumerate((0.1, 1 / 3)):
        make("none", seed, kept)
        make("er", seed, kept + 0.1)
    blocks = compare([tmp_path])
    told = json.loads(export.as_json(blocks, pick_baseline(blocks, "none")), parse_constant=pytest.fail)
    (scenario,) = told["scenarios"]
    assert (told["format"], scenario["scenario"], scenario["baseline"]) == (1, "split-digits", "none")
    er = next(row for row in scenario["rows"] if row["name"] == "er")
    accuracy = er["metrics"]["average_accuracy"]
    assert accuracy["values"] == {"0": pytest.approx(0.6), "1": pytest.approx((1 / 3 + 1.1) / 2)}
    assert accuracy["n"] == 2
    assert accuracy["method"] == "95% Student t"
    assert accuracy["difference"]["mean"] == pytest.approx(0.05)
    assert set(er["runs"]) == {"0", "1"}


def test_csv_has_a_line_per_row_and_metric(make, tmp_path):
    make("none", 0, 0.1)
    make("er", 0, 0.5)
    blocks = compare([tmp_path])
    lines = list(csv.DictReader(io.StringIO(export.as_csv(blocks, pick_baseline(blocks, "none")))))
    er = next(line for line in lines if (line["name"], line["metric"]) == ("er", "average_accuracy"))
    assert (float(er["mean"]), er["low"], er["n"]) == (0.75, "", "1")
    assert float(er["difference_mean"]) == pytest.approx(0.2)
    assert "difference_mean" not in export.as_csv(blocks, [None])


def test_any_metric_may_be_a_column(make, tmp_path):
    make("er", 0, 0.5)
    shown = rendered([tmp_path], metrics=["seconds", "average_accuracy"]).splitlines()
    assert shown[4].split() == ["er", "0.500", "75.0", "1"]
    with pytest.raises(
        UserError, match=r"no finished run has measured 'avarage_accuracy'; did you mean 'average_accuracy'\?"
    ):
        rendered([tmp_path], metrics=["avarage_accuracy"])


def test_a_baseline_that_is_not_there_names_the_nearest(make, tmp_path):
    make("er_ace", 0)
    with pytest.raises(UserError, match=r"--baseline er_ac is not among the runs; did you mean 'er_ace'\?"):
        pick_baseline(compare([tmp_path]), "er_ac")


# Numbers and tables


@pytest.mark.parametrize(
    ("value", "like", "shown"),
    [
        (0.0, None, "0"),
        (3.0, None, "3"),
        (0.012345, None, "0.0123"),
        (1.2345, None, "1.23"),
        (-123.4, None, "-123"),
        (1234567.0, None, "1234567"),
        (float("inf"), None, "inf"),
        (0.0741, 0.511, "0.074"),
        (0.5, 1234.0, "0"),
        (2.0, 18.15, "2.0"),
    ],
)
def test_figures(value, like, shown):
    assert text.figures(value, like) == shown


@pytest.mark.parametrize(
    ("metric", "estimate", "shown"),
    [
        ("forgetting", None, "–"),
        ("forgetting", Estimate(0.5, 0.4, 0.6, 0.1, 3, "95% Student t"), "50.0±10.0"),
        ("forgetting", Estimate(0.5, 0.5, 0.5, 0.0, 3, "95%, all values equal"), "50.0"),
        ("forgetting", Estimate(0.5, None, None, None, 1, "no interval: n = 1"), "50.0"),
        ("forgetting", Estimate(0.5, 0.4, 0.7, 0.1, 20, "95% BCa bootstrap"), "50.0\n-10.0+20.0"),
        ("peak_bytes", Estimate(70500.0, 70400.0, 70600.0, 1.0, 3, "95% Student t"), "70.5±0.1 kB"),
        ("peak_bytes", Estimate(70500.0, 70499.0, 70501.0, 1.0, 3, "95% Student t"), "70.5 kB"),
        ("peak_bytes", Estimate(2.5e9, None, None, None, 1, ""), "2.50 GB"),
        ("samples_to_threshold", Estimate(float("inf"), None, None, None, 3, ""), "inf"),
    ],
)
def test_estimates(metric, estimate, shown):
    assert text.estimate(metric, estimate) == shown


def test_a_difference_carries_its_sign():
    assert text.estimate("forgetting", Estimate(0.1, None, None, None, 1, ""), signed=True) == "+10.0"
    assert text.estimate("forgetting", Estimate(-0.1, None, None, None, 1, ""), signed=True) == "-10.0"


def test_columns_are_aligned():
    assert (
        text.table(["", "a\nb"], [["x", "1"], ["long", "23\n4"]])
        == "       a\n       b\n────────\nx      1\nlong  23\n       4"
    )


# One run


def test_the_staircase_of_an_accuracy_matrix():
    values = np.array([[0.5, 0.25], [1.0, 0.125], [0.6, np.nan]])
    assert show.matrix(Matrix(values, (0, 1))).splitlines()[1:] == [
        "         task 0   task 1",
        "─" * 25,
        "before    (50.0)   (25.0)",
        "after 0   100.0    (12.5)",
        "after 1    60.0        –",
    ]


def test_a_matrix_without_a_measurement_is_not_shown():
    assert show.matrix(Matrix(np.full((3, 2), np.nan), (0, 1))) == ""
    assert show.matrix(Matrix(np.zeros((1, 0)), ())) == ""


def test_a_wide_matrix_leaves_out_the_middle():
    values = np.arange(51 * 50, dtype=float).reshape(51, 50) / 2550
    lines = show.matrix(Matrix(values, tuple(range(50)))).splitlines()
    assert max(map(len, lines)) <= 100
    assert "task 0" in lines[1]
    assert "task 49" in lines[1]
    assert "…" in lines[1]


def test_one_run(make, tmp_path):
    from continual.config import compose

    made = compose("strategy=[er,ewc]", "memory@strategy.er.memory=class_balanced", "train.epochs=2", "track=none")
    path = make("er+ewc", 3, 0.5, config=made.unresolved | {"seed": 3}, chosen=made.chosen, dirty=True)
    shown = show.render(tmp_path)
    lines = [line.split(maxsplit=1) for line in shown.splitlines() if line]
    told = dict(line for line in lines if len(line) == 2)
    assert told["run"] == "er+ewc on split-digits, seed 3"
    assert told["status"].startswith("finished after")
    assert told["path"] == str(path)
    assert set(told["config"].split()) == {
        "strategy=[er,ewc]",
        "memory@strategy.er.memory=class_balanced",
        "train.epochs=2",
        "track=none",
        "seed=3",
    }
    assert told["with"] == "continual 0.1.0, torch 2.10, commit c0ffee0 with changes"
    assert any(line.split() == ["average", "accuracy", "75.0", "%"] for line in shown.splitlines())
    assert "after 1    50.0    100.0" in shown


def test_a_run_whose_choices_are_not_here_still_shows_its_values(make, tmp_path):
    make("mine", config={"strategy": {"mine": {"_target_": "my.Mine"}}}, chosen={"strategy": "mine"})
    assert "strategy.mine._target_=my.Mine" in show.render(tmp_path)


def test_a_folder_of_several_runs_is_compared_not_shown(make, tmp_path):
    make("er", 0)
    make("er", 1)
    with pytest.raises(UserError, match=r"holds 2 runs; name one, e.g. .*, or use: continual compare"):
        show.render(tmp_path)


def test_a_run_in_brief(make):
    path = make("er", 0, 0.5)
    from continual.metrics import accuracy_matrix, summary

    records = read(path).records
    shown = show.brief(path, summary(records), accuracy_matrix(records))
    assert "average accuracy 75.0 %, forgetting 50.0 %, backward transfer -50.0 %" in shown
    assert shown.endswith(str(path))


# What there is


def test_every_choice_has_a_line_that_says_what_it_is():
    for line in listing.render().splitlines():
        if line.startswith("  "):
            assert len(line.split()) > 1, f"{line.strip()} has no comment on its first line"


def test_one_group():
    lines = listing.render("memory").splitlines()
    assert lines[0].startswith("memory  (of one strategy: ")
    assert [line.split()[0] for line in lines[1:]] == ["class_balanced", "fifo", "herding", "reservoir", "ring"]
