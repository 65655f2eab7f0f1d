"""The weights of several runs in tensors with a leading axis, and one step of all of them (``continual.cohort``)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from continual.errors import DivergedError
from continual.learner import SGDLearner
from continual.lifting import ApartError, Lift, NeedsError, Stacks
from continual.optim.eager import eager
from continual.step import backward_apart, check_finite, direct, losses, pull, remember
from continual.strategy import Seams, Weights
from continual.types import Batch, Output


@dataclass(eq=False)
class Member:
    """A run in a cohort: its learner, and what went wrong in its last update."""

    learner: SGDLearner
    error: Exception | None = None


class Mixed(NamedTuple):
    """The rows of one step of a run, as memories see them and as the network does."""

    member: Member
    batch: Batch
    seen: Batch
    check: bool


class Stack:
    """The weights of several members in tensors (M, ...), and how a step of several is computed."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members, self.places = members, {id(member): place for place, member in enumerate(members)}
        views = [member.learner.view for member in members]
        self.params = {name: _shared([view.params[name] for view in views]) for name in views[0].params}
        self.buffers = {name: _shared([view.buffers[name] for view in views]) for name in views[0].buffers}
        for p in self.params.values():
            p.requires_grad_()
        self.optimizers = [Part(self.params, first, part) for first, part in _equally_set(members)]
        self.stacks: Stacks = {}
        self.wanted: set[str] = set()

    def step(self, group: Sequence[Mixed]) -> None:
        """The step of several members, on batches of one shape.

        Errors:
            ApartError: it cannot be computed for these at once; nothing has changed.
        """
        places = [self.places[id(one.member)] for one in group]
        whole = len(places) == len(self.members)
        params = self.params if whole else {n: p.detach()[places].requires_grad_() for n, p in self.params.items()}
        buffers = self.buffers if whole else {n: b[places] for n, b in self.buffers.items()}
        found = self._found(group, params, buffers, self.stacks if whole else {})
        finite = _finite(group, found.loss + found.penalty)

        for p in params.values():
            p.grad = None
        rows, seams = len(group[0].batch), group[0].member.learner.seams
        task_gradient: dict[str, Tensor] = {}
        try:
            if seams.needs_task_gradient:
                task_gradient, passed = backward_apart(params, found.out, found.loss.sum(), found.penalty.sum())
                found.spent.append(2 * rows * passed)
            else:
                (found.loss + found.penalty).sum().backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # whose it is shows when they step one by one
            raise ApartError(" ".join(str(error).split())) from error
        others = self._pull(group, params, finite) if seams.pull else {}
        self._follow(group, params, finite, whole, others)
        out = Output(found.out.logits.detach(), None if found.out.features is None else found.out.features.detach())
        for row, one in enumerate(group):
            if finite[row]:
                learner = one.member.learner
                learner.view.charge(sum(found.spent) + 2 * rows)
                learner.view.task_gradient = {name: g[row] for name, g in task_gradient.items()}
                with failing(one.member):
                    remember(learner.view, learner.seams, one.batch, _of(out, row))

    def _found(self, group: Sequence[Mixed], params: Weights, buffers: Weights, stacks: Stacks) -> "Found":
        while True:
            try:
                return _losses(group, params, buffers, Lift(stacks, self.wanted))
            except NeedsError as needs:  # so that only what a loss reads is stacked
                self.wanted.add(needs.path)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ApartError(" ".join(str(error).split())) from error

    def _pull(self, group: Sequence[Mixed], params: Weights, finite: Sequence[bool]) -> dict[int, dict[str, Tensor]]:
        """Let strategies add to each member's part of the gradients of ``params``; by row, those of other weights."""
        others: dict[int, dict[str, Tensor]] = {}
        for row, one in enumerate(group):
            own = one.member.learner.view.params
            if finite[row]:
                with failing(one.member), _gradients(one.member.learner, params, row):
                    pull(one.member.learner.view, one.member.learner.seams)
                    new = {name: own[name].grad for name, p in params.items() if p.grad is None}
                    others[row] = {name: gradient for name, gradient in new.items() if gradient is not None}
        return {row: gradients for row, gradients in others.items() if gradients}

    def _follow(
        self,
        group: Sequence[Mixed],
        params: Weights,
        finite: Sequence[bool],
        whole: bool,
        others: Mapping[int, Weights],
    ) -> None:
        """Step along the gradients of ``params``: at once where nothing but the optimizers act on them."""
        learner = group[0].member.learner
        if whole and all(finite) and not learner.seams.project and not learner.clip and not others:
            for part in self.optimizers:
                part.step()
            return
        for row, one in enumerate(group):
            if finite[row]:
                own = one.member.learner
                with failing(one.member), _gradients(own, params, row):
                    for name, gradient in others.get(row, {}).items():
                        own.view.params[name].grad = gradient
                    direct(own.view, own.seams, one.seen, own.clip)
                    own.optimizer.step()


class Transposed(TorchFunctionMode):
    """Linear layers as (w x^T)^T: then neither stacked weights nor their gradients are copied into another order."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is linear and args[0].dim() == 2:
            x, weight, *bias = *args, *(kwargs or {}).values()
            out = (weight @ x.T).T
            return out if not bias or bias[0] is None else out + bias[0]
        return func(*args, **(kwargs or {}))


class Found(NamedTuple):
    """Of each member: its task loss (M,), the sum of its penalties (M,), its answers; and what one has spent."""

    loss: Tensor
    penalty: Tensor
    out: Output
    spent: list[float]


def _losses(group: Sequence[Mixed], params: Weights, buffers: Weights, lift: Lift) -> Found:
    """``continual.step.losses`` for all of them under one ``vmap``, gradients flowing to ``params``."""
    learners = [one.member.learner for one in group]
    first, seen = learners[0], [one.seen for one in group]
    derived = {*first.seams.penalty} - {*first.seams.pull}
    acting = {*first.seams.mask, *first.seams.rows, *derived}
    weights = {name: lift.put(p) for name, p in params.items()}
    beside = {name: lift.put(b) for name, b in buffers.items()}
    columns = {
        name: lift.add([getattr(b, name) for b in seen], f"batch.{name}") for name in ("x", "y", "weight", "extra")
    }
    rate = lift.add([learner.view.lr() for learner in learners], "view.lr")
    head = lift.add_object([learner.head for learner in learners], "head")
    strategies = {
        name: lift.add_object([learner.strategies[name] for learner in learners], f"strategy.{name}")
        for name, s in first.strategies.items()
        if s in acting
    }
    spent: list[float] = []

    def forward(weights: Weights, x: Tensor) -> Output:
        spent.append(len(x))
        with Transposed():
            out: Output = functional_call(first.network, dict(weights), (x,))
        return out

    def answer(weights: Weights, x: Tensor) -> Output:
        with first.view.still(), torch.no_grad():
            return forward(weights, x)

    def taken(parts: Mapping[str, Any], given: Sequence[Tensor]) -> dict[str, Any]:
        return {name: part(given) for name, part in parts.items()}

    view = lift.add_object(
        [learner.view for learner in learners],
        "view",
        {
            "params": lambda given: taken(weights, given),
            "buffers": lambda given: taken(beside, given),
            "forward": lambda given: lambda weights, x: forward({**weights, **taken(beside, given)}, x),
            "answer": lambda _given: answer,
            "charge": lambda _given: spent.append,
            "lr": lambda given: lambda: rate(given),
        },
    )
    tells_features = False

    def one(*given: Tensor) -> tuple[Tensor, ...]:
        nonlocal tells_features
        spent.clear()
        own, seams = view(given), Seams(taken(strategies, given))
        batch = Batch(arrived=seen[0].arrived, **taken(columns, given))
        loss, penalties, out = losses(own, seams, own.params, batch, head(given).mask)
        total = loss.new_zeros(())
        for penalty in penalties:
            total = total + penalty
        tells_features = out.features is not None
        return loss, total, out.logits, *([out.features] if out.features is not None else [])

    loss, penalty, *out = vmap(one)(*lift.tensors)
    return Found(loss, penalty, Output(*out), spent)


class Part:
    """Members beside each other whose optimizers have equal settings: one optimizer steps for all of them."""

    def __init__(self, params: Weights, first: int, members: Sequence[Member]) -> None:
        self.params, self.first, self.learners = params, first, [member.learner for member in members]
        self.rows = slice(first, first + len(members))
        self.leaves = {name: p.detach()[self.rows].requires_grad_() for name, p in params.items()}
        self.one: torch.optim.Optimizer | None = None
        self.counts: dict[str, Tensor] = {}  # (M,) by name of a weight: steps that were made on it

    def step(self) -> None:
        """Along the gradients of the stacked parameters."""
        if self.one is None or not self._agree(self.one):
            for row, learner in enumerate(self.learners, start=self.first):
                with _gradients(learner, self.params, row):
                    learner.optimizer.step()
            self.one = self.one or self._joined()  # what their optimizers keep has come into being by now
            return
        for name, leaf in self.leaves.items():
            gradient = self.params[name].grad
            leaf.grad = None if gradient is None else gradient[self.rows]
        self.one.step()
        for count in self.counts.values():
            count.add_(1)

    def _agree(self, one: torch.optim.Optimizer) -> bool:
        """Whether settings and numbers of steps of all are equal now; then ``one`` has them, too."""
        if self.learners[0].scheduler:
            now = [_settings(learner) for learner in self.learners]
            if any(other != now[0] for other in now):
                return False
            one.param_groups[0].update(now[0])
        if any(not bool((count == count[0]).all()) for count in list(self.counts.values())[:1]):
            return False
        for name, count in self.counts.items():
            one.state[self.leaves[name]]["step"].copy_(count[0])
        return True

    def _joined(self) -> torch.optim.Optimizer | None:
        """An optimizer of the stacked weights, of whose state that of each member is a part; None if there is none."""
        if any(p.grad is None for p in self.params.values()):
            return None  # its state may come into being later
        one = eager(lambda: deepcopy(self.learners[0].optimizer))
        one.state.clear()
        one.param_groups[0]["params"] = list(self.leaves.values())
        for name, leaf in self.leaves.items():
            kept = [o.optimizer.state.get(o.view.params[name], {}) for o in self.learners]
            if any(state.keys() != kept[0].keys() for state in kept):
                return None
            for key, value in kept[0].items():
                if not isinstance(value, Tensor):
                    one.state[leaf][key] = value
                    continue
                stacked = torch.stack([state[key] for state in kept])
                for state, own in zip(kept, stacked.unbind(), strict=True):
                    state[key] = own
                one.state[leaf][key] = stacked if key != "step" else value.clone()
                if key == "step":
                    self.counts[name] = stacked
        return one


def _settings(learner: SGDLearner) -> dict[str, Any]:
    return {name: value for name, value in learner.optimizer.param_groups[0].items() if name != "params"}


def _equally_set(members: Sequence[Member]) -> Iterator[tuple[int, Sequence[Member]]]:
    """(place of the first, members) of all that stand beside each other and have equal settings."""
    first = 0
    for place in range(1, len(members) + 1):
        if place == len(members) or _settings(members[place].learner) != _settings(members[first].learner):
            yield first, members[first:place]
            first = place


def _shared(tensors: Sequence[Tensor]) -> Tensor:
    """All of them in one tensor (M, ...), of which they are views from now on."""
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, own in zip(tensors, stacked.unbind(), strict=True):
        tensor.data = own
    return stacked


def _finite(group: Sequence[Mixed], total: Tensor) -> list[bool]:
    """Whose loss is finite, or was not looked at; the others fail."""
    if not any(one.check for one in group):
        return [True] * len(group)
    values = total.tolist()
    for one, value in zip(group, values, strict=True):
        if isfinite(value):
            one.member.learner.view.last_loss = value
        else:
            with failing(one.member):
                _tell(one)
    return [isfinite(value) for value in values]


def _tell(one: Mixed) -> None:
    """Raise what a loss that is not finite raises in a run alone."""
    learner = one.member.learner
    view, seams, mask = learner.view, learner.seams, learner.head.mask
    loss, penalties, _ = losses(view, seams, view.params, one.seen, mask)
    check_finite(view, seams, one.seen, mask, penalties, loss + sum(penalties))
    raise DivergedError(f"the loss is not finite at update {view.update} of experience {view.experience}")


def _of(out: Output, row: int) -> Output:
    return Output(out.logits[row], None if out.features is None else out.features[row])


@contextmanager
def _gradients(learner: SGDLearner, params: Weights, row: int) -> Iterator[None]:
    """Within it, its parameters have their part of the gradients of ``params``."""
    for name, p in learner.view.params.items():
        gradient = params[name].grad
        p.grad = None if gradient is None else gradient[row]
    try:
        yield
    finally:
        for p in learner.view.params.values():
            p.grad = None


@contextmanager
def failing(member: Member) -> Iterator[None]:
    """What goes wrong within it is this run's affair."""
    try:
        yield
    except Exception as error:
        member.error = error
