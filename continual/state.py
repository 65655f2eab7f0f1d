"""Walking a nested state of dicts, lists and tensors."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def nbytes(state: Any) -> int:
    """Bytes of all tensors in a nested state, each object once; generator states are not counted."""
    distinct = {id(tensor): tensor for tensor in tensors(state)}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor in a nested state, those under a key ``generator`` left out."""
    return (tensor for _, tensor in named_tensors(state))


def named_tensors(state: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The same, each with the keys that lead to it: ``network.0.weight``."""
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, dict):
        for key, value in state.items():
            if key != "generator":
                yield from named_tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from named_tensors(value, f"{path}[{index}]")
