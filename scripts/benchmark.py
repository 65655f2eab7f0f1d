"""What training costs: ours against bare torch loops and against Avalanche; and what tracking adds to it.

Writes docs/benchmarks/{steps,online,evaluation,tracking}.json and renders docs/BENCHMARKS.md. On an otherwise idle
machine::

    python scripts/benchmark.py                              # all of it: some 25 minutes if nothing else runs
    python scripts/benchmark.py --quick --out /tmp/try       # a look, in a minute; rendered to /tmp/try/BENCHMARKS.md
    python scripts/benchmark.py --only steps --methods er,ewc --batches 10 --models mlp   # the other figures are kept
    python scripts/benchmark.py --only steps --missing       # go on after a stop
    python scripts/benchmark.py --only rendering             # the page alone

All loops run in one process on one thread, task by task in turn, so that whatever else the machine does hits all of
them. CPU time is the primary figure; each ratio is formed within one turn, and its median is reported.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice, product
from math import inf
from pathlib import Path
from typing import Any

import torch
from bare import Contender, Laps, Moment, Setup, now
from benchmark_page import (
    MODELS,
    RESULTS,
    ROOT,
    THEIRS,
    command,
    keep,
    machine,
    publish,
    read,
    render,
    render_all,
    render_beside,
    results,
    say,
    spread,
)
from contenders import BARE, Ours, Theirs, avalanche_learner, bare, random_stream, usual_pipeline

from continual.loop import loop, moments
from continual.probe import Probe
from continual.track import NoTracker, RunFacts, Tracker
from continual.trackers.wandb import Wandb, close
from continual.types import Record

__all__ = ["ROOT", "publish", "render", "render_all", "results", "say", "spread"]  # what its siblings take from here

BATCHES = (1, 10, 128)
TURN = {"mlp": 0.1, "slim_resnet18": 0.2}  # seconds that ours is to take in a turn
LEAST = {  # batch size -> steps of a task, whatever they take
    "mlp": {1: 20, 10: 20, 128: 5},
    "slim_resnet18": {1: 10, 10: 4, 128: 2},
}
MOST = 200
PIL_SHARE = 4  # so many times fewer steps on the pipeline of images, which is slow
WARMING = {"mir": 2}  # turns that are left out, if more than one: Avalanche's replays nothing before the third task
UNFIT = {("slim_resnet18", "redo"), ("slim_resnet18", "continual_backprop")}  # they cannot tell its hidden units
ONLINE_METHODS = ("none", "er", "er_ace", "mir", "der", "derpp", "scr")
EVALUATED = ("none", "er")
EVALUATION_ROWS = {"mlp": (1000, 1000), "slim_resnet18": (50, 100)}  # of a task, and of each of five probes
TRACKING_GOAL = 0.05


@dataclass(frozen=True)
class Run:
    """What this call measures.

    Attributes:
        models, batches: of these.
        methods: of these; None for all that the part knows.
        turns: besides the first, which warms up.
        share: of the usual time of a turn.
        missing: leave out what the result file has.
        folder: of the result files.
        about: command and machine.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...]
    methods: tuple[str, ...] | None
    turns: int
    share: float
    missing: bool
    folder: Path
    about: Mapping[str, Any]

    def cases(self, part: str, known: tuple[str, ...], batches: tuple[int, ...]) -> Iterator[tuple[str, str, Setup]]:
        """(key, method, setup) of each figure to measure."""
        held = read(self.file(part)).get(part, {}).get("figures", {}) if self.missing else {}
        chosen = [method for method in known if self.methods is None or method in self.methods]
        for model, batch, method in product(self.models, self.batches, chosen):
            key = f"{model}/{batch}/{method}"
            if batch in batches and key not in held and (model, method) not in UNFIT:
                yield key, method, Setup(batch, model, capacity=640 if batch > 1 else 64)

    def keep(self, part: str, key: str, figure: Mapping[str, Any]) -> None:
        keep(part, {key: figure}, self.about, self.file(part))
        render_beside(self.file(part))
        told = ", ".join(f"{pair} {ratio['cpu']['median']:.2f}" for pair, ratio in figure["ratios"].items())
        say(f"{part} {key}, {figure['steps']} steps: {told}")

    def file(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    def n_turns(self, setup: Setup) -> int:
        return self.turns if setup.model == "mlp" else max(2, self.turns // 3)


# ---------------------------------------------------------------- steps


def step_figure(method: str, setup: Setup, run: Run) -> dict[str, Any]:
    """A training step: ours, the bare loop's, Avalanche's."""
    turns, steps = run.n_turns(setup), fitting(method, setup, TURN[setup.model] * run.share)
    warm = WARMING.get(method, 1)
    stream = random_stream(turns + warm, steps * setup.batch, BARE[method].KIND)
    contenders: dict[str, Contender] = {"ours": Ours(method, stream, setup), "bare": bare(method, stream, setup)}
    pil_rows = max(1, steps // PIL_SHARE) * setup.batch
    for name in THEIRS:
        if learner := avalanche_learner(method, setup, stream.spec):
            own = stream if name == "avalanche" else usual_pipeline(pil_rows).train_stream
            contenders[name] = Theirs(learner, list(own))
    laps = [take_turns(contenders, task) for task in range(turns + warm)][warm:]
    stepped = [{name: difference(lap.began, lap.stepped, lap.steps) for name, lap in turn.items()} for turn in laps]
    ended = [
        {name: difference(turn[name].stepped, turn[name].ended, steps * setup.batch) for name in OWN} for turn in laps
    ]
    end = {name: rounded(spread([turn[name].cpu for turn in ended])) for name in OWN}
    end["ours/bare"] = rounded(spread([turn["ours"].cpu / turn["bare"].cpu for turn in ended]))
    return {**case(method, setup, steps, turns), **compared(stepped), "end": end}


OWN = ("ours", "bare")


def fitting(method: str, setup: Setup, seconds: float) -> int:
    """Steps of a task, its end included, that take the bare loop so long, within ``LEAST`` and ``MOST``."""
    few = LEAST[setup.model][setup.batch]
    trial = bare(method, random_stream(3, few * setup.batch, BARE[method].KIND), setup)
    least = inf
    for task in range(3):
        lap = trial(task)
        took = lap.ended.cpu - lap.began.cpu
        if took > 2 * seconds:  # as few as can be are too many
            return few
        least = min(least, took / few)
    return max(few, min(MOST, round(seconds / least)))


def take_turns(contenders: Mapping[str, Callable[[int], Any]], task: int) -> dict[str, Any]:
    """Every contender is called with one task, in the other order every second time."""
    order = list(contenders) if task % 2 else list(reversed(contenders))
    return {name: contenders[name](task) for name in order}


def difference(began: Moment, ended: Moment, n: int) -> Moment:
    """Microseconds of each of ``n`` between two moments."""
    return Moment(*((after - before) / n * 1e6 for before, after in zip(began, ended, strict=True)))


def case(method: str, setup: Setup, steps: int, turns: int) -> dict[str, Any]:
    return {"model": setup.model, "batch": setup.batch, "method": method, "steps": steps, "turns": turns}


def compared(turns: list[dict[str, Moment]]) -> dict[str, Any]:
    """Microseconds by contender and clock, and the ratios of contenders."""
    theirs = [name for name in THEIRS if name in turns[0]]
    pairs = [OWN, *((name, who) for name in theirs for who in OWN)]
    return {
        "microseconds": {name: clocks(lambda turn, name=name: turn[name], turns) for name in (*OWN, *theirs)},
        "ratios": {
            f"{who}/{against}": clocks(lambda turn, pair=(who, against): ratio(turn, *pair), turns)
            for who, against in pairs
        },
    }


def ratio(turn: Mapping[str, Moment], who: str, against: str) -> Moment:
    return Moment(*(a / b for a, b in zip(turn[who], turn[against], strict=True)))


def clocks(value: Callable[[Any], Moment], turns: list[Any]) -> dict[str, dict[str, float]]:
    values = [value(turn) for turn in turns]
    return {clock: rounded(spread([getattr(v, clock) for v in values])) for clock in Moment._fields}


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") if name != "n" else value for name, value in values.items()}


# ---------------------------------------------------------------- online streams


def online_figure(method: str, setup: Setup, run: Run) -> dict[str, Any]:
    """The same for a stream in which each batch is an experience of its own, set-up and the loop around it included."""
    turns, least = run.n_turns(setup), 100 if setup.model == "mlp" else 8
    n = max(least, fitting(method, setup, 2 * TURN[setup.model] * run.share))
    few = max(8, n // PIL_SHARE)
    stream = random_stream(1, (turns + 1) * n * setup.batch, test_rows=10, arrival_rows=setup.batch)
    ours, plain = Ours(method, stream, setup).learner, bare(method, stream, setup)
    measure = Probe().of(stream, ours)
    moves = moments(stream, ours, measure)
    next(moves)  # the evaluation before the first row

    def follow(turn: int) -> None:
        while measure.step < (turn + 1) * n:
            next(moves)

    def go(turn: int) -> None:
        for arrival in range(turn * n, (turn + 1) * n):
            plain(arrival)

    contenders: dict[str, Callable[[int], Moment]] = {"ours": passed(follow, n), "bare": passed(go, n)}
    told = replace(stream.spec, boundaries=True)  # there an arrival is an experience, and some take one for a task
    for name in THEIRS:
        theirs = Theirs(avalanche_learner(method, setup, told, online=True), ())
        if name == "avalanche":
            given = theirs.bridge.to_avalanche(random_stream(turns + 1, few * setup.batch)).train_stream
        else:
            given = usual_pipeline(few * setup.batch).train_stream
        contenders[name] = passed(partial(theirs.through, arrivals(given, setup.batch), few), few)
    taken = [take_turns(contenders, turn) for turn in range(turns + 1)][1:]
    return {**case(method, setup, n, turns), **compared(taken)}


def arrivals(stream: Any, rows: int) -> Iterator[Any]:
    """Avalanche's online stream of one of its streams."""
    from avalanche.benchmarks import split_online_stream

    return iter(split_online_stream(stream, experience_size=rows, drop_last=True))


def passed(work: Callable[[int], object], n: int) -> Callable[[int], Moment]:
    """Turn -> microseconds of each of ``n`` in which ``work`` does something."""

    def take(turn: int) -> Moment:
        began = now()
        work(turn)
        return difference(began, now(), n)

    return take


# ---------------------------------------------------------------- evaluation


def evaluation_figure(method: str, setup: Setup, run: Run) -> dict[str, Any]:
    """Accuracies of five probes after a task, alone and together with the task's steps."""
    turns, (rows, test_rows) = run.n_turns(setup), EVALUATION_ROWS[setup.model]
    stream = random_stream(max(5, turns + 1), rows, test_rows=test_rows)
    stream = replace(stream, probes=stream.probes[:5])
    ours, plain = Ours(method, stream, setup), bare(method, stream, setup)
    measure = Probe().of(stream, ours.learner)
    for task in range(2):
        list(measure.arrival(ours.experiences[task], task))
    x = torch.cat([probe.take(torch.arange(test_rows)).x for probe in stream.probes])
    y = torch.cat([probe.y for probe in stream.probes])
    trained: dict[str, Contender] = {"ours": ours, "bare": plain}
    evaluated: dict[str, Callable[[int], object]] = {
        "ours": lambda task: list(measure.end(task)),
        "bare": lambda _: plain.accuracies(x, y, test_rows),
    }
    for name in THEIRS:
        theirs = Theirs(avalanche_learner(method, setup, stream.spec), [], evaluated=True)
        own = (
            theirs.bridge.to_avalanche(stream) if name == "avalanche" else usual_pipeline(rows // PIL_SHARE, test_rows)
        )
        theirs.experiences = list(own.train_stream)
        trained[name], evaluated[name] = theirs, partial(theirs.evaluate, list(own.test_stream)[:5])
    looks = {name: passed(look, 5 * test_rows) for name, look in evaluated.items()}
    alone, together = [], []
    for task in range(turns + 1):
        laps, looked = take_turns(trained, task), take_turns(looks, task)
        alone.append(looked)
        together.append({name: both(laps[name], looked[name], rows, setup, 5 * test_rows) for name in laps})
    figure = {**case(method, setup, -(-rows // setup.batch), turns), "rows": rows, "test_rows": 5 * test_rows}
    return {**figure, **compared(alone[1:]), "included": compared(together[1:])["ratios"]}


def both(lap: Laps, look: Moment, rows: int, setup: Setup, test_rows: int) -> Moment:
    """Microseconds of a task of ``rows`` rows and of its evaluation; of a shorter task, as if it had as many steps."""
    steps = difference(lap.began, lap.stepped, lap.steps)
    n = -(-rows // setup.batch)
    return Moment(*(step * n + each * test_rows for step, each in zip(steps, look, strict=True)))


# ---------------------------------------------------------------- tracking


def measure_tracking(repeats: int, share: float) -> dict[str, Any]:
    """The real loop with wandb offline against the loop without, in turns of as many moments as take seconds."""
    moments, every = max(5, round(150 * share)), 10
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WANDB_CACHE_DIR"] = folder
        began = now()
        first = Wandb(mode="offline")(run_facts(Path(folder), 0))
        started = now()
        first.finish({}, None, "finished")
        finished = now()
        tracker = Wandb(mode="offline")(run_facts(Path(folder), 1))
        steps = (repeats + 1) * moments * every
        tracks = {"none": (NoTracker(), followed(steps, every)), "wandb": (tracker, followed(steps, every))}
        turns = [
            {name: turn(track, source, moments) for name, (track, source) in tracks.items()} for _ in range(repeats + 1)
        ][1:]
        tracker.finish({}, None, "finished")
        close()
    added = {clock: spread([t["wandb"][clock] / t["none"][clock] - 1 for t in turns]) for clock in Moment._fields}
    say("tracking adds", f"{added['cpu']['median']:.1%} of CPU time, {added['wall']['median']:.1%} of wall time")
    return {
        "steps_between_probes": every,
        "moments_per_turn": moments,
        "added_share": added,
        "step_microseconds": {name: spread([t[name]["cpu"] / moments / every * 1e6 for t in turns]) for name in tracks},
        "first_start_seconds": started.wall - began.wall,
        "finish_seconds": finished.wall - started.wall,
        "goal": TRACKING_GOAL,
    }


def followed(steps: int, every: int) -> Iterator[list[Record]]:
    """The records of one moment after the other: replay at batch size 10, five probes every ``every`` steps."""
    stream = random_stream(5, steps * 10 // 5)
    records = loop(stream, Ours("er", stream, Setup()).learner, Probe(every=every * 10, max_rows=10))
    yield from (list(group) for _, group in groupby(records, key=lambda r: (r.rows_seen, r.step, r.at)))


def turn(tracker: Tracker, source: Iterator[list[Record]], moments: int) -> dict[str, float]:
    before = now()
    for records in islice(source, moments):
        tracker.log(records)
    after = now()
    return {"cpu": after.cpu - before.cpu, "wall": after.wall - before.wall}


def run_facts(folder: Path, seed: int) -> RunFacts:
    return RunFacts("er", "random", "er", seed, f"run{seed}", folder / f"seed{seed}", {}, 5)


@dataclass(frozen=True)
class Part:
    """A part whose figures are measured one by one.

    Attributes:
        figure: what is measured of a method.
        methods: that it knows.
        batches: that it knows.
    """

    figure: Callable[[str, Setup, Run], dict[str, Any]]
    methods: tuple[str, ...]
    batches: tuple[int, ...]

    def measure(self, name: str, run: Run) -> None:
        for key, method, setup in run.cases(name, self.methods, self.batches):
            run.keep(name, key, self.figure(method, setup, run))


PARTS = {
    "steps": Part(step_figure, tuple(sorted(BARE)), BATCHES),
    "online": Part(online_figure, ONLINE_METHODS, (10,)),
    "evaluation": Part(evaluation_figure, EVALUATED, (10,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look: the perceptron, batch size 10, three short turns")
    parser.add_argument(
        "--turns", type=int, default=7, help="turns, at most 8 (default 7); a third of them for the ResNet"
    )
    parser.add_argument("--only", choices=(*PARTS, "tracking", "rendering"), help="one part; the others are kept")
    parser.add_argument("--methods", type=listed, help="strategies, e.g. er,ewc (default all)")
    parser.add_argument("--batches", type=listed, help="batch sizes, e.g. 1,10 (default 1,10,128)")
    parser.add_argument("--models", type=listed, help="models, e.g. mlp (default mlp,slim_resnet18)")
    parser.add_argument("--missing", action="store_true", help="only figures that the result files lack")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    if not 1 <= arguments.turns <= 8:
        parser.error(f"--turns {arguments.turns} must be from 1 to 8")
    torch.set_num_threads(1)
    quick = arguments.quick
    run = Run(
        models=chosen(parser, "--models", arguments.models, tuple(MODELS), ("mlp",) if quick else tuple(MODELS)),
        batches=chosen(parser, "--batches", arguments.batches, BATCHES, (10,) if quick else BATCHES),
        methods=chosen(parser, "--methods", arguments.methods, tuple(sorted(BARE)), None),
        turns=3 if quick else arguments.turns,
        share=0.2 if quick else 1.0,
        missing=arguments.missing,
        folder=arguments.out,
        about={"command": command(), "machine": machine()},
    )
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part.measure(name, run)
    if arguments.only in (None, "tracking"):
        publish("tracking", measure_tracking(run.turns, run.share), run.file("tracking"))
    if arguments.only == "rendering":
        render_all()
    if arguments.out.resolve() != RESULTS:
        parts = {part: result for file in sorted(arguments.out.glob("*.json")) for part, result in read(file).items()}
        (arguments.out / "BENCHMARKS.md").write_text(render(parts), encoding="utf-8")


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def chosen(
    parser: argparse.ArgumentParser, option: str, given: tuple[str, ...] | None, known: tuple[Any, ...], default: Any
) -> Any:
    """What an option names, each of the type of the known; an error of the parser if there is none of that name."""
    if given is None:
        return default
    by_name = {str(value): value for value in known}
    unknown = [name for name in given if name not in by_name]
    if unknown:
        parser.error(f"{option} {unknown[0]} is unknown; use some of {', '.join(by_name)}")
    return tuple(by_name[name] for name in given)


if __name__ == "__main__":
    main()
