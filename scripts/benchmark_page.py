"""The page of all benchmarks, docs/BENCHMARKS.md, and the result files that it is rendered from.

A section is a function from a part of a result file to lines, and a line in ``SECTIONS``. A part is written whole by
``publish``, or figure by figure by ``keep``.
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/benchmarks"
PAGE = ROOT / "docs/BENCHMARKS.md"
BARE_GOALS = {10: 1.10, 128: 1.03}  # batch size -> at most so many times the bare loop
THEIRS = {"avalanche": "Avalanche, tensors", "avalanche_pil": "Avalanche, PIL"}
STEP_GOALS = {"avalanche": 2.0, "avalanche_pil": 4.0}  # at batch size 10 at least so many times ours
ONLINE_GOALS = {"avalanche": 5.0}
EVALUATION_GOAL = 1.05
MODELS = {"mlp": "perceptron 784-400-400-10", "slim_resnet18": "SlimResNet18"}


# ---------------------------------------------------------------- result files


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


def command() -> str:
    return " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def publish(part: str, results: Mapping[str, Any], out: Path, **about: Any) -> None:
    """Write one part's figures with command and machine; render the page if ``out`` is among its result files.

    ``about``: what else is to be told of the machine.
    """
    result = {part: {"command": command(), "machine": machine() | about, "results": results}}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {out}")
    render_beside(out)


def keep(part: str, figures: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any], out: Path) -> None:
    """Put figures, by key, into the part in ``out``, in the place of those of the same key; the others stay.

    Args:
        part: the only one in the file.
        figures: key -> what was measured.
        about: command and machine of these figures; they are noted once for all figures of a run.
        out: the result file.
    """
    held = read(out).get(part, {"runs": [], "figures": {}})
    if about not in held["runs"]:
        held["runs"].append(about)
    run = held["runs"].index(about)
    merged = held["figures"] | {key: {**figure, "run": run} for key, figure in figures.items()}
    used = sorted({figure["run"] for figure in merged.values()})
    lines = [
        f"   {json.dumps(key)}: {json.dumps(figure | {'run': used.index(figure['run'])})}"
        for key, figure in sorted(merged.items())
    ]
    runs = ",\n".join(f"   {json.dumps(held['runs'][number])}" for number in used)
    text = f' "{part}": {{\n  "runs": [\n{runs}\n  ],\n  "figures": {{\n' + ",\n".join(lines) + "\n  }\n }"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """The parts of a result file; none if there is no such file."""
    parts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return parts


def results() -> dict[str, Any]:
    """All parts of all result files."""
    return {part: result for file in sorted(RESULTS.glob("*.json")) for part, result in read(file).items()}


def render_beside(out: Path) -> None:
    """Render the page, if ``out`` is among its result files."""
    if out.resolve().parent == RESULTS:
        render_all()


def render_all() -> None:
    """Write the page of all result files."""
    PAGE.write_text(render(results()), encoding="utf-8")


def say(*words: str, end: str = "\n") -> None:
    print(*words, end=end, flush=True)


# ---------------------------------------------------------------- the page


def render(result: Mapping[str, Any]) -> str:
    """The page of these parts."""
    lines = [
        "# Benchmarks",
        "",
        "Written by the scripts `scripts/benchmark*.py` from the files in [benchmarks](benchmarks); do not edit.",
        "",
    ]
    for part, section in SECTIONS.items():
        lines += section(result[part]) if part in result else []
    return "\n".join(lines) + "\n"


def _said(*words: str) -> list[str]:
    return wrap(" ".join(words), 118, break_on_hyphens=False)


def _machine(part: Mapping[str, Any]) -> list[str]:
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in part["machine"].items())
    return [f"`{part['command']}`: {facts}.", ""]


def _runs(part: Mapping[str, Any]) -> list[str]:
    """Of each run that the figures are of: command and machine, and how many of the figures are its own."""
    lines = []
    for number, run in enumerate(part["runs"]):
        n = sum(figure["run"] == number for figure in part["figures"].values())
        told, *rest = _machine(run)
        lines += [f"{told[:-1]}; {n} of the {len(part['figures'])} figures.", *rest]
    return lines


def _steps(part: Mapping[str, Any]) -> list[str]:
    figures = list(part["figures"].values())
    lines = [
        "## Steps",
        "",
        *_said(
            "What a training step costs: a batch of uint8 images of 28x28, cross-entropy, plain SGD, one thread.",
            "Strategies are as their YAML has them, but replay as many rows as arrive, from a memory of 640 rows",
            "(64 at batch size 1). The bare loop does the same arithmetic on the same rows in the same order, as",
            "one would write it by hand (a penalty's gradient without autograd, for instance):",
            "`tests/test_benchmark.py` compares the weights. Avalanche's strategy of that name trains on the same",
            "tensors, and on its own pipeline of torchvision and PIL images; without metrics, and its set-up of",
            "an experience is not counted. An empty cell: it has none, or none that does the same. What it takes",
            "in times of the bare loop bounds what any loop of this arithmetic can gain over it. DER++ draws",
            "twice here and in the bare loop, once there; iCaRL's batches hold the exemplars there, here they",
            "come on top; SI's penalty there is always 0 on a CPU.",
        ),
        "",
        *_said(
            "Loops take turns in one process. CPU time; a ratio is formed within a turn, the median is shown, and",
            "from lowest to highest in brackets. A goal that is missed is **bold**.",
        ),
        "",
    ]
    for name, batch, own in _by_size(figures):
        goals = STEP_GOALS if batch == 10 else {}
        lines += _table(f"{name}, batch size {batch}", "µs of a step", own, BARE_GOALS.get(batch), goals)
    return [*lines, *_ends(figures), *_runs(part)]


def _by_size(figures: list[Any]) -> Iterator[tuple[str, int, list[Any]]]:
    """(model in words, batch size, figures) of each model and batch size."""
    for model, name in MODELS.items():
        for batch in sorted({f["batch"] for f in figures if f["model"] == model}):
            yield name, batch, [f for f in figures if f["model"] == model and f["batch"] == batch]


def _table(title: str, unit: str, figures: list[Any], bare: float | None, theirs: Mapping[str, float]) -> list[str]:
    """One row per method: ours, ours in times of the bare loop, Avalanche's in times of ours and of the bare loop."""
    heads = ["method", unit, "times the bare loop", *(f"{name}, times ours [bare]" for name in THEIRS.values())]
    turns = sorted({f["turns"] for f in figures})
    lines = [
        f"### {title}", "", *_said(*_met(figures, bare, theirs), f"Turns: {', '.join(map(str, turns))}."), "",
        f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}",
    ]  # fmt: skip
    for figure in sorted(figures, key=lambda f: f["method"]):
        ratios = figure["ratios"]
        cells = [figure["method"], _short(figure["microseconds"]["ours"]["cpu"]["median"])]
        cells.append(judged(ratios["ours/bare"]["cpu"], at_most=bare))
        for who in THEIRS:
            cell = ""
            if f"{who}/ours" in ratios:
                cell = judged(ratios[f"{who}/ours"]["cpu"], at_least=theirs.get(who), ranged=False)
                cell += f" [{ratios[f'{who}/bare']['cpu']['median']:.2f}]"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _met(figures: list[Any], bare: float | None, theirs: Mapping[str, float]) -> list[str]:
    """How many figures meet each goal."""
    goals = [("ours/bare", f"at most {bare:.2f} times the bare loop", -bare)] if bare else []
    goals += [(f"{who}/ours", f"{THEIRS[who]}, at least {goal:g} times ours", goal) for who, goal in theirs.items()]
    told = []
    for pair, goal, bound in goals:
        values = [f["ratios"][pair]["cpu"]["median"] for f in figures if pair in f["ratios"]]
        met = sum(value >= bound if bound > 0 else value <= -bound for value in values)
        told += [f"{goal}: met by {met} of {len(values)}"] if values else []
    return [f"Goals: {'; '.join(told)}."] if told else []


def judged(
    ratio: Mapping[str, float], at_most: float | None = None, at_least: float | None = None, ranged: bool = True
) -> str:
    """A ratio, bold if it misses its goal."""
    median, goal = ratio["median"], at_least if at_most is None else at_most
    missed = (at_most is not None and median > at_most) or (at_least is not None and median < at_least)
    told = f"{median:.2f}"
    if missed:
        told = f"**{median:.3f}**" if told == f"{goal:.2f}" else f"**{told}**"
    return f"{told} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ranged and ratio["n"] > 1 else told


def _ends(figures: list[Any]) -> list[str]:
    """What strategies do at the end of a task, where it is worth telling."""
    shown = [f for f in figures if f["model"] == "mlp" and f["batch"] == 10 and f["end"]["ours"]["median"] >= 20]
    if not shown:
        return []
    lines = [
        "### At the end of a task",
        "",
        "What some strategies do there, not counted above, per row of the task (perceptron, batch size 10).",
        "",
        "| method | µs of a row | times the bare loop |",
        "|---|---:|---:|",
    ]
    for figure in sorted(shown, key=lambda f: f["method"]):
        cells = [figure["method"], _short(figure["end"]["ours"]["median"]), judged(figure["end"]["ours/bare"])]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _online(part: Mapping[str, Any]) -> list[str]:
    figures = list(part["figures"].values())
    lines = [
        "## Online streams",
        "",
        *_said(
            "The whole loop over arrivals of a few rows, each an experience of its own: one step on each, with",
            "what has to be set up and written down for it, evaluation left out. Avalanche's come from its",
            "`split_online_stream`, and ER's memory there is its reservoir. Replay as above.",
        ),
        "",
    ]
    for name, batch, own in _by_size(figures):
        lines += _table(f"{name}, arrivals of {batch} rows", "µs of an arrival", own, None, ONLINE_GOALS)
    return [*lines, *_runs(part)]


def _evaluation(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Evaluation",
        "",
        *_said(
            "Accuracy of five probes after a task: ours, with all that it writes down, against a forward pass of",
            "all their rows and one look at the answers, and against Avalanche's `eval` with its accuracy of each",
            f"experience; all predict 1,024 rows at a time. Goal: at most {EVALUATION_GOAL} times the bare pass.",
            "Included: a task's steps and its evaluation together.",
        ),
        "",
    ]
    theirs = [f"{name}, times ours" for name in THEIRS.values()]
    heads = [
        "model, batch size, method",
        "test rows of a training row",
        "µs of a test row",
        "times the bare pass",
        *theirs,
    ]
    heads += ["included: times the bare loop", *(f"included: {name}" for name in theirs)]
    lines += [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for f in part["figures"].values():
        cells = [f"{f['model']}, {f['batch']}, {f['method']}", f"{f['test_rows'] / f['rows']:.1f}"]
        cells.append(_short(f["microseconds"]["ours"]["cpu"]["median"]))
        for ratios, goal in ((f["ratios"], EVALUATION_GOAL), (f["included"], None)):
            cells.append(judged(ratios["ours/bare"]["cpu"], at_most=goal))
            cells += [judged(ratios[f"{who}/ours"]["cpu"], ranged=False) for who in THEIRS]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_runs(part)]


def _tasks(part: Mapping[str, Any]) -> list[str]:
    """Per task: CPU time of the steps and of the evaluation, the last tasks against the first, bytes."""
    names = {"all": "all, after each", "rotating": "a few in turn"}
    lines = [
        "## Many tasks",
        "",
        *_said(
            "Permuted random images 28x28, 10 steps of 10 rows in each task and 20 test rows, perceptron 784-100-10.",
            "CPU time of one task, in milliseconds: its steps, with what the method does at the task's end, and its",
            "evaluation. Last/first: the last tenth of the tasks over the first. Grown: by how much the peak of the",
            "process rose over that of a stream of 3 tasks, the stream's indices included; held: what the learner",
            "says it holds after the first task and after the last. MB are 2^20 bytes.",
        ),
        "",
        "| method | evaluated | tasks | steps | evaluation | last/first | grown, MB | held, MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for figure in part["figures"].values():
        who = "" if figure["who"] == "ours" else "Avalanche, "
        n = f"{figure['n_tasks']:,}"
        whole = figure["looked_at"] == figure["n_tasks"]
        n += "" if whole else f" (the first {figure['looked_at']})"
        last = f"{figure['last_ms'] / figure['first_ms']:.2f}" if whole and figure["n_tasks"] >= 20 else ""
        held = " to ".join(f"{size / 2**20:.1f}" for size in figure.get("held_bytes", ()))
        cells = (
            f"{who}{figure['method'].replace('_', ', ')}",
            names[figure["policy"]],
            n,
            _short(figure["steps_ms"]),
            _short(figure["evaluation_ms"]),
            last,
            f"{figure['grown_bytes'] / 2**20:.1f}",
            held,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_runs(part)]


def _start(part: dict[str, Any]) -> list[str]:
    goals = part["results"]["goals"]
    lines = [
        "## Start",
        "",
        *_said("Until the command has ended, or a run has made its first update; files cached, in turns."),
        "",
        "| command | wall time, s | CPU time, s | goal, wall |",
        "|---|---:|---:|---|",
    ]
    for name, clocks in part["results"]["commands"].items():
        goal = goals.get(name)
        met = "met" if goal and clocks["wall"]["median"] < goal else "**missed**"
        told = "" if goal is None else f"less than {goal:.1f}: {met}"
        lines.append(f"| {name} | {_range(clocks['wall'], 2)} | {_range(clocks['cpu'], 2)} | {told} |")
    return [*lines, "", *_machine(part)]


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


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cohorts(part: Mapping[str, Any]) -> list[str]:
    result = part["results"]
    lines = [
        "## Cohorts",
        "",
        *_said(
            "CPU time of one seed in a cohort (`hydra/launcher=cohort`) against the same seed alone, on one thread:",
            "medians of turns (lowest to highest). Steps are without evaluation, at batch size 10.",
        ),
        "",
        "| steps of | members | alone, µs | in the cohort, µs | gain |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["steps"].items():
        cells = [name, str(row["members"]), _range(row["alone"], 0), _range(row["together"], 0), _range(row["gain"], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *_said(
            "Whole runs with ledger, snapshots and evaluation; the difference of the average accuracy to that of the",
            "same runs alone, in points with its paired 95% interval, and how many of them have the same accuracy.",
        ),
        "",
        "| runs | n | alone, s | in the cohort, s | gain | difference | equal |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["sweeps"].items():
        mean, low, high = (100 * value for value in row["difference"])
        told = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        cells = [name, str(row["runs"]), *(_range(row[key], 2) for key in ("alone", "together", "gain"))]
        lines.append(f"| {' | '.join([*cells, told, str(row['equal'])])} |")
    return [*lines, "", *_machine(part)]


SECTIONS: dict[str, Callable[[Any], Iterable[str]]] = {
    "steps": _steps,
    "online": _online,
    "evaluation": _evaluation,
    "cohorts": _cohorts,
    "tasks": _tasks,
    "tracking": _tracking,
    "dashboard": _dashboard,
    "status": _status,
    "snapshots": _snapshots,
    "memory": _memory,
    "start": _start,
}
"""Part of a result file -> what is said of it, in the order of the page."""
