"""``continual status``: what it says of runs in every state, at what cost, and that one bad run hides no other."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continual import files, glance, ledger
from continual.errors import UserError
from continual.glance import HEAD, MOST, TAIL, Glance
from continual.journal import Mark, Saved
from continual.ledger import Ledger
from continual.record import Record
from continual.report.status import Standing, duration, groups, judged, longest, look, render, share, standing

FIRST = Record(rows_seen=0, step=0, task=None, at="start", probe=0, metric="accuracy", value=0.1)
MANIFEST = {"scenario": "split-digits", "name": "er", "seed": 3, "rows": 1000, "schedule": [0, 1, 2, 3]}
SHA256 = "ab" * 32
NOW = 1_700_000_000.0


def records(n: int) -> list[Record]:
    """A hundred rows and ten steps each."""
    return [replace(FIRST, rows_seen=100 * i, step=10 * i, task=0, at="step", value=i / 7) for i in range(n)]


def write(
    path: Path, n: int = 5, end: str | None = "finished", reason: str | None = None, at: float = NOW, **about: Any
) -> Path:
    """A run with ``n`` records, last written to at the time ``at``; killed if ``end`` is None."""
    book = Ledger.create(path, MANIFEST | about)
    book.append(records(n))
    if end is not None:
        book.end(end, reason)  # type: ignore[arg-type]
    book.close()
    touch(path, at)
    return path


def touch(path: Path, records: float, began: float | None = None, locked: float | None = None) -> None:
    """Set the times of a run's files."""
    began = records if began is None else began
    os.utime(path / "records.jsonl", (records, records))
    os.utime(path / "manifest.json", (began, began))
    os.utime(path / "lock", (locked or began, locked or began))


@pytest.fixture
def running() -> Iterator[Callable[..., Path]]:
    """Writes a run that goes on until the test ends."""
    with ExitStack() as resources:

        def begin(path: Path, n: int = 5, **about: Any) -> Path:
            book = Ledger.create(path, MANIFEST | about)
            resources.callback(book.close)
            book.append(records(n))
            return path

        yield begin


# One glance tells what reading all of it does


def check_same(path: Path) -> Glance:
    seen, read = glance.glance(path), ledger.read(path)
    facts = [(run.manifest, run.status, run.seconds, run.reason) for run in (seen, read)]
    assert facts[0] == facts[1]
    assert seen.last == (read.records[-1] if read.records else None)
    after = [saved[:3] for saved in read.saved if saved.mark.records == len(read.records)]
    assert ([] if seen.saved is None else [seen.saved[:3]]) == after[-1:]
    return seen


@pytest.mark.parametrize("n", [0, 1, 3, 25, 34, 35, 36, 500])
@pytest.mark.parametrize("end", ["finished", "interrupted", "failed", None])
def test_a_glance_tells_what_reading_all_of_it_tells(tmp_path: Path, n: int, end: str | None) -> None:
    seen = check_same(write(tmp_path, n, end, None if end == "finished" else "why"))
    assert seen.updated == NOW
    assert (seen.began, seen.lines) == (None, ())


@pytest.mark.parametrize("n", [1, 40, 500])
def test_lines_that_are_no_records_may_be_last(tmp_path: Path, n: int) -> None:
    with Ledger.create(tmp_path, MANIFEST) as book:
        book.append(records(n))
        book.save("7-3.snapshot", SHA256, None)
        assert check_same(tmp_path).saved is not None
        book.resumed({"torch": ["1", "2"]})
        book.save("9-3.snapshot", SHA256, 0.5)
        seen = check_same(tmp_path)
        assert seen.status == "running"
        assert seen.saved is not None
        assert seen.saved.name == "9-3.snapshot"
        book.append(records(1))
        assert check_same(tmp_path).saved is None
    check_same(tmp_path)


def test_every_length_of_a_file_is_read_as_a_whole_reading_does(tmp_path: Path) -> None:
    """Wherever a write was cut, and wherever the part that is read begins in a line."""
    run = write(tmp_path, 80)
    data = (run / "records.jsonl").read_bytes()
    assert len(data) > 2 * TAIL
    for size in range(len(data) - 2 * 140, len(data)):
        (run / "records.jsonl").write_bytes(data[:size])
        check_same(run)
    (run / "records.jsonl").write_bytes(data + bytes(5000))  # zeros, as power cuts leave them
    check_same(run)


def test_a_run_that_goes_on_has_its_beginning_unless_it_stopped_meanwhile(
    tmp_path: Path, running: Callable[..., Path]
) -> None:
    run = running(tmp_path)
    assert glance.glance(run).began == (run / "manifest.json").stat().st_mtime
    touch(run, records=NOW, began=NOW - 50, locked=NOW - 20)
    seen = glance.glance(run)
    assert (seen.status, seen.updated, seen.began) == ("running", NOW, None)


def test_a_resumed_run_is_one_that_stopped_meanwhile(tmp_path: Path) -> None:
    write(tmp_path, end=None, at=NOW - 3600)
    with Ledger.resume(tmp_path):
        assert glance.glance(tmp_path).began is None
        assert check_same(tmp_path).status == "running"


def test_the_lock_is_asked_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends in between is seen to have ended, not to have been killed."""
    book = Ledger.create(tmp_path, MANIFEST)

    def asked(path: Path) -> bool:
        held = original(path)
        book.end("finished")
        book.close()
        return held

    original = files.is_held
    monkeypatch.setattr(files, "is_held", asked)
    assert glance.glance(tmp_path).status == "finished"


def test_a_glance_while_it_is_written_sees_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write reaches the disk byte by byte, and between any two bytes somebody looks."""
    written = os.pwrite
    with Ledger.create(tmp_path, MANIFEST) as book:
        book.append(records(60)[:-1])
        monkeypatch.setattr(os, "pwrite", lambda file, data, at: (check_same(tmp_path), written(file, data[:1], at))[1])
        book.append(records(60)[-1:])
        book.save("59-60.snapshot", SHA256, 0.5)
        monkeypatch.undo()
    assert check_same(tmp_path).status == "finished"


def test_only_a_traceback_of_this_failure_is_told(tmp_path: Path) -> None:
    run = write(tmp_path, end="failed", reason="ValueError: no", at=NOW)
    trace = run / "traceback.txt"
    trace.write_text('Traceback\n  File "a.py", line 1, in f\n    g(1, 2)\n    ^^^~~~\n\nValueError: no\n')
    os.utime(trace, (NOW - 1, NOW - 1))
    assert glance.glance(run).lines == ()
    os.utime(trace, (NOW, NOW))
    assert glance.glance(run).lines == ('  File "a.py", line 1, in f', "    g(1, 2)", "ValueError: no")
    trace.write_bytes(b"x" * 10**6 + b"\nlast \xff\n")
    assert glance.glance(run).lines[-1] == "last \ufffd"
    with Ledger.resume(run):
        assert glance.glance(run).lines == ()  # it goes on


# Damage


def test_a_changed_bit_at_either_end_is_told(tmp_path: Path) -> None:
    run = write(tmp_path, 200, end="interrupted", reason="KeyboardInterrupt")
    data = (run / "records.jsonl").read_bytes()
    header, record = data.index(b"\n"), data.rindex(b'{"crc":"', 0, data.rindex(b'{"crc":"'))
    for at in (*range(header), *range(record, len(data) - 1)):
        (run / "records.jsonl").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(UserError, match=r"records\.jsonl.* damaged"):
            glance.glance(run)


def test_lines_lost_or_moved_at_the_end_are_told(tmp_path: Path) -> None:
    run = write(tmp_path, 200)
    rows = (run / "records.jsonl").read_bytes().splitlines(keepends=True)
    for order in ([*rows[:-2], rows[-1]], [*rows[:-2], rows[-1], rows[-2]], [*rows, rows[-1]], [*rows, *rows[-2:]]):
        (run / "records.jsonl").write_bytes(b"".join(order))
        with pytest.raises(UserError, match="a line at its end is damaged"):
            glance.glance(run)


def test_another_manifest_or_format_is_told(tmp_path: Path) -> None:
    run = write(tmp_path, 200)
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text.replace("er", "re"))
    with pytest.raises(UserError, match="the manifest beside it is not the one"):
        glance.glance(run)
    (run / "manifest.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match=r"in format 2.*upgrade"):
        glance.glance(run)
    (run / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        glance.glance(run)


def test_a_file_that_is_no_ledger_is_told(tmp_path: Path) -> None:
    run = write(tmp_path)
    for content in (b"x" * 10_000, b"x\n" * 10_000, b"\n" * 10_000, bytes(10_000), random.Random(0).randbytes(100_000)):
        (run / "records.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"records\.jsonl, line 1 is damaged"):
            glance.glance(run)
    (run / "records.jsonl").unlink()
    with pytest.raises(UserError, match=r"records\.jsonl cannot be read: No such file"):
        glance.glance(run)
    (run / "records.jsonl").mkdir()
    with pytest.raises(UserError, match=r"records\.jsonl cannot be read: Is a directory"):
        glance.glance(run)


def test_one_bad_run_hides_no_other(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / name)
    (tmp_path / "b" / "records.jsonl").write_bytes(b"nonsense\n")
    found = look([tmp_path], NOW)
    assert [(run.path.name, run.status) for run in found] == [("a", "finished"), ("b", "damaged"), ("c", "finished")]
    assert "b/records.jsonl, line 1 is damaged" in (found[1].reason or "")
    assert [sum(group.counts.values()) for group in groups(found)] == [2]


# What it costs


class Counted:
    """Counts what is opened and read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.sizes: list[int] = []
        self._patch("open", monkeypatch, lambda path, *_: self.opened.append(Path(path).name))
        self._patch("pread", monkeypatch, lambda _, size, __: self.sizes.append(size))
        read = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: (self.opened.append(path.name), read(path))[1])

    def _patch(self, name: str, monkeypatch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments: (note(*arguments), original(*arguments))[1])


@pytest.mark.parametrize("n", [100, 10_000])
def test_a_run_costs_as_much_however_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    run = write(tmp_path, n)
    counted = Counted(monkeypatch)
    assert glance.glance(run).status == "finished"
    assert sorted(counted.opened) == ["lock", "manifest.json", "records.jsonl"]
    assert counted.sizes == [HEAD, TAIL]


def test_a_run_without_a_record_near_its_end_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.create(tmp_path, MANIFEST) as book:
        book.append(records(3))
        monkeypatch.setattr(book, "flush", lambda: None)
        for step in range(1000):
            book.save(f"{step}-3.snapshot", SHA256, None)
        counted = Counted(monkeypatch)
        seen = glance.glance(tmp_path)
    assert (seen.last, seen.saved and seen.saved.name) == (None, "999-3.snapshot")
    assert sum(counted.sizes) < HEAD + 2 * MOST
    assert share(seen) is None
    assert standing(seen, NOW).step == 999


def test_the_last_record_may_be_anywhere_in_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in its first whole line, and just before it."""
    with Ledger.create(tmp_path, MANIFEST) as book:
        book.append(records(60))
        monkeypatch.setattr(book, "flush", lambda: None)
        for step in range(2 * TAIL // 150):
            book.save(f"{step}-60.snapshot", SHA256, None)
            check_same(tmp_path)
        assert os.stat(tmp_path / "records.jsonl").st_size > 3 * TAIL


@pytest.mark.parametrize("size", [TAIL - 150, TAIL, MOST - 230, MOST - 150, MOST - 75, MOST, 300_000])
def test_a_line_of_any_length_may_be_last(tmp_path: Path, size: int) -> None:
    """Also one that leaves room for a part of a line before it only."""
    write(tmp_path, 50, end="failed", reason="x" * size)
    assert check_same(tmp_path).reason == "x" * size


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "run")
    code = (
        f"import sys, continual.cli as cli; assert cli.main(['status', {str(tmp_path)!r}]) == 0;"
        "print({'torch', 'hydra', 'omegaconf', 'wandb', 'rich', 'numpy', 'scipy', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# What is done and what is left, worked by hand


def seen(**about: Any) -> Glance:
    """A run that began 100 s before it was last written to, when it had learned 250 of 1000 rows."""
    last = replace(FIRST, rows_seen=250, step=25, task=1, at="step")
    facts = {"manifest": MANIFEST, "status": "running", "last": last, "saved": None, "seconds": None, "reason": None}
    return Glance(path=Path("run"), **(facts | {"updated": NOW, "began": NOW - 100, "lines": ()} | about))


def no_rows(schedule: Any) -> dict[str, Any]:
    return {"manifest": {"schedule": schedule}}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, 0.25),
        ({"status": "finished", "last": None}, 1.0),
        ({"last": None}, 0.0),
        ({"last": None, "saved": Saved("9-1.snapshot", SHA256, None, Mark())}, None),
        ({"manifest": {"rows": 100}}, 1.0),  # never more than all
        ({"last": replace(FIRST, rows_seen=10**400)}, 1.0),
        ({"last": replace(FIRST, rows_seen=-1)}, 0.0),
        ({"manifest": {"rows": None}}, None),
        ({"manifest": {"rows": 0}}, None),
        (no_rows([0, 1, 2, 3]), 0.25),  # one of four has ended
        (no_rows([0, 1, 2, 3]) | {"last": replace(FIRST, task=1, at="end")}, 0.5),
        (no_rows([3, 2, 1, 0]) | {"last": replace(FIRST, task=0, at="final")}, 1.0),
        (no_rows([0, 1, 0, 1]), None),  # the task comes back
        (no_rows([0, 2]), None),
        (no_rows("0123"), None),
        (no_rows([0, 1]) | {"last": FIRST}, 0.0),
    ],
)
def test_the_share_that_is_done(about: dict[str, Any], expected: float | None) -> None:
    assert share(seen(**about)) == expected


@pytest.mark.parametrize(
    ("about", "now", "expected"),
    [
        ({}, NOW, 300.0),  # a quarter took 100 s
        ({}, NOW + 60, 240.0),
        ({}, NOW - 60, 300.0),  # clocks differ
        ({}, NOW + 301, None),  # it should be over by now
        ({"began": None}, NOW, None),  # it went on after a stop
        ({"last": None}, NOW, None),
        ({"status": "killed", "began": None}, NOW, None),
        ({"manifest": {}}, NOW, None),
    ],
)
def test_the_time_left(about: dict[str, Any], now: float, expected: float | None) -> None:
    assert standing(seen(**about), now).left == expected


def test_a_run_that_went_on_is_judged_by_finished_ones_of_its_kind() -> None:
    kind = {"scenario": "s", "name": "er"}
    own = Standing(Path("a"), "running", **kind, done=0.25, idle=10.0)  # type: ignore[arg-type]
    took = [Standing(Path("b"), "finished", **kind, seconds=s) for s in (100.0, 400.0, 200.0)]  # type: ignore[arg-type]

    def left(*others: Standing, **about: Any) -> float | None:
        return judged([replace(own, **about), *others])[0].left

    assert left(*took) == 200 * 0.75 - 10
    assert left(*took, idle=160.0) is None
    assert left(*took, done=None) is None
    assert left(*took, left=7.0) == 7.0  # its own pace counts first
    assert left(*took, status="killed") is None
    assert left(*took, name="ewc") is None
    assert left(replace(took[0], status="failed")) is None


def test_a_sweep_is_over_with_the_last_of_its_runs() -> None:
    runs = [Standing(Path("a"), "running", left=5.0), Standing(Path("b"), "running", left=50.0)]
    assert longest(runs) == 50.0
    assert longest([*runs, Standing(Path("c"), "finished"), Standing(Path("d"), "killed")]) == 50.0
    assert longest([*runs, Standing(Path("c"), "running")]) is None
    assert longest([]) is None


def test_a_snapshot_after_the_last_record_tells_the_step() -> None:
    assert standing(seen(saved=Saved("90-1.snapshot", SHA256, None, Mark())), NOW).step == 90
    assert standing(seen(saved=Saved("best.snapshot", SHA256, None, Mark())), NOW).step == 25
    assert standing(seen(saved=Saved(f"{'9' * 5000}-1.snapshot", SHA256, None, Mark())), NOW).step == 25


def test_durations() -> None:
    times = [None, 0, 59, 60, 3569, 3600, 3600 * 5 + 660, 86400 * 3 + 3600 * 4]
    words = ["?", "0 s", "59 s", "1 min", "59 min", "1 h 0 min", "5 h 11 min", "3 d 4 h"]
    assert list(map(duration, times)) == words


# The command


PAGE = """\
6 runs: 1 finished, 1 running, 1 interrupted, 1 failed, 1 killed, 1 damaged; what runs now is over in about 6 min

                  finished  running  interrupted  failed  killed  runs  done  time left
───────────────────────────────────────────────────────────────────────────────────────
split-digits er          1        1            –       1       1     4   45%      6 min
split-digits ewc         –        –            1       –       –     1   20%          –

running  done  step  time left  last written
────────────────────────────────────────────
runs      20%    20      6 min      10 s ago

stopped          how  done  step   last written
───────────────────────────────────────────────
ewc      interrupted   20%    20  2 h 0 min ago
kill          killed   50%    50      1 min ago
the command that began a run continues it from its last snapshot

failed
  fail: ValueError: a �[31mlong line
        File "a.py", line 3, in f
          raise ValueError("a")
      �[31mlong line
once the cause is mended, the command that began a run continues it

damaged
  torn/records.jsonl, line 1 is damaged: its checksum does not match; restore the file or start over"""


def test_the_page(tmp_path: Path, running: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "done", 11)
    write(tmp_path / "ewc", 3, end="interrupted", reason="KeyboardInterrupt", at=NOW - 7200, name="ewc")
    write(tmp_path / "kill", 6, end=None, at=NOW - 60)
    failed = write(tmp_path / "fail", 2, end="failed", reason="ValueError: a\n\x1b[31mlong line")
    (failed / "traceback.txt").write_text('  File "a.py", line 3, in f\n    raise ValueError("a")\n\x1b[31mlong line\n')
    write(tmp_path / "torn")
    (tmp_path / "torn" / "records.jsonl").write_bytes(b"x\n")
    touch(running(tmp_path / "runs", 3), records=NOW - 10, began=NOW - 100)
    monkeypatch.chdir(tmp_path)
    assert render(look([Path()], NOW)) == PAGE


def test_failed_alone(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02}", end="failed", reason=f"ValueError: {number}")
    write(tmp_path / "done")
    code, out, _ = cli("status", str(tmp_path), "--failed")
    assert code == 0
    assert all(f"ValueError: {number}\n" in out for number in range(30))
    assert "time left" not in out
    code, out, _ = cli("status", str(tmp_path))
    assert "ValueError: 19\n  … and 10 more; --json tells all\n" in out
    assert "ValueError: 20" not in out


def test_of_many_runs_the_first_are_told(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for number in range(25):
        write(tmp_path / f"{number:02}", end=None)
    out = cli("status", str(tmp_path))[1]
    assert [line.split()[0] for line in out.splitlines() if line.startswith(f"{tmp_path}")][-1] == f"{tmp_path}/19"
    assert "  … and 5 more; --json tells all\nthe command that began a run continues it from its last snapshot\n" in out


def test_json_tells_all_of_it(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    write(tmp_path / "done", 11, at=time.time())
    write(tmp_path / "fail", 5, end="failed", reason="why", at=time.time())
    code, out, err = cli("status", "--json", str(tmp_path))
    told = json.loads(out)
    assert (code, err, told["format"], told["left"]) == (0, "", 1, None)
    (group,) = told["groups"]
    assert group == {
        "scenario": "split-digits", "name": "er", "counts": {"finished": 1, "failed": 1}, "done": 0.7, "left": None,
    }  # fmt: skip
    done, fail = told["runs"]
    assert (done["path"], done["status"], done["done"], done["seed"]) == (f"{tmp_path}/done", "finished", 1.0, 3)
    assert (fail["done"], fail["rows_seen"], fail["step"], fail["reason"]) == (0.4, 400, 40, "why")
    (alone,) = json.loads(cli("status", "--json", "--failed", str(tmp_path))[1])["runs"]
    assert alone["path"] == f"{tmp_path}/fail"


def test_what_is_wrong_is_one_line(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli("status")[::2] == (2, "error: runs does not exist; choose from empty\n")
    assert cli("status", "empty")[::2] == (2, "error: empty holds no run (a directory with manifest.json)\n")
    for seconds in ("0", "-1", "nan", "inf"):
        code, _, err = cli("status", "empty", "--watch", seconds)
        assert (code, err) == (2, f"error: --watch {float(seconds)} must be above 0 seconds\n")


def test_watching_looks_again_until_it_is_stopped(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "0")

    def sleep(seconds: float) -> None:
        if (tmp_path / "1").exists():
            raise KeyboardInterrupt
        write(tmp_path / str(int(seconds)))

    monkeypatch.setattr(time, "sleep", sleep)
    code, out, err = cli("status", str(tmp_path), "--watch", "1")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if ":" in line] == ["1 run: 1 finished", "2 runs: 2 finished"]
