"""What a training step costs: ours against a bare torch loop and against Avalanche; and what tracking adds to it.

Writes docs/benchmarks/steps.json and renders docs/BENCHMARKS.md from it. On an otherwise idle machine::

    python scripts/benchmark.py                              # all of it: some 5 minutes if nothing else runs
    python scripts/benchmark.py --quick --out /tmp/try.json  # a look; rendered to /tmp/try.md
    python scripts/benchmark.py --only tracking              # one part, the other is kept as it was
    python scripts/benchmark.py --only rendering             # the page alone

All loops run in one process on one thread, task by task in turn, so that whatever else the machine does hits all of
them. CPU time is the primary figure; each ratio is formed within one turn, and its median is reported.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from bare import Contender, Laps, Moment, Setup, now
from contenders import Ours, bare, random_stream, theirs, usual_pipelines

from continual.loop import loop
from continual.probe import Probe
from continual.track import NoTracker, RunFacts, Tracker
from continual.trackers.wandb import Wandb, close
from continual.types import Record

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs/benchmarks/steps.json"
PAGE = ROOT / "docs/BENCHMARKS.md"
STEPS = {10: 200, 128: 24}  # batch size -> steps of one task
GOALS = {  # (who, against whom, batch size) -> bound of the ratio
    ("ours", "bare", 10): 1.15,
    ("ours", "bare", 128): 1.05,
    ("avalanche", "ours", 10): 2.5,
    ("avalanche_pil", "ours", 10): 4.0,
}
NAMES = {
    "ours": "continual",
    "bare": "bare torch loop",
    "avalanche": "Avalanche, the same tensors",
    "avalanche_pil": "Avalanche, torchvision and PIL (SplitFMNIST)",
    "avalanche_splitmnist": "Avalanche, float tensors (SplitMNIST)",
}
TRACKING_GOAL = 0.05


def measure_steps(repeats: int, share: float) -> list[dict[str, Any]]:
    """One entry per batch size and method: seconds of each turn and contender. The first turn warms up."""
    results = []
    for batch, steps in STEPS.items():
        steps = max(2, round(steps * share))
        stream = random_stream(repeats + 1, steps * batch)
        with tempfile.TemporaryDirectory() as folder:
            pipelines = usual_pipelines(Path(folder), max(2, steps // 4) * batch)  # they are slow
        for method in ("none", "er", "derpp", "ewc"):
            say(f"batch {batch}, {method}: ", end="")
            contenders = gather(method, stream, batch, pipelines)
            turns = [take_turns(contenders, task) for task in range(repeats + 1)][1:]
            results.append({"batch": batch, "method": method, "steps": steps, **summarise(turns, batch)})
            say(", ".join(f"{r['who']}/{r['against']} {r['cpu']['median']:.2f}" for r in results[-1]["ratios"]))
    return results


def gather(method: str, stream: Any, batch: int, pipelines: dict[str, Any]) -> dict[str, Contender]:
    from continual.bridges.avalanche import to_avalanche

    return {
        "ours": Ours(method, stream, setup := Setup(batch)),
        "bare": bare(method, stream, setup),
        "avalanche": theirs(method, list(to_avalanche(stream).train_stream), setup, stream.spec),
        **{name: theirs(method, experiences, setup, stream.spec) for name, experiences in pipelines.items()},
    }


def take_turns(contenders: dict[str, Contender], task: int) -> dict[str, Laps]:
    """Every contender trains on one task, in the other order every second time."""
    order = list(contenders) if task % 2 else list(reversed(contenders))
    return {name: contenders[name](task) for name in order}


def summarise(turns: list[dict[str, Laps]], batch: int) -> dict[str, Any]:
    """Microseconds of a step, ratios between contenders, and microseconds per row of what is done at a task's end."""

    def step(lap: Laps, clock: str) -> float:
        return (getattr(lap.stepped, clock) - getattr(lap.began, clock)) / lap.steps * 1e6

    def end(lap: Laps, clock: str) -> float:
        return (getattr(lap.ended, clock) - getattr(lap.stepped, clock)) / (lap.steps * batch) * 1e6

    def times(measure: Callable[[Laps, str], float], name: str) -> dict[str, Any]:
        return {clock: spread([measure(turn[name], clock) for turn in turns]) for clock in Moment._fields}

    def ratio(who: str, against: str) -> dict[str, Any]:
        clocks = {
            clock: spread([step(turn[who], clock) / step(turn[against], clock) for turn in turns])
            for clock in Moment._fields
        }
        return {"who": who, "against": against, **clocks, "goal": GOALS.get((who, against, batch))}

    theirs = [name for name in turns[0] if name not in ("ours", "bare")]
    pairs = [("ours", "bare"), *((name, who) for name in theirs for who in ("ours", "bare"))]
    return {
        "microseconds": {name: times(step, name) for name in NAMES},
        "ratios": [ratio(*pair) for pair in pairs],
        "end_microseconds_per_row": {name: times(end, name) for name in ("ours", "bare")},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


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
    records = loop(stream, Ours("er", stream, Setup(10)).learner, Probe(every=every * 10, max_rows=10))
    yield from (list(group) for _, group in groupby(records, key=lambda r: (r.rows_seen, r.step, r.at)))


def turn(tracker: Tracker, source: Iterator[list[Record]], moments: int) -> dict[str, float]:
    before = now()
    for records in islice(source, moments):
        tracker.log(records)
    after = now()
    return {"cpu": after.cpu - before.cpu, "wall": after.wall - before.wall}


def run_facts(folder: Path, seed: int) -> RunFacts:
    return RunFacts("er", "random", "er", seed, f"run{seed}", folder / f"seed{seed}", {}, 5)


# ---------------------------------------------------------------- the page


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "avalanche": version("avalanche-lib"),
        "wandb": version("wandb"),
    }


def results() -> dict[str, Any]:
    """All parts of all result files."""
    files = sorted((ROOT / "docs/benchmarks").glob("*.json"))
    return {part: result for file in files for part, result in json.loads(file.read_text(encoding="utf-8")).items()}


def render(result: dict[str, Any]) -> str:
    """The page of these parts."""
    lines = [
        "# Benchmarks",
        "",
        "Written by the scripts `scripts/benchmark*.py` from the files in [benchmarks](benchmarks); do not edit.",
        "",
        "A step: a batch of uint8 images of 28x28, a perceptron 784-400-400-10, cross-entropy, plain SGD. Replay adds",
        "as many rows as arrive; DER++ draws twice here and in the bare loop, once in Avalanche. EWC's penalty acts.",
        "The bare loop does the same arithmetic on the same rows in the same order: `tests/test_benchmark.py` compares",
        "the weights. What Avalanche takes in times of the bare loop bounds what any loop of this arithmetic can gain",
        "over it; it runs without metrics, and its set-up of an experience is not counted.",
        "",
    ]
    sections = {
        "steps": _steps,
        "tracking": _tracking,
        "dashboard": _dashboard,
        "status": _status,
        "snapshots": _snapshots,
        "memory": _memory,
    }
    for part, section in sections.items():
        lines += section(result[part]) if part in result else []
    return "\n".join(lines) + "\n"


def _machine(part: dict[str, Any]) -> list[str]:
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in part["machine"].items())
    return [f"`{part['command']}`: {facts}.", ""]


def _steps(part: dict[str, Any]) -> list[str]:
    n = part["results"][0]["microseconds"]["ours"]["cpu"]["n"]
    lines = [
        "## Steps",
        "",
        f"Medians of {n} turns (lowest to highest), in CPU time unless it says wall. Ratios are formed within a turn.",
        "",
    ]
    for batch in dict.fromkeys(result["batch"] for result in part["results"]):
        lines += [
            f"### Batch size {batch}",
            "",
            "| method | loop | µs of a step | times the bare loop | times continual |",
        ]
        lines += ["|---|---|---:|---:|---:|"]
        for result in part["results"]:
            lines += _rows(result) if result["batch"] == batch else []
        lines.append("")
    fisher = [
        f"{NAMES[name]} {_range(times['cpu'], 0)} µs at batch size {result['batch']}"
        for result in part["results"]
        if result["method"] == "ewc"
        for name, times in result["end_microseconds_per_row"].items()
    ]
    told = f"EWC's Fisher information at the end of a task, per row of it: {'; '.join(fisher)}."
    return [*lines, told, "", *_machine(part)]


def _rows(result: dict[str, Any]) -> list[str]:
    rows = []
    ratios = {(r["who"], r["against"]): r for r in result["ratios"]}
    for name, times in result["microseconds"].items():
        shown = [_ratio(ratios.get((name, against))) for against in ("bare", "ours")]
        cells = [result["method"], NAMES[name], _range(times["cpu"], 0), *shown]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _ratio(ratio: dict[str, Any] | None) -> str:
    """The ratio of CPU times, its range, the ratio of wall times, and the goal."""
    if ratio is None:
        return ""
    told = f"{_range(ratio['cpu'], 2)}, wall {ratio['wall']['median']:.2f}"
    goal, median = ratio["goal"], ratio["cpu"]["median"]
    if goal is None:
        return told
    ours = ratio["who"] == "ours"
    met = median <= goal if ours else median >= goal
    return f"{told}; goal at {'most' if ours else 'least'} {goal}: {'met' if met else '**missed**'}"


def _tracking(part: dict[str, Any]) -> list[str]:
    result = part["results"]
    added, step = result["added_share"], result["step_microseconds"]
    return [
        "## Tracking",
        "",
        f"The loop of a run (ER, batch size 10, five probes every {result['steps_between_probes']} steps) with wandb",
        f"offline against the same without, {added['cpu']['n']} turns each in alternation: {_percent(added['cpu'])}",
        f"more CPU time and {_percent(added['wall'])} more wall time (goal: at most {result['goal']:.0%}), at",
        f"{_range(step['none'], 0)} µs of CPU time a step without. Starting wandb takes",
        f"{result['first_start_seconds']:.1f} s once per process, ending a run {result['finish_seconds']:.1f} s.",
        "",
        *_machine(part),
    ]


def _dashboard(part: dict[str, Any]) -> list[str]:
    result = part["results"]
    page, build, goals = result["page"], result["build"], result["goals"]
    median = {
        "megabytes": page["megabytes"],
        "first_paint_ms": page["first_paint_ms"]["median"],
        "build_seconds": build["again"]["wall"]["median"],
    }
    told = {name: f"{goal}: {'met' if median[name] < goal else '**missed**'}" for name, goal in goals.items()}
    runs, every = f"{build['runs']} runs", f"{build['runs'] * result['records_of_a_run'] / 1e6:.1f} million records"
    return [
        "## Dashboard",
        "",
        f"Made-up runs of {result['tasks']} tasks with {result['evaluations_within_a_task']} evaluations within each,",
        f"in real ledgers. Times of the page are from the navigation on, each in a new Chromium {page['chromium']}; of",
        f"building, from the imports on, which take {build['again']['import']['median']:.1f} s of CPU time.",
        "",
        "| what | figure | goal, less than |",
        "|---|---:|---|",
        f"| page of {page['runs']} runs, MB | {page['megabytes']:.2f} | {told['megabytes']} |",
        f"| first contentful paint, ms | {_range(page['first_paint_ms'], 0)} | {told['first_paint_ms']} |",
        f"| every panel drawn, ms | {_range(page['drawn_ms'], 0)} | |",
        f"| building from {runs} ({every}) for the first time, s | {_clocks(build['first'], 0)} | |",
        f"| building from them again, s | {_clocks(build['again'], 1)} | {told['build_seconds']} |",
        "",
        *_machine(part),
    ]


def _status(part: dict[str, Any]) -> list[str]:
    result = part["results"]
    lines = [
        "## Status",
        "",
        f"The whole command `continual status` over {result['runs']} made-up runs in real ledgers with real manifests,",
        f"{result['records_of_a_run']} records each, {result['warm']['wall']['n']} times. Goal: less than",
        f"{result['goal']:.0f} s.",
        "",
        "| files | wall time, s | CPU time, s | goal |",
        "|---|---:|---:|---|",
    ]
    for name in ("warm", "cold"):
        if name in result:
            times = result[name]
            met = "met" if times["wall"]["median"] < result["goal"] else "**missed**"
            how = times.get("how", "cached by the one before")
            lines.append(f"| {how} | {_range(times['wall'], 2)} | {_range(times['cpu'], 2)} | {met} |")
    return [*lines, "", *_machine(part)]


def _snapshots(part: dict[str, Any]) -> list[str]:
    result = part["results"]
    lines = [
        "## Snapshots",
        "",
        "What storing a run takes of its time, start included, at the default cadence; without tracking.",
        f"Goal: less than {result['goal']:.0%}.",
        "",
        "| run | seconds | snapshots | size of one, MB | share of the time | goal |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, case in result["cases"].items():
        share = case["share"]
        met = "met" if share["median"] < result["goal"] else "**missed**"
        percent = f"{share['median']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
        size, n = case["bytes"]["median"] / 1e6, case["snapshots"]["median"]
        lines.append(f"| {name} | {_range(case['seconds'], 1)} | {n:.0f} | {size:.1f} | {percent} | {met} |")
    return [*lines, "", *_machine(part)]


def _memory(part: dict[str, Any]) -> list[str]:
    result, runs = part["results"], part["results"]["runs"]
    imports = result["imports_bytes"] / 2**20
    lines = [
        "## Memory",
        "",
        f"Rows of {result['features']} float32 features and a label, {result['arrival_rows']:,} at a time in the",
        f"order of one Parquet file (row groups of {result['group_rows']:,}), each predicted and then learned by",
        f"streaming LDA. On the disk: `cache_mb={result['cache_mb']}`. The peak is that of the whole process; what it",
        f"imports takes {imports:.0f} MB (2^20 bytes) of it.",
        "",
        "| rows | where they are | reading threads | peak, MB | above the imports, MB |",
        "|---:|---|---:|---:|---:|",
    ]
    for run in runs:
        peak, place = run["peak_bytes"] / 2**20, "in memory" if run["resident"] else "on the disk"
        workers = "" if run["resident"] else run["workers"]
        lines.append(f"| {run['rows']:,} | {place} | {workers} | {peak:.0f} | {peak - imports:.0f} |")
    same = all(len({run["records"] for run in runs if run["rows"] == rows}) == 1 for rows in {r["rows"] for r in runs})
    told = "are equal, bit for bit" if same else "**differ**"
    return [*lines, "", f"All that was measured about as many rows {told}.", "", *_machine(part)]


def _range(values: dict[str, float], digits: int) -> str:
    if values["n"] == 1:
        return f"{values['median']:.{digits}f}"
    return f"{values['median']:.{digits}f} ({values['low']:.{digits}f} to {values['high']:.{digits}f})"


def _percent(values: dict[str, float]) -> str:
    return f"{values['median']:.1%} ({values['low']:.1%} to {values['high']:.1%})"


def _clocks(values: dict[str, Any], digits: int) -> str:
    return f"{_range(values['wall'], digits)}, CPU time {values['cpu']['median']:.{digits}f}"


def publish(part: str, results: Mapping[str, Any], out: Path, **about: Any) -> None:
    """Write one part's figures with command and machine; render the page if ``out`` is among its result files.

    ``about``: what else is to be told of the machine.
    """
    command = " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    result = {part: {"command": command, "machine": machine() | about, "results": results}}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {out}")
    if out.resolve().parent == RESULT.parent:
        render_all()


def render_all() -> None:
    """Write the page of all result files."""
    PAGE.write_text(render(results()), encoding="utf-8")
    say(f"wrote {PAGE}")


def say(*words: str, end: str = "\n") -> None:
    print(*words, end=end, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps and three turns")
    parser.add_argument("--repeats", type=int, default=5, help="turns, at most 9 (default 5)")
    parser.add_argument("--only", choices=("steps", "tracking", "rendering"), help="one part; the other is kept")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    if not 1 <= arguments.repeats <= 9:
        parser.error(f"--repeats {arguments.repeats} must be from 1 to 9")
    if arguments.only == "rendering" and not arguments.out.exists():
        parser.error(f"--only rendering needs a result, and there is no {arguments.out}")
    torch.set_num_threads(1)
    repeats, share = (3, 0.2) if arguments.quick else (arguments.repeats, 1.0)
    result = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    about = {"command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]), "machine": machine()}
    for part, measure in (("steps", measure_steps), ("tracking", measure_tracking)):
        if arguments.only in (None, part):
            result[part] = {**about, "results": measure(repeats, share)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {arguments.out}")
    if arguments.out.resolve().parent == RESULT.parent:
        render_all()
    else:
        arguments.out.with_suffix(".md").write_text(render(result), encoding="utf-8")


if __name__ == "__main__":
    main()
