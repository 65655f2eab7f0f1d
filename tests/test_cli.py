"""The command line from end to end, on small generated data."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import continual
from continual import cli as command_line
from continual import experiment, ledger, track

SMALL = ("scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[8]", "track=none")
STRATEGY = """
from continual.strategy import Strategy


class Mine(Strategy):
    def __init__(self, breaks: bool = False, seed: int = 0):
        self.breaks = breaks and seed == 1

    def mix(self, view, batch):
        if self.breaks:
            raise ZeroDivisionError("a mistake\\nof mine")
        return batch
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's own strategy beside its config; with ``strategy.mine.breaks=true`` seed 1 raises."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    folder = tmp_path / "my" / "conf"
    (folder / "strategy").mkdir(parents=True)
    (tmp_path / "my" / "my_code.py").write_text(STRATEGY)
    yaml = "# my own\nmine:\n  _target_: my_code.Mine\n  breaks: false\n  seed: ${seed}\n"
    (folder / "strategy" / "mine.yaml").write_text(yaml)
    return ("--config-dir", str(folder), "--allow", "my_code", "strategy=mine")


@pytest.fixture
def stopped(monkeypatch):
    """Makes the next run be asked to stop at its n-th pause: ``stopped(signal.SIGINT, 9)``."""

    def arm(number, at):
        def moments(*arguments):
            for count, records in enumerate(original(*arguments)):
                if count == at:
                    signal.getsignal(number)(number, None)
                yield records

        original = experiment.moments
        monkeypatch.setattr(experiment, "moments", moments)

    return arm


# Start and help


def test_help_and_version_start_without_the_libraries():
    code = (
        "import sys, continual.cli as cli; assert cli.main(['--help']) == cli.main(['--version']) == 0;"
        "assert cli.main(['run', '--help']) == 0;"
        "print({'torch', 'hydra', 'omegaconf', 'wandb', 'rich', 'numpy', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_python_m_continual_is_the_command():
    done = subprocess.run([sys.executable, "-m", "continual", "rnu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no command 'rnu'; did you mean 'run'?; see continual --help\n"


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_every_command(cli, words):
    code, out, _ = cli(*words)
    assert code == 0
    assert all(re.search(rf"^  {name} +\S", out, re.M) for name in command_line.COMMANDS)


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_has_help(cli, name):
    code, out, err = cli(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: continual {name}")


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from continual.cli import main; sys.exit(main(['list']))"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=buffered, **pipes) as process:
        process.stdout.close()  # before anything is written: Python has yet to start
        assert process.stderr.read() == b""
    assert process.returncode == 0


# One run


def test_a_run_prints_its_metrics_its_matrix_and_its_place(cli, tmp_path):
    code, out, err = cli("run", "seed=3", *SMALL, f"output={tmp_path}")
    (path,) = ledger.find_runs([tmp_path])
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("split-gaussian none seed 3: finished in ")
    assert "average accuracy" in out
    assert "after 1" in out
    assert out.splitlines()[-1] == str(path)
    assert continual.Run.read(path).status == "finished"


def test_options_and_overrides_in_any_order(cli, tmp_path):
    words = ("seed=1", "--quiet", "strategy=er", "-m", *SMALL, "--restart", f"output={tmp_path}", "train.epochs=1,2")
    code, out, err = cli("run", *words)
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == sorted(map(str, ledger.find_runs([tmp_path])))
    assert len(out.splitlines()) == 2


def test_what_has_finished_is_read_and_restart_runs_it_again(cli, tmp_path, monkeypatch):
    words = ("run", *SMALL, f"output={tmp_path}")
    cli(*words)
    (path,) = ledger.find_runs([tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "moments", pytest.fail)
        code, out, _ = cli(*words)
    assert code == 0
    assert "has finished before, not run again (--restart runs it again)\n" in out
    assert not list(path.glob("*.1.json*"))
    assert cli(*words, "--restart")[0] == 0
    assert {kept.name for kept in path.glob("*.1*")} == {"manifest.1.json", "records.1.jsonl", "snapshots.1"}


def test_a_run_from_another_commit_is_told(cli, tmp_path, monkeypatch):
    from continual import manifest

    words = (*SMALL, f"output={tmp_path}")
    monkeypatch.setattr(manifest, "commit", lambda folder: ("before", False))
    cli("run", *words)
    monkeypatch.setattr(manifest, "commit", lambda folder: ("now", False))
    told = "; 1 at another commit than now, run again by --restart"
    assert told in cli("run", *words)[1].splitlines()[0]
    assert cli("run", "-m", *words)[1].splitlines()[-1].endswith(told)


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_stopped_run_keeps_what_was_measured(cli, tmp_path, stopped, monkeypatch, number, code, how):
    before = signal.getsignal(signal.SIGTERM)
    cli("run", *SMALL, f"output={tmp_path}")
    tracked = []
    monkeypatch.setattr(track.NoTracker, "finish", lambda self, summary, matrix, status: tracked.append(status))
    with monkeypatch.context():
        stopped(number, 4)
        got, out, err = cli("run", "--restart", *SMALL, f"output={tmp_path}")
    (path,) = ledger.find_runs([tmp_path])
    assert (got, out) == (code, "")
    assert err == f"{how}; what was measured is kept in {path}; the same command continues it\n"
    data = ledger.read(path)
    assert [data.status, *tracked] == ["interrupted"] * 2
    assert len(data.records) >= 4
    assert signal.getsignal(signal.SIGTERM) is before
    assert continual.load(path).updates == 3  # after the moments before training and of the first arrival


def test_an_unexpected_error_says_where_and_keeps_its_traceback(cli, tmp_path, mine, monkeypatch):
    words = ("run", *mine, *SMALL, f"output={tmp_path}/runs", "strategy.mine.breaks=true", "seed=1")
    code, out, err = cli(*words)
    (path,) = ledger.find_runs([tmp_path / "runs"])
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ZeroDivisionError: a mistake of mine (")
    assert "my_code.py, line 11); this is a bug in continual or in your own code; its traceback is in" in line
    assert 'raise ZeroDivisionError("a mistake' in (path / "traceback.txt").read_text()
    assert ledger.read(path).status == "failed"
    _, _, err = cli(*words, "--debug")
    assert "Traceback (most recent call last)" in err
    monkeypatch.setattr(sys.modules["my_code"].Mine, "mix", lambda self, view, batch: batch)
    assert cli(*words)[0] == 0
    assert not (path / "traceback.txt").exists()


def test_a_full_disk_is_no_bug(cli, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment, "moments", full)
    code, _, err = cli("run", *SMALL, f"output={tmp_path}")
    assert code == 1
    assert err.startswith("error: OSError: [Errno 28] No space left on device; its traceback is in")


# Sweeps


def test_a_sweep_ends_with_one_table(cli, tmp_path):
    words = ("run", "-m", "strategy=none,er", "seed=range(2)", *SMALL, f"output={tmp_path}")
    code, out, err = cli(*words)
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == [
        f"[{n}/4] split-gaussian {name} seed {seed}"
        for n, (name, seed) in enumerate((("none", 0), ("none", 1), ("er", 0), ("er", 1)), start=1)
    ]
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("none ", "er "))}
    assert rows["none"][-1] == rows["er"][-1] == "2"
    assert out.splitlines()[-1] == f"4 runs in {tmp_path}/split-gaussian"
    assert cli(*words)[1].splitlines()[-1].endswith(", 4 of them finished before and not run again")


def test_one_failure_does_not_end_the_others(cli, tmp_path, mine):
    words = ("run", "-m", *mine, *SMALL, f"output={tmp_path}/runs", "strategy.mine.breaks=true", "seed=range(3)")
    code, out, err = cli(*words)
    assert code == 1
    assert out.splitlines()[-1].startswith("2 runs in ")
    failed = next(path for path in ledger.find_runs([tmp_path / "runs"]) if "seed1" in path.name)
    assert ledger.read(failed).status == "failed"
    told = err.splitlines()[-2:]
    assert told[0] == "1 of 3 runs FAILED:"
    reason = "ZeroDivisionError: a mistake of mine; its traceback is in"
    assert told[1] == f"  split-gaussian mine seed 1: {reason} {failed}/traceback.txt"


def test_a_stopped_sweep_goes_on_with_the_same_command(cli, tmp_path, stopped, monkeypatch):
    words = ("run", "-m", "strategy=none,er", *SMALL, f"output={tmp_path}")
    assert cli("run", "strategy=none", *SMALL, f"output={tmp_path}")[0] == 0
    with monkeypatch.context():
        stopped(signal.SIGINT, 5)
        code, out, err = cli(*words)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted; 1 of 2 runs are over; the same command runs the others"
    monkeypatch.undo()
    code, out, _ = cli(*words)
    assert code == 0
    assert out.splitlines()[-1].endswith("1 of them finished before and not run again")


def test_each_stream_and_each_config_is_built_once_to_check_a_sweep(monkeypatch, tmp_path):
    from continual import config, sweep

    built = []
    for name in ("build_stream", "build_learner"):
        original = getattr(config, name)
        monkeypatch.setattr(
            config, name, lambda *a, name=name, original=original: (built.append(name), original(*a))[1]
        )
    sweep.check(config.expand([*SMALL, "strategy=none,er", "train.epochs=1,2", "seed=range(3)", f"output={tmp_path}"]))
    assert built.count("build_stream") == 1
    assert built.count("build_learner") == 4
    assert not list(tmp_path.iterdir())


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_one_bar_over_all_runs(tmp_path, monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert command_line.main(["run", "-m", "seed=0,1", *SMALL, f"output={tmp_path}"]) == 0
    shown = screen.getvalue()
    assert "2/2 split-gaussian none seed 1" in shown
    assert "100%" in shown
    assert "[1/2]" not in shown


def test_progress_follows_the_rows_of_a_run(tmp_path):
    told = []
    made = continual.compose(*SMALL, f"output={tmp_path}", "train.batch_size=40", "train.epochs=2")
    continual.run_config(made, progress=lambda done, total: told.append((done, total)))
    assert told == [(at / 4, 2) for at in (1, 2, 3, 4, 4, 5, 6, 7, 8, 8)]


def test_long_runs_say_a_line_now_and_then(monkeypatch, capsys):
    from continual import progress

    clock = iter([100.0, 100.0, 100.0, 120.0, 131.0, 131.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with progress.watcher(1) as watch:
        follow = watch.begin(continual.compose(*SMALL))
        for done in (0.5, 1.0):
            follow(done, 4)
        monkeypatch.setattr(progress, "monotonic", lambda: 131.0)
        follow(2.0, 4)
    assert capsys.readouterr().err == "split-gaussian none seed 0: 50% after 31 s\n"


# Reports


def test_compare_show_and_list(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli("run", "-m", "strategy=none,er", "seed=range(2)", *SMALL)
    code, _, err = cli("compare")  # the default is runs
    assert (code, err) == (0, "")
    assert cli("compare", "--baseline", "none", "runs")[1].count("difference to none, paired by seed") == 1
    assert "seconds" not in cli("compare", "runs", "--metrics", "forgetting,average_accuracy")[1]
    told = json.loads(cli("compare", "runs", "--json")[1])
    assert [row["name"] for row in told["scenarios"][0]["rows"]] == ["none", "er"]
    assert cli("compare", "runs", "--csv", "new/table.csv")[1] == "written to new/table.csv\n"
    assert (tmp_path / "new" / "table.csv").read_text().startswith("scenario,name,metric,mean")
    run = next(iter(ledger.find_runs([tmp_path / "runs"])))
    assert "accuracy (%) on each task" in cli("show", str(run))[1]
    assert re.search(r"^  er +experience replay$", cli("list", "strategy")[1], re.M)


def test_list_knows_the_users_folder(cli, mine):
    assert re.search(r"^  mine +my own$", cli("list", "strategy", *mine[:2])[1], re.M)


def test_check_tells_what_each_law_says(cli, monkeypatch):
    from continual import contract
    from continual.contract import Finding

    found = [Finding("it_learns", "learner sgd", "", True), Finding("is_pure", "learner sgd", "", False, "it\nchanged")]
    monkeypatch.setattr(contract, "check_config", lambda *words, config_dir, allow: iter(found[: len(words)]))
    assert cli("check", "a=1") == (0, "ok    learner sgd: it learns\n1 laws kept, 0 broken\n", "")
    code, out, _ = cli("check", "a=1", "b=2")
    assert code == 1
    assert out.splitlines()[1:] == ["FAIL  learner sgd: is pure", "      it changed", "1 laws kept, 1 broken"]
