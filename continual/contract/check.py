"""Every law that binds a config, applied to it: the function behind ``continual check``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from continual import config as configs
from continual.config import Config
from continual.contract.learners import (
    LEARNER_LAWS,
    evaluation_changes_nothing,
    generators_differ,
    modes_are_restored,
    seed_decides_everything,
)
from continual.contract.memories import EXAMPLE, MEMORY_LAWS
from continual.contract.native import NATIVE_LAWS, resume_is_exact
from continual.contract.strategies import STRATEGY_LAWS
from continual.contract.streams import STREAM_LAWS
from continual.contract.subjects import Brief, MakeLearner
from continual.experiment import set_threads
from continual.types import Learner, Stream

MOODY = "continual.contract.subjects.moody"
MOOD_LAWS = (seed_decides_everything, modes_are_restored, evaluation_changes_nothing, resume_is_exact)
LIMITS = {"epochs": 2, "iterations": 6}  # laws need no more


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
    reason: str


class Subject:
    """A config as laws want it: each call makes a fresh learner, and the stream is cut short."""

    def __init__(self, config: Config) -> None:
        limits = {key: min(config.resolved["learner"][key] or limit, limit) for key, limit in self._limits(config)}
        self.config = _with_learner(config, limits)

    @staticmethod
    def _limits(config: Config) -> list[tuple[str, int]]:
        node = config.resolved["learner"]
        return [(key, limit) for key, limit in LIMITS.items() if node.get(key) is not None]

    @cached_property
    def _whole(self) -> Stream:
        return self.make_whole_stream()

    def make_whole_stream(self) -> Stream:
        """The stream as it is, built anew."""
        stream: Stream = configs.build_stream(self.config)
        return stream

    def brief(self, stream: Stream) -> Stream:
        """The beginning of ``stream``, with rows enough for two updates and a shorter one per experience."""
        batch_size = self.config.resolved["learner"].get("batch_size", 10)
        return Brief(stream, rows=min(max(24, 2 * batch_size + 4), 512))

    def make_stream(self) -> Stream:
        """The beginning of the stream, which is built only once."""
        return self.brief(self._whole)

    def make_fresh_stream(self) -> Stream:
        """The beginning of the stream, built anew."""
        return self.brief(self.make_whole_stream())

    def make_learner(self) -> Learner:
        """A fresh learner of this config."""
        learner: Learner = configs.build_learner(self.config, self.make_stream().spec)
        return learner

    @property
    def strategies(self) -> Mapping[str, Mapping[str, Any]]:
        """Config of each strategy of the learner, by name."""
        return self.config.resolved["learner"].get("strategies") or {}

    def with_learner(self, **changes: Any) -> "Subject":
        """The same with other settings of the learner; the stream is not built again."""
        other = Subject(_with_learner(self.config, changes))
        other.__dict__["_whole"] = self._whole
        return other

    def without(self, name: str) -> MakeLearner:
        """How to make the learner without the strategy ``name``."""
        others = {other: node for other, node in self.strategies.items() if other != name}
        return self.with_learner(strategies=others).make_learner

    def switched(self, name: str, settings: Mapping[str, float]) -> MakeLearner:
        """How to make the learner with other settings of the strategy ``name``."""
        changed = {**self.strategies, name: {**self.strategies[name], **settings}}
        return self.with_learner(strategies=changed).make_learner


def check_config(*overrides: str, config_dir: str | Path | None = None, allow: Sequence[str] = ()) -> Iterator[Finding]:
    """Apply every law to the stream, the learner, the strategies and the memories of a config.

    Args:
        overrides: as for ``continual run``, e.g. ``"strategy=mine"``.
        config_dir: a folder with your own configs.
        allow: packages outside the fence that it may name.

    Learners learn the first rows of the first experiences of the configured stream, in two epochs at most; the stream
    itself is read whole. Laws about moods are also tried with a network that has dropout and batch normalisation.

    Yields:
        One finding per law and subject, as soon as it is known. Nothing is written.

    Raises:
        UserError: the config is wrong; raised by this call, before the first law.
    """
    config = configs.compose(*overrides, config_dir=config_dir, allow=allow)
    set_threads(config.resolved["threads"])
    subject = Subject(config)
    learner = subject.make_learner()
    return (_apply(name, about, law) for name, about, law in cases(subject, learner))


def cases(subject: Subject, learner: Learner) -> Iterator[tuple[str, Callable[..., None], Callable[[], None]]]:
    """(subject, law, the law applied to it) for all that binds a config."""
    chosen = subject.config.chosen["learner"]
    for law in STREAM_LAWS:
        yield f"scenario {subject.config.scenario}", law, partial(law, subject.make_whole_stream)
    laws = LEARNER_LAWS if is_foreign(learner) else (*LEARNER_LAWS, *NATIVE_LAWS)
    for law in laws:
        stream = subject.make_fresh_stream if law is generators_differ else subject.make_stream
        yield f"learner {chosen}", law, partial(law, subject.make_learner, stream)
    if subject.config.resolved["learner"].get("model"):
        moody = subject.with_learner(model={"_target_": MOODY, "_partial_": True})
        for law in (law for law in MOOD_LAWS if law in laws):
            yield f"learner {chosen} with dropout", law, partial(law, moody.make_learner, subject.make_stream)
    yield from _strategy_cases(subject)
    yield from _memory_cases(learner)


def is_foreign(learner: Learner) -> bool:
    """Whether it comes through a bridge, and is bound by ``LEARNER_LAWS`` only."""
    return type(learner).__module__.startswith("continual.bridges.")


def _strategy_cases(subject: Subject) -> Iterator[tuple[str, Callable[..., None], Callable[[], None]]]:
    for name, node in subject.strategies.items():
        for law, settings in STRATEGY_LAWS:
            for setting in settings(node):
                told = ", ".join(f"{key}={value:g}" for key, value in setting.items())
                applied = partial(law, subject.switched(name, setting), subject.without(name), subject.make_stream)
                yield f"strategy {name} with {told}", law, applied


def _memory_cases(learner: Learner) -> Iterator[tuple[str, Callable[..., None], Callable[[], None]]]:
    for name, strategy in getattr(learner, "strategies", {}).items():
        make = getattr(strategy, "make_memory", None)
        for law in MEMORY_LAWS if make is not None else ():
            yield f"memory of {name}", law, partial(law, make, 7, EXAMPLE)


def _apply(subject: str, law: Callable[..., None], applied: Callable[[], None]) -> Finding:
    about = (law.__doc__ or "").partition("\n")[0]
    finding = Finding(law.__name__, subject, about, passed=True, reason="")
    try:
        applied()
    except AssertionError as error:
        return replace(finding, passed=False, reason=str(error))
    except Exception as error:
        return replace(finding, passed=False, reason=f"it raised {type(error).__name__}: {error}")
    return finding


def _with_learner(config: Config, changes: Mapping[str, Any]) -> Config:
    learner = {**config.resolved["learner"], **changes}
    return replace(config, resolved={**config.resolved, "learner": learner})
