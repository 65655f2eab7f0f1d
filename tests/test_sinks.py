"""TensorBoard and MLflow: what is written is read back by the library's own reader, and no failure ends a run."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import continual
from continual.alerts import Alert
from continual.errors import UserError
from continual.ledger import MANIFEST
from continual.track import RunFacts, Tracker
from continual.trackers import outlet as shared
from continual.trackers.mlflow import MLflow
from continual.trackers.outlet import Outlet, Point, hyperparameters, outlet
from continual.trackers.tensorboard import TensorBoard
from continual.types import Record

ROOT = Path(__file__).parents[1]
CONFIG = {"strategy": {"er": {"n_replay": "${batch}"}}, "password": "<redacted>", "probe": {}, "name": None}
PARAMETERS = {
    "strategy.er.n_replay": "${batch}", "password": "<redacted>", "probe": "{}",
    "name": "er", "scenario": "split-digits", "seed": "3",
}  # fmt: skip
CURVES = {
    "accuracy/0": [(0, 0.125), (20, 0.875), (40, 0.625)],
    "accuracy/1": [(0, 0.25), (20, 0.25), (40, 0.75)],
    "R/0": [(-1, 0.125), (0, 0.875), (1, 0.625)],
    "R/1": [(-1, 0.25), (0, 0.25), (1, 0.75)],
    "loss": [(10, 2.5)],
    "arrival/prequential_accuracy": [(20, 0.5)],
    "forgetting/0": [(40, 0.25)],
    "seen_accuracy": [(20, 0.875), (40, 0.6875)],
    "class_accuracy/07": [(40, 0.5)],
}
"""Name -> (rows seen, or the task for R; value): all exact in the single precision that TensorBoard keeps."""


def facts(directory: Path, **changes: Any) -> RunFacts:
    run = {"name": "er", "scenario": "split-digits", "strategy": "er", "seed": 3, "run_id": "er-seed3-abc"}
    return RunFacts(**{**run, "directory": directory, "config": CONFIG, "n_tasks": 2, "n_classes": 11, **changes})


def accuracy(rows: int, task: int | None, at: str, *values: float) -> list[Record]:
    return [Record(rows, rows // 10, task, at, probe, "accuracy", value) for probe, value in enumerate(values)]


def follow(tracker: Tracker, status: str = "finished") -> None:
    tracker.log(accuracy(0, None, "start", 0.125, 0.25))
    tracker.log([Record(10, 1, 0, "step", None, "loss", 2.5)])
    tracker.log([])
    tracker.log(accuracy(20, 0, "end", 0.875, 0.25))
    tracker.log([Record(20, 2, 1, "arrival", None, "prequential_accuracy", 0.5)])
    tracker.log([*accuracy(40, 1, "end", 0.625, 0.75), Record(40, 4, 1, "end", 7, "class_accuracy", 0.5)])
    tracker.finish({"forgetting": 0.25}, [[0.125, None]], status)


# ---------------------------------------------------------------- what the sinks share


class Kept:
    """An outlet that keeps what it gets, or fails in the method named by ``fails``."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.bursts, self.ends = fails, list[list[Point]](), list[tuple[Mapping[str, float], str]]()
        self._may("start")

    def send(self, points: Sequence[Point]) -> None:
        self._may("log")
        self.bursts.append(list(points))

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        self._may("finish")
        self.ends.append((metrics, status))

    def _may(self, what: str) -> None:
        if what == self.fails:
            raise ConnectionError("the server\nis gone")


def test_records_become_points(tmp_path: Path) -> None:
    kept = Kept()
    follow(outlet("sink", facts(tmp_path), Alert(), lambda: kept))
    points = [point for burst in kept.bursts for point in burst]
    assert {name: [(p.at, p.value) for p in points if p.name == name] for name in CURVES} == CURVES
    assert {point.name for point in points} == set(CURVES)
    assert kept.ends == [({"forgetting": 0.25}, "finished")]


def test_points_go_out_in_bursts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, clock = Kept(), [100.0]
    monkeypatch.setattr(shared.time, "monotonic", lambda: clock[0])
    tracker = outlet("sink", facts(tmp_path), Alert(), lambda: kept)
    for step in (1, 2, 3):
        tracker.log([Record(step, step, 0, "step", None, "loss", 1.0)])
    assert [len(burst) for burst in kept.bursts] == [1]  # the first at once, the others wait
    clock[0] += shared.BURST_SECONDS
    tracker.log([Record(4, 4, 0, "step", None, "loss", 1.0)])
    assert [[p.at for p in burst] for burst in kept.bursts] == [[1], [2, 3, 4]]
    tracker.log([Record(5, 5, 0, "step", None, "loss", 1.0)])
    tracker.finish({}, None, "finished")
    assert [[p.at for p in burst] for burst in kept.bursts[2:]] == [[5]]


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_the_first_failure_ends_the_tracking_with_one_warning(
    fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Outlet] = []

    def start() -> Outlet:
        made.append(Kept(fails))
        return made[-1]

    follow(outlet("sink", facts(tmp_path), Alert(), start))
    assert [record.getMessage() for record in caplog.records] == [
        f"sink failed to {fails}, so tracking stops here; the run goes on (ConnectionError: the server is gone)"
    ]
    assert all(not kept.ends for kept in made)  # type: ignore[attr-defined]


def test_the_user_may_stop_a_sink(tmp_path: Path) -> None:
    def start() -> Outlet:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outlet("sink", facts(tmp_path), Alert(), start)


def test_forgetting_is_told_by_every_sink(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    follow(outlet("sink", facts(tmp_path), Alert(forgetting=0.2), Kept))
    assert "task 0 has lost 0.250 of its best accuracy" in capsys.readouterr().err


def test_the_config_is_told_as_it_was_written(tmp_path: Path) -> None:
    assert hyperparameters(facts(tmp_path)) == PARAMETERS


@pytest.mark.parametrize(("factory", "module"), [(TensorBoard, "tensorboard"), (MLflow, "mlflow")])
def test_a_missing_package_is_told_before_training(
    factory: type, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {module}: pip install 'continual\[{module}\]'"):
        factory()
    with pytest.raises(UserError, match=r"pip install"):
        continual.run("experiment=split_digits", f"track={module}", f"output={tmp_path}")
    assert not list(tmp_path.rglob(MANIFEST))


@pytest.mark.parametrize("factory", [TensorBoard, MLflow])
def test_the_config_holds_the_factory_s_own_defaults(factory: Any) -> None:
    config = yaml.safe_load((ROOT / f"conf/track/{factory.__name__.lower()}.yaml").read_text())
    assert config.pop("_target_") == f"{factory.__module__}.{factory.__name__}"
    alert = config.pop("alert")
    assert alert.pop("_target_") == "continual.alerts.Alert"
    assert factory(**config, alert=Alert(**alert)) == factory()


# ---------------------------------------------------------------- TensorBoard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    follow(TensorBoard()(facts(tmp_path)))
    found = events(tmp_path / "tensorboard" / "er-seed3-abc")
    curves = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert curves.pop("metrics/forgetting") == [(0, 0.25)]
    assert curves == CURVES
    (text,) = found.Tensors("config/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert set(lines) == {f"    {key}: {value}" for key, value in PARAMETERS.items()}


def test_tensorboard_s_table_of_hyperparameters_has_config_metrics_and_status(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data as start_info

    follow(TensorBoard(directory=str(tmp_path / "all"))(facts(tmp_path)), status="failed")
    contents = events(tmp_path / "all" / "er-seed3-abc").PluginTagToContent("hparams")
    told = start_info(contents["_hparams_/session_start_info"]).hparams
    assert {key: value.string_value for key, value in told.items()} == PARAMETERS | {"status": "failed"}


def goes_on(factory: Any, run: RunFacts, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """As ``follow``; but killed when the fifth moment was logged and the third sent, and gone on with ``kept`` ones."""
    moments = [
        accuracy(0, None, "start", 0.125, 0.25),
        [Record(10, 1, 0, "step", None, "loss", 2.5)],
        accuracy(20, 0, "end", 0.875, 0.25),
        [Record(20, 2, 1, "arrival", None, "prequential_accuracy", 0.5)],
        [*accuracy(40, 1, "end", 0.625, 0.75), Record(40, 4, 1, "end", 7, "class_accuracy", 0.5)],
    ]
    with monkeypatch.context() as patch:
        patch.setattr(shared, "BURST_SECONDS", 0.0)
        tracker = factory(run)
        for records in moments[:3]:
            tracker.log(records)
        patch.setattr(tracker, "_due", float("inf"))
        for records in moments[3:]:
            tracker.log(records)
    tracker = factory(run)
    tracker.go_on(moments[:kept])
    for records in moments[kept:]:
        tracker.log(records)
    tracker.finish({"forgetting": 0.25}, [[0.125, None]], "finished")


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_tensorboard_has_each_point_once_of_a_run_that_was_killed(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on(TensorBoard(), facts(tmp_path), monkeypatch, kept)
    found = events(tmp_path / "tensorboard" / "er-seed3-abc")
    curves = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert curves.pop("metrics/forgetting") == [(0, 0.25)]
    assert curves == CURVES


def test_tensorboard_tells_the_last_status_of_a_run_that_goes_on(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data as start_info

    other = tmp_path / "all" / "er-seed4-abc"
    follow(TensorBoard(directory=str(tmp_path / "all"))(facts(tmp_path, run_id=other.name)), status="failed")
    for status in ("interrupted", "finished"):
        follow(TensorBoard(directory=str(tmp_path / "all"))(facts(tmp_path)), status)
    contents = [events(folder).PluginTagToContent("hparams") for folder in (tmp_path / "all" / "er-seed3-abc", other)]
    told = [start_info(content["_hparams_/session_start_info"]).hparams["status"].string_value for content in contents]
    assert told == ["finished", "failed"]


# ---------------------------------------------------------------- MLflow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as MLflow's store: it needs no further package and no server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return (tmp_path / "mlruns").as_uri()


def runs(store: str, experiment: str = "continual") -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy", "ignore:unclosed database")  # MLflow's own
@pytest.mark.parametrize("kind", ["folder", "database"])
def test_mlflow_reads_what_was_written(store: str, kind: str, tmp_path: Path) -> None:
    store = store if kind == "folder" else f"sqlite:///{tmp_path / 'mlflow.db'}"
    follow(MLflow(store, experiment="forgetting / digits")(facts(tmp_path)))
    client, (run,) = runs(store, "forgetting / digits")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "er-seed3-abc"
    assert run.data.params == PARAMETERS
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    curves = {name: [(metric.step, metric.value) for metric in history] for name, history in histories.items()}
    assert curves.pop("metrics/forgetting") == [(0, 0.25)]
    assert curves == CURVES


@pytest.mark.parametrize(("status", "theirs"), [("interrupted", "KILLED"), ("failed", "FAILED"), ("killed", "FAILED")])
def test_a_run_that_did_not_finish_and_is_continued(store: str, status: str, theirs: str, tmp_path: Path) -> None:
    tracker = MLflow(store)
    follow(tracker(facts(tmp_path)), status)
    assert [run.info.status for run in runs(store)[1]] == [theirs]
    follow(tracker(facts(tmp_path)))
    follow(tracker(facts(tmp_path, run_id="er-seed3-abc-2")))
    assert [(run.info.run_name, run.info.status) for run in runs(store)[1]] == [
        ("er-seed3-abc-2", "FINISHED"), ("er-seed3-abc", "FINISHED"),
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_mlflow_has_each_point_once_of_a_run_that_was_killed(
    store: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on(MLflow(store), facts(tmp_path), monkeypatch, kept)
    client, (run,) = runs(store)
    assert run.info.status == "FINISHED"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    curves = {name: [(metric.step, metric.value) for metric in history] for name, history in histories.items()}
    assert curves.pop("metrics/forgetting") == [(0, 0.25)]
    assert curves == CURVES


def test_mlflow_keeps_points_of_a_curve_that_share_a_place(store: str, tmp_path: Path) -> None:
    moments = [accuracy(20, 0, at, 0.5) for at in ("step", "end")]  # measured twice after the same rows
    for status in ("interrupted", "finished"):
        tracker = MLflow(store)(facts(tmp_path))
        tracker.go_on(moments if status == "finished" else moments[:1])
        assert runs(store)[1][0].info.status == "RUNNING"
        tracker.log(accuracy(30, 1, "step", 0.25))
        tracker.finish({"forgetting": float(status == "finished")}, None, status)
    client, (run,) = runs(store)
    assert run.data.metrics["metrics/forgetting"] == 1
    history = client.get_metric_history(run.info.run_id, "accuracy/0")
    assert [metric.step for metric in history] == [20, 30, 20]


def test_more_than_mlflow_takes_at_once(store: str, tmp_path: Path) -> None:
    config = {f"key{i}": i for i in range(150)} | {"long": "x" * 9000}
    tracker = MLflow(store)(facts(tmp_path, config=config))
    tracker.log([Record(1, 1, 0, "step", None, f"metric{i}", 1.0) for i in range(1500)])
    tracker.finish({}, None, "finished")
    (run,) = runs(store)[1]
    assert len(run.data.metrics) == 1500
    assert run.data.params.keys() == config.keys() | {"name", "scenario", "seed"}
    assert run.data.params["key149"] == "149"


def test_a_server_that_is_gone_ends_no_run(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run = continual.run(
        "experiment=split_digits", "track=mlflow", f"track.uri=http://127.0.0.1:{port}", f"output={tmp_path}"
    )
    assert run.status == "finished"
    told = [record.getMessage() for record in caplog.records if record.name.startswith("continual")]
    assert len(told) == 1
    assert told[0].startswith("mlflow failed to start, so tracking stops here; the run goes on (MlflowException")
