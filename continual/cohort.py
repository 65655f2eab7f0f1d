"""Runs that are trained together: one forward and one backward pass for all, everything else each its own.

The parameters of all runs lie in tensors with a leading axis of runs, of which those of each run's own network are
views. So a run's memories, evaluation, snapshots and all of its strategies but for their loss work as if it were alone.
What is computed at once is the same pure loss (``continual.step.losses``) under ``vmap``, and the optimizer's step.

Each run acts in a greenlet of its own, until its learner has rows to train on; then the next one does. When all wait,
their updates are made at once. What cannot be computed together, at one update or at all, is computed one after the
other: slower, and never another result.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from copy import deepcopy
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from continual.errors import UserError
from continual.learner import SGDLearner
from continual.lifting import ApartError, DifferError
from continual.models.network import Staged
from continual.stacked import Member, Mixed, Stack, failing
from continual.step import mixed, update
from continual.stopping import Stop
from continual.types import Batch, Learner

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)

ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta")
"""Optimizers of ``torch.optim`` in which no weight's step depends on another weight."""


LARGEST = 200_000  # weights of a network up to which a cohort gains anything on a CPU: see docs/BENCHMARKS.md


class CannotJoinError(UserError):
    """A run cannot be trained together with others; nothing of it has begun."""


class Waiting(NamedTuple):
    """A run's update that waits for the others': its batch, whether its loss is looked at, its number."""

    member: Member
    batch: Batch
    check: bool
    update: int


class Cohort:
    """Trains the learners that have joined.

    Args:
        stop: what asks all of its runs to stop.

    Attributes:
        sources: of their streams, by config, so that they are in memory once.
        together, alone: steps that were computed at once with others, and those that were not.
        apart: why no two steps can be computed at once, None as long as they can.
        differ: why the last steps that could not be computed at once were not.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.members: list[Member] = []
        self.sources: dict[str, Any] = {}
        self.together = self.alone = 0
        self.apart: str | None = None
        self.differ: str | None = None
        self._waiting: list[Waiting] = []
        self._stack: Stack | None = None
        self._hub = getcurrent()

    def run(self, acts: Sequence[Callable[[], T]]) -> Generator[tuple[int, T], None, None]:
        """Let all of them act, in which learners join and learn; (place, result) of each as they end.

        When the generator is closed, or an exception passes through it, those that still act get a KeyboardInterrupt.
        """
        self._hub = getcurrent()
        fibres = dict(enumerate(greenlet(act) for act in acts))
        for fibre in fibres.values():
            fibre.gr_context = copy_context()
        try:
            while fibres:
                given = {place: fibre.switch() for place, fibre in fibres.items()}
                ended = {place: result for place, result in given.items() if fibres[place].dead}
                fibres = {place: fibre for place, fibre in fibres.items() if place not in ended}
                yield from ended.items()
                self.settle()
        finally:
            for fibre in fibres.values():
                if fibre:  # it has begun, and is not over
                    with suppress(KeyboardInterrupt):
                        fibre.throw(KeyboardInterrupt)

    def join(self, learner: Learner) -> None:
        """Take in a learner that will learn.

        Errors:
            CannotJoinError: it cannot be trained together with the others.
        """
        why = hindrance(learner, self.members[0].learner if self.members else None)
        if why or not isinstance(learner, SGDLearner):
            raise CannotJoinError(f"it cannot be trained together with others: {why}")
        member = Member(learner)
        self.members.append(member)
        learner.train = lambda batch, check: self._wait(member, batch, check)

    def _wait(self, member: Member, batch: Batch, check: bool) -> None:
        began = perf_counter()
        self._waiting.append(Waiting(member, batch, check, member.learner.view.update))
        self._hub.switch()
        member.learner.waited += perf_counter() - began
        if member.error is not None:
            raise member.error

    def settle(self) -> None:
        """Make the updates of all that wait."""
        began, waiting, self._waiting = perf_counter(), self._waiting, []
        if not waiting:
            return
        members = [one.member for one in waiting]  # all that are not over
        if self._stack is None or self._stack.members != members:
            self._stack = Stack(members)
        for left in reversed(range(waiting[0].member.learner.seams.n_repeats)):
            steps = [step for one in waiting for step in _mixed(one, again=left > 0)]
            for group in _alike(steps):
                self._step(self._stack, group)
        share = (perf_counter() - began) / len(waiting)
        for one in waiting:
            learner = one.member.learner
            if learner.scheduler and not one.member.error:
                with failing(one.member):
                    learner.scheduler.step()
            learner.waited -= share  # its part of the time is its own

    def _step(self, stack: "Stack", group: list[Mixed]) -> None:
        if len(group) > 1 and self.apart is None:
            try:
                stack.step(group)
                self.together += len(group)
                return
            except DifferError as difference:
                self.differ = str(difference)
            except ApartError as apart:
                self.apart = str(apart)
                LOGGER.warning("these runs take their steps one after the other: %s", apart)
        for one in group:
            self.alone += 1
            with failing(one.member):
                _alone(one)


def hindrance(learner: Learner, other: SGDLearner | None) -> str | None:
    """Why a learner cannot be trained together with others, or not with ``other``; None if it can."""
    if type(learner) is not SGDLearner:
        return f"a {type(learner).__name__} takes no steps of this kind"
    optimizer = type(learner.optimizer)
    n_weights = sum(p.numel() for p in learner.network.parameters())
    if learner.device.type == "cpu" and n_weights > LARGEST:
        return f"its network has {n_weights:,} weights, and above {LARGEST:,} nothing is gained on a CPU"
    if learner.growing:
        return "its head grows"
    if learner.noise is not None:
        return "its model draws random numbers in training"
    if learner.network.channels_last:
        return "train.channels_last=true is an order in memory that stacked weights have not"
    if learner.network.halves:
        return "train.precision=bf16 rounds so coarsely that it would not learn what it learns alone"
    if learner.graphs is not None:
        return "train.cuda_graphs=true records the updates of one run"
    if isinstance(learner.network.model, Staged):
        return "its model has parts of its own for each experience"
    if any(isinstance(part, nn.modules.batchnorm._NormBase) for part in learner.network.modules()):
        return "its model keeps statistics of batches"
    if kept := _kept(learner):
        return f"its model keeps {kept}, which is neither a parameter nor a fixed buffer"
    if optimizer.__name__ not in ELEMENTWISE or optimizer is not getattr(torch.optim, optimizer.__name__):
        return f"{optimizer.__name__} is none of {', '.join(ELEMENTWISE)}"
    if len(learner.optimizer.param_groups) > 1:
        return "its optimizer has several groups of parameters"
    if other is not None and _shape(learner) != _shape(other):
        return "its network, its strategies or its optimizer are not those of the others"
    return None


def _kept(learner: SGDLearner) -> str | None:
    """What a model holds that stacked weights do not: tensors of its own, buffers that a pass in train mode changes."""
    for name, module in learner.network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                return f"{name}.{key}"
    network = deepcopy(learner.network).train()
    before = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    spec = learner.spec
    with torch.no_grad():
        network(torch.zeros(2, *spec.in_shape, dtype=spec.dtype, device=learner.device))
    for name, buffer in network.named_buffers():
        live, copied = before[name]
        if buffer is not live or not torch.equal(live, copied):
            return name
    return None


def _shape(learner: SGDLearner) -> tuple[Any, ...]:
    weights = [(name, p.shape, p.dtype, p.device) for name, p in (learner.view.params | learner.view.buffers).items()]
    strategies = [(name, type(s)) for name, s in learner.strategies.items()]
    network = learner.network.halves, learner.network.channels_last, type(learner.network.model)
    return weights, network, strategies, type(learner.optimizer), learner.head.kind, learner.seams.n_repeats


def _mixed(one: Waiting, again: bool) -> Iterator[Mixed]:
    """The rows of its next step; none if it has failed."""
    learner = one.member.learner
    if one.member.error is None:
        learner.view.again, learner.view.update = again, one.update
        with failing(one.member):
            yield Mixed(one.member, *mixed(learner.view, learner.seams, one.batch, learner.augment), one.check)


def _alike(steps: Sequence[Mixed]) -> Sequence[list[Mixed]]:
    """Steps on batches of one shape."""
    groups: dict[Any, list[Mixed]] = {}
    for one in steps:
        columns = tuple((name, column.shape) for name, column in one.seen.extra.items())
        groups.setdefault((one.seen.x.shape, one.seen.arrived, columns), []).append(one)
    return list(groups.values())


def _alone(one: Mixed) -> None:
    learner = one.member.learner
    options: dict[str, Any] = {"mask": learner.head.mask, "clip": learner.clip, "check": one.check}
    update(learner.view, learner.seams, one.batch, one.seen, learner.optimizer, **options)
