"""What ``continual status`` costs over thousands of runs.

Writes docs/benchmarks/status.json and renders docs/BENCHMARKS.md. On an otherwise idle machine::

    python scripts/benchmark_status.py                                 # some 4 minutes, nearly all to write the runs
    python scripts/benchmark_status.py --runs 500 --out /tmp/try.json  # a look; no page

As root it empties the machine's file caches a few times, to look at runs that are on the disk only. The runs are made
up, but lie in real ledgers with real manifests: 10 tasks, 300 records each. Most have finished; some are going on, were
stopped, killed, or failed with a traceback.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark import ROOT, publish, say, spread

from continual.config import Config, compose
from continual.ledger import TRACEBACK, Ledger
from continual.manifest import manifest
from continual.record import Record

RESULT = ROOT / "docs/benchmarks/status.json"
METHODS = ("strategy=none", "strategy=er", "strategy=derpp", "strategy=ewc", "learner=slda")
TASKS, ROWS, GOAL = 10, 1000, 2.0
EVERY = {"failed": 100, "killed": 97, "interrupted": 89, "running": 625}
"""One run of so many is in this state; a run is in the last that fits."""

DROP = Path("/proc/sys/vm/drop_caches")


def make(folder: Path, n: int) -> list[Ledger]:
    """Write the runs; the ledgers of those that go on."""
    configs = [compose("scenario=split_cifar100", method, "track=none", f"output={folder}") for method in METHODS]
    going_on = []
    for number in range(n):
        config = configs[number % len(configs)]
        state = next((state for state, every in reversed(EVERY.items()) if number % every == every - 1), "finished")
        going_on += write(config, folder / config.scenario / config.name / f"seed{number}-{number:08x}", number, state)
        if number % 1000 == 999:
            say(f"{number + 1} runs written")
    return going_on


def write(config: Config, directory: Path, seed: int, state: str) -> list[Ledger]:
    """One run in ``state``; its ledger if it goes on."""
    about = manifest(config.unresolved, config.resolved, seed=seed, threads=1, device="cpu", data_digest="made up")
    about |= {
        "scenario": config.scenario,
        "name": config.name,
        "hash": config.hash,
        "chosen": config.chosen,
        "spec": {"in_shape": [3, 32, 32], "n_classes": 100, "dtype": "uint8"},
        "schedule": list(range(TASKS)),
        "rows": TASKS * ROWS,
    }
    ledger = Ledger.create(directory, about)
    found = list(records())
    ledger.append(found if state == "finished" else found[: 2 * len(found) // 3])
    if state == "running":
        return [ledger]
    if state != "killed":
        ledger.end(state, None if state == "finished" else "ValueError: made up")  # type: ignore[arg-type]
    ledger.close()
    if state == "failed":
        frame = f'  File "{__file__}", line 1, in step\n    raise ValueError("made up")\n'
        (directory / TRACEBACK).write_text(f"Traceback (most recent call last):\n{20 * frame}ValueError: made up\n")
    return []


def records() -> Iterator[Record]:
    """What a run measures: three facts of each of ten probes at the end of each task."""
    for task in range(TASKS):
        one = Record((task + 1) * ROWS, (task + 1) * ROWS // 10, task, "end", 0, "accuracy", 0.5)
        for probe in range(TASKS):
            for metric in ("accuracy", "accuracy_seen", "negative_flips"):
                yield replace(one, probe=probe, metric=metric, value=0.5 + probe / 30)


def look(folder: Path) -> dict[str, float]:
    """Seconds and megabytes of the whole command, in a process of its own."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "continual", "status", str(folder)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    say(f"{done.stdout.splitlines()[0]}: {wall:.2f} s, {cpu:.2f} s of CPU time")
    return {"wall": wall, "cpu": cpu}


def forget(folder: Path) -> str | None:
    """Make the next reader go to the disk, as far as this machine lets us; what was forgotten, None for nothing."""
    os.sync()
    with suppress(OSError):
        DROP.write_text("3")
        return "with nothing of them cached"
    with suppress(OSError):
        for root, _, names in os.walk(folder):
            for name in names:
                descriptor = os.open(Path(root) / name, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        return "with the contents of no file cached"
    return None


def clocks(looks: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([took[name] for took in looks]) for name in looks[0]}


def measure(folder: Path, n: int, repeats: int) -> dict[str, Any]:
    """All figures."""
    going_on = make(folder, n)
    look(folder)
    warm = [look(folder) for _ in range(repeats)]
    cold, how = [], None
    for _ in range(repeats):
        how = forget(folder)
        cold += [look(folder)] if how else []
    for ledger in going_on:
        ledger.close()
    told = {"runs": n, "records_of_a_run": len(list(records())), "goal": GOAL, "warm": clocks(warm)}
    return told | ({"cold": {"how": how, **clocks(cold)}} if cold else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000, help="how many (default 5000)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments.runs, 5)
    publish("status", results, arguments.out)


if __name__ == "__main__":
    main()
