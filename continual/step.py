"""One training step, written once. Everything a strategy can change passes through here."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual.strategy import Seams, View, Weights
from continual.types import Batch, Output

MASKED = -1e9  # finite, so that a masked class has probability 0 and never makes a NaN

Mask = Callable[[Batch], Tensor | None]


def step(
    view: View,
    seams: Seams,
    arrived: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    mask: Mask,
    augment: Callable[[Batch], Tensor] | None = None,
    clip: Callable[[list[Tensor]], object] | None = None,
) -> None:
    """Update the parameters once on ``arrived``, with each strategy acting at its seams.

    Memories see the rows as they arrived; the network sees them augmented.
    """
    batch = arrived
    for s in seams.mix:
        batch = s.mix(view, batch)
    seen = replace(batch, x=augment(batch)) if augment else batch

    total, out = task_loss(view, seams, view.params, seen, mask)
    for s in seams.penalty:
        total = total + s.penalty(view, view.params, seen, out)

    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    view.charge(2 * len(batch))
    if seams.project:
        _project(view, seams, seen)
    if clip:
        clip(list(view.params.values()))
    optimizer.step()

    for s in seams.after_step:
        s.after_step(view, batch, out)


def task_loss(view: View, seams: Seams, params: Weights, batch: Batch, mask: Mask) -> tuple[Tensor, Output]:
    """Weighted cross-entropy over the classes that compete: sum_b weight_b * rows_b, and the output."""
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
        rows = s.rows(view, batch, out, rows)
    return torch.dot(batch.weight, rows), out


def _project(view: View, seams: Seams, batch: Batch) -> None:
    grads = {name: p.grad for name, p in view.params.items() if p.grad is not None}
    for s in seams.project:
        grads = s.project(view, grads, batch)
    for name, grad in grads.items():
        view.params[name].grad = grad
