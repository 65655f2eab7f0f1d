"""Optimizers without torch's compiler, which the first one that is made would load: 1.6 s of a run's start.

What they compute stays the same. Left out is what torch does around it for programs that compile their training step,
and the hooks and profiler marks of ``Optimizer.step``.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer

GUARDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods that torch keeps out of compiled graphs. At its first call each loads the compiler to be guarded by it."""


def eager(make: Callable[[], Optimizer]) -> Optimizer:
    """``make()``, whose methods are called as they are written. Where torch wraps them in another way, they stay so."""
    for name in GUARDED:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method
    made = make()
    if not made.defaults.get("differentiable"):
        step = _unwrapped(type(made).step)
        made.step = MethodType(torch.no_grad()(step), made)  # type: ignore[method-assign]
    return made


def _unwrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` without what ``torch.optim.optimizer`` has put around it."""
    while hasattr(step, "__wrapped__") and getattr(step, "__globals__", {}).get("__name__") == Optimizer.__module__:
        step = step.__wrapped__
    return step
