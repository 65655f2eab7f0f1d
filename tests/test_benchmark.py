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
    """A network and a memory that are small enough for a test, and that fills in it."""
    return contenders.Setup(batch=10, hidden=(8, 8), capacity=40, lr=0.03)


def stream(contenders: ModuleType, method: str) -> Any:
    return contenders.random_stream(N_TASKS, 100, contenders.BARE[method].KIND)


@pytest.mark.parametrize("method", STRATEGIES)
def test_the_bare_loop_and_ours_do_the_same_arithmetic(
    contenders: ModuleType, bare: Callable[[str], torch.Tensor], method: str
) -> None:
    if method not in contenders.BARE:
        pytest.skip("no bare loop")
    ours = contenders.Ours(method, stream(contenders, method), setup(contenders))
    weights = learned(ours, ours.learner.network)
    assert (weights - bare(method)).abs().max() < 1e-6
    for other in contenders.BARE.keys() - {method}:
        if len(bare(other)) == len(weights):
            assert (weights - bare(other)).abs().max() > 1e-4, f"the comparison cannot tell {method} from {other}"


def test_the_page_says_what_the_result_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    benchmark = import_module("benchmark")
    results = benchmark.results()
    assert {"steps", "tracking", "dashboard"} <= results.keys()
    assert benchmark.render(results) == benchmark.PAGE.read_text(encoding="utf-8")
