"""wandb's real client against a stand-in server: what arrives, what is repeated, and that no server ends a run."""

import json
import re
import runpy
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import continual
from continual import workspace
from continual.experiment import Run
from continual.ledger import Ledger, read
from continual.metrics import accuracy_matrix
from continual.sync import There, missing
from continual.track import RunFacts, cells, moments_of
from continual.trackers.wandb import MATRIX_COLUMNS, Wandb, close
from continual.types import Record

SERVER = runpy.run_path(str(Path(__file__).with_name("wandb_server.py")))
KEY, free_port, well = (SERVER[name] for name in ("KEY", "free_port", "well"))
serving, assert_whole = SERVER["serving"], SERVER["assert_whole"]
SMALL = ("scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[8]", "probe.every=40")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Run]]:
    """A server, and a run that was tracked there from its beginning to its end."""
    home = tmp_path_factory.mktemp("online")
    with serving(home) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*sys.argv, "track.token=hunter2"])
        run = tracked(home, "online", "track.alert.forgetting=0.01")
        close()
        yield server, run


def tracked(home: Path, mode: str, *overrides: str, restart: bool = False) -> Run:
    return continual.run(*SMALL, f"track.mode={mode}", *overrides, f"output={home}/runs", restart=restart)


def there(server: Any) -> Any:
    (run,) = server.runs.values()
    return run


def numbers(run: Run) -> list[int]:
    """Of the moments of a run: the steps of its rows there."""
    return list(range(len(list(moments_of(run.records)))))


# ---- a run that is tracked online


def test_everything_arrives(online: tuple[Any, Run]) -> None:
    server, run = online
    found = there(server)
    assert_whole(found, run)
    assert found.fields["groupName"] == "split-gaussian/none"
    assert found.config["run"]["strategy"] == "none"
    assert {artifact["state"] for artifact in server.artifacts} == {"COMMITTED"}
    assert (run.path / "wandb-url.txt").read_text() == f"{server.url}/lab/continual/runs/{found.id}\n"


def test_the_page_is_of_a_finished_run(online: tuple[Any, Run]) -> None:
    server, _ = online
    page = there(server).files[there(server).summary["page"]["path"]].decode()
    assert re.findall(r'"state": ?"(\w+)"', page) == ["finished"]


def test_an_alert_arrives_once_per_task(online: tuple[Any, Run]) -> None:
    server, _ = online
    (alert,) = server.alerts
    assert alert["title"] == "Forgetting of task 0"
    assert re.fullmatch(r"task 0 has lost 0\.\d{3} of its best accuracy .*\(alert at 0\.01\)", alert["text"])


def test_no_secret_arrives(online: tuple[Any, Run]) -> None:
    server, run = online
    sent = [*there(server).files.values(), *server.blobs.values(), json.dumps(there(server).fields).encode()]
    sent += [line.encode() for lines in there(server).streams.values() for line in lines.values()]
    assert "hunter2" not in b"".join(sent).decode(errors="replace")
    kept = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    assert not any(secret in data for data in kept for secret in (b"hunter2", KEY.encode()))


def test_a_run_that_is_started_over_is_a_run_of_its_own(server: Any, tmp_path: Path) -> None:
    for _ in range(2):
        run = tracked(tmp_path, "online", "track.page=false", restart=True)
    first, second = server.runs.values()
    assert second.id == f"{first.id}-2"
    assert [line["_step"] for line in second.history] == [line["_step"] for line in first.history] == numbers(run)


def test_a_run_goes_on_under_its_id(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    moments = [[Record(10 * step, step, 0, "step", 0, "accuracy", step / 10)] for step in (5, 5, 6)]
    moments[1] = [replace(record, at="end") for record in moments[1]]  # two moments after one update
    sent: list[int] = []
    log = wandb.Run.log

    def noted(run: Any, values: dict[str, Any], step: int) -> None:
        sent.extend([step] if "rows_seen" in values else [])
        log(run, values, step=step)

    monkeypatch.setattr(wandb.Run, "log", noted)
    for before, after in ((0, 1), (1, 1), (1, 2), (2, 3)):  # the second time nothing comes
        tracker = Wandb(mode="online")(RunFacts("er", "s", "er", 3, "er-3", tmp_path, {}, 2))
        tracker.go_on(moments[:before])
        for moment in moments[before:after]:
            tracker.log(moment)
        tracker.finish({"a": before}, [[before / 10]], "interrupted" if after < 3 else "finished")
        close()
        found = there(server)
        assert (found.state, found.summary["a"]) == ("failed" if after < 3 else "finished", before)
        assert json.loads(found.files[found.summary["accuracy_matrix"]["path"]])["data"] == [[0, 0, before / 10]]
    rows = [(line["_step"], line["step"], line["accuracy/0"]) for line in there(server).history]
    assert rows == [(0, 5, 0.5), (1, 5, 0.5), (2, 6, 0.6)]
    assert sent == [0, 1, 2]  # not left to wandb, which would drop what comes again


# ---- a server that is ill


def test_three_errors_are_repeated(server: Any, tmp_path: Path) -> None:
    ill = ["UpsertBucket", "file_stream", "file_stream"]

    def answer(asked: str) -> int | None:
        if ill and ill[0] in asked:
            ill.pop(0)
            return 500
        return None

    server.ill = answer
    run = tracked(tmp_path, "online")
    assert not ill
    assert_whole(there(server), run)


@pytest.mark.parametrize("status", [503, 0], ids=["errors", "silence"])
@pytest.mark.parametrize("patient", [False, pytest.param(True, marks=pytest.mark.long)], ids=["quick", "patient"])
def test_an_outage_within_a_run_loses_nothing(
    status: int, patient: bool, server: Any, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(run: object) -> None:
        raise wandb.errors.CommError("stands for what is so after 19 seconds of trying")

    if not patient:
        monkeypatch.setattr(wandb.Run, "_public_api", refuse)
    server.ill = lambda asked: status if any("file_stream" in before for before in server.asked[:-1]) else None
    run = tracked(tmp_path, "online", "track.finish_timeout=1")
    close()
    assert run.status == "finished"
    assert len(run.records) > 20
    arrived = len(there(server).history)
    assert arrived < len(numbers(run))

    server.ill = well
    code, out, _ = cli("sync", str(run.path))
    assert (code, out) == (0, f"{run.path}: ok, {server.url}/lab/continual/runs/{there(server).id}\n")
    assert_whole(there(server), run)


def test_a_server_that_never_answers_ends_no_run_and_is_synced_later(
    server: Any, tmp_path: Path, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    server.ill = lambda asked: 0
    run = tracked(tmp_path, "online", "track.init_timeout=1", "track.finish_timeout=1")
    close()
    assert (run.status, run.metrics) == ("finished", Run.read(run.path).metrics)
    assert len(run.records) > 20
    assert server.runs == {}
    assert not (run.path / "wandb-url.txt").exists()
    assert [r.getMessage().split(",")[0] for r in caplog.records if r.name == "continual.trackers.wandb"] == [
        "wandb failed to start online: tracking offline"
    ]

    server.ill = well
    code, out, _ = cli("sync", str(run.path))
    assert (code, out) == (0, f"{run.path}: ok, {server.url}/lab/continual/runs/{there(server).id}\n")
    assert_whole(there(server), run)


# ---- offline, and brought there later


def test_offline_connects_nowhere_and_is_synced_later(
    server: Any, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        calls.append(address)
        connect(self, address)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        patch.setattr(socket, "getaddrinfo", lambda *args, **more: calls.append(args))
        for proxy in ("http_proxy", "https_proxy"):  # wandb's own process, too, would come by here
            patch.setenv(proxy, server.url)
        run = tracked(tmp_path, "offline", "track.alert.forgetting=0.01")
        close()
    assert calls
    assert all(isinstance(address, str) for address in calls)  # a file by which wandb speaks with its own process
    assert server.asked == []
    assert not (run.path / "wandb-url.txt").exists()

    monkeypatch.setenv("WANDB_MODE", "offline")
    code, out, _ = cli("sync", f"{tmp_path}/runs")
    url = f"{server.url}/lab/continual/runs/{there(server).id}"
    assert (code, out) == (0, f"{run.path}: ok, {url}\n")
    assert_whole(there(server), run)
    assert len(server.alerts) == 1
    assert (run.path / "wandb-url.txt").read_text() == f"{url}\n"

    asked, lines = server.asked.count("UpsertBucket"), len(there(server).history)
    assert cli("sync", f"{tmp_path}/runs")[:2] == (0, f"{run.path}: ok, was there before, {url}\n")
    assert (server.asked.count("UpsertBucket"), len(there(server).history)) == (asked, lines)


def test_a_lost_file_is_missing_whatever_the_client_says(server: Any, tmp_path: Path, cli: Cli) -> None:
    run = tracked(tmp_path, "offline")
    close()
    server.ill = lambda asked: 404 if asked.startswith("PUT ") and "/media/" in asked else None
    code, out, _ = cli("sync", str(run.path), "--wait", "0")
    assert (code, out) == (1, f"{run.path}: MISSING on the server: its accuracy matrix; its page\n")
    assert not (run.path / "wandb-url.txt").exists()
    server.ill = well
    assert cli("sync", str(run.path))[0] == 0
    assert_whole(there(server), run)


def test_what_is_missing_by_hand(online: tuple[Any, Run]) -> None:
    _, run = online
    data, n = read(run.path), len(numbers(run))
    table = {"columns": list(MATRIX_COLUMNS), "data": cells(accuracy_matrix(run.records).values.tolist())}
    whole = There("url", "finished", n, run.metrics, table, True)

    def lost(**changes: Any) -> tuple[str, ...]:
        values = {name: getattr(whole, name) for name in There.__dataclass_fields__}
        return missing(data, There(**{**values, **changes}))

    assert lost() == lost(page=None) == lost(rows=n + 1) == ()
    assert missing(data, None) == ("the whole run",)
    assert lost(rows=n - 2) == (f"2 of {n} rows of its history",)
    wrong = {**run.metrics, "forgetting": run.metrics["forgetting"] + 1e-6}
    assert lost(summary=wrong) == (f"1 of {len(wrong)} values of its summary (forgetting, ...)",)
    assert lost(table=None) == lost(table={**table, "data": table["data"][:-1]}) == ("its accuracy matrix",)
    assert lost(table={**table, "data": [[0, 0, 0.5], *table["data"][1:]]}) == ("its accuracy matrix",)
    assert lost(page=False) == ("its page",)
    assert missing(replace(data, status="killed"), whole) == ("its end: it is killed here and finished there",)
    assert lost(state="running") == ("its end: it is finished here and running there",)


def test_runs_that_cannot_be_synced_are_named(server: Any, tmp_path: Path, cli: Cli) -> None:
    run = continual.run(*SMALL, "track=none", f"output={tmp_path}/runs")
    with Ledger.create(tmp_path / "runs/unfinished", read(run.path).manifest):
        code, out, _ = cli("sync", f"{tmp_path}/runs")
    assert code == 0
    assert out.splitlines() == [
        f"{run.path}: skipped, it was not tracked in wandb",
        f"{tmp_path}/runs/unfinished: skipped, it is still running",
    ]


def test_without_a_login_or_a_server_nothing_is_tried(
    server: Any, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked(tmp_path, "offline", "track.page=false")
    close()
    commands = (("sync", f"{tmp_path}/runs"), ("wandb-workspace", "lab/continual"))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    for words in commands:
        code, out, err = cli(*words)
        assert (code, out) == (2, "")
        assert "does not answer within 5 s; check the network, or WANDB_BASE_URL" in err
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.delenv("WANDB_API_KEY")
    for words in commands:
        code, out, err = cli(*words)
        assert (code, out) == (2, "")
        assert err == f"error: there is no login for {server.url}; run `wandb login`, or set WANDB_API_KEY\n"
    assert server.asked == []


# ---- the workspace


def panels() -> dict[str, dict[str, Any]]:
    sections = workspace.spec()["section"]["panelBankConfig"]["sections"]
    return {panel["config"].get("chartTitle", "Matrix"): panel for section in sections for panel in section["panels"]}


def test_the_panels() -> None:
    found = panels()
    assert set(found) == {
        "Matrix", "Forgetting per task", "Accuracy at ends of tasks", "Forgetting", "Transfer", "Stability gap",
        "Accuracy on the tasks seen so far", "Anytime accuracy", "Accuracy against compute", "Peak bytes",
        "The run's page",
    }  # fmt: skip
    assert found["Matrix"]["config"]["panelDefId"] == f"entity/{workspace.CHART}"
    assert found["Transfer"]["config"]["groupBy"] == "run.value.strategy"


def test_every_name_in_the_panels_is_one_that_a_run_logs(online: tuple[Any, Run]) -> None:
    server, _ = online
    found = there(server)
    known = {name for line in found.history for name in line} | set(found.summary)
    for title, panel in panels().items():
        config = panel["config"]
        names = [*config.get("metrics", []), *config.get("mediaKeys", [])]
        names += [config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in config]
        if title == "Matrix":
            (table,) = (f for f in config["userQuery"]["queryFields"][0]["fields"] if f["name"] == "summaryTable")
            names.append(table["args"][0]["value"])
            assert set(config["fieldSettings"].values()) == set(MATRIX_COLUMNS)
            bound = set(re.findall(r"\$\{field:(\w+)\}", json.dumps(workspace.HEAT_MAP)))
            assert bound == set(config["fieldSettings"])
        if "metricRegex" in config:
            names += [name for name in known if re.search(config["metricRegex"], name)] or [config["metricRegex"]]
        assert names, title
        assert set(names) <= known, title
    assert found.config["run"]["strategy"] == "none"  # what bars are grouped by


def test_a_workspace_is_pushed_once_and_then_updated(server: Any, cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{server.url}/lab/continual?nw=continualforgetting\n"
    assert cli("wandb-workspace", "lab/continual") == (0, url, "")
    assert cli("wandb-workspace", "lab/continual") == (0, url, "")
    assert not [r for r in caplog.records if r.name == "continual.workspace"]
    assert list(server.charts) == [f"lab/{workspace.CHART}"]
    assert json.loads(server.charts[f"lab/{workspace.CHART}"]["spec"]) == workspace.HEAT_MAP
    (view,) = server.views.values()
    assert (view["displayName"], view["entityName"], view["projectName"]) == (workspace.NAME, "lab", "continual")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert sum(len(section["panels"]) for section in sections) == len(panels())


def test_a_refused_preset_is_told_and_a_refused_workspace_is_an_error(
    server: Any, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    server.ill = lambda asked: 403 if asked == "CreateCustomChart" else None
    assert cli("wandb-workspace", "lab/continual")[0] == 0
    assert "the heat map's preset was not created; no matter if lab has it already" in caplog.text
    server.ill = lambda asked: 403 if asked == "UpsertView2" else None
    code, _, err = cli("wandb-workspace", "lab/continual")
    assert code == 2
    assert err.startswith("error: lab/continual did not take the workspace: ")


@pytest.mark.parametrize("where", ["lab", "lab/", "/continual", "lab/continual/x"])
def test_a_workspace_needs_an_entity_and_a_project(where: str, cli: Cli) -> None:
    code, _, err = cli("wandb-workspace", where)
    assert (code, err) == (2, f"error: '{where}' is not of the form ENTITY/PROJECT, e.g. lab/continual\n")


def test_without_the_extra_the_command_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    code, _, err = cli("wandb-workspace", "lab/continual")
    assert code == 2
    assert err == "error: a workspace needs a further package; run: pip install 'continual[workspace]'\n"
