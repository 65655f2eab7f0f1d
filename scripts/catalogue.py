"""Run every strategy and learner on the same small streams, and render what each reached and what it cost.

Nothing is tuned: every method has its defaults, chosen before. Add a YAML and its row is there::

    python scripts/catalogue.py                       # all of it; a run that has finished is not run again
    python scripts/catalogue.py --only er mir         # these rows, the others are kept as they were
    python scripts/catalogue.py --render

Writes docs/catalogue/<stream>.json and renders docs/CATALOGUE.md from these files.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from origin import code_state

from continual import config as configs
from continual.choices import choices, conf_directory
from continual.errors import UserError
from continual.statistics import interval
from continual.sweep import attempt

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "catalogue", ROOT / "docs" / "CATALOGUE.md"
COMMON = ("experiment=split_digits", "track=none")
METRICS = ("average_accuracy", "forgetting", "anytime_accuracy", "forward_equivalents_per_row", "peak_bytes", "seconds")
PERCENT = METRICS[:3]
PACKAGES = ("continual", "torch", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Stream:
    """One table.

    Attributes:
        name: of its result file.
        about: what arrives.
        overrides: what makes it.
    """

    name: str
    about: str
    overrides: tuple[str, ...] = ()


STREAMS = (
    Stream("class", "Class-incremental: 5 tasks of 2 digits, labels of tasks hidden."),
    Stream("task", "Task-incremental: the same, and everybody is told the task.", ("scenario.kind=task",)),
    Stream(
        "noise",
        "Class-incremental, a fifth of the training labels wrong.",
        ("operator=noise", "operator.noise.rate=0.2"),
    ),
)
ON_TASKS = ("none", "er", "ewc", "si", "lwf", "packnet")
ON_NOISE = ("none", "er", "derpp", "ema_teacher")
ROBUST = ("gce", "small_loss", "label_refurbishment", "teacher_weight")


def methods(stream: Stream) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(label, what it is, overrides) of the rows of a table."""
    strategies = {choice.name: choice.about for choice in choices("strategy")}
    if stream.name == "class":
        yield from ((name, about, (f"strategy={name}",)) for name, about in strategies.items())
        alone = [name for name in strategies if name != "none" and not remembers(name)]
        yield from ((f"er+{name}", f"er, and {strategies[name]}", (f"strategy=[er,{name}]",)) for name in alone)
        for choice in choices("optimizer"):
            if choice.name not in ("sgd", "adam", "adamw"):
                yield choice.name, choice.about, (f"optimizer={choice.name}",)
        for choice in choices("learner"):
            if choice.name != "sgd" and not choice.name.startswith("avalanche/"):
                yield choice.name, choice.about, (f"learner={choice.name}",)
    elif stream.name == "task":
        for name in ON_TASKS:
            yield name, strategies[name], (f"strategy={name}", *(("train.head=per_task",) if name != "packnet" else ()))
        yield "none, multi-head", "an own head for each task", ("train.head=multi_head",)
        yield "joint", "keeps every row", ("learner=joint", "train.head=per_task")
    else:
        yield from ((name, strategies[name], (f"strategy={name}",)) for name in ON_NOISE)
        yield from ((f"er+{name}", f"er, and {strategies[name]}", (f"strategy=[er,{name}]",)) for name in ROBUST)
        yield "slda", "streaming linear discriminant analysis", ("learner=slda",)
        yield "joint", "keeps every row", ("learner=joint",)


def remembers(strategy: str) -> bool:
    """Whether a strategy keeps rows of the past, or replays in another way."""
    text = (conf_directory() / "strategy" / f"{strategy}.yaml").read_text(encoding="utf-8")
    node = yaml.safe_load(text)
    return "/memory@" in text or any("replay" in key or "capacity" in key for key in node.get(strategy, {}))


def run(label: str, about: str, overrides: Sequence[str], stream: Stream, seeds: int, output: Path) -> dict[str, Any]:
    """One row: every seed, the estimates over them; or why the stream refuses the method."""
    words = [*COMMON, *stream.overrides, *overrides]
    told = {
        "label": label,
        "about": about,
        "command": f"continual run -m {' '.join(map(quoted, words))} 'seed=range({seeds})'",
    }
    try:
        jobs = configs.expand([*words, f"seed=range({seeds})", f"output={output}"])
        outcomes = [attempt(job) for job in jobs]
    except UserError as error:
        return told | {"refused": str(error)}
    wrong = [str(outcome.error) for outcome in outcomes if outcome.run is None]
    found = [outcome.run.metrics for outcome in outcomes if outcome.run is not None]
    values = {m: [metrics[m] for metrics in found] for m in METRICS if found and all(m in metrics for metrics in found)}
    return told | {
        "values": values,
        "estimates": {metric: asdict(interval(of)) for metric, of in values.items()},
        **code_state(PACKAGES),
        **({"failed": wrong} if wrong else {}),
    }


def quoted(word: str) -> str:
    return f"'{word}'" if "[" in word else word


# ---------------------------------------------------------------- the page


def render() -> str:
    """The page of all result files."""
    lines = [
        "<!-- Rendered by `python scripts/catalogue.py --render` from docs/catalogue/*.json; do not edit. -->",
        "# The catalogue, measured",
        "",
        "Every strategy and learner of this package on scikit-learn's handwritten digits (1,437 training rows of 8x8",
        "pixels, 10 classes), a perceptron of two layers of 100 units, plain SGD with learning rate 0.1, 10 rows an",
        "update, 5 passes over each task, memories of 200 rows. All have their defaults and **nothing was tuned**, so",
        "a row says what a method does untouched, not what it can do; `continual tune` tunes on the first tasks only.",
        "Means over seeds ± the larger side of the 95% interval (Student's t). *Cost* is in forward-equivalents per",
        "arriving row, *bytes* is the peak of everything held (parameters, optimizer, memories, copies).",
        "",
        "Compare only rows of like cost and bytes: replay of as many rows as arrive doubles the first.",
        "",
    ]
    for stream in STREAMS:
        path = RESULTS / f"{stream.name}.json"
        if path.exists():
            lines += _table(stream, json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(lines) + "\n"


def _table(stream: Stream, rows: Mapping[str, Any]) -> list[str]:
    told = [row for row in rows.values() if row.get("estimates")]
    refused = [row for row in rows.values() if "refused" in row]
    commits = sorted({str(row["commit"])[:12] + (" with changes" if row["dirty"] else "") for row in told})
    lines = [
        f"## {stream.about}",
        "",
        "| method | what it is | average accuracy % | forgetting % | anytime accuracy % | cost | kB | s | n |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_line(row) for row in told),
        "",
    ]
    lines += [f"Refused here: {row['label']}: {row['refused']}\n" for row in refused]
    failed = [f"{row['label']} ({len(row['failed'])}: {row['failed'][0]})" for row in told if row.get("failed")]
    lines += [f"Runs that failed: {'; '.join(failed)}\n"] if failed else []
    first = told[0]["command"] if told else ""
    return [*lines, f"The first row's command: `{first}`. Commit {', '.join(commits)}.", ""]


def _line(row: Mapping[str, Any]) -> str:
    estimates = row["estimates"]

    def shown(metric: str) -> str:
        if metric not in estimates:
            return ""
        estimate = estimates[metric]
        scale = 100 if metric in PERCENT else 1e-3 if metric == "peak_bytes" else 1
        mean = f"{scale * estimate['mean']:.{1 if metric in PERCENT or metric == 'seconds' else 0}f}"
        if metric not in PERCENT or estimate["low"] is None:
            return mean
        half = max(estimate["high"] - estimate["mean"], estimate["mean"] - estimate["low"])
        return f"{mean} ± {scale * half:.1f}"

    n = len(next(iter(row["values"].values())))
    cells = [f"`{row['label']}`", row["about"], *map(shown, METRICS), str(n)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="these rows")
    parser.add_argument("--stream", choices=[stream.name for stream in STREAMS], help="this table")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--output", type=Path, default=Path("runs/catalogue"), help="where the runs lie")
    parser.add_argument("--render", action="store_true", help="only render the page")
    options = parser.parse_args()
    for stream in STREAMS if not options.render else ():
        if options.stream in (None, stream.name):
            path = RESULTS / f"{stream.name}.json"
            rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            for label, about, overrides in methods(stream):
                if not options.only or label in options.only:
                    rows[label] = run(label, about, overrides, stream, options.seeds, options.output)
                    mean = rows[label].get("estimates", {}).get("average_accuracy", {}).get("mean")
                    print(stream.name, label, rows[label].get("refused", mean), file=sys.stderr, flush=True)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
