"""The whole way: real runs, the exported page in a real browser against the ledgers, and runs followed live.

``CONTINUAL_SCREENSHOTS`` names a folder for the pictures; without it they go where the test's own files go.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from continual import ledger
from continual.cli import main
from continual.dashboard.collect import Follower
from continual.dashboard.live import LiveServer
from continual.ledger import Ledger
from continual.metrics import accuracy_matrix, summary
from continual.report import text
from continual.statistics import interval

ROWS = ("none", "er", "derpp", "ewc", "slda")
SEEDS = (0, 1, 2)
SHOWN = ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer", "anytime_accuracy", "peak_bytes")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five methods, three seeds, five tasks of digits."""
    folder = tmp_path_factory.mktemp("comparison") / "runs"
    common = ("experiment=split_digits", "seed=range(3)", "train.epochs=1", "track=none", f"output={folder}")
    assert main(["run", "-m", "--quiet", *common, "strategy=none,er,derpp,ewc"]) == 0
    assert main(["run", "-m", "--quiet", *common, "learner=slda"]) == 0
    return folder


@pytest.fixture(scope="module")
def measured(runs: Path) -> dict[str, list[ledger.RunData]]:
    """{row: its runs in order of their seeds}, as the ledgers say."""
    found: dict[str, list[ledger.RunData]] = {name: [] for name in ROWS}
    for path in ledger.find_runs([runs]):
        data = ledger.read(path)
        found[data.manifest["name"]].append(data)
    return {name: sorted(own, key=lambda run: int(run.manifest["seed"])) for name, own in found.items()}


@pytest.fixture(scope="module")
def exported(runs: Path) -> Path:
    page = runs.parent / "page.html"
    assert main(["dashboard", str(runs), "--export", str(page)]) == 0
    return page


def drawn(page: Any) -> None:
    page.wait_for_selector("html[data-ready]", timeout=60_000)


def test_the_command_says_where_the_page_is(runs: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    target = tmp_path / "deep" / "page.html"
    code, out, _ = cli("dashboard", str(runs), "--export", str(target))
    assert code == 0
    assert str(target) in out
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert cli("dashboard", str(runs), "--export", str(tmp_path))[0] == 2, "a folder is not a file"
    code, _, said = cli("dashboard", str(tmp_path / "nowhere"))
    assert code == 2
    assert "nowhere does not exist" in said


def test_the_table_says_what_the_ledgers_say(
    open_page: Callable[..., Any], exported: Path, measured: dict[str, list[ledger.RunData]]
) -> None:
    page = open_page(exported.as_uri())
    drawn(page)
    for name, own in measured.items():
        assert len(own) == len(SEEDS)
        summaries = [summary(run.records) for run in own]
        for metric in SHOWN:
            expected = interval([values[metric] for values in summaries])
            cell = page.locator(f'[data-panel="strategies"] tr[data-row="{name}"] td[data-metric="{metric}"]')
            assert cell.locator(".estimate > :first-child").inner_text() == text.number(metric, expected.mean)
            half = text.estimate(metric, expected).partition("±")[2].split()
            assert cell.locator("small").inner_text() == (f"±{half[0]}" if half else "")
    assert "floor" in page.locator('[data-panel="strategies"] tr[data-row="slda"]').inner_text()
    assert not re.search(r"\b(null|undefined|NaN)\b", page.locator("body").inner_text())


def test_the_matrix_in_each_of_its_views(
    open_page: Callable[..., Any], exported: Path, measured: dict[str, list[ledger.RunData]]
) -> None:
    page = open_page(exported.as_uri())
    drawn(page)
    matrices = {name: np.stack([accuracy_matrix(run.records).values for run in own]) for name, own in measured.items()}
    er, none = matrices["er"], matrices["none"]

    def choose(**controls: str) -> list[str]:
        for control, value in controls.items():
            page.select_option(f'[data-panel="matrix"] [data-control="{control}"]', value)
            drawn(page)
        return [
            str(word.text_content()) for word in page.locator('[data-panel="matrix"] g[aria-label=text] text').all()
        ]

    def close(shown: list[str], values: np.ndarray) -> None:
        assert len(shown) == values.size
        np.testing.assert_allclose([float(word) for word in shown], 100 * values.ravel(), atol=0.51)

    close(choose(row="er"), er.mean(0))
    close(choose(seed="2"), er[2])
    close(choose(seed="mean", show="change"), np.diff(er.mean(0), axis=0))
    close(choose(show="minus", base="none"), (er - none).mean(0))


def test_sorting_and_hovering(open_page: Callable[..., Any], exported: Path) -> None:
    page = open_page(exported.as_uri())
    drawn(page)

    def order() -> list[str]:
        return [row.get_attribute("data-row") for row in page.locator('[data-panel="strategies"] tbody tr').all()]

    def values(metric: str) -> list[float]:
        cells = page.locator(f'[data-panel="strategies"] td[data-metric="{metric}"] .estimate > :first-child')
        return [float(re.sub(r"[^\d.-]", "", cell.inner_text())) for cell in cells.all()]

    heading = page.locator('[data-panel="strategies"] th[data-metric="forgetting"]')
    heading.locator("button").click()
    drawn(page)
    first = order()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values("forgetting") == sorted(values("forgetting"))
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    drawn(page)
    assert heading.get_attribute("aria-sort") == "descending"
    assert order() == first[::-1]

    box = page.locator('[data-panel="matrix"] rect[data-cell="5,4"]')
    box.scroll_into_view_if_needed()
    drawn(page)
    box.hover(force=True)  # a number lies on it
    tip = page.locator('[data-panel="matrix"] g[aria-label=tip]')
    tip.locator("text").first.wait_for(timeout=10_000)
    assert "on task 4, after task 4" in tip.text_content()
    assert "n = 3" in tip.text_content()


def test_pictures_in_both_lights_and_on_a_phone(open_page: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
    folder = Path(os.environ.get("CONTINUAL_SCREENSHOTS", tmp_path))
    colours = {}
    for name, scheme, width in (("light", "light", 1280), ("dark", "dark", 1280), ("narrow", "light", 380)):
        page = open_page(exported.as_uri(), scheme=scheme, width=width)
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name}: too wide"
        colours[name] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        picture = folder / f"dashboard-{name}.png"
        page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 50_000
    assert colours["light"] == colours["narrow"] != colours["dark"]


@pytest.fixture
def follower(runs: Path, tmp_path: Path) -> Iterator[tuple[LiveServer, Path]]:
    """A live server over a folder in which nothing has run yet."""
    folder = tmp_path / "running"
    folder.mkdir()
    with LiveServer(Follower([folder])) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server, folder
        finally:
            server.shutdown()
            thread.join()


def test_a_run_is_followed_while_it_is_written(
    open_page: Callable[..., Any], follower: tuple[LiveServer, Path], measured: dict[str, list[ledger.RunData]]
) -> None:
    """A run of the comparison is written again, moment by moment, by the ledger that every run is written by."""
    server, folder = follower
    page = open_page(server.url)
    drawn(page)
    assert "no runs" in page.locator("#top").inner_text().lower()
    source = measured["er"][0]
    line = '[data-panel="runs"] tr[data-run="er/0"]'
    ends = [at for at, fact in enumerate(source.records) if fact.at == "end" and fact.metric == "class_accuracy"]
    cuts = [max(at for at in ends if source.records[at].task == task) + 1 for task in range(5)]
    damaged = folder / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    page.get_by_text("left out:").wait_for(timeout=30_000)
    assert "damaged" in page.locator("#top .warning").inner_text()
    directory = folder / source.path.name
    with Ledger.create(directory, {k: v for k, v in source.manifest.items() if k != "format"}) as book:
        begin = 0
        for done, cut in enumerate(cuts, start=1):
            book.append(source.records[begin:cut])
            begin = cut
            page.wait_for_selector(f"{line} progress[value='{done}']", timeout=30_000)
            assert page.locator(line).get_attribute("data-state") == "running"
        drawn(page)
        assert "unfinished" in page.locator('[data-panel="strategies"]').inner_text()
        page.select_option('[data-panel="matrix"] [data-control="show"]', "change")
        book.append(source.records[begin:])
    page.wait_for_selector(f"{line}[data-state=finished]", timeout=30_000)
    drawn(page)
    assert page.locator('[data-panel="matrix"] [data-control="show"]').input_value() == "change", "a choice is kept"
    shown = page.locator('[data-panel="strategies"] td[data-metric="average_accuracy"] .estimate > :first-child')
    assert shown.inner_text() == text.number("average_accuracy", summary(source.records)["average_accuracy"])
    assert "ne seed, so no interval" in page.locator('[data-panel="strategies"]').inner_text()


def test_an_experiment_under_way_is_followed(open_page: Callable[..., Any], follower: tuple[LiveServer, Path]) -> None:
    """The command in another thread, the page beside it: nothing is written again here."""
    server, folder = follower
    page = open_page(server.url)
    drawn(page)
    seen: list[int] = []
    words = ["run", "--quiet", "experiment=split_digits", "strategy=er", "train.epochs=8", "track=none"]
    worker = Thread(target=lambda: seen.append(main([*words, f"output={folder}"])))
    worker.start()
    page.wait_for_selector('[data-panel="runs"] tr[data-run="er/0"]', timeout=60_000)
    page.wait_for_selector('[data-panel="runs"] tr[data-state=finished]', timeout=60_000)
    worker.join()
    assert seen == [0]
    assert "5 of 5" in page.locator('[data-panel="runs"] tr[data-run="er/0"]').inner_text()
