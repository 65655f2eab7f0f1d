"""Bounded stores of past rows.

A memory keeps columns (``x`` or ``id``, ``y``, and what a strategy adds) in tensors allocated once.
Which rows stay is the policy of the subclass; its random draws come from a generator of its own.
"""

from abc import ABC, abstractmethod
from array import array
from bisect import insort
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from continual.errors import UserError
from continual.herding import herd
from continual.seeding import generator
from continual.types import Batch, Spec

Column = tuple[tuple[int, ...], torch.dtype]
Fetch = Callable[[Tensor], Tensor]


class Memory(ABC):
    """At most ``capacity`` rows (or bytes) of what was added.

    Args:
        capacity: rows, or bytes if ``unit`` is ``bytes`` (x, y and every column counted with its dtype).
        unit: ``rows`` or ``bytes``.
        store: ``rows`` keeps inputs in the stream's own dtype; ``indices`` keeps 8-byte row ids and
            fetches the inputs from the stream, which must still be there.
        replacement: whether one draw may hold a row twice.
        spec: the stream's spec.
        columns: further columns by name: (shape of one row, dtype).
        seed: of its own generator.
        device: where it lives.
    """

    def __init__(
        self,
        capacity: int,
        unit: str = "rows",
        store: str = "rows",
        replacement: bool = False,
        *,
        spec: Spec,
        columns: Mapping[str, Column] | None = None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if unit not in ("rows", "bytes"):
            raise UserError(f"unit='{unit}' is unknown; use 'rows' or 'bytes'")
        if store not in ("rows", "indices"):
            raise UserError(f"store='{store}' is unknown; use 'rows' or 'indices'")
        inputs: dict[str, Column] = {"x": (spec.in_shape, spec.dtype)} if store == "rows" else {"id": ((), torch.int64)}
        layout = {**inputs, "y": ((), torch.int64), **(columns or {})}
        row_bytes = sum(prod(shape) * dtype.itemsize for shape, dtype in layout.values())
        self.capacity = capacity // row_bytes if unit == "bytes" else capacity
        if self.capacity < 1:
            bound = f"at least one row's {row_bytes} bytes" if unit == "bytes" else "at least 1 row"
            raise UserError(f"capacity={capacity} {unit} must be {bound}")
        self.capacity = self.fit(self.capacity, spec.n_classes)
        self.replacement = replacement
        self.seen = 0
        self.generator = generator(seed)
        self.columns = {
            name: torch.zeros(self.capacity, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in layout.items()
        }
        self.prepare(spec.n_classes)

    def fit(self, capacity: int, n_classes: int) -> int:
        """Rows to allocate, at most ``capacity``; UserError if they are too few for the policy."""
        return capacity

    def prepare(self, n_classes: int) -> None:
        """Policy state, allocated once."""

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @abstractmethod
    def place(self, y: list[int]) -> list[int]:
        """Slots for rows with labels ``y`` that arrive one after another, -1 for a row that is not kept."""

    def add(self, batch: Batch, **columns: Tensor) -> None:
        """Offer the arrived rows of ``batch``, with further ``columns`` (arrived, ...)."""
        n = batch.arrived
        slots = self.place(batch.labels[:n].tolist())
        self.seen += n
        kept = {slot: row for row, slot in enumerate(slots) if slot >= 0}  # a later row overwrites an earlier one
        if not kept:
            return
        values = {"y": batch.y, **columns}
        values |= {"x": batch.x} if "x" in self.columns else {"id": batch.extra["id"]}
        to, of = torch.tensor(list(kept)), torch.tensor(list(kept.values()))
        with torch.no_grad():
            for name, column in self.columns.items():
                rows = values[name].index_select(0, placed(of, values[name].device))
                column.index_copy_(0, placed(to, column.device), placed(rows, column.device))

    def draw(self, n: int, among: Tensor | None = None) -> Tensor:
        """(<= n,) slots drawn uniformly from ``among`` (default: every occupied slot)."""
        size = len(self) if among is None else len(among)
        if self.replacement and size:
            chosen = torch.randint(size, (n,), generator=self.generator)
        else:
            chosen = torch.randperm(size, generator=self.generator)[:n]
        chosen = placed(chosen, self.columns["y"].device)
        return chosen if among is None else among[chosen]

    def inputs(self, slots: Tensor, fetch: Fetch) -> Tensor:
        """Inputs (n, *in_shape) of ``slots``; ``fetch`` gives them by row id where only ids are kept."""
        return self.column("x", slots) if "x" in self.columns else fetch(self.column("id", slots))

    def column(self, name: str, slots: Tensor) -> Tensor:
        """(n, ...) what a column holds in ``slots``."""
        return self.columns[name].index_select(0, slots)

    def write(self, name: str, slots: Tensor, values: Tensor) -> None:
        """Put ``values`` (n, ...) into a column at ``slots`` (n,)."""
        self.columns[name].index_copy_(0, slots, values.detach())

    def state_dict(self) -> dict[str, Any]:
        """Columns, the number of rows ever offered and the generator."""
        return {"columns": dict(self.columns), "seen": self.seen, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of equal capacity and columns."""
        for name, column in self.columns.items():
            column.copy_(state["columns"][name])
        self.seen = int(state["seen"])
        self.generator.set_state(state["generator"])


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on the device; where it lies there, not even an operator is called."""
    return tensor if tensor.device == device else tensor.to(device, non_blocking=device.type != "cpu")


def one_each(capacity: int, n_classes: int) -> int:
    """``capacity``; UserError if it is below one row for each class."""
    if capacity < n_classes:
        raise UserError(f"capacity={capacity} must be at least 1 row for each of {n_classes} classes")
    return capacity


class Reservoir(Memory):
    """A uniform sample of everything ever added: a row is present with probability min(1, capacity / n).

    Row i (from 0) goes to slot i while there is room, then to slot floor(u * (i + 1)) if that is below
    the capacity, u uniform in [0, 1). Vitter 1985, Algorithm R, https://doi.org/10.1145/3147.3165
    """

    def place(self, y: list[int]) -> list[int]:
        free = max(0, min(len(y), self.capacity - self.seen))
        slots = list(range(self.seen, self.seen + free))
        draws = torch.rand(len(y) - free, generator=self.generator, dtype=torch.float64).tolist()
        for row, u in enumerate(draws, start=self.seen + free):
            slot = int(u * (row + 1))
            slots.append(slot if slot < self.capacity else -1)
        return slots


class ClassBalanced(Memory):
    """As equal a share for every class as the stream allows, uniform within a class; at least one row for each class.

    When full, a row of a class that never was the largest replaces a random row of the largest class;
    a row of a class that once was replaces one of its own with probability m / n (m stored, n seen).
    Chrysakis & Moens 2020, "Online Continual Learning from Imbalanced Data",
    http://proceedings.mlr.press/v119/chrysakis20a.html
    """

    def fit(self, capacity: int, n_classes: int) -> int:
        return one_each(capacity, n_classes)

    def prepare(self, n_classes: int) -> None:
        self.class_seen = torch.zeros(n_classes, dtype=torch.int64)
        self.was_largest = torch.zeros(n_classes, dtype=torch.bool)
        self._hold([])

    def _hold(self, labels: list[int]) -> None:
        """Slots of each class, ascending, as columns["y"] will be once the rows are written."""
        self._slots = [array("q") for _ in self.class_seen]  # 8 bytes for each slot
        for slot, label in enumerate(labels):
            self._slots[label].append(slot)

    def place(self, y: list[int]) -> list[int]:
        return [self._place_one(label) for label in y]

    def _place_one(self, label: int) -> int:
        seen, was_largest = self.class_seen.numpy(), self.was_largest.numpy()
        seen[label] += 1
        counts = [len(own) for own in self._slots]
        slot = sum(counts)
        if slot < self.capacity:
            self._slots[label].append(slot)
        else:
            share = float(np.float32(counts[label]) / np.float32(seen[label]))
            slot = self._overwrite(label, bool(was_largest[label]), share)
        counts = [len(own) for own in self._slots]
        if sum(counts) == self.capacity:
            most = max(counts)
            for number, count in enumerate(counts):
                if count == most:
                    was_largest[number] = True
        return slot

    def _overwrite(self, label: int, was_largest: bool, share: float) -> int:
        victim = label
        if not was_largest:
            victim = max(range(len(self._slots)), key=lambda number: len(self._slots[number]))
        elif float(torch.rand((), generator=self.generator)) > share:
            return -1
        own = self._slots[victim]
        slot = own[int(torch.randint(len(own), (), generator=self.generator))]
        if victim != label:
            own.remove(slot)
            insort(self._slots[label], slot)
        return slot

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"class_seen": self.class_seen.clone(), "was_largest": self.was_largest.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.class_seen.copy_(state["class_seen"])
        self.was_largest.copy_(state["was_largest"])
        self._hold(self.columns["y"][: len(self)].tolist())


class FIFO(Memory):
    """The last ``capacity`` rows, whatever their class."""

    def place(self, y: list[int]) -> list[int]:
        return [row % self.capacity for row in range(self.seen, self.seen + len(y))]


class Ring(Memory):
    """The last capacity // n_classes rows of every class; at least one row for each class.

    Every class has its own share, first in, first out; nothing of it is lent to others. Chaudhry et al. 2019, "On Tiny
    Episodic Memories in Continual Learning", https://arxiv.org/abs/1902.10486
    """

    def fit(self, capacity: int, n_classes: int) -> int:
        return one_each(capacity, n_classes) - capacity % n_classes

    def prepare(self, n_classes: int) -> None:
        self.share = self.capacity // n_classes
        self.class_seen = torch.zeros(n_classes, dtype=torch.int64)
        self.slots = torch.zeros(n_classes, self.share, dtype=torch.int64)  # of each class, in order of their first use

    def __len__(self) -> int:
        return int(np.minimum(self.class_seen.numpy(), self.share).sum())

    def place(self, y: list[int]) -> list[int]:
        free, slots = len(self), []
        class_seen, own = self.class_seen.numpy(), self.slots.numpy()  # the same memory, read without an operator
        for label in y:
            seen = int(class_seen[label])
            if seen < self.share:
                own[label, seen] = free
                free += 1
            slots.append(int(own[label, seen % self.share]))
            class_seen[label] = seen + 1
        return slots

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"class_seen": self.class_seen.clone(), "slots": self.slots.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.class_seen.copy_(state["class_seen"])
        self.slots.copy_(state["slots"])


class Herding(Ring):
    """For every class the capacity // n_classes rows whose mean of features is nearest to that of the class.

    A ring to which the rows of an experience are offered when it ends, in an ``order`` that leaves the chosen ones.
    Of a class that comes again those of its last experience stay. ``continual.herding`` has formula and source.
    """

    def order(self, features: Tensor, y: Tensor) -> Tensor:
        """Positions of the rows to offer, the most preferred of each class last.

        ``features`` (N, F) of a whole experience are made of length 1 first, as in iCaRL; ``y`` (N,).
        """
        features = normalize(features, dim=1)
        classes = [(y == label).nonzero()[:, 0] for label in torch.unique(y)]
        return torch.cat([own[herd(features[own], self.share).flip(0)] for own in classes])
