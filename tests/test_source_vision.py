"""MNIST's idx files and CIFAR's pickles, generated in the layout that torchvision's downloads have."""

import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from continual.errors import UserError
from scenarios.sources import torchvision

SHARED = Path(os.environ.get("CONTINUAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

Bytes = npt.NDArray[np.uint8]


def idx(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_mnist(root: Path, name: str = "MNIST", packed: bool = False) -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part, rows in (("train", 20), ("t10k", 10)):
        images = np.arange(rows * 784, dtype=np.uint32).astype(np.uint8).reshape(rows, 28, 28)
        files = {"images-idx3-ubyte": images, "labels-idx1-ubyte": np.arange(rows, dtype=np.uint8) % 10}
        for kind, array in files.items():
            path = folder / f"{part}-{kind}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


def python2_pickle(value: object) -> bytes:
    """``value`` in the opcodes of Python 2's protocol 2, in which the CIFAR files were written."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, str):
        text = value.encode("latin1")
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(part) for pair in value.items() for part in pair) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_opcodes, value.shape)) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes().decode("latin1")) + b"tb"


def python3_pickle(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def cifar_files(name: str, dump: Callable[[object], bytes] = python2_pickle) -> dict[str, bytes]:
    fine = name == "CIFAR100"
    key, folder = ("fine_labels", "cifar-100-python") if fine else ("labels", "cifar-10-batches-py")
    batches = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {}
    for number, batch in enumerate(batches):
        rows = 100 if fine else 10
        data = np.full((rows, 3072), number, dtype=np.uint8)
        data[:, 1024:2048] = np.arange(rows)[:, None]  # green
        files[f"{folder}/{batch}"] = dump({"data": data, key: list(range(rows)), "filenames": ["a.png"] * rows})
    names = {"fine_label_names" if fine else "label_names": [f"class {i}" for i in range(100 if fine else 10)]}
    return {**files, f"{folder}/{'meta' if fine else 'batches.meta'}": dump(names)}


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_files(name: str, packed: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path, name, packed)
    source = torchvision(name, str(tmp_path))
    assert (source.in_shape, source.dtype, source.n_train, len(source.y)) == ((1, 28, 28), torch.uint8, 20, 30)
    x = source.fetch(torch.arange(30)).flatten()
    assert torch.equal(x[: 20 * 784], torch.arange(20 * 784).to(torch.uint8))
    assert torch.equal(x[20 * 784 :], torch.arange(10 * 784).to(torch.uint8))
    assert source.y.tolist() == [*range(10)] * 3
    assert source.class_names[9] == ("9" if name == "MNIST" else "Ankle boot")
    assert len(list(tmp_path.rglob("*ubyte*"))) == 4, "nothing may be written into the data folder"


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "n_train", "n_classes"), [("CIFAR10", 50, 10), ("CIFAR100", 100, 100)])
def test_cifar_files(
    name: str, n_train: int, n_classes: int, packed: bool, dump: Callable[[object], bytes], tmp_path: Path
) -> None:
    files = cifar_files(name, dump)
    archive = {"CIFAR10": "cifar-10-python.tar.gz", "CIFAR100": "cifar-100-python.tar.gz"}[name]
    if packed:
        write_archive(tmp_path / archive, files)
    else:
        write_files(tmp_path, files)
    source = torchvision(name, str(tmp_path))
    assert (source.in_shape, source.dtype, source.n_train) == ((3, 32, 32), torch.uint8, n_train)
    assert (source.n_classes, source.class_names[3]) == (n_classes, "class 3")
    x = source.fetch(torch.tensor([n_train - 1, n_train]))
    n_batches = 5 if name == "CIFAR10" else 1
    assert x[:, 0].unique(dim=0)[:, 0, 0].tolist() == [n_batches - 1, n_batches]  # red tells the batch
    assert x[0, 1].unique().tolist() == [n_classes - 1]  # green tells the row
    assert source.y[[n_train - 1, n_train]].tolist() == [n_classes - 1, 0]


class Payload:
    def __init__(self, function: Callable[..., object], arguments: Sequence[object]) -> None:
        self.call = (function, tuple(arguments))

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.mkdir, ["{ran}"]), (eval, ["open('{ran}', 'w')"]), (np.dtype, ["O"]), (getattr, [os, "name"])],
)
def test_no_code_in_a_cifar_file_is_run(
    function: Callable[..., object], arguments: list[object], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    filled = [argument.format(ran=ran) if isinstance(argument, str) else argument.__name__ for argument in arguments]
    files = cifar_files("CIFAR10")
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps({"data": Payload(function, filled)}, protocol=2)
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=r"cannot read .*data_batch_3: it (asks for|holds)"):
        torchvision("CIFAR10", str(tmp_path))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_pickle({"labels": [0]}), "'data' is not an array"),
        (python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "'labels' is not a list of 2"),
        (python2_pickle([1]), "holds a list, not a dict"),
        (python2_pickle({"data": np.zeros((2, 3072), np.uint8)})[:100], "cannot read"),
        (b"", "cannot read"),
    ],
)
def test_damaged_cifar_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    files = cifar_files("CIFAR10")
    files["cifar-10-batches-py/test_batch"] = content
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=f"test_batch.*{message}|{message}.*test_batch"):
        torchvision("CIFAR10", str(tmp_path))


def test_incomplete_cifar_is_named(tmp_path: Path) -> None:
    files = cifar_files("CIFAR10")
    del files["cifar-10-batches-py/data_batch_5"]
    write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    with pytest.raises(UserError, match=r"no data_batch_5 in .*tar.gz"):
        torchvision("CIFAR10", str(tmp_path))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"cannot unpack .*tar.gz"):
        torchvision("CIFAR10", str(tmp_path))


@pytest.mark.parametrize("damage", ["short", "kind", "empty", "lengths"])
def test_damaged_mnist_files_are_named(damage: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    damaged = {
        "short": whole[:-1],
        "kind": b"\0\0\x0d" + whole[3:],
        "empty": b"",
        "lengths": idx(np.zeros((3, 28, 28), np.uint8)),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"do not match" if damage == "lengths" else f"{path} is not a whole idx"):
        torchvision("MNIST", str(tmp_path))


@pytest.mark.parametrize(("name", "file"), [("MNIST", "MNIST/raw/train-images-idx3-ubyte"), ("CIFAR10", "cifar-10-")])
def test_missing_files_say_where_was_looked(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTINUAL_DATA", str(tmp_path / "env"))
    monkeypatch.chdir(tmp_path)
    for root, looked in (("given", "given"), (None, "env")):
        with pytest.raises(UserError, match=f"{name}: no {tmp_path}/{looked}/{file}.*download=True"):
            torchvision(name, root)
    monkeypatch.delenv("CONTINUAL_DATA")
    with pytest.raises(UserError, match=f"no {tmp_path}/data/{file}"):
        torchvision(name)


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(UserError, match="'MNISTT' is unknown; did you mean 'MNIST'"):
        torchvision("MNISTT")


@pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason=f"MNIST is not in {SHARED}")
def test_mnist_is_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import MNIST

    shutil.copytree(SHARED / "MNIST" / "raw", tmp_path / "MNIST" / "raw", copy_function=shutil.copyfile)
    (tmp_path / "MNIST" / "raw").chmod(0o755)
    source = torchvision("MNIST", str(SHARED))
    assert (source.n_train, len(source.y)) == (60000, 70000)
    for train, ids in ((True, torch.arange(60000)), (False, torch.arange(60000, 70000))):
        reference = MNIST(tmp_path, train=train, download=True)  # finds the archives, checks and unpacks them
        assert torch.equal(source.fetch(ids)[:, 0], reference.data)
        assert torch.equal(source.y[ids], reference.targets)
