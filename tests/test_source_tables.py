"""Tables: columns to features, order, scaling, and errors that name file, row and column."""

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from continual.errors import UserError
from scenarios.sources import table
from scenarios.sources.tables import scaling

SHARED = Path(os.environ.get("CONTINUAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

CSV = "t,a,colour,y\n3,1.5,red,up\n1,2.5,blue,down\n2,-1,red,up\n2,0,green,down\n"
ARFF = "@relation r\n@attribute a numeric\n@attribute d {1,2}\n@attribute c {u,v}\n@attribute y {UP,DOWN}\n@data\n"

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "rows.csv") -> str:
        path = tmp_path / name
        packers = {".gz": gzip.compress, ".xz": lzma.compress}
        path.write_bytes(packers.get(path.suffix, bytes)(text.encode()))
        return str(path)

    return write


def test_columns_become_features(write: Write) -> None:
    source = table(write(CSV), "y", test_fraction=0)
    assert source.class_names == ("down", "up")
    assert source.y.tolist() == [1, 0, 1, 0]
    assert source.dtype == torch.float32
    expected = [[3, 1.5, 0, 0, 1], [1, 2.5, 1, 0, 0], [2, -1, 0, 0, 1], [2, 0, 0, 1, 0]]  # t, a, blue, green, red
    assert source.fetch(torch.arange(4)).tolist() == expected


def test_rows_are_sorted_by_time_and_ties_keep_their_order(write: Write) -> None:
    source = table(write(CSV), "y", time="t", features=["a"], test_fraction=0.25, split="last")
    assert source.fetch(torch.arange(4)).flatten().tolist() == [2.5, -1, 0, 1.5]
    assert source.y.tolist() == [0, 1, 0, 1]
    assert source.n_train == 3


def test_many_ties_keep_their_order(write: Write) -> None:
    text = "t,a,y\n" + "".join(f"{row % 3},{row},{row % 2}\n" for row in range(300))
    source = table(write(text), "y", time="t", test_fraction=0)
    assert source.fetch(torch.arange(300)).flatten().tolist() == sorted(range(300), key=lambda row: row % 3)


@pytest.mark.parametrize(
    "times",
    [
        ["1996-05-08", "1996-05-07", "1996-12-01"],
        ["1996-05-07T10:00:00", "1996-05-07T09:30:00", "1996-05-08T00:00:00"],
        ["1996-05-07T10:00:00Z", "1996-05-07T10:30:00+02:00", "1996-05-08T00:00:00Z"],
        ["9", "-1", "10"],
    ],
)
def test_times_are_numbers_or_iso_8601(times: list[str], write: Write) -> None:
    rows = "".join(f"{time},{row},{row % 2}\n" for row, time in enumerate(times))
    source = table(write("when,a,y\n" + rows), "y", time="when", test_fraction=0)
    assert source.fetch(torch.arange(3)).flatten().tolist() == [1, 0, 2]


def test_quoted_cells_are_text_as_it_stands(write: Write) -> None:
    source = table(write('c;y\n"NA";"u;v"\n"two\nlines";w\n'), "y", delimiter=";", test_fraction=0)
    assert source.class_names == ("u;v", "w")
    assert source.fetch(torch.arange(2)).tolist() == [[1, 0], [0, 1]]


def test_line_breaks_in_cells_do_not_end_rows(write: Write) -> None:
    cell = "two\n" * 1000
    rows = "".join(
        f'"{cell}{row % 2}",{row % 2}\n' for row in range(400)
    )  # longer than the 1 MiB that are read at once
    source = table(write("c,y\n" + rows), "y", test_fraction=0)
    assert source.y.tolist() == [0, 1] * 200


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.CSV.xz"])
def test_packed_files_hold_the_same_rows(name: str, write: Write) -> None:
    assert table(write(CSV, name), "y").digest() == table(write(CSV, "plain.csv"), "y").digest()


@pytest.mark.parametrize("name", ["rows.arff", "rows.arff.xz", "rows.arff.gz"])
def test_arff(name: str, write: Write) -> None:
    source = table(write(ARFF + "0.5,2,v,UP\n-1,1,u,DOWN\n", name), "y", test_fraction=0)
    assert source.fetch(torch.arange(2)).tolist() == [[0.5, 2, 0, 1], [-1, 1, 1, 0]]
    assert (source.y.tolist(), source.class_names) == ([1, 0], ("DOWN", "UP"))
    one_hot = table(write(ARFF + "0.5,2,v,UP\n-1,1,u,DOWN\n", name), "y", features=["d"], categorical=["d"])
    assert one_hot.fetch(torch.arange(2)).tolist() == [[0, 1], [1, 0]]


def test_parquet(tmp_path: Path) -> None:
    columns = {
        "a": pa.array([1, 2, 3, 4], pa.int16()),
        "flag": pa.array([True, False, True, True]),
        "kind": pa.array(["x", "y", "x", "x"]).dictionary_encode(),
        "when": pa.array([4, 3, 2, 1], pa.timestamp("s")),
        "y": pa.array([0, 1, 0, 1]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=2)
    source = table(str(tmp_path / "rows.parquet"), "y", time="when", test_fraction=0)
    assert source.fetch(torch.arange(4)).tolist() == [[4, 1, 1, 0], [3, 1, 1, 0], [2, 0, 0, 1], [1, 1, 1, 0]]
    assert source.y.tolist() == [1, 0, 1, 0]
    with pytest.raises(UserError, match=r"column 'when': timestamp\[.*leave it out"):
        table(str(tmp_path / "rows.parquet"), "y")


def test_labels_may_be_listed(write: Write) -> None:
    path = write("a,y\n1,6\n2,4\n3,6\n")
    source = table(path, "y", classes=[6, 5, 4], test_fraction=0)
    assert (source.y.tolist(), source.class_names) == ([0, 2, 0], ("6", "5", "4"))
    with pytest.raises(UserError, match=r"classes=\[4, 6\]"):
        table(path, "y")


def test_scaling_by_hand() -> None:
    fit = np.array([1.0, 3.0, 5.0, 7.0])
    assert scaling(fit, "none") == (0, 1)
    assert scaling(fit, "minmax") == (1, 6)
    assert scaling(fit, "standard") == (4, pytest.approx(5**0.5))
    assert scaling(np.array([2.0, 2.0]), "standard") == (2, 1)


def test_scaling_looks_at_the_first_training_rows_only(write: Write) -> None:
    source = table(write(CSV), "y", time="t", scale="minmax", scale_rows=2, test_fraction=0.25, split="last")
    blue, green, red = [1, 0, 0], [0, 1, 0], [0, 0, 1]
    a = [1, 0, 1 / 3.5, 2.5 / 3.5]  # in order of time 2.5, -1, 0, 1.5; the first two rows span [-1, 2.5]
    expected = [[a[0], *blue], [a[1], *red], [a[2], *green], [a[3], *red]]
    assert torch.allclose(source.fetch(torch.arange(4)), torch.tensor(expected))


@settings(max_examples=25)
@given(
    future=st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3),
    scale=st.sampled_from(["minmax", "standard"]),
)
def test_the_past_does_not_depend_on_the_future(
    future: list[float], scale: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def past(later: list[float]) -> list[list[float]]:
        path = tmp_path_factory.mktemp("rows") / "rows.csv"
        rows = [*enumerate([4.0, 2.0, 3.0]), *enumerate(later, start=3)]
        path.write_text("a,y\n" + "".join(f"{a!r},{i % 2}\n" for i, a in rows))
        source = table(str(path), "y", scale=scale, scale_rows=3, test_fraction=0)
        return source.fetch(torch.arange(3)).tolist()

    assert past(future) == past([0.0, 0.0, 0.0])


HUGE = "a,y\n" + "".join(f"name{i},{i % 2}\n" for i in range(1001))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CSV, {"label": "yy"}, "label names 'yy', no column; did you mean 'y'"),
        (CSV, {"label": "y", "time": "tt", "split": "last"}, "time names 'tt', no column; did you mean 't'"),
        (CSV, {"label": "y", "features": ["a", "color"]}, "features names 'color', no column; did you mean 'colour'"),
        (CSV, {"label": "y", "features": ["a", "y"]}, "without the label"),
        (CSV, {"label": "y", "features": []}, "at least one"),
        (CSV, {"label": "y", "features": ["a"], "categorical": ["t"]}, "categorical names 't', no feature"),
        (CSV, {"label": "y", "time": "t"}, "set split=last, or test_fraction=0"),
        (CSV, {"label": "y", "time": "colour", "split": "last"}, "column 'colour': times must be numbers or ISO 8601"),
        (CSV, {"label": "y", "scale": "minmx"}, "did you mean 'minmax'"),
        (CSV, {"label": "y", "scale_rows": 0}, "scale_rows=0 must be at least 1"),
        (CSV, {"label": "y", "split": "last", "test_fraction": 0.75}, "class 'down' has no training row"),
        (CSV, {"label": "y", "classes": ["up", "left"]}, r"column 'y', row 2 .*'down' is not among"),
        ("a,y\n1,0\n,1\n", {"label": "y"}, r"rows.csv, column 'a', row 2 \(the first is 1\): empty cell"),
        ("a,y\n1,0\nNA,1\n", {"label": "y"}, "column 'a', row 2 .*empty cell"),
        ("a,y\n1,0\ninf,1\n", {"label": "y"}, "column 'a', row 2 .*not finite"),
        ("a,y\n1,0\n2,1\n1e39,1\n", {"label": "y"}, "column 'a', row 3 .*not finite in float32"),
        ("a,y\n1,0\n2,1\n3o,1\n", {"label": "y"}, "column 'a', row 3 .*'3o' is not a number"),
        ("a,y\n1,0\n2,\n", {"label": "y"}, "column 'y', row 2 .*empty cell"),
        ("a,y\n1,0\n2,0.5\n", {"label": "y"}, "column 'y', row 2 .*0.5 is neither an integer"),
        ("a,y\n1,0\n2,-1\n", {"label": "y"}, "column 'y'.*-1 is negative"),
        ("a,y\n1,u\n2,u\n", {"label": "y"}, "all labels are 'u'"),
        ("a,y\n1,0\n2\n", {"label": "y"}, r"cannot read .*rows.csv.*Expected 2 columns"),
        ("a,a,y\n1,1,0\n1,2,1\n", {"label": "y"}, "has two columns 'a'"),
        ("a,y\n", {"label": "y"}, "has no rows"),
        ("", {"label": "y"}, "is empty"),
        (HUGE, {"label": "y"}, r"1001 distinct values are too many.*features=\[...\]"),
    ],
)
def test_bad_csv_files_are_named(text: str, options: dict[str, object], message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message):
        table(write(text), **options)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (ARFF + "1,2,u,UP\n?,1,u,DOWN\n", "rows.arff", "column 'a', row 2 .*empty cell"),
        (ARFF + "1,2,u,UP\n1,1,?,DOWN\n", "rows.arff", "column 'c', row 2 .*empty cell"),
        (ARFF + "1,2,u\n", "rows.arff", "cannot read .*rows.arff"),
        (ARFF + "1,2,w,UP\n", "rows.arff", "cannot read .*rows.arff: w value not in"),
        ("@relation r\n", "rows.arff", "ends within its header"),
        ("@relation r\n@attribute s string\n@data\nx\n", "rows.arff", "cannot read .*not supported"),
        ("no parquet", "rows.parquet", "cannot read .*rows.parquet"),
        ("a,y\n", "rows.txt", r"rows.txt is not a table: its name must end in .csv"),
        ("a,y\n", "rows.parquet.gz", "is not a table"),
    ],
)
def test_other_bad_files_are_named(text: str, name: str, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message):
        table(write(text, name), "y")


def test_files_that_cannot_be_unpacked(tmp_path: Path) -> None:
    for name in ("rows.csv.gz", "rows.csv.xz", "rows.csv.bz2"):
        (tmp_path / name).write_bytes(b"not packed")
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            table(str(tmp_path / name), "y")
    (tmp_path / "latin.csv").write_bytes("a,y\né,0\nb,1\n".encode("latin1"))
    with pytest.raises(UserError, match=r"cannot read .*latin.csv.*UTF8"):
        table(str(tmp_path / "latin.csv"), "y")


@pytest.mark.skipif(not (SHARED / "elec2").is_dir(), reason=f"the electricity data are not in {SHARED}")
def test_electricity() -> None:
    path = str(SHARED / "elec2" / "Electricity.arff.xz")
    source = table(path, "class", test_fraction=0)
    assert (len(source.y), source.n_train, source.in_shape) == (45312, 45312, (8,))
    assert source.class_names == ("DOWN", "UP")
    first = [0, 2, 0, 0.056443, 0.439155, 0.003467, 0.422915, 0.414912]
    assert torch.allclose(source.fetch(torch.tensor([0])), torch.tensor([first]))
    assert source.y[:6].tolist() == [1, 1, 1, 1, 0, 0]
    repeated = (source.y[1:] == source.y[:-1]).double().mean()
    assert abs(repeated - 0.8533) < 0.0002  # how often the last label is right


@pytest.mark.skipif(not (SHARED / "phishing").is_dir(), reason=f"the phishing data are not in {SHARED}")
def test_phishing() -> None:
    source = table(str(SHARED / "phishing" / "Phishing.arff.xz"), "class")
    assert (len(source.y), source.in_shape, source.class_names) == (11055, (46,), ("0", "1"))
    assert source.fetch(torch.arange(11055)).unique().tolist() == [0, 1]
