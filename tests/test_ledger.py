import errno
import fcntl
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual import files, journal, ledger
from continual.errors import UserError
from continual.journal import Mark
from continual.ledger import Ledger, find_runs, read
from continual.types import Record

FIRST = Record(rows_seen=10, step=1, task=None, at="start", probe=0, metric="accuracy", value=0.1)
RECORDS = [replace(FIRST, rows_seen=10 * i, step=i, task=i, at="end", value=0.1 * i) for i in range(5)]
MANIFEST = {"seed": 3}


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def exact(records: list[Record]) -> list[str]:
    """Bit for bit, nan equal to nan, -0.0 unlike 0.0."""
    return [repr(astuple(record)) for record in records]


def lines(bodies: list[dict[str, object]]) -> bytes:
    text, mark = b"", Mark()
    for body in bodies:
        data, mark = journal.line(body, mark)
        text += data
    return text


def finished(path: Path) -> Path:
    with Ledger.create(path, MANIFEST) as run:
        run.append(RECORDS)
    return path


# --- the text of the file


def test_a_line_is_strict_json_and_carries_the_running_crc_of_all_bodies() -> None:
    bodies = [b'{"format":1,"manifest":"9d0e3a0d"}', b'{"end":"finished","seconds":1.5,"reason":null}']
    first = zlib.crc32(bodies[0])
    both = zlib.crc32(bodies[0] + bodies[1])
    expected = b'{"crc":"%08x",%b\n{"crc":"%08x",%b\n' % (first, bodies[0][1:], both, bodies[1][1:])
    assert lines([json.loads(body) for body in bodies]) == expected


def test_values_that_are_not_finite_are_strings() -> None:
    values = [math.nan, math.inf, -math.inf, 0.1, 5e-324, -0.0, 1.7976931348623157e308]
    records = [replace(FIRST, value=value) for value in values]
    written = [journal.record(record)["value"] for record in records]
    assert written[:3] == ["nan", "inf", "-inf"]
    text = lines([journal.header(b""), *map(journal.record, records)])
    assert b"NaN" not in text
    assert b"Infinity" not in text
    assert exact(journal.parse(text, b"", "x").records) == exact(records)


counts = st.integers(0, 2**70)
facts = st.builds(Record, counts, counts, st.none() | counts, st.text(), st.none() | counts, st.text(), st.floats())


@given(st.lists(facts, max_size=5))
def test_any_records_come_back_exactly(records: list[Record]) -> None:
    text = lines([journal.header(b"m"), *map(journal.record, records)])
    parsed = journal.parse(text, b"m", "x")
    assert exact(parsed.records) == exact([replace(r, value=math.nan) if math.isnan(r.value) else r for r in records])
    assert parsed.marks[-1] == Mark(len(text), parsed.marks[-1].crc, len(records))


@pytest.mark.parametrize(
    "body",
    [
        {"rows_seen": True},
        {"rows_seen": 1.0},
        {"task": "0"},
        {"metric": None},
        {"value": 1},
        {"value": "0.5"},
        {"value": None},
        {"value": []},
        {"extra": 1},
        {"end": "finished"},
        {"end": "killed", "seconds": 1.0, "reason": None},
        {"end": "finished", "seconds": 1, "reason": None},
        {"end": [], "seconds": 1.0, "reason": None},
    ],
)
def test_a_wrong_line_with_a_right_checksum_is_an_error_that_names_file_and_line(body: dict[str, object]) -> None:
    text = lines([journal.header(b""), journal.record(FIRST), {**journal.record(FIRST), **body}])
    with pytest.raises(UserError, match=r"f\.jsonl, line 3 is damaged"):
        journal.parse(text, b"", "f.jsonl")


END: dict[str, object] = {"end": "finished", "seconds": 1.0, "reason": None}
SAVED: dict[str, object] = {"snapshot": "1-1.snapshot", "sha256": "ab" * 32, "score": 0.5}


@pytest.mark.parametrize(
    "body",
    [
        END | {"extra": 1},
        SAVED | {"extra": 1},
        SAVED | {"snapshot": "../1.snapshot"},
        SAVED | {"snapshot": "1"},
        SAVED | {"sha256": "AB" * 32},
        SAVED | {"score": 1},
        {"resumed": {}, "extra": 1},
        {"resumed": []},
    ],
)
def test_a_wrong_line_that_is_no_record_is_an_error(body: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"f\.jsonl, line 2 is damaged"):
        journal.parse(lines([journal.header(b""), body]), b"", "f.jsonl")


@pytest.mark.parametrize("text", [b"{}", b'{"a":' + b"[" * 100_000 + b"}", b'{"a":\xff}', b"{1}", b'{"value":NaN}'])
def test_no_text_with_a_right_checksum_crashes_the_reader(text: bytes) -> None:
    start = lines([journal.header(b"")])
    crc = zlib.crc32(text, journal.parse(start, b"", "").marks[0].crc)
    with pytest.raises(UserError, match="line 2 is damaged"):
        journal.parse(start + b'{"crc":"%08x",' % crc + text[1:] + b"\n", b"", "f.jsonl")


def test_other_formats_and_other_manifests_are_refused() -> None:
    with pytest.raises(UserError, match=r"format 2.*upgrade"):
        journal.parse(lines([{"format": 2, "manifest": ""}]), b"", "f")
    with pytest.raises(UserError, match="manifest beside it is not the one"):
        journal.parse(lines([journal.header(b"a")]), b"b", "f")
    with pytest.raises(UserError, match="line 1 is damaged"):
        journal.parse(lines([journal.record(FIRST)]), b"", "f")


def test_nothing_may_follow_the_end() -> None:
    end = {"end": "finished", "seconds": 1.0, "reason": None}
    for after in (journal.record(FIRST), end):
        with pytest.raises(UserError, match="line 3 is damaged: it follows"):
            journal.parse(lines([journal.header(b""), end, after]), b"", "f")


def test_a_field_of_the_wrong_type_is_refused_before_it_is_written() -> None:
    with pytest.raises(TypeError):
        journal.record(replace(FIRST, rows_seen=1.5))  # type: ignore[arg-type]


# --- damage


def damage(data: bytes, generator: random.Random) -> bytes:
    at, to = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    rows = data.splitlines(keepends=True)
    one, two = (generator.randrange(len(rows)) for _ in range(2))
    match generator.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[to:]
        case 2:
            return data[:at] + generator.randbytes(generator.randrange(1, 9)) + data[at:]
        case 3:
            return data[:at] + bytes([generator.randrange(256)]) + data[at + 1 :]
        case 4:
            return data[:at] + bytes(to - at) + data[to:]
        case 5:
            return b"".join(rows[:one] + rows[one + 1 :])
        case 6:
            return b"".join([*rows[:one], rows[two], *rows[one:]])
        case _:
            rows[one], rows[two] = rows[two], rows[one]
            return b"".join(rows)


def check_damage(seeds: range) -> None:
    end = {"end": "finished", "seconds": 1.0, "reason": None}
    data = lines([journal.header(b""), *map(journal.record, RECORDS), end])
    whole = exact(RECORDS)
    refused = 0
    for seed in seeds:
        try:
            found = journal.parse(damage(data, random.Random(seed)), b"", "f")
        except UserError:
            refused += 1
            continue
        assert exact(found.records) == whole[: len(found.records)]  # a cut tail, nothing else
        assert found.end in ({}, end)
        assert not found.end or exact(found.records) == whole
    assert refused > len(seeds) / 2


def test_damage_is_refused_or_only_shortens() -> None:
    check_damage(range(400))


@pytest.mark.long
def test_damage_is_refused_or_only_shortens_at_length() -> None:
    check_damage(range(5000))


def test_every_changed_byte_of_a_complete_line_is_noticed(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    data = (run / "records.jsonl").read_bytes()
    text = (run / "manifest.json").read_bytes()
    for at in range(len(data) - 1):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(UserError, match=rf"line {data[:at].count(10) + 1}\b"):
            journal.parse(changed, text, "f")


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    text = (run / "manifest.json").read_bytes()
    for at in range(len(text)):
        (run / "manifest.json").write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        with pytest.raises(UserError, match="manifest"):
            read(run)


def test_a_torn_last_line_is_not_read_and_is_cut_on_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ledger_ = Ledger.create(run, MANIFEST)
    ledger_.append(RECORDS)
    ledger_.close()
    data = (run / "records.jsonl").read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    for size in range(start, len(data)):
        (run / "records.jsonl").write_bytes(data[:size])
        assert exact(read(run).records) == exact(RECORDS[:-1])
        resumed = Ledger.resume(run)
        resumed.append(RECORDS[-1:])
        resumed.close()
        assert (run / "records.jsonl").read_bytes() == data


def test_a_torn_end_line_leaves_a_killed_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    data = (run / "records.jsonl").read_bytes()
    for size in range(data.rindex(b"\n", 0, -1) + 1, len(data)):
        (run / "records.jsonl").write_bytes(data[:size])
        found = read(run)
        assert (found.status, found.seconds, exact(found.records)) == ("killed", None, exact(RECORDS))


def test_a_file_of_zeros_as_power_cuts_leave_them_is_a_torn_tail(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    with (run / "records.jsonl").open("ab") as file:
        file.write(bytes(4096))
    assert read(run).status == "finished"


LAST: list[dict[str, object]] = [
    journal.record(RECORDS[-1]),
    {"snapshot": "4-4.snapshot", "sha256": "ab" * 32, "score": None},
    {"resumed": {"torch": ["2.10", "2.11"]}},
    {"end": "interrupted", "seconds": 1.5, "reason": "KeyboardInterrupt"},
]


@pytest.mark.parametrize("body", LAST, ids=lambda body: next(iter(body)))
def test_any_torn_last_line_is_cut_at_any_byte(
    tmp_path: Path, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    Ledger.create(tmp_path, MANIFEST).close()
    before = [journal.header((tmp_path / "manifest.json").read_bytes()), *map(journal.record, RECORDS[:-1])]
    start, data = len(lines(before)), lines([*before, body])
    for size in range(start, len(data)):
        (tmp_path / "records.jsonl").write_bytes(data[:size])
        found = read(tmp_path)
        assert (found.status, found.saved, found.resumed) == ("killed", [], [])
        assert exact(found.records) == exact(RECORDS[:-1])
        Ledger.resume(tmp_path).close()
        assert (tmp_path / "records.jsonl").read_bytes() == data[:start]


def test_a_reader_sees_whole_lines_only_whatever_of_a_line_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write reaches the disk byte by byte, and between any two bytes somebody reads."""
    written, seen = os.pwrite, []

    def trickle(file: int, data: bytes, at: int) -> int:
        seen.append(exact(read(tmp_path).records))
        return written(file, data[:1], at)

    with Ledger.create(tmp_path, MANIFEST) as writer:
        monkeypatch.setattr(ledger.os, "pwrite", trickle)
        writer.append(RECORDS)
        writer.save("4-5.snapshot", "ab" * 32, None)
    sizes = [len(records) for records in seen]
    assert sizes == sorted(sizes)
    assert set(sizes) == {0, 1, 2, 3, 4, 5}
    assert all(records == exact(RECORDS)[: len(records)] for records in seen)


# --- a run and its states


def test_a_run_is_readable_at_any_instant(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"

    def measured() -> Iterator[Record]:
        for index, record in enumerate(RECORDS):
            found = read(run)  # while append is still consuming this generator
            assert (found.status, exact(found.records)) == ("running", exact(RECORDS[:index]))
            yield record

    with Ledger.create(run, MANIFEST) as writer:
        writer.append(measured())
        assert writer.count == 5
    found = read(run)
    assert (found.status, found.reason, found.path) == ("finished", None, run)
    assert found.manifest == {"format": 1, "seed": 3}
    assert found.seconds is not None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "SystemExit: 143"),
        (ValueError("loss is nan"), "failed", "ValueError: loss is nan"),
        (OSError("GET https://me:hunter2@host/x"), "failed", "OSError: GET https://<redacted>@host/x"),
    ],
)
def test_the_end_says_why(tmp_path: Path, error: BaseException, status: str, reason: str) -> None:
    writer = Ledger.create(tmp_path, MANIFEST)
    writer.append(RECORDS)
    with pytest.raises(type(error)), writer:
        raise error
    found = read(tmp_path)
    assert (found.status, found.reason, len(found.records)) == (status, reason, 5)


def test_nothing_is_appended_after_the_end(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, MANIFEST) as writer:
        writer.end("failed", "why")
        with pytest.raises(RuntimeError, match="has ended"):
            writer.append(RECORDS)
    assert read(tmp_path).reason == "why"


def test_nothing_is_appended_to_a_closed_ledger(tmp_path: Path) -> None:
    writer = Ledger.create(tmp_path / "run", MANIFEST)
    writer.close()
    with (tmp_path / "other").open("wb"), pytest.raises(RuntimeError, match="has ended"):
        writer.append(RECORDS)  # and not into the file that has the number of the closed one now
    assert read(tmp_path / "run").status == "killed"


def test_a_run_is_not_overwritten_unless_told_to(tmp_path: Path) -> None:
    Ledger.create(tmp_path, MANIFEST).close()
    with pytest.raises(UserError, match=r"holds a run already, killed after 0 records.*restart=true"):
        Ledger.create(tmp_path, MANIFEST)
    for number in (1, 2):
        before = (tmp_path / "records.jsonl").read_bytes()
        with Ledger.create(tmp_path, {"seed": number}, restart=True) as writer:
            writer.append(RECORDS[:number])
        assert (tmp_path / f"records.{number}.jsonl").read_bytes() == before
        assert json.loads((tmp_path / f"manifest.{number}.json").read_text())["seed"] == (3, 1)[number - 1]
        assert exact(read(tmp_path).records) == exact(RECORDS[:number])
        assert read(tmp_path).manifest["seed"] == number
    with pytest.raises(UserError, match="finished after 2 records"):
        Ledger.create(tmp_path, MANIFEST)


def test_a_damaged_run_can_be_started_over(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "records.jsonl").write_bytes(b"nonsense\n")
    with pytest.raises(UserError, match=r"damaged.*line 1"):
        Ledger.create(tmp_path, MANIFEST)
    Ledger.create(tmp_path, MANIFEST, restart=True).close()
    assert (tmp_path / "records.1.jsonl").read_bytes() == b"nonsense\n"


def test_a_run_goes_on_from_the_records_its_snapshot_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    with Ledger.create(tmp_path, MANIFEST) as writer:
        writer.append(RECORDS[:4])
        clock.now += 7.5
        writer.end("interrupted")
    assert read(tmp_path).seconds == 7.5
    clock.now += 1000
    with Ledger.resume(tmp_path, keep=2) as writer:
        assert writer.count == 2
        assert exact(read(tmp_path).records) == exact(RECORDS[:2])
        writer.append(RECORDS[2:])
        clock.now += 3.25
    found = read(tmp_path)
    assert (found.status, found.seconds, exact(found.records)) == ("finished", 7.5 + 3.25, exact(RECORDS))


def test_what_cannot_be_resumed_says_so(tmp_path: Path) -> None:
    finished(tmp_path / "done")
    Ledger.create(tmp_path / "killed", MANIFEST).close()
    with pytest.raises(UserError, match="has finished"):
        Ledger.resume(tmp_path / "done")
    with pytest.raises(UserError, match="has 0 records, cannot keep 1"):
        Ledger.resume(tmp_path / "killed", keep=1)
    with pytest.raises(UserError, match=r"no run to resume.*'killed'"):
        Ledger.resume(tmp_path / "kiled")
    assert not (tmp_path / "kiled").exists()
    (tmp_path / "killed" / "records.jsonl").write_bytes(b"")
    assert read(tmp_path / "killed").records == []
    with pytest.raises(UserError, match="has no header"):
        Ledger.resume(tmp_path / "killed")


def test_appending_syncs_every_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    with Ledger.create(tmp_path, MANIFEST) as writer:
        synced: list[float] = []
        monkeypatch.setattr(ledger.os, "fsync", lambda _: synced.append(clock.now))
        for _ in range(13):
            writer.append(RECORDS[:1])
            clock.now += 0.5
        assert synced == [102.0, 104.0, 106.0]


# --- trouble


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run directory .*file/run cannot be written"):
        Ledger.create(tmp_path / "file" / "run", MANIFEST)


def test_a_run_that_could_not_begin_is_no_run_and_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", full)
        with pytest.raises(UserError, match="cannot be written: No space left") as caught:
            Ledger.create(tmp_path, MANIFEST)
    with pytest.raises(UserError, match="is not a run"):
        read(tmp_path)
    finished(tmp_path)
    assert exact(read(tmp_path).records) == exact(RECORDS)
    assert caught.value.__context__ is not None  # the frames that held the lock are alive: it was given back


def test_a_full_disk_leaves_whole_lines_and_writing_can_go_on(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger.create(tmp_path, MANIFEST) as writer:
        writer.append(RECORDS[:1])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "records.jsonl").stat().st_size + 30, hard))
            with pytest.raises(UserError, match=r"records.jsonl cannot be written: File too large; make room"):
                writer.append([replace(FIRST, metric="long" * 50)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert exact(read(tmp_path).records) == exact(RECORDS[:1])
        writer.append(RECORDS[1:])
    assert exact(read(tmp_path).records) == exact(RECORDS)


def test_an_interrupted_write_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def interrupted(file: int, data: bytes, at: int) -> int:
        write(file, data, at)
        raise KeyboardInterrupt

    with Ledger.create(tmp_path, MANIFEST) as writer:
        writer.append(RECORDS)
        with monkeypatch.context() as patch:
            patch.setattr(ledger.os, "pwrite", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.append([replace(FIRST, metric="long" * 100)])
    assert exact(read(tmp_path).records) == exact(RECORDS)


# --- several processes

WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from continual.ledger import Ledger
from continual.record import Record  # without torch it starts in a fraction of the time

first = Record(0, 0, None, "step", None, "loss", 0.5)
run = Ledger.create(Path(sys.argv[1]), {})
step = 0
while True:
    run.append([replace(first, step=step)])
    step += 1
    time.sleep(0.0005)
"""


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "the other process ended"
        time.sleep(0.01)


def test_one_process_holds_a_directory_and_its_death_frees_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(run)]) as process:
        try:
            wait_for((run / "manifest.json").exists, process)
            sizes = []
            while not sizes or sizes[-1] < 200:
                found = read(run)
                sizes.append(len(found.records))
                assert found.status == "running"
                assert [record.step for record in found.records] == list(range(sizes[-1]))
            for begin in (lambda: Ledger.create(run, {}, restart=True), lambda: Ledger.resume(run)):
                with pytest.raises(
                    UserError, match=rf"run is in use by process {process.pid} on {socket.gethostname()}"
                ):
                    begin()
        finally:
            process.send_signal(signal.SIGKILL)
    found = read(run)
    assert found.status == "killed"
    assert [record.step for record in found.records] == list(range(len(found.records)))
    assert len(found.records) >= sizes[-1]
    with Ledger.resume(run) as writer:
        assert writer.count == len(found.records)
    assert read(run).status == "finished"


def test_the_same_process_cannot_write_a_run_twice(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, MANIFEST), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        Ledger.create(tmp_path, MANIFEST, restart=True)


def test_a_reader_does_not_stop_a_run_from_starting(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    descriptor = os.open(lock, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert not files.is_held(lock)  # readers do not see one another
    os.close(descriptor)
    Ledger.create(tmp_path, MANIFEST).close()


# --- file systems without flock


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


ERRORS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


@pytest.mark.parametrize("no_flock", ERRORS, indirect=True)
def test_without_flock_a_marker_is_the_lock(tmp_path: Path, no_flock: None) -> None:
    with Ledger.create(tmp_path, MANIFEST) as writer:
        writer.append(RECORDS)
        assert read(tmp_path).status == "running"
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"):
            Ledger.create(tmp_path, MANIFEST, restart=True)
    assert read(tmp_path).status == "finished"
    Ledger.create(tmp_path, MANIFEST, restart=True).close()
    assert read(tmp_path).status == "killed"


@pytest.mark.parametrize("no_flock", [errno.ENOLCK], indirect=True)
def test_without_flock_a_marker_of_the_dead_is_taken_over_and_one_of_another_host_is_not(
    tmp_path: Path, no_flock: None
) -> None:
    run = tmp_path / "run"
    Ledger.create(run, MANIFEST).close()
    marker = run / "lock.soft"
    program = "import os, sys, filelock; lock = filelock.SoftFileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(marker)], check=False)
    assert marker.exists()
    with Ledger.resume(run):
        assert marker.exists()
    assert not marker.exists()
    marker.write_text("1\nelsewhere\n")
    assert read(run).status == "finished"  # it says so, whoever left the marker
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"):
        Ledger.create(run, MANIFEST, restart=True)


# --- finding runs


def test_runs_are_found_at_and_below_paths_each_once(tmp_path: Path) -> None:
    names = ["a/seed1", "a/seed0", "b"]
    runs = [finished(tmp_path / name) for name in names]
    (tmp_path / "a/seed0/inner").mkdir()
    (tmp_path / "a/seed0/inner/manifest.json").touch()  # what lies in a run is the run's
    assert find_runs([tmp_path]) == sorted(runs)
    assert find_runs([tmp_path / "b"]) == [tmp_path / "b"]
    assert find_runs([tmp_path / "a", tmp_path / "a/seed0"]) == [tmp_path / "a/seed0", tmp_path / "a/seed1"]
    assert find_runs([]) == []


def test_a_path_without_runs_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    finished(tmp_path / "split_mnist")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"split_mnits does not exist; did you mean 'split_mnist'\?"):
        find_runs([tmp_path, tmp_path / "split_mnits"])
    with pytest.raises(UserError, match=r"empty holds no run .*; choose from split_mnist"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"nothing/x does not exist$"):
        find_runs([tmp_path / "nothing" / "x"])
    with pytest.raises(UserError, match=r"is not a run: it has no manifest.json; did you mean 'split_mnist'\?"):
        read(tmp_path / "split_mnis")


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    for begun in (False, True):
        (tmp_path / ".manifest.json.123.tmp").write_bytes(b"{")
        with Ledger.resume(tmp_path) if begun else Ledger.create(tmp_path, {}) as book:
            assert not list(tmp_path.glob(".*.tmp"))
            book.end("interrupted")
