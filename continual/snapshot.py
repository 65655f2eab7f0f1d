"""A learner's state on disk and back, exactly, without pickle.

A snapshot is two lines of JSON and a safetensors file, in this order::

    {"format":1,"sha256":"<of every byte after this line>"}
    {"dict":[["model",{"dict":[["weight",{"tensor":"0"}]]}],["step",7]]}
    <safetensors: tensors "0", "1", ...>

The second line is the nested state: JSON's own null, booleans, strings, finite floats, integers of 64 bits and lists
stand for themselves, everything else is an object with one key that says what it is.
"""

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from continual.errors import UserError
from continual.files import write_atomic
from continual.strict import decoder

FORMAT = 1

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.bool, torch.complex64, torch.complex128),
)
_HEAD = re.compile(rb'\{"format":(\d{1,9}),"sha256":"([0-9a-f]{64})"\}\n')
_NONFINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def dumps(state: Any) -> bytes:
    """Bytes from which :func:`loads` gives back ``state``.

    Args:
        state: dicts (keys str or int), lists, tuples, dense tensors of any of ``DTYPES``, ints of any size, floats
            (nan and infinities too), strings, bools and None, nested. An ``OrderedDict`` comes back as a dict, a
            parameter as a plain tensor without gradient, every tensor on the CPU and contiguous. A tensor met twice
            is stored once and comes back as one; views of one storage come back apart.

    Errors:
        UserError: names the key path of anything else, e.g. ``strategies.er.memory: a function cannot be stored``.
    """
    encoder = _Encoder()
    try:
        tree = json.dumps(encoder.encode(state, ""), separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise UserError("this state is nested too deeply to be stored; does it contain itself?") from None
    parts = [tree, b"\n", safetensors.torch.save(encoder.tensors)]
    return b"".join([b'{"format":%d,"sha256":"%s"}\n' % (FORMAT, _digest(parts)), *parts])


def loads(data: bytes) -> Any:
    """The state that :func:`dumps` stored; nothing is parsed before its checksum is verified, and no code is run.

    Errors:
        UserError: ``data`` is no snapshot, is damaged, or was written by a newer version.
    """
    return _loads(data, "these bytes")


def save(path: Path, state: Any) -> str:
    """Write ``state`` to ``path``: whole or not at all, also after a crash; the SHA-256 in its first line.

    Errors as :func:`dumps`; ``OSError``.
    """
    data = dumps(state)
    write_atomic(path, data)
    return _sha256(data) or ""


def load(path: Path, sha256: str | None = None) -> Any:
    """Read what :func:`save` wrote.

    Errors:
        UserError: naming the file if it is missing, damaged, newer, or not the one whose ``sha256`` was given.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"snapshot {path} cannot be read: {error.strerror}") from None
    if sha256 is not None and _sha256(data) != sha256:
        raise UserError(f"snapshot {path} is not the one that was written (its SHA-256 is another); take another one")
    return _loads(data, f"snapshot {path}")


class _Encoder:
    """Turns a state into JSON values, collecting its tensors by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._storages: set[int] = set()

    def encode(self, node: Any, path: str) -> Any:
        kind = type(node)
        if node is None or kind in (bool, str):
            return node
        if kind is int:
            return node if -(2**63) <= node < 2**63 else {"int": hex(node)}
        if kind is float:
            return node if math.isfinite(node) else {"float": repr(node)}
        if kind is list:
            return self._items(node, path)
        if kind is tuple:
            return {"tuple": self._items(node, path)}
        if kind in (dict, OrderedDict):
            return {"dict": [self._pair(key, value, path) for key, value in node.items()]}
        if isinstance(node, Tensor):
            return self._tensor(node, path)
        raise _refusal(path, f"a {kind.__name__}")

    def _items(self, nodes: list[Any] | tuple[Any, ...], path: str) -> list[Any]:
        return [self.encode(node, f"{path}[{index}]") for index, node in enumerate(nodes)]

    def _pair(self, key: Any, value: Any, path: str) -> list[Any]:
        if type(key) not in (str, int):
            raise _refusal(path, f"the key {key!r}, a {type(key).__name__},")
        return [self.encode(key, path), self.encode(value, f"{path}.{key}" if path else str(key))]

    def _tensor(self, tensor: Tensor, path: str) -> dict[str, str]:
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
            kind = "meta" if tensor.is_meta else str(tensor.layout if tensor.dtype in DTYPES else tensor.dtype)
            raise _refusal(path, f"a {kind.removeprefix('torch.')} tensor")
        tag = "complex" if tensor.dtype is torch.complex128 else "tensor"  # which safetensors does not know
        if id(tensor) not in self._names:
            self._names[id(tensor)] = name = str(len(self.tensors))
            self.tensors[name] = self._apart(torch.view_as_real(tensor.resolve_conj()) if tag == "complex" else tensor)
        return {tag: self._names[id(tensor)]}

    def _apart(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the CPU, contiguous, and in a storage that no other collected tensor uses."""
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in self._storages:
            plain = plain.clone()
        self._storages.add(plain.untyped_storage().data_ptr())
        return plain


def _refusal(path: str, what: str) -> UserError:
    return UserError(
        f"{path or 'the state itself'}: {what} cannot be stored; "
        "a state holds dicts with str or int keys, lists, tuples, dense tensors, numbers, strings, bools and None"
    )


def _digest(parts: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _sha256(data: bytes) -> str | None:
    """What the first line says; None if it is damaged."""
    head = _HEAD.match(data)
    return None if head is None else head[2].decode()


def _loads(data: bytes, name: str) -> Any:
    head = _HEAD.match(data)
    if head is None:
        raise UserError(f"{name}: this is not a snapshot, or its first line is damaged; take another one")
    if int(head[1]) != FORMAT:
        raise UserError(f"{name}: written in format {int(head[1])}, this version reads {FORMAT}; upgrade continual")
    if _digest([memoryview(data)[head.end() :]]) != head[2]:
        raise UserError(f"{name}: damaged or cut short (its SHA-256 does not match); take another one")
    try:
        end_of_tree = data.index(b"\n", head.end())
        tree = _TREE.decode(data[head.end() : end_of_tree].decode())
        return _decode(tree, _tensors(data[end_of_tree + 1 :]))
    except (ValueError, TypeError, LookupError, AssertionError, RuntimeError, RecursionError, SafetensorError) as error:
        reason = str(error).partition("\n")[0][:200]  # torch adds a stack of C++
        raise UserError(f"{name}: its checksum is right but its content is not ({reason}); take another one") from None


def _tensors(data: bytes) -> dict[str, Tensor]:
    tensors = safetensors.torch.load(data)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensor {name} is of {tensor.dtype}")
    return tensors


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    match node:
        case list():
            return [_decode(item, tensors) for item in node]
        case {"dict": list(pairs)}:
            return _dict([_decode(pair, tensors) for pair in pairs])
        case {"tuple": list(items)}:
            return tuple(_decode(item, tensors) for item in items)
        case {"tensor": str(name)}:
            return tensors[name]
        case {"complex": str(name)} if tensors[name].dtype is torch.float64:
            return torch.view_as_complex(tensors[name])
        case {"int": str(digits)} if hex(number := int(digits, 16)) == digits:
            return number
        case {"float": str(word)}:
            return _NONFINITE[word]
        case dict():
            raise ValueError(f"unknown object {str(node)[:80]}")
    return node


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    found = {}
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) not in (str, int) or pair[0] in found:
            raise ValueError("a dict is not of pairs, or has a key twice")
        found[pair[0]] = pair[1]
    return found


def _only(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != 1:
        raise ValueError(f"an object has {len(pairs)} keys")
    return dict(pairs)


_TREE = decoder(_only)
