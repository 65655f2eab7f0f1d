"""Every source obeys one contract; and the sources that are made from memory, arrays, datasets and image folders."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv, parquet
from torch import Tensor

from continual.errors import UserError
from scenarios.sources import LazySource, Source, TensorSource, dataset, digits, gaussian, image_folder, npz, table
from scenarios.sources.labels import encode, split_rows

YAMLS = sorted((Path(__file__).parent.parent / "conf" / "scenario" / "source").glob("*.yaml"))


class Pairs:
    """A map-style dataset of grey ramps, 8 rows of 2 classes."""

    def __init__(self, kind: str = "pil") -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> tuple[object, int]:
        pixels = np.full((4, 6, 3), row, dtype=np.uint8)
        kinds = {"pil": lambda: Image.fromarray(pixels), "array": lambda: pixels, "tensor": lambda: torch.ones(2) * row}
        return kinds[self.kind](), row % 2


def save_npz(folder: Path, **arrays: object) -> str:
    path = folder / "rows.npz"
    np.savez(path, **arrays)
    return str(path)


def save_images(root: Path, rows: int = 5, size: tuple[int, int] = (9, 7)) -> str:
    for label, name in enumerate(["cat", "dog"]):
        (root / name).mkdir(parents=True)
        for row in range(rows):
            Image.new("RGB", size, (10 * label, row, 200)).save(root / name / f"{row}.png")
    return str(root)


def save_csv(folder: Path) -> str:
    path = folder / "rows.csv"
    path.write_text("a,colour,y\n" + "".join(f"{i},{'red' if i % 3 else 'blue'},{'ud'[i % 2]}\n" for i in range(10)))
    return str(path)


def save_parquet(folder: Path) -> str:
    path = folder / "rows.parquet"
    parquet.write_table(csv.read_csv(save_csv(folder)), path, row_group_size=3)
    return str(path)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "tensor": lambda tmp: TensorSource(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])),
    "gaussian": lambda tmp: gaussian(),
    "digits": lambda tmp: digits(),
    "npz": lambda tmp: npz(save_npz(tmp, x=np.eye(8, dtype=np.float32), y=np.arange(8) % 2)),
    "table": lambda tmp: table(save_csv(tmp), "y"),
    "parquet": lambda tmp: table(save_parquet(tmp), "y", resident=False),
    "folder": lambda tmp: image_folder(save_images(tmp / "images"), size=[4, 6]),
    "folder_resident": lambda tmp: image_folder(save_images(tmp / "images"), size=4, channels=1, resident=True),
    "dataset": lambda tmp: dataset(Pairs(), Pairs("array")),
    "dataset_split": lambda tmp: dataset(Pairs("tensor")),
}


def check_source(source: Source) -> None:
    """The laws of a source."""
    n = len(source.y)
    assert isinstance(source, Source)
    assert 2 <= source.n_train <= n
    assert source.y.shape == (n,)
    assert not source.y.is_floating_point()
    assert source.y.dtype.is_signed
    assert 0 <= source.y.min() <= source.y.max() < source.n_classes == len(source.class_names)
    low, high = source.input_range
    assert low < high
    ids = torch.tensor([n - 1, 0, 0])
    x = source.fetch(ids)
    assert x.shape == (3, *source.in_shape)
    assert x.dtype == source.dtype
    assert torch.equal(x[1], x[2])
    assert source.fetch(ids[:0]).shape == (0, *source.in_shape)
    everything = source.fetch(torch.arange(n))
    assert torch.equal(everything[ids], x)
    digest, before = source.digest(), everything.clone()
    everything.zero_()
    assert torch.equal(source.fetch(torch.arange(n)), before), "fetch must give fresh memory"
    assert digest == source.digest()
    for beyond in (n, -1):
        with pytest.raises(IndexError):
            source.fetch(torch.tensor([beyond]))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_obeys_the_contract(name: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    check_source(SOURCES[name](tmp_path))
    if name != "tensor":  # whose rows this test itself drew
        assert torch.equal(state, torch.get_rng_state())


class ViewSource(TensorSource):
    def fetch(self, ids: Tensor) -> Tensor:
        return self.x if len(ids) == len(self.x) else super().fetch(ids)


class DoubleSource(TensorSource):
    def fetch(self, ids: Tensor) -> Tensor:
        return super().fetch(ids).double()


class WrappingSource(TensorSource):
    def fetch(self, ids: Tensor) -> Tensor:
        return self.x[ids % len(self.x)]


@pytest.mark.parametrize("mutant", [ViewSource, DoubleSource, WrappingSource])
def test_the_contract_catches_mutants(mutant: type[TensorSource]) -> None:
    source = mutant(torch.arange(12.0).view(4, 3) + 1, torch.tensor([0, 1, 0, 1]))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_source(source)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_keys_are_the_constructors_parameters(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    module, _, name = config.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert list(config) == list(parameters)
    for key, value in config.items():
        default = parameters[key].default
        assert value == "???" or default in (value, tuple(value) if isinstance(value, list) else value, inspect._empty)
        assert (value == "???") == (default is inspect._empty) or key == "name"
    assert path.read_text().startswith("# ")


def test_there_is_a_yaml_for_every_source() -> None:
    expected = "cifar10 cifar100 dataset digits fashion_mnist gaussian image_folder mnist npz table"
    assert [path.stem for path in YAMLS] == expected.split()


# --- labels and splits


def test_labels_are_encoded_as_documented() -> None:
    ids, names = encode(np.array(["up", "down", "up"]), None, "y")
    assert ids.tolist() == [1, 0, 1]
    assert names == ("down", "up")
    ids, names = encode(np.array([3.0, 1.0, 3.0]), [3, 2, 1], "y")
    assert ids.tolist() == [0, 2, 0]
    assert names == ("3", "2", "1")
    assert encode(np.array([True, False]), None, "y")[1] == ("false", "true")
    assert encode(np.array([b"b", b"a"]), None, "y")[0].tolist() == [1, 0]
    assert encode(np.arange(11)[::-1], None, "y")[0].tolist() == list(range(10, -1, -1))


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([0, 1, -1], None, "label -1 is negative"),
        ([0, 2, 2], None, r"no row has the label 1.*classes=\[0, 2\]"),
        ([1, 2, 3], None, r"no row has the label 0.*classes=\[1, 2, 3\]"),
        ([0, 1, 0.5], None, r"row 3 \(the first is 1\): the label 0.5"),
        ([0, 1, float("nan")], None, "row 3.*nan"),
        ([1, 1, 1], None, "all labels are '1'|no row has the label 0"),
        (["a", "a"], None, "all labels are 'a'"),
        (["cat", "dgo", "dog"], ["cat", "dog"], "row 2.*'dgo' is not among.*did you mean 'dog'"),
        ([0, 1, 5], [0, 1, 2], "row 3.*'5' is not among"),
        ([0, 1], [0, 1, 1], "twice"),
        ([[0, 1]], None, "one number or string per row"),
    ],
)
def test_bad_labels_are_named(values: list[object], classes: list[object] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode(np.array(values), classes, "y")


@given(
    y=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 0.99),
    split=st.sampled_from(["random", "last"]),
    seed=st.integers(0, 3),
)
def test_a_split_is_a_partition_in_order(y: list[int], fraction: float, split: str, seed: int) -> None:
    labels = torch.tensor(y)
    train, test = split_rows(labels, fraction, split, seed)
    assert sorted(train.tolist() + test.tolist()) == list(range(len(y)))
    assert train.tolist() == sorted(train.tolist())
    assert test.tolist() == sorted(test.tolist())
    if split == "last":
        assert len(test) == round(fraction * len(y))
        assert (test >= len(train)).all()
    for label in set(y) if split == "random" else ():
        n, kept = y.count(label), int((labels[test] == label).sum())
        assert kept == (0 if fraction == 0 else min(max(1, round(fraction * n)), n - 1))
    assert torch.equal(train, split_rows(labels, fraction, split, seed)[0])


def test_a_random_split_depends_on_its_seed() -> None:
    y = torch.arange(100) % 2
    assert not torch.equal(split_rows(y, 0.5, "random", 0)[0], split_rows(y, 0.5, "random", 1)[0])


@pytest.mark.parametrize(("fraction", "split"), [(1.0, "random"), (-0.1, "last"), (0.5, "lst")])
def test_bad_split_options(fraction: float, split: str) -> None:
    with pytest.raises(UserError, match=r"test_fraction=|did you mean 'last'"):
        split_rows(torch.arange(4), fraction, split, 0)


# --- TensorSource, digits, gaussian


def test_train_rows_come_first() -> None:
    x, y = torch.arange(6.0).view(3, 2), torch.tensor([1, 0, 1])
    source = TensorSource(x, y, x + 10, 1 - y, class_names=["no", "yes"], input_range=[-1, 1])
    assert source.n_train == 3
    assert source.y.tolist() == [1, 0, 1, 0, 1, 0]
    assert source.fetch(torch.tensor([1, 4])).tolist() == [[2, 3], [12, 13]]
    assert (source.class_names, source.input_range) == (("no", "yes"), (-1.0, 1.0))


@pytest.mark.parametrize("change", ["x", "y", "n_train", "shape"])
def test_the_digest_names_the_data(change: str) -> None:
    x, y = torch.arange(8).view(4, 2), torch.tensor([0, 1, 0, 1])
    same = TensorSource(x[:3], y[:3], x[3:], y[3:]).digest()
    assert same == TensorSource(x[:3].clone(), y[:3], x[3:], y[3:], input_range=(0, 2)).digest()
    n = 2 if change == "n_train" else 3
    x = x.clone().view(4, 1, 2) if change == "shape" else x.clone()
    if change == "x":
        x[0] = 9
    y = torch.tensor([0, 1, 1, 1]) if change == "y" else y
    assert TensorSource(x[:n], y[:n], x[n:], y[n:]).digest() != same


X, Y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TensorSource(X, Y[:3]), "x_train has 4 rows but y_train has 3 labels"),
        (lambda: TensorSource(X, Y, X[:, :1], Y), "training rows are"),
        (lambda: TensorSource(X.double(), Y), "float64"),
        (lambda: TensorSource(X, Y.float()), "one integer per row"),
        (lambda: TensorSource(X, Y - 1), r"row 1 \(the first is 1\) has the label -1"),
        (lambda: TensorSource(X, Y, n_classes=1), r"row 2 .* has the label 1; labels must be in 0..0"),
        (lambda: TensorSource(X, Y * 0), "at least 2"),
        (lambda: TensorSource(X[:0], Y[:0]), "no training rows"),
        (lambda: TensorSource(X, Y, class_names=["a", "b"], n_classes=3), "2 class names for 3"),
        (lambda: TensorSource(torch.tensor([[0.0], [1], [float("nan")], [3]]), Y), "row 3 .* NaN or inf"),
        (lambda: TensorSource(X, Y, input_range=[1, 0]), "low < high"),
        (lambda: gaussian(n_classes=1), "n_classes=1 must be at least 2"),
    ],
)
def test_bad_tensors_are_named(build: Callable[[], Source], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    source, bunch = digits(), load_digits()
    assert (source.in_shape, source.dtype, source.n_classes, len(source.y)) == ((1, 8, 8), torch.uint8, 10, 1797)
    x = source.fetch(torch.arange(1797)).flatten(1).double() * 16 / 255
    rows = sorted(zip(x.round().int().tolist(), source.y.tolist(), strict=True))
    assert rows == sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))
    assert source.fetch(torch.arange(1797)).max() == 255
    assert source.digest() == digits().digest() != digits(seed=1).digest()
    assert 1797 - source.n_train == sum(round(0.2 * n) for n in np.bincount(bunch.target).tolist())


def test_gaussian_blobs_are_separable_by_their_means() -> None:
    source = gaussian(n_classes=3, rows_per_class=40, separation=10)
    x, y = source.fetch(torch.arange(120)), source.y
    train = torch.arange(120) < source.n_train
    means = torch.stack([x[train & (y == c)].mean(0) for c in range(3)])
    assert (torch.cdist(x[~train], means).argmin(1) == y[~train]).all()
    assert y[:3].tolist() != [0, 0, 0]
    assert len(y) - source.n_train == 24
    assert gaussian().digest() != gaussian(seed=1).digest()
    assert len(gaussian(test_fraction=0).y) == gaussian(test_fraction=0).n_train


# --- npz


def test_npz_with_given_test_rows(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    path = save_npz(tmp_path, x_train=images, y_train=["b", "a"], x_test=images[:1], y_test=["b"])
    source = npz(path)
    assert (source.in_shape, source.dtype, source.n_train) == ((3, 4, 5), torch.uint8, 2)
    assert source.y.tolist() == [1, 0, 1]
    assert source.fetch(torch.tensor([1]))[0, 2, 3, 4] == images[1, 3, 4, 2]


def test_npz_is_split_and_keeps_order(tmp_path: Path) -> None:
    path = save_npz(tmp_path, rows=np.arange(10.0)[:, None], label=np.arange(10) % 2, junk=np.array([object()]))
    source = npz(path, x="rows", y="label", test_fraction=0.3, split="last")
    assert source.fetch(torch.arange(10)).flatten().tolist() == list(range(10))
    assert (source.n_train, source.dtype) == (7, torch.float32)
    assert npz(path, "rows", "label", classes=[1, 0]).y.sum() == 5


def test_npz_grey_images_get_a_channel(tmp_path: Path) -> None:
    path = save_npz(tmp_path, x=np.zeros((4, 5, 6), dtype=np.uint8), y=np.arange(4) % 2)
    assert npz(path).in_shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.eye(3), "z": np.arange(3)}, "no array 'y'; choose from"),
        ({"x": np.eye(3), "y": np.arange(2)}, r"x has 3 rows but y has the shape \(2,\)"),
        ({"x": np.array([[0.0], [np.inf]]), "y": [0, 1]}, r"rows.npz, x, row 2 .*NaN or inf"),
        ({"x": np.eye(2), "y": np.array([{}, []], dtype=object)}, "without pickled objects"),
        ({"x": np.array([["a"], ["b"]]), "y": [0, 1]}, "rows must be numbers"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "no rows"),
        ({"x": np.eye(2), "y": [0, 0]}, "all labels are '0'"),
        ({"x_train": np.eye(2), "y_train": [0, 0], "x_test": np.eye(2), "y_test": [0, 1]}, "'1' has no training row"),
    ],
)
def test_bad_npz_files_are_named(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        npz(save_npz(tmp_path, **arrays))


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"PK\3\4cut", "NumPy"), (b"text", "pickled")])
def test_files_that_are_no_archives(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        npz(str(path))
    with pytest.raises(UserError, match=rf"no file {tmp_path}/other.npz"):
        npz(str(tmp_path / "other.npz"))
    np.save(tmp_path / "one.npy", np.eye(2))
    with pytest.raises(UserError, match="holds one array"):
        npz(str(tmp_path / "one.npy"))


# --- image folders


def test_image_folder_is_read_in_order(tmp_path: Path) -> None:
    root = save_images(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    lazy, resident = image_folder(root, size=[4, 6]), image_folder(root, size=[4, 6], resident=True)
    assert isinstance(lazy, LazySource)
    assert isinstance(resident, TensorSource)
    assert lazy.class_names == resident.class_names == ("cat", "dog")
    assert (lazy.in_shape, lazy.n_train, len(lazy.y)) == ((3, 4, 6), 8, 10)
    x = lazy.fetch(torch.arange(10))
    assert torch.equal(x, resident.fetch(torch.arange(10)))
    assert (x[:, 0] == 10 * lazy.y[:, None, None]).all()
    assert x[:4, 1, 0, 0].tolist() == sorted(x[:4, 1, 0, 0].tolist())
    assert image_folder(root, size=4, channels=1).in_shape == (1, 4, 4)


def test_images_are_resized_height_first(tmp_path: Path) -> None:
    for name, right in (("a", 50), ("b", 100)):
        (tmp_path / name).mkdir()
        pixels = np.zeros((10, 20, 3), dtype=np.uint8)
        pixels[:, 10:] = right
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    x = image_folder(str(tmp_path), size=[5, 20], test_fraction=0).fetch(torch.arange(2))  # (2, 3, 5, 20)
    assert (x[..., :10] == 0).all()
    assert (x[0, ..., 10:] == 50).all()
    assert (x[1, ..., 10:] == 100).all()


def test_image_folder_with_test_rows(tmp_path: Path) -> None:
    save_images(tmp_path / "train")
    save_images(tmp_path / "test", rows=2)
    source = image_folder(str(tmp_path), size=4)
    assert (source.n_train, len(source.y)) == (10, 14)
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(UserError, match=r"cow: no class of that name in .*train"):
        image_folder(str(tmp_path), size=4)


def test_the_digest_of_a_folder_names_its_files(tmp_path: Path) -> None:
    root = save_images(tmp_path)
    before = image_folder(root, size=4).digest()
    assert before == image_folder(root, size=4).digest()
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "00.png")
    assert before != image_folder(root, size=4).digest()


def test_bad_image_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no folder {tmp_path}/none"):
        image_folder(str(tmp_path / "none"), size=4)
    with pytest.raises(UserError, match="holds 0 class folders"):
        image_folder(str(tmp_path), size=4)
    root = save_images(tmp_path)
    for size in (0, [4, 4, 4], "4"):
        with pytest.raises(UserError, match=r"size=.* must be"):
            image_folder(root, size=size)
    with pytest.raises(UserError, match=r"channels=2 must be"):
        image_folder(root, size=4, channels=2)
    Image.new("I;16", (4, 4)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(UserError, match=r"deep.png has more than 8 bits"):
        image_folder(root, size=4)
    (tmp_path / "cat" / "deep.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image .*deep.png"):
        image_folder(root, size=4)
    (tmp_path / "cat" / "deep.png").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in .*empty"):
        image_folder(root, size=4)


def test_an_image_that_is_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = save_images(tmp_path, size=(60, 60))
    source = image_folder(root, size=4, test_fraction=0)
    path = tmp_path / "dog" / "4.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot read the image .*4.png"):
        source.fetch(torch.tensor([9]))


# --- any map-style dataset


@pytest.mark.parametrize("kind", ["pil", "array"])
def test_images_of_a_dataset_get_their_channels_first(kind: str) -> None:
    source = dataset(Pairs(kind), Pairs(kind))
    assert (source.in_shape, source.dtype) == ((3, 4, 6), torch.uint8)
    assert source.fetch(torch.arange(16))[:, 0, 0, 0].tolist() == [*range(8), *range(8)]
    assert (source.n_train, source.y.tolist()) == (8, [0, 1] * 8)


def test_a_dataset_is_split_and_may_be_held_in_memory() -> None:
    source = dataset(Pairs("tensor"), test_fraction=0.25, resident=True)
    assert isinstance(source, TensorSource)
    assert source.n_train == 6
    assert sorted(source.fetch(torch.arange(8))[:, 0].tolist()) == list(range(8))
    assert (source.fetch(torch.arange(8))[:, 0] % 2 == source.y).all()
    last = dataset(Pairs("tensor"), test_fraction=0.25, split="last")
    assert last.fetch(torch.tensor([6, 7]))[:, 0].tolist() == [6, 7]


class Listed(Pairs):
    """Knows its labels, and counts how often a row is read."""

    def __init__(self, targets: list[int]) -> None:
        super().__init__("tensor")
        self.targets, self.reads = targets, 0

    def __len__(self) -> int:
        return 200

    def __getitem__(self, row: int) -> tuple[object, int]:
        self.reads += 1
        return super().__getitem__(row)


def test_targets_save_a_pass_but_are_not_believed_blindly() -> None:
    listed = Listed([row % 2 for row in range(200)])
    assert dataset(listed).y.sum() == 100
    assert listed.reads < 100
    lying = Listed([0] * 200)
    assert dataset(lying).y.sum() == 100


def test_the_digest_of_a_dataset_names_its_rows() -> None:
    assert dataset(Pairs("pil")).digest() == dataset(Pairs("pil")).digest() != dataset(Pairs("tensor")).digest()


class Odd(Pairs):
    def __getitem__(self, row: int) -> object:
        x, y = super().__getitem__(row)
        if self.kind == "random":
            return torch.rand(2), y
        last = row == 7
        results: dict[str, object] = {
            "single": (x,),
            "text": ("words", y),
            "texts": (np.array(["words"]), y),
            "palette": (Image.new("P", (4, 4)), y),
            "nan": (x * float("nan"), y),
            "vector": (x, torch.tensor([0, 1])),
            "shape": (torch.ones(3) if last else x, y),
        }
        if self.kind == "fails":
            raise RuntimeError("disk gone")
        return results[self.kind]

    def __init__(self, kind: str) -> None:
        super().__init__(kind)

    def __len__(self) -> int:
        return 8


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("single", r"row 0 is a tuple, not a pair"),
        ("text", "x is str"),
        ("texts", "x is ndarray"),
        ("palette", r"mode=P .*convert it with x.convert"),
        ("nan", "NaN or inf"),
        ("vector", r"the label has the shape \(2,\)"),
        ("fails", "row 0 cannot be read: RuntimeError: disk gone"),
        ("random", "row 0 differs when read twice; move random transforms to augment"),
    ],
)
def test_bad_datasets_are_named(kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pairs, "__getitem__", lambda self, row: (torch.ones(2) * row, row % 2))
    with pytest.raises(UserError, match=message):
        dataset(Odd(kind))


def test_rows_of_another_shape_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pairs, "__getitem__", lambda self, row: (torch.ones(2) * row, row % 2))
    with pytest.raises(UserError, match=r"row 7 is torch.float32 of shape \(3,\), but row 0 is"):
        dataset(Odd("shape"), test_fraction=0).fetch(torch.arange(8))


def test_objects_that_are_no_datasets() -> None:
    with pytest.raises(UserError, match="train is a int, not a map-style dataset"):
        dataset(3)
    with pytest.raises(UserError, match="train: list has no rows"):
        dataset([])
