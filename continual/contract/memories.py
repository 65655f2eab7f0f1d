"""Laws of every bounded memory of past rows. Each takes the memory's constructor, a capacity and what arrives.

``make`` is what a config gives: a partial of a ``continual.memory.Memory``. What arrives is the labels of each batch;
row r (from 0) has the input [r, r], the id r and the further column ``tag`` = 7 r, so that a row can be recognised.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from continual import snapshot
from continual.memory import Memory
from continual.types import Batch, Spec

MakeMemory = Callable[..., Memory]
Arrivals = Sequence[Sequence[int]]
MemoryLaw = Callable[[MakeMemory, int, Arrivals], None]
"""Raises AssertionError, saying what was broken and the likely cause."""

N_CLASSES = 5
SPEC = Spec(in_shape=(2,), n_classes=N_CLASSES)
ROW_BYTES = 2 * 4 + 8 + 8  # x, y, tag
EXAMPLE: Arrivals = ([0], [0, 0, 1], [1] * 9, [2, 0, 1, 2], [3] * 20, [], [4, 0, 1, 2, 3] * 3, [4])
"""Something to try a memory with: classes that come one by one, all at once, and rarely."""


def stays_within_its_budget(make: MakeMemory, capacity: int, arrivals: Arrivals) -> None:
    """At any time it holds at most ``capacity`` rows, or as many bytes as it was given."""
    budget = capacity * ROW_BYTES + ROW_BYTES // 2
    for unit, limit in (("rows", capacity), ("bytes", budget)):
        memory = _open(make, capacity=limit, unit=unit)
        for batch in batches(arrivals):
            _add(memory, batch)
            held = sum(column.untyped_storage().nbytes() for column in memory.columns.values())
            rows = max(len(memory), *(len(column) for column in memory.columns.values()))
            assert rows <= capacity, f"it holds {rows} rows, its capacity is {limit} {unit} ({capacity} rows)"
            assert held <= budget, f"it holds {held} bytes, its capacity is {limit} {unit}"


def holds_what_was_added(make: MakeMemory, capacity: int, arrivals: Arrivals) -> None:
    """Every row in it was added, whole and once; a draw names occupied slots, each once, and no more than asked for."""
    memory, labels = _open(make, capacity=capacity), list[int]()
    for batch, new in zip(batches(arrivals), arrivals, strict=True):
        _add(memory, batch)
        labels += new
        _check_contents(memory, labels)
        for n in (0, 1, len(memory), len(memory) + 3):
            slots = memory.draw(n)
            assert len(slots) <= n, f"a draw of {n} rows gave {len(slots)}"
            inside = all(0 <= slot < len(memory) for slot in slots.tolist())
            assert inside, f"a draw named slots {slots.tolist()} of a memory with {len(memory)} rows"
            assert len(set(slots.tolist())) == len(slots), "a draw without replacement named a slot twice"


def keeps_copies(make: MakeMemory, capacity: int, arrivals: Arrivals) -> None:
    """Overwriting what was added, or what was drawn, does not change it."""
    memory, labels = _open(make, capacity=capacity), list[int]()
    for batch, new in zip(batches(arrivals), arrivals, strict=True):
        tag = _tag(batch)
        memory.add(batch, tag=tag)
        labels += new
        for tensor in (batch.x, batch.y, batch.extra["id"], tag):
            tensor.fill_(-1)
        slots = torch.arange(len(memory))
        for tensor in (memory.inputs(slots, _fetch), memory.column("y", slots), memory.column("tag", slots)):
            tensor.fill_(-1)
        _check_contents(memory, labels, hint="; it keeps a view of a batch, or hands one out: copy")


def fills_alike_in_any_pieces(make: MakeMemory, capacity: int, arrivals: Arrivals) -> None:
    """Row by row, in the batches given, or in one big batch: the same rows end in the same slots."""
    labels = [label for batch in arrivals for label in batch]
    contents = []
    for pieces in (arrivals, [[label] for label in labels], [labels]):
        memory = _open(make, capacity=capacity)
        for batch in batches(pieces):
            _add(memory, batch)
        contents.append(_contents(memory))
    same = contents[0] == contents[1] == contents[2]
    assert same, "what is kept depends on how rows are cut into batches; decide row by row, with one draw for each"


def resumes_exactly(make: MakeMemory, capacity: int, arrivals: Arrivals) -> None:
    """Stored and loaded into a fresh one at any time, it goes on exactly alike: the same rows, the same draws."""
    given = list(batches(arrivals))
    for stop in range(len(given) + 1):
        one, other = _open(make, capacity=capacity), _open(make, capacity=capacity)
        for batch in given[:stop]:
            _add(one, batch)
            one.draw(2)
        other.load_state_dict(snapshot.loads(snapshot.dumps(one.state_dict())))
        for batch in given[stop:]:
            _add(one, batch)
            _add(other, batch)
            same = torch.equal(one.draw(2), other.draw(2)) and _contents(one) == _contents(other)
            assert same, f"stored after {stop} batches and loaded, it goes on differently; what is not in state_dict?"


def stores_agree(make: MakeMemory, capacity: int, arrivals: Arrivals) -> None:
    """``store=indices`` keeps and draws the same rows as ``store=rows``, and fetches equal inputs."""
    rows, indices = (_open(make, capacity=capacity, store=store) for store in ("rows", "indices"))
    for batch in batches(arrivals):
        _add(rows, batch)
        _add(indices, batch)
        slots = rows.draw(3)
        same = torch.equal(slots, indices.draw(3)) and _contents(rows) == _contents(indices)
        assert same, "store=indices keeps other rows than store=rows; does where a row lies decide whether it stays?"


MEMORY_LAWS: tuple[MemoryLaw, ...] = (
    stays_within_its_budget,
    holds_what_was_added,
    keeps_copies,
    fills_alike_in_any_pieces,
    resumes_exactly,
    stores_agree,
)
"""They bind all memories."""


def includes_uniformly(make: MakeMemory, capacity: int = 4, n: int = 16, trials: int = 600) -> None:
    """After n rows each is in it with probability min(1, capacity / n); binds memories that sample uniformly.

    Seeds 0..trials-1. The statistic sum_i (count_i - E)^2 / (trials p (1 - p)) * (n - 1) / n, E = trials p,
    follows chi-square with n - 1 degrees of freedom; the bound n - 1 + 5 sqrt(2 (n - 1)) is met by chance
    in about 999 of 1,000 cases.
    """
    counts, p = torch.zeros(n), capacity / n
    for seed in range(trials):
        memory = make(capacity=capacity, spec=SPEC, columns={"tag": ((), torch.int64)}, seed=seed)
        for batch in batches([[0] * 3, [0] * (n - 3)]):
            _add(memory, batch)
        counts[memory.column("tag", torch.arange(len(memory))) // 7] += 1
    statistic = float(((counts - trials * p) ** 2).sum()) / (trials * p * (1 - p)) * (n - 1) / n
    bound = n - 1 + 5 * (2 * (n - 1)) ** 0.5
    told = f"of {trials} memories of {capacity} rows, so many hold row 0, 1, ...: {counts.int().tolist()}"
    assert statistic <= bound, f"{told}; expected {trials * p:.0f} each (chi-square {statistic:.0f}, bound {bound:.0f})"


def shares_equally(make: MakeMemory, capacity: int = 12) -> None:
    """Classes with enough rows hold equal shares, one row apart at most, in any order of arrival.

    A class with fewer rows than its share keeps all of them. Binds memories that balance classes.
    """
    blocks = [[label] * 30 for label in range(4)]
    for arrivals in (blocks, blocks[::-1], [[0, 1, 2, 3]] * 30, [[0] * 30, [1, 2, 3] * 30]):
        counts = _counts(make, capacity, arrivals)[:4]
        told = f"4 classes of 30 rows each have {counts} of {capacity} slots"
        assert max(counts) - min(counts) <= 1, f"{told}; a row of a class below its share must replace one above"
    rare = _counts(make, capacity, [[4], *blocks, [4]])
    assert rare[4] == 2, f"of a class with 2 rows {rare[4]} are kept, its share is {capacity // N_CLASSES}"


def batches(arrivals: Arrivals) -> Iterator[Batch]:
    """The batches that bring rows of these labels."""
    start = 0
    for labels in arrivals:
        n = len(labels)
        ids = torch.arange(start, start + n)
        y = torch.tensor(labels, dtype=torch.int64)
        yield Batch(_fetch(ids), y, torch.full((n,), 1 / max(n, 1)), n, {"id": ids})
        start += n


def _open(make: MakeMemory, **settings: int | str) -> Memory:
    return partial(make, **settings)(spec=SPEC, columns={"tag": ((), torch.int64)}, seed=3, device="cpu")


def _fetch(ids: Tensor) -> Tensor:
    return ids.float()[:, None].repeat(1, 2)


def _tag(batch: Batch) -> Tensor:
    return batch.extra["id"] * 7


def _add(memory: Memory, batch: Batch) -> None:
    memory.add(batch, tag=_tag(batch))


def _contents(memory: Memory) -> list[tuple[float, int, int]]:
    """(input, label, tag) of each occupied slot."""
    slots = torch.arange(len(memory))
    x = memory.inputs(slots, _fetch)[:, 0]
    return list(zip(x.tolist(), memory.column("y", slots).tolist(), memory.column("tag", slots).tolist(), strict=True))


def _check_contents(memory: Memory, labels: Sequence[int], hint: str = "") -> None:
    held = _contents(memory)
    for x, y, tag in held:
        row = int(x)
        added = 0 <= row < len(labels) and y == labels[row] and tag == 7 * row
        assert added, f"it holds the row (x={x:g}, y={y}, tag={tag}), which was not added like that{hint}"
    assert len({x for x, _, _ in held}) == len(held), f"it holds a row twice, although it was added once{hint}"


def _counts(make: MakeMemory, capacity: int, arrivals: Arrivals) -> list[int]:
    memory = _open(make, capacity=capacity)
    for batch in batches(arrivals):
        _add(memory, batch)
    counts: list[int] = memory.column("y", torch.arange(len(memory))).bincount(minlength=N_CLASSES).tolist()
    return counts
