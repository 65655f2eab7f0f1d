"""Sweeps with several runs at once: what dies, raises or is stopped, and what the same command does next.

Sweeps on submitit and Ray are marked ``cluster``: they take minutes, and libraries that `make test` does without.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from importlib import util
from pathlib import Path

import pytest

import continual
from continual import launching, ledger, sweep, worker
from continual.errors import Terminated, UserError
from continual.ledger import Ledger
from continual.sweep import Outcome
from continual.types import Record
from continual.worker import STOPPED, Job

SMALL = ("scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[4]", "track=none")
CODE = '''
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from continual.strategy import Strategy
from continual.sweep import Outcome, attempt


class Fatal(Strategy):
    """Says that it starts; at its third update kills or fails the first start of some seeds; dawdles if asked to."""

    def __init__(self, marks: str, kill: Sequence[int] = (), fail: Sequence[int] = (), seed: int = 0):
        self.marks, self.kill, self.fail, self.seed, self.updates = Path(marks), kill, fail, seed, 0

    def mix(self, view, batch):
        self.updates += 1
        if self.updates == 1:
            with (self.marks / "starts").open("a") as file:
                threads = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
                print(self.seed, os.getpid(), *threads, file=file)
        first = self.marks / f"first{self.seed}"
        if self.updates == 3 and not first.exists():
            first.touch()
            if self.seed in self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.seed in self.fail:
                raise ZeroDivisionError("it is my fate")
        end = time.monotonic() + 1
        while (self.marks / f"slow{self.seed}").exists() and time.monotonic() < end:
            time.sleep(0.02)
        return batch


@dataclass
class Backwards:
    """A launcher of a user."""

    forget: bool = False

    def __call__(self, jobs, watch):
        for job in reversed(jobs[self.forget :]):
            yield attempt(job.config, restart=job.restart)


class Liar:
    """A launcher that says of each run that it is over."""

    def __call__(self, jobs, watch):
        for job in jobs:
            yield job.judged((True, None, []))
'''
YAMLS = {
    "strategy/fatal.yaml": "fatal: {_target_: my_fatal.Fatal, marks: '???', kill: [], fail: [], seed: '${seed}'}",
    "hydra/launcher/backwards.yaml": "# my own\n_target_: my_fatal.Backwards\nforget: false",
    "hydra/launcher/liar.yaml": "_target_: my_fatal.Liar",
}
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = ("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2")
RAY = ("hydra/launcher=ray", "hydra.launcher.num_cpus=2")
CLUSTERS = pytest.mark.parametrize("launcher", [SUBMITIT, RAY], ids=("submitit", "ray"))


class Place:
    """A user's folder with a strategy that may kill its process, and what its runs leave."""

    def __init__(self, folder: Path) -> None:
        self.conf, self.marks, self.output = folder / "my" / "conf", folder / "marks", folder / "runs"
        for name, text in YAMLS.items():
            (self.conf / name).parent.mkdir(parents=True, exist_ok=True)
            (self.conf / name).write_text(text)
        (folder / "my" / "my_fatal.py").write_text(CODE)
        self.marks.mkdir()

    def words(self, *more: str) -> tuple[str, ...]:
        user = ("--config-dir", str(self.conf), "--allow", "my_fatal", "strategy=fatal")
        return ("run", "-m", *user, f"strategy.fatal.marks={self.marks}", *SMALL, f"output={self.output}", *more)

    def started(self) -> list[list[str]]:
        """Seed, process, torch's threads and OMP_NUM_THREADS of each start."""
        log = self.marks / "starts"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def wait(self, n_starts: int) -> list[list[str]]:
        """Until so many runs have started."""
        until = time.monotonic() + 120
        while len(self.started()) < n_starts:
            assert time.monotonic() < until, "no run starts"
            time.sleep(0.05)
        return self.started()

    def statuses(self) -> Counter[str]:
        return Counter(ledger.read(path).status for path in ledger.find_runs([self.output]))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "my_fatal", raising=False)
    monkeypatch.chdir(tmp_path)  # outside of any repository: whose commit may change
    return Place(tmp_path)


@pytest.fixture
def command(tmp_path):
    """Runs one command line in a process of its own; gives its exit code, what it printed, and what it said."""

    def call(*words):
        done = subprocess.run(
            [sys.executable, "-m", "continual", *words], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def begin(tmp_path):
    """Starts a command in a process group of its own, as a terminal makes one; ends what is left of it."""
    begun = []

    def call(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        words = [sys.executable, "-m", "continual", *words]
        begun.append(subprocess.Popen(words, start_new_session=True, **pipes))
        return begun[-1]

    yield call
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]


# Jobs that die and raise


def check_completes(call, place, *launcher):
    """24 runs, 3 of them killed and one that raises; then just those 4; then none."""
    words = place.words("seed=range(24)", "strategy.fatal.kill=[3,10,20]", "strategy.fatal.fail=[7]", *launcher)
    code, out, err = call(*words)
    assert code == 1, err
    assert place.statuses() == {"finished": 20, "killed": 3, "failed": 1}
    assert sorted(int(seed) for seed, *_ in place.started()) == list(range(24))
    told = err.splitlines()[-5:]
    assert told[0] == "4 of 24 runs FAILED:"
    for line, seed in zip(told[1:], (3, 7, 10, 20), strict=True):
        why = (
            "ZeroDivisionError: it is my fate; its traceback is in" if seed == 7 else "its process ended before the run"
        )
        assert line.startswith(f"  split-gaussian fatal seed {seed}: {why}")
    assert out.splitlines()[-1] == f"20 runs in {place.output}/split-gaussian/fatal"

    code, out, err = call(*words)
    assert code == 0
    assert place.statuses() == {"finished": 24}
    assert sorted(int(seed) for seed, *_ in place.started()[24:]) == [3, 7, 10, 20]
    assert out.splitlines()[-1].endswith(", 20 of them finished before and not run again")
    assert [line.partition("]")[0] for line in err.splitlines()] == [f"[{n}/24" for n in range(1, 25)]

    assert call(*words)[0] == 0
    starts = place.started()
    assert len(starts) == 28
    assert {tuple(threads) for _, _, *threads in starts} == {("1", "1")}
    return [pid for _, pid, *_ in starts]


def test_a_sweep_with_dead_workers_is_completed_by_the_same_command(cli, place, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    processes = set(check_completes(cli, place, *JOBLIB))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert str(os.getpid()) not in processes
    assert 6 <= len(processes) <= 7  # two, one for each that died with work left, and two to complete the sweep
    # The launcher decides nothing: the same names and the same records, bit for bit, as one after the other.
    words = place.words("seed=3,4", "strategy.fatal.kill=[3,10,20]", "strategy.fatal.fail=[7]", f"output={place.conf}")
    assert cli(*words)[0] == 0
    for path in ledger.find_runs([place.conf]):
        other = place.output / path.relative_to(place.conf)
        assert measured(path) == measured(other)
        for key in ("config", "resolved", "hash"):
            own, theirs = (json.loads((p / ledger.MANIFEST).read_text())[key] for p in (path, other))
            assert str(own).replace(str(place.conf), str(place.output)) == str(theirs)


def measured(path):
    return [record for record in ledger.read(path).records if "seconds" not in record.metric]


# Stopping


SIGNALS = ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"))


@pytest.mark.parametrize("way", [SIGNALS[0], pytest.param(SIGNALS[1], marks=pytest.mark.long)], ids=("INT", "TERM"))
def test_a_stopped_sweep_stops_its_workers_which_store_their_runs(cli, begin, place, way):
    check_stops(cli, begin, place, JOBLIB, *way)


def check_stops(call, begin, place, launcher, number, code, how):
    words = place.words("seed=range(3)", "train.epochs=20")
    for seed in (0, 1):
        (place.marks / f"slow{seed}").touch()
    process = begin(*words, *launcher)
    workers = {pid for _, pid, *_ in place.wait(2)}
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.terminate()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert err == f"{how}; 0 of 3 runs are over; the same command runs the others\n"
    assert place.statuses() == {"interrupted": 2}
    assert all(ledger.read(path).saved for path in ledger.find_runs([place.output]))
    assert not any(map(alive, workers))
    for seed in (0, 1):
        (place.marks / f"slow{seed}").unlink()
    assert call(*words)[0] == 0
    assert place.statuses() == {"finished": 3}
    resumed = [len(ledger.read(path).resumed) for path in ledger.find_runs([place.output])]
    assert resumed == [1, 1, 0]


@pytest.mark.cluster
@CLUSTERS
def test_a_cluster_completes_what_died(command, place, monkeypatch, launcher):
    need(launcher)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # decides nothing
    check_completes(command, place, *launcher)


@pytest.mark.cluster
@CLUSTERS
@pytest.mark.parametrize("way", SIGNALS, ids=("INT", "TERM"))
def test_a_stopped_cluster_stores_its_runs(command, begin, place, launcher, way):
    need(launcher)
    check_stops(command, begin, place, launcher, *way)


@pytest.mark.cluster
def test_a_preempted_job_is_queued_again_and_continues(begin, place):
    need(SUBMITIT)
    (place.marks / "slow0").touch()
    process = begin(*place.words("seed=0", "train.epochs=20", *SUBMITIT))
    ((_, pid, *_),) = place.wait(1)
    os.kill(int(pid), signal.SIGUSR2)
    again = place.wait(2)[1][1]
    assert again != pid
    (place.marks / "slow0").unlink()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].startswith("1 runs in ")
    (path,) = ledger.find_runs([place.output])
    assert (ledger.read(path).status, len(ledger.read(path).resumed)) == ("finished", 1)


@pytest.mark.cluster
def test_a_cluster_that_is_there_is_joined_by_its_address_and_left(command, place, monkeypatch):
    need(RAY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    options = (f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--object-store-memory=100000000")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    with subprocess.Popen([*start, "--include-dashboard=false", *options], stdout=subprocess.DEVNULL) as head:
        try:
            until = time.monotonic() + 120
            while not answers(port):
                assert time.monotonic() < until, "no cluster starts"
                time.sleep(0.2)
            address = f"hydra.launcher.address=127.0.0.1:{port}"
            words = place.words("seed=range(3)", "strategy.fatal.kill=[1]", RAY[0], address)
            code, _, err = command(*words)
            assert code == 1, err
            assert place.statuses() == {"finished": 2, "killed": 1}
            assert command(*words)[0] == 0
            assert place.statuses() == {"finished": 3}
            assert head.poll() is None
        finally:
            head.terminate()


def answers(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def need(launcher):
    library = launcher[0].partition("=")[2].partition("_")[0]
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'continual[{library}]'")


# Two sweeps over the same runs


def test_a_run_in_use_is_told_and_left_to_the_other_sweep(cli, begin, place):
    (place.marks / "slow0").touch()
    words = place.words("seed=0,1,2", "train.epochs=20")
    other = begin(*words, JOBLIB[0], "hydra.launcher.n_jobs=1")
    ((_, pid, *_),) = place.wait(1)
    code, out, err = cli(*words)
    assert code == 1
    assert out.splitlines()[-1] == f"2 runs in {place.output}/split-gaussian/fatal"
    assert err.splitlines()[-2] == "1 of 3 runs FAILED:"
    assert f"is in use by process {pid} on " in err.splitlines()[-1]
    (place.marks / "slow0").unlink()
    assert other.communicate(timeout=120)[1].count("has finished before, not run again") == 2
    assert other.returncode == 0
    assert sorted(seed for seed, *_ in place.started()) == ["0", "1", "2"]
    assert place.statuses() == {"finished": 3}


@pytest.mark.long
def test_two_sweeps_started_at_once_share_the_runs(begin, place):
    words = place.words("seed=range(8)", *JOBLIB)
    both = [begin(*words), begin(*words)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert sorted(int(seed) for seed, *_ in place.started()) == list(range(8))
    assert place.statuses() == {"finished": 8}
    for err, code in ends:
        assert code == ("FAILED" in err)
        assert err.count("FAILED,") == err.count("in use by process")


# What a worker says, and what the run directory says


@pytest.fixture
def job(tmp_path):
    return Job(continual.compose(*SMALL, f"output={tmp_path}"), place=str(tmp_path))


def write(job, end=None):
    book = Ledger.create(job.config.directory, {"created": "now", "config": "", "seed": 0})
    book.append([Record(0, 0, None, "start", 0, "accuracy", 0.5)])
    if end is not None:
        book.end(end)
    book.close()


@pytest.mark.parametrize(("end", "status"), [(None, "killed"), ("interrupted", "interrupted"), ("failed", "failed")])
def test_a_job_is_not_over_before_its_ledger_says_so(job, end, status):
    write(job, end)
    outcome = job.judged((True, None, []))
    assert outcome.run is None
    assert str(outcome.error) == f"it is said to be over, but the run is {status} in {job.config.directory}"


def test_a_job_without_a_run_is_not_over(job):
    assert job.judged((True, None, [])).run is None


def test_a_job_is_over_if_its_ledger_says_so_whatever_became_of_its_worker(job):
    write(job, "finished")
    assert job.judged(worker.lost("killed")).run.status == "finished"
    assert not job.judged(worker.lost("killed")).run.ran
    assert job.judged((True, None, [])).run.ran


def test_an_old_run_does_not_stand_for_one_that_was_to_be_started_over(job):
    write(job, "finished")
    again = Job(job.config, restart=True)
    outcome = again.judged((False, "no room", ["a note"]))
    assert (outcome.run, str(outcome.error), outcome.error.__notes__) == (None, "no room", ["a note"])


def test_a_run_that_another_process_has_finished_meanwhile_is_read(job):
    def busy(jobs, watch):
        book = Ledger.create(job.config.directory, {"created": "now", "config": "", "seed": 0})
        yield Outcome(job.config, None, UserError("in use"))
        book.end("finished")
        book.close()
        yield Outcome(other.config, None, UserError("no room"))

    other = Job(continual.compose(*SMALL, "seed=1", f"output={job.place}"), place=job.place)
    first, last = sweep.launched(busy, [job, other], None)
    assert (first.config, str(first.error)) == (other.config, "no room")
    assert (last.config, last.run.status, last.run.ran) == (job.config, "finished", False)


def test_a_worker_replies_plain_values_and_closes_wandb(job, tmp_path, monkeypatch):
    from continual.trackers import wandb

    closed = []
    monkeypatch.setattr(wandb, "close", lambda: closed.append(1))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    assert worker.work(job) == (True, None, [])
    assert worker.work(job) == (False, None, [])
    monkeypatch.setattr(worker, "attempt", stopping)
    assert worker.work(job) == (False, STOPPED, [])
    wrong = Job(job.config, config_dir="nowhere", place=job.place)
    assert worker.work(wrong)[1].startswith("--config-dir nowhere is not a folder")
    assert len(closed) == 4
    assert signal.getsignal(signal.SIGTERM) is before


def stopping(config, restart):
    signal.raise_signal(signal.SIGTERM)


def test_a_worker_fences_the_config_again(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job.config.resolved["probe"]["_target_"] = "os.system"
    assert "os.system is outside the fence" in worker.work(job)[1]


# Launchers of a user


@pytest.mark.parametrize("forget", [False, True])
def test_a_launcher_of_a_user(cli, place, forget):
    launcher = ("hydra/launcher=backwards", f"hydra.launcher.forget={str(forget).lower()}")
    code, _, err = cli(*place.words("seed=range(3)", *launcher))
    assert [seed for seed, *_ in place.started()] == (["2", "1"] if forget else ["2", "1", "0"])
    assert code == forget
    assert ("seed 0: its launcher did not say how it went; start it again" in err) == forget


def test_a_launcher_that_lies_is_not_believed(cli, place):
    code, _, err = cli(*place.words("seed=range(2)", "hydra/launcher=liar"))
    assert code == 1
    assert err.count("it is said to be over, but the run is not there in") == 4  # as it ends, and at the end


def test_launchers_are_listed(cli, place):
    code, out, _ = cli("list", "hydra/launcher", "--config-dir", str(place.conf))
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert names == ["backwards", "basic", "cohort", "joblib", "liar", "ray", "submitit_local", "submitit_slurm"]
    assert "my own" in out


# What a user gets wrong

WRONG = {
    "hydra/launcher=joblob": "hydra/launcher=joblob does not exist; did you mean 'joblib'?",
    "hydra/launcher=joblib,ray": "hydra/launcher=joblib,ray: one launcher runs the whole sweep",
    "hydra/launcher=joblib hydra.launcher.n_job=2": "n_job=2: there is no such key; did you mean 'n_jobs'?",
    "hydra/launcher=joblib hydra.launcher._target_=os.system": "there is no such key",
    "hydra/launcher=joblib hydra.launcher.n_jobs=0": "hydra.launcher.n_jobs=0 must be at least 1, or null",
    "hydra/launcher=joblib hydra.launcher.n_jobs=two": "hydra.launcher.n_jobs=two must be an integer or null",
    "hydra/launcher=joblib hydra.launcher.n_jobs=1,2": "one launcher runs the whole sweep",
    "hydra/launcher=joblib +hydra.launcher.x=1": "one launcher runs the whole sweep",
    "hydra.launcher.n_jobs=2": "there is no such key; add hydra/launcher=joblib to run several at once",
    "hydra.sweeper=x": "hydra's own settings are not used here",
    "hydra/launcher=submitit_local hydra.launcher.n_jobs=0": "hydra.launcher.n_jobs=0 must be at least 1",
    "hydra/launcher=submitit_slurm hydra.launcher.mem_gb=0": "hydra.launcher.mem_gb=0 must be above 0, or null",
    "hydra/launcher=submitit_slurm": "needs Slurm's sbatch, srun, sacct, scancel on this machine",
    "hydra/launcher=ray hydra.launcher.cpus_per_run=0": "hydra.launcher.cpus_per_run=0 must be above 0",
    "hydra/launcher=ray hydra.launcher.num_cpus=2 hydra.launcher.address=auto": "the cluster at the address has",
    "hydra/launcher=ray hydra.launcher.object_store_mb=10": "hydra.launcher.object_store_mb=10 must be at least 80",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_launcher_is_told_before_any_work(cli, tmp_path, monkeypatch, words):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(util, "find_spec", lambda name: name)
    for module in ("submitit", "ray"):
        monkeypatch.setattr(f"continual.launchers.{module}.find_spec", lambda name: name)
    monkeypatch.setattr(sweep, "check", pytest.fail)
    code, out, err = cli("run", "-m", "seed=0,1", *SMALL, f"output={tmp_path}/runs", *words.split())
    assert (code, out) == (2, "")
    assert WRONG[words] in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "extra"), [("submitit_local", "submitit"), ("submitit_slurm", "submitit"), ("ray", "ray")]
)
def test_a_library_that_is_not_there_is_told_with_its_command(monkeypatch, name, extra):
    monkeypatch.setattr(f"continual.launchers.{extra}.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"hydra/launcher={name} needs .*: pip install 'continual\[{extra}\]'"):
        launching.launcher([f"hydra/launcher={name}"])


def test_a_launcher_needs_several_runs(cli):
    code, _, err = cli("run", "hydra/launcher=joblib", *SMALL)
    assert code == 2
    assert "only hydra/launcher=... of 'continual run -m'" in err


def test_a_launcher_of_a_user_is_fenced(place):
    with pytest.raises(UserError, match=r"my_fatal.Backwards is outside the fence.*--allow my_fatal"):
        launching.launcher(["hydra/launcher=backwards"], place.conf)


# Submitit


def test_the_options_of_slurm_reach_its_script(job, tmp_path, monkeypatch):
    """With an sbatch that only keeps what it is given: one array of jobs, a thread each, a signal before time is up."""
    pytest.importorskip("submitit")
    for name, text in {
        "sbatch": 'cp "$1" "$0.script"; echo Submitted batch job 7',
        "scancel": 'echo "$@" >> "$0.log"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    for name in ("srun", "sacct"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    for name in ("sbatch", "scancel", "srun", "sacct"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("continual.launchers.submitit.STOP_SECONDS", 0.1)
    given = {"timeout_min": 90, "partition": "long", "mem_gb": 3, "gpus_per_node": 1, "array_parallelism": 1}
    words = [f"hydra.launcher.{name}={value}" for name, value in given.items()]
    launch = launching.launcher(["hydra/launcher=submitit_slurm", *words, "hydra.launcher.setup=[module load x]"])
    naps = iter([KeyboardInterrupt])

    def sleep(seconds):
        for error in naps:
            raise error

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        list(launch([job, job], None))
    script = (tmp_path / "sbatch.script").read_text()
    for line in (
        "time=90", "partition=long", "mem=3GB", "gpus-per-node=1", "array=0-1%1", "cpus-per-task=1", "signal=USR2@90",
        "job-name=continual",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert "module load x\n" in script
    assert (tmp_path / "scancel.log").read_text().split() == ["7_0", "7_1"]
    assert (tmp_path / "submitit").stat().st_mode & 0o777 == 0o700


def test_a_job_that_is_preempted_goes_on_and_does_not_start_over(job, tmp_path, monkeypatch):
    """Submitit's signal: the run stores itself and stops, then submitit's own handler queues the job again."""
    pytest.importorskip("submitit")
    from continual.launchers.submitit import Resumable

    monkeypatch.chdir(tmp_path)
    write(job, "finished")
    again = Job(job.config, restart=True, place=str(tmp_path))
    stored, queued = [], []

    def preempted(config, restart):
        if stored:  # the second time the run has begun anew
            (config.directory / ledger.MANIFEST).write_text("{}")
        stored.append(restart)
        try:
            signal.raise_signal(signal.SIGUSR2)
        except Terminated:
            stored.append("stored")
            raise

    task = Resumable()
    monkeypatch.setattr(worker, "attempt", preempted)
    before = signal.signal(signal.SIGUSR2, lambda number, frame: queued.append(task.checkpoint(again).args[0].restart))
    handler = signal.getsignal(signal.SIGUSR2)
    try:
        for _ in range(2):
            signal.signal(signal.SIGUSR2, handler)
            with pytest.raises(Terminated):
                task(again)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stored == [True, "stored"] * 2
    assert queued == [True, False]  # the run that had begun anew continues
