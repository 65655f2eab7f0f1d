"""What a task costs, training and evaluation, and what is held, as the number of tasks grows.

Writes docs/benchmarks/tasks.json and renders docs/BENCHMARKS.md. On an otherwise idle machine::

    python scripts/benchmark_tasks.py                              # some 6 minutes
    python scripts/benchmark_tasks.py --only ours/er               # keys that begin so; the others stay
    python scripts/benchmark_tasks.py --quick --out /tmp/try.json  # a look: at most 100 tasks, one method

Permuted random images, few rows in each task, so that what grows with the number of tasks is seen beside them. ``all``
measures every task at each end (``probe=default``), ``rotating`` a few in turn (``probe=rotating``). Every case is a
process of its own, which tells its peak; the CPU time of each task is taken apart for its steps and its evaluation.
Where all of 1,000 tasks are measured each time, only the first are gone through: each end costs the same there.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bare import Setup, now
from benchmark_page import RESULTS, command, keep, machine, read, render_beside, say
from contenders import Theirs, avalanche_learner, shared

from continual.config import build, build_learner, compose
from continual.probe import Measure
from scenarios.sources import TensorSource
from scenarios.stream import IndexStream
from scenarios.transformed import permuted

RESULT = RESULTS / "tasks.json"
ROWS, TEST_ROWS, SETUP = 100, 20, Setup(hidden=(100,), capacity=200)  # of a task, of its probe
METHODS = {"none": (), "er": (), "ewc": (), "ewc_separate": ("strategy.ewc.mode=separate",)}
SIZES = {"all": (5, 20, 100, 1000), "rotating": (5, 20, 100, 1000), "avalanche": (5, 20, 50)}
FIRST = 20  # tasks that are gone through where a whole evaluation of 1,000 follows each


def images(n_tasks: int) -> IndexStream:
    """Tasks of ``ROWS`` training and ``TEST_ROWS`` test rows: one set of images, in another order in each task."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (ROWS + TEST_ROWS, 1, 28, 28), dtype=torch.uint8, generator=draws)
    y = torch.arange(len(x)) % 10
    return permuted(TensorSource(x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]), n_tasks, same_rows=True)


def ours(method: str, policy: str, n_tasks: int) -> dict[str, Any]:
    """CPU seconds [steps, evaluation] of each task, and bytes that the learner says it holds at the ends."""
    name = method.partition("_")[0]
    probe = "rotating" if policy == "rotating" else "default"
    memory = ["strategy.er.memory.capacity=200"] if name == "er" else []
    config = compose(f"strategy={name}", f"probe={probe}", "track=none", *memory, *METHODS[method], *shared(SETUP))
    stream = images(n_tasks)
    learner = build_learner(config, stream.spec)
    measure: Measure = build(config, "probe").of(stream, learner)
    list(measure.start())
    tasks, held = list[list[float]](), list[int]()
    for experience, task in zip(stream, stream.origins, strict=True):
        list(measure.arrival(experience, task))
        began = now().cpu
        for rows in learner.learn(experience):
            measure.advance(rows)
        measure.leave()
        stepped = now().cpu
        list(measure.end(task))
        tasks.append([stepped - began, now().cpu - stepped])
        held.append(learner.cost().bytes)
        if policy == "all" and n_tasks >= 1000 and len(tasks) == FIRST:
            break
    return {"tasks": tasks, "held_bytes": [held[0], held[-1]]}


def avalanche(method: str, _: str, n_tasks: int) -> dict[str, Any]:
    """The same of Avalanche's, on the same tensors, all tasks evaluated after each."""
    name, stream = method.partition("_")[0], images(n_tasks)
    learner = avalanche_learner(name, replace(SETUP), stream.spec)
    if method == "ewc_separate":
        plugin = next(one for one in learner.strategy.plugins if type(one).__name__ == "EWCPlugin")
        plugin.mode, plugin.decay_factor = "separate", None
    contender, tasks = Theirs(learner, list(stream), evaluated=True), list[list[float]]()
    probes = list(contender.bridge.to_avalanche(stream).test_stream)
    for task in range(n_tasks):
        began = now().cpu
        contender(task)
        stepped = now().cpu
        contender.evaluate(probes, task)
        tasks.append([stepped - began, now().cpu - stepped])
    return {"tasks": tasks}


def peak() -> int:
    """Bytes: the most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def look(who: str, method: str, policy: str, n_tasks: int) -> dict[str, Any]:
    """One case, in this process: a short stream first, so that nothing is loaded in the first tasks."""
    torch.set_num_threads(1)
    go = ours if who == "ours" else avalanche
    go(method, policy, 3)
    before, found = peak(), go(method, policy, n_tasks)
    own = found.pop("tasks")
    part = max(1, len(own) // 10)
    sums = [sum(task) for task in own]
    steps, evaluation = (1e3 * sum(column) / len(own) for column in zip(*own, strict=True))
    return {
        "who": who,
        "method": method,
        "policy": policy,
        "n_tasks": n_tasks,
        "looked_at": len(own),
        "steps_ms": round(steps, 3),
        "evaluation_ms": round(evaluation, 3),
        "first_ms": round(1e3 * sum(sums[:part]) / part, 3),
        "last_ms": round(1e3 * sum(sums[-part:]) / part, 3),
        "grown_bytes": peak() - before,
        **found,
    }


def cases(quick: bool) -> list[tuple[str, str, str, int]]:
    """(who, method, policy, tasks) of every case."""
    methods = ["er"] if quick else list(METHODS)
    native = [("ours", m, p, n) for m, p in product(methods, ("all", "rotating")) for n in SIZES[p]]
    theirs = [("avalanche", m, "all", n) for m, n in product(methods, SIZES["avalanche"])]
    return [case for case in [*native, *theirs] if not quick or case[3] <= 100]


def key(who: str, method: str, policy: str, n_tasks: int) -> str:
    return f"{who}/{method}/{policy}/{n_tasks:04}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 100 tasks, experience replay only")
    parser.add_argument("--only", default="", help="cases whose key begins so, e.g. ours/er; the others stay")
    parser.add_argument("--missing", action="store_true", help="cases that the result file lacks")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        *names, n_tasks = options.case
        print(json.dumps(look(*names, int(n_tasks))))
        return
    torch.set_num_threads(1)
    about = {"command": command(), "machine": machine()}
    known = read(options.out).get("tasks", {"figures": {}})["figures"] if options.missing else {}
    for case in cases(options.quick):
        if not key(*case).startswith(options.only) or key(*case) in known:
            continue
        words = [sys.executable, __file__, "--case", *map(str, case)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        figure = json.loads(done.stdout.splitlines()[-1])
        say(key(*case), str({name: value for name, value in figure.items() if name not in ("who", "method", "policy")}))
        keep("tasks", {key(*case): figure}, about, options.out)
    render_beside(options.out)


if __name__ == "__main__":
    main()
