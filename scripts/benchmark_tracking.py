"""What offline tracking costs: its share of the time of a step, and the start and finish of a run apart from it.

The learner is a small network trained on random rows, the records are a fixed number of accuracies every few steps.
Blocks of steps with and without tracking alternate, so that the difference also holds what wandb's thread and process
take away; the time inside ``log`` alone is printed beside it. Run on an otherwise idle machine::

    python scripts/benchmark_tracking.py --steps 4000 --every 10 --probes 5
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from continual.track import NoTracker, RunFacts, Tracker, Wandb, close
from continual.types import Record

Step = Callable[[], None]


def make_step(hidden: int, batch: int) -> Step:
    """One plain SGD update of a network with two hidden layers on 784 inputs and 10 classes."""
    network = nn.Sequential(
        nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    x, y = torch.rand(batch, 784), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def moment(step: int, probes: int) -> list[Record]:
    return [Record(step * 10, step, 0, "step", probe, "accuracy", 0.5) for probe in range(probes)]


def run_block(step: Step, tracker: Tracker, first: int, steps: int, every: int, probes: int) -> tuple[float, float]:
    """Seconds of a block of steps, and how many of them were spent inside ``tracker.log``."""
    inside, start = 0.0, time.perf_counter()
    for index in range(first, first + steps):
        step()
        if index % every == 0:
            records, before = moment(index, probes), time.perf_counter()
            tracker.log(records)
            inside += time.perf_counter() - before
    return time.perf_counter() - start, inside


def facts(directory: Path, seed: int, probes: int) -> RunFacts:
    return RunFacts("er", "random", "er", seed, f"run{seed}", directory / f"seed{seed}", {}, probes)


def measure_share(directory: Path, arguments: argparse.Namespace) -> None:
    step, blocks = make_step(arguments.hidden, arguments.batch), 10
    steps = arguments.steps // blocks
    tracked, plain = Wandb(mode="offline")(facts(directory, 0, arguments.probes)), NoTracker()
    run_block(step, plain, 0, steps, arguments.every, arguments.probes)  # warm up
    times: list[tuple[float, float, float]] = []
    for block in range(blocks):
        without, _ = run_block(step, plain, block * steps, steps, arguments.every, arguments.probes)
        with_it, inside = run_block(step, tracked, block * steps, steps, arguments.every, arguments.probes)
        times.append((without, with_it, inside))
    without, with_it, inside = (sum(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b, _ in times)
    moments = blocks * len(range(0, steps, arguments.every))
    print(f"step without tracking   {without / steps / blocks * 1e6:8.0f} us")
    print(f"log, per moment         {inside / moments * 1e6:8.0f} us   ({arguments.probes} probes)")
    print(f"share inside log        {inside / with_it:8.1%}      (a moment every {arguments.every} steps)")
    print(f"share, with and without {1 - 1 / ratio:8.1%}      (median of {blocks} pairs of blocks)")
    tracked.finish({}, None, "finished")


def measure_start(directory: Path, arguments: argparse.Namespace) -> None:
    starts, finishes = [], []
    matrix = [[0.5] * arguments.probes] * (arguments.probes + 1)
    for seed in range(1, arguments.runs + 1):
        before = time.perf_counter()
        tracker = Wandb(mode="offline")(facts(directory, seed, arguments.probes))
        starts.append(time.perf_counter() - before)
        tracker.log(moment(1, arguments.probes))
        before = time.perf_counter()
        tracker.finish({"average_accuracy": 0.5}, matrix, "finished")
        finishes.append(time.perf_counter() - before)
    print(f"start, later runs       {statistics.median(starts) * 1e3:8.1f} ms   (median of {arguments.runs})")
    print(f"finish, with its matrix {statistics.median(finishes) * 1e3:8.1f} ms   (median of {arguments.runs})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"steps": 4000, "every": 10, "probes": 5, "hidden": 256, "batch": 10, "runs": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WANDB_CACHE_DIR"] = folder
        before = time.perf_counter()
        Wandb(mode="offline")(facts(Path(folder), -1, arguments.probes)).finish({}, None, "finished")
        print(f"import and first run    {(time.perf_counter() - before) * 1e3:8.1f} ms   (once per process)")
        measure_share(Path(folder), arguments)
        measure_start(Path(folder), arguments)
        before = time.perf_counter()
        close()
        print(f"close                   {(time.perf_counter() - before) * 1e3:8.1f} ms   (once per process)")


if __name__ == "__main__":
    main()
