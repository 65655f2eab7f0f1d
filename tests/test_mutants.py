"""Every law is seen to fail: a mutant written for it is caught by it, by name, and what it was made from passes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual.contract import (
    LEARNER_LAWS,
    NATIVE_LAWS,
    Brief,
    neutral_element,
    strength_acts,
)
from continual.contract.tools import moody
from continual.learner import SGDLearner
from continual.memory import Memory, Reservoir
from continual.models import linear, mlp
from continual.seeding import derive, generator
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.ewc import EWC
from continual.strategies.lwf import LwF
from continual.strategy import Strategy, View
from continual.types import Batch, Cost, Experience, Learner, Output, Stream
from scenarios.sources import gaussian
from scenarios.split import split
from scenarios.stream import IndexStream

LAWS = {law.__name__: law for law in LEARNER_LAWS + NATIVE_LAWS}


@cache
def blobs(**settings: Any) -> IndexStream:
    return split(gaussian(n_classes=6, rows_per_class=12), n_tasks=3, **settings)


def learner(
    *strategies: Callable[[], Strategy],
    kind: Callable[..., SGDLearner] = SGDLearner,
    model: Callable[..., nn.Module] = moody,
    epochs: int = 2,
) -> Callable[[], Learner]:
    """How to make a learner with these strategies."""

    def make() -> Learner:
        named = {f"s{number}": strategy() for number, strategy in enumerate(strategies)}
        return kind(model, partial(torch.optim.SGD, lr=0.1), named, spec=Brief(blobs()).spec, epochs=epochs, seed=1)

    return make


def memory(capacity: int = 12, kind: type[Memory] = Reservoir) -> Callable[..., Memory]:
    return partial(kind, capacity)


er, derpp = partial(ER, memory(), seed=1), partial(DERPP, memory(), seed=1)


# --- predict


class AnswersNan(SGDLearner):
    """Divides by the rows seen, of which there are none yet."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task) * (self.updates + self.lap) / (self.updates + self.lap)


class GrowsItsHead(SGDLearner):
    """Answers only about the classes it has seen."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task)[:, self.head.seen]


class PredictsInTrainMode(SGDLearner):
    """Forgets eval(): batch statistics and dropout in answers."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return self.network(x).logits


class CountsQuestions(SGDLearner):
    """Keeps a number that predict changes."""

    asked = 0

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        self.asked += 1
        return super().predict(x, task)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"asked": self.asked}


class CentresRows(SGDLearner):
    """Answers about each row relative to the rows beside it."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x - x.mean(0), task)


class NormalisesInPlace(SGDLearner):
    """Writes to the rows it is asked about."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x.mul_(2).div_(2).clamp_(max=1), task)


class HandsOutItsBuffer(SGDLearner):
    """Returns a tensor that it keeps and answers with again."""

    kept: Tensor | None = None

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        if self.kept is None or len(self.kept) != len(x):
            self.kept = super().predict(x, task)
        return self.kept


class AnswersWithGradient(SGDLearner):
    """Leaves out no_grad."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        with self._still():
            return self.network(x).logits


# --- learn


class CountsInItsLoss(Strategy):
    """Says that its loss is the same computation at each update, and weighs it by a number that grows."""

    steady: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self) -> None:
        self.updates = 0

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        return rows * (1 + self.updates)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.updates += 1


class SharesWithOthers(Strategy):
    """Keeps in its class what belongs to a run."""

    kept: ClassVar[dict[str, Tensor]] = {}

    def start(self, view: View) -> None:
        self.kept.clear()

    def penalty(self, view: View, params: Any, batch: Batch, out: Output) -> Tensor | float:
        return (out.logits.mean(0) - self.kept["mean"]).square().sum() if self.kept else 0.0

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.kept["mean"] = out.logits.mean(0).detach()


class WritesToTheBatch(Strategy):
    """Normalises the arrived rows in place."""

    def mix(self, view: View, batch: Batch) -> Batch:
        batch.x.sub_(batch.x.mean(0))
        return batch


class KeepsAView(Strategy):
    """Remembers the last batch itself, not a copy."""

    x = torch.zeros(0)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.x = batch.x[:2]

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x}


class CountsEveryPass(SGDLearner):
    """Yields the rows of each batch, in every epoch."""

    def learn(self, experience: Experience) -> Iterator[int]:
        for _ in super().learn(experience):
            yield self.batch_size


class CountsInFloats(SGDLearner):
    """Yields shares of the experience."""

    def learn(self, experience: Experience) -> Iterator[int]:
        return (consumed / 1 for consumed in super().learn(experience))  # type: ignore[misc]


class FreezesGradients(Strategy):
    """Zeroes what it should have projected."""

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {name: torch.zeros_like(grad) for name, grad in grads.items()}


class TrainsOnWrongTargets(Strategy):
    """Shifts the labels by one."""

    def mix(self, view: View, batch: Batch) -> Batch:
        return replace(batch, y=(batch.y + 1) % view.spec.n_classes)


class MixesUpTargets(Strategy):
    """Gives each row the label of another one."""

    def start(self, view: View) -> None:
        self.generator = generator(1, "mixed up")

    def mix(self, view: View, batch: Batch) -> Batch:
        return replace(batch, y=batch.y[torch.randperm(len(batch), generator=self.generator)])


# --- randomness


class DrawsFromTorch(ER):
    """Replays rows drawn from torch's global generator."""

    def draw(self, view: View, batch: Batch) -> Tensor:
        return torch.randperm(len(self.memory))[: self.n_replay]


class DrawsFromNumpy(Strategy):
    """Drops rows by NumPy's global generator."""

    def mix(self, view: View, batch: Batch) -> Batch:
        return replace(batch, weight=batch.weight * float(np.random.rand()))


class DrawsFromPython(Strategy):
    """Scales the loss by Python's global generator."""

    def mix(self, view: View, batch: Batch) -> Batch:
        return replace(batch, weight=batch.weight * random.random())


class Reseeds(Strategy):
    """Makes itself reproducible at everybody's expense."""

    def begin(self, view: View, experience: Experience) -> None:
        torch.manual_seed(0)


class DependsOnAddresses(Strategy):
    """Scales the loss by where an object happens to lie."""

    alive: list[object] = []  # noqa: RUF012  # so that no two of them lie at one place

    def __init__(self) -> None:
        self.alive.append(here := object())
        self.factor = 1 / (1 + id(here) % 1000003)

    def penalty(self, view: View, params: Any, batch: Batch, out: Output) -> Tensor | float:
        return self.factor * out.logits.square().mean()


class SeedsWithTheRunsSeed(ER):
    """Seeds its memory with the run's seed, as the next one does too."""

    def start(self, view: View) -> None:
        self.memory = self.make_memory(spec=view.spec, seed=self.seed)


class InitialisedLikeItsMemory(SGDLearner):
    """Draws its own noise and its strategy's from equally seeded generators."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.noise_of_inputs = torch.rand(3, generator=torch.Generator().manual_seed(derive(1, "x")))
        self.noise_of_labels = torch.rand(3, generator=torch.Generator().manual_seed(derive(1, "x")))


# --- modes and evaluation


class StaysInEvalMode(SGDLearner):
    """Answers in eval mode and forgets to go back; it trains without dropout from then on."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        logits = super().predict(x, task)
        self.network.eval()
        return logits


class TeacherInTrainMode(LwF):
    """Lets the teacher answer with dropout and batch statistics."""

    def penalty(self, view: View, params: Any, batch: Batch, out: Output) -> Tensor | float:
        if self.old is None:
            return 0.0
        with torch.no_grad():
            taught = view.forward(self.teacher, batch.x).logits
        return (out.logits - taught).square().mean()


class TeacherInTrainModeWithGradient(LwF):
    """The same, and detaches only afterwards."""

    def penalty(self, view: View, params: Any, batch: Batch, out: Output) -> Tensor | float:
        if self.old is None:
            return 0.0
        return (out.logits - view.forward(self.teacher, batch.x).logits.detach()).square().mean()


class DrawsWhenAsked(ER):
    """Takes a draw for every question from the generator that it trains with."""

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        self.memory.draw(1)
        return out.logits


class ChargesForQuestions(SGDLearner):
    """Counts evaluation as a cost of learning."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        self.spent += len(x)
        return super().predict(x, task)


# --- resume, memory, bytes


class ForgetsItsAnchor(EWC):
    """Stores the importances and not where they point to."""

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.anchor = {name: torch.zeros_like(tensor) for name, tensor in self.anchor.items()}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state | {"anchor": {name: torch.zeros_like(tensor) for name, tensor in state["anchor"].items()}}


class ForgetsItsGenerator(ER):
    """Stores the rows and not the generator that draws them."""

    def load_state_dict(self, state: Any) -> None:
        fresh = self.memory.generator.get_state()
        super().load_state_dict(state)
        self.memory.generator.set_state(fresh)


class StartsTheEpochAgain(SGDLearner):
    """Forgets how many updates of the experience are done."""

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**state, "updates": 0})


class Hoards(Strategy):
    """Keeps every row, and stores it."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.rows.append(batch.x.clone())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}


class HoardsInSecret(Hoards):
    """Keeps every row, outside of its state."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class HoardsNumbers(HoardsInSecret):
    """Keeps every row as a list of Python's own numbers."""

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.rows.append(batch.x.tolist())


class OneTeacherPerExperience(Strategy):
    """Keeps the weights at the end of every experience, by its index."""

    def __init__(self) -> None:
        self.teachers: dict[int, dict[str, Tensor]] = {}

    def end(self, view: View, experience: Experience) -> None:
        self.teachers[experience.index] = view.copy()

    def state_dict(self) -> dict[str, Any]:
        return {"teachers": self.teachers}


class KeepsABatchInSecret(Strategy):
    """Keeps the last batch outside of its state; bounded, and not declared."""

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.last = batch.x.clone()


class KeepsTheGraph(Strategy):
    """Keeps the last logits with all that they were computed from."""

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.last = out.logits

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last.detach() if hasattr(self, "last") else None}


class KeepsALargeStorage(Strategy):
    """Declares two rows, and keeps the whole batch alive through them."""

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.last = batch.x.clone()[:2]

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last if hasattr(self, "last") else None}


class CountsTwice(SGDLearner):
    """Declares more than it holds."""

    def cost(self) -> Cost:
        cost = super().cost()
        return replace(cost, bytes=2 * cost.bytes)


class GrowsOutOfSightOfItsOptimizer(SGDLearner):
    """New rows of the head are never trained."""

    def _adopt(self) -> None:
        held = list(self.optimizer.param_groups[0]["params"])
        super()._adopt()
        self.optimizer.param_groups[0]["params"] = held


class GrowsOutOfSightOfItsStrategies(SGDLearner):
    """New rows of the head are trained, and no penalty ever holds them."""

    def _adopt(self) -> None:
        known = dict(self.view.params)
        super()._adopt()
        self.view.params = known


class RegistersTwice(SGDLearner):
    """Once for the experience, once for the class."""

    def _adopt(self) -> None:
        super()._adopt()
        params = self.optimizer.param_groups[0]["params"]
        params.append(params[-1])


class AsksToGrow(SGDLearner):
    """Makes rows for a class when it is first asked about."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        assert self.growing is not None
        with torch.inference_mode(False):
            self.growing.admit(list(blobs())[-1].rows, None)
            self.growing.select(None)
            self._adopt()
        return super().predict(x, task)


class DrawsRowsFromTorch(SGDLearner):
    """Initial values of new rows come from the global generator."""

    def _adopt(self) -> None:
        before = set(self.view.params)
        super()._adopt()
        for name in self.view.params.keys() - before:
            self.view.params[name].data.normal_()


@dataclass(frozen=True)
class Mutant:
    """What breaks a law, and what it was made from, which does not."""

    law: str
    broken: Callable[[], Learner]
    sound: Callable[[], Learner]
    name: str


WITH_ER, WITH_DERPP, WITH_LWF, WITH_EWC = (learner(s) for s in (er, derpp, LwF, EWC))


def of_kind(law: str, *kinds: type[SGDLearner]) -> list[Mutant]:
    """Mutants of the learner itself."""
    return [Mutant(law, learner(er, kind=kind), WITH_ER, kind.__name__) for kind in kinds]


def of_growth(law: str, *kinds: type[SGDLearner]) -> list[Mutant]:
    """Mutants of a learner whose head grows."""
    sound, *broken = (learner(er, kind=partial(kind, head="growing"), model=mlp) for kind in (SGDLearner, *kinds))
    return [Mutant(law, make, sound, kind.__name__) for make, kind in zip(broken, kinds, strict=True)]


def of_strategy(law: str, sound: Callable[[], Learner], *kinds: type[Strategy]) -> list[Mutant]:
    """Mutants of a strategy of the learner."""
    made = [
        partial(kind, memory(), seed=1) if isinstance(kind, type) and issubclass(kind, ER) else kind for kind in kinds
    ]
    return [Mutant(law, learner(make), sound, kind.__name__) for make, kind in zip(made, kinds, strict=True)]


twice = partial(SeedsWithTheRunsSeed, memory(), seed=1)
from_torch = partial(DrawsFromTorch, memory(), seed=1)  # with dropout, a learner has a global generator of its own
LEARNERS = [
    *of_kind("predict_before_learn", AnswersNan, GrowsItsHead),
    *of_kind("predict_is_pure", PredictsInTrainMode, CountsQuestions, CentresRows, NormalisesInPlace),
    *of_kind("predict_is_pure", HandsOutItsBuffer, AnswersWithGradient),
    *of_strategy("learn_leaves_the_experience_alone", WITH_ER, WritesToTheBatch, KeepsAView),
    *of_kind("learn_counts_its_rows", CountsEveryPass, CountsInFloats),
    *(
        Mutant("it_learns", learner(kind, epochs=20), learner(Strategy, epochs=20), kind.__name__)
        for kind in (FreezesGradients, TrainsOnWrongTargets, MixesUpTargets)
    ),
    Mutant("seed_decides_everything", learner(from_torch, model=linear), WITH_ER, DrawsFromTorch.__name__),
    Mutant("seed_decides_everything", learner(Reseeds, model=linear), WITH_ER, Reseeds.__name__),
    *of_strategy("seed_decides_everything", WITH_ER, DrawsFromNumpy, DrawsFromPython, DependsOnAddresses),
    Mutant("generators_differ", learner(twice, twice), learner(er, derpp), SeedsWithTheRunsSeed.__name__),
    *of_kind("generators_differ", InitialisedLikeItsMemory),
    *of_kind("modes_are_restored", StaysInEvalMode, PredictsInTrainMode),
    *of_strategy("modes_are_restored", WITH_LWF, TeacherInTrainMode, TeacherInTrainModeWithGradient),
    *of_strategy("evaluation_changes_nothing", WITH_ER, DrawsWhenAsked),
    *of_kind("evaluation_changes_nothing", ChargesForQuestions, StaysInEvalMode),
    *of_strategy("resume_is_exact", WITH_EWC, ForgetsItsAnchor),
    *of_strategy("resume_is_exact", WITH_ER, ForgetsItsGenerator),
    *of_kind("resume_is_exact", StartsTheEpochAgain),
    *of_strategy("memory_is_bounded", WITH_ER, Hoards, HoardsInSecret, HoardsNumbers, OneTeacherPerExperience),
    *of_strategy("bytes_are_declared", WITH_DERPP, KeepsABatchInSecret, HoardsInSecret, KeepsTheGraph),
    *of_strategy("bytes_are_declared", WITH_DERPP, KeepsALargeStorage),
    *of_kind("bytes_are_declared", CountsTwice),
    *of_growth(
        "all_weights_are_trained", GrowsOutOfSightOfItsOptimizer, GrowsOutOfSightOfItsStrategies, RegistersTwice
    ),
    Mutant(
        "a_member_equals_a_run_alone",
        learner(SharesWithOthers, model=linear),
        learner(LwF, model=linear),
        SharesWithOthers.__name__,
    ),
    Mutant(
        "replayed_is_computed",
        learner(CountsInItsLoss, model=linear),
        learner(LwF, model=linear),
        CountsInItsLoss.__name__,
    ),
    *of_growth("predict_is_pure", AsksToGrow),
    *of_growth("evaluation_changes_nothing", AsksToGrow),
    *of_growth("seed_decides_everything", DrawsRowsFromTorch),
]


@cache
def passes(law: str, sound: Callable[[], Learner]) -> None:
    """The law holds; tried once for all mutants that were made from ``sound``."""
    LAWS[law](sound, begin)


def begin() -> Stream:
    return Brief(blobs())


@pytest.mark.parametrize("mutant", LEARNERS, ids=lambda mutant: f"{mutant.law}-{mutant.name}")
def test_a_wrong_learner_is_caught(mutant: Mutant) -> None:
    passes(mutant.law, mutant.sound)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):  # in words
        LAWS[mutant.law](mutant.broken, begin)


def test_every_law_of_learners_has_a_mutant() -> None:
    assert {mutant.law for mutant in LEARNERS} == set(LAWS)


class DrawsForNothing(ER):
    """With nothing to replay it still scales the loss."""

    def mix(self, view: View, batch: Batch) -> Batch:
        batch = super().mix(view, batch)
        return replace(batch, weight=batch.weight * 0.99)


class AliasedAnchor(EWC):
    """Its anchor is the live weights, so that nothing is ever away from it."""

    def end(self, view: View, experience: Experience) -> None:
        super().end(view, experience)
        self.anchor = dict(view.params)


class NeverReplays(ER):
    """Remembers, and forgets to replay."""

    def mix(self, view: View, batch: Batch) -> Batch:
        return batch


OFF = [(DrawsForNothing, ER, {"memory": memory(), "n_replay": 0})]
ON = [(AliasedAnchor, EWC, {"strength": 1000.0}), (NeverReplays, ER, {"memory": memory()})]


@pytest.mark.parametrize(
    ("law", "broken", "sound", "settings"), [*((neutral_element, *m) for m in OFF), *((strength_acts, *m) for m in ON)]
)
def test_a_wrong_strength_is_caught(law: Any, broken: Any, sound: Any, settings: dict[str, Any]) -> None:
    law(learner(partial(sound, **settings)), learner(), begin)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        law(learner(partial(broken, **settings)), learner(), begin)
