"""What every test shares: one thread, so that results do not depend on the machine's cores."""

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings

from continual.types import Batch, Experience, Spec

torch.set_num_threads(1)
settings.register_profile("continual", deadline=None, derandomize=True)  # no timed and no drawn assertion
settings.load_profile("continual")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Table:
    """Rows in two tensors: the smallest ``continual.types.Rows``."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y, self.ids = x, y, torch.arange(len(y))

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: torch.Tensor) -> Batch:
        n = len(indices)
        dtype = self.x.dtype if self.x.is_floating_point() else torch.float32
        weight = torch.full((n,), 1 / max(n, 1), dtype=dtype)
        return Batch(self.x[indices], self.y[indices], weight, n, {"id": self.ids[indices]})

    def fetch(self, ids: torch.Tensor) -> torch.Tensor:
        return self.x[ids]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """``figure("20 kills")``: a line of the report at the end, of a test that counts something."""
    return lambda told: record_property("figure", told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.stats.get("passed", [])
    told = [
        f"{report.nodeid}: {value}" for report in passed for key, value in report.user_properties if key == "figure"
    ]
    if told:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(told))


@pytest.fixture
def table() -> type[Table]:
    """``table(x, y)``: rows (N, *in_shape) and labels (N,) as the rows of an experience."""
    return Table


@pytest.fixture
def arrival() -> Callable[..., Experience]:
    """``arrival(index, [0.5, -1.0], [0, 1], task=None)``: an experience of one-number rows in float64."""

    def make(index: int, x: list[float], y: list[int], task: int | None = None) -> Experience:
        return Experience(index, Table(torch.tensor(x, dtype=torch.float64)[:, None], torch.tensor(y)), task)

    return make


@pytest.fixture
def three() -> Callable[[Spec], torch.nn.Module]:
    """f(spec) -> the three-parameter model: logits w x for a number x, w = (0.3, -0.2, 0.5), float64."""

    def make(spec: Spec) -> torch.nn.Module:
        model = torch.nn.Linear(1, 3, bias=False, dtype=torch.float64)
        model.weight.data[:, 0] = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
        return model

    return make


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


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run with R = [[.5, .5], [first, .5], [kept, 1]]: accuracy (kept + 1) / 2, forgetting first - kept."""
    from continual.ledger import Ledger
    from continual.types import Record

    def write(
        name: str, seed: int = 0, kept: float = 0.5, first: float = 1.0, at: str = "runs",
        learner: str = "continual.learner.SGDLearner", config: dict[str, Any] | None = None,
        records: list[Record] | None = None, extra: Iterable[Record] = (), end: str = "finished", **about: Any,
    ) -> Path:  # fmt: skip
        number = len(list(tmp_path.rglob("manifest.json")))
        written = {"scenario": {"n_tasks": 2}, "learner": {"_target_": learner}} | (config or {})
        facts = {
            "created": f"2030-01-01T00:00:{number:02}+00:00",
            "config": yaml.safe_dump(written),
            "seed": seed,
            "device": "cpu",
            "data_digest": f"data{seed}",
            "commit": "c0ffee0000",
            "versions": {"continual": "0.1.0", "torch": "2.10"},
            "scenario": "split-digits",
            "name": name,
            "spec": {"in_shape": [8], "n_classes": 4},
        }
        rows = [(0, None, "start", (0.5, 0.5)), (10, 0, "end", (first, 0.5)), (20, 1, "end", (kept, 1.0))]
        measured = [Record(seen, seen, t, a, p, "accuracy", v) for seen, t, a, own in rows for p, v in enumerate(own)]
        ledger = Ledger.create(tmp_path / at / str(number), facts | about)
        ledger.append([*(measured if records is None else records), *extra])
        ledger.end(end)  # type: ignore[arg-type]
        ledger.close()
        return ledger.path

    return write


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


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """``load_script(name)`` is the module ``scripts/<name>.py``."""

    def load(name: str) -> ModuleType:
        scripts = Path(__file__).parents[1] / "scripts"
        spec = importlib.util.spec_from_file_location(name, scripts / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(scripts)  # it imports its neighbours
            patch.setitem(sys.modules, name, module)  # its dataclasses look themselves up there
            spec.loader.exec_module(module)
        return module

    return load
