"""The laws, applied to every YAML under conf/: add a file, and it is bound."""

import csv
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from continual import config as configs
from continual.choices import choices, groups
from continual.config import Config
from continual.contract import (
    LEARNER_LAWS,
    NATIVE_LAWS,
    STRATEGY_LAWS,
    STREAM_LAWS,
    Subject,
    check_config,
)
from continual.contract.native import every, resume_is_exact
from continual.contract.streams import repeats_identically
from continual.errors import UserError
from continual.types import Stream

Case = tuple[str, ...]
"""Overrides; together they are the id of a test."""

BLOBS: Case = (
    "scenario/source=gaussian",
    "scenario.source.n_classes=6",
    "scenario.source.rows_per_class=12",
    "scenario.n_tasks=3",
    "train.epochs=2",
)
MOODY: Case = ("model._target_=continual.contract.tools.moody", "model.hidden=[16]")
DIGITS: Case = ("scenario.n_tasks=5", "train.epochs=2")

# What each group's choices are put into. A choice is made small, or given what it needs, below it.
LEARNED: dict[str, Callable[[str], Case]] = {
    "strategy": lambda name: (f"strategy={name}", *MOODY, *BLOBS),
    "learner": lambda name: (f"learner={name}", *MOODY, *BLOBS),
    "model": lambda name: (f"model={name}", *DIGITS),
    "optimizer": lambda name: (f"optimizer={name}", "strategy=er", *MOODY, *BLOBS),
    "scheduler": lambda name: (f"scheduler={name}", *MOODY, *BLOBS),
    "clip": lambda name: (f"clip={name}", *MOODY, *BLOBS),
    "augment": lambda name: (f"augment={name}", "strategy=er", *MOODY, *DIGITS),
    "memory": lambda name: (f"memory@strategy.er.memory={name}", "strategy=er", *MOODY, *BLOBS),
}
MADE_SMALL: dict[str, Case] = {
    "model=slim_resnet18": ("model.width=2",),
    "model=torchvision": ("model.network._target_=torchvision.models.shufflenet_v2_x0_5",),
    "augment=crop_flip": ("augment.crop=1",),
    "learner=slda": ("learner.batch_size=10",),
}
NO_LEARNER = {"scenario", "scenario/source", "operator", "probe", "track", "experiment"}
"""Groups that decide nothing about a learner: the first three are bound by the laws of streams."""

STACKS: list[Case] = [
    ("strategy=[er,ewc]", *MOODY, *BLOBS),
    ("strategy=[derpp,lwf]", *MOODY, *BLOBS),
    ("strategy=[er_ace,ewc]", "train.head=seen", *MOODY, *BLOBS),
    ("strategy=er", "strategy.er.memory.store=indices", "strategy.er.memory.replacement=true", *MOODY, *BLOBS),
    ("strategy=er", "strategy.er.exclude_current=true", "train.head=current", *MOODY, *BLOBS),
    ("strategy=[lwf,er]", "scenario.kind=task", "train.head=per_task", *MOODY, *BLOBS),
    ("strategy=[er,derpp]", "scenario.arrival_rows=5", "train.iterations=2", *MOODY, *BLOBS),
    ("strategy=er", "operator=[noise,delay]", "scenario.arrival_rows=6", "operator.delay.rows=9", *MOODY, *BLOBS),
    ("strategy=er", "operator=missing", "scenario=permuted", "scenario.n_tasks=3", *MOODY),
    ("strategy=er", "optimizer.momentum=0.9", "clip=norm", "scheduler=step", "scheduler.step_size=3", *MOODY, *BLOBS),
    ("learner=slda", "learner.n_features=16", "learner.batch_size=10", *BLOBS),
]

# A law that something breaks by definition stands here, and must go on being broken.
EXCEPTIONS = {
    ("learner=joint", "memory_is_bounded"): "the upper bound keeps every row, by definition; its bytes say so",
    ("strategy=er_ace", "neutral_element", "n_replay"): "with nothing replayed its mask still acts; so its docstring says",
    ("strategy=[er_ace,ewc]", "neutral_element", "er_ace.n_replay"): "with nothing replayed its mask still acts",
}


def learner_cases() -> list[Case]:
    """One case for every choice that decides something about a learner, and the stacks."""
    cases = [case(choice.name) for group, case in LEARNED.items() for choice in choices(group)]
    return [(*case, *MADE_SMALL.get(case[0], ())) for case in cases] + STACKS


@cache
def subject(*case: str) -> Subject:
    if case[0] == "model=timm" and find_spec("timm") is None:
        pytest.skip("timm is not installed; it is an extra")
    return Subject(configs.compose(*case, allow=["continual.contract"]))


def told(case: Case) -> str:
    """The id of a case: what it is about."""
    fixed = {*MOODY, *BLOBS, *DIGITS, *MADE_SMALL.get(case[0], ())}
    return ",".join(word for word in case if word not in fixed)


def excused(*key: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(strict=True, reason=EXCEPTIONS[key], raises=AssertionError)] if key in EXCEPTIONS else []


def bound(case: Case) -> list[Any]:
    """The case with each law that binds it."""
    laws = LEARNER_LAWS if case[0].startswith("learner=avalanche/") else LEARNER_LAWS + NATIVE_LAWS
    ids = ((law, f"{told(case)}-{law.__name__}") for law in laws)
    return [pytest.param(case, law, id=name, marks=excused(case[0], law.__name__)) for law, name in ids]


@pytest.mark.parametrize(("case", "law"), [param for case in learner_cases() for param in bound(case)])
def test_learner(case: Case, law: Any) -> None:
    subject(*case).apply(law)


@pytest.mark.long
@pytest.mark.parametrize("case", [c for c in learner_cases() if "avalanche" not in c[0]], ids=told)
def test_resume_is_exact_from_every_update(case: Case) -> None:
    one = subject(*case)
    resume_is_exact(one.make_learner, one.make_stream, stops=every)


STRATEGY_CASES = [case for case in learner_cases() if re.match(r"strategy=(?!none)", case[0])]


@pytest.mark.parametrize("case", STRATEGY_CASES, ids=told)
@pytest.mark.parametrize(("law", "settings"), STRATEGY_LAWS, ids=lambda value: value.__name__)
def test_strategy(case: Case, law: Any, settings: Any, request: pytest.FixtureRequest) -> None:
    one = subject(*case)
    broken = []
    for name, node in one.strategies.items():
        for setting in settings(node):
            try:
                law(one.switched(name, setting), one.without(name), one.make_stream)
            except AssertionError:
                broken.append((case[0], law.__name__, f"{name}.{'+'.join(setting)}"))
    assert broken == []
