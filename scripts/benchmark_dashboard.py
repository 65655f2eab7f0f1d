"""What the dashboard costs: bytes and time to paint of a page, seconds to build one from many runs.

Writes docs/benchmarks/dashboard.json and renders docs/BENCHMARKS.md. Needs Chromium. On an otherwise idle machine::

    python scripts/benchmark_dashboard.py                              # some 5 minutes
    python scripts/benchmark_dashboard.py --quick --out /tmp/try.json  # a look: a sixth of the records; no page

The runs are made up, but lie in real ledgers with real manifests: 50 tasks of 2 classes, evaluated 10 times within each
task on all tasks so far, and at its end on all tasks and classes. That is 500 points on a curve, and 25,000 records.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import ROOT, publish, say, spread

from continual.config import Config, compose
from continual.ledger import Ledger
from continual.manifest import manifest
from continual.types import Record

RESULT = ROOT / "docs/benchmarks/dashboard.json"
METHODS = (
    "strategy=none", "strategy=er", "strategy=er_ace", "strategy=derpp", "strategy=ewc", "strategy=lwf",
    "learner=slda", "learner=joint", "strategy=[er,ewc]", "strategy=[er,lwf]",
)  # fmt: skip
SHOWN = (8, 3)  # of the methods and of their seeds
TASKS, WITHIN, ROWS = 50, 10, 1000
GOALS = {"megabytes": 1.5, "first_paint_ms": 600, "build_seconds": 3}
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WATCH = """
new MutationObserver((_, observer) => {
  if (document.documentElement?.dataset.ready) { window.drawn = performance.now(); observer.disconnect(); }
}).observe(document, { attributes: true, subtree: true, childList: true });
"""
"""Notes when the page says that every panel is drawn; it runs before the page's own scripts."""

BUILD = """
import json, sys, time
from pathlib import Path
start = time.perf_counter(), time.process_time()
from continual.dashboard.collect import collect
from continual.dashboard.page import render
ready = time.perf_counter(), time.process_time()
page = render(collect(sys.argv[2:]))
took = time.perf_counter() - ready[0], time.process_time() - ready[1]
Path(sys.argv[1]).write_text(page)
print(json.dumps({"wall": took[0], "cpu": took[1], "import": ready[1] - start[1]}))
"""
"""Builds a page in a Python of its own; what it must import first is the same for every command."""


def make(folder: Path, seeds: int, within: int) -> list[list[Path]]:
    """The runs of each method."""
    runs = []
    for method in METHODS:
        configs = [
            compose(
                "scenario=split_cifar100", f"scenario.n_tasks={TASKS}", method, f"seed={seed}", "track=none",
                f"probe.every={ROWS // (within + 1)}", f"output={folder}",
            )
            for seed in range(seeds)
        ]  # fmt: skip
        runs.append([write(config, seed, within) for seed, config in enumerate(configs)])
        say(f"{method}: {seeds} runs")
    return runs


def write(config: Config, seed: int, within: int) -> Path:
    """One run on disk."""
    about = manifest(
        config.unresolved, config.resolved, seed=seed, threads=1, device="cpu", data_digest=f"made up {seed}"
    )
    about |= {
        "scenario": config.scenario,
        "name": config.name,
        "hash": config.hash,
        "chosen": config.chosen,
        "spec": {"in_shape": [3, 32, 32], "n_classes": 2 * TASKS, "dtype": "uint8"},
        "schedule": list(range(TASKS)),
    }
    with Ledger.create(config.directory, about) as ledger:
        ledger.append(records(np.random.default_rng([seed, *config.name.encode()]), within))
    return config.directory


def records(random: np.random.Generator, within: int) -> Iterator[Record]:
    """What a run measures: a task is learned and fades away."""
    fading = 0.9 + 0.1 * random.random()

    def accuracies(task: int, at: str, rows: int, probes: int) -> Iterator[Record]:
        age = np.maximum(task - np.arange(probes), 0)
        values = np.clip(0.9 * fading**age + random.normal(0, 0.02, probes), 0, 1)
        for probe, value in enumerate(values.round(4).tolist()):
            yield Record(rows, rows // 10, task, at, probe, "accuracy", value)
            if at == "end":
                yield Record(rows, rows // 10, task, at, probe, "accuracy_seen", value)
                yield Record(rows, rows // 10, task, at, probe, "negative_flips", 0.02)

    for probe in range(TASKS):
        yield Record(0, 0, None, "start", probe, "probe_rows", 200.0)
        yield Record(0, 0, None, "start", probe, "accuracy", 0.01)
    for task in range(TASKS):
        for moment in range(1, within + 1):
            yield from accuracies(task, "step", task * ROWS + moment * ROWS // (within + 1), task + 1)
        yield from accuracies(task, "end", (task + 1) * ROWS, TASKS)
        for label, value in enumerate(random.random(2 * TASKS).round(4).tolist()):
            yield Record((task + 1) * ROWS, (task + 1) * ROWS // 10, task, "end", label, "class_accuracy", value)
    for metric, value in (("forward_equivalents_per_row", 30.0), ("peak_bytes", 1e6), ("seconds", 60.0)):
        yield Record(TASKS * ROWS, TASKS * ROWS // 10, TASKS - 1, "final", None, metric, value * random.uniform(0.9, 1))


def measure(folder: Path, seeds: int, within: int, repeats: int) -> dict[str, Any]:
    """All figures."""
    runs = make(folder / "runs", seeds, within)
    shown = [str(run) for own in runs[: SHOWN[0]] for run in own[: SHOWN[1]]]
    page, cache = folder / "page.html", folder / "cache"
    build(shown, page, folder / "other")
    painted = paint(page, repeats)
    first = build([str(folder / "runs")], folder / "all.html", cache)
    again = [build([str(folder / "runs")], folder / "all.html", cache) for _ in range(repeats)]
    return {
        "tasks": TASKS,
        "evaluations_within_a_task": within,
        "records_of_a_run": sum(1 for _ in records(np.random.default_rng(0), within)),
        "page": {"runs": len(shown), "megabytes": page.stat().st_size / 1e6, **painted},
        "build": {"runs": len(METHODS) * seeds, "first": clocks([first]), "again": clocks(again)},
        "goals": GOALS,
    }


def build(runs: list[str], page: Path, cache: Path) -> dict[str, float]:
    """Seconds: ``wall`` and ``cpu`` of collecting and rendering, ``import`` (CPU) of what was imported before."""
    command = [sys.executable, "-c", BUILD, str(page), *runs]
    done = subprocess.run(command, check=True, capture_output=True, env=os.environ | {"XDG_CACHE_HOME": str(cache)})
    took: dict[str, float] = json.loads(done.stdout)
    say(f"built from {len(runs)} paths in {took['wall']:.1f} s, {took['cpu']:.1f} s of CPU time")
    return took


def clocks(builds: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([took[name] for took in builds]) for name in builds[0]}


def paint(page: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds from the navigation to the first contentful paint and until all is drawn, each in a new browser."""
    from playwright.sync_api import sync_playwright

    painted, drawn = [], []
    with sync_playwright() as playwright:
        for _ in range(repeats + 1):  # the first one warms the disk's cache
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
            tab = browser.new_page()
            tab.add_init_script(WATCH)
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
            entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            painted.append(tab.evaluate(entry))
            drawn.append(tab.evaluate("window.drawn"))
            chromium = browser.version
            browser.close()
    say(f"first paint {statistics.median(painted[1:]):.0f} ms, drawn {statistics.median(drawn[1:]):.0f} ms")
    return {"first_paint_ms": spread(painted[1:]), "drawn_ms": spread(drawn[1:]), "chromium": chromium}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds and one evaluation within a task")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    seeds, within, repeats = (3, 1, 3) if arguments.quick else (10, WITHIN, 5)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), seeds, within, repeats)
    publish("dashboard", results, arguments.out, playwright=version("playwright"))


if __name__ == "__main__":
    main()
