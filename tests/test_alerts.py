"""Alerts: when forgetting counts, that each task is told once, and where it is told."""

from dataclasses import replace
from pathlib import Path

import pytest

import continual
from continual.alerts import Alert, Lost, passing, watched
from continual.errors import UserError
from continual.ledger import read
from continual.metrics import accuracy_matrix, forgetting_per_task
from continual.track import NoTracker, RunFacts, Tracker
from continual.types import Record

SMALL = ("scenario/source=gaussian", "scenario.n_tasks=4", "model.hidden=[8]", "probe.every=10", "train.epochs=3")


class Kept(NoTracker):
    """A tracker that writes down what it gets."""

    __slots__ = ("got",)

    def __init__(self) -> None:
        object.__setattr__(self, "got", [])

    def go_on(self, moments) -> None:
        for records in moments:
            self.got.append(records)

    def log(self, records) -> None:
        self.got.append(records)

    def finish(self, summary, matrix, status) -> None:
        self.got.append((summary, matrix, status))


def moment(at: str, task: int, *values: float, step: int = 1) -> list[Record]:
    return [Record(10 * step, step, task, at, probe, "accuracy", value) for probe, value in enumerate(values)]


def facts(directory: Path) -> RunFacts:
    return RunFacts("er", "digits", "er", 3, "er-3", directory, {}, 2)


def test_what_was_lost_by_hand() -> None:
    lost = Lost()
    assert lost(moment("start", 0, 0.9, 0.9)) == {}
    assert lost(moment("step", 0, 0.99)) == {}  # not learned yet
    assert lost(moment("end", 0, 0.8, 0.5)) == {}
    assert lost(moment("step", 1, 0.7, 0.1)) == {0: pytest.approx(0.1)}  # task 1 is not learned yet
    assert lost([Record(10, 1, 1, "step", 0, "accuracy_seen", 0.0)]) == {}
    assert lost(moment("end", 1, 0.9, 0.4)) == {0: pytest.approx(-0.1)}  # its best so far is of now
    assert lost(moment("step", 2, 0.5, 0.2)) == {0: pytest.approx(0.4), 1: pytest.approx(0.3)}  # 1 was better untrained
    assert lost(moment("step", 2, float("nan"), 0.2)) == {1: pytest.approx(0.3)}
    assert lost([]) == {}


def test_at_the_last_end_it_is_the_metric(tmp_path: Path) -> None:
    run = continual.run(*SMALL, "track=none", f"output={tmp_path}")
    lost, last = Lost(), {}
    for step in sorted({r.step for r in run.records}):
        for at in ("step", "end"):
            found = lost([r for r in run.records if r.step == step and r.at == at])
            last = found if at == "end" and found else last
    expected = forgetting_per_task(accuracy_matrix(run.records))
    assert len(expected) == 3
    assert max(expected.values()) > 0.1
    assert {task: last[task] for task in expected} == expected


@pytest.mark.parametrize(("fall", "passes"), [(0.199, False), (0.2, True), (0.3 - 0.1, True), (0.5, True), (-1, False)])
def test_the_bound_is_passed_when_it_is_reached(fall: float, passes: bool) -> None:
    assert passing({4: fall}, 0.2) == ({4} if passes else set())


@pytest.mark.parametrize("bound", [0.0, -0.1, 1.01, 20.0, float("nan")])
def test_a_bound_that_is_no_fall_of_accuracy_is_refused(bound: float) -> None:
    with pytest.raises(UserError, match=r"track.alert.forgetting is .*above 0 and at most 1"):
        Alert(bound)
    assert Alert(1.0).forgetting == 1


def test_each_task_is_told_once_and_everything_is_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner, alerts = Kept(), []
    tracker: Tracker = watched(inner, Alert(0.2), facts(tmp_path), lambda title, text: alerts.append((title, text)))
    moments = [
        moment("end", 0, 0.9, 0.1, step=2),
        moment("step", 1, 0.7, 0.3, step=3),
        moment("step", 1, 0.1, 0.9, step=4),
        moment("end", 1, 0.9, 0.9, step=5),
        moment("end", 2, 0.1, 0.1, step=6),
    ]
    for records in moments:
        tracker.log(records)
    tracker.finish({"a": 1.0}, None, "finished")
    assert inner.got == [*moments, ({"a": 1.0}, None, "finished")]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "alert: digits er seed 3: task 0 has lost 0.200 of its best accuracy after 30 rows (alert at 0.2)",
        "alert: digits er seed 3: task 1 has lost 0.800 of its best accuracy after 60 rows (alert at 0.2)",
    ]
    assert [title for title, _ in alerts] == ["Forgetting of task 0", "Forgetting of task 1"]
    assert all(f"seed 3: {text}" in line for (_, text), line in zip(alerts, lines, strict=True))


def test_a_run_that_goes_on_tells_again_only_where_it_is_tracked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = [
        moment("end", 0, 0.9, 0.1, step=2),
        moment("step", 1, 0.5, 0.3, step=3),
        moment("end", 1, 0.9, 0.9, step=5),
        moment("end", 2, 0.9, 0.1, step=6),
    ]
    heard: list[tuple[int, str]] = []  # how many moments were logged by then, and what was told

    def begin() -> tuple[Kept, Tracker]:
        inner = Kept()
        return inner, watched(
            inner, Alert(0.2), facts(tmp_path), lambda title, _: heard.append((len(inner.got), title))
        )

    for kept in (0, 1, 3):  # each is killed in the end
        inner, tracker = begin()
        tracker.go_on(moments[:kept])
        for records in moments[kept : kept + 2]:
            tracker.log(records)
        assert inner.got == moments[: kept + 2]
    assert heard == [(2, "Forgetting of task 0")] * 3 + [(4, "Forgetting of task 1")]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2].split(" has")[0] for line in lines] == ["task 0", "task 1"]
    over = facts(tmp_path)
    watched(Kept(), Alert(0.2), over, None).go_on(moments)
    assert capsys.readouterr().err == ""
    again = watched(Kept(), Alert(0.2), replace(over, run_id="er-3-2"), None)  # started over: another run
    for records in moments:
        again.log(records)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_alert_is_told_also_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = watched(Kept(), Alert(0.2), facts(tmp_path / "gone"), None)
    for records in (moment("end", 0, 0.9), moment("end", 1, 0.1)):
        tracker.log(records)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_a_bound_nobody_watches(tmp_path: Path) -> None:
    inner = NoTracker()
    assert inner(facts(tmp_path)) is inner


def test_the_command_says_it_on_stderr_also_without_tracking(cli, tmp_path: Path) -> None:
    code, out, err = cli("run", *SMALL, "track=none", "track.alert.forgetting=0.5", f"output={tmp_path}", "--quiet")
    lines = [line for line in err.splitlines() if "has lost" in line]
    records = read(Path(out.strip())).records
    lost, expected = Lost(), set()
    for at, step in dict.fromkeys((r.at, r.step) for r in records):
        expected |= passing(lost([r for r in records if (r.at, r.step) == (at, step)]), 0.5)
    assert code == 0
    assert expected
    assert sorted(int(line.split("task ")[1].split()[0]) for line in lines) == sorted(expected)


@pytest.mark.parametrize("track", ["none", "wandb"])
def test_a_wrong_bound_ends_the_command_before_it_begins(cli, tmp_path: Path, track: str) -> None:
    code, _, err = cli("run", *SMALL, f"track={track}", "track.alert.forgetting=1.5", f"output={tmp_path}/runs")
    assert code == 2
    assert err.startswith("error: track.alert.forgetting is 1.5; it is a fall of accuracy above 0 and at most 1")
    assert not (tmp_path / "runs").exists()
    code, _, err = cli("run", *SMALL, f"track={track}", "track.alert.forgeting=0.5", f"output={tmp_path}/runs")
    assert code == 2
    assert "forgetting" in err
