"""The law of updates that are recorded once and replayed, on a device that needs none: a rehearsal of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from continual.contract.tools import MakeLearner, MakeStream, answers, fingerprint, learn
from continual.errors import UserError
from continual.graphs import Graphs
from continual.learner import SGDLearner

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal")
"""Operators of which the host waits for a value, or for a size."""


class Rehearsal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a CUDA graph does, with any tensors: operators are recorded, undone, and replayed on the same memory.

    What the recorded operators made holds NaN until the first replay, and is overwritten by each. Whatever changed
    outside, in place, is put back when the recording ends: recording computes nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[tuple[int, Tensor]]]] = []
        self.found: dict[int, tuple[Tensor, Tensor]] = {}  # by storage: what lay there before, and a copy
        self.made: dict[int, Tensor] = {}

    @contextmanager
    def capture(self) -> Iterator[None]:
        with self:
            yield
        with torch.no_grad():
            for live, before in self.found.values():
                live.copy_(before)
            for own in self.made.values():
                if own.is_floating_point():
                    own.fill_(torch.nan)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError(f"{func} reads a value")
        for tensor in _tensors((args, kwargs)):
            if _storage(tensor) not in self.made and _storage(tensor) not in self.found:
                flat = _flat(tensor)
                self.found[_storage(tensor)] = flat, flat.clone()
        out = func(*args, **kwargs)
        known = self.found.keys() | self.made.keys()
        new = [(place, t) for place, t in enumerate(_tensors(out)) if _storage(t) not in known]
        self.made |= {_storage(t): _flat(t) for _, t in new}
        self.calls.append((func, args, kwargs, new))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, new in self.calls:
                again = _tensors(func(*args, **kwargs))
                for place, own in new:
                    own.copy_(again[place])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _flat(tensor: Tensor) -> Tensor:
    """All of the memory that it is a part of."""
    whole = tensor.detach()
    n = whole.untyped_storage().nbytes() // whole.element_size()
    return whole.as_strided((n,), (1,), 0)


def replayed_is_computed(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """With updates that are recorded and replayed, a learner ends bit for bit as without.

    Of learners whose updates can be recorded, see :mod:`continual.graphs`.
    """
    plain, recorded, stream = make_learner(), make_learner(), make_stream()
    if not isinstance(recorded, SGDLearner) or (graphs := _rehearsed(recorded)) is None:
        return
    for experience in stream:
        learn(plain, experience)
        learn(recorded, experience)
        told = f"with recorded updates it has learned something else after experience {experience.index}"
        fix = "mask, rows, penalty and pull may read what changes in place, and the attributes that `steady` names"
        assert fingerprint(recorded) == fingerprint(plain), f"{told}; {fix}"
    assert recorded.cost() == plain.cost(), f"{recorded.cost()} with recorded updates, {plain.cost()} without"
    assert torch.equal(answers(recorded, stream), answers(plain, stream)), "with recorded updates its answers differ"
    often = any(len(experience.rows) > 4 * recorded.batch_size for experience in stream)
    assert graphs.replayed or recorded.scheduler or not often, "no update was replayed"


def _rehearsed(learner: SGDLearner) -> Graphs | None:
    """Let the learner record and replay all of its updates; None if they cannot be recorded."""
    try:
        graphs = learner.graphs_on(Rehearsal)
    except UserError:
        return None
    once = learner.train
    learner.graphs, learner.train = graphs, lambda batch, _: once(batch, False)
    return graphs
