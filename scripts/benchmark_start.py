"""What a start takes: ``continual --help``, and ``continual run`` up to the end of its first update.

Writes docs/benchmarks/start.json and renders docs/BENCHMARKS.md. On an otherwise idle machine::

    python scripts/benchmark_start.py                              # a minute or two
    python scripts/benchmark_start.py --quick --out /tmp/try.json  # a look: two turns

The commands take turns; what they read lies in the disk's cache by the first, which does not count. A run is asked to
measure after each update, and is killed when the first such line is in its ledger. For comparison: importing torch.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_page import RESULTS, publish, say, spread

RESULT = RESULTS / "start.json"
GOALS = {"help": 0.5, "run": 4.0}
RUN = ("run", "experiment=split_digits", "probe.every=1", "track=none", "--quiet")
COMMANDS = {
    "help": ("-m", "continual", "--help"),
    "import torch": ("-c", "import torch"),
    "run": ("-m", "continual", *RUN, "strategy=er"),
    "run, track=wandb offline": ("-m", "continual", *RUN, "strategy=er", "track=wandb", "track.mode=offline"),
}


def look(words: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Wall and CPU seconds until it has ended, or has made its first update if it is a run."""
    own = [*words, f"output={folder / 'runs'}"] if "run" in words else list(words)
    before, began = children(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *own], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, text=True
    )
    while process.poll() is None and not ("run" in words and updated(folder)):
        time.sleep(0.002)
    wall = time.perf_counter() - began
    failed = process.poll() not in (None, 0)
    process.kill()
    _, told = process.communicate()
    if failed:
        raise SystemExit(told)
    return {"wall": wall, "cpu": children() - before}


def children() -> float:
    """CPU seconds of the processes that were begun here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def updated(folder: Path) -> bool:
    """Whether a run in ``folder`` has measured within a task."""
    return any('"at":"step"' in path.read_text(encoding="utf-8") for path in folder.rglob("records.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns")
    parser.add_argument("--repeats", type=int, default=7, help="turns (default 7)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1"})
    looks: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    for turn in range(1 + (2 if arguments.quick else arguments.repeats)):
        for name, words in COMMANDS.items():
            with tempfile.TemporaryDirectory() as folder:
                took = look(words, Path(folder))
            say(f"{name}: {took}")
            looks[name] += [took] if turn else []
    figures = {name: {clock: spread([took[clock] for took in found]) for clock in ("wall", "cpu")}
               for name, found in looks.items()}  # fmt: skip
    publish("start", {"goals": GOALS, "commands": figures}, arguments.out)


if __name__ == "__main__":
    main()
