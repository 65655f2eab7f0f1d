import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continual import metrics, timeline
from continual.errors import UserError
from continual.types import Record

#            task 0, 1, 2
START = [0.2, 0.3, 0.1]
ENDS = [[0.9, 0.4, 0.1], [0.7, 0.8, 0.3], [0.5, 0.6, 1.0]]


def facts(at, rows, step, task, values, metric="accuracy"):
    """One record per probe; None in ``values``: not measured."""
    numbered = enumerate(values)
    return [Record(rows, step, task, at, probe, metric, value) for probe, value in numbered if value is not None]


def run_of(ends, trained=None, start=START, rows=100, steps=10):
    """Records of a run that was evaluated at the start and after each task of ``rows`` rows in ``steps`` updates."""
    records = facts("start", 0, 0, None, start) if start else []
    for i, values in enumerate(ends, start=1):
        records += facts("end", i * rows, i * steps, (trained or range(len(ends)))[i - 1], values)
    return records


def matrix_of(*args, **kwargs):
    return metrics.accuracy_matrix(run_of(*args, **kwargs))


def within(*moments):
    """Records of (at, rows, task, values); one update per 10 rows."""
    return [r for at, rows, task, values in moments for r in facts(at, rows, rows // 10, task, values)]


# Two tasks of 40 rows, evaluated every 10 rows. Columns: accuracy on task 0, on task 1.
CURVES = within(
    ("start", 0, None, [0.1, 0.2]),
    ("step", 10, 0, [0.3, 0.2]),
    ("step", 20, 0, [0.6, 0.2]),
    ("step", 30, 0, [0.8, 0.2]),
    ("end", 40, 0, [0.9, 0.3]),
    ("step", 50, 1, [0.4, 0.5]),
    ("step", 60, 1, [0.5, 0.6]),
    ("step", 70, 1, [0.6, 0.7]),
    ("end", 80, 1, [0.7, 0.9]),
)


def read(records):
    return timeline.read_timeline(records)


# ---------------------------------------------------------------- the matrix


def test_matrix_has_the_start_and_one_row_per_end():
    matrix = matrix_of(ENDS)
    assert matrix.values.tolist() == [START, *ENDS]
    assert matrix.trained == (0, 1, 2)


def test_matrix_does_not_depend_on_the_order_of_records():
    assert metrics.accuracy_matrix(run_of(ENDS)[::-1]).values.tolist() == [START, *ENDS]


def test_matrix_without_a_start_has_an_unmeasured_row():
    matrix = matrix_of(ENDS, start=None)
    assert np.isnan(matrix.values[0]).all()
    assert matrix.values[1:].tolist() == ENDS


def test_the_end_of_a_task_wins_over_its_last_step():
    records = [*facts("end", 10, 1, 0, [0.7]), *facts("step", 10, 1, 1, [0.6])]
    matrix = metrics.accuracy_matrix(records)
    assert matrix.trained == (0,)
    assert matrix.values[1, 0] == 0.7


def test_arrivals_key_on_the_origin_task():
    # Each of 3 tasks arrives in 4 pieces, and somebody recorded an end after each piece.
    records = facts("start", 0, 0, None, START)
    for i, (before, after) in enumerate(pairwise([START, *ENDS])):
        for piece in range(1, 5):
            between = [b + (a - b) * piece / 4 if piece < 4 else a for b, a in zip(before, after, strict=True)]
            records += facts("end", 40 * i + 10 * piece, 4 * i + piece, i, between)
    matrix = metrics.accuracy_matrix(records)
    assert matrix.trained == (0, 1, 2)
    assert matrix.values.tolist() == [START, *ENDS]
    assert metrics.forgetting(matrix) == pytest.approx(0.3)  # keyed by arrival, 11 of 12 "tasks" would dilute it


# ---------------------------------------------------------------- metrics of the matrix


def test_averages():
    matrix = matrix_of(ENDS)
    assert metrics.average_accuracy(matrix) == pytest.approx((0.5 + 0.6 + 1.0) / 3)  # 0.7
    # sizes 10, 30, 60: (10 * .5 + 30 * .6 + 60 * 1) / 100 = 83 / 100
    assert metrics.stream_accuracy(matrix, {0: 10, 1: 30, 2: 60}) == pytest.approx(0.83)
    # means of what was seen: .9, (.7 + .8) / 2 = .75, .7; their mean 2.35 / 3
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx(2.35 / 3)


def test_stream_accuracy_needs_every_size():
    assert math.isnan(metrics.stream_accuracy(matrix_of(ENDS), {0: 10, 1: 30}))


def test_forgetting_is_from_the_best_not_the_first():
    matrix = matrix_of([[0.7, 0.4, 0.1], [0.9, 0.8, 0.3], [0.5, 0.6, 1.0]])
    # task 0: max(.7, .9) - .5 = .4; task 1: max(.4, .8) - .6 = .2
    assert metrics.forgetting_per_task(matrix) == pytest.approx({0: 0.4, 1: 0.2})
    assert metrics.forgetting(matrix) == pytest.approx(0.3)


def test_forgetting_is_negative_if_the_last_end_is_the_best():
    # max(.5) - .8, the last end itself takes no part
    assert metrics.forgetting(matrix_of([[0.5, 0.1], [0.8, 0.9]], start=[0.0, 0.0])) == pytest.approx(-0.3)


def test_forgetting_ignores_the_random_initialisation():
    assert metrics.forgetting(matrix_of([[0.5, 0.1], [0.4, 0.9]], start=[0.95, 0.0])) == pytest.approx(0.1)


def test_transfer():
    matrix = matrix_of(ENDS)
    # ((.5 - .9) + (.6 - .8)) / 2 = -.3
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.3)
    # ((.4 - .3) + (.3 - .1)) / 2 = .15
    assert metrics.forward_transfer(matrix) == pytest.approx(0.15)


def test_intransigence():
    # ((.95 - .9) + (.9 - .8) + (.97 - 1)) / 3 = .12 / 3
    assert metrics.intransigence(matrix_of(ENDS), {0: 0.95, 1: 0.9, 2: 0.97}) == pytest.approx(0.04)
    assert math.isnan(metrics.intransigence(matrix_of(ENDS), {0: 0.95, 1: 0.9}))


def test_repetition():
    ends = [[0.9, 0.4], [0.5, 0.8], [1.0, 0.6], [0.7, 0.9]]
    matrix = matrix_of(ends, trained=[1, 0, 1, 0], start=[0.1, 0.2])
    assert matrix.values.shape == (5, 2)
    assert matrix.learned == {1: 1, 0: 2}
    # Task 0 is the newest, so task 1 is the old one: max(.4, .8, .6) - .9 = -.1
    assert metrics.forgetting_per_task(matrix) == pytest.approx({1: -0.1})
    assert metrics.backward_transfer(matrix) == pytest.approx(0.9 - 0.4)  # R[S, 1] - R[first end of 1, 1]
    assert metrics.forward_transfer(matrix) == pytest.approx(0.9 - 0.1)  # task 0 just before its first training
    # seen: {1}: .4, {1, 0}: .65, .8, .8
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx((0.4 + 0.65 + 0.8 + 0.8) / 4)


def test_a_probe_without_labels_is_left_out():
    with_gap = [[row[0], math.nan, *row[1:]] for row in ENDS]
    trained, start = [0, 2, 3], [0.2, math.nan, 0.3, 0.1]
    matrix = matrix_of(with_gap, trained=trained, start=start)
    plain = matrix_of(ENDS)
    assert metrics.average_accuracy(matrix) == metrics.average_accuracy(plain)
    assert metrics.forgetting(matrix) == metrics.forgetting(plain)
    # also if it is trained, and even as the newest task
    matrix = matrix_of([*ENDS, ENDS[-1]], trained=[0, 1, 2, 3])
    assert metrics.average_accuracy(matrix) == metrics.average_accuracy(plain)
    assert metrics.forgetting_per_task(matrix) == pytest.approx({0: 0.4, 1: 0.2, 2: 0.0})


def test_a_trained_task_without_labels_leaves_every_metric_of_the_others():
    labelled = [r for r in CURVES if r.probe == 0]
    third = within(("step", 90, 2, [0.5, None, 0.4]), ("end", 120, 2, [0.6, None, 0.8]))
    summary = metrics.summary(labelled + third, window=40, batches=1, threshold=0.5)
    # task 1 has no labels. Means of what was seen: .3 .6 .8 .9 .4 .5 .6 .7, then (.5 + .4) / 2, (.6 + .8) / 2
    assert summary["anytime_accuracy"] == pytest.approx((4.8 + 0.45 + 0.7) / 10)
    assert summary["average_incremental_accuracy"] == pytest.approx((0.9 + 0.7 + 0.7) / 3)
    assert summary["windowed_forgetting"] == pytest.approx((0.5 - 0.4) / 2)  # .9 -> .4; .4 -> .8 only
    assert summary["samples_to_threshold"] == pytest.approx((20 + 40) / 2)
    assert summary["stability_gap"] == pytest.approx((0.5 + 0.2) / 2)


def test_one_missing_cell_is_not_averaged_away():
    matrix = matrix_of([ENDS[0], ENDS[1], [0.5, None, 1.0]])
    assert math.isnan(metrics.average_accuracy(matrix))
    assert math.isnan(metrics.forgetting(matrix))
    assert metrics.forward_transfer(matrix) == pytest.approx(0.15)


def test_forgetting_needs_the_accuracy_when_it_was_learned():
    assert math.isnan(metrics.forgetting(matrix_of([ENDS[0], [0.7, None, 0.3], ENDS[2]])))


def test_an_evaluator_of_seen_tasks_only_supports_all_but_forward_transfer():
    triangle = [[0.9, None, None], [0.7, 0.8, None], [0.5, 0.6, 1.0]]
    matrix = matrix_of(triangle, start=None)
    assert metrics.forgetting(matrix) == pytest.approx(0.3)
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.3)
    assert math.isnan(metrics.forward_transfer(matrix))


def test_cumulative_forgetting_uses_its_own_accuracy():
    seen = facts("end", 100, 10, 0, [0.9], "accuracy_seen") + facts("end", 200, 20, 1, [0.8, 0.9], "accuracy_seen")
    summary = metrics.summary([*run_of([[0.9, 0.1], [0.2, 0.9]], start=None), *seen])
    assert summary["cumulative_forgetting"] == pytest.approx(0.1)  # .9 - .8
    assert summary["forgetting"] == pytest.approx(0.7)  # .9 - .2


def test_negative_flips():
    flips = [*facts("end", 200, 20, 1, [0.3, 0.9], "negative_flips")]
    flips += facts("end", 300, 30, 2, [0.2, 0.4, 0.9], "negative_flips")
    records = run_of(ENDS) + flips
    summary = metrics.summary(records)
    # end 2 on task 0: .3; end 3 on tasks 0, 1: (.2 + .4) / 2 = .3
    assert summary["negative_flips"] == pytest.approx(0.3)
    # end 2: .3 / (.9 * (1 - .7)) = 10/9; end 3: right before (.7 + .8) / 2 = .75, wrong now (.5 + .4) / 2 = .45,
    # .3 / (.75 * .45) = 8/9; mean 1
    assert summary["relative_negative_flips"] == pytest.approx(1.0)


def test_relative_flips_of_a_flawless_model_are_undefined():
    flips = facts("end", 200, 20, 1, [0.0, 0.0], "negative_flips")
    summary = metrics.summary(run_of([[0.9, 0.1], [1.0, 1.0]]) + flips)
    assert summary["negative_flips"] == 0.0
    assert "relative_negative_flips" not in summary


# ---------------------------------------------------------------- metrics over time


def test_anytime_accuracy():
    # task 0 alone: .3 .6 .8 .9, then both: .45 .55 .65 .8; sum 5.05
    assert timeline.anytime_accuracy(read(CURVES)) == pytest.approx(5.05 / 8)


def test_learning_curve_area():
    # b = 2: task 0 .1 .3 .6 -> 1/3; task 1 from its own beginning .3 .5 .6 -> 1.4/3; mean 2.4/6
    assert timeline.learning_curve_area(read(CURVES), batches=2) == pytest.approx(0.4)
    # b = 0 is the zero-shot accuracy: (.1 + .3) / 2
    assert timeline.learning_curve_area(read(CURVES), batches=0) == pytest.approx(0.2)
    assert math.isnan(timeline.learning_curve_area(read(CURVES), batches=5))  # a task has 4 updates


def test_min_and_worst_case_accuracy():
    # task 0 since its end: .4 .5 .6 .7, minimum .4
    assert timeline.min_accuracy(read(CURVES)) == pytest.approx(0.4)
    # (1/2) .9 + (1 - 1/2) .4
    assert timeline.worst_case_accuracy(read(CURVES)) == pytest.approx(0.65)


def test_min_accuracy_stops_at_the_last_end():
    assert timeline.min_accuracy(read(CURVES + within(("step", 90, 2, [0.0, 0.0])))) == pytest.approx(0.4)


def test_worst_case_accuracy_weighs_by_the_number_of_tasks():
    # minima since learned: task 0 min(.7, .5) = .5, task 1 .6; (1/3) 1.0 + (2/3) .55
    assert timeline.worst_case_accuracy(read(run_of(ENDS))) == pytest.approx(1 / 3 + 2 / 3 * 0.55)


def test_stability_gap():
    assert timeline.stability_gap(read(CURVES), window=40) == pytest.approx(0.5)  # .9 - .4
    third = within(("step", 90, 2, [0.5, 0.7]), ("step", 100, 2, [0.1, 0.1]), ("end", 120, 2, [0.6, 0.8]))
    # second switch, mean of old tasks .8: within 10 rows .6, within 20 rows .1; (.5 + .2) / 2 and (.5 + .7) / 2
    assert timeline.stability_gap(read(CURVES + third), window=10) == pytest.approx(0.35)
    assert timeline.stability_gap(read(CURVES + third), window=20) == pytest.approx(0.6)


def test_stability_gap_does_not_count_the_task_that_returns():
    again = within(("step", 90, 0, [0.0, 0.8]), ("end", 120, 0, [0.9, 0.9]))
    # second switch: task 0 returns, only task 1 is old: .9 - .8
    assert timeline.stability_gap(read(CURVES + again), window=40) == pytest.approx((0.5 + 0.1) / 2)


def test_stability_gap_looks_at_no_task_of_the_future():
    records = within(
        ("end", 10, 0, [0.9, 0.1, 0.9]),
        ("step", 15, 1, [0.5, 0.5, 0.0]),
        ("end", 20, 1, [0.7, 0.7, 0.0]),
        ("step", 25, 2, [0.6, 0.6, 0.5]),
        ("end", 30, 2, [0.7, 0.7, 0.9]),
    )
    assert timeline.stability_gap(read(records), window=10) == pytest.approx((0.4 + 0.1) / 2)


def test_stability_gap_needs_an_evaluation_within_the_task():
    assert math.isnan(timeline.stability_gap(read(run_of(ENDS)), window=1000))
    assert math.isnan(timeline.stability_gap(read(CURVES), window=9))


def test_windowed_plasticity_sees_the_valley_before_the_peak():
    moments = np.arange(3)
    curve = np.array([[0.5], [0.1], [0.9]])
    assert timeline.largest_drop(moments, -curve, window=2) == pytest.approx([0.8])  # .9 - .1
    assert timeline.largest_drop(moments, curve, window=2) == pytest.approx([0.4])  # .5 - .1


def test_windowed_metrics_depend_on_the_window():
    # 10 rows: falls .9 - .4 = .5 and 0 (task 1 is flat at best); rises .6 - .3 = .3 and .9 - .7 = .2
    assert timeline.windowed_forgetting(read(CURVES), window=10) == pytest.approx(0.25)
    assert timeline.windowed_plasticity(read(CURVES), window=10) == pytest.approx(0.25)
    # 40 rows: rises .9 - .1 = .8 and .9 - .3 = .6
    assert timeline.windowed_plasticity(read(CURVES), window=40) == pytest.approx(0.7)
    assert math.isnan(timeline.windowed_forgetting(read(CURVES), window=9))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(1, 12))
def test_largest_drop_is_the_brute_force_maximum(curve, window):
    rows = np.arange(len(curve))
    drops = [curve[m] - curve[n] for n in rows for m in rows if m < n <= m + window]
    assert timeline.largest_drop(rows, np.array(curve)[:, None], window)[0] == max(drops)


def test_samples_to_threshold():
    per_task = timeline.samples_to_threshold_per_task(read(CURVES), 0.6)
    assert per_task == {0: 20.0, 1: 20.0}  # at rows 20 and 60, of which 40 were task 0's
    assert timeline.samples_to_threshold(read(CURVES), 0.9) == 40.0
    assert timeline.samples_to_threshold_per_task(read(CURVES), 0.15) == {0: 10.0, 1: 0.0}
    assert timeline.samples_to_threshold(read(CURVES), 0.95) == math.inf


def test_samples_to_threshold_counts_own_rows_over_repetitions():
    again = within(("step", 100, 0, [0.8, 0.8]), ("end", 110, 0, [0.95, 0.8]))
    assert timeline.samples_to_threshold_per_task(read(CURVES + again), 0.95)[0] == 70.0  # 40 + 30


def test_evaluation_period_is_the_largest_distance():
    assert timeline.evaluation_period(read(CURVES)) == 10
    assert timeline.evaluation_period(read(CURVES + within(("end", 110, 2, [0.5, 0.5])))) == 30


# ---------------------------------------------------------------- predict, then learn


def arrivals(*windows, metric="prequential_accuracy"):
    """Records of (value, rows) windows."""
    records, seen = [], 0
    for step, (value, rows) in enumerate(windows):
        seen += rows
        records += [
            Record(seen, step, 0, "arrival", None, metric, value),
            Record(seen, step, 0, "arrival", None, "prequential_rows", rows),
        ]
    return records


def test_prequential_accuracy_weighs_windows_by_their_rows():
    windows = arrivals((0.5, 10), (math.nan, 0), (0.8, 30))
    # (5 + 24) / 40; the window without labels does not count
    assert metrics.summary(windows)["prequential_accuracy"] == pytest.approx(0.725)
    # the last 20 rows are all of the second window; the last 35 hold 5 of the first: (24 + 2.5) / 35
    assert metrics.summary(windows, window=20)["prequential_accuracy_windowed"] == pytest.approx(0.8)
    assert metrics.summary(windows, window=35)["prequential_accuracy_windowed"] == pytest.approx(26.5 / 35)


def test_fading_accuracy_is_gamas_recursion():
    right = [1, 0, 1, 1, 0]
    # S_i = x_i + .9 S_{i-1}, N_i = 1 + .9 N_{i-1}: .9^4 + .9^2 + .9 = 2.3661, N = 4.0951
    single = metrics.summary(arrivals(*((x, 1) for x in right)), fading=0.9)
    assert single["prequential_accuracy_fading"] == pytest.approx(2.3661 / 4.0951)
    # windows of several rows: as if each row had the window's mean
    split = metrics.summary(arrivals((0.5, 1), (0.5, 1), (0.2, 1), (0.2, 1), (0.2, 1)), fading=0.9)
    whole = metrics.summary(arrivals((0.5, 2), (0.2, 3)), fading=0.9)
    assert whole["prequential_accuracy_fading"] == pytest.approx(split["prequential_accuracy_fading"])
    flat = metrics.summary(arrivals((0.5, 2), (0.2, 3)), fading=1.0)
    assert flat["prequential_accuracy_fading"] == pytest.approx(1.6 / 5)


def test_label_only_learners_are_weighed_the_same_way():
    records = arrivals((0.5, 10), (0.9, 30), metric="last_label_accuracy")
    records += arrivals((0.4, 10), (0.6, 30), metric="blind_accuracy")
    summary = metrics.summary(records)
    assert summary["last_label_accuracy"] == pytest.approx(0.8)  # (5 + 27) / 40
    assert summary["blind_accuracy"] == pytest.approx(0.55)  # (4 + 18) / 40
    assert "prequential_accuracy" not in summary


def test_windows_of_unknown_size_are_not_guessed():
    assert "prequential_accuracy" not in metrics.summary([Record(10, 1, 0, "arrival", None, "prequential_accuracy", 1)])


# ---------------------------------------------------------------- summary


def test_summary_holds_what_was_measured_and_nothing_else():
    expected = {
        "average_accuracy": 0.7,
        "average_incremental_accuracy": 2.35 / 3,
        "anytime_accuracy": 2.35 / 3,  # evaluated at the ends only
        "forgetting": 0.3,
        "backward_transfer": -0.3,
        "forward_transfer": 0.15,
        "min_accuracy": 0.55,
        "worst_case_accuracy": 1 / 3 + 2 / 3 * 0.55,
        # falls within 200 rows: .9 - .5, .8 - .6, none better than .1 - .1; rises .9 - .2, .8 - .3, 1 - .1
        "windowed_forgetting": (0.4 + 0.2 + 0.0) / 3,
        "windowed_plasticity": (0.7 + 0.5 + 0.9) / 3,
        "samples_to_threshold": 100.0,
        "evaluation_period": 100.0,
    }
    assert metrics.summary(run_of(ENDS), window=200) == pytest.approx(expected)


def test_summary_of_everything():
    records = [*CURVES, *arrivals((0.5, 40), (0.7, 40))]
    records += facts("start", 0, 0, None, [100, 300], "probe_rows")
    records += facts("final", 80, 8, 1, [0.1, 0.3, math.nan], "calibration_error")
    final = {"forward_equivalents_per_row": 6.0, "peak_bytes": 1e6, "seconds": 2.5, "weight_norm": 3.0}
    records += [Record(80, 8, 1, "final", None, name, value) for name, value in final.items()]
    records += [Record(80, 8, 1, "final", None, "unheard_of", 1.0)]
    summary = metrics.summary(records, batches=2, window=40, threshold=0.6, reference={0: 1.0, 1: 1.0})
    assert summary["stream_accuracy"] == pytest.approx(0.25 * 0.7 + 0.75 * 0.9)
    assert summary["intransigence"] == pytest.approx(0.1)
    assert summary["calibration_error"] == pytest.approx(0.2)
    assert summary["learning_curve_area"] == pytest.approx(0.4)
    assert summary["stability_gap"] == pytest.approx(0.5)
    assert summary["samples_to_threshold"] == 20.0
    assert summary["probe_rows"] == 100.0
    assert summary["prequential_accuracy"] == pytest.approx(0.6)
    assert final.items() <= summary.items()
    assert "unheard_of" not in summary


def test_a_single_task_forgets_nothing_measurable():
    summary = metrics.summary(run_of([[0.9]], start=[0.1]))
    assert summary == pytest.approx(
        {
            "average_accuracy": 0.9,
            "average_incremental_accuracy": 0.9,
            "anytime_accuracy": 0.9,
            "windowed_forgetting": -0.8,
            "windowed_plasticity": 0.8,
            "samples_to_threshold": 100.0,
            "evaluation_period": 100.0,
        }
    )


def test_nothing_measured_is_an_empty_summary():
    assert metrics.summary([]) == {}


def test_a_run_that_never_ended_a_task_has_no_averages():
    names = metrics.summary(within(("start", 0, None, [0.1, 0.1]), ("step", 10, 0, [0.5, 0.1]))).keys()
    assert names == {"anytime_accuracy", "samples_to_threshold", "evaluation_period"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 1.5}, r"threshold=1.5 must be in \[0, 1\]"),
        ({"window": 0}, "window=0 must be at least 1 row"),
        ({"fading": 0.0}, r"fading=0.0 must be in \(0, 1\]"),
        ({"batches": -1}, "batches=-1 must be at least 0"),
    ],
)
def test_summary_refuses(wrong, message):
    with pytest.raises(UserError, match=message):
        metrics.summary([], **wrong)


# ---------------------------------------------------------------- properties

SHARES = {"average_accuracy", "average_incremental_accuracy", "anytime_accuracy", "learning_curve_area", "min_accuracy"}
SHARES |= {"worst_case_accuracy", "stream_accuracy", "negative_flips"}  # in [0, 1]
SIGNED = {"forgetting", "backward_transfer", "forward_transfer", "intransigence", "stability_gap"}
SIGNED |= {"windowed_forgetting", "windowed_plasticity", "cumulative_forgetting"}  # in [-1, 1]


@st.composite
def runs(draw):
    """Records of a run of 2 to 4 tasks with repetition, evaluated twice within each task."""
    n_tasks = draw(st.integers(2, 4))
    first = draw(st.permutations(range(n_tasks)))
    order = [*first, *draw(st.lists(st.sampled_from(first), max_size=3))]
    accuracies = st.lists(st.integers(0, 10).map(lambda tenths: tenths / 10), min_size=n_tasks, max_size=n_tasks)
    moments = [("start", 0, None, draw(accuracies))]
    for i, task in enumerate(order):
        for at, offset in (("step", 10), ("step", 20), ("end", 30)):
            moments.append((at, 30 * i + offset, task, draw(accuracies)))
    records = within(*moments)
    records += facts("start", 0, 0, None, range(10, 10 + n_tasks), "probe_rows")
    for at, rows, task, values in moments:
        if at == "end":
            records += facts(at, rows, rows // 10, task, [value / 2 for value in values], "accuracy_seen")
            records += facts(at, rows, rows // 10, task, [value / 3 for value in values], "negative_flips")
    return records


def summarise(records, reference):
    return metrics.summary(records, batches=2, window=20, threshold=0.5, reference=reference)


@settings(max_examples=60, deadline=None)
@given(runs())
def test_every_metric_keeps_its_bounds(records):
    summary = summarise(records, dict.fromkeys(range(4), 0.9))
    assert summary.keys() >= SHARES | SIGNED
    for name, value in summary.items():
        low, high = (0, 1) if name in SHARES else (-1, 1) if name in SIGNED else (0, math.inf)
        assert low - 1e-12 <= value <= high + 1e-12, name


@settings(max_examples=60, deadline=None)
@given(runs(), st.permutations(range(4)))
def test_renaming_tasks_permutes_values_per_task_and_keeps_every_scalar(records, names):
    n_tasks = 1 + max(r.probe for r in records)
    names = [name for name in names if name < n_tasks]
    renamed = [
        Record(r.rows_seen, r.step, None if r.task is None else names[r.task], r.at, names[r.probe], r.metric, r.value)
        for r in records
    ]
    reference = {task: task / 10 for task in range(n_tasks)}
    here, there = metrics.accuracy_matrix(records), metrics.accuracy_matrix(renamed)
    per_task = metrics.forgetting_per_task(here)
    assert metrics.forgetting_per_task(there) == pytest.approx({names[j]: value for j, value in per_task.items()})
    renamed_summary = summarise(renamed, {names[j]: value for j, value in reference.items()})
    assert renamed_summary == pytest.approx(summarise(records, reference))


@settings(max_examples=60, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(records, random):
    shuffled = random.sample(records, len(records))
    assert summarise(shuffled, {}) == summarise(records, {})


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.data())
def test_plain_streams_match_the_formulas_written_out(n_tasks, data):
    cell = st.floats(0, 1, allow_subnormal=False)
    R = np.array(
        data.draw(
            st.lists(st.lists(cell, min_size=n_tasks, max_size=n_tasks), min_size=n_tasks + 1, max_size=n_tasks + 1)
        )
    )
    matrix = matrix_of(R[1:].tolist(), start=R[0].tolist())
    T = n_tasks
    assert metrics.forgetting(matrix) == pytest.approx(
        sum(max(R[i, j - 1] for i in range(1, T)) - R[T, j - 1] for j in range(1, T)) / (T - 1)
    )
    assert metrics.backward_transfer(matrix) == pytest.approx(
        sum(R[T, j - 1] - R[j, j - 1] for j in range(1, T)) / (T - 1)
    )
    assert metrics.forward_transfer(matrix) == pytest.approx(
        sum(R[j - 1, j - 1] - R[0, j - 1] for j in range(2, T + 1)) / (T - 1)
    )
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx(
        sum(sum(R[i, j - 1] for j in range(1, i + 1)) / i for i in range(1, T + 1)) / T
    )
