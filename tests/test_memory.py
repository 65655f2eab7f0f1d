"""Bounded memories: the laws for whatever arrives, and the arithmetic of each policy."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.choices import choices
from continual.config import compose
from continual.contract import MEMORY_LAWS, Subject, includes_uniformly, shares_equally
from continual.contract.memories import ROW_BYTES, SPEC, batches
from continual.errors import UserError
from continual.fence import locate
from continual.loop import loop
from continual.memory import FIFO, ClassBalanced, Herding, Memory, Reservoir, Ring
from continual.probe import Probe
from continual.types import Spec

NAMES = [choice.name for choice in choices("memory")]
LEAST = {"ring": 5, "herding": 5, "class_balanced": 5}  # rows: one for each class; for the other policies one is enough

arriving = st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=8)
"""Labels of each batch."""


@cache
def of_config(name: str) -> Callable[..., Memory]:
    """The memory of a YAML, at its defaults."""
    node = compose(f"memory@strategy.er.memory={name}", "strategy=er").resolved["strategy"]["er"]["memory"]
    return partial(locate(node["_target_"]), **{key: value for key, value in node.items() if key[0] != "_"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("law", MEMORY_LAWS, ids=lambda law: law.__name__)
def test_memory(name: str, law: Any) -> None:
    @settings(max_examples=15)
    @given(capacity=st.integers(LEAST.get(name, 1), 12), arrivals=arriving)
    def holds(capacity: int, arrivals: list[list[int]]) -> None:
        law(of_config(name), capacity, arrivals)

    holds()
    law(of_config(name), 7, [[0, 1, 2, 3, 4] * 20, [4], [0] * 100])


def test_a_reservoir_holds_each_row_with_equal_probability() -> None:
    includes_uniformly(Reservoir)
    includes_uniformly(Reservoir, capacity=1, n=5, trials=300)
    includes_uniformly(Reservoir, capacity=9, n=10, trials=300)


def test_a_reservoir_holds_everything_while_there_is_room() -> None:
    memory = open_memory(Reservoir, capacity=4)
    for batch in batches([[0, 1], [2]]):
        memory.add(batch)
    assert memory.column("x", torch.arange(len(memory)))[:, 0].tolist() == [0, 1, 2]
    assert memory.column("y", torch.arange(len(memory))).tolist() == [0, 1, 2]


def test_shares_of_a_class_balanced_memory_are_equal() -> None:
    shares_equally(ClassBalanced)
    with pytest.raises(AssertionError, match="4 classes of 30 rows"):
        shares_equally(Reservoir)


def test_within_a_class_a_balanced_memory_is_a_uniform_sample() -> None:
    includes_uniformly(ClassBalanced, capacity=5, trials=300)  # one class only: as a reservoir


def held(memory: Memory) -> list[int]:
    """The rows in it, by number, in order of arrival."""
    return sorted(memory.column("x", torch.arange(len(memory)))[:, 0].int().tolist())


def filled(kind: Callable[..., Memory], capacity: int, *arrivals: list[int]) -> Memory:
    memory = open_memory(kind, capacity=capacity)
    for batch in batches(arrivals):
        memory.add(batch)
    return memory


def test_a_fifo_holds_the_last_rows() -> None:
    assert held(filled(FIFO, 4, [0, 1, 2], [3])) == [0, 1, 2, 3]
    assert held(filled(FIFO, 4, [0, 1, 2], [3, 4, 0], [1])) == [3, 4, 5, 6]
    assert held(filled(FIFO, 4, [0] * 30)) == [26, 27, 28, 29]


def test_a_ring_holds_the_last_rows_of_each_class() -> None:
    """Capacity 13 for 5 classes: 2 rows each, whatever the order; nothing is lent to classes that have more."""
    memory = filled(Ring, 13, [0, 1, 0, 1, 0], [2], [1, 1])
    assert held(memory) == [2, 4, 5, 6, 7]
    assert memory.capacity == 10, "the rest is not allocated"
    assert len(memory) == 5
    y = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    last = [row for c in range(5) for row in [row for row, label in enumerate(y) if label == c][-2:]]
    assert held(filled(Ring, 10, y[:7], y[7:31], y[31:])) == sorted(last)
    shares_equally(partial(Ring), capacity=15)


@pytest.mark.parametrize("kind", [Ring, Herding, ClassBalanced])
def test_a_memory_with_a_share_for_each_class_needs_a_row_for_each(kind: Callable[..., Memory]) -> None:
    with pytest.raises(UserError, match="capacity=4 must be at least 1 row for each of 5 classes"):
        open_memory(kind, capacity=4)
    assert open_memory(kind, capacity=5 * ROW_BYTES, unit="bytes").capacity >= 5


def test_herding_keeps_the_rows_that_make_the_mean() -> None:
    """Two rows of each class stay of those offered: directions at 0, 60 and 90 degrees, whose lengths do not matter.

    The mean direction is at 51 degrees: the row at 60 is the nearest one, and of (60 + 0) / 2 and (60 + 90) / 2 the
    first is nearer to the mean's length and place.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 90.0, 60.0, 0.0, 90.0, 60.0]))
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([5.0, 1, 1, 1, 1, 9])[:, None]
    y = torch.tensor([0, 0, 0, 3, 3, 3])
    memory = open_memory(Herding, capacity=10)
    assert isinstance(memory, Herding)
    order = memory.order(features, y)
    mean = torch.nn.functional.normalize(features[:3], dim=1).mean(0)
    pair = {
        other: float((features[[2, other]].div(features[[2, other]].norm(dim=1)[:, None]).mean(0) - mean).norm())
        for other in (0, 1)
    }
    second = min(pair, key=lambda other: pair[other])
    assert order.tolist() == [second, 2, second + 3, 5], "of each class the most preferred comes last"


def open_memory(kind: Callable[..., Memory], **settings: Any) -> Memory:
    return kind(**{"spec": SPEC, "seed": 0, **settings})


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced, FIFO, Ring])
def test_draws_are_uniform(kind: Callable[..., Memory]) -> None:
    memory = open_memory(kind, capacity=5)
    for batch in batches([[0, 1, 2, 3, 4] * 4]):
        memory.add(batch)
    counts = torch.bincount(torch.cat([memory.draw(2) for _ in range(1000)]), minlength=5)
    assert (counts - 400).abs().max() < 5 * (1000 * 0.4 * 0.6) ** 0.5  # five standard deviations
    chosen = torch.cat([memory.draw(1, among=torch.tensor([1, 4])) for _ in range(200)])
    assert set(chosen.tolist()) == {1, 4}


def test_a_draw_with_replacement_is_as_large_as_asked_for() -> None:
    memory = open_memory(Reservoir, capacity=3, replacement=True)
    assert len(memory.draw(10)) == 0
    for batch in batches([[0, 1]]):
        memory.add(batch)
    assert len(memory.draw(10)) == 10
    assert set(memory.draw(50).tolist()) == {0, 1}


def test_only_arrived_rows_are_added() -> None:
    memory = open_memory(Reservoir, capacity=10)
    (batch,) = batches([[0, 1, 2, 3]])
    memory.add(type(batch)(batch.x, batch.y, batch.weight, 2, {"id": batch.extra["id"][:2]}))
    assert memory.column("x", torch.arange(len(memory)))[:, 0].tolist() == [0, 1]


def test_bytes_count_every_column_in_its_own_dtype() -> None:
    images = Spec(in_shape=(3, 2, 2), n_classes=2, dtype=torch.uint8)
    row = 12 + 8 + 5 * 4  # uint8 pixels, int64 label, 5 float32 logits
    make = partial(Reservoir, unit="bytes", spec=images, columns={"logits": ((5,), torch.float32)}, seed=0)
    assert make(capacity=10 * row + row - 1).capacity == 10
    assert make(capacity=row).capacity == 1
    assert make(capacity=8 + 8 + 20, store="indices").capacity == 1  # an int64 id instead of the pixels
    with pytest.raises(UserError, match=f"capacity={row - 1} bytes must be at least one row's {row} bytes"):
        make(capacity=row - 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capacity": 0}, "capacity=0 rows must be at least 1 row"),
        ({"capacity": ROW_BYTES - 9, "unit": "bytes"}, "must be at least one row's 16 bytes"),
        ({"capacity": 3, "unit": "row"}, "unit='row' is unknown"),
        ({"capacity": 3, "store": "ids"}, "store='ids' is unknown"),
    ],
)
def test_a_bad_memory_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_memory(Reservoir, **wrong)


@pytest.mark.parametrize("scenario", ["split", "permuted", "online"])
def test_indices_and_rows_give_the_same_run(scenario: str) -> None:
    config = compose("strategy=er", "track=none", f"scenario={scenario}", "scenario.rows_per_task=30")
    one, facts = Subject(config), []
    for store in ("rows", "indices"):
        memory = {**one.strategies["er"]["memory"], "store": store, "capacity": 20}
        learner = one.switched("er", {"memory": memory})()
        facts.append(
            [r for r in loop(one.make_stream(), learner, Probe()) if r.metric not in ("seconds", "peak_bytes")]
        )
    assert facts[0] == facts[1]
    assert len(facts[0]) > 20
