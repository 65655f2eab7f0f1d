"""The published protocols compose, the rule that judges them holds, and the page is what the result files say."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import continual
from continual.statistics import interval
from continual.types import Record

ROOT = Path(__file__).parents[1]
PRESETS = {
    "split_mnist": ("scenarios.split.split", 5, "MNIST"),
    "split_fashion": ("scenarios.split.split", 5, "FashionMNIST"),
    "split_cifar10": ("scenarios.split.split", 5, "CIFAR10"),
    "split_cifar100": ("scenarios.split.split", 20, "CIFAR100"),
    "permuted_mnist": ("scenarios.transformed.permuted", 20, "MNIST"),
}
TINY = ("scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[8]", "scenario.source.rows_per_class=20")


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("reproduce")


@pytest.fixture(scope="module")
def composed(script: ModuleType) -> dict[str, dict[str, Any]]:
    """{row: its config}; nothing is read, so no data are needed."""
    return {r.name: continual.compose(*r.overrides, "track=none").resolved for r in script.ROWS}


def row(script: ModuleType, **facts: Any) -> Any:
    return script.Row(
        **{"name": "r", "protocol": "", "overrides": (), "metric": "average_accuracy", "source": ""} | facts
    )


# Student's t at n = 3 is 4.3027: a deviation of 0.5 has half-width 4.3027 * 0.5 / sqrt(3) = 1.242, one of 1 has 2.484.
@pytest.mark.parametrize(
    ("values", "reference", "expected"),
    [
        ((49.5, 50.0, 50.5), 50.0, "reproduced"),
        ((49.5, 50.0, 50.5), 52.0, "reproduced"),  # 2 points off: both bounds are inclusive
        ((49.5, 50.0, 50.5), 52.01, "differs (-2.01)"),
        ((49.5, 50.0, 50.5), 47.9, "differs (+2.10)"),
        ((49.0, 50.0, 51.0), 50.0, "undecided, n = 3"),
        ((49.0, 50.0, 51.0), 90.0, "undecided, n = 3"),
        ((50.0,), 50.0, "undecided, n = 1"),  # a figure of one seed shows nothing
    ],
)
def test_the_rule_where_seeds_matter(
    script: ModuleType, values: tuple[float, ...], reference: float, expected: str
) -> None:
    assert script.verdict(row(script, reference=reference), interval(values)) == expected


@pytest.mark.parametrize(("value", "expected"), [(50.09, "reproduced"), (50.11, "differs (+0.11)")])
def test_the_rule_where_nothing_is_random(script: ModuleType, value: float, expected: str) -> None:
    assert script.verdict(row(script, reference=50.0, seeds=1), interval([value])) == expected


def test_a_figure_of_another_model_is_shown_and_judges_nothing(script: ModuleType) -> None:
    assert script.verdict(row(script, reference=82.2, rule="shown"), interval([83.0, 83.0])) == "no gate (+0.80)"


@pytest.mark.parametrize(
    ("rule", "values", "reference", "expected"),
    [
        ("band", (49.5, 50.0, 50.5), 52.0, "in the band"),
        ("band", (49.5, 50.0, 50.5), 52.01, "outside the band (-2.01)"),
        ("band", (49.0, 50.0, 51.0), 50.0, "undecided, n = 3"),
        # the intervals are [-2.242, 0.242] and [-1.242, 1.242]
        ("falls", (-1.5, -1.0, -0.5), 0.25, "reproduced"),
        ("falls", (-1.5, -1.0, -0.5), 0.24, "does not fall (-1.24)"),
        ("holds", (-0.5, 0.0, 0.5), -1.25, "reproduced"),
        ("holds", (-0.5, 0.0, 0.5), -1.24, "does not hold (+1.24)"),
        ("holds", (-1.0, 0.0, 1.0), -9.0, "undecided, n = 3"),
    ],
)
def test_the_rules_for_bands_and_shapes(
    script: ModuleType, rule: str, values: tuple[float, ...], reference: float, expected: str
) -> None:
    assert script.verdict(row(script, rule=rule, reference=reference), interval(values)) == expected


def test_the_half_width_is_the_larger_side(script: ModuleType) -> None:
    skewed = interval([0.0] * 19 + [10.0])  # a bootstrap, so not symmetric
    assert skewed.low is not None
    assert skewed.high is not None
    assert skewed.high - skewed.mean > skewed.mean - skewed.low
    assert script.half_width(skewed) == skewed.high - skewed.mean


def test_every_row_composes_under_the_switches_of_its_protocol(
    script: ModuleType, composed: dict[str, dict[str, Any]]
) -> None:
    assert len(composed) == len(script.ROWS)
    for config in composed.values():
        assert config["scenario"]["source"].get("input_range", [0.0, 1.0]) == [0.0, 1.0]
        head = "per_task" if config["scenario"].get("kind") == "task" else "all"
        assert (config["train"]["head"], config["train"]["epochs"]) == (head, 1)


def test_the_command_says_what_is_run(script: ModuleType) -> None:
    for r in script.ROWS:
        said = shlex.split(r.command(3))
        seeds = "seed=range(20,23)" if r.first else "seed=range(3)"
        assert said == ["continual", "run", "-m", *r.overrides, seeds, "track=none"]
        assert [c.resolved["seed"] for c in continual.expand(said[3:])] == list(range(r.first, r.first + 3))


def test_replay_of_the_mir_protocol_leaves_out_the_current_task(composed: dict[str, dict[str, Any]]) -> None:
    mir = {name: config["strategy"] for name, config in composed.items() if name.startswith("split_mnist_mir")}
    replays = {name: settings for name, strategy in mir.items() for settings in strategy.values()}
    assert {name: settings["n_replay"] for name, settings in replays.items()} == {
        "split_mnist_mir_er": 10,
        "split_mnist_mir_er_40": 40,
        "split_mnist_mir_noise_er": 10,
        "split_mnist_mir_noise_er_40": 40,
        "split_mnist_mir_mir": 10,
        "split_mnist_mir_noise_mir": 10,
    }
    for settings in replays.values():
        assert settings["exclude_current"]
        assert settings["memory"]["capacity"] == 500
        assert settings["memory"]["_target_"].endswith("Reservoir")
        assert settings["strength"] == 1, "two means, as in the authors' code"
    assert {mir[name]["mir"]["n_candidates"] for name in mir if "mir" in mir[name]} == {50}


def test_rows_of_split_mnist_batch_keep_the_switches_of_the_protocol(composed: dict[str, dict[str, Any]]) -> None:
    rows = {name: config for name, config in composed.items() if name.startswith("split_mnist_batch")}
    strengths = {"ewc": (1e9, 1e10, 1e5), "si": (5e3, 5e4, 10.0)}
    for name, config in rows.items():
        strategy, kind = config["strategy"], config["scenario"]["kind"]
        assert config["optimizer"] == {
            "_target_": "torch.optim.Adam",
            "_partial_": True,
            "lr": 1e-3,
            "weight_decay": 0,
            "fused": True,
        }
        assert config["model"]["hidden"] == [400, 400]
        assert config["scenario"]["shuffle_classes"]
        updates = config["train"]["iterations"] * config["scenario"]["n_tasks"]
        assert (config["train"]["batch_size"], updates) == (128, 10_000)
        for method, (of_class, of_domain, of_task) in strengths.items():
            if method in strategy:
                known = {"class": of_class, "domain": of_domain, "task": of_task}
                assert strategy[method]["strength"] == known[kind], name
        if "er" in strategy:
            er = strategy["er"]
            assert (er["remember"], er["weighting"], er["strength"]) == ("end", "tasks", None)
            assert (er["n_replay"], er["memory"]["capacity"]) == (128, 1000)
            assert er["memory"]["_target_"].endswith("Reservoir" if kind == "domain" else "Ring")
        if "ewc" in strategy:
            assert (strategy["ewc"]["mode"], strategy["ewc"]["labels"]) == ("separate", "model")
            assert strategy["ewc"]["max_pull"] is None
        if "icarl" in strategy:
            assert (strategy["icarl"]["n_per_class"], strategy["icarl"]["temperature"]) == (100, 2)
        if "lwf" in strategy:
            lwf = strategy["lwf"]
            assert lwf["strength"] * lwf["temperature"] ** 2 == 1
            distilled = {"class": ("all", "constant"), "domain": ("old", "tasks"), "task": ("per_task", "tasks")}
            assert (lwf["softmax"], lwf["weighting"]) == distilled[kind]


def test_online_accuracy_change_is_the_last_tasks_minus_the_first(script: ModuleType) -> None:
    def arrival(task: int, metric: str, value: float) -> Record:
        return Record(0, 0, task, "arrival", None, metric, value)

    records = [
        fact
        for task in range(20)
        for rows, accuracy in ((30, 0.1 * (task >= 18)), (10, 0.5))  # two windows of a task count by their rows
        for fact in (arrival(task, "prequential_rows", rows), arrival(task, "prequential_accuracy", accuracy))
    ]
    assert script.online_accuracy_change(records) == pytest.approx(0.75 * 0.1)
    assert script.online_accuracy_change(records, share=0.15) == pytest.approx(0.75 * 0.1 * 2 / 3)
    assert script.online_accuracy_change(records[:8]) == pytest.approx(0.0)


def test_the_plasticity_protocol_predicts_the_same_images_before_they_are_learned(
    script: ModuleType, composed: dict[str, dict[str, Any]]
) -> None:
    rows = {name: config for name, config in composed.items() if name.startswith("plasticity")}
    assert len(rows) >= 4
    for config in rows.values():
        scenario, probe = config["scenario"], config["probe"]
        assert scenario["permute_first"]
        assert scenario["same_rows"]
        assert (scenario["rows_per_task"], scenario["arrival_rows"], config["train"]["batch_size"]) == (10_000, 16, 16)
        assert scenario["rows_per_task"] == 625 * scenario["arrival_rows"] == probe["window"]
        assert probe["prequential"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_a_scenario_on_another_source(name: str) -> None:
    scenario = continual.compose(f"scenario={name}", "track=none").resolved["scenario"]
    assert (scenario["_target_"], scenario["n_tasks"], scenario["source"]["name"]) == PRESETS[name]


def test_a_preset_takes_another_source_and_other_values() -> None:
    config = continual.compose("scenario=split_mnist", "scenario/source=digits", "scenario.n_tasks=2", "track=none")
    assert config.resolved["scenario"]["source"]["_target_"] == "scenarios.sources.digits"
    assert config.resolved["scenario"]["n_tasks"] == 2


def test_a_relative_table_is_found_in_the_data_folder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTINUAL_DATA", str(tmp_path / "data"))
    protocol = ("experiment=electricity_prequential", "scenario.source.path=small/rows.csv", "track=none")
    with pytest.raises(
        continual.UserError, match=rf"no file {tmp_path}/small/rows.csv, nor {tmp_path}/data/small/rows"
    ):
        continual.run(*protocol)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "data" / "small").mkdir(parents=True)
    (tmp_path / "data" / "small" / "rows.csv").write_text("a,class\n0,UP\n1,UP\n2,DOWN\n3,DOWN\n4,DOWN\n")
    run = continual.run(*protocol)
    assert run.metrics["last_label_accuracy"] == 3 / 5  # DOWN is class 0, the label before the first row


def test_a_row_writes_its_seeds_and_where_they_come_from(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = row(script, overrides=TINY, reference=50.0, protocol="blobs")
    script.run_rows([tiny], seeds=2, results=tmp_path, table=tmp_path / "page.md")
    text = (tmp_path / "r.json").read_text()
    facts = json.loads(text)
    direct = [continual.run(*TINY, f"seed={s}", "track=none", f"output={tmp_path}/runs") for s in (0, 1)]
    assert facts["values"] == {str(s): round(100 * run.metrics["average_accuracy"], 4) for s, run in enumerate(direct)}
    assert facts["mean"] == pytest.approx(sum(facts["values"].values()) / 2, abs=1e-4)
    assert re.fullmatch(r"[0-9a-f]{40}", facts["commit"])
    assert facts["versions"]["torch"]
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    assert f"r: {facts['mean']:.2f}" in capsys.readouterr().out


def test_a_row_is_resumed_after_the_seeds_that_its_file_holds(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "code_state", lambda _: {"commit": "b" * 40, "dirty": False, "versions": {}})
    clock = iter(range(0, 1000, 7))  # seven seconds between two looks
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    tiny, path = row(script, overrides=TINY, reference=50.0, protocol="blobs"), tmp_path / "r.json"
    folders = {"results": tmp_path, "table": tmp_path / "page.md"}
    script.run_rows([tiny], seeds=1, **folders)
    first = json.loads(path.read_text())
    old = {"values": {"0": 12.5}, "seconds": 1000.0, "commit": "a" * 40, "dirty": True}
    path.write_text(json.dumps(first | old))
    script.run_rows([tiny], seeds=2, resume=True, **folders)
    facts = json.loads(path.read_text())
    assert (list(facts["values"]), facts["values"]["0"], facts["n"]) == (["0", "1"], 12.5, 2)
    assert facts["command"] == tiny.command(2)
    assert facts["seconds"] == 1000 + 7
    assert (facts["commit"], facts["earlier_commits"], facts["dirty"]) == (first["commit"], ["a" * 40], True)
    assert " with uncommitted changes, some seeds aaaaaaaaaaaa; " in script.render([facts])
    script.run_rows([tiny], seeds=1, resume=True, **folders)
    assert json.loads(path.read_text()) == facts, "nothing was missing"
    noted = row(script, overrides=TINY, reference=90.0, protocol="blobs", notes="Tried X.")
    script.run_rows([noted], seeds=1, resume=True, **folders)
    changed = {"notes": "Tried X.", "reference": 90.0, "verdict": "undecided, n = 2"}
    assert json.loads(path.read_text()) == facts | changed, "described as the row is now"
    other = row(script, overrides=(*TINY, "optimizer.lr=0.2"), reference=50.0)
    with pytest.raises(continual.UserError, match="is not of the runs of row r; run it without --resume"):
        script.run_rows([other], seeds=3, resume=True, **folders)
    script.run_rows([tiny], seeds=1, **folders)
    again = json.loads(path.read_text())
    assert again["values"] == first["values"]
    assert "earlier_commits" not in again


def test_the_page_shows_what_the_files_hold(script: ModuleType) -> None:
    code = {"commit": "c" * 40, "dirty": True, "versions": {"torch": "2.10.0"}}
    one = row(
        script, name="slda_mnist", reference=87.41, seeds=1, protocol="Pixels.", source="re-run", notes="Tried X."
    )
    several = row(script, name="mir", reference=52.01, overrides=("strategy=er",))
    page = script.render(
        [
            script.result(one, {"0": 87.4}, 12.3, code),
            script.result(several, {"0": 49.5, "1": 50.0, "2": 50.5}, 4.0, code),
        ]
    )
    assert (
        "| [slda_mnist](#slda_mnist) | 87.41 | 87.40 | 1 | reproduced | `continual run -m 'seed=range(1)' track=none` |"
        in page
    )
    assert (
        "| 52.01 | 50.00 ± 1.24 | 3 | differs (-2.01) | `continual run -m strategy=er 'seed=range(3)' track=none` |"
        in page
    )
    assert "- Commit cccccccccccc with uncommitted changes; torch 2.10.0; 12 seconds." in page
    assert "Tried X." in page


def test_the_committed_page_is_rendered_from_the_committed_files(script: ModuleType) -> None:
    assert script.TABLE.read_text(encoding="utf-8") == script.render(script.stored())


def test_the_committed_files_are_judged_by_the_rule(script: ModuleType) -> None:
    rows = {r.name: r for r in script.ROWS}
    paths = sorted(script.RESULTS.glob("*.json"))
    assert {path.stem for path in paths} <= rows.keys()
    for path in paths:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known = rows[path.stem]
        assert facts["verdict"] == script.verdict(known, interval(facts["values"].values()))
        assert facts["command"] == known.command(facts["n"])
        assert facts["reference"] == known.reference
        assert not re.search(r"/(home|root|tmp|work|Users)\b", json.dumps(facts))


def test_an_unknown_row_is_refused_before_anything_runs(script: ModuleType) -> None:
    with pytest.raises(continual.UserError, match=r"--row slda_mnits does not exist; choose from split_mnist_mir_none"):
        script.main(["--row", "slda_mnits"])
