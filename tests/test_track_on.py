"""A run that was stopped and goes on is one run where it is tracked, as if nothing had stopped it.

wandb's real client, in processes of their own that are killed, against a stand-in server.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import continual
from continual import ledger, sync
from continual.experiment import Run

ONLINE = runpy.run_path(str(Path(__file__).with_name("wandb_server.py")))
serving, assert_whole, expected, rows = (ONLINE[name] for name in ("serving", "assert_whole", "expected", "rows"))
SMALL = (
    *("scenario/source=gaussian", "scenario.n_tasks=4", "model.hidden=[8]", "probe.every=20", "probe.prequential=true"),
    *("snapshot.seconds=null", "snapshot.share=null"),  # what is stored does not depend on the clock
)
"""16 updates, 18 moments: every other update, and three more at the end of each task."""

PROCESSES = """
import functools, json, os, signal, sys, time
from pathlib import Path
import scipy.special, torch._dynamo, wandb.apis.public, wandb.sdk.launch.inputs.internal  # what a run loads late
import torch
torch.set_num_threads(1)
from continual import checkpoint, config
from continual.dashboard import collect, page
from continual.errors import Terminated
from continual.experiment import run_config
from continual.trackers import wandb as tracking

def stop_at(step, kind, sent, number, sign):
    'When this moment of a run was measured, and handed to wandb what came by update `sent`: wait to be killed.'
    after = checkpoint.Checkpoints.after
    def watched(self, records):
        if self.measure.step == sent and records:
            time.sleep(tracking.FLUSH_SECONDS)
        if self.measure.step == step and records and records[-1].at == kind:
            if number == signal.SIGTERM:
                os.kill(os.getpid(), number)
            else:
                Path(sign).touch()
                time.sleep(600)
        after(self, records)
    checkpoint.Checkpoints.after = watched

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ.update(job["environment"])
        sys.stderr = open(job["stderr"], "a")
        tracking.FLUSH_SECONDS = 0.5
        if job["stop"] is not None:
            stop_at(*job["stop"])
        try:
            run_config(config.compose(*job["words"]))
        except Terminated:
            pass
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        tracking.close()
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

Cli = Callable[..., tuple[int, str, str]]
Moment = tuple[int, str]


class Processes:
    """Runs configs, one after another, each in a fresh fork of a process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self.process, self.home = process, home

    def run(self, *words: str) -> Run:
        """To the end."""
        self._start(words, None)
        assert self._line() == 0, self.told()
        return Run.read(self._path())

    def kill(
        self, *words: str, at: Moment, sent: int = -1, when: Callable[[], bool] = lambda: True, core: bool = True
    ) -> Path:
        """Begin or go on, and be killed at a moment as soon as ``when`` holds, wandb's own process, too, or not."""
        sign = self.home / "sign"
        pid = self._start(words, (*at, sent, int(signal.SIGKILL), str(sign)))
        wait_for(sign.exists)
        wait_for(when)
        for victim in [*(children(pid) if core else []), pid]:  # not reaped yet: the number is still its own
            os.kill(victim, signal.SIGKILL)
        assert self._line() == -signal.SIGKILL
        sign.unlink()
        return self._path()

    def stop(self, *words: str, at: Moment) -> Run:
        """Begin or go on, and be asked to stop at a moment."""
        self._start(words, (*at, -1, int(signal.SIGTERM), ""))
        assert self._line() == 0, self.told()
        return Run.read(self._path())

    def told(self) -> str:
        """What they said on stderr."""
        return (self.home / "stderr").read_text()

    def _path(self) -> Path:
        (path,) = ledger.find_runs([self.home / "runs"])
        return path

    def _start(self, words: tuple[str, ...], stop: tuple[Any, ...] | None) -> int:
        names = [name for name in os.environ if name.startswith("WANDB_") or name in ("HOME", "NETRC")]
        environment = {name: os.environ[name] for name in names}
        job = {"words": [*SMALL, *words, f"output={self.home}/runs"], "stop": stop, "environment": environment}
        job["stderr"] = str(self.home / "stderr")
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def children(pid: int) -> list[int]:
    return [int(c) for thread in Path(f"/proc/{pid}/task").iterdir() for c in (thread / "children").read_text().split()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def offline() -> Iterator[None]:
    """What `auto`, the mode, comes to within it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        yield


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESSES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def processes(warm: subprocess.Popen[str], tmp_path: Path) -> Processes:
    return Processes(warm, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing stopped."""
    return continual.run(*SMALL, "track=none", f"output={tmp_path_factory.mktemp('whole')}/runs")


def there(server: Any) -> Any:
    (run,) = server.runs.values()
    return run


def n_rows(server: Any) -> int:
    return len(there(server).history) if server.runs else 0


def measured(run: Run) -> list[Any]:
    return [record for record in run.records if record.metric != "seconds"]


# ---- wandb, online


@pytest.mark.parametrize(
    ("core", "every", "again"),
    [
        (True, 4, False),  # what came before the last snapshot is on no server
        pytest.param(True, 4, True, marks=pytest.mark.long),
        pytest.param(False, 4, True, marks=pytest.mark.long),
        pytest.param(True, 100, True, marks=pytest.mark.long),
        pytest.param(False, 100, True, marks=pytest.mark.long),
    ],
)
def test_killed_online(server: Any, processes: Processes, whole: Run, core: bool, every: int, again: bool) -> None:
    words = ("track.mode=online", f"snapshot.steps={every}", "track.alert.forgetting=0.001")
    processes.kill(*words, at=(10, "step"), sent=6, when=lambda: n_rows(server) >= 6, core=core)
    before, told = n_rows(server), [alert["title"] for alert in server.alerts]
    assert 6 <= before < 9
    assert told
    if again:
        processes.kill(*words, at=(14, "step"), sent=12, when=lambda: n_rows(server) > before, core=not core)
    run = processes.run(*words)
    assert (run.status, measured(run)) == ("finished", measured(whole))
    assert_whole(there(server), run)
    assert len({alert["title"] for alert in server.alerts}) == len(server.alerts) > len(told)
    assert processes.told().count("alert: ") == len(server.alerts)


@pytest.mark.long
def test_asked_to_stop_online(server: Any, processes: Processes, whole: Run) -> None:
    for at in ((4, "end"), (10, "step")):  # after the first, the same update has further moments
        run = processes.stop("track.mode=online", at=at)
        found = there(server)
        assert (run.status, found.state, found.summary["status"]) == ("interrupted", "failed", "interrupted")
        assert rows(found) == expected(run)
        assert {name: found.summary[name] for name in run.metrics} == pytest.approx(run.metrics)
    run = processes.run("track.mode=online")
    assert measured(run) == measured(whole)
    assert_whole(there(server), run)


# ---- wandb, offline, and brought there later


def written(home: Path) -> bool:
    """Whether rows are in the file that wandb writes."""
    return any(b"seen_accuracy" in file.read_bytes() for file in home.glob("runs/**/*.wandb"))


def wandb_sync(run: Run) -> None:
    """wandb's own command, as a user would give it."""
    command = [sys.executable, "-m", "wandb", "sync", str(run.path / "wandb")]
    subprocess.run(command, cwd=run.path.parent, check=True, capture_output=True)


def test_killed_offline(server: Any, processes: Processes, whole: Run, cli: Cli, tmp_path: Path) -> None:
    words = ("track.mode=offline", "snapshot.steps=4", "track.alert.forgetting=0.001")
    processes.kill(*words, at=(10, "step"), sent=6, when=lambda: written(tmp_path))
    run = processes.run(*words)
    assert len(list(run.path.glob("wandb/*/*.wandb"))) == 2
    assert measured(run) == measured(whole)
    wandb_sync(run)
    assert_whole(there(server), run)
    assert len({alert["title"] for alert in server.alerts}) == len(server.alerts) > 1
    url = f"{server.url}/lab/continual/runs/{there(server).id}"
    assert cli("sync", str(run.path))[:2] == (0, f"{run.path}: ok, was there before, {url}\n")


@pytest.mark.long
def test_killed_offline_and_synced_here(
    server: Any, processes: Processes, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("track.mode=offline", "snapshot.steps=4")
    processes.kill(*words, at=(6, "step"), core=False)
    processes.kill(*words, at=(10, "step"), sent=6)
    processes.stop(*words, at=(12, "end"))
    run = processes.run(*words)
    assert len(list(run.path.glob("wandb/*/*.wandb"))) == 4
    monkeypatch.setattr(sync, "_go_on", lambda run: pytest.fail("the last file does not hold all of it"))
    assert cli("sync", str(run.path))[0] == 0
    assert_whole(there(server), run)
    wandb_sync(run)
    assert_whole(there(server), run)


@pytest.mark.long
def test_first_online_then_offline(server: Any, processes: Processes, cli: Cli) -> None:
    words = ("snapshot.steps=4",)
    processes.kill(*words, at=(10, "step"), sent=6, when=lambda: n_rows(server) >= 4)
    with offline():
        run = processes.run(*words)
    assert n_rows(server) < len(expected(run))
    assert cli("sync", str(run.path))[0] == 0
    assert_whole(there(server), run)
    wandb_sync(run)  # finds nothing to send
    assert_whole(there(server), run)


@pytest.mark.long
def test_first_offline_then_online(server: Any, processes: Processes) -> None:
    words = ("snapshot.steps=4", "track.alert.forgetting=0.001")
    with offline():
        processes.kill(*words, at=(10, "step"), sent=6)
    assert server.runs == {}
    run = processes.run(*words)
    assert_whole(there(server), run)
    assert len({alert["title"] for alert in server.alerts}) == len(server.alerts) > 1
    wandb_sync(run)
    assert_whole(there(server), run)


@pytest.mark.long
def test_synced_before_it_goes_on(server: Any, processes: Processes, cli: Cli) -> None:
    words = ("track.mode=offline", "snapshot.steps=4")
    path = processes.kill(*words, at=(12, "end"), sent=6)
    lines = (path / ledger.RECORDS).read_bytes().splitlines(keepends=True)
    (path / ledger.RECORDS).write_bytes(b"".join(lines[:-3]))  # killed within a moment
    assert cli("sync", str(path))[0] == 0
    assert rows(there(server)) == expected(Run.read(path))[:-1]
    assert there(server).state == "failed"
    processes.stop(*words, at=(14, "step"))
    assert cli("sync", str(path))[0] == 0
    assert rows(there(server)) == expected(Run.read(path))
    run = processes.run(*words)
    assert cli("sync", str(path))[0] == 0
    assert_whole(there(server), run)
