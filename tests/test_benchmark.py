"""The benchmark compares like with like, and its page says what its result files say."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
STRATEGIES = sorted(file.stem for file in (ROOT / "conf/strategy").glob("*.yaml"))
N_TASKS = 3


@pytest.fixture(scope="module")
def contenders() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    yield import_module("contenders")
    sys.path.remove(str(ROOT / "scripts"))


def learned(contender: Any, trained: Any) -> torch.Tensor:
    """The weights of ``trained`` after all tasks."""
    assert [contender(task).steps for task in range(N_TASKS)] == [10] * N_TASKS
    return torch.cat([p.detach().flatten() for p in trained.parameters()])


@pytest.fixture(scope="module")
def bare(contenders: ModuleType) -> Callable[[str], torch.Tensor]:
    """The weights that the bare loop of a strategy ends with."""

    @cache
    def weights(method: str) -> torch.Tensor:
        loop = contenders.bare(method, stream(contenders, method), setup(contenders))
        return learned(loop, loop)

    return weights


def setup(contenders: ModuleType) -> Any:
    """A network that is small enough for a test, and a memory that is filled in it.

    At a higher rate SCR, whose temperature is low, makes more of a rounding error than is let pass.
    """
    return contenders.Setup(batch=10, hidden=(8, 8), capacity=40, lr=0.02)


def stream(contenders: ModuleType, method: str) -> Any:
    return contenders.random_stream(N_TASKS, 100, contenders.BARE[method].KIND)


@pytest.mark.parametrize("method", STRATEGIES)
def test_the_bare_loop_and_ours_do_the_same_arithmetic(
    contenders: ModuleType, bare: Callable[[str], torch.Tensor], method: str
) -> None:
    ours = contenders.Ours(method, stream(contenders, method), setup(contenders))
    weights = learned(ours, ours.learner.network)
    assert (weights - bare(method)).abs().max() < 1e-6
    for other in contenders.BARE.keys() - {method}:  # the comparison can fail: it tells each from each other
        shared = min(len(weights), len(bare(other)), len(bare("none")))
        assert (weights[:shared] - bare(other)[:shared]).abs().max() > 2e-5, f"it cannot tell {method} from {other}"


def test_the_loops_agree_on_a_network_with_batch_statistics(contenders: ModuleType) -> None:
    small = contenders.Setup(batch=4, model="slim_resnet18", capacity=8, lr=0.01)
    for method in ("mir", "cls_er"):  # both ask the network beside training it
        rows = contenders.random_stream(1, 12)
        ours, loop = contenders.Ours(method, rows, small), contenders.bare(method, rows, small)
        ours(0), loop(0)
        for own, other in zip(
            ours.learner.network.state_dict().values(), loop.network.state_dict().values(), strict=True
        ):
            assert (own - other).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["er", "er_ace", "mir", "der", "derpp", "scr"])
def test_avalanche_replays_as_many_rows_as_ours(contenders: ModuleType, method: str) -> None:
    """In the third task: some of its strategies replay nothing in the first, MIR not in the second either."""
    rows, small = contenders.random_stream(3, 40, contenders.BARE[method].KIND), setup(contenders)
    theirs = contenders.Theirs(contenders.avalanche_learner(method, small, rows.spec), list(rows))
    ours = contenders.Ours(method, rows, small)
    spent = []
    for contender, cost in ((theirs, lambda: theirs.learner.account.spent), (ours, lambda: ours.learner.spent)):
        contender(0), contender(1)
        before = cost()
        contender(2)
        spent.append(cost() - before)
    assert 0.6 < spent[0] / spent[1] < 1.25, f"forward-equivalents of Avalanche's and of ours: {spent}"


def test_the_page_says_what_the_result_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = import_module("benchmark_page")
    results = page.results()
    assert results.keys() <= page.SECTIONS.keys()
    assert {"steps", "tracking", "dashboard"} <= results.keys()
    assert page.render(results) == page.PAGE.read_text(encoding="utf-8")


def test_figures_of_a_result_file_are_replaced_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page, file = import_module("benchmark_page"), tmp_path / "steps.json"
    first, second = {"command": "first"}, {"command": "second"}
    page.keep("steps", {"a": {"value": 1}, "b": {"value": 2}}, first, file)
    page.keep("steps", {"b": {"value": 3}}, second, file)
    held = page.read(file)["steps"]
    assert held["figures"] == {"a": {"value": 1, "run": 0}, "b": {"value": 3, "run": 1}}
    assert held["runs"] == [first, second]
    page.keep("steps", {"a": {"value": 4}}, second, file)
    assert page.read(file)["steps"]["runs"] == [second]  # of the first run there is no figure any more


def test_a_figure_that_misses_its_goal_is_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = import_module("benchmark_page")
    ratio = {"median": 1.2, "low": 1.1, "high": 1.3, "n": 3}
    assert page.judged(ratio, at_most=1.2) == "1.20 (1.10 to 1.30)"
    assert page.judged(ratio, at_most=1.1) == "**1.20** (1.10 to 1.30)"
    assert page.judged(ratio, at_most=1.199) == "**1.200** (1.10 to 1.30)"  # not "1.20" at a goal of 1.20
    assert page.judged(ratio, at_least=1.2, ranged=False) == "1.20"
    assert page.judged(ratio, at_least=2.0, ranged=False) == "**1.20**"
