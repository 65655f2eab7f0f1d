"""Every law that binds a config, applied to it: the function behind ``continual check``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from continual import config as configs
from continual.contract.learners import evaluation_changes_nothing, modes_are_restored, seed_decides_everything
from continual.contract.memories import EXAMPLE, MEMORY_LAWS, MakeMemory
from continual.contract.native import resume_is_exact
from continual.contract.strategies import STRATEGY_LAWS
from continual.contract.streams import STREAM_LAWS
from continual.contract.subject import Subject
from continual.contract.tools import LearnerLaw
from continual.experiment import set_threads
from continual.types import Learner

MOOD_LAWS: tuple[LearnerLaw, ...] = (
    seed_decides_everything,
    modes_are_restored,
    evaluation_changes_nothing,
    resume_is_exact,
)


@dataclass(frozen=True)
class Finding:
    """What one law says about one part of a config.

    Attributes:
        law: name of the law, e.g. ``resume_is_exact``.
        subject: what it was applied to, e.g. ``learner sgd`` or ``strategy er with n_replay=0``.
        about: the law in one sentence.
        passed: whether it was kept.
        reason: what was broken and the likely cause; empty if it was kept.
    """

    law: str
    subject: str
    about: str
    passed: bool
    reason: str = ""


class Case(NamedTuple):
    """A law, what it is applied to, and the application itself."""

    subject: str
    law: Callable[..., None]
    apply: Callable[[], None]


def check_config(*overrides: str, config_dir: str | Path | None = None, allow: Sequence[str] = ()) -> Iterator[Finding]:
    """Apply every law to the stream, the learner, the strategies and the memories of a config.

    The stream is read whole; the learner learns the first rows of its first experiences, in two epochs at most.
    Laws about modes and luck are tried a second time with a network that has batch normalisation and dropout.

    Args:
        overrides: as for ``continual run``, e.g. ``"strategy=mine"``.
        config_dir: a folder with your own configs.
        allow: packages outside the fence that it may name.

    Returns:
        One finding per law and subject, each computed when it is asked for. Nothing is written.

    Raises:
        UserError: the config is wrong; raised before the first law.
    """
    config = configs.compose(*overrides, config_dir=config_dir, allow=allow)
    set_threads(config.resolved["threads"])
    subject = Subject(config)
    learner = subject.make_learner()
    return (_finding(case) for case in cases(subject, learner))


def cases(subject: Subject, learner: Learner) -> Iterator[Case]:
    """All that binds a config; ``learner`` is one of it."""
    for stream_law in STREAM_LAWS:
        yield Case(f"scenario {subject.config.scenario}", stream_law, partial(subject.apply_to_stream, stream_law))
    name, moody = f"learner {subject.config.chosen['learner']}", subject.moody()
    for law in subject.laws:
        yield Case(name, law, partial(subject.apply, law))
        if moody is not None and law in MOOD_LAWS:
            yield Case(f"{name} with batch normalisation and dropout", law, partial(moody.apply, law))
    yield from _of_strategies(subject)
    yield from _of_memories(learner)


def _of_strategies(subject: Subject) -> Iterator[Case]:
    for name, node in subject.strategies.items():
        for law, settings in STRATEGY_LAWS:
            for setting in settings(node):
                told = ", ".join(f"{key}={value:g}" for key, value in setting.items())
                changed, plain = subject.switched(name, setting), subject.without(name)
                yield Case(f"strategy {name} with {told}", law, partial(law, changed, plain, subject.make_stream))


def _of_memories(learner: Learner) -> Iterator[Case]:
    strategies: dict[str, Any] = getattr(learner, "strategies", {})
    for name, strategy in strategies.items():
        make: MakeMemory | None = getattr(strategy, "make_memory", None)
        if make is not None:
            yield from (Case(f"memory of {name}", law, partial(law, make, 7, EXAMPLE)) for law in MEMORY_LAWS)


def _finding(case: Case) -> Finding:
    about = (case.law.__doc__ or "").partition("\n")[0]
    reason = ""
    try:
        case.apply()
    except AssertionError as error:
        reason = str(error) or "it was broken without a word"
    except Exception as error:
        reason = f"it raised {type(error).__name__}: {error}"
    return Finding(case.law.__name__, case.subject, about, not reason, reason)
