"""Which launcher runs a sweep: ``hydra/launcher=joblib hydra.launcher.n_jobs=2``, as Hydra spells it.

Only the spelling is Hydra's: its launchers end a sweep with the first job that dies. A launcher is no part of a run's
config, so it decides neither the results nor the directory.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from continual import fence
from continual.choices import LAUNCHER, choices, roots
from continual.config import make_importable
from continual.errors import UserError, nearest
from continual.overrides import read
from continual.signatures import check_calls

if TYPE_CHECKING:
    from continual.progress import Watcher
    from continual.sweep import Outcome
    from continual.worker import Job

KEYS = "hydra.launcher"
DEFAULT = "basic"


class Launcher(Protocol):
    """Runs the jobs of a sweep, one after the other or several at once. Its attributes are the keys of its YAML."""

    def __call__(self, jobs: Sequence["Job"], watch: "Watcher") -> Generator["Outcome", None, None]:
        """How each job went, as they end, in any order; none ends the others.

        When the generator is closed, or an exception passes through it, what still runs is stopped.
        """
        ...


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that choose and set the launcher, and the others."""
    own = [text for text in overrides if _key(text) == LAUNCHER or _key(text).startswith(f"{KEYS}.")]
    return own, [text for text in overrides if text not in own]


def launcher(overrides: Sequence[str], config_dir: str | Path | None = None, allow: Sequence[str] = ()) -> Launcher:
    """The launcher that ``overrides`` name, ``basic`` if none does; fenced and checked as a run's config is.

    Raises:
        UserError: it does not exist, has no such key, a value is wrong, or its library is not installed.
    """
    folder = make_importable(config_dir, allow)
    parsed = [read(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() or override.is_add() or override.is_delete():
            raise UserError(f"{override.input_line}: one launcher runs the whole sweep; write {KEYS}.KEY=VALUE")
    names = [override.value() for override in parsed if override.key_or_group == LAUNCHER]
    node = _node(names[-1] if names else DEFAULT, folder)
    for override in parsed:
        key = str(override.key_or_group).removeprefix(f"{KEYS}.")
        if key != LAUNCHER:
            if key not in node or key.startswith("_"):
                options = {name for name in node if not name.startswith("_")}
                none = "" if options else f"; add {LAUNCHER}=joblib to run several at once"
                raise UserError(f"{override.input_line}: there is no such key{nearest(key, options)}{none}")
            node[key] = override.value()
    fence.check(node, allow)
    check_calls(node, tuple(allow), KEYS)
    made: Launcher = fence.locate(node.pop("_target_"), allow)(**node)
    return made


def _node(name: Any, folder: Path | None) -> dict[str, Any]:
    """What the YAML of the launcher says; the user's folder comes first."""
    offered = [choice.name for choice in choices(LAUNCHER, folder)]
    if name not in offered:
        raise UserError(f"{LAUNCHER}={name} does not exist{nearest(str(name), offered)}")
    path = next(path for root in reversed(roots(folder)) if (path := root / LAUNCHER / f"{name}.yaml").is_file())
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{path} must name a class by _target_, and its parameters")
    return {str(key): value for key, value in node.items()}


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")
