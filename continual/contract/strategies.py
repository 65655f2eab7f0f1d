"""Laws of a strategy with a strength: switched off it is not there, switched on it acts."""

from collections.abc import Mapping
from typing import Any

import torch

from continual import snapshot
from continual.contract.tools import MakeLearner, MakeStream, answers, learn
from continual.errors import DivergedError
from continual.types import Learner


def neutral_element(make_neutral: MakeLearner, make_plain: MakeLearner, make_stream: MakeStream) -> None:
    """With strength 0, or nothing replayed, a strategy learns bit for bit what is learned without it."""
    neutral, plain, stream = make_neutral(), make_plain(), make_stream()
    for experience in stream:
        learn(neutral, experience)
        learn(plain, experience)
        same = torch.equal(answers(neutral, stream), answers(plain, stream)) and _trained(neutral) == _trained(plain)
        assert same, (
            f"switched off, it still changes what is learned (seen after experience {experience.index}); "
            "does it draw from a generator that others use, or scale the loss?"
        )


def strength_acts(make_strong: MakeLearner, make_plain: MakeLearner, make_stream: MakeStream) -> None:
    """With a large strength, or rows to replay, a strategy changes what is learned."""
    strong, plain, stream = make_strong(), make_plain(), make_stream()
    for experience in stream:
        try:
            learn(strong, experience)
        except DivergedError:
            return  # it acts, and more than the learning rate bears
        learn(plain, experience)
    same = torch.equal(answers(strong, stream), answers(plain, stream))
    assert not same, "a large strength changes nothing; is an anchor an alias of the live weights, a term not added?"


def switched_off(node: Mapping[str, Any]) -> list[dict[str, float]]:
    """The settings in which a strategy's config ``node`` must be neutral."""
    off: list[dict[str, float]] = [dict.fromkeys(_strengths(node), 0.0)] if _strengths(node) else []
    return off + ([{"n_replay": 0}] if "n_replay" in node else [])


def switched_on(node: Mapping[str, Any]) -> list[dict[str, float]]:
    """The settings in which it must act: each strength alone and ten times as large, and replay as it is."""
    strengths = _strengths(node)
    alone = [dict.fromkeys(strengths, 0.0) | {name: 10 * (node[name] or 1.0)} for name in strengths]
    return alone + ([{"n_replay": node["n_replay"] or 10}] if "n_replay" in node else [])


STRATEGY_LAWS = ((neutral_element, switched_off), (strength_acts, switched_on))
"""Each law with the settings that it is tried in; applied where a strategy's config has these keys."""


def _strengths(node: Mapping[str, Any]) -> list[str]:
    return [name for name in node if name == "strength" or name.endswith("_strength")]


def _trained(learner: Learner) -> bytes:
    """The part of a snapshot that any learner by gradient steps has."""
    state = learner.state_dict()
    return snapshot.dumps({key: state.get(key) for key in ("network", "optimizer")})
