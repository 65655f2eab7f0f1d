"""The benchmark compares like with like, and its page says what its result files say."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The loops with a network and a memory that are small enough for a test."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = import_module("contenders")
    monkeypatch.setattr(module, "HIDDEN", (8, 8))
    monkeypatch.setattr(module, "CAPACITY", 40)
    monkeypatch.setattr(module, "LEARNING_RATE", 0.1)
    return module


def weights(network: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("method", ["none", "er", "derpp", "ewc"])
def test_the_bare_loop_and_ours_do_the_same_arithmetic(contenders: ModuleType, method: str) -> None:
    stream = contenders.random_stream(2, 100)
    ours, bare = contenders.Ours(method, stream, 10), contenders.BARE[method](stream, 10)
    assert [ours(task).steps for task in range(2)] == [bare(task).steps for task in range(2)] == [10, 10]
    learned, reference = weights(ours.learner.network), weights(bare.network)
    assert (learned - reference).abs().max() < 1e-6
    others = [contenders.BARE[other](stream, 10) for other in contenders.METHODS if other != method]
    for other in others:
        for task in range(2):
            other(task)
        assert (learned - weights(other.network)).abs().max() > 1e-4  # the comparison can fail


def test_the_page_says_what_the_result_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    benchmark = import_module("benchmark")
    results = benchmark.results()
    assert {"steps", "tracking", "dashboard"} <= results.keys()
    assert benchmark.render(results) == benchmark.PAGE.read_text(encoding="utf-8")
