"""Run every strategy and learner on the same small streams, and render what each reached and what it cost.

Nothing is tuned: every method has its defaults, chosen before. Add a YAML and its row is there::

    python scripts/catalogue.py                       # all of it; a run that has finished is not run again
    python scripts/catalogue.py --only er mir         # these rows, the others are kept as they were
    python scripts/catalogue.py --render

Writes docs/catalogue/<stream>.json and renders docs/CATALOGUE.md from these files.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catalogue_tables import PAIRS, STREAMS, Stream, row
from origin import code_state

from continual import config as configs
from continual.errors import UserError
from continual.statistics import interval
from continual.sweep import attempt
from scenarios.sources.files import data_root

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "catalogue", ROOT / "docs" / "CATALOGUE.md"
PERCENT = {
    "prequential_accuracy": "prequential accuracy %",
    "average_accuracy": "average accuracy %",
    "forgetting": "forgetting %",
    "anytime_accuracy": "anytime accuracy %",
}
COST = {"forward_equivalents_per_row": "cost", "peak_bytes": "kB", "seconds": "s"}
METRICS = {**PERCENT, **COST}
PACKAGES = ("continual", "torch", "numpy", "scikit-learn")


def overrides(label: str, stream: Stream) -> list[str]:
    """Of a row: what makes the stream, the method, and what only this row needs here."""
    return [*stream.overrides, *row(label)[1], *stream.own.get(label, ())]


def command(label: str, stream: Stream, seeds: int) -> str:
    return shlex.join(["continual", "run", "-m", *overrides(label, stream), f"seed=range({seeds})"])


def run(label: str, stream: Stream, seeds: int, output: Path) -> dict[str, Any]:
    """One row: every seed, the estimates over them; or why the stream refuses the method."""
    facts = {"label": label, "command": command(label, stream, seeds)}
    try:
        jobs = configs.expand([*overrides(label, stream), f"seed=range({seeds})", f"output={output}"])
        outcomes = [attempt(job) for job in jobs]
    except UserError as error:
        return facts | {"refused": str(error)}
    wrong = [str(outcome.error) for outcome in outcomes if outcome.run is None]
    found = [outcome.run.metrics for outcome in outcomes if outcome.run is not None]
    if not found:
        return facts | {"refused": wrong[0]}
    values = {m: [metrics[m] for metrics in found] for m in METRICS if all(m in metrics for metrics in found)}
    return facts | {
        "values": values,
        "estimates": {metric: asdict(interval(of)) for metric, of in values.items()},
        **code_state(PACKAGES),
        **({"failed": wrong} if wrong else {}),
    }


# ---------------------------------------------------------------- the page


def render() -> str:
    """The page of all result files."""
    lines = [
        "<!-- Rendered by `python scripts/catalogue.py --render` from docs/catalogue/*.json; do not edit. -->",
        "# The catalogue, measured",
        "",
        "Every strategy, learner and memory of this package on scikit-learn's handwritten digits (1,437 training",
        "rows of 8x8 pixels, 10 classes), a perceptron of two layers of 100 units, plain SGD with learning rate 0.1,",
        "10 rows an update, 5 passes over each task, memories of 200 rows, except where a table says otherwise. All",
        "have their defaults and **nothing was tuned**, so a row says what a method does untouched, not what it can",
        "do; `continual tune` tunes on the first tasks only. Means over seeds ± the larger side of the 95% interval",
        "(Student's t). *Cost* is in forward-equivalents per arriving row, *kB* is the peak of everything held",
        "(parameters, optimizer, memories, copies); *s* was taken on a machine that did other things beside, and only",
        "says what takes long.",
        "",
        "Compare only rows of like cost and bytes: replay of as many rows as arrive doubles the first. `joint` and",
        "`cumulative` bound what this network learns from these passes over all rows, and nothing else: closed forms,",
        "nearest neighbours and, where labels change, the last label get above them.",
        "",
    ]
    for stream in STREAMS:
        path = RESULTS / f"{stream.name}.json"
        if path.exists():
            lines += _table(stream, json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(lines) + "\n"


def _table(stream: Stream, rows: Mapping[str, Any]) -> list[str]:
    done = [found for found in rows.values() if found.get("estimates")]
    refused: dict[str, list[str]] = {}
    for label, found in rows.items():
        if "refused" in found:
            refused.setdefault(found["refused"], []).append(f"`{label}`")
    commits = sorted({str(r["commit"])[:12] + (" with changes" if r["dirty"] else "") for r in done})
    titles = [METRICS[metric] for metric in (*stream.shown, *COST)]
    lines = [
        f"## {stream.about}",
        "",
        *([stream.note, ""] if stream.note else []),
        f"| method | what it is | {' | '.join(titles)} | n |",
        f"|---|---|{'---:|' * len(titles)}---:|",
        *(_line(r, stream) for r in done),
        "",
    ]
    measured = {r["label"] for r in done if not r.get("failed")}
    pairs = [_difference(rows, stream.shown[0], *pair) for pair in PAIRS if set(pair) <= measured]
    if pairs:
        name = METRICS[stream.shown[0]].removesuffix(" %")
        lines += [f"Differences of {name} in points, paired over seeds: {'; '.join(pairs)}.", ""]
    lines += [f"Refused here: {', '.join(labels)}: {why}\n" for why, labels in refused.items()]
    failed = [f"{r['label']} ({len(r['failed'])}: {r['failed'][0]})" for r in done if r.get("failed")]
    lines += [f"Runs that failed: {'; '.join(failed)}\n"] if failed else []
    first = done[0]["command"] if done else ""
    return [*lines, f"The first row's command: `{first}`. Commit {', '.join(commits)}.", ""]


def _difference(rows: Mapping[str, Any], metric: str, label: str, baseline: str) -> str:
    """What ``label`` has more than ``baseline``, over the same seeds."""
    more, less = (rows[name]["values"][metric] for name in (label, baseline))
    found = interval([a - b for a, b in zip(more, less, strict=True)])
    return f"`{label}` over `{baseline}` {100 * found.mean:+.1f}{_half(asdict(found))}"


def _half(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return ""
    return f" ± {100 * max(estimate['high'] - estimate['mean'], estimate['mean'] - estimate['low']):.1f}"


def _line(found: Mapping[str, Any], stream: Stream) -> str:
    estimates = found["estimates"]

    def shown(metric: str) -> str:
        if metric not in estimates:
            return ""
        mean = estimates[metric]["mean"]
        if metric in PERCENT:
            return f"{100 * mean:.1f}{_half(estimates[metric])}"
        return f"{mean / 1000:.0f}" if metric == "peak_bytes" else f"{mean:.{1 if metric == 'seconds' else 0}f}"

    n = len(next(iter(found["values"].values())))
    cells = [f"`{found['label']}`", row(found["label"])[0], *map(shown, (*stream.shown, *COST)), str(n)]
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
        if options.stream in (None, stream.name) and (not stream.data or (data_root(None) / stream.data).exists()):
            measure(stream, options.only, options.seeds, options.output)
    PAGE.write_text(render(), encoding="utf-8")


def measure(stream: Stream, only: Sequence[str] | None, seeds: int, output: Path) -> None:
    """Run the rows of a table, and write its file after each."""
    path = RESULTS / f"{stream.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for label in stream.rows:
        if not only or label in only:
            rows[label] = run(label, stream, seeds, output)
            mean = rows[label].get("estimates", {}).get(stream.shown[0], {}).get("mean")
            print(stream.name, label, rows[label].get("refused", mean), file=sys.stderr, flush=True)
            kept = {name: rows[name] for name in stream.rows if name in rows}
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
