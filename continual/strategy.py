"""The seams of one training step at which a strategy may act, and what it may read there."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from continual.models.units import Hidden
from continual.types import Batch, Experience, Output, Spec

Weights = Mapping[str, Tensor]


class View:
    """What a strategy may read and call. The learner keeps it up to date; strategies never write to it.

    Attributes:
        spec: what is known about the stream.
        params, buffers: the network's live tensors by name.
        classes: (n_classes,) bool, classes that have arrived so far (the current batch included).
        experience: index of the current experience.
        task: its task label, None unless the stream is task-aware.
        fetch: inputs (B, *in_shape) of stream rows by their ids, for memories that store indices.
        forward: (params, x) -> Output in train mode, differentiable; params may be any weights of equal shape.
        answer: (weights, x) -> Output in eval mode without gradient; weights hold parameters and buffers.
        loss: (params, batch) -> scalar task loss, penalties not included.
        plain_loss: the same as if there were no strategies: cross-entropy under the head's mask.
        competing: (batch) -> (B, C) bool, classes that the head lets compete in each row; None for all.
        charge: (forward_equivalents) adds to the learner's cost what it cannot see being spent.
        watch: (name, what, loss) stops the run if the ``loss`` of what strategy ``name`` trains by itself is not
            finite, at updates at which losses are looked at; ``what`` says which loss, e.g. "of its generator".
        lr: () -> learning rate of the first parameter group now.
        still: () -> context within which the network is in eval mode.
        replace: (weights, forget=None) writes new values of some parameters, in no step of the optimizer; where
            ``forget`` (bool, by name, of a parameter's shape) is True, what the optimizer keeps becomes 0.
        units: () -> the network's hidden layers (``continual.models.units``); UserError if they cannot be told apart.
        activations: (x) -> activations (B, U, ...) of each of these layers in eval mode; costs a forward a row.
        n_features: width F of the network's features, None if it tells none.
        task_gradient: gradient of this step's task loss without penalties, while ``needs_task_gradient``.
        update: updates made before in this experience.
        again: whether this update will make a further step on the same arrived rows; memories wait for the last one.
        last_loss: the last finite loss, None before the first one.
        last_own: that of what a strategy trains by itself, by the strategy's name.
    """

    spec: Spec
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    classes: Tensor
    experience: int = 0
    task: int | None = None
    fetch: Callable[[Tensor], Tensor]
    forward: Callable[[Weights, Tensor], Output]
    answer: Callable[[Weights, Tensor], Output]
    loss: Callable[[Weights, Batch], Tensor]
    plain_loss: Callable[[Weights, Batch], Tensor]
    competing: Callable[[Batch], Tensor | None]
    charge: Callable[[float], None]
    watch: Callable[[str, str, Tensor], None]
    lr: Callable[[], float]
    still: Callable[[], AbstractContextManager[None]]
    replace: Callable[..., None]
    units: Callable[[], Sequence[Hidden]]
    activations: Callable[[Tensor], list[Tensor]]
    n_features: int | None = None
    task_gradient: Mapping[str, Tensor] = MappingProxyType({})
    update: int = 0
    again: bool = False
    last_loss: float | None = None

    def __init__(self) -> None:
        self.last_own: dict[str, float] = {}

    def copy(self) -> dict[str, Tensor]:
        """A frozen copy of all weights, parameters and buffers, for a teacher: ``view.answer(copy, x)``."""
        return {name: tensor.detach().clone() for name, tensor in (self.params | self.buffers).items()}

    def gradient(self, batch: Batch) -> dict[str, Tensor]:
        """Gradient of the task loss of ``batch`` without touching ``.grad``; costs a forward and a backward."""
        return self.loss_and_gradient(batch)[1]

    def loss_and_gradient(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same behind the loss itself."""
        names, params = zip(*self.params.items(), strict=True)
        loss = self.loss(self.params, batch)
        gradients = torch.autograd.grad(loss, params, materialize_grads=True, allow_unused=True)
        self.charge(2 * len(batch))
        return loss, dict(zip(names, gradients, strict=True))

    def row_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Gradient (B, *shape) of each row's own plain loss, in eval mode; costs a forward and a backward a row.

        Strategies do not act in it: their masks and losses are made for batches (ER-ACE's mask would
        leave a single row no class but its own, and no gradient).
        """

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            row = replace(batch, x=x[None], y=y[None], weight=one, arrived=1, extra={})
            return self.plain_loss(params, row)

        params = {name: p.detach() for name, p in self.params.items()}
        x, y = batch.x.to(self.classes.device), batch.y.to(self.classes.device)
        one = batch.weight.new_ones(1, device=x.device)
        with self.still():
            gradients: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
        self.charge(3 * len(batch) - 1)  # the one traced forward has charged its row
        return {name: g.contiguous() for name, g in gradients.items()}  # of a parameter without part: one row, expanded


class Strategy:
    """Override the seams that you need; every default is the identity.

    The step calls them in this order (``continual.step``)::

        extra(spec, n_features)                        once: a network to be trained beside the model
        start(view)                                    once, before the first row
        begin(view, experience)                        before the first step of an experience
            batch   = mix(view, batch)                 data: append replayed rows behind the arrived ones
            mask    = mask(view, batch, mask)          (B, C) bool: which classes compete in each row
            rows    = rows(view, batch, out, rows)     (B,) loss of each row
            total  += penalty(view, params, batch, out)
            pull(view, grads)                          after backward, where a penalty's gradient is known already
            grads   = project(view, grads, batch)      then, before the optimizer
            after_step(view, batch, out)               remember batch[:batch.arrived]; out is of this step
        end(view, experience)                          after the last step of an experience
        logits = predict(view, x, out, task)           at prediction, in eval mode, without gradient

    A strategy receives what it may read and returns what it changes. It never sees the learner, so
    two strategies can only meet in the order in which they are listed. In mask, rows, penalty and
    project: no boolean indexing, no ``.item()``, no data-dependent shape; drop rows by weight.
    """

    needs_boundaries: ClassVar[bool] = False
    """True if ``begin`` and ``end`` make sense only at real task boundaries."""

    needs_tasks: ClassVar[bool] = False
    """True if it asks which task a row is of, in training and in prediction."""

    needs_features: ClassVar[bool] = False
    """True if it reads ``out.features``."""

    replaces_loss: ClassVar[bool] = False
    """True if ``rows`` puts another loss in the place of the one it is given: two of these cannot be stacked."""

    replaces_answers: ClassVar[bool] = False
    """True if ``predict`` puts other logits in the place of those it is given: two of these cannot be stacked."""

    steady: ClassVar[tuple[str, ...] | None] = None
    """Whether its part of an update can be recorded (``train.cuda_graphs``): within an experience, mask, rows, penalty
    and pull are the same computation on the same tensors, which change in place only, and on the attributes named here,
    tensors or None, that ``mix`` sets anew; ``batch.extra`` is empty there. None if that is not so, or not known."""

    needs_task_gradient: bool = False
    """True, before ``start``, if ``after_step`` reads ``view.task_gradient``; a penalty then costs a backward more."""

    n_repeats: int = 1
    """Steps that the learner makes on each batch that arrives; of several strategies the largest counts."""

    def clash(self, other: "Strategy") -> str | None:
        """Why this makes no sense beside ``other``, as the end of a sentence; None if it does."""
        for what, flag in (("the loss", "replaces_loss"), ("the answers", "replaces_answers")):
            if getattr(self, flag) and getattr(other, flag):
                return f"both decide {what}, and only the last one would count"
        return None

    def extra(self, spec: Spec, n_features: int | None) -> nn.Module | None:
        """A network that is trained beside the model, by the same optimizer, e.g. a projection of its features."""
        return None

    def start(self, view: View) -> None:
        """Once, before the first row: allocate, and refuse what cannot work on this stream."""

    def begin(self, view: View, experience: Experience) -> None:
        """Before the first step on an experience."""

    def mix(self, view: View, batch: Batch) -> Batch:
        """Data seam: the rows to train on, the arrived ones first."""
        return batch

    def mask(self, view: View, batch: Batch, mask: Tensor) -> Tensor:
        """Head seam: (B, C) bool, True where a class takes part in the softmax of a row."""
        return mask

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        """Loss seam: (B,) loss of each row, before weighting by ``batch.weight``."""
        return rows

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        """Loss seam: a scalar added to the task loss."""
        return 0.0

    def pull(self, view: View, grads: dict[str, Tensor]) -> None:
        """Gradient seam: add the gradient of ``penalty`` to ``grads``, so that no backward pass goes through it.

        For a penalty on the weights alone, whose gradient is known in closed form. A tensor of ``grads`` may be changed
        in place, unless it is that of ``view.task_gradient``; names may be added. ``penalty`` goes on saying the value.
        """

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Gradient seam: the gradients to follow."""
        return grads

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        """Update seam: remember rows that really arrived."""

    def end(self, view: View, experience: Experience) -> None:
        """After the last step on an experience."""

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        """Prediction seam: the logits (B, C) to answer with."""
        return out.logits

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; generator states under a key ``generator``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; called after ``start``."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got keys {sorted(state)}")


class Seams:
    """The strategies that really act at each seam, in their order; an empty seam costs nothing."""

    def __init__(self, strategies: Mapping[str, Strategy]) -> None:
        def acting(seam: str) -> tuple[Strategy, ...]:
            return tuple(s for s in strategies.values() if getattr(type(s), seam) is not getattr(Strategy, seam))

        self.mix = acting("mix")
        self.mask = acting("mask")
        self.rows = acting("rows")
        self.penalty = acting("penalty")
        self.pull = acting("pull")
        self.project = acting("project")
        self.after_step = acting("after_step")
        self.predict = acting("predict")
        self.n_repeats = max([s.n_repeats for s in strategies.values()], default=1)
        self.needs_task_gradient = any(s.needs_task_gradient for s in strategies.values())
        self.names = {id(s): name for name, s in strategies.items()}
