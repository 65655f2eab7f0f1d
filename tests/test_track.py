"""Tracking: what reaches a `.wandb` file, that offline means no connection, and that no failure ends a run."""

import itertools
import json
import math
import os
import runpy
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual import track
from continual.errors import UserError
from continual.track import Curves, NoTracker, RunFacts, cells, row, run_id
from continual.trackers.wandb import Wandb, close
from continual.trackers.wandb_mode import choose_mode, reachable
from continual.types import Record

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"strategy": {"er": {"n_replay": "${batch}"}}, "password": "<redacted>"}
MATRIX: track.Matrix = [[0.1, None], [0.9, 0.2], [0.6, float("nan")]]


@pytest.fixture(scope="module", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No login, no proxy, no file outside of pytest's own folder; wandb's process ends with the module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        for name in [n for n in os.environ if n.startswith("WANDB_") or n.lower().endswith("_proxy")]:
            if name not in environment(Path()):
                patch.delenv(name)
        yield
        close()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment that wandb reads anew, before and after the test."""
    close()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    yield monkeypatch
    close()


def environment(home: Path) -> dict[str, str]:
    own = {
        "HOME": "",
        "NETRC": "netrc",
        "WANDB_CONFIG_DIR": "config",
        "WANDB_CACHE_DIR": "cache",
        "WANDB_DATA_DIR": "data",
    }
    return {name: str(home / folder) for name, folder in own.items()} | {"WANDB_MODE": "offline"}


def facts(directory: Path, seed: int = 3, **changes: Any) -> RunFacts:
    run = {"name": "er", "scenario": "split-digits", "strategy": "er", "seed": seed, "run_id": f"er-{seed}"}
    return RunFacts(**{**run, "directory": directory, "config": CONFIG, "n_tasks": 2, **changes})


def accuracy(step: int, task: int | None, at: str, *values: float) -> list[Record]:
    return [Record(10 * step, step, task, at, probe, "accuracy", value) for probe, value in enumerate(values)]


def follow(tracker: track.Tracker) -> None:
    tracker.log(accuracy(0, None, "start", 0.1, 0.1))
    tracker.log([Record(10, 1, 0, "step", None, "loss", 2.5)])
    tracker.log(accuracy(2, 0, "end", 0.9, 0.2))
    tracker.log([Record(20, 2, 1, "arrival", None, "prequential_accuracy", 0.5)])
    tracker.log(accuracy(4, 1, "end", 0.6, 0.8))
    tracker.finish({"forgetting": 0.3}, MATRIX, "finished")


class Listener:
    """A server on this machine that refuses every request and counts its visitors."""

    def __init__(self, server: socket.socket) -> None:
        self.address = server.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server, self.visits = server, 0
        self.seen = threading.Event()

    def serve(self) -> None:
        while True:
            try:
                caller, _ = self.server.accept()
            except OSError:
                return
            with caller:
                request = caller.recv(65536)
                if request == b"count":
                    self.seen.set()
                    continue
                self.visits += 1
                if request:
                    caller.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    def count(self) -> int:
        """How many came so far: who came before this call is served before it."""
        self.seen.clear()
        with socket.create_connection(self.address) as caller:
            caller.sendall(b"count")
            assert self.seen.wait(10)
        return self.visits


@contextmanager
def listener() -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = Listener(server)
        thread = threading.Thread(target=running.serve, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes accept
            thread.join()


# ---- a reader of .wandb files: a LevelDB log of protobuf records


def parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, payload): 1 is a whole record, 2, 3 and 4 are its first, middle and last part. Blocks have 32 KiB."""
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    at = 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, at)
        payload = data[at + 7 : at + 7 + size]
        if kind == 0 or zlib.crc32(bytes([kind]) + payload) != checksum:  # what follows is not written yet
            return
        yield kind, payload
        at += 7 + size


def written(directory: Path) -> list[Any]:
    """The records of the newest run file below ``directory``."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    records, buffer = [], b""
    newest = max(directory.glob("wandb/*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)
    for kind, payload in parts(newest.read_bytes()):
        buffer = payload if kind in (1, 2) else buffer + payload
        if kind in (1, 4):
            records.append(Message.FromString(buffer))
    return records


def kept(directory: Path, kind: str) -> list[Any]:
    return [getattr(r, kind) for r in written(directory) if r.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        node = tree
        for name in outer:
            node = node.setdefault(name, {})
        node[last] = json.loads(item.value_json)
    return tree


def history(directory: Path) -> dict[int, dict[str, Any]]:
    rows = [values(h.item) for h in kept(directory, "history")]
    return {r["_step"]: {k: v for k, v in r.items() if not k.startswith("_")} for r in rows}


def summary(directory: Path) -> dict[str, Any]:
    return {k: v for update in kept(directory, "summary") for k, v in values(update.update).items()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("continual.") and r.levelname == "WARNING"]


# ---- pure parts


def test_row_of_a_moment() -> None:
    assert row(accuracy(0, None, "start", 0.1, 0.2), 2) == {
        "rows_seen": 0, "task": -1, "accuracy/0": 0.1, "accuracy/1": 0.2, "R/0": 0.1, "R/1": 0.2,
    }  # fmt: skip
    end = [*accuracy(7, 1, "end", 0.5), Record(70, 7, 1, "end", 0, "negative_flips", 0.25)]
    assert row(end, 2) == {"rows_seen": 70, "task": 1, "accuracy/0": 0.5, "R/0": 0.5, "negative_flips/0": 0.25}
    assert row(accuracy(7, 1, "step", 0.5), 2) == {"rows_seen": 70, "accuracy/0": 0.5}
    assert row([Record(70, 7, 1, "arrival", None, "accuracy", 0.5)], 2) == {"rows_seen": 70, "arrival/accuracy": 0.5}
    assert row([Record(70, 7, 1, "final", None, "seconds", 9.0)], 2) == {"rows_seen": 70, "final/seconds": 9.0}


def test_names_of_probes_sort_as_numbers() -> None:
    for n_tasks in (1, 10, 11, 101):
        names = [list(row([Record(0, 0, 0, "step", p, "a", 0.0)], n_tasks))[1] for p in range(n_tasks)]
        assert names == sorted(set(names))


def test_names_of_classes_sort_as_numbers() -> None:
    records = [Record(70, 7, 1, "end", label, "class_accuracy", 0.5) for label in (3, 11)]
    assert row(records, 2, 12) == {"rows_seen": 70, "class_accuracy/03": 0.5, "class_accuracy/11": 0.5}


def test_curves_follow_from_the_records() -> None:
    curves = Curves(n_tasks=11)
    assert curves(accuracy(0, None, "start", 0.1, 0.1)) == {}
    assert curves(accuracy(1, 0, "step", 0.8)) == {"seen_accuracy": 0.8}
    assert curves([Record(10, 1, 0, "step", None, "loss", 2.5)]) == {}
    assert curves(accuracy(2, 0, "end", 0.9, 0.2)) == {"seen_accuracy": 0.9}  # task 1 has yet to begin
    assert curves(accuracy(3, 1, "step", 0.7, 0.4)) == {"seen_accuracy": pytest.approx(0.55)}
    assert curves(accuracy(4, 1, "end", 0.6, 0.8)) == {
        "seen_accuracy": pytest.approx(0.7), "forgetting/00": pytest.approx(0.3),
    }  # fmt: skip
    assert curves(accuracy(5, 1, "step", 0.6, math.nan)) == {}
    assert curves([Record(60, 6, 1, "final", None, "seconds", 9.0)]) == {}


def test_a_run_that_is_started_over_is_another_run_there(tmp_path: Path) -> None:
    assert run_id("er+ewc", 3, "ab12", tmp_path) == "er+ewc-seed3-ab12"
    (tmp_path / "manifest.json").touch()
    assert run_id("a b/c", 3, "ab12", tmp_path) == "a-b-c-seed3-ab12"
    (tmp_path / "manifest.1.json").touch()
    assert run_id("er", 3, "ab12", tmp_path) == "er-seed3-ab12-2"


def test_cells_leave_out_what_was_not_measured() -> None:
    assert cells(MATRIX) == [[0, 0, 0.1], [1, 0, 0.9], [1, 1, 0.2], [2, 0, 0.6]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "onlin"}, "track.mode is 'onlin'; did you mean 'online'"),
        ({"mode": ""}, "choose from auto, offline, online"),
        ({"project": "a/b"}, "track.project is 'a/b'"),
        ({"project": ""}, "1 to 128"),
        ({"tags": ["ok", "x" * 65]}, "of 65 characters; use 1 to 64"),
        ({"init_timeout": 0.0}, "track.init_timeout is 0.0"),
        ({"finish_timeout": math.nan}, "must be above 0"),
    ],
)
def test_a_wrong_value_is_an_error_at_construction(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wandb(**wrong)


def test_yaml_holds_the_constructors_defaults() -> None:
    for name, made in (("wandb", Wandb), ("none", NoTracker)):
        config = yaml.safe_load((ROOT / f"conf/track/{name}.yaml").read_text())
        assert config.pop("_target_") == f"{made.__module__}.{made.__name__}"
        assert set(config) == set(made.__dataclass_fields__)
        assert config.pop("alert") == {"_target_": "continual.alerts.Alert", "forgetting": None}
        assert made(**{**config, **({"tags": tuple(config["tags"])} if "tags" in config else {})}) == made()


def test_no_tracker_keeps_nothing(tmp_path: Path) -> None:
    follow(NoTracker()(facts(tmp_path)))
    assert not list(tmp_path.iterdir())


# ---- what is in the file


def test_file_of_an_offline_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    follow(Wandb(entity="us", tags=("a", "b"))(facts(tmp_path)))
    close()

    (run,) = kept(tmp_path, "run")
    assert (run.run_id, run.display_name, run.run_group) == ("er-3", "er-seed3", "split-digits/er")
    assert (run.project, run.entity, run.job_type, list(run.tags)) == ("continual", "us", "train", ["a", "b"])
    assert run.resume
    config = values(run.config.update)
    assert {k: config[k] for k in CONFIG} == CONFIG
    assert config["run"] == {"id": "er-3", "scenario": "split-digits", "strategy": "er", "seed": 3}

    axes = {"*": "rows_seen", "R/*": "task", "forgetting/*": "task"}
    assert {m.glob_name: m.step_metric for m in kept(tmp_path, "metric")} == axes
    rows = history(tmp_path)
    table = rows[4].pop("accuracy_matrix")
    assert rows == {
        0: {**row(accuracy(0, None, "start", 0.1, 0.1), 2), "step": 0},
        1: {"rows_seen": 10, "step": 1, "loss": 2.5},
        2: {**row(accuracy(2, 0, "end", 0.9, 0.2), 2), "step": 2, "seen_accuracy": 0.9},
        3: {"rows_seen": 20, "step": 2, "arrival/prequential_accuracy": 0.5},
        4: {
            **row(accuracy(4, 1, "end", 0.6, 0.8), 2),
            "step": 4,
            "seen_accuracy": 0.7,
            "forgetting/0": pytest.approx(0.3),
        },
    }
    (file,) = tmp_path.glob(f"wandb/*/files/{table['path']}")
    assert json.loads(file.read_text()) == {"columns": ["tasks_trained", "probe", "accuracy"], "data": cells(MATRIX)}

    final = summary(tmp_path)
    assert (final["forgetting"], final["status"], final["R/0"]) == (0.3, "finished", 0.6)
    assert [e.exit_code for e in kept(tmp_path, "exit")] == [0]
    assert not list(Path(os.environ["WANDB_DATA_DIR"]).rglob("*.json"))
    assert not list(Path(os.environ["WANDB_DATA_DIR"]).rglob("tmp*"))
    assert capfd.readouterr() == ("", "")


def test_a_run_that_did_not_finish_has_failed(tmp_path: Path) -> None:
    tracker = Wandb()(facts(tmp_path))
    tracker.finish({}, None, "interrupted")
    tracker.finish({"late": 1.0}, None, "finished")
    close()
    assert [e.exit_code for e in kept(tmp_path, "exit")] == [1]
    assert summary(tmp_path)["status"] == "interrupted"
    assert "late" not in summary(tmp_path)


def test_a_running_run_can_be_read(tmp_path: Path) -> None:
    tracker = Wandb(directory=str(tmp_path / "elsewhere"))(facts(tmp_path))
    steps, deadline = itertools.count(), time.monotonic() + 10  # wandb alone writes after 15 s or 32 KiB
    while not (found := history(tmp_path / "elsewhere")) and time.monotonic() < deadline:
        tracker.log(accuracy(next(steps), 0, "step", 0.5))
        time.sleep(0.5)
    tracker.finish({}, None, "finished")
    assert found[0] == {"rows_seen": 0, "step": 0, "accuracy/0": 0.5, "seen_accuracy": 0.5}


def test_runs_share_one_service_until_it_is_closed(tmp_path: Path) -> None:
    services = set()
    for seed in range(4):
        tracker = Wandb()(facts(tmp_path / str(seed), seed))
        services.add(os.environ["WANDB_SERVICE"])
        for step in range(200):  # more than one block of the file
            tracker.log(accuracy(step, 0, "step", seed / 10))
        tracker.finish({}, None, "finished")
    close()
    assert len(services) == 1
    assert "WANDB_SERVICE" not in os.environ
    for seed in range(4):
        assert [r["accuracy/0"] for r in history(tmp_path / str(seed)).values()] == [seed / 10] * 200
        assert len(kept(tmp_path / str(seed), "exit")) == 1


def test_a_run_goes_on_under_its_id(tmp_path: Path) -> None:
    moments = [accuracy(step, 0, "step", 0.5) for step in (5, 6)]
    for before, moment in enumerate(moments):
        tracker = Wandb()(facts(tmp_path))
        tracker.go_on(moments[:before])
        tracker.log(moment)
        tracker.finish({}, None, "finished")
        close()
        assert [r.run_id for r in kept(tmp_path, "run")] == ["er-3"]
        assert [line["step"] for line in history(tmp_path).values()] == [5, 6][: before + 1]
    first, second = sorted(tmp_path.glob("wandb/*/*.wandb"))
    assert (first.with_suffix(".wandb.synced").exists(), second.with_suffix(".wandb.synced").exists()) == (True, False)


# ---- failures


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_failure_is_told_once_and_ends_no_run(
    broken: str, tmp_path: Path, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the disk\nis full")

    fresh.setattr(wandb if broken == "init" else wandb.Run, broken, fail)
    tracker = Wandb()(facts(tmp_path))
    follow(tracker)
    follow(tracker)
    (message,) = warnings(caplog)
    assert f"wandb failed to {'start' if broken == 'init' else broken}" in message
    assert message.endswith("(RuntimeError: the disk is full)")
    fresh.undo()
    follow(Wandb()(facts(tmp_path / "next")))
    assert len(warnings(caplog)) == (2 if broken == "finish" else 1)  # wandb still holds the id if it cannot finish


def test_a_killed_service_ends_no_run(
    tmp_path: Path, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    fresh.setattr(subprocess, "Popen", Popen)
    tracker = Wandb(mode="offline")(facts(tmp_path))
    started[-1].kill()
    started[-1].wait()
    follow(tracker)
    close()
    assert len(warnings(caplog)) == 2  # the run's and the shutdown's
    follow(Wandb(mode="offline")(facts(tmp_path / "next")))
    close()
    assert len(kept(tmp_path / "next", "exit")) == 1


# ---- mode


@pytest.mark.parametrize("wish", ["offline", "dryrun", "disabled"])
def test_the_environment_has_the_last_word_on_auto(wish: str, fresh: pytest.MonkeyPatch) -> None:
    with listener() as server:
        fresh.setenv("WANDB_MODE", wish)
        fresh.setenv("WANDB_API_KEY", KEY)
        fresh.setenv("WANDB_BASE_URL", server.url)
        assert choose_mode("auto") == ("disabled" if wish == "disabled" else "offline")
        assert server.count() == 0


def test_disabled_keeps_nothing(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("WANDB_MODE", "disabled")
    follow(Wandb()(facts(tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "too short"])
def test_no_login_is_offline_and_connects_nowhere(key: str, fresh: pytest.MonkeyPatch) -> None:
    with listener() as server:
        fresh.setenv("WANDB_API_KEY", key)
        fresh.setenv("WANDB_BASE_URL", server.url)
        assert choose_mode("auto") == "offline"
        assert os.environ["WANDB_MODE"] == "offline"
        assert server.count() == 0


def test_a_login_is_online_only_if_the_server_answers(
    fresh: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh.setenv("WANDB_API_KEY", KEY)
    with listener() as server:
        fresh.setenv("WANDB_BASE_URL", server.url)
        assert choose_mode("auto") == "online"
        assert server.count() == 1
    assert choose_mode("auto") == "offline"  # the server has gone
    assert choose_mode("online") == "online"  # an explicit wish
    assert choose_mode("offline") == "offline"
    assert capfd.readouterr() == ("", "")


def test_online_without_a_login_is_told(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_mode("online") == "offline"
    assert "run `wandb login`" in warnings(caplog)[0]


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as server:
        assert reachable(server.url, 5)
        monkeypatch.setenv("http_proxy", server.url)
        assert reachable("http://tracker.invalid", 5)
        assert server.count() == 2
        monkeypatch.setenv("no_proxy", "tracker.invalid")
        assert not reachable("http://tracker.invalid", 0.2)
    monkeypatch.delenv("http_proxy")
    assert not reachable(server.url, 5)


# ---- connections, output, secrets


def test_offline_connects_nowhere_and_a_dead_server_ends_no_run(
    tmp_path: Path, fresh: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[object] = []

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            calls.append(address)
            super().connect(address)

    def resolve(host: str, *rest: object, **more: object) -> None:
        calls.append((host, "resolve"))
        raise OSError(host)

    with listener() as server:  # is every server and every proxy; wandb's own process connects too
        for name in ("WANDB_BASE_URL", "http_proxy", "https_proxy"):
            fresh.setenv(name, server.url)
        fresh.setattr(sys, "argv", [*sys.argv, "track.token=hunter2"])
        with fresh.context() as patch:
            patch.setattr(socket, "socket", Socket)
            patch.setattr(socket, "getaddrinfo", resolve)
            follow(Wandb()(facts(tmp_path / "auto")))  # without a login
            close()
            assert os.environ["WANDB_ERROR_REPORTING"] == "false"  # else it may look a host of its own up
            patch.setenv("WANDB_API_KEY", KEY)
            follow(Wandb(mode="offline")(facts(tmp_path / "offline")))
            close()
        assert calls  # wandb's own process, through a file
        assert all(isinstance(address, str) for address in calls)
        assert server.count() == 0
        assert not warnings(caplog)

        fresh.setenv("WANDB_API_KEY", KEY)
        follow(Wandb(mode="online", init_timeout=1)(facts(tmp_path / "online")))
        close()
        assert server.count() > 0  # the same listener does notice wandb
        assert "wandb failed to start" in warnings(caplog)[0]
        assert len(warnings(caplog)) == 1

    assert capfd.readouterr() == ("", "")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for secret in (KEY, "hunter2"):
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_without_wandb_everything_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    for module in ("track", "trackers/wandb", "trackers/wandb_mode"):
        runpy.run_path(str(ROOT / f"continual/{module}.py"))
    follow(NoTracker()(facts(tmp_path)))
    close()
    assert not warnings(caplog)
    follow(Wandb()(facts(tmp_path)))
    assert len(warnings(caplog)) == 1
