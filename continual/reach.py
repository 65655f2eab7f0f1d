"""What an object keeps alive: the tensors, arrays, modules and generators that can be reached from it."""

import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Reach:
    """What was found.

    Attributes:
        storages: address -> bytes of every distinct storage. A view counts with all of what it is a view of.
        modules: every network module.
        generators: every torch generator.
        with_history: tensors that hold the graph of a backward pass.
        other_bytes: of all other objects (lists, numbers, strings, ...), as ``sys.getsizeof`` counts them.
    """

    storages: dict[int, int] = field(default_factory=dict)
    modules: list[nn.Module] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    with_history: list[Tensor] = field(default_factory=list)
    other_bytes: int = 0


def reach(*roots: object) -> Reach:
    """Walk everything that ``roots`` refer to.

    Followed: attributes, slots, containers, closures, defaults, bound objects, partials, class attributes that are
    containers or tensors. Not followed: a tensor's ``.grad``, the globals of modules, weak references, running frames.
    """
    found, seen, pending = Reach(), dict[int, object](), list(roots)
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node  # kept, so that its id is not given to another object meanwhile
        _note(node, found)
        pending.extend(_children(node))
    return found


def _note(node: object, found: Reach) -> None:
    match node:
        case Tensor():
            if node.layout is torch.strided and not node.is_meta:
                storage = node.untyped_storage()
                found.storages[storage.data_ptr()] = storage.nbytes()
            if node.grad_fn is not None:
                found.with_history.append(node)
        case np.ndarray():
            if node.base is None:
                found.storages[node.__array_interface__["data"][0]] = node.nbytes
        case torch.Generator():
            found.generators.append(node)
        case type() | ModuleType() | FunctionType() | BuiltinFunctionType():
            pass
        case _:
            if isinstance(node, nn.Module):
                found.modules.append(node)
            found.other_bytes += sys.getsizeof(node)


def _children(node: object) -> Iterator[Any]:
    match node:
        case Tensor():
            yield vars(node)
        case np.ndarray():
            yield node.base
        case FunctionType():
            yield from (node.__closure__, node.__defaults__, node.__kwdefaults__, node.__dict__)
        case type():
            yield from (value for value in vars(node).values() if isinstance(value, list | dict | set | Tensor))
        case ModuleType() | FrameType() | CodeType():
            return
        case _:
            yield from gc.get_referents(node)
