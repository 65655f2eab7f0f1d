"""What every test shares: one thread, so that results do not depend on the machine's cores."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, once per process; what needs it is skipped where it cannot be had."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"there is no Chromium at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page of its own; when the test ends none may have complained or asked for anything but its own origin."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def opened(url: str, scheme: str = "light", width: int = 1280) -> Any:
        own = url if url.startswith("file:") else url.rstrip("/") + "/"
        contexts.append(browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda ask: None if ask.url.startswith((own, "data:")) else wrong.append(ask.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
