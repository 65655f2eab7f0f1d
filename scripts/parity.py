"""Compare each strategy that Avalanche has too with Avalanche's: paired runs, two one-sided tests, one table.

Both learn the same stream from the same initial weights, with equal memory, batches and passes; the accuracies are of
the same test rows, through the same answers. Each row runs its seeds and writes ``docs/parity/<row>.json``; the table
``docs/PARITY.md`` is rendered from these files. That both take equal steps on equal batches is in
``tests/test_parity.py``::

    python scripts/parity.py --list
    CONTINUAL_DATA=FOLDER python scripts/parity.py --row er
    python scripts/parity.py --render
"""

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from origin import code_state

import continual
from continual.errors import DivergedError
from continual.statistics import equivalent

ROOT = Path(__file__).parents[1]
RESULTS, TABLE = ROOT / "docs" / "parity", ROOT / "docs" / "PARITY.md"
PACKAGES = ("continual", "avalanche-lib", "torch", "numpy")

MARGIN = 3.0
"""Points of average accuracy within which a mean difference does not matter; chosen before any run."""

CHANCE = 10.0
"""Average accuracy in percent that counts for a run that diverged, which answers nothing: of 10 classes."""

PROTOCOL = (
    "scenario=split_fashion",
    "scenario.rows_per_task=1000",
    "model=mlp",
    "model.hidden=[100]",
    "optimizer.lr=0.02",
    "train.batch_size=10",
    "train.epochs=1",
)
THEIRS, MEMORY = "learner=avalanche/", "learner.strategy.mem_size=500"
Values = Mapping[int, float | None]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the strategy and its result file.
        weights: what equal batches give, in words; ``tests/test_parity.py`` shows it.
        ours, theirs: overrides beside those of ``PROTOCOL``.
        notes: where the two differ, and which is right.
    """

    name: str
    weights: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    notes: str


def memory(name: str, kind: str = "class_balanced") -> tuple[str, str, str]:
    """One of our strategies with a memory of 500 rows."""
    return f"strategy={name}", f"memory@strategy.{name}.memory={kind}", f"strategy.{name}.memory.capacity=500"


ROWS = (
    Row(
        "er",
        "equal",
        (*memory("er", "reservoir"), "strategy.er.remember=end"),
        (
            THEIRS + "replay",
            MEMORY,
        ),
        "Theirs gives each experience an equal share of its memory, ours draws uniformly from all rows.",
    ),
    Row(
        "derpp",
        "equal for equal logits",
        (*memory("derpp"), "strategy.derpp.strength=0.3", "strategy.derpp.label_strength=0.5"),
        (THEIRS + "der", MEMORY, "learner.strategy.alpha=0.3", "learner.strategy.beta=0.5"),
        "Ours follows the paper: it stores the logits with which a row was trained on, and draws twice. Theirs stores "
        "the logits after the experience, draws once for both, and replays no row of the current one. In these runs of "
        "one pass theirs is ahead: see the next row.",
    ),
    Row(
        "derpp_end",
        "equal for equal logits",
        (
            *memory("derpp"),
            "strategy.derpp.strength=0.3",
            "strategy.derpp.label_strength=0.5",
            "strategy.derpp.remember=end",
        ),
        (THEIRS + "der", MEMORY, "learner.strategy.alpha=0.3", "learner.strategy.beta=0.5"),
        "Ours with the logits of the end of the experience, as theirs: added after the row above, to show what its "
        "difference comes from.",
    ),
    Row(
        "er_ace",
        "equal at half of our learning rate",
        memory("er_ace"),
        (
            THEIRS + "er_ace",
            MEMORY,
        ),
        "Ours is right: the paper adds the two means, theirs halves their sum, which is half of the learning rate, "
        "as the weights show. Theirs also remembers an experience before it trains on it, and has no mask in the "
        "first one.",
    ),
    Row(
        "er_ace_twice",
        "equal",
        memory("er_ace"),
        (THEIRS + "er_ace", MEMORY, "optimizer.lr=0.04"),
        "The same with twice the learning rate for theirs, which undoes the halving: added after the row above, to "
        "show that this is the difference.",
    ),
    Row(
        "ewc",
        "equal at 1 row a batch; strength = 2 lambda",
        ("strategy=ewc", "strategy.ewc.mode=separate", "strategy.ewc.strength=1.0"),
        (THEIRS + "ewc", "learner.strategy.ewc_lambda=0.5"),
        "Ours is right: the Fisher information is the mean over rows of squared gradients. Theirs is the mean over "
        "batches of the square of a batch's mean gradient, about 1/B of it, so that one lambda is another "
        "strength at another batch size.",
    ),
    Row(
        "lwf",
        "equal without dropout and batch statistics; strength = alpha / T^2",
        ("strategy=lwf", "strategy.lwf.strength=1.0", "strategy.lwf.temperature=2.0"),
        (THEIRS + "lwf", "learner.strategy.alpha=4.0", "learner.strategy.temperature=2.0"),
        "Ours is right: its teacher is in eval mode. Theirs stays in train mode, where dropout gives two answers to "
        "one question and batch statistics go on moving.",
    ),
    Row(
        "mas",
        "equal at 1 row a batch, two experiences, all classes seen",
        ("strategy=mas", "strategy.mas.strength=1.0", "strategy.mas.normalize=false"),
        (THEIRS + "mas",),
        "Ours is the paper's: each row's own gradient, importances add up. Theirs takes the gradient of a batch's "
        "mean, in train mode, halves old importance with each experience, and counts classes that never arrived. "
        "Ours runs with `normalize=false`, as published: by default its importances count as shares of the largest.",
    ),
    Row(
        "agem",
        "equal",
        (*memory("agem", "reservoir"), "strategy.agem.n_replay=64"),
        (THEIRS + "agem", "learner.strategy.patterns_per_exp=100"),
        "Theirs keeps 100 rows of each of the 5 experiences, ours a uniform sample of 500.",
    ),
    Row(
        "mir",
        "equal for equal candidates",
        (*memory("mir"), "strategy.mir.exclude_current=true"),
        (
            THEIRS + "mir",
            MEMORY,
        ),
        "Ours is right: it replays every earlier class. Theirs leaves out the classes of the last batch before an "
        "experience, which are those of the task that is forgotten next, and ranks in train mode.",
    ),
    Row(
        "gdumb",
        "equal for equal memories",
        ("learner=gdumb", "learner.memory.capacity=500", "train.epochs=10", "learner.epochs=10"),
        (THEIRS + "gdumb", MEMORY, "train.epochs=10"),
        "Both train anew on a class-balanced memory after each experience, 10 passes.",
    ),
)


def command(words: Sequence[str], seeds: int) -> str:
    """The runs of one side."""
    return shlex.join(["continual", "run", "-m", *PROTOCOL, *words, f"seed=range({seeds})", "track=none"])


def values(words: Sequence[str], seeds: int, output: str) -> Values:
    """{seed: average accuracy at the end, in percent; None of a run that diverged}."""
    found: dict[int, float | None] = {}
    for config in continual.expand([*PROTOCOL, *words, f"seed=range({seeds})", "track=none", f"output={output}"]):
        seed = config.resolved["seed"]
        try:
            found[seed] = round(100 * continual.run_config(config).metrics["average_accuracy"], 4)
        except DivergedError as error:
            found[seed] = None
            print(error, flush=True)
        print(f"{config.name} seed {seed}: {found[seed]}", flush=True)
    return found


def result(row: Row, ours: Values, theirs: Values, code: Mapping[str, Any]) -> dict[str, Any]:
    """What the row's file holds."""
    test = equivalent(counted(ours), counted(theirs), MARGIN)
    assert test.difference.low is not None
    assert test.difference.high is not None
    return {
        "row": row.name,
        "ours": {"command": command(row.ours, len(ours)), "values": dict(ours), "mean": mean(ours)},
        "theirs": {"command": command(row.theirs, len(theirs)), "values": dict(theirs), "mean": mean(theirs)},
        "n": len(ours),
        "difference": round(test.difference.mean, 4),
        "interval": [round(test.difference.low, 4), round(test.difference.high, 4)],
        "method": test.difference.method,
        "margin": test.margin,
        "p_value": round(test.p_value, 6),
        "equivalent": test.equivalent,
        **code,
    }


def counted(found: Values) -> dict[int, float]:
    """What counts for each seed."""
    return {seed: CHANCE if value is None else value for seed, value in found.items()}


def mean(found: Values) -> float:
    """The mean over seeds."""
    return round(sum(counted(found).values()) / len(found), 4)


def run_row(row: Row, seeds: int, results: Path = RESULTS) -> dict[str, Any]:
    """Run both sides and write the row's file."""
    code, began = code_state(PACKAGES), time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        ours, theirs = (values(words, seeds, output) for words in (row.ours, row.theirs))
    facts = result(row, ours, theirs, {"seconds": round(time.perf_counter() - began, 1), **code})
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{row.name}.json").write_text(f"{json.dumps(facts, indent=2)}\n", encoding="utf-8")
    return facts


HEADER = f"""\
<!-- Rendered by `python scripts/parity.py --render` from docs/parity/*.json; do not edit. -->
# Parity with Avalanche

Strategies that Avalanche 0.6.0 has too. *Weights*: what both give after several steps on the same batches, in float64,
from the same weights, with the same replayed rows (`tests/test_parity.py`): equal means within 1e-6. *Runs*: final
average accuracy in percent over paired seeds of class-incremental Fashion-MNIST, 5 tasks of 1000 rows, one pass, 10
rows an update, MLP 784-100-10, SGD lr 0.02, memories of 500 rows; the mean difference (ours minus theirs) with its 90%
interval, and two one-sided paired t-tests at 5% against ±{MARGIN:g} points. *Not shown* is not the same as different.
These settings were chosen for their small spread after two pairs of `er` with half of the rows; nothing else was tried.

| strategy | weights on equal batches | ours | Avalanche | difference | n | runs |
|---|---|---|---|---|---|---|
"""


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The page: the table, then the notes and the commands of each row."""
    run = {r["row"]: r for r in results}
    lines, details = ([tell(row, run.get(row.name)) for row in ROWS] for tell in (_line, _details))
    return HEADER + "\n".join([*lines, "", *details])


def _line(row: Row, r: Mapping[str, Any] | None) -> str:
    cells = [f"[{row.name}](#{row.name})", row.weights]
    if r is None:
        return f"| {' | '.join([*cells, '', '', '', '', 'not run'])} |"
    low, high = r["interval"]
    cells += [f"{r['ours']['mean']:.2f}", f"{r['theirs']['mean']:.2f}"]
    cells += [f"{r['difference']:+.2f} [{low:+.2f}, {high:+.2f}]", str(r["n"])]
    told = "equivalent" if r["equivalent"] else "not shown"
    return f"| {' | '.join([*cells, told])}, p = {r['p_value']:.2g} |"


def _details(row: Row, r: Mapping[str, Any] | None) -> str:
    facts = [f"## {row.name}\n", f"{row.notes}\n"]
    if r is not None:
        versions = ", ".join(f"{name} {number}" for name, number in r["versions"].items() if number)
        changed = " with uncommitted changes" if r["dirty"] else ""
        facts += [
            f"- Ours: `{r['ours']['command']}`{_diverged(r['ours'])}",
            f"- Avalanche: `{r['theirs']['command']}`{_diverged(r['theirs'])}",
            f"- Commit {r['commit'][:12]}{changed}; {versions}; {r['seconds']:.0f} seconds.\n",
        ]
    return "\n".join(facts)


def _diverged(side: Mapping[str, Any]) -> str:
    seeds = [str(seed) for seed, value in side["values"].items() if value is None]
    return f". Diverged with seed {', '.join(seeds)}, which counts as {CHANCE:g}: chance" if seeds else ""


def stored(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The result files that there are, in the order of the rows."""
    paths = [results / f"{row.name}.json" for row in ROWS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def main(words: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="names of the rows")
    parser.add_argument("--row", action="append", default=[], choices=[row.name for row in ROWS], help="run this row")
    parser.add_argument("--seeds", type=int, default=10, help="how many pairs, at least 2")
    parser.add_argument("--render", action="store_true", help="render the page from the result files")
    asked = parser.parse_args(words)
    for row in ROWS:
        if asked.list:
            print(row.name)
        if row.name in asked.row:
            facts = run_row(row, asked.seeds)
            print(f"{row.name}: {facts['difference']:+.2f} {facts['interval']}, equivalent: {facts['equivalent']}")
    if asked.row or asked.render:
        TABLE.write_text(render(stored()), encoding="utf-8")


if __name__ == "__main__":
    main()
