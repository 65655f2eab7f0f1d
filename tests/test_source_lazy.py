"""Data larger than memory: what lies on the disk gives the rows that memory gives, within a bound, by any workers."""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from torch import Tensor

import continual
from continual.batches import AHEAD, Part, Schedule, batches, parts
from continual.config import compose
from continual.errors import UserError
from continual.seeding import generator
from scenarios.prequential import prequential
from scenarios.sources import LazySource, image_folder, table
from scenarios.sources.base import smallest
from scenarios.sources.blocks import Blocks
from scenarios.sources.parquet import ParquetSource
from scenarios.stream import IndexRows
from scenarios.transformed import permuted

N = 203


def columns(n: int = N) -> pa.Table:
    """Every kind of column; ``when`` is a permutation, ``day`` grows."""
    draws = np.random.default_rng(0)
    return pa.table({
        "a": draws.normal(size=n),
        "b": draws.integers(0, 9, n).astype(np.int16),
        "c": pa.array(draws.choice(["u", "v", "w"], n)).dictionary_encode(),
        "flag": draws.random(n) > 0.5,
        "when": draws.permutation(n),
        "day": np.arange(n),
        "y": pa.array(draws.choice(["k", "l", "m"], n)),
    })  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> str:
    parquet.write_table(columns(), tmp_path / "rows.parquet", row_group_size=20)
    return str(tmp_path / "rows.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The same rows in two files with row groups of their own and columns in another order."""
    (tmp_path / "rows").mkdir()
    whole = columns()
    parquet.write_table(whole[:90], tmp_path / "rows" / "0.parquet", row_group_size=32)
    parquet.write_table(whole[90:].select(whole.column_names[::-1]), tmp_path / "rows" / "1.parquet")
    return str(tmp_path / "rows")


def lazy(path: str, label: str = "y", **options: Any) -> ParquetSource:
    source = table(path, label, **({"resident": False, "cache_mb": 1} | options))
    assert isinstance(source, ParquetSource)
    return source


# ---------------------------------------------------------------- the same rows


OPTIONS: list[dict[str, Any]] = [
    {},
    {"test_fraction": 0},
    {"split": "last", "scale": "standard", "scale_rows": 70},
    {"scale": "minmax", "scale_rows": 1000, "seed": 3},
    {"time": "when", "split": "last", "scale": "standard", "scale_rows": 50},
    {"time": "day", "test_fraction": 0},
    {"categorical": ["b", "flag"], "classes": ["m", "l", "k"]},
    {"features": ["c", "a"], "label": "b"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_rows_on_the_disk_are_those_in_memory_bit_for_bit(
    file: str, folder: str, options: dict[str, Any], workers: int
) -> None:
    options = {"label": "y"} | options
    held = table(file, **options)
    for path in (file, folder):
        assert torch.equal(table(path, **options).fetch(torch.arange(N)), held.fetch(torch.arange(N)))
        source = lazy(path, **options, workers=workers)
        assert (source.n_train, source.class_names, source.in_shape) == (held.n_train, held.class_names, held.in_shape)
        assert torch.equal(source.y.long(), held.y)
        for ids in (torch.arange(N), torch.arange(N).flip(0), torch.tensor([5, 5, 202, 0]), torch.tensor([7])):
            if source.expect:
                source.expect(ids)
            assert torch.equal(source.fetch(ids), held.fetch(ids))


def test_what_is_held_for_each_row_is_small(file: str) -> None:
    assert (lazy(file).y.dtype, lazy(file).rows.dtype) == (torch.int8, torch.int16)  # type: ignore[union-attr]
    assert lazy(file, split="last").rows is None
    assert lazy(file, test_fraction=0, time="day").rows is None
    stream = prequential(lazy(file, test_fraction=0), n_periods=3, arrival_rows=10)
    assert stream.ids == range(N)
    assert {column.dtype for column in (stream.y, stream.task, stream.segment)} == {torch.int8}
    assert stream.y.data_ptr() == stream.inputs.y.data_ptr()  # type: ignore[attr-defined]
    assert stream.task is stream.segment
    assert [smallest(n) for n in (128, 129, 2**15 + 1, 2**31 + 1)] == ["int8", "int16", "int32", "int64"]


def test_streams_of_small_columns_are_those_of_large_ones(file: str) -> None:
    small, large = (prequential(s, 3, 10) for s in (lazy(file), table(file, "y")))
    assert small.origins == large.origins
    for a, b in zip(small, large, strict=True):
        mine, other = (e.rows.take(torch.arange(len(e.rows))) for e in (a, b))
        assert mine.y.dtype == mine.extra["id"].dtype == torch.int64
        assert torch.equal(mine.x, other.x)
        assert torch.equal(mine.y, other.y)
        assert torch.equal(mine.extra["id"], other.extra["id"])
    assert [p.y.tolist() for p in small.probes] == [p.y.tolist() for p in large.probes]


@pytest.mark.parametrize("operators", ["noise,missing", "imbalance,repeat", "blur,delay", "drift"])
def test_operators_take_small_columns(file: str, operators: str) -> None:
    from scenarios import operators as known

    streams = [prequential(s, 3, 10) for s in (lazy(file), table(file, "y"))]
    for name in operators.split(","):
        streams = [getattr(known, name)(stream) for stream in streams]
    small, large = streams
    for name in ("y", "task", "segment"):
        assert getattr(small, name).tolist() == getattr(large, name).tolist()
    assert list(small.ids) == list(large.ids)
    assert small.origins == large.origins


# ---------------------------------------------------------------- memory and threads


def test_a_batch_decodes_each_row_group_it_needs_once(file: str) -> None:
    source, decoded = lazy(file, test_fraction=0, workers=0), []
    load = source.blocks.load
    source.blocks.load = lambda number: decoded.append(number) or load(number)  # type: ignore[func-returns-value]
    source.blocks.capacity = 0  # nothing but the last one is kept
    source.fetch(torch.tensor([150, 3, 41, 5, 151, 44]))
    assert sorted(decoded) == [0, 2, 7]
    decoded.clear()
    for ids in torch.split(torch.arange(N), 3):
        source.fetch(ids)
    assert decoded == list(range(11))  # in order, each once


class Loads:
    """Blocks of 10 bytes; counts how many there are."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, block: int) -> Tensor:
        self.begun.append(block)
        self.gate.wait()
        if block < 0:
            raise UserError(f"block {block} is broken")
        return torch.full((10,), block, dtype=torch.uint8)


@settings(max_examples=50)
@given(
    asked=st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 12), max_size=6)), max_size=20),
    capacity=st.integers(0, 60),
    workers=st.integers(0, 2),
)
def test_memory_is_bounded_whatever_is_asked_for(
    asked: list[tuple[bool, list[int]]], capacity: int, workers: int
) -> None:
    blocks = Blocks(Loads(), lambda _: 10, capacity, workers)
    for get, numbers in asked:
        if get:
            assert [int(blocks.get(number)[0]) for number in numbers] == numbers
        else:
            blocks.expect(numbers)
        assert blocks.bytes == 10 * len(blocks.held) <= max(capacity, 10)


def test_a_stream_over_many_row_groups_holds_few(file: str) -> None:
    source, decoded = lazy(file, test_fraction=0, workers=1), []
    load = source.blocks.load

    def counted(number: int) -> Tensor:
        x = load(number)
        decoded.append(weakref.ref(x))
        return x

    source.blocks.load, source.blocks.capacity = counted, 4 * 20 * source.in_shape[0] * 4  # four row groups
    for experience in prequential(source, arrival_rows=7):
        experience.rows.take(torch.arange(len(experience.rows)))
        assert len(source.blocks.held) <= 4
        assert sum(x() is not None for x in decoded) <= 4 + source.blocks.workers
    assert len(decoded) == 11


def test_what_is_expected_is_loaded_before_it_is_asked_for_and_once() -> None:
    load = Loads()
    blocks = Blocks(load, lambda _: 10, 30, workers=1)
    blocks.expect([1, 2, 3, 4])  # three fit
    assert list(blocks.held) == [1, 2, 3]
    assert [int(blocks.get(number)[0]) for number in (1, 2, 3, 2, 1)] == [1, 2, 3, 2, 1]
    assert load.begun == [1, 2, 3]
    blocks.get(5)  # the place of 3, which was used the longest ago
    assert list(blocks.held) == [2, 1, 5]
    blocks.expect([2])  # held already, and from now on not the first to go
    blocks.get(6)
    assert list(blocks.held) == [5, 2, 6]
    load = Loads()
    Blocks(load, lambda _: 10, 30, workers=0).expect([1, 2])
    assert load.begun == []


def test_what_is_not_needed_any_more_is_not_loaded() -> None:
    load = Loads()
    load.gate.clear()
    blocks = Blocks(load, lambda _: 10, 20, workers=1)
    for number in range(0, 40, 2):
        blocks.expect([number, number + 1])  # as when a run skips what it has learned before
    futures = list(blocks.held.values())
    load.gate.set()
    assert [int(future.result()[0]) for future in futures] == [38, 39]
    assert set(load.begun) <= {0, 38, 39}
    blocks.expect([50])
    dropped = blocks.held[50]
    blocks.get(50)
    assert not isinstance(dropped.exception(), CancelledError)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_thread_is_told_where_the_block_is_asked_for_and_again(workers: int) -> None:
    blocks = Blocks(Loads(), lambda _: 10, 100, workers)
    blocks.expect([1, -1, 2])
    assert int(blocks.get(1)[0]) == 1
    for _ in range(2):
        with pytest.raises(UserError, match="block -1 is broken"):
            blocks.get(-1)
    assert -1 not in blocks.held
    assert int(blocks.get(2)[0]) == 2


def test_a_source_without_workers_expects_nothing_and_starts_no_thread(file: str) -> None:
    source = lazy(file, workers=0)
    rows = IndexRows(source, torch.arange(9), source.y[:9])
    assert source.expect is rows.expect is Part(rows, torch.arange(3)).expect is None
    assert IndexRows(table(file, "y"), torch.arange(9), source.y[:9]).expect is None
    list(batches(rows, parts(rows, 2)))
    assert source.blocks.pool is None
    with pytest.raises(UserError, match=r"workers=-1 must be at least 0"):
        lazy(file, workers=-1)


# ---------------------------------------------------------------- reading ahead


class Told(IndexRows):
    """Rows that note what is expected and what is taken."""

    def __init__(self, rows: IndexRows) -> None:
        super().__init__(rows.inputs, rows.ids, rows.y)
        object.__setattr__(self, "notes", [])

    @property
    def expect(self) -> Callable[[Tensor], None]:
        return lambda indices: self.notes.append(("expect", indices.tolist()))  # type: ignore[attr-defined]

    def take(self, indices: Tensor) -> Any:
        self.notes.append(("take", indices.tolist()))  # type: ignore[attr-defined]
        return super().take(indices)


def test_batches_are_expected_a_few_ahead_and_taken_in_order(file: str) -> None:
    source = lazy(file, test_fraction=0)
    rows = Told(IndexRows(source, torch.arange(40), source.y[:40]))
    taken = [batch.extra["id"].tolist() for batch in batches(rows, parts(rows, 4))]
    assert taken == [list(range(n, n + 4)) for n in range(0, 40, 4)]
    notes = rows.notes  # type: ignore[attr-defined]
    for update in range(10):
        known = notes.index(("take", taken[update]))
        expected = [ids for what, ids in notes[:known] if what == "expect"]
        assert expected == taken[: min(update + AHEAD + 1, 10)]


def test_parts_and_transforms_pass_on_what_is_expected(file: str) -> None:
    source, told = lazy(file), []
    source.expect = lambda ids: told.append(ids.tolist())
    rows = IndexRows(source, torch.tensor([3, 1, 4, 1, 5]), source.y[:5])
    Part(rows, torch.tensor([4, 2])).expect(torch.tensor([1]))  # type: ignore[misc]
    assert told == [[4]]
    stream = permuted(source, n_tasks=3)
    stream.inputs.expect(torch.tensor([2 * N + 7]))  # type: ignore[attr-defined]
    assert told == [[4], [7]]


def test_the_rows_of_the_next_arrivals_are_expected(file: str) -> None:
    source, told = lazy(file, test_fraction=0), []
    source.expect = lambda ids: told.append(ids.tolist())
    stream = prequential(source, arrival_rows=10, max_rows=100)
    arrivals = iter(stream)
    for start in (0, 10, 20):
        next(arrivals)
        assert told[-1] == list(range(start, min(start + (1 + AHEAD) * 10, 100)))
    list(arrivals)
    assert told[-1] == list(range(90, 100))


@pytest.mark.parametrize(("rows", "size", "epochs", "iterations", "least"), [
    (23, 5, 3, None, 1), (21, 5, 2, None, 2), (23, 5, 1, 12, 1), (4, 5, 3, None, 1), (0, 5, 3, None, 1),
    (20, 5, 1, 3, 1),
])  # fmt: skip
def test_a_schedule_goes_on_from_any_update_and_counts_without_making_them(
    rows: int, size: int, epochs: int, iterations: int | None, least: int
) -> None:
    schedule = Schedule(rows, size, epochs, iterations, seed=1, lap=2, least=least)
    whole = [indices.tolist() for indices in schedule]
    assert len(schedule) == len(whole)
    if rows > size:
        passes = torch.cat([torch.randperm(rows, generator=generator(1, "order", 2, lap)) for lap in range(3)])
        assert torch.equal(torch.cat(list(schedule)), passes[: schedule.passed(len(whole))])
    for start in range(len(whole) + 1):
        assert [indices.tolist() for indices in schedule.since(start)] == whole[start:]
        assert schedule.passed(start) == sum(map(len, whole[:start]))


def test_skipping_a_million_updates_draws_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, permute = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: draws.append(a) or permute(*a, **k))  # type: ignore[func-returns-value]
    schedule = Schedule(1000, 1, 2000, None, seed=0, lap=0)
    assert len(schedule) == 2_000_000
    assert len(next(schedule.since(1_000_500))) == 1
    assert len(draws) == 1


# ---------------------------------------------------------------- whole runs


def images(root: Path) -> str:
    draws = np.random.default_rng(0)
    for name in ("cat", "dog", "emu", "fox"):
        (root / name).mkdir(parents=True)
        for row in range(12):
            Image.fromarray(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(root / name / f"{row}.png")
    return str(root)


def ledger(*overrides: str) -> list[tuple[object, ...]]:
    records = continual.run(*overrides, "model.hidden=[8]", "train.batch_size=4", "strategy=er", "track=none").records
    return [(r.rows_seen, r.step, r.task, r.at, r.probe, r.metric, r.value) for r in records if r.metric != "seconds"]


@pytest.mark.parametrize("how", ["images", "table", "arrivals"])
def test_a_run_is_the_same_bit_for_bit_with_any_number_of_workers(how: str, tmp_path: Path, file: str) -> None:
    if how == "images":
        source = ["scenario/source=image_folder", f"scenario.source.root={images(tmp_path / 'i')}"]
        source += ["scenario.source.size=6", "scenario.n_tasks=2", "train.epochs=2"]
    else:
        source = ["scenario/source=table", f"scenario.source.path={file}", "scenario.source.label=y"]
        source += ["scenario=prequential", "scenario.arrival_rows=6", "probe.prequential=true", "probe.window=10"]
        source += ["scenario.n_periods=2"] if how == "table" else ["scenario.source.test_fraction=0"]
    found = []
    for workers in ("1", "2"):
        own = [f"scenario.source.workers={workers}", f"output={tmp_path / workers}"]
        found.append(ledger(*source, *own, "scenario.source.resident=false"))
    found.append(ledger(*source, f"output={tmp_path / 'r'}", "scenario.source.resident=true"))
    assert len(found[0]) > 10
    assert all(other == found[0] for other in found[1:])


def test_how_rows_are_read_does_not_name_a_run(file: str) -> None:
    words = ["scenario/source=table", f"scenario.source.path={file}", "scenario.source.label=y"]
    one, two, other = (
        compose(*words, *more).hash
        for more in ([], ["scenario.source.workers=2", "scenario.source.cache_mb=9"], ["scenario.source.seed=1"])
    )
    assert one == two != other


# ---------------------------------------------------------------- mistakes


def broken(tmp_path: Path, name: str, cells: pa.Array) -> str:
    rows = pa.table({"a": pa.array([1.0] * 8), "y": pa.array([0, 1] * 4)})
    rows = rows.set_column(rows.column_names.index(name), name, cells)
    parquet.write_table(rows, tmp_path / "bad.parquet", row_group_size=3)
    return str(tmp_path / "bad.parquet")


@pytest.mark.parametrize(("name", "cells", "message"), [
    ("a", pa.array([1.0] * 4 + [None] + [1.0] * 3), r"bad.parquet, row group 1, column 'a', row 5 .*empty cell"),
    ("a", pa.array([1.0] * 7 + [float("nan")]), r"bad.parquet, row group 2, column 'a', row 8 .*nan is not finite"),
    ("a", pa.array([1.0] * 7 + [1e39]), r"row group 2, column 'a', row 8 .*not finite in float32"),
    ("a", pa.array([[1.0]] * 8), r"column 'a'.*neither numbers nor strings"),
    ("a", pa.array(["u", "v", "u", "u", "7", "u", "u", "u"]),
     r"row group 1, column 'a', row 5 .*'7' reads as a number.*categorical"),
    ("y", pa.array(["0", "1"] * 4), r"row group 0, column 'y', row 1 .*'0' reads as a number.*classes"),
    ("y", pa.array([0, 1, 0, 1, None, 0, 1, 0]), r"row group 1, column 'y', row 5 .*empty cell"),
    ("y", pa.array([0, 1, 0, 1, 0.5, 0, 1, 0]), r"row group 1, column 'y', row 5 .*0.5 is neither an integer"),
    ("y", pa.array([0, 2] * 4), r"no row has the label 1"),
    ("y", pa.array([0] * 8), r"all labels are '0'"),
])  # fmt: skip
def test_bad_cells_are_named_before_training(tmp_path: Path, name: str, cells: pa.Array, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lazy(broken(tmp_path, name, cells), test_fraction=0)


@pytest.mark.parametrize(("options", "message"), [
    ({"label": "yy"}, r"label names 'yy', no column"),
    ({"features": ["a", "z"]}, r"features names 'z', no column"),
    ({"time": "when"}, r"set split=last"),
    ({"test_fraction": 1}, r"test_fraction=1 must be in \[0, 1\)"),
    ({"split": "lst"}, r"split='lst' is unknown; did you mean 'last'"),
    ({"cache_mb": 0}, r"row group 0: 20 rows are 1 MB decoded, more than cache_mb=0; raise it, or write smaller"),
    ({"classes": ["k", "l"]}, r"row group \d+, column 'y', row \d+ .*'m' is not among"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(file: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lazy(file, **options)


def test_other_files_are_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "rows.csv").write_text("a,y\n1,0\n")
    with pytest.raises(UserError, match=r"rows.csv is no Parquet file.*resident=true"):
        lazy(str(tmp_path / "rows.csv"))
    (tmp_path / "empty").mkdir()
    for resident in (True, False):
        with pytest.raises(UserError, match=r"no \*.parquet in the folder .*empty"):
            table(str(tmp_path / "empty"), "y", resident=resident)
    rows = columns()
    parquet.write_table(rows.set_column(1, "b", rows["b"].cast(pa.float64())), Path(folder) / "2.parquet")
    for resident in (True, False):
        with pytest.raises(UserError, match=r"2.parquet, column 'b': double, but int16 in 0.parquet"):
            table(folder, "y", resident=resident)
    (Path(folder) / "2.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"cannot read .*2.parquet"):
        lazy(folder)


def test_a_file_that_changes_is_noticed(file: str) -> None:
    source = lazy(file, test_fraction=0, workers=1)
    before = source.digest()
    about = os.stat(file)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"rows.parquet has changed since it was opened"):
        source.fetch(torch.tensor([0]))
    assert lazy(file, test_fraction=0).digest() == before  # the same bytes
    rows = columns()
    parquet.write_table(rows.set_column(0, "a", pa.array([0.0] * N)), file, row_group_size=20)
    assert lazy(file, test_fraction=0).digest() != before
    os.remove(file)
    with pytest.raises(UserError, match=r"cannot read .*rows.parquet"):
        source.fetch(torch.tensor([0]))


@pytest.mark.parametrize(
    "options", [{"scale": "minmax"}, {"seed": 1}, {"features": ["a"]}, {"classes": ["m", "l", "k"]}]
)
def test_the_digest_tells_what_rows_become(file: str, options: dict[str, Any]) -> None:
    assert lazy(file).digest() == lazy(file, workers=2, cache_mb=7).digest() != lazy(file, **options).digest()


def test_the_digest_tells_which_rows_are_for_testing(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    parquet.write_table(pa.table({"a": range(20), "y": [0] * 10 + [1] * 10}), path)
    one, other = lazy(path, test_fraction=0.5), lazy(path, test_fraction=0.5, seed=1)
    assert torch.equal(one.y, other.y)
    assert one.digest() != other.digest()


def test_images_are_not_kept_unless_they_are_read_ahead(tmp_path: Path) -> None:
    source = image_folder(images(tmp_path), size=6, workers=0)
    source.fetch(torch.arange(48))
    assert len(source.blocks.held) == 1  # type: ignore[union-attr]


def test_an_image_that_breaks_is_named_in_the_caller(tmp_path: Path) -> None:
    source = image_folder(images(tmp_path), size=6, workers=2)
    assert isinstance(source, LazySource)
    assert source.expect is not None
    victim = tmp_path / "emu" / "7.png"
    victim.write_bytes(victim.read_bytes()[:60])
    source.expect(torch.arange(48))
    with pytest.raises(UserError, match=r"cannot read the image .*emu/7.png"):
        source.fetch(torch.arange(48))
