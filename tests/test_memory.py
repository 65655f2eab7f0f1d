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
from continual.memory import ClassBalanced, Memory, Reservoir
from continual.probe import Probe
from continual.types import Spec

NAMES = [choice.name for choice in choices("memory")]

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
    @given(capacity=st.integers(1, 12), arrivals=arriving)
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
    includes_uniformly(ClassBalanced, trials=300)  # one class only: as a reservoir


def open_memory(kind: Callable[..., Memory], **settings: Any) -> Memory:
    return kind(**{"spec": SPEC, "seed": 0, **settings})


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
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
