"""What `continual check` finds in sound and in broken parts; the example of the docs is one of the sound."""

import re
import sys
from pathlib import Path

import pytest

from continual.config import compose
from continual.contract import (
    LEARNER_LAWS,
    MEMORY_LAWS,
    NATIVE_LAWS,
    STREAM_LAWS,
    Finding,
    Subject,
    check_config,
    neutral_element,
    strength_acts,
)
from continual.errors import UserError

BLOBS = ("scenario/source=gaussian", "scenario.source.rows_per_class=20", "scenario.n_tasks=2", "model.hidden=[16]")
DOC = (Path(__file__).parents[1] / "docs" / "write-a-strategy.md").read_text(encoding="utf-8")


def test_a_sound_config_keeps_every_law() -> None:
    found = list(check_config("strategy=er", *BLOBS))
    laws = (*STREAM_LAWS, *LEARNER_LAWS, *NATIVE_LAWS, *MEMORY_LAWS, neutral_element, strength_acts)
    assert {finding.law for finding in found} == {law.__name__ for law in laws}
    assert [finding for finding in found if not finding.passed] == []
    subjects = {finding.subject for finding in found}
    assert subjects == {
        "scenario split-gaussian",
        "learner sgd",
        "learner sgd with batch normalisation and dropout",
        "strategy er with n_replay=0",
        "strategy er with n_replay=10",
        "strategy er with strength=0",
        "strategy er with strength=10",
        "memory of er",
    }
    assert all(finding.about and not finding.reason for finding in found)


def example(folder: Path, name: str, **changes: str) -> Path:
    """The example of the docs as files below ``folder``, with some words of the code changed."""
    code, config = (re.search(rf"```{kind}\n(.*?)```", DOC, re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None
    assert config is not None
    text = code[1]
    for old, new in changes.items():
        text = text.replace(SPOTS[old], new)
    (folder / f"{name}.py").write_text(text)
    (folder / "conf" / "strategy").mkdir(parents=True)
    (folder / "conf" / "strategy" / "anchor.yaml").write_text(config[1].replace("anchor.Anchor", f"{name}.Anchor"))
    return folder / "conf"


SPOTS = {"copy": "p.detach().clone()", "state": '{"anchor": self.anchor}'}


def check(folder: Path, name: str, **changes: str) -> list[Finding]:
    config_dir = example(folder, name, **changes)
    return list(check_config("strategy=anchor", *BLOBS, config_dir=config_dir, allow=[name]))


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # what --config-dir adds is taken away again


def test_the_example_of_the_docs_keeps_every_law(tmp_path: Path) -> None:
    found = check(tmp_path, "anchor_of_docs")
    assert [finding for finding in found if not finding.passed] == []
    assert "strategy anchor with strength=10" in {finding.subject for finding in found}


def test_every_law_is_in_the_docs() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE))
    laws = {law.__name__ for law in (*LEARNER_LAWS, *NATIVE_LAWS, neutral_element, strength_acts)}
    assert laws <= told


def test_state_that_is_not_stored_is_found(tmp_path: Path) -> None:
    broken = {
        finding.law for finding in check(tmp_path, "anchor_forgets", state='{"anchor": {}}') if not finding.passed
    }
    assert {"resume_is_exact", "bytes_are_declared"} <= broken


def test_a_strategy_that_fails_is_a_finding_not_a_crash(tmp_path: Path) -> None:
    found = check(tmp_path, "raises", copy="p.missing")
    reasons = {finding.reason for finding in found if not finding.passed}
    assert any(reason.startswith("it raised AttributeError") for reason in reasons)


def test_a_wrong_config_is_refused_before_the_first_law() -> None:
    with pytest.raises(UserError, match="did you mean 'er'"):
        check_config("strategy=err")
    with pytest.raises(UserError, match="does not divide"):
        check_config("scenario.n_tasks=3")


def test_the_laws_can_be_applied_one_by_one(tmp_path: Path) -> None:
    config_dir = example(tmp_path, "anchor_by_hand")
    subject = Subject(compose("strategy=anchor", *BLOBS, config_dir=config_dir, allow=["anchor_by_hand"]))
    assert subject.laws == LEARNER_LAWS + NATIVE_LAWS
    for law in subject.laws:
        subject.apply(law)
