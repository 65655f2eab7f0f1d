"""A step calls no operator and waits for nothing that it did not before: counted, so it holds on every machine.

The numbers are in step_counts.json, written by ``scripts/step_counts.py``; they are of one version of torch, and exact
there. Other versions may call others, in our code as in a bare loop: with these what a step calls beyond the bare loop
may be up to ``MARGIN`` times what it was, and waits no more often.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.learner import SGDLearner

ROOT = Path(__file__).parents[1]
MARGIN = 1.2

sys.path.insert(0, str(ROOT / "scripts"))
step_counts: Any = import_module("step_counts")
sys.path.pop(0)
WRITTEN = json.loads((ROOT / "tests/step_counts.json").read_text(encoding="utf-8"))
Counts = dict[str, int]


def complaint(name: str, found: Counts, bare: Counts, torch_version: str) -> str | None:
    """What is wrong with the counts ``found`` for a case; None if nothing is."""
    was, bare_was = WRITTEN["counts"][name], WRITTEN["counts"][step_counts.BARE]
    if torch_version == WRITTEN["torch"]:
        wrong = found != was
    else:
        allowed = MARGIN * (was["operators"] - bare_was["operators"])
        wrong = found["operators"] - bare["operators"] > allowed or found["waits"] > was["waits"]
    told = f"{step_counts.COUNTED} updates of '{name}' took {was}, and take {found} now"
    look = f"python scripts/step_counts.py --look '{name}' shows which; if it is meant, renew without --look and commit"
    return f"{told}; {look}" if wrong else None


@cache
def bare() -> Counts:
    counts: Counts = step_counts.summary(step_counts.count(step_counts.BARE))
    return counts


@pytest.mark.parametrize("name", step_counts.cases())
def test_a_step_costs_what_it_did(name: str, figure: Callable[[str], None]) -> None:
    assert name in WRITTEN["counts"], f"'{name}' was never counted; run python scripts/step_counts.py and commit"
    if step_counts.version() != WRITTEN["torch"]:
        figure(f"the counts are of torch {WRITTEN['torch']}, this is {torch.__version__}: compared with a margin")
    found = step_counts.summary(step_counts.count(name))
    wrong = complaint(name, found, bare(), step_counts.version())
    assert wrong is None, wrong


def test_nothing_is_written_that_is_no_longer_there() -> None:
    assert WRITTEN["counts"].keys() == {step_counts.BARE, *step_counts.cases()}


def slower(extra: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every update do something more with its labels."""
    update = SGDLearner._update

    def more(self: SGDLearner, batch: Any, check: bool) -> None:
        extra(batch.y)
        update(self, batch, check)

    monkeypatch.setattr(SGDLearner, "_update", more)


SLOWER: dict[str, Callable[[torch.Tensor], object]] = {
    "a copy": torch.clone,
    "a number read": lambda y: y[0].item(),
    "a truth read": lambda y: bool(y[0] == 0),
    "a list read": lambda y: y.tolist(),
    "rows dropped": lambda y: y[y > 0],
}


@pytest.mark.parametrize("what", SLOWER)
@pytest.mark.parametrize("version", [WRITTEN["torch"], "another"])
def test_a_slower_step_is_noticed(what: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slower(SLOWER[what], monkeypatch)
    found = step_counts.summary(step_counts.count("none"))
    waits = WRITTEN["counts"]["none"]["waits"] + step_counts.COUNTED * (what != "a copy")
    if step_counts.version() == WRITTEN["torch"]:
        assert found["waits"] == waits
    if version == WRITTEN["torch"] or what != "a copy":  # one operator more is within the margin
        assert complaint("none", found, bare(), version)


def test_more_than_the_margin_is_noticed_with_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    slower(lambda y: [y.clone() for _ in range(3)], monkeypatch)
    found: Counter[str] = step_counts.count("none")
    assert complaint("none", step_counts.summary(found), bare(), "another")


def test_a_version_whose_bare_loop_calls_more_may_call_more() -> None:
    was = WRITTEN["counts"]["none"]
    more = {name: {**counts, "operators": counts["operators"] + 30} for name, counts in WRITTEN["counts"].items()}
    assert complaint("none", more["none"], more[step_counts.BARE], "another") is None
    assert complaint("none", more["none"], more[step_counts.BARE], WRITTEN["torch"])
    assert complaint("none", was, WRITTEN["counts"][step_counts.BARE], WRITTEN["torch"]) is None
