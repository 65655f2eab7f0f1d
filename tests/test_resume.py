"""Whatever stops a run, the same command continues it, and it ends as if nothing had stopped it.

A warm server forks a process for each run, so that a kill costs a fraction of a second: ``kill -9`` at random moments,
and at each operation on the disk in turn.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import continual
from continual import config as configs
from continual import experiment, ledger, snapshot
from continual.checkpoint import Checkpoints, Snapshots, best, newest
from continual.errors import Terminated, UserError
from continual.journal import Mark, Saved
from continual.probe import Measure

DIGITS = ("experiment=split_digits", "train.epochs=2", "probe.every=100", "snapshot.steps=20", "track=none")
TINY = (
    *("scenario/source=gaussian", "scenario.n_tasks=4", "model.hidden=[8]", "train.epochs=5", "track=none"),
    *("snapshot.seconds=null", "snapshot.share=null"),  # what is stored does not depend on the clock
)
METHODS = {
    "er": ("strategy=er",),
    "derpp": ("strategy=derpp",),
    "ewc": ("strategy=ewc",),
    "icarl": ("strategy=icarl",),
    "slda": ("learner=slda",),
}

SERVER = """
import functools, json, os, pathlib, signal, sys, time
import torch, torch.distributed.tensor  # which vmap loads
torch.set_num_threads(1)
import continual
from continual import config
from continual.experiment import run_config

def die_at(n):
    'Be killed just before the n-th operation on the disk.'
    count = 0
    def counted(operation):
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)
        return call
    for name in ("fsync", "pwrite", "ftruncate", "replace", "rename", "unlink"):
        setattr(os, name, counted(getattr(os, name)))

@functools.cache
def compose(*words):
    return config.compose(*words)

def composed(*words):
    return config.with_values(compose(*words[:-1]), {"output": words[-1].removeprefix("output=")})

def written(job):
    'Changes when the run has begun to write, or to write again.'
    stats = [path.stat() for path in pathlib.Path(job["words"][-1].removeprefix("output=")).rglob("records.jsonl")]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

def ended(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

for line in sys.stdin:
    job = json.loads(line)
    made, before = composed(*job["words"]), written(job)
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if job["die_at"]:
                die_at(job["die_at"])
            run_config(made)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\\n")
            os._exit(1)
        os._exit(0)
    while job["kill_after"] is not None and written(job) == before and not ended(pid):
        time.sleep(0.001)
    began = time.monotonic()
    if job["kill_after"] is not None:
        time.sleep(job["kill_after"])
        os.kill(pid, job["number"])  # it is not reaped before: the number is still its own
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([code, time.monotonic() - began]), flush=True)
"""


class Server:
    """Runs configs, one after another, each in a fresh fork of a process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, *words: str, **options: Any) -> int:
        """The exit code, negative for the signal that killed it; ``words`` end with ``output=...``.

        Options: ``die_at``; or ``kill_after``, seconds after its first line was written, and ``number``.
        """
        return self.timed(*words, **options)[0]

    def timed(self, *words: str, **options: Any) -> tuple[int, float]:
        """The exit code, and the seconds after its first line was written if it was to be killed then, else all."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"words": words, "die_at": 0, "kill_after": None, "number": signal.SIGKILL} | options
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return code, seconds


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def outcome(directory: Path) -> tuple[Any, ...]:
    """What must not depend on whether the run was stopped: status, records and metrics (times aside), the learner."""
    data = ledger.read(directory)
    run = continual.Run.read(directory)
    records = [record for record in data.records if record.metric != "seconds"]
    metrics = {name: value for name, value in run.metrics.items() if "seconds" not in name}
    found = newest(directory / ledger.SNAPSHOTS, data.saved)
    assert found is not None
    state, measured = found[1]["learner"], found[1]["measure"] | {"seconds": 0.0}
    return data.status, records, metrics, snapshot.dumps(state), snapshot.dumps(measured)


def place(root: Path) -> Path:
    """The one run directory below ``root``."""
    (directory,) = ledger.find_runs([root])
    return directory


def run(output: Path, *words: str) -> Path:
    """Run to the end in this process."""
    return continual.run(*words, f"output={output}").path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of these words that nothing stopped; made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*words: str) -> Path:
        if words not in made:
            made[words] = run(tmp_path_factory.mktemp("whole"), *words)
        return made[words]

    return make


def in_pieces(output: Path, *words: str, pauses: int) -> tuple[Path, int]:
    """Run to the end in this process, stopped by Ctrl-C at every ``pauses``-th pause; and how often it was."""
    for stops in range(100):
        with suppress(KeyboardInterrupt):
            return interrupted(output, *words, at=(Checkpoints, "after", pauses)), stops
    pytest.fail("it does not come to its end")


def interrupted(output: Path, *words: str, at: tuple[Any, str, int]) -> Path:
    """Run in this process; Ctrl-C is pressed in the n-th call of this method of a class."""
    owner, name, nth = at
    original, calls = getattr(owner, name), []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        return run(output, *words)


# Kills


def check_kills(server: Server, whole: Callable[..., Path], tmp_path: Path, name: str, kills: int, seed: int) -> str:
    words, draw = (*DIGITS, *METHODS[name]), random.Random(f"{name} {seed}")
    expected = outcome(whole(*words))
    code, seconds = server.timed(*words, f"output={tmp_path / 'timed'}", kill_after=0, number=0)  # no signal
    assert code == 0
    hit, went_on = 0, 0
    for number in range(5 * kills):
        output = tmp_path / f"{number}"
        for _ in range(4):  # up to four kills of one run
            code = server.run(*words, f"output={output}", kill_after=draw.uniform(0, 0.5 * seconds))
            hit += code == -signal.SIGKILL
            if code == 0 or hit == kills:
                break
        assert server.run(*words, f"output={output}") == 0
        assert outcome(place(output)) == expected
        went_on += len(ledger.read(place(output)).resumed)
        if hit == kills:
            break
    assert hit == kills
    return f"{hit} kills hit a run, {number + 1} runs went on {went_on} times"


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_killed_at_random_moments_ends_bit_for_bit(
    server: Server, whole: Callable[..., Path], tmp_path: Path, name: str, figure: Callable[[str], None]
) -> None:
    figure(check_kills(server, whole, tmp_path, name, kills=4, seed=0))


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_killed_at_many_moments_ends_bit_for_bit(
    server: Server, whole: Callable[..., Path], tmp_path: Path, name: str, figure: Callable[[str], None]
) -> None:
    figure(check_kills(server, whole, tmp_path, name, kills=20, seed=1))


def check_operations(server: Server, whole: Callable[..., Path], tmp_path: Path, every: int) -> str:
    words = (*TINY, "strategy=er", "snapshot.steps=9")
    expected = outcome(whole(*words))
    operation, died = 1, True
    while died:
        output = tmp_path / str(operation)
        died = server.run(*words, f"output={output}", die_at=operation) == -signal.SIGKILL
        assert server.run(*words, f"output={output}") == 0
        assert outcome(place(output)) == expected
        assert not list(output.rglob("*.tmp"))
        operation += every
    assert operation > 100
    return f"{(operation - 1) // every - 1} kills, each before another operation on the disk"


def test_a_run_that_was_killed_between_two_operations_on_the_disk_ends_bit_for_bit(
    server: Server, whole: Callable[..., Path], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    figure(check_operations(server, whole, tmp_path, every=29))


@pytest.mark.long
def test_a_run_that_was_killed_before_any_operation_on_the_disk_ends_bit_for_bit(
    server: Server, whole: Callable[..., Path], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    figure(check_operations(server, whole, tmp_path, every=1))


# Snapshots that are damaged


def damaged(path: Path, how: int, draw: random.Random) -> None:
    """Cut a file short, flip one bit of it, empty it, put another in its place, or delete it."""
    data = bytearray(path.read_bytes())
    if how == 0:
        path.write_bytes(data[: draw.randrange(len(data))])
    elif how == 1:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif how == 2:
        path.write_bytes(b"")
    elif how == 3:
        snapshot.save(path, {"learner": {}, "measure": {}})  # whole, and not what was written
    else:
        path.unlink()


def test_a_damaged_snapshot_is_passed_over_and_the_run_still_ends_bit_for_bit(
    server: Server, whole: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, figure: Any
) -> None:
    words = (*TINY, "strategy=er", "snapshot.steps=9", "snapshot.keep=3")
    expected = outcome(whole(*words))
    config = configs.compose(*words, f"output={tmp_path / 'killed'}")
    assert server.run(*words, f"output={tmp_path / 'killed'}", die_at=150) == -signal.SIGKILL
    draw, went_on = random.Random(0), []
    for case in range(50):
        output = tmp_path / str(case)
        shutil.copytree(tmp_path / "killed", output)
        directory = place(output)
        kept = [saved for saved in ledger.read(directory).saved if (directory / "snapshots" / saved.name).exists()]
        n_damaged = 1 + case // 10 % len(kept)
        for saved in kept[-n_damaged:]:
            damaged(directory / "snapshots" / saved.name, case % 5, draw)
        caplog.clear()
        found = newest(directory / "snapshots", kept)
        assert (None if found is None else found[0]) == (kept[-n_damaged - 1] if n_damaged < len(kept) else None)
        assert kept[-1].name in caplog.text  # it is said
        experiment.run_config(configs.with_values(config, {"output": str(output)}))
        assert outcome(directory) == expected
        went_on.append(n_damaged)
    figure(f"50 runs with damaged snapshots: {went_on.count(1)} with one, {len(went_on) - went_on.count(1)} with more")
    assert max(went_on) == len(kept) == 3


# Trouble with the disk


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_when_there_is_room(
    whole: Callable[..., Path], tmp_path: Path
) -> None:
    words = (*TINY, "strategy=er", "snapshot.steps=9", "snapshot.keep=1")
    expected = outcome(whole(*words))
    size = max(path.stat().st_size for path in (place(whole(*words)) / "snapshots").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Bytes that a file may have: manifest, snapshots or records are cut. A snapshot's size differs by the digits of the
    # seconds in it from run to run.
    limits = [3000, 6500, 9000, size - 64]
    for limit in limits:
        output = tmp_path / str(limit)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(UserError, match=r"cannot be written: File too large; (choose another|make room)"):
                run(output, *words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for directory in ledger.find_runs([output]) if any(output.rglob("manifest.json")) else []:
            found = newest(directory / "snapshots", ledger.read(directory).saved)
            assert found is not None or not list(directory.glob("snapshots/*"))  # what was kept before is whole
        assert outcome(run(output, *words)) == expected


def test_a_directory_that_became_read_only_is_a_clear_error(whole: Callable[..., Path], tmp_path: Path) -> None:
    """In a child that is nobody, as root may write everywhere."""
    words = (*TINY, "strategy=er", "snapshot.steps=9")
    config = configs.compose(*words, f"output={tmp_path}")

    def close(directory: Path) -> None:
        (directory / "snapshots").chmod(0o555)

    os.chmod(tmp_path, 0o777)
    for parent in tmp_path.parents:
        if parent.owner() == tmp_path.owner() and not parent.stat().st_mode & 0o001:
            os.chmod(parent, parent.stat().st_mode | 0o001)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = "it ran to its end"
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            original = Checkpoints.save

            def save(self: Checkpoints, score: float | None = None) -> None:
                original(self, score)
                close(self.book.path)

            Checkpoints.save = save  # type: ignore[method-assign]
            experiment.run_config(config)
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write_end, told.encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as pipe:
        told = pipe.read()
    directory = place(tmp_path)
    assert told.startswith(f"UserError: {directory}/snapshots/18-")
    assert "cannot be written: Permission denied; make room, or make it writable" in told
    data = ledger.read(directory)
    assert (data.status, len(data.saved)) == ("failed", 1)
    (directory / "snapshots").chmod(0o777)
    assert outcome(run(tmp_path, *words)) == outcome(whole(*words))


# Requests to stop


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["ctrl-c", "sigterm"]
)
def test_a_request_to_stop_keeps_the_update_that_is_being_made(
    whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[BaseException]
) -> None:
    from continual import learner

    words = (*TINY, "strategy=er")
    before = signal.getsignal(number)
    original, calls = learner.step, []

    def step(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 12:
            os.kill(os.getpid(), number)
        original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(learner, "step", step)
        with pytest.raises(kind):
            run(tmp_path, *words)
    data = ledger.read(place(tmp_path))
    assert (data.status, data.saved[-1].name.partition("-")[0], len(calls)) == ("interrupted", "12", 12)
    assert signal.getsignal(number) is before
    assert outcome(run(tmp_path, *words)) == outcome(whole(*words))


PIECES = {
    "joint, a growing head": ("learner=joint", "learner.every=2", "train.head=growing"),
    "gdumb, rows by index": ("learner=gdumb", "learner.memory.store=indices", "learner.epochs=1"),
    "buffer_knn": ("learner=buffer_knn",),
    "ranpac": ("learner=ranpac", "learner.n_features=20", "learner.batch_size=10"),
    "late and wrong labels": (
        *("strategy=er", "operator=[noise,delay]", "operator.delay.rows=12", "scenario.arrival_rows=9"),
        *("probe.every=20", "probe.prequential=true", "probe.window=30"),
    ),
    "no boundaries": ("strategy=er", "scenario=online", "probe=prequential", "probe.every=30", "probe.window=7"),
    "a head of each task": (
        *("strategy=[er,ewc]", "scenario.kind=task", "train.head=multi_head", "optimizer.momentum=0.9"),
        *("scheduler=step", "scheduler.step_size=3"),
    ),
    "adam, weights with a past": ("strategy=[si,lwf]", "optimizer=adam", "train.head=growing"),
    "tasks in turn": ("strategy=er", "probe=rotating", "probe.every=20", "probe.n_old=1", "probe.all_every=3"),
    "packnet": ("strategy=packnet", "scenario.kind=task", "train.head=per_task"),
    "augmented images": (
        *("scenario/source=digits", "scenario.n_tasks=2", "scenario.rows_per_task=90", "strategy=derpp"),
        *("augment=crop_flip", "augment.crop=1"),
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_whatever_learns_and_is_measured_goes_on(whole: Callable[..., Path], tmp_path: Path, name: str) -> None:
    trained = ("model.hidden=[8]", "train.epochs=1") if name not in ("buffer_knn", "ranpac") else ()
    words = (*(word for word in TINY if not word.startswith(("model", "train"))), *trained, *PIECES[name])
    directory, stops = in_pieces(tmp_path, *words, pauses=9)
    assert stops >= 2
    assert outcome(directory) == outcome(whole(*words))


def test_what_is_measured_last_is_measured_once(whole: Callable[..., Path], tmp_path: Path) -> None:
    words = (*TINY, "strategy=er")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, *words, at=(Measure, "final", 1))
    assert ledger.read(place(tmp_path)).status == "interrupted"
    assert outcome(run(tmp_path, *words)) == outcome(whole(*words))


def test_a_request_that_comes_when_the_run_has_ended_stops_what_would_follow(
    whole: Callable[..., Path], tmp_path: Path
) -> None:
    words = (*TINY, "strategy=er")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, *words, at=(ledger.Ledger, "end", 1))
    assert outcome(place(tmp_path)) == outcome(whole(*words))


@pytest.mark.parametrize("seam", ["begin", "end"])
def test_work_at_a_border_of_tasks_that_takes_too_long_to_stop_is_done_again(
    whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seam: str
) -> None:
    from continual.strategies.ewc import EWC

    words = (*TINY, "strategy=ewc", "snapshot.seconds=1e-9", "snapshot.grace=0.05")
    original, calls = getattr(EWC, seam), []

    def slow(self: EWC, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            original(self, *arguments)  # half of its work is done
            for _ in range(1000):
                time.sleep(0.01)
            pytest.fail("it was not stopped")
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(EWC, seam, slow)
        with pytest.raises(Terminated):
            run(tmp_path, *words)
    data = ledger.read(place(tmp_path))
    assert data.status == "interrupted"
    step = int(data.saved[-1].name.partition("-")[0])
    assert step == {"begin": 20, "end": 40}[seam]  # every update that was made is kept
    assert outcome(run(tmp_path, *words)) == outcome(whole(*words))


def test_a_second_request_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from continual import learner

    def step(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            time.sleep(0.01)
        pytest.fail("it was not stopped")

    monkeypatch.setattr(learner, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *TINY)
    assert ledger.read(place(tmp_path)).saved == []


# What goes on, and what does not


def test_the_same_seed_gives_the_same_ledger_and_other_probes_the_same_learner(tmp_path: Path) -> None:
    words = (*TINY, "strategy=[er,ewc]")
    one, two = (run(tmp_path / str(number), *words) for number in range(2))
    assert outcome(one) == outcome(two)
    probed = run(tmp_path / "probed", *words, "probe.every=20", "probe.prequential=true")
    records = {record for record in ledger.read(one).records if record.metric != "seconds"}
    assert records < set(ledger.read(probed).records)
    assert outcome(probed)[3] == outcome(one)[3]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    directory = run(tmp_path, *TINY, "strategy=er", "snapshot.keep=1", "snapshot.steps=7")
    data = ledger.read(directory)
    scores = {saved.name: saved.score for saved in data.saved if saved.score is not None}
    assert len(scores) == 4
    (chosen,) = best(directory / "snapshots", data.saved)
    assert chosen.score == max(scores.values())
    assert {path.name for path in (directory / "snapshots").iterdir()} == {chosen.name, data.saved[-1].name}
    kept = continual.load(directory, which="best").state_dict()
    expected = snapshot.load(directory / "snapshots" / chosen.name)["learner"]
    assert snapshot.dumps(kept) == snapshot.dumps(expected)
    with pytest.raises(UserError, match="which='first'; choose from best, last"):
        continual.load(directory, which="first")


def test_the_best_is_the_highest_and_the_later_of_two_equal_ones(tmp_path: Path) -> None:
    scores = [0.5, 0.9, 0.9, None, 0.7]
    saved = [Saved(f"{step}.snapshot", "", score, Mark(size=step)) for step, score in enumerate(scores)]
    for one in saved:
        (tmp_path / one.name).touch()
    assert best(tmp_path, saved) == [saved[2]]
    (tmp_path / saved[2].name).unlink()
    assert best(tmp_path, saved) == [saved[1]]


def test_what_was_cut_does_not_count_among_the_newest(tmp_path: Path) -> None:
    words = (*TINY, "snapshot.steps=3", "snapshot.keep=3", "snapshot.best=false")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, *words, at=(Checkpoints, "after", 15))
    directory = place(tmp_path)
    (directory / "snapshots" / ledger.read(directory).saved[-1].name).write_bytes(b"damaged")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, *words, at=(Checkpoints, "after", 1))
    newest_three = {saved.name for saved in ledger.read(directory).saved[-3:]}
    assert {path.name for path in (directory / "snapshots").iterdir()} == newest_three


def test_other_data_are_refused_and_another_version_is_written_down(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, "strategy=er")
    assert server.run(*words, f"output={tmp_path}", die_at=60) == -signal.SIGKILL
    with monkeypatch.context() as patch:
        patch.setattr("scenarios.stream.IndexStream.digest", lambda self: "other")
        with pytest.raises(UserError, match=r"the data are not those that the run in .* began with; start over"):
            run(tmp_path, *words)
    assert ledger.read(place(tmp_path)).status == "killed"
    monkeypatch.setattr("continual.manifest.platform.python_version", lambda: "9.9")
    (differences,) = ledger.read(run(tmp_path, *words)).resumed
    assert differences["python"][1] == "9.9"


def test_a_run_that_is_refused_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, *TINY, at=(Checkpoints, "after", 5))
    before = ledger.read(place(tmp_path))
    monkeypatch.setattr("scenarios.stream.IndexStream.digest", lambda self: "other")
    with pytest.raises(UserError, match="the data are not those"):
        run(tmp_path, *TINY)
    assert before.status == "interrupted"
    assert ledger.read(place(tmp_path)) == before


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, *TINY, at=(Checkpoints, "after", 5))
    directory = place(tmp_path)
    continual.load(directory)
    told = "the run is interrupted, without a whole snapshot of a task's end; the command that began it continues it"
    with pytest.raises(UserError, match=told):
        continual.load(directory, which="best")
    run(tmp_path, *TINY)
    for path in (directory / "snapshots").iterdir():
        path.write_bytes(b"damaged")
    told = "the run is finished, without a whole snapshot; its command with --restart runs it again"
    with pytest.raises(UserError, match=told):
        continual.load(directory)


def test_a_snapshot_that_does_not_fit_says_so(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*TINY, "strategy=er", "snapshot.steps=3")
    assert server.run(*words, f"output={tmp_path}", die_at=80) == -signal.SIGKILL
    monkeypatch.setattr("continual.memory.Reservoir.load_state_dict", lambda self, state: state["renamed"])
    with pytest.raises(UserError, match=r"snapshot does not fit this learner \('renamed'\); has the code changed"):
        run(tmp_path, *words)


def test_a_learner_that_is_not_finite_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from continual import learner

    original, calls = learner.step, []

    def step(view: Any, *arguments: Any, **named: Any) -> None:
        original(view, *arguments, **named)
        calls.append(1)
        if len(calls) == 20:
            next(iter(view.params.values())).data[0, 0] = torch.inf

    monkeypatch.setattr(learner, "step", step)
    with pytest.raises(continual.UserError, match=r"network\.\S+ of the learner is nan or infinite after update 20"):
        run(tmp_path, *TINY, "snapshot.steps=10")
    data = ledger.read(place(tmp_path))
    assert (data.status, [saved.name.partition("-")[0] for saved in data.saved]) == ("failed", ["10"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, "snapshot.steps=0 must be at least 1, or null"),
        ({"seconds": 0}, "snapshot.seconds=0 must be above 0, or null"),
        ({"share": 1.5}, r"snapshot.share=1.5 must be in \(0, 1\], or null"),
        ({"keep": 0}, "snapshot.keep=0 must be at least 1"),
        ({"grace": -1}, "snapshot.grace=-1 must be at least 0"),
    ],
)
def test_a_schedule_outside_its_bounds_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Snapshots(**options)


@pytest.mark.parametrize("words", [("strategy=icarl",), ("strategy=scr", "model=cnn"), ("strategy=er",)])
def test_a_run_that_was_stopped_after_its_last_task_measures_what_is_left(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """The learner answers before it has learned anything in this process."""
    words = ("scenario/source=digits", "scenario.n_tasks=2", "train.iterations=3", "track=none", *words)
    expected = run(tmp_path / "whole", *words)
    original = experiment.moments

    def stopped(*arguments: Any) -> Iterator[Any]:
        for records in original(*arguments):
            if records and records[-1].at == "final":
                raise KeyboardInterrupt
            yield records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "moments", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *words)
    again = run(tmp_path, *words)
    assert outcome(again) == outcome(expected)
