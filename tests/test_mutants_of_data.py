"""Every law of streams and of memories is seen to fail on a mutant; what the mutant was made from passes."""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from continual.contract import MEMORY_LAWS, STREAM_LAWS, includes_uniformly, shares_equally
from continual.contract.memories import EXAMPLE
from continual.memory import ClassBalanced, Memory, Reservoir
from continual.types import Batch, Experience, Rows, Spec, Stream
from scenarios.operators import delay
from scenarios.sources import gaussian
from scenarios.split import split
from scenarios.stream import IndexRows, IndexStream

LAWS: dict[str, Any] = {law.__name__: law for law in (*STREAM_LAWS, *MEMORY_LAWS, includes_uniformly, shares_equally)}


@cache
def stream(kind: str = "class") -> IndexStream:
    return split(gaussian(n_classes=6, rows_per_class=12), n_tasks=3, kind=kind)


@cache
def delayed() -> IndexStream:
    return delay(split(gaussian(n_classes=6, rows_per_class=12), n_tasks=3, arrival_rows=5), rows=7)


class Wrapped:
    """A stream around another one; mutants change one thing."""

    def __init__(self, inner: IndexStream | None = None) -> None:
        self.inner = inner or stream()

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    @property
    def probes(self) -> Sequence[Rows]:
        return self.inner.probes

    @property
    def origins(self) -> Sequence[int]:
        return self.inner.origins

    def __iter__(self) -> Iterator[Experience]:
        return (self.change(experience) for experience in self.inner)

    def change(self, experience: Experience) -> Experience:
        return experience


class ShufflesEachTime(Wrapped):
    """Deals its rows anew whenever it is read, from torch's global generator."""

    def change(self, experience: Experience) -> Experience:
        rows: Any = experience.rows
        order = torch.randperm(len(rows))
        return replace(experience, rows=IndexRows(rows.inputs, rows.ids[order], rows.y[order]))


class DealtByNumpy(Wrapped):
    """Deals its rows when it is built, from NumPy's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = int(np.random.randint(1, 1000))

    def change(self, experience: Experience) -> Experience:
        rows: Any = experience.rows
        return replace(experience, rows=IndexRows(rows.inputs, rows.ids.roll(self.turn), rows.y.roll(self.turn)))


class DrawsASeed(Wrapped):
    """Gives equal rows, and moves torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        torch.rand(1)


class DeclaresFewerClasses(Wrapped):
    """Its labels are outside of what the spec declares."""

    @property
    def spec(self) -> Spec:
        return replace(self.inner.spec, n_classes=4)


class DeclaresBytes(Wrapped):
    """Declares uint8 and gives floats."""

    @property
    def spec(self) -> Spec:
        return replace(self.inner.spec, dtype=torch.uint8)


class CountsWrong(Wrapped):
    """Declares one experience too many."""

    @property
    def spec(self) -> Spec:
        return replace(self.inner.spec, n_experiences=4)


class NumbersFromOne(Wrapped):
    """Its first experience has the index 1."""

    def change(self, experience: Experience) -> Experience:
        return replace(experience, index=experience.index + 1)


class TellsItsTask(Wrapped):
    """Says that it hides task labels, and gives them."""

    def change(self, experience: Experience) -> Experience:
        return replace(experience, task=experience.index)


class HidesItsTask(Wrapped):
    """Says that it is task-aware, and gives no task labels."""

    @property
    def spec(self) -> Spec:
        return replace(self.inner.spec, task_aware=True)


class TellsWhatItAsks(Wrapped):
    """Asks about rows with their labels."""

    def __init__(self) -> None:
        super().__init__(delayed())

    def change(self, experience: Experience) -> Experience:
        return replace(experience, ask=experience.rows)


class LosesAnOrigin(Wrapped):
    """Has one origin less than experiences."""

    @property
    def origins(self) -> Sequence[int]:
        return self.inner.origins[1:]


class InventsATask(Wrapped):
    """Names an origin that has no probe."""

    @property
    def origins(self) -> Sequence[int]:
        return [*self.inner.origins[1:], 3]


class TrainsOnAProbe(Wrapped):
    """Its first probe is training rows."""

    @property
    def probes(self) -> Sequence[Rows]:
        return [next(iter(self.inner)).rows, *self.inner.probes[1:]]


class CopiesAProbeRow(Wrapped):
    """One row of a probe is trained on under another id."""

    def change(self, experience: Experience) -> Experience:
        return replace(experience, rows=WithCopies(experience.rows, self.inner.probes[0]))


class OfRows:
    """Rows around others; mutants change one thing."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> Batch:
        return self.rows.take(indices)

    def fetch(self, ids: Tensor) -> Tensor:
        return self.rows.fetch(ids)


class WithCopies(OfRows):
    def __init__(self, rows: Rows, probe: Rows) -> None:
        super().__init__(rows)
        self.probe = probe

    def take(self, indices: Tensor) -> Batch:
        batch = self.rows.take(indices)
        batch.x[indices == 0] = self.probe.take(torch.zeros(1, dtype=torch.int64)).x
        return batch


class CountsFromItsOwnStart(OfRows):
    """Fetches by position within the experience, not by the row's id."""

    def fetch(self, ids: Tensor) -> Tensor:
        return self.rows.take(ids % len(self.rows)).x


class SortsItsIndices(OfRows):
    """Takes rows in the order that is fastest to read."""

    def take(self, indices: Tensor) -> Batch:
        return self.rows.take(indices.sort().values)


class GivesSlices(OfRows):
    """Gives views of the tensors that it keeps."""

    @cached_property
    def batch(self) -> Batch:
        return self.rows.take(torch.arange(len(self.rows)))

    def take(self, indices: Tensor) -> Batch:
        return self.batch if len(indices) == len(self) else self.rows.take(indices)


class OneOfEach(Wrapped):
    """Rows wrapped by one of the above, the same each time."""

    kind: type[OfRows] = OfRows

    def __init__(self) -> None:
        super().__init__()
        self.experiences = [replace(e, rows=self.kind(e.rows)) for e in self.inner]

    def __iter__(self) -> Iterator[Experience]:
        return iter(self.experiences)


def with_rows(of: type[OfRows]) -> type[OneOfEach]:
    return type(of.__name__, (OneOfEach,), {"kind": of})


STREAMS: list[tuple[str, Callable[[], Stream], Callable[[], Stream]]] = [
    *(("repeats_identically", kind, Wrapped) for kind in (ShufflesEachTime, DealtByNumpy, DrawsASeed)),
    *(("keeps_its_spec", kind, Wrapped) for kind in (DeclaresFewerClasses, DeclaresBytes, CountsWrong, NumbersFromOne)),
    ("declares_who_sees_task_labels", TellsItsTask, Wrapped),
    ("declares_who_sees_task_labels", HidesItsTask, partial(Wrapped, stream("task"))),
    ("declares_who_sees_task_labels", TellsWhatItAsks, partial(Wrapped, delayed())),
    *(("origins_are_complete", kind, Wrapped) for kind in (LosesAnOrigin, InventsATask)),
    *(("probes_are_unseen", kind, Wrapped) for kind in (TrainsOnAProbe, CopiesAProbeRow)),
    ("ids_fetch_what_take_gives", with_rows(CountsFromItsOwnStart), with_rows(OfRows)),
    ("ids_fetch_what_take_gives", with_rows(SortsItsIndices), with_rows(OfRows)),
    ("take_gives_fresh_rows", with_rows(GivesSlices), with_rows(OfRows)),
]


@pytest.mark.parametrize(("law", "broken", "sound"), STREAMS, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_stream_is_caught(law: str, broken: Any, sound: Any) -> None:
    LAWS[law](sound)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):  # in words
        LAWS[law](broken)


# --- memories


class GrowsTwice(Reservoir):
    """Allocates twice what it was given."""

    def __init__(self, capacity: int, *arguments: Any, **settings: Any) -> None:
        super().__init__(2 * capacity, *arguments, **settings)


class KeepsTheWholeBatch(Reservoir):
    """Its columns are views of larger tensors."""

    def prepare(self, n_classes: int) -> None:
        self.columns = {name: torch.cat([column, column])[: len(column)] for name, column in self.columns.items()}


class MixesColumns(Reservoir):
    """Writes the labels of one row beside the inputs of another."""

    def add(self, batch: Batch, **columns: Tensor) -> None:
        super().add(replace(batch, y=batch.y.roll(1)), **columns)


class AddsTwice(Reservoir):
    """Keeps every row in two slots."""

    def place(self, y: list[int]) -> list[int]:
        slots = super().place(y)
        self.again = [slot + 1 for slot in slots if 0 <= slot + 1 < len(self.columns["y"])]
        return slots

    def add(self, batch: Batch, **columns: Tensor) -> None:
        super().add(batch, **columns)
        for slot in self.again[:1]:
            for column in self.columns.values():
                column[slot] = column[slot - 1]


class DrawsEmptySlots(Reservoir):
    """Draws from all slots, the empty ones too."""

    def draw(self, n: int, among: Tensor | None = None) -> Tensor:
        return torch.randperm(self.capacity, generator=self.generator)[:n]


class HandsOutViews(Reservoir):
    """Gives a slice of its columns where one will do."""

    def column(self, name: str, slots: Tensor) -> Tensor:
        return self.columns[name][: len(slots)]


class KeepsViews(Reservoir):
    """Keeps the tensors of a large batch instead of copies."""

    def add(self, batch: Batch, **columns: Tensor) -> None:
        super().add(batch, **columns)
        if batch.arrived > self.capacity:
            given = {"x": batch.x, "y": batch.y, **columns}
            self.columns = {name: column[: self.capacity] for name, column in given.items()}


class DecidesByTheBatch(Reservoir):
    """One draw for a whole batch."""

    def place(self, y: list[int]) -> list[int]:
        room = max(0, self.capacity - self.seen)
        start = int(torch.randint(self.capacity, (), generator=self.generator))
        late = [(start + row) % self.capacity for row in range(len(y) - room)]
        return [*range(self.seen, self.seen + min(room, len(y))), *late]


class ForgetsItsGenerator(Reservoir):
    """Draws from the beginning again after it was loaded."""

    def load_state_dict(self, state: Any) -> None:
        fresh = self.generator.get_state()
        super().load_state_dict(state)
        self.generator.set_state(fresh)


class ForgetsItsCounts(ClassBalanced):
    """Loses which classes were the largest."""

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.was_largest.zero_()


class PlacesByContent(Reservoir):
    """Keeps fewer rows where it keeps their inputs."""

    def place(self, y: list[int]) -> list[int]:
        slots = super().place(y)
        return slots if "id" in self.columns else slots[::-1]


class KeepsTheNewest(Reservoir):
    """A ring: the last rows, whatever came before."""

    def place(self, y: list[int]) -> list[int]:
        return [row % self.capacity for row in range(self.seen, self.seen + len(y))]


class OneTooMany(Reservoir):
    """Off by one: draws floor(u i) where it should be floor(u (i + 1))."""

    def place(self, y: list[int]) -> list[int]:
        free = max(0, min(len(y), self.capacity - self.seen))
        draws = torch.rand(len(y) - free, generator=self.generator).tolist()
        late = [int(u * row) for row, u in enumerate(draws, start=self.seen + free)]
        return [*range(self.seen, self.seen + free), *(slot if slot < self.capacity else -1 for slot in late)]


class EvictsAnyone(ClassBalanced):
    """Replaces a random row instead of one of the largest class."""

    def _overwrite(self, label: int, was_largest: bool, share: float) -> int:
        slot = int(torch.randint(self.capacity, (), generator=self.generator))
        next(own for own in self._slots if slot in own).remove(slot)
        insort(self._slots[label], slot)
        return slot


MEMORIES: list[tuple[str, type[Memory], type[Memory]]] = [
    *(("stays_within_its_budget", kind, Reservoir) for kind in (GrowsTwice, KeepsTheWholeBatch)),
    *(("holds_what_was_added", kind, Reservoir) for kind in (MixesColumns, AddsTwice, DrawsEmptySlots)),
    *(("keeps_copies", kind, Reservoir) for kind in (HandsOutViews, KeepsViews)),
    ("fills_alike_in_any_pieces", DecidesByTheBatch, Reservoir),
    ("resumes_exactly", ForgetsItsGenerator, Reservoir),
    ("resumes_exactly", ForgetsItsCounts, ClassBalanced),
    ("stores_agree", PlacesByContent, Reservoir),
]


@pytest.mark.parametrize(("law", "broken", "sound"), MEMORIES, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_memory_is_caught(law: str, broken: type[Memory], sound: type[Memory]) -> None:
    LAWS[law](sound, 7, EXAMPLE)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        LAWS[law](broken, 7, EXAMPLE)


POLICIES = [
    ("includes_uniformly", KeepsTheNewest, Reservoir),
    ("includes_uniformly", OneTooMany, Reservoir),
    ("shares_equally", EvictsAnyone, ClassBalanced),
]


@pytest.mark.parametrize(("law", "broken", "sound"), POLICIES, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_policy_is_caught(law: str, broken: type[Memory], sound: type[Memory]) -> None:
    LAWS[law](sound)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        LAWS[law](broken)


def test_every_law_of_streams_and_memories_has_a_mutant() -> None:
    assert {law for law, _, _ in (*STREAMS, *MEMORIES, *POLICIES)} == set(LAWS)
