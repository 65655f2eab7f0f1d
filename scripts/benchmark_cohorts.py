"""What training runs together saves: CPU time of a seed in a cohort against that of the same seed alone.

Writes docs/benchmarks/cohorts.json and renders docs/BENCHMARKS.md. On an otherwise idle machine::

    python scripts/benchmark_cohorts.py              # some 4 minutes
    python scripts/benchmark_cohorts.py --quick      # a look, in a minute

Steps: learners on random rows, without evaluation, taking turns. Sweeps: whole runs as ``continual run -m`` makes them,
their evaluation and ledgers included, and how far their results lie from those of the same runs alone.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from benchmark import ROOT, publish, say, spread

from continual import cohort
from continual.batches import TensorRows
from continual.cohort import Cohort
from continual.config import build_learner, compose, expand
from continual.launchers.basic import Basic
from continual.launchers.cohort import Cohorts
from continual.learner import SGDLearner
from continual.seeding import generator
from continual.statistics import paired_difference
from continual.stopping import Stop
from continual.types import Experience, Spec
from continual.worker import jobs_of

RESULT = ROOT / "docs/benchmarks/cohorts.json"
STEPS = {  # what is trained on random rows: overrides, side of an image, members
    **{
        f"MLP {width}-{width} on {side}x{side}, {strategy}": (
            (f"strategy={strategy}", "model=mlp", f"model.hidden=[{width},{width}]"),
            side,
            30,
        )
        for side, width in ((8, 32), (28, 32), (28, 100), (28, 400))
        for strategy in ("none", "er", "derpp", "ewc")
        if strategy in ("none", "er") or (side, width) == (28, 100)
    },
    "CNN on 28x28, er": (("strategy=er", "model=cnn"), 28, 10),
}
SWEEPS = {
    "digits, er": ("experiment=split_digits", "strategy=er"),
    "digits, er, evaluated at task ends only": ("experiment=split_digits", "strategy=er", "probe.every=null"),
}


class Nobody:
    """Watches nothing."""

    def begin(self, job: Any) -> None:
        """A run begins."""

    def end(self, outcome: Any) -> None:
        """It is over."""


def learners(overrides: Sequence[str], side: int, n: int) -> list[SGDLearner]:
    spec = Spec((1, side, side), 10, dtype=torch.uint8)
    made = [build_learner(compose("track=none", *overrides, f"seed={seed}"), spec) for seed in range(n)]
    for learner in made:
        learner.batch_size, learner.epochs = 10, 1
    return made


def experiences(side: int, updates: int, n: int) -> list[Experience]:
    draw = generator(0, "rows")
    shape = (10 * updates, 1, side, side)
    return [
        Experience(
            index,
            TensorRows(
                torch.randint(256, shape, dtype=torch.uint8, generator=draw),
                torch.randint(10, shape[:1], generator=draw),
            ),
        )
        for index in range(n)
    ]


def alone(learners: Sequence[SGDLearner], experience: Experience) -> None:
    for learner in learners:
        for _ in learner.learn(experience):
            pass


def seconds(act: Callable[..., object], *given: Any) -> float:
    began = process_time()
    act(*given)
    return process_time() - began


def measure_steps(repeats: int, updates: int) -> dict[str, Any]:
    """Microseconds of CPU time of an update of one seed, alone and in a cohort, and their ratio within a turn."""
    results = {}
    for name, (overrides, side, n) in STEPS.items():
        singles, members = learners(overrides, side, 3), learners(overrides, side, n)
        group = Cohort(Stop(0))
        for member in members:
            group.join(member)
        turns = []
        for experience in experiences(side, updates, repeats + 1):
            one = seconds(alone, singles, experience) / len(singles)
            acts = [partial(alone, [member], experience) for member in members]
            many = seconds(lambda: list(group.run(acts))) / n  # noqa: B023  # it is called at once
            turns.append((one / updates * 1e6, many / updates * 1e6))
        assert group.alone == 0, group.apart
        results[name] = {
            "members": n,
            "alone": spread([one for one, _ in turns[1:]]),
            "together": spread([many for _, many in turns[1:]]),
            "gain": spread([one / many for one, many in turns[1:]]),
        }
        say(name, f"{results[name]['gain']['median']:.2f}")
    return results


def measure_sweeps(repeats: int, n: int) -> dict[str, Any]:
    """Seconds of CPU time of a seed, one after the other and in a cohort; and by how much the results differ."""
    results = {}
    for name, overrides in SWEEPS.items():
        times: dict[str, list[float]] = {"basic": [], "cohort": []}
        for turn in range(repeats + 1):
            found = {}
            for kind, launcher in (("basic", Basic()), ("cohort", Cohorts())):
                with tempfile.TemporaryDirectory() as folder:
                    jobs = jobs_of(expand([*overrides, f"seed=range({n})", "track=none", f"output={folder}"]))
                    began = process_time()
                    outcomes = list(launcher(jobs, Nobody()))
                    taken = process_time() - began
                if turn:  # the first one imports
                    times[kind].append(taken / n)
                accuracy = [(o.config.resolved["seed"], o.run.metrics["average_accuracy"]) for o in outcomes]
                found[kind] = dict(accuracy)
        difference = paired_difference(found["cohort"], found["basic"])
        results[name] = {
            "runs": n,
            "alone": spread(times["basic"]),
            "together": spread(times["cohort"]),
            "gain": spread([a / b for a, b in zip(times["basic"], times["cohort"], strict=True)]),
            "accuracy_alone": statistics.fmean(found["basic"].values()),
            "difference": [difference.mean, difference.low, difference.high],
            "equal": sum(found["cohort"][seed] == found["basic"][seed] for seed in found["basic"]),
        }
        say(name, f"{results[name]['gain']['median']:.2f}")
    return results


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--quick", action="store_true", help="fewer turns of fewer updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cohort.LARGEST = sys.maxsize  # also what is refused since it gains nothing
    repeats, updates, runs = (1, 20, 5) if options.quick else (3, 60, 20)
    results = {"steps": measure_steps(repeats, updates), "sweeps": measure_sweeps(1 if options.quick else 2, runs)}
    publish("cohorts", results, options.out)


if __name__ == "__main__":
    main()
