import hashlib
import math
import random
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from continual import files
from continual.errors import UserError
from continual.snapshot import DTYPES, dumps, load, loads, save
from continual.state import nbytes


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy())


def exact(state: Any) -> Any:
    """A value that is equal for two states only if types, order of keys and all bits are."""
    if isinstance(state, torch.Tensor):
        return state.dtype, state.shape, raw(state)
    if isinstance(state, dict):
        return "dict", [(exact(key), exact(value)) for key, value in state.items()]
    if isinstance(state, list | tuple):
        return type(state), [exact(item) for item in state]
    return type(state), repr(state)


def tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """Any bits at all, so nan payloads and denormals too."""
    numbers = torch.randint(0, 256, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(seed))
    if dtype is torch.bool:
        return (numbers[..., 0] % 2).bool()
    return numbers.to(torch.uint8).view(dtype)[..., 0]


tensors = st.builds(tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 100))
text = st.text(max_size=4)
leaves = st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | st.floats() | text | tensors
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(states)
def test_any_state_comes_back_exactly(state: Any) -> None:
    stored = dumps(state)
    assert exact(loads(stored)) == exact(state)
    assert dumps(loads(stored)) == stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout(dtype: torch.dtype) -> None:
    base = tensor(dtype, [4, 6], 0)
    state = {"base": base, "view": base[1:3], "columns": base.T, "steps": base[::2, ::3], "scalar": base[1, 2],
             "repeated": base[:1].expand(5, 6), "none": base[:0], "again": base}  # fmt: skip
    assert exact(loads(dumps(state))) == exact(state)


def test_lazy_conjugates_and_negatives_are_stored_as_what_they_show() -> None:
    for dtype in (torch.complex64, torch.complex128):
        conjugate = torch.tensor([1 + 2j, 3 - 4j], dtype=dtype).conj()
        assert loads(dumps(conjugate)).tolist() == [1 - 2j, 3 + 4j]
        assert loads(dumps(conjugate.imag)).tolist() == [-2, 4]


def test_keys_containers_and_large_numbers_keep_their_types() -> None:
    state = {1: (1, [2, (3,)]), "1": {}, "dict": [], "tensor": "0", -(2**63): 2**63, "big": -(2**5000), "nan": math.nan,
             "infs": (math.inf, -math.inf, -0.0), "": ((), True, 1, 1.0), "\ud800\n": None}  # fmt: skip
    assert exact(loads(dumps(state))) == exact(state)
    huge = 2**20_000  # beyond what Python reads and writes in decimal
    assert loads(dumps([huge, -huge])) == [huge, -huge]


def test_an_ordered_dict_comes_back_as_a_dict_and_a_parameter_as_a_tensor() -> None:
    found = loads(dumps(OrderedDict(b=torch.nn.Parameter(torch.ones(2)), a=1)))
    assert list(found) == ["b", "a"]
    assert type(found) is dict
    assert type(found["b"]) is torch.Tensor
    assert not found["b"].requires_grad


def test_an_optimizer_continues_from_its_snapshot() -> None:
    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            (model(torch.full((1, 3), float(step + 1))) ** 2).sum().backward()
            optimizer.step()

    runs = []
    for _ in range(2):
        model = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(model.weight, 0.5)
        torch.nn.init.zeros_(model.bias)
        runs.append((model, torch.optim.AdamW(model.parameters(), lr=0.1)))
    train(*runs[0], 5)
    state = loads(dumps({"model": runs[0][0].state_dict(), "optimizer": runs[0][1].state_dict()}))
    assert set(state["optimizer"]["state"]) == {0, 1}
    runs[1][0].load_state_dict(state["model"])
    runs[1][1].load_state_dict(state["optimizer"])
    for run in runs:
        train(*run, 5)
    assert exact(runs[0][0].state_dict()) == exact(runs[1][0].state_dict())
    assert exact(runs[0][1].state_dict()) == exact(runs[1][1].state_dict())


def test_one_tensor_twice_is_stored_once_and_comes_back_as_one_and_views_apart() -> None:
    one = torch.arange(1000.0)
    found = loads(dumps({"a": one, "b": [one], "view": one[:]}))
    assert found["a"] is found["b"][0]
    found["a"].zero_()
    assert found["view"].sum() == one.sum() == 499500
    assert len(dumps([one, one])) - len(dumps([one])) < 100


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"strategies": {"er": {"memory": len}}}, r"strategies\.er\.memory: a builtin_function_or_method cannot"),
        ({"er": [1, (2, lambda: 0)]}, r"er\[1\]\[1\]: a function cannot be stored"),
        ({"state": {0: {"exp_avg": {1}}}}, r"state\.0\.exp_avg: a set cannot be stored"),
        (object(), r"the state itself: a object cannot be stored"),
        ({"n": np.float64(1)}, "n: a float64 cannot"),
        ({"n": np.zeros(2)}, "n: a ndarray cannot"),
        ({"b": b""}, "b: a bytes cannot"),
        ({"c": defaultdict(int)}, "c: a defaultdict cannot"),
        ({"a": {(1, 2): 3}}, r"a: the key \(1, 2\), a tuple, cannot"),
        ({True: 3}, r"the state itself: the key True, a bool, cannot"),
        ({"s": torch.eye(2).to_sparse()}, "s: a sparse_coo tensor cannot"),
        ({"m": torch.empty(2, device="meta")}, "m: a meta tensor cannot"),
        ({"d": torch.zeros(2, dtype=torch.float8_e8m0fnu)}, "d: a float8_e8m0fnu tensor cannot"),
        ({"shape": torch.Size([1])}, "shape: a Size cannot"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_path(state: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dumps(state)


def test_a_state_that_contains_itself_is_refused() -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(UserError, match="contain itself"):
        dumps(state)


# --- damage

STATE = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "step": 7, "seen": (1, 2), "none": torch.zeros(0)}


def test_every_truncation_and_every_changed_bit_is_refused() -> None:
    data = dumps(STATE)
    for at in range(len(data)):
        with pytest.raises(UserError):
            loads(data[:at])
        with pytest.raises(UserError):
            loads(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])


def check_damage(seeds: range) -> None:
    data = dumps(STATE)
    for seed in seeds:
        generator = random.Random(seed)
        at, to = sorted(generator.randrange(len(data) + 1) for _ in range(2))
        noise = generator.randbytes(generator.choice([0, 1, to - at, 50]))
        damaged = data[:at] + noise + data[to:]
        if damaged != data:
            with pytest.raises(UserError):
                loads(damaged)


def test_damage_is_refused() -> None:
    check_damage(range(400))


@pytest.mark.long
def test_damage_is_refused_at_length() -> None:
    check_damage(range(5000))


def signed(tree: bytes, tensors: bytes) -> bytes:
    body = tree + b"\n" + tensors
    return b'{"format":1,"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode() + body


def test_the_file_is_two_lines_and_a_safetensors_file() -> None:
    data = dumps({"a": [torch.tensor([1.0, 2.0]), 3]})
    tree = b'{"dict":[["a",[{"tensor":"0"},3]]]}'
    assert data == signed(tree, safetensors.torch.save({"0": torch.tensor([1.0, 2.0])}))


EMPTY = safetensors.torch.save({})


@pytest.mark.parametrize(
    "body",
    [
        (b'{"tensor":"5"}', EMPTY),
        (b'{"tensor":[]}', EMPTY),
        (b'{"complex":"0"}', safetensors.torch.save({"0": torch.ones(3)})),
        (b'{"pickle":"x"}', EMPTY),
        (b"{}", EMPTY),
        (b'{"dict":[[[],1]]}', EMPTY),
        (b'{"dict":[1]}', EMPTY),
        (b'{"tuple":1}', EMPTY),
        (b'{"int":"z"}', EMPTY),
        (b'{"int":1}', EMPTY),
        (b'{"float":"1"}', EMPTY),
        (b'{"dict":["ab"]}', EMPTY),
        (b'{"dict":[{"tuple":["a",1]}]}', EMPTY),
        (b'{"dict":[["a",1,2]]}', EMPTY),
        (b'{"dict":[["a",1],["a",2]]}', EMPTY),
        (b'{"dict":[[1,1],[{"int":"0x1"},2]]}', EMPTY),
        (b'{"dict":[[true,1]]}', EMPTY),
        (b'{"dict":[[1.5,1]]}', EMPTY),
        (b'{"dict":[[{"tuple":[]},1]]}', EMPTY),
        (b'{"dict":[[{"tensor":"0"},1]]}', safetensors.torch.save({"0": torch.ones(3)})),
        (b'{"dict":{}}', EMPTY),
        (b'{"dict":""}', EMPTY),
        (b'{"tuple":"ab"}', EMPTY),
        (b'{"tuple":{"tuple":[]}}', EMPTY),
        (b'{"dict":[],"tuple":[]}', EMPTY),
        (b'{"tuple":[],"tuple":[1]}', EMPTY),
        (b'{"int":"16"}', EMPTY),
        (b'{"int":" 0x10"}', EMPTY),
        (b'{"int":"0x1_0"}', EMPTY),
        (b"NaN", EMPTY),
        (b"1e999", EMPTY),
        (b"\xef\xbb\xbf1", EMPTY),
        (b"1\x00", EMPTY),
        (b'{"complex":"0"}', safetensors.torch.save({"0": torch.ones(2, dtype=torch.float16)})),
        (b'{"complex":"0"}', safetensors.torch.save({"0": torch.ones(2, dtype=torch.float32)})),
        (b'{"tensor":"0"}', safetensors.torch.save({"0": torch.ones(2, dtype=torch.float8_e8m0fnu)})),
        (b"[" * 100_000, EMPTY),
        (b"\xff", EMPTY),
        (b"", EMPTY),
        (b"1", b""),
        (b"1", b"\xff" * 20),
        (b"1", (8).to_bytes(8, "little") + b"[1,2,3] "),
    ],
)
def test_wrong_content_with_a_right_checksum_is_refused(body: tuple[bytes, bytes]) -> None:
    with pytest.raises(UserError, match="checksum is right but its content is not"):
        loads(signed(*body))


def test_the_error_is_one_line_where_torch_says_many() -> None:
    header = b'{"0":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    with pytest.raises(UserError, match="its content is not") as caught:
        loads(signed(b'{"tensor":"0"}', len(header).to_bytes(8, "little") + header))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_newer_format_says_so() -> None:
    with pytest.raises(UserError, match=r"format 2, this version reads 1; upgrade"):
        loads(dumps(1).replace(b'"format":1', b'"format":2'))


# --- files


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.snapshot"
    for step in range(2):
        save(path, {**STATE, "step": step})
        assert exact(load(path)) == exact({**STATE, "step": step})
    assert list(path.parent.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_old_snapshot_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.snapshot"
    save(path, {"step": 1})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    with pytest.raises(UserError, match="cannot be stored"):
        save(path, {"step": object()})
    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, {"step": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert load(path) == {"step": 1}


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.snapshot"
    with pytest.raises(UserError, match=r"last\.snapshot cannot be read: No such file"):
        load(path)
    save(path, STATE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"last\.snapshot: damaged or cut short"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.snapshot: this is not a snapshot"):
        load(path)


def test_nbytes_counts_each_tensor_once() -> None:
    one = torch.zeros(10, dtype=torch.float64)  # 80
    view = one.expand(3, 10)  # 240, as it would be stored
    assert nbytes({"a": one, 3: [one, (view, torch.zeros(7, dtype=torch.bool))], "n": 5, "s": "x"}) == 80 + 240 + 7
    assert nbytes(None) == 0
