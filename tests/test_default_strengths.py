"""Penalties on the weights at their default strengths, beside replay, at several batch sizes: they act, harm little.

Replay alone keeps most of what it learned, so a penalty that freezes the network shows as accuracy that is missing,
however well it forgets nothing; and one that has no strength left shows as weights that are those of replay alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import pytest
import torch
import yaml
from torch import Tensor

from continual import config as configs
from continual.batches import batches, parts
from continual.choices import conf_directory
from continual.importance import Anchored, Tensors, zeros
from continual.strategies import ewc
from continual.strategy import View
from continual.types import Experience

PENALTIES = ("ewc", "l2_anchor", "l2_init", "mas", "rwalk", "si")
SIZES = (1, 10, 128)
SHORT, LONG = 60, 150  # updates of each of 5 tasks, whatever the batch size
MARGIN = 15.0
"""Points of average accuracy below replay alone that count as harm: 8 are seen at most, 30 and more of a frozen one."""
LEAST, SPREAD = 0.003, 4.0
"""The way that a penalty turns the second task into another one, as a share of it: at least, and largest / smallest."""


@dataclass(frozen=True)
class Learned:
    """How a run ended.

    Attributes:
        accuracy: in percent, mean over the tasks after the last one.
        way: (P,) from the initial weights to those after the second task.
    """

    accuracy: float
    way: Tensor


@cache
def learned(strategies: tuple[str, ...], size: int, seed: int, updates: int, *words: str) -> Learned:
    """Class-incremental digits, 5 tasks of 2."""
    config = configs.compose(
        "experiment=split_digits", "track=none", f"strategy=[{','.join(strategies)}]", f"seed={seed}",
        f"train.batch_size={size}", f"train.iterations={updates}", *words,
    )  # fmt: skip
    stream = configs.build_stream(config)
    learner = configs.build_learner(config, stream.spec)

    def weights() -> Tensor:
        return torch.cat([p.detach().flatten() for p in learner.network.parameters()])  # type: ignore[attr-defined]

    ways, start = [], weights()
    for experience in stream:
        for _ in learner.learn(experience):
            pass
        ways.append(weights() - start)
    right = [
        float((learner.predict(batch.x).argmax(1) == batch.y).float().mean())
        for batch in (rows.take(torch.arange(len(rows))) for rows in stream.probes)
    ]
    return Learned(100 * sum(right) / len(right), ways[1])


def harm(name: str, size: int, *words: str, seeds: Iterable[int] = (0,), updates: int = SHORT) -> float:
    """Points of accuracy that replay loses by the penalty, mean over seeds."""
    lost = [
        learned(("er",), size, s, updates).accuracy - learned(("er", name), size, s, updates, *words).accuracy
        for s in seeds
    ]
    return sum(lost) / len(lost)


def effects(name: str, *words: str) -> list[float]:
    """How far from the way of replay alone the penalty leads, as a share of it, at each batch size."""
    found = []
    for size in SIZES:
        alone, held = (learned(those, size, 0, SHORT, *w).way for those, w in ((("er",), ()), (("er", name), words)))
        found.append(float((held - alone).norm() / alone.norm()))
    return found


def alike(found: list[float]) -> bool:
    return min(found) > LEAST and max(found) < SPREAD * min(found)


def test_every_penalty_with_an_anchor_is_here() -> None:
    found = []
    for file in sorted((conf_directory() / "strategy").glob("*.yaml")):
        node = yaml.safe_load(file.read_text(encoding="utf-8")).get(file.stem) or {}
        module, _, name = node.get("_target_", "builtins.object").rpartition(".")
        if issubclass(getattr(import_module(module), name), Anchored):
            found.append(file.stem)
    assert tuple(found) == PENALTIES


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_default_strength_does_not_harm_replay(name: str, size: int) -> None:
    assert harm(name, size) < MARGIN


@pytest.mark.parametrize("name", PENALTIES)
def test_a_default_strength_acts_alike_at_every_batch_size(name: str) -> None:
    assert alike(effects(name)), effects(name)


@pytest.mark.parametrize("size", SIZES)
def test_an_importance_without_a_size_of_its_own_freezes_the_network(size: int) -> None:
    """The mutant of the first law: MAS as published, cut where it would diverge."""
    assert harm("mas", size, "strategy.mas.normalize=false") > MARGIN


def test_the_square_of_a_batch_s_mean_gradient_loses_its_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant of the second law: a Fisher information that is about 1/B of the mean of squares."""
    size = 0

    def squared_means(view: View, experience: Experience, chunk: int) -> Tensors:
        found, some = zeros(view), list(parts(experience.rows, size))
        for batch in batches(experience.rows, some):
            for name, gradients in view.row_gradients(batch).items():
                found[name] += gradients.mean(0).square() / len(some)
        return found

    monkeypatch.setattr(ewc, "empirical_fisher", squared_means)
    found = []
    for size in SIZES:
        alone = learned(("er",), size, 0, SHORT).way
        found.append(float((learned.__wrapped__(("er", "ewc"), size, 0, SHORT).way - alone).norm() / alone.norm()))
    assert found[0] == effects("ewc")[0], "batches of one row: the same"
    assert not alike(found), found


@pytest.mark.long
@pytest.mark.parametrize("size", [*SIZES, 2, 32])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_default_strength_does_not_harm_replay_that_has_learned_more(name: str, size: int) -> None:
    """A penalty that does not tell weights apart costs up to 20 points here, at 128 rows an update; 53 if frozen."""
    margin = 30.0 if name.startswith("l2_") else MARGIN
    assert harm(name, size, seeds=range(3), updates=LONG) < margin
