"""Laws that bind our own learners only: foreign ones have no steps to resume from, and their snapshots grow."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from continual import snapshot
from continual.contract.recorded import replayed_is_computed
from continual.contract.together import a_member_equals_a_run_alone
from continual.contract.tools import LearnerLaw, MakeLearner, MakeStream, answers, fingerprint, run_through
from continual.reach import Reach, reach
from continual.types import Experience, Learner

Stops = Callable[[list[tuple[int, int]]], Iterable[tuple[int, int]]]
"""Chooses among all (experience, updates made in it) at which a run can be stopped."""

SLACK = 1024  # bytes that counters and the growth of Python's containers may take


def three(stops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Before the end of the first experience is dealt with, before the second one begins, and amid the last one."""
    first, last = stops[0][0], stops[-1][0]
    ends = max(stop for stop in stops if stop[0] == first)
    amid = [stop for stop in stops if stop[0] == last]
    return sorted({ends, min([stop for stop in stops if stop[0] > first], default=ends), amid[len(amid) // 2]})


def every(stops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """All of them, for the long version."""
    return stops


def resume_is_exact(make_learner: MakeLearner, make_stream: MakeStream, stops: Stops = three) -> None:
    """Stopped between any two updates, stored, and loaded into a fresh learner, it ends bit for bit the same."""
    stream = make_stream()
    whole_run = make_learner()
    states = {at: fingerprint(whole_run) for at in _updates(whole_run, stream)}
    ends, said = fingerprint(whole_run), answers(whole_run, stream)
    for index, update in stops(list(states)):
        learner = make_learner()
        learner.load_state_dict(snapshot.loads(states[index, update]))
        where = f"stopped after update {update} of experience {index} and resumed"
        assert fingerprint(learner) == states[index, update], f"{where}: what was loaded is not what was stored"
        run_through(learner, stream, first=index)
        told = f"{where}, it ends elsewhere than a run that was not stopped"
        assert fingerprint(learner) == ends, f"{told}: {_differing(learner, whole_run)} differ; is a state not stored?"
        assert torch.equal(answers(learner, stream), said), f"{told}: its answers differ; is a state not stored?"


def memory_is_bounded(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """A learner stops growing: after four laps it holds, and stores, no more than after two."""
    learner, stream, numbers = make_learner(), make_stream(), count()
    sizes, held = [], []
    for _ in range(4):
        for experience in stream:
            numbered = replace(experience, index=next(numbers))  # a lap is no excuse for one thing per experience
            for _ in learner.learn(numbered):
                pass
        answers(learner, stream)
        sizes.append(len(fingerprint(learner)))
        found = reach(learner)
        held.append(sum(found.storages.values()) + found.other_bytes)
    assert sizes[3] <= sizes[1] + SLACK, f"the snapshot grows from lap to lap: {sizes} bytes; bound what is kept"
    assert held[3] <= held[1] + SLACK, f"the learner grows from lap to lap outside of its snapshot: {held} bytes"


def bytes_are_declared(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """cost().bytes is what the learner holds when it has learned and was not asked yet.

    Measured: every distinct storage of a tensor or array that can be reached from the learner, without gradients
    (``.grad``), generators' states (whatever its state keeps under a key ``generator``) and what belongs to the stream
    or to the current experience. What ``predict`` derives and the next ``learn`` drops does not count.
    """
    learner, stream = make_learner(), make_stream()
    for experience in stream:
        for _ in learner.learn(experience):
            pass
        found = reach(learner)
        assert not found.with_history, "the learner keeps a tensor with the graph of its backward pass; detach it"
        measured, declared = _own_bytes(found, learner, stream, experience), learner.cost().bytes
        more = "holds more than it declares; is something missing from its state?"
        less = "declares more than it holds; is a tensor counted twice?"
        told = f"after experience {experience.index}, cost().bytes is {declared} and {measured} bytes were found"
        assert measured == declared, f"{told}: it {more if measured > declared else less}"


def all_weights_are_trained(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """Each weight that a network wants trained is known, once, to the optimizer and to the strategies, and so stays.

    Of learners that have a ``network``, an ``optimizer`` and a ``view``; asked after each experience.
    """
    learner: Any = make_learner()
    if not all(hasattr(learner, part) for part in ("network", "optimizer", "view")):
        return
    for experience in make_stream():
        for _ in learner.learn(experience):
            pass
        wanted = {name: p for name, p in learner.network.named_parameters() if p.requires_grad}
        held = [id(p) for group in learner.optimizer.param_groups for p in group["params"]]
        for name, p in wanted.items():
            times = held.count(id(p))
            assert times == 1, f"the optimizer holds {name} {times} times; register what comes into being later"
            assert learner.view.params.get(name) is p, f"view.params lacks {name}: strategies will never meet it"


NATIVE_LAWS: tuple[LearnerLaw, ...] = (
    resume_is_exact,
    memory_is_bounded,
    bytes_are_declared,
    all_weights_are_trained,
    a_member_equals_a_run_alone,
    replayed_is_computed,
)
"""They bind our own learners."""


def _own_bytes(found: Reach, learner: Learner, *foreign: object) -> int:
    lent = reach(*foreign).storages.keys()
    states = {t.untyped_storage().data_ptr() for t in _generator_states(learner.state_dict())}
    return sum(size for address, size in found.storages.items() if address not in lent and address not in states)


def _generator_states(state: Any, inside: bool = False) -> Iterator[Tensor]:
    if isinstance(state, Tensor) and inside:
        yield state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _generator_states(value, inside or key == "generator")
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _generator_states(value, inside)


def _updates(learner: Learner, stream: Iterable[Experience]) -> Iterator[tuple[int, int]]:
    """Learn; (experience, updates made in it) before the first update of each experience and after each update."""
    for experience in stream:
        yield experience.index, 0
        for update, _ in enumerate(learner.learn(experience), start=1):
            yield experience.index, update


def _differing(one: Learner, other: Learner) -> str:
    """Top-level keys of two snapshots whose values differ."""
    a, b = one.state_dict(), other.state_dict()
    wrong = [key for key in {**a, **b} if snapshot.dumps(a.get(key)) != snapshot.dumps(b.get(key))]
    return ", ".join(map(str, wrong)) or "no keys"
