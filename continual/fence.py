"""A config is code: it names what is called. The fence says which names may be called.

Checked on the unresolved config, before anything is imported for it.
"""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from continual.environment import explained
from continual.errors import UserError, nearest

ALLOWED = (  # of our own, the modules that hold what a config is made of: elsewhere are functions that run programs
    "continual.alerts.",
    "continual.augment.",
    "continual.bridges.",
    "continual.checkpoint.Snapshots",
    "continual.launchers.",
    "continual.learner.",
    "continual.learners.",
    "continual.memory.",
    "continual.models.",
    "continual.optim.",
    "continual.probe.",
    "continual.strategies.",
    "continual.track.",
    "continual.trackers.mlflow.MLflow",
    "continual.trackers.tensorboard.TensorBoard",
    "continual.trackers.wandb.Wandb",
    "scenarios.",
    "torch.nn.",
    "torch.optim.",
    "torchvision.models.",
    "timm.create_model",
    "avalanche.training.",
)
LOADS_PICKLES = {"timm.create_model": ("_args_", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")}
"""Arguments by which what is allowed would open a file that may run code."""

_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")
_PLAIN = re.compile(r"[A-Za-z_][\w/]*(\.[A-Za-z_][\w/]*)*")


def check(config: Any, allow: Sequence[str] = ()) -> None:
    """Refuse a config that calls anything outside the fence.

    Args:
        config: unresolved nested dicts and lists.
        allow: further packages, from the command line only.

    Raises:
        UserError: names the key, the target and ``--allow``.
    """
    for path, key, value in _values(config):
        if isinstance(value, str):
            _check_interpolations(path, value)
        if key == "_target_":
            _check_target(path, value, allow)
        if isinstance(value, Mapping) and str(value.get("_target_")) in LOADS_PICKLES:
            _check_arguments(path, value)


def locate(target: str, allow: Sequence[str] = ()) -> Any:
    """The class or function that ``target`` names; modules may not be passed through (``continual.x.os.system``)."""
    parts = target.split(".")
    module: ModuleType | None = None
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise UserError(f"_target_={target} needs the package '{error.name}', which is not installed") from None
            continue
        except Exception as error:
            told = UserError(f"_target_={target} cannot be imported: {type(error).__name__}: {error}")
            raise explained(error) or told from error
        found: Any = module
        for part in parts[end:]:
            found = getattr(found, part, None)
            if found is None or isinstance(found, ModuleType):
                callables = [word for word, value in vars(module).items() if callable(value) and word[0] != "_"]
                raise UserError(f"_target_={target}: there is no '{part}' to call in {name}{nearest(part, callables)}")
        if not callable(found):
            raise UserError(f"_target_={target} cannot be called; name a class or a function")
        _check_home(target, found, allow)
        return found
    raise UserError(f"_target_={target}: there is no module '{parts[0]}'; is its package installed?")


def _check_home(target: str, found: Any, allow: Sequence[str]) -> None:
    """Where the thing was defined must be inside the fence too, not only the name that it was reached by."""
    home = getattr(inspect.unwrap(found), "__module__", None) or ""
    if not _inside(f"{home}.{getattr(found, '__name__', '')}", allow) and not home.startswith("timm."):
        raise UserError(f"_target_={target} is really {home}.{getattr(found, '__name__', '?')}, {_outside(home)}")


def _check_target(path: str, target: Any, allow: Sequence[str]) -> None:
    if not isinstance(target, str) or not _PLAIN.fullmatch(target) or "/" in target or "._" in target:
        raise UserError(f"{path}={target!r} must be the literal dotted name of a public class or function")
    if not _inside(target, allow):
        raise UserError(f"{path}={target} {_outside(target)}")


def _check_arguments(path: str, call: Mapping[str, Any]) -> None:
    target = str(call["_target_"])
    for key in LOADS_PICKLES[target]:
        if key in call:
            raise UserError(f"{path}.{key} is refused: {target} may run code from what it names; leave it out")
    if set(str(call.get("model_name"))) & {":", "$"}:
        raise UserError(f"{path}.model_name={call['model_name']} is refused: {target} may run code from elsewhere")


def _outside(name: str) -> str:
    package = name.split(".")[0]
    others = ", ".join(known.rstrip(".") for known in ALLOWED if not known.startswith("continual."))
    return (
        f"is outside the fence of what a config may call (continual's own parts, {others}); "
        f"if you trust it, add --allow {package} on the command line"
    )


def _inside(target: str, allow: Sequence[str]) -> bool:
    ours = any(target == name or (name.endswith(".") and target.startswith(name)) for name in ALLOWED)
    return ours or any(target == package or target.startswith(package + ".") for package in allow)


def _check_interpolations(path: str, value: str) -> None:
    for inner in _INTERPOLATION.findall(value):
        if not _PLAIN.fullmatch(inner):
            raise UserError(
                f"{path} has the interpolation ${{{inner}}}; only plain references like ${{seed}} are allowed"
            )
    if "${" in _INTERPOLATION.sub("", value):
        raise UserError(
            f"{path}={value!r} has a nested interpolation; only plain references like ${{seed}} are allowed"
        )


def _values(node: Any, path: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(full path, last key, value) of ``node`` and of everything in it."""
    yield path, key, node
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _values(value, f"{path}.{name}" if path else str(name), str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _values(value, f"{path}[{index}]")
