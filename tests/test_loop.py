"""The loop: what is called in which order, and that its consumer decides how far it goes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.loop import loop
from continual.probe import Probe
from continual.types import Batch, Cost, Experience, Record, Rows, Spec


@dataclass
class Table:
    """Rows of class 0 whose input names them, from ``first``."""

    n: int
    first: int = 0

    def __len__(self) -> int:
        return self.n

    def take(self, indices: Tensor) -> Batch:
        n, ids = len(indices), indices + self.first
        return Batch(ids[:, None].float(), torch.zeros(n, dtype=torch.int64), torch.ones(n) / n, n, {"id": ids})

    def fetch(self, ids: Tensor) -> Tensor:
        return ids[:, None].float()


@dataclass
class Scribe:
    """A learner that writes down what it is asked to do; probes have the inputs 100 and up."""

    diary: list[str] = field(default_factory=list)
    probed: bool = True

    def learn(self, experience: Experience) -> Iterator[int]:
        self.diary.append(f"learn {experience.index}")
        for _ in range(len(experience.rows) // 2):
            self.diary.append("update")
            yield 2
        self.diary.append("done")

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        first = int(x[0, 0])
        if first < 100:
            self.diary.append(f"predict row {first}")
        elif self.probed:
            self.diary += [f"probe {row - 100}" for row in x[:, 0].int().tolist()]
        return torch.zeros(len(x), 2)

    def cost(self) -> Cost:
        return Cost(0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Fixed:
    """Experiences of given origins and sizes."""

    origins: list[int]
    sizes: list[int]
    spec: Spec = field(default_factory=lambda: Spec((1,), 2))

    @property
    def probes(self) -> list[Rows]:
        return [Table(1, 100 + task) for task in range(max(self.origins) + 1)]

    def __iter__(self) -> Iterator[Experience]:
        first = 0
        for index, n in enumerate(self.sizes):
            yield Experience(index, Table(n, first))
            first += n


def test_predict_then_learn_then_probe() -> None:
    learner = Scribe()
    list(loop(Fixed([0, 0, 1], [4, 2, 2]), learner, Probe(every=4, prequential=True)))
    assert learner.diary == [
        "probe 0", "probe 1",
        "predict row 0", "learn 0", "update", "update", "probe 0", "done",
        "predict row 4", "learn 1", "update", "done", "probe 0", "probe 1",
        "predict row 6", "learn 2", "update", "done", "probe 0", "probe 1",
        "probe 0", "probe 1",
    ]  # fmt: skip


@pytest.mark.parametrize(("origins", "ends"), [
    ([0], [0]),
    ([0, 1, 2], [0, 1, 2]),
    ([0, 0, 0], [0]),
    ([1, 1, 0, 0, 1], [1, 0, 1]),
    ([0, 1, 0, 1], [0, 1, 0, 1]),
])  # fmt: skip
def test_a_task_ends_when_the_next_experience_is_of_another(origins: list[int], ends: list[int]) -> None:
    records = list(loop(Fixed(origins, [2] * len(origins)), Scribe(), Probe()))
    assert [r.task for r in records if r.at == "end" and r.metric == "accuracy" and r.probe == 0] == ends


def test_an_experience_without_labels_takes_part_without_updates() -> None:
    learner = Scribe(probed=False)
    records = list(loop(Fixed([0, 0, 1], [0, 2, 0]), learner, Probe(prequential=True)))
    assert learner.diary == ["learn 0", "done", "predict row 0", "learn 1", "update", "done", "learn 2", "done"]
    assert [(r.rows_seen, r.step, r.task) for r in records if r.at == "end" and r.metric == "accuracy"] == [
        (2, 1, 0), (2, 1, 0), (2, 1, 1), (2, 1, 1)
    ]  # fmt: skip


def test_records_come_when_they_are_measured_and_whoever_stops_reading_stops_the_learner() -> None:
    learner = Scribe()
    records = loop(Fixed([0, 1], [4, 4]), learner, Probe(every=2))
    assert learner.diary == [], "nothing happens before the first record is asked for"
    for record in records:
        if record.at == "step":
            break
    records.close()  # type: ignore[attr-defined]
    assert learner.diary == ["probe 0", "probe 1", "learn 0", "update", "probe 0"]


def test_time_runs_forward() -> None:
    records = list(loop(Fixed([0, 1, 0], [4, 6, 2]), Scribe(), Probe(every=2, prequential=True, window=1)))
    times = [(r.rows_seen, r.step) for r in records]
    assert times == sorted(times)
    assert times[-1] == (12, 6)
    assert [r.at for r in records if r.rows_seen == 0] == ["start"] * 4 + ["arrival"] * 4


def test_a_stream_can_be_run_again() -> None:
    def facts() -> list[Record]:
        records = loop(stream, Scribe(), Probe(every=2, prequential=True))
        return [record for record in records if record.metric != "seconds"]

    stream = Fixed([0, 1], [4, 4])
    assert facts() == facts()


@pytest.mark.parametrize("origins", [[0], [0, 0, 0]])
def test_every_experience_has_one_origin(origins: list[int]) -> None:
    with pytest.raises(ValueError, match="zip"):
        list(loop(Fixed(origins, [2, 2]), Scribe(), Probe()))
