"""What a learner declares to have spent and to hold, against rows and floating-point operations counted from outside.

A forward pass of one row through dense layers takes F = sum of 2 * inputs * outputs operations. A backward pass takes
2 F less the first layer's share: nobody asks for the gradient of the inputs. So operations = F * declared - F_first *
rows that went backward. Declared forward-equivalents keep the plain 2, which holds for deep networks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from continual.batches import extend
from continual.learner import SGDLearner
from continual.learners.joint import Joint
from continual.learners.slda import SLDA
from continual.memory import ClassBalanced, Memory, Reservoir
from continual.models import linear, mlp
from continual.state import nbytes
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.er_ace import ERACE
from continual.strategies.ewc import EWC
from continual.strategies.lwf import LwF
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Spec

SPEC = Spec((8,), 4)
SGD = partial(torch.optim.SGD, lr=0.01)
MEMORY = partial(Reservoir, 20)


@dataclass
class Table:
    """Rows ``ids`` of two tensors."""

    x: Tensor
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        ids, n = self.ids[indices], len(indices)
        return Batch(self.x[ids], self.y[ids], torch.full((n,), 1 / max(n, 1)), n, {"id": ids})

    def fetch(self, ids: Tensor) -> Tensor:
        return self.x[ids]


def arrivals(spec: Spec = SPEC) -> list[Experience]:
    """20 rows of classes 0 and 1, then 12 rows of classes 2 and 3."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 200, (32, *spec.in_shape), generator=draws).to(spec.dtype)
    y = torch.arange(32) % 2 + 2 * (torch.arange(32) >= 20)
    x = x / 100 if x.is_floating_point() else x
    return [Experience(e, Table(x, y, ids)) for e, ids in enumerate(torch.split(torch.arange(32), [20, 12]))]


def trained(learner: SGDLearner | SLDA, spec: Spec = SPEC) -> Any:
    for experience in arrivals(spec):
        list(learner.learn(experience))
    return learner


# ---------------------------------------------------------------- forward-equivalents


def layers(learner: SGDLearner) -> list[int]:
    """Operations of a forward pass of one row through each dense layer."""
    return [2 * m.in_features * m.out_features for m in learner.network.modules() if isinstance(m, nn.Linear)]


class Watch(Strategy):
    """Adds up the rows that every update trains on; the last in the list."""

    def __init__(self) -> None:
        self.trained = 0

    def mix(self, view: View, batch: Batch) -> Batch:
        self.trained += len(batch)
        return batch


REPLAYED = [0, 3, 3, 3, 3, 3, 3]
"""Rows that a draw of 3 gives before each of the 20 / 5 + 12 / 5 updates."""


@pytest.mark.parametrize("model", [linear, partial(mlp, hidden=(6, 5))], ids=["linear", "mlp"])
@pytest.mark.parametrize(("strategies", "rows_trained", "other_forwards", "fisher_rows"), [
    ({}, 32, 0, 0),
    ({"er": lambda: ER(MEMORY, n_replay=3)}, 32 + sum(REPLAYED), 0, 0),
    ({"er_ace": lambda: ERACE(MEMORY, n_replay=3)}, 32 + sum(REPLAYED), 0, 0),
    ({"derpp": lambda: DERPP(MEMORY, n_replay=3)}, 32 + 2 * sum(REPLAYED), 0, 0),
    ({"derpp": lambda: DERPP(MEMORY, n_replay=3, label_strength=0)}, 32 + sum(REPLAYED), 0, 0),
    ({"derpp": lambda: DERPP(MEMORY, n_replay=3, strength=0)}, 32 + sum(REPLAYED), 0, 0),
    ({"ewc": lambda: EWC(chunk=7)}, 32, 0, 32),
    ({"lwf": LwF}, 32, 12, 0),
    ({"lwf": lambda: LwF(strength=0)}, 32, 0, 0),
    ({"er": lambda: ER(MEMORY, n_replay=3), "ewc": EWC, "lwf": LwF}, 32 + sum(REPLAYED), 12 + 9, 32),
], ids=lambda given: "+".join(given) or "none" if isinstance(given, dict) else "")  # fmt: skip
def test_declared_work_is_counted_work(
    model: Callable[[Spec], nn.Module],
    strategies: dict[str, Callable[[], Strategy]],
    rows_trained: int,
    other_forwards: int,
    fisher_rows: int,
) -> None:
    watch = Watch()
    made = {name: make() for name, make in strategies.items()} | {"watch": watch}
    learner = SGDLearner(model, SGD, made, spec=SPEC, batch_size=5)
    with FlopCounterMode(display=False) as counter:
        trained(learner)
    declared = learner.cost().forward_equivalents
    assert watch.trained == rows_trained
    assert declared == 3 * rows_trained + other_forwards + 3 * fisher_rows
    first, every = layers(learner)[0], sum(layers(learner))
    weighting = 2 * fisher_rows  # vmap turns each row's weight times its loss into a counted product
    assert counter.get_total_flops() == every * declared - first * (rows_trained + fisher_rows) + weighting


@pytest.mark.parametrize(
    ("epochs", "iterations", "rows"), [(1, None, 32), (3, None, 96), (1, 2, 10 + 10), (1, 6, 30 + 24)]
)
def test_every_pass_is_paid_for(epochs: int, iterations: int | None, rows: int) -> None:
    learner = SGDLearner(linear, SGD, {}, spec=SPEC, batch_size=5, epochs=epochs, iterations=iterations)
    with FlopCounterMode(display=False) as counter:
        trained(learner)
    assert learner.cost().forward_equivalents == 3 * rows
    assert counter.get_total_flops() == 2 * rows * layers(learner)[0]


def test_joint_pays_for_all_rows_after_each_experience() -> None:
    learner = Joint(partial(mlp, hidden=(6,)), SGD, spec=SPEC, batch_size=5, epochs=2)
    with FlopCounterMode(display=False) as counter:
        trained(learner)
    rows = 2 * 20 + 2 * 32
    assert learner.cost().forward_equivalents == 3 * rows
    assert counter.get_total_flops() == 3 * rows * sum(layers(learner)) - rows * layers(learner)[0]


def test_prediction_is_not_charged_and_questions_of_a_strategy_are() -> None:
    class Curious(Strategy):
        """Asks for a gradient, another forward pass and an answer at every step."""

        def mix(self, view: View, batch: Batch) -> Batch:
            view.gradient(batch)  # 3 a row
            view.forward({name: p.detach() for name, p in view.params.items()}, batch.x)  # 1 a row
            view.answer(view.copy(), batch.x)  # 1 a row
            view.charge(0.5 * len(batch))
            return extend(batch, batch.x, batch.y, 0.0)  # trains on twice the rows

    learner = trained(SGDLearner(linear, SGD, {"curious": Curious()}, spec=SPEC, batch_size=5))
    assert learner.cost().forward_equivalents == 32 * (3 + 1 + 1 + 0.5 + 2 * 3)
    learner.predict(torch.zeros(100, 8))
    assert learner.cost().forward_equivalents == 32 * 11.5


def test_streaming_lda_pays_one_pass_a_row() -> None:
    assert trained(SLDA(spec=SPEC)).cost().forward_equivalents == 32


# ---------------------------------------------------------------- bytes

WEIGHTS = 4 * (8 * 4 + 4)  # float32, linear from 8 to 4
HEAD = 2 * 4  # for each class whether it was seen, and whether it is of the current experience
ROW = 4 * 8 + 8  # x float32, y int64


def held(strategies: dict[str, Strategy], optimizer: Any = SGD, spec: Spec = SPEC, model: Any = linear) -> int:
    found: int = trained(SGDLearner(model, optimizer, strategies, spec=spec, batch_size=5), spec).cost().bytes
    return found


@pytest.mark.parametrize(("optimizer", "extra"), [
    (SGD, 0),
    (partial(SGD, momentum=0.9), WEIGHTS),
    (torch.optim.Adam, 2 * WEIGHTS + 2 * 4),  # two moments, and a float32 step counter for each of two parameters
])  # fmt: skip
def test_parameters_and_optimizer_by_hand(optimizer: Any, extra: int) -> None:
    assert held({}, optimizer) == HEAD + WEIGHTS + extra


def test_batch_statistics_by_hand() -> None:
    """Weight, bias, mean and variance of 8 float32 each, and an int64 counter."""
    assert held({}, model=lambda spec: nn.Sequential(nn.BatchNorm1d(8), linear(spec))) == HEAD + WEIGHTS + 4 * 8 * 4 + 8


@pytest.mark.parametrize(("memory", "extra"), [
    (partial(Reservoir, 20), 20 * ROW),
    (partial(Reservoir, 1000), 1000 * ROW),  # allocated once, full or not
    (partial(Reservoir, 20, store="indices"), 20 * (8 + 8)),
    (partial(Reservoir, 20 * ROW + 39, unit="bytes"), 20 * ROW),
    (partial(ClassBalanced, 20), 20 * ROW + 4 * 8 + 4 * 1),  # per class a count and whether it was the largest
])  # fmt: skip
def test_memories_by_hand(memory: Callable[..., Memory], extra: int) -> None:
    assert held({"er": ER(memory)}) == HEAD + WEIGHTS + extra


@pytest.mark.parametrize(("strategy", "extra"), [
    (ER(MEMORY, exclude_current=True), 20 * (ROW + 8)),
    (ERACE(MEMORY), 20 * ROW),
    (DERPP(MEMORY), 20 * (ROW + 4 * 4)),
    (EWC(), 2 * WEIGHTS),  # importance and anchor
    (LwF(), WEIGHTS + 4),  # the teacher, and for each class whether it knows it
], ids=lambda given: type(given).__name__)  # fmt: skip
def test_strategies_by_hand(strategy: Strategy, extra: int) -> None:
    assert held({"s": strategy}) == HEAD + WEIGHTS + extra


def test_bytes_of_rows_follow_their_dtype() -> None:
    spec = Spec((1, 2, 4), 4, torch.uint8)
    assert held({"er": ER(MEMORY)}, spec=spec) == HEAD + WEIGHTS + 20 * (8 + 8)


def test_strategies_add_up_and_nothing_grows() -> None:
    learner = SGDLearner(linear, SGD, {"er": ER(MEMORY), "ewc": EWC(), "lwf": LwF()}, spec=SPEC, batch_size=5)
    for _ in range(3):
        trained(learner)
        assert learner.cost().bytes == HEAD + WEIGHTS + 20 * ROW + 2 * WEIGHTS + WEIGHTS + 4


def test_joint_holds_every_row_and_the_weights_it_starts_from() -> None:
    adam = 2 * WEIGHTS + 2 * 4
    learner = Joint(linear, torch.optim.Adam, spec=SPEC, batch_size=5)
    assert trained(learner).cost().bytes == HEAD + 2 * WEIGHTS + adam + 32 * ROW


@pytest.mark.parametrize(("n_features", "features"), [(0, 8), (16, 16)])
def test_streaming_lda_holds_sums_and_random_features(n_features: int, features: int) -> None:
    sums = 4 + 4 * features + features**2
    random = 8 * n_features + n_features
    head = 2 * 4  # which classes were seen, and are of the task: a byte each
    assert trained(SLDA(spec=SPEC, n_features=n_features)).cost().bytes == 4 * (sums + random) + head


def test_nested_tensors_are_counted_once_and_generators_not_at_all() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    state = {"a": x, "b": [x, {"c": (torch.zeros(5, dtype=torch.uint8), 7, "text", None)}]}
    assert nbytes(state | {"generator": torch.Generator().get_state()}) == 3 * 8 + 5
