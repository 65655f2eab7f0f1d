"""What storing a run costs at the default cadence, as a share of the run's time.

Writes docs/benchmarks/snapshots.json and renders docs/BENCHMARKS.md. On an otherwise idle machine::

    CONTINUAL_DATA=... python scripts/benchmark_snapshots.py     # some 3 minutes

Each run is made as ``continual run`` makes it, without tracking, in a fresh folder; timed are the whole run from its
first update on, and within it all that is done to store it.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmark import ROOT, publish, say, spread

from continual.checkpoint import Checkpoints
from continual.config import Config, compose, with_values
from continual.experiment import run_config

RESULT = ROOT / "docs/benchmarks/snapshots.json"
GOAL = 0.05
CASES = {
    "digits, 5 tasks of 145 updates, er": ("experiment=split_digits", "strategy=er"),
    "digits, 5 tasks of 145 updates, ewc": ("experiment=split_digits", "strategy=ewc"),
    "MNIST, 5 tasks of 500 updates of 128 rows, er": (
        *("experiment=split_mnist_batch", "train.iterations=500", "strategy=er", "strategy.er.n_replay=128"),
    ),
    "MNIST, online, 10 rows an update, er": ("experiment=split_mnist_mir", "strategy=er"),
}


def look(config: Config) -> dict[str, float]:
    """One run: its seconds, those that went into snapshots, how many there were, and the size of the last."""
    saving, sizes = 0.0, []
    original = Checkpoints.save

    def save(self: Checkpoints, score: float | None = None) -> None:
        nonlocal saving
        began = time.perf_counter()
        original(self, score)
        saving += time.perf_counter() - began
        sizes.append((self.directory / self.saved[-1].name).stat().st_size)

    Checkpoints.save = save  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run_config(with_values(config, {"output": folder}))
            seconds = time.perf_counter() - began
    finally:
        Checkpoints.save = original  # type: ignore[method-assign]
    return {"seconds": seconds, "share": saving / seconds, "snapshots": len(sizes), "bytes": sizes[-1]}


def measure(repeats: int) -> dict[str, Any]:
    """All figures by case; the cases take turns."""
    configs = {name: compose(*words, "track=none") for name, words in CASES.items()}
    looks: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    look(next(iter(configs.values())))  # imports and caches
    for _ in range(repeats):
        for name, config in configs.items():
            looks[name].append(look(config))
            say(f"{name}: {looks[name][-1]}")
    return {
        name: {key: spread([took[key] for took in found]) for key in found[0]} | {"words": list(CASES[name])}
        for name, found in looks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (default 5)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    publish("snapshots", {"goal": GOAL, "cases": measure(arguments.repeats)}, arguments.out)


if __name__ == "__main__":
    main()
