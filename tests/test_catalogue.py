"""The catalogue: every YAML has a measured row, the committed rows are those of the tables, and the page shows them."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from continual.choices import choices, conf_directory
from continual.heads import KINDS

ROOT = Path(__file__).parents[1]
Rows = dict[str, dict[str, Any]]
FROZEN = ("l2p", "coda_prompt", "lora")
PLAIN = ("none", "ema_teacher", "er", "er+ema_teacher", "buffer_knn", "last_label", "cumulative", "joint")
TINY = (
    "track=none",
    "scenario/source=gaussian",
    "scenario.n_tasks=2",
    "model.hidden=[8]",
    "scenario.source.rows_per_class=20",
)


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("catalogue")


@pytest.fixture(scope="module")
def results(script: ModuleType) -> dict[str, Rows]:
    """{table: its committed rows}."""
    files = {stream.name: script.RESULTS / f"{stream.name}.json" for stream in script.STREAMS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}


def chosen(command: str) -> Iterator[tuple[str, str]]:
    """(group, choice) that a command names, of ``head`` too: ``strategy=[er,ewc]`` names two."""
    for key, _, value in (word.partition("=") for word in shlex.split(command)):
        for choice in value.strip("[]").split(","):
            yield key.partition("@")[0].removeprefix("train."), choice


def required() -> set[tuple[str, str]]:
    """What has to be measured, but for what rows have that say nothing about it."""
    learners = {name.name for name in choices("learner") if not name.name.startswith("avalanche/")}
    said: dict[str, set[str]] = {
        "strategy": {choice.name for choice in choices("strategy")},
        "learner": learners,
        "optimizer": {choice.name for choice in choices("optimizer")} - {"adam", "adamw"},  # torch's own
        "memory": {choice.name for choice in choices("memory")},
        "head": set(KINDS),
        "model": set(FROZEN),
    }
    config = yaml.safe_load((conf_directory() / "config.yaml").read_text(encoding="utf-8"))
    replay = yaml.safe_load((conf_directory() / "strategy" / "er.yaml").read_text(encoding="utf-8"))
    default = {group: choice for part in config["defaults"] if isinstance(part, dict) for group, choice in part.items()}
    said["learner"].remove(default["learner"])
    said["optimizer"].remove(default["optimizer"])
    said["memory"].remove(replay["defaults"][0]["/memory@er.memory"])
    return {(group, choice) for group, names in said.items() for choice in names}


def unmeasured(tables: dict[str, Rows]) -> set[tuple[str, str]]:
    commands = [row["command"] for rows in tables.values() for row in rows.values() if row.get("estimates")]
    return required() - {pair for command in commands for pair in chosen(command)}


def test_every_strategy_learner_optimizer_memory_and_head_has_a_measured_row(results: dict[str, Rows]) -> None:
    assert unmeasured(results) == set()


@pytest.mark.parametrize(
    ("group", "name", "rows"),
    [
        ("strategy", "scr", ["scr"]),
        ("learner", "ranpac", ["ranpac"]),
        ("memory", "ring", ["er, ring"]),
        ("model", "lora", ["lora"]),
        ("head", "growing", ["none, head=growing", "er, head=growing"]),
    ],
)
@pytest.mark.parametrize("how", ["no row", "refused"])
def test_what_has_no_measured_row_is_found(
    results: dict[str, Rows], group: str, name: str, rows: list[str], how: str
) -> None:
    def without(row: dict[str, Any]) -> bool:
        return row["label"] in rows or "refused" in row

    fewer = {
        table: {
            label: row if not without(row) else {"command": row["command"], "refused": ""}
            for label, row in own.items()
            if how == "refused" or not without(row)
        }
        for table, own in results.items()
    }
    assert unmeasured(fewer) == {(group, name)}


def test_the_committed_rows_are_those_of_the_tables(script: ModuleType, results: dict[str, Rows]) -> None:
    for stream in script.STREAMS:
        rows = results[stream.name]
        assert tuple(rows) == stream.rows
        for label, row in rows.items():
            assert (row["label"], row["command"]) == (label, script.command(label, stream, 5))


def test_a_row_has_every_seed_or_a_reason(results: dict[str, Rows]) -> None:
    for name, rows in results.items():
        for label, row in rows.items():
            if "refused" in row:
                assert row["refused"], (name, label)
            else:
                assert {len(values) for values in row["values"].values()} == {5}, (name, label)
                assert not row["dirty"], (name, label)
                assert "failed" not in row, (name, label)


@pytest.mark.parametrize("label", PLAIN)
def test_baselines_and_bounds_stand_in_every_table(results: dict[str, Rows], label: str) -> None:
    assert [name for name, rows in results.items() if not rows[label].get("estimates")] == []


def test_page_is_rendered_from_the_results(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.render()


def stream(script: ModuleType, **facts: Any) -> Any:
    return script.Stream(**{"name": "t", "about": "", "overrides": TINY, "rows": ()} | facts)


def test_a_row_is_run_for_every_seed(script: ModuleType, tmp_path: Path) -> None:
    row = script.run("er, fifo", stream(script, own={"er, fifo": ("strategy.er.n_replay=3",)}), 2, tmp_path)
    assert "memory@strategy.er.memory=fifo strategy.er.n_replay=3 'seed=range(2)'" in row["command"]
    assert len(row["values"]["average_accuracy"]) == 2
    assert row["estimates"]["average_accuracy"]["mean"] == pytest.approx(sum(row["values"]["average_accuracy"]) / 2)


def test_what_a_stream_refuses_says_why(script: ModuleType, tmp_path: Path) -> None:
    row = script.run("none, head=per_task", stream(script), 1, tmp_path)
    assert "asks for task labels" in row["refused"]
    assert "values" not in row


def measured(script: ModuleType, label: str, values: list[float]) -> dict[str, Any]:
    names = ("average_accuracy", "forgetting", "anytime_accuracy", *script.COST)
    estimate = {"mean": sum(values) / len(values), "low": None, "high": None, "n": len(values)}
    return {
        "label": label,
        "command": "continual run",
        "commit": "c" * 40,
        "dirty": False,
        "values": dict.fromkeys(names, values),
        "estimates": dict.fromkeys(names, estimate),
    }


# Differences 0.2 and 0.4: mean 0.3, standard deviation 0.1414, half-width 12.706 * 0.1414 / sqrt(2) = 1.2706.
def test_differences_are_paired_over_seeds(script: ModuleType) -> None:
    rows = {"er": measured(script, "er", [0.5, 0.1]), "er, fifo": measured(script, "er, fifo", [0.7, 0.5])}
    page = "\n".join(script._table(stream(script), rows))
    assert "paired over seeds: `er, fifo` over `er` +30.0 ± 127.1." in page
    assert "| `er, fifo` | experience replay; the last rows of all | 60.0 | 60.0 | 60.0 | 1 | 0 | 0.6 | 2 |" in page


def test_rows_refused_for_one_reason_stand_together(script: ModuleType) -> None:
    rows = {
        "none": measured(script, "none", [0.5]),
        **{label: {"label": label, "refused": "hides labels"} for label in ("a", "b")},
    }
    page = script._table(stream(script), rows)
    assert "Refused here: `a`, `b`: hides labels\n" in page
    assert not any("paired" in line for line in page)
