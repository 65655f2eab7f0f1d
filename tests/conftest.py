"""What every test shares: one thread, so that results do not depend on the machine's cores."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("continual", deadline=None, derandomize=True)  # no timed and no drawn assertion
settings.load_profile("continual")


@pytest.fixture
def data_root(monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The folder of real data, named by CONTINUAL_DATA or lying beside the checkout; None if there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    if "CONTINUAL_DATA" not in os.environ and beside.is_dir():
        monkeypatch.setenv("CONTINUAL_DATA", str(beside))
    folder = os.environ.get("CONTINUAL_DATA")
    return Path(folder) if folder else None


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line in this process; gives its exit code, what it printed, and what it said on stderr."""
    from continual.cli import main

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        return code, *capsys.readouterr()

    return call
