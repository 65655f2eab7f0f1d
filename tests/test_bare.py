"""Where a bare loop is measured on a stream of its own, its strategy acts there."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


def learned(loop: Any) -> torch.Tensor:
    for task in range(3):
        loop(task)
    return torch.cat([p.detach().flatten() for p in loop.network.parameters()])


@pytest.mark.parametrize("method", ["lwf", "dgr", "packnet"])
def test_a_bare_loop_differs_from_fine_tuning_on_its_own_stream(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    contenders = import_module("contenders")
    stream = contenders.random_stream(3, 60, contenders.BARE[method].KIND)
    setup = contenders.Setup(hidden=(8, 8), lr=0.1)
    weights = [learned(contenders.bare(name, stream, setup)) for name in (method, "none")]
    assert (weights[0] - weights[1]).abs().max() > 1e-4
