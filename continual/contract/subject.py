"""A config as laws want it: fresh learners of it, and variants of it, on the beginning of its stream."""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

from continual import config as configs
from continual.config import Config
from continual.contract.learners import LEARNER_LAWS, generators_differ, it_learns
from continual.contract.native import NATIVE_LAWS
from continual.contract.recorded import replayed_is_computed
from continual.contract.streams import StreamLaw, repeats_identically
from continual.contract.together import a_member_equals_a_run_alone
from continual.contract.tools import Brief, LearnerLaw, MakeLearner
from continual.errors import UserError
from continual.types import Learner, Stream

SHORT = {"epochs": 2, "iterations": 6}  # updates enough for all laws but one
PATIENT = {"epochs": 30, "iterations": 60}  # for it_learns
MOODY = {"_target_": "continual.contract.tools.moody", "_partial_": True}
STILL = {"_target_": "continual.models.mlp", "_partial_": True, "hidden": [16]}


class Subject:
    """One config: the whole stream, its first ``experiences``, fresh learners; long training is cut short."""

    def __init__(self, config: Config, experiences: int = 3) -> None:
        self.experiences = experiences
        node = config.resolved["learner"]
        short = {key: min(node[key], limit) for key, limit in SHORT.items() if node.get(key) is not None}
        self.config = _with_learner(config, short)

    def make_whole_stream(self) -> Stream:
        """The stream as it is, built anew."""
        stream: Stream = configs.build_stream(self.config)
        return stream

    @cached_property
    def whole_stream(self) -> Stream:
        """The stream as it is, built only once."""
        return self.make_whole_stream()

    def make_stream(self) -> Stream:
        """The beginning of the stream, which is built only once."""
        return self._brief(self.whole_stream)

    def make_fresh_stream(self) -> Stream:
        """The beginning of the stream, built anew."""
        return self._brief(self.make_whole_stream())

    def make_learner(self) -> Learner:
        """A fresh learner."""
        learner: Learner = configs.build_learner(self.config, self.make_stream().spec)
        return learner

    @property
    def laws(self) -> tuple[LearnerLaw, ...]:
        """``LEARNER_LAWS``, and ``NATIVE_LAWS`` unless the learner comes through a bridge."""
        target = str(self.config.resolved["learner"]["_target_"])
        return LEARNER_LAWS if target.startswith("continual.bridges.") else LEARNER_LAWS + NATIVE_LAWS

    def apply_to_stream(self, law: StreamLaw) -> None:
        """Apply a law of streams to the whole stream."""
        law(self.make_whole_stream if law is repeats_identically else lambda: self.whole_stream)

    def apply(self, law: LearnerLaw) -> None:
        """Apply a law of learners."""
        make_learner = self.make_learner
        if law is it_learns:
            make_learner = self._patient().make_learner
        elif law in (a_member_equals_a_run_alone, replayed_is_computed):
            make_learner = (self._with_model(STILL) or self).make_learner
        law(make_learner, self.make_fresh_stream if law is generators_differ else self.make_stream)

    @property
    def strategies(self) -> Mapping[str, Mapping[str, Any]]:
        """Config of each strategy of the learner, by name."""
        return self.config.resolved["learner"].get("strategies") or {}

    def without(self, name: str) -> MakeLearner:
        """How to make the learner without the strategy ``name``."""
        others = {other: node for other, node in self.strategies.items() if other != name}
        return self.changed({"strategies": others}).make_learner

    def switched(self, name: str, settings: Mapping[str, Any]) -> MakeLearner:
        """How to make the learner with other settings of the strategy ``name``."""
        changed = {**self.strategies, name: {**self.strategies[name], **settings}}
        return self.changed({"strategies": changed}).make_learner

    def moody(self) -> "Subject | None":
        """The same with dropout and batch normalisation; None if the learner takes no model, or refuses this one."""
        return self._with_model(MOODY)

    def _with_model(self, model: Mapping[str, Any]) -> "Subject | None":
        if not self.config.resolved["learner"].get("model"):
            return None
        self.make_stream()  # what is wrong with the stream is raised here
        changed = self.changed({"model": model})
        try:
            changed.make_learner()
        except UserError:
            return None
        return changed

    def changed(self, settings: Mapping[str, Any]) -> "Subject":
        """The same with other settings of the learner; the stream is shared."""
        other = copy(self)
        other.config = _with_learner(self.config, settings)
        return other

    def _patient(self) -> "Subject":
        """The same with updates enough to learn something."""
        node = self.config.resolved["learner"]
        return self.changed({key: n for key, n in PATIENT.items() if node.get(key) is not None})

    def _brief(self, stream: Stream) -> Stream:
        """Rows enough for two updates and a shorter one per experience."""
        batch_size = self.config.resolved["learner"].get("batch_size", 10)
        return Brief(stream, rows=min(max(24, 2 * batch_size + 4), 512), experiences=self.experiences)


def _with_learner(config: Config, settings: Mapping[str, Any]) -> Config:
    learner = {**config.resolved["learner"], **settings}
    return replace(config, resolved={**config.resolved, "learner": learner})
