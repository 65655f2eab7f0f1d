"""One training step, written once. Everything a strategy can change passes through here."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual.errors import DivergedError
from continual.graphs import Graphs
from continual.strategy import Seams, View, Weights
from continual.types import Batch, Output

CHECK_EVERY = 100  # updates between two looks at the loss on an accelerator, where looking waits for it
MASKED = -1e9  # finite, so that a masked class has probability 0 and never makes a NaN

Mask = Callable[[Batch], Tensor | None]


def looks(device: torch.device, update: int, n_updates: int) -> bool:
    """Whether the loss of an update (from 0, of an experience's ``n_updates``) is looked at.

    Always on the CPU; on an accelerator now and then, and at the last one, before what was learned is kept.
    """
    return device.type == "cpu" or update % CHECK_EVERY == 0 or update == n_updates - 1


def step(
    view: View,
    seams: Seams,
    arrived: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    mask: Mask,
    augment: Callable[[Batch], Tensor] | None = None,
    clip: Callable[[list[Tensor]], object] | None = None,
    check: bool = True,
    graphs: Graphs | None = None,
) -> None:
    """Update the parameters once on ``arrived``, with each strategy acting at its seams.

    Memories see the rows as they arrived; the network sees them augmented. With ``check``, a loss that is not finite
    stops it (``check_finite``) before anything is changed; reading the loss waits for an accelerator. Without, the
    arithmetic is that of a recording if there are ``graphs``.
    """
    batch, seen = mixed(view, seams, arrived, augment)
    update(view, seams, batch, seen, optimizer, mask=mask, clip=clip, check=check, graphs=graphs)


def mixed(
    view: View, seams: Seams, arrived: Batch, augment: Callable[[Batch], Tensor] | None = None
) -> tuple[Batch, Batch]:
    """The rows to train on, as memories see them and as the network does."""
    batch = arrived
    for s in seams.mix:
        batch = s.mix(view, batch)
    return batch, (replace(batch, x=augment(batch)) if augment else batch)


def update(
    view: View,
    seams: Seams,
    batch: Batch,
    seen: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    mask: Mask,
    clip: Callable[[list[Tensor]], object] | None = None,
    check: bool = True,
    graphs: Graphs | None = None,
) -> None:
    """The step on rows that are mixed already: ``batch``, which the network sees as ``seen``."""

    def compute(rows: Batch) -> Output:
        return advance(view, seams, rows, optimizer, mask=mask, clip=clip, check=check)

    out = compute(seen) if graphs is None or check else graphs.run(view, seen, compute)
    remember(view, seams, batch, out)


def advance(
    view: View,
    seams: Seams,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    mask: Mask,
    clip: Callable[[list[Tensor]], object] | None = None,
    check: bool = True,
) -> Output:
    """The arithmetic of a step: loss, gradients, new parameters. What the network answered on the way."""
    loss, penalties, out = losses(view, seams, view.params, batch, mask)
    total = loss
    for penalty in penalties:
        if isinstance(penalty, Tensor) or penalty:
            total = total + penalty
    if check:
        check_finite(view, seams, batch, mask, penalties, total)

    for p in view.params.values():  # as zero_grad does, which tells a profiler of it, too
        p.grad = None
    if seams.needs_task_gradient and total is not loss:
        view.task_gradient, passed = backward_apart(view.params, out, loss, sum(penalties))
        view.charge(2 * len(batch) * passed)
    else:
        total.backward()  # type: ignore[no-untyped-call]
        if seams.needs_task_gradient:
            view.task_gradient = _gradients(view)
    if seams.pull or seams.needs_task_gradient:
        pull(view, seams)
    view.charge(2 * len(batch))
    direct(view, seams, batch, clip)
    optimizer.step()
    return out


def direct(view: View, seams: Seams, seen: Batch, clip: Callable[[list[Tensor]], object] | None = None) -> None:
    """Let strategies change the gradients to follow, then clip them."""
    if seams.project:
        _project(view, seams, seen)
    if clip:
        clip(list(view.params.values()))


def remember(view: View, seams: Seams, batch: Batch, out: Output) -> None:
    """After the step: strategies keep of ``batch`` and ``out`` what they want."""
    for s in seams.after_step:
        s.after_step(view, batch, out)
    view.task_gradient = {}  # it has served, and counts in no bytes


def losses(
    view: View, seams: Seams, params: Weights, batch: Batch, mask: Mask
) -> tuple[Tensor, list[Tensor | float], Output]:
    """The task loss, each strategy's penalty, and the network's answer; pure in ``params``.

    The penalty of a strategy that pulls is 0 here: its gradient is added after the backward pass.
    """
    loss, out = task_loss(view, seams, params, batch, mask)
    return loss, [0.0 if s in seams.pull else s.penalty(view, params, batch, out) for s in seams.penalty], out


def task_loss(view: View, seams: Seams, params: Weights, batch: Batch, mask: Mask) -> tuple[Tensor, Output]:
    """Weighted cross-entropy over the classes that compete: sum_b weight_b * rows_b, plus the model's own loss."""
    out = view.forward(params, batch.x)
    logits, allowed = out.logits, mask(batch)  # (B, C), (B, C) or None for all classes
    if seams.mask:
        allowed = torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed
        for s in seams.mask:
            allowed = s.mask(view, batch, allowed)
    if allowed is not None:
        allowed = allowed.scatter(1, batch.y[:, None], True)  # a row's own class always competes
        logits = logits.masked_fill(~allowed, MASKED)
    rows = cross_entropy(logits, batch.y, reduction="none")  # (B,)
    for s in seams.rows:
        rows = s.rows(view, batch, out._replace(logits=logits), rows)
    total = torch.dot(batch.weight, rows)
    return (total if out.loss is None else total + out.loss), out


def check_finite(
    view: View, seams: Seams, batch: Batch, mask: Mask, penalties: Sequence[Tensor | float], total: Tensor
) -> None:
    """Raise DivergedError, naming what made the loss nan or infinite, the update, and the last finite value."""
    value = total.item()
    if isfinite(value):
        view.last_loss = value
        return
    with torch.no_grad():
        plain = float(task_loss(view, Seams({}), view.params, batch, mask)[0])
        loss, out = task_loss(view, seams, view.params, batch, mask)
        acted = float(loss)
        pulled = {s: s.penalty(view, view.params, batch, out) for s in seams.penalty if s in seams.pull}
    found = [
        f"the penalty of strategy '{seams.names[id(s)]}' is {number}"
        for s, penalty in zip(seams.penalty, penalties, strict=True)
        if not isfinite(number := _number(pulled.get(s, penalty)))
    ]
    if not isfinite(acted):
        by = ", ".join(f"'{seams.names[id(s)]}'" for s in (*seams.rows, *seams.mask))
        found.append(
            f"the cross-entropy is {plain}"
            if not isfinite(plain) or not by
            else f"the loss as changed by strategy {by} is {acted}"
        )
    raise DivergedError(
        f"the loss is {value} at update {view.update} of experience {view.experience}: {' and '.join(found)}; "
        f"{trained(view.last_loss, seams.names.values())}. "
        "Lower optimizer.lr or the strategy's strength, or clip gradients (clip=norm)"
    )


def check_own(view: View, name: str, what: str, loss: Tensor) -> None:
    """The same for the ``loss`` of what the strategy ``name`` trains by itself; ``what`` says which, in words."""
    value, last = loss.item(), view.last_own.get(name)
    if not isfinite(value):
        raise DivergedError(
            f"strategy '{name}': the loss {what} is {value} at update {view.update} of experience "
            f"{view.experience}; {trained(last)}. Lower strategy.{name}.lr, or optimizer.lr"
        )
    view.last_own[name] = value


def trained(last_loss: float | None, names: Collection[str] = ()) -> str:
    """The last finite loss, and with what it came about, for an error."""
    last = "there was no finite loss before" if last_loss is None else f"the last finite loss was {last_loss:g}"
    return ", trained with ".join([last, *([", ".join(f"'{name}'" for name in names)] if names else [])])


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def backward_apart(
    params: Weights, out: Output, loss: Tensor, penalty: Tensor | float
) -> tuple[dict[str, Tensor], bool]:
    """Backward of the task loss, whose gradients are returned, and then of the penalties.

    And whether that of the penalties went back through the network.
    """
    apart = isinstance(penalty, Tensor) and penalty.requires_grad
    loss.backward(retain_graph=apart)  # type: ignore[no-untyped-call]
    task_gradient = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}
    passed: list[Tensor] = []  # not empty once the penalty's gradient goes back through the network
    if apart:
        handles = [tensor.register_hook(passed.append) for tensor in out if tensor is not None and tensor.requires_grad]  # type: ignore[no-untyped-call]
        penalty.backward()  # type: ignore[union-attr]
        for handle in handles:
            handle.remove()
    return task_gradient, bool(passed)


def _gradients(view: View) -> dict[str, Tensor]:
    return {name: p.grad for name, p in view.params.items() if p.grad is not None}


def pull(view: View, seams: Seams) -> None:
    """Let strategies add gradients that they know; those of the task's loss that are shown to strategies stay apart."""
    grads = _gradients(view)
    for s in seams.pull:
        s.pull(view, grads)
    for name, grad in grads.items():
        view.params[name].grad = grad.clone() if grad is view.task_gradient.get(name) else grad


def _project(view: View, seams: Seams, batch: Batch) -> None:
    grads = _gradients(view)
    for s in seams.project:
        grads = s.project(view, grads, batch)
    for name, grad in grads.items():
        view.params[name].grad = grad
