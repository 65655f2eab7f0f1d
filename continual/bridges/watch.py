"""A look at the losses of Avalanche's strategies, which train on whatever these become."""

import warnings
from math import isfinite
from typing import Any

from continual.errors import DivergedError
from continual.step import CHECK_EVERY, trained

with warnings.catch_warnings():  # about solvers and syntax of packages that Avalanche imports and we do not use
    warnings.simplefilter("ignore")
    from avalanche.training.plugins import SupervisedPlugin

SILENT = ("Clock", "EvaluationPlugin", "PeriodicEval", "Watch")  # plug-ins that no user chose


class Watch(SupervisedPlugin):  # type: ignore[misc]
    """Stops a strategy at the first update whose loss is not finite: before its backward pass, where it has one.

    On an accelerator, where looking waits for it, it looks now and then, and when the experience ends. Avalanche tells
    each seam what ``train`` was called with, which does not matter here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_loss: float | None = None
        self.experience, self.update, self.due = 0, 0, False

    def before_training_exp(self, strategy: Any, **told: bool) -> None:
        self.experience, self.update = strategy.clock.train_exp_counter, 0

    def before_training_iteration(self, strategy: Any, **told: bool) -> None:
        self.due = strategy.device.type == "cpu" or self.update % CHECK_EVERY == 0

    def before_backward(self, strategy: Any, **told: bool) -> None:
        self._look(strategy)

    def after_training_iteration(self, strategy: Any, **told: bool) -> None:
        self._look(strategy)
        self.update += 1

    def after_training_exp(self, strategy: Any, **told: bool) -> None:
        self.due = strategy.device.type != "cpu" and self.update > 0
        self.update = max(0, self.update - 1)  # the last one
        self._look(strategy)
        wrong = [name for name, p in strategy.model.named_parameters() if not bool(p.isfinite().all())]
        if wrong:
            self._stop(strategy, f"the weight {wrong[0]} is nan or infinite after")

    def _look(self, strategy: Any) -> None:
        if not self.due:
            return
        self.due, value = False, float(strategy.loss.item())
        if not isfinite(value):
            self._stop(strategy, f"the loss is {value} at")
        self.last_loss = value

    def _stop(self, strategy: Any, what: str) -> None:
        told = self.trained(strategy)
        at = f"update {self.update} of experience {self.experience}"
        raise DivergedError(
            f"{what} {at}; {told}. Lower optimizer.lr, or the learning rates and strengths below learner.strategy"
        )

    def trained(self, strategy: Any) -> str:
        """The last finite loss, the strategy and its plug-ins, for an error."""
        names = [type(plugin).__name__ for plugin in strategy.plugins]
        parts = [type(strategy).__name__, *(name for name in names if name not in SILENT)]
        return trained(self.last_loss, [f"avalanche.{name}" for name in parts])
