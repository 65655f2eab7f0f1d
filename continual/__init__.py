"""Run streams of shifting tasks, swap continual-learning strategies by config, see what was forgotten.

::

    import continual

    run = continual.run("strategy=er", "seed=1")
    run.metrics["forgetting"]
    continual.load(run.path).predict(x)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.config import Config, compose, expand
    from continual.errors import UserError
    from continual.experiment import Run, load, run, run_config

__all__ = ["Config", "Run", "UserError", "compose", "expand", "load", "run", "run_config"]

_HOMES = {
    "Config": "config",
    "compose": "config",
    "expand": "config",
    "UserError": "errors",
    "Run": "experiment",
    "load": "experiment",
    "run": "experiment",
    "run_config": "experiment",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and ``continual --help`` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'continual' has no attribute '{name}'")
    return getattr(import_module(f"continual.{_HOMES[name]}"), name)
