"""`continual compare --latex`: numbers by hand, names that LaTeX must print and not obey."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual.ledger import Ledger
from continual.report import latex
from continual.report.compare import compare, pick_baseline
from continual.types import Record

Make = Callable[..., Path]
HOSTILE = r"\end{tabular} 50% a_b & #1 $x^2$ {~} [2pt] * <a> |c| `d` \\[1cm] --" + '"q"\n\\input{x} \x00\u2028z'


@pytest.fixture
def make(make_run: Make) -> Make:
    """Writes a finished run of which the memory was measured too."""

    def write(name: str, seed: int, kept: float, size: float = 15_000.0, **more: Any) -> Path:
        return make_run(name, seed, kept, extra=[Record(20, 20, 1, "final", None, "peak_bytes", size)], **more)

    return write


def rendered(folder: Path, baseline: str | None = None, metrics: tuple[str, ...] = ()) -> str:
    blocks = compare([folder])
    return latex.render(blocks, pick_baseline(blocks, baseline) if baseline else [None] * len(blocks), metrics)


def cells(source: str) -> dict[str, list[str]]:
    """{row: its cells}, of the lines that end a row."""
    rows = [line.removesuffix(r" \\").split(" & ") for line in source.splitlines() if line.endswith(r" \\")]
    return {row[0]: row[1:] for row in rows}


def test_a_table_by_hand(make: Make, tmp_path: Path) -> None:
    for seed, none, er in ((0, 0.1, 0.6), (1, 0.3, 0.8)):
        make("none", seed, none)
        make("er", seed, er)
    make("joint", 0, 0.9, learner="continual.learners.joint.Joint")
    # none: accuracies .55 and .65, so .6 ± 12.706 * .0707 / sqrt(2) = .635; forgetting .9 and .7
    source = rendered(tmp_path, "none", ("average_accuracy", "forgetting", "peak_bytes"))
    means, differences = source.split("% split-digits")[1:]
    assert cells(means) == {
        "": [r"average accuracy (\%)", r"forgetting (\%)", "memory (kB)", "$n$"],
        "none": [r"$60.0 \pm 63.5$", r"$80.0 \pm 127.1$", "$15$", "2"],
        "er": [r"$85.0 \pm 63.5$", r"$30.0 \pm 127.1$", "$15$", "2"],
        "joint": ["$95.0$", "$10.0$", "$15$", "1"],
    }
    assert r"% \pm is half of the 95% Student t interval of the mean over n seeds; no interval where n = 1" in means
    assert differences.startswith(": difference to none, paired by seed\n")
    assert cells(differences)["er"] == ["$+25.0$", "$-50.0$", "$0$", "2"]
    assert cells(differences)["joint"] == ["$+40.0$", "$-80.0$", "$0$", "1"]
    assert r"\usepackage{booktabs}" in source
    assert [source.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrr}")] == [
        2, 2, 2, 2,
    ]  # fmt: skip


def test_the_standard_columns_and_what_was_not_measured(make: Make, tmp_path: Path) -> None:
    make("er", 0, 0.5)
    with Ledger.create(tmp_path / "runs" / "x", _about(make("none", 0, 0.5), name="idle")):
        pass
    found = cells(rendered(tmp_path))
    assert [title.split(" (")[0] for title in found[""]] == [
        "average accuracy", "forgetting", "backward transfer", "forward transfer", "anytime accuracy", "memory", "$n$",
    ]  # fmt: skip
    assert found["idle"] == ["--"] * 6 + ["1"]


def _about(path: Path, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load((path / "manifest.json").read_text()) | changes  # type: ignore[no-any-return]


def test_bold_is_what_is_best_beyond_every_interval(make: Make, tmp_path: Path) -> None:
    for seed, shift in enumerate((-0.01, 0, 0.01)):
        make("worst", seed, 0.2 + shift, size=1000.0)
        make("best", seed, 0.8 + shift)
        make("joint", seed, 0.9 + shift, learner="continual.learners.joint.Joint")
    found = cells(rendered(tmp_path, metrics=("average_accuracy", "forgetting", "backward_transfer", "peak_bytes")))
    assert found["best"][:4] == [
        r"$\mathbf{90.0} \pm 1.2$", r"$\mathbf{20.0} \pm 2.5$", r"$\mathbf{-20.0} \pm 2.5$", "$15$",
    ]  # fmt: skip
    assert not any("mathbf" in cell for row in ("worst", "joint") for cell in found[row])


@pytest.mark.parametrize(
    "other", [[0.79, 0.8], [0.2], [0.5, 0.85, 0.2]], ids=["overlaps", "has no interval", "is wide"]
)
def test_nothing_is_bold_if_another_interval_reaches_the_best_mean(
    make: Make, tmp_path: Path, other: list[float]
) -> None:
    for seed in range(3):
        make("best", seed, 0.8 + seed / 100)
    for seed, kept in enumerate(other):
        make("other", seed, kept)
    assert "mathbf" not in rendered(tmp_path, metrics=("average_accuracy", "forgetting"))


def test_nothing_is_bold_that_a_note_forbids_to_compare(make: Make, tmp_path: Path) -> None:
    for every in (5, 50):
        for name, kept in (("best", 0.8), ("worst", 0.2)):
            for seed, shift in enumerate((-0.01, 0, 0.01)):
                make(
                    name,
                    seed,
                    kept + shift,
                    at=f"every{every}",
                    config={"probe": {"every": 5 if name == "best" else every}},
                )
    metrics = ("average_accuracy", "anytime_accuracy")
    equal, other = (rendered(tmp_path / f"every{every}", metrics=metrics) for every in (5, 50))
    assert [[("mathbf" in cell) for cell in cells(source)["best"][:2]] for source in (equal, other)] == [
        [True, True], [True, False],
    ]  # fmt: skip
    assert "% ! different probe.every: 5 (best); 50 (worst): anytime metrics are not comparable\n" in other
    make("best", 0, 0.8, at="every5", data_digest="other")
    assert "mathbf" not in rendered(tmp_path / "every5", metrics=metrics)


def test_from_twenty_seeds_the_bar_is_not_symmetric(make: Make, tmp_path: Path) -> None:
    for seed in range(20):
        make("er", seed, (seed / 20) ** 4)
    (cell, n) = cells(rendered(tmp_path, metrics=("average_accuracy",)))["er"]
    mean, below, above = map(float, re.fullmatch(r"\$(.+)_\{-(.+)\}\^\{\+(.+)\}\$", cell).groups())  # type: ignore[union-attr]
    assert n == "20"
    assert mean == pytest.approx(100 * (1 + sum((s / 20) ** 4 for s in range(20)) / 20) / 2, abs=0.05)
    assert 0 < below < above
    assert "% - and + tell how far the 95% BCa bootstrap interval of the mean reaches" in rendered(tmp_path)


# ---------------------------------------------------------------- user text


def tokens(source: str) -> Iterator[str]:
    r"""Control sequences and characters as TeX sees them: comments are gone, ``\x`` is one token."""
    for line in source.split("\n"):
        for token in re.findall(r"\\[a-zA-Z]+|\\.|.", line):
            if token == "%":
                break
            yield token


def test_hostile_text_prints_and_does_nothing(make: Make, tmp_path: Path) -> None:
    make(HOSTILE, 0, 0.5, scenario=HOSTILE)
    make(HOSTILE, 0, 0.6, scenario=HOSTILE)  # the older one is not counted, and a note says so
    plain = tmp_path / "plain"
    make("er", 0, 0.6).rename(plain)
    hostile, reference = list(tokens(rendered(tmp_path / "runs"))), list(tokens(rendered(plain)))
    prints = {
        r"\textbackslash", r"\textasciitilde", r"\textasciicircum", r"\textless", r"\textgreater", r"\textbar",
        r"\textasciigrave", r"\symbol", r"\{", r"\}", r"\_", r"\&", r"\#", r"\$", r"\%", "{", "}",
    }  # fmt: skip
    for token in set("&$#^_~\\") | {token for token in hostile if token.startswith("\\")} - prints:
        assert hostile.count(token) == reference.count(token), token
    depth = 0
    for token in hostile:
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    assert depth == 0
    assert "\x00" not in hostile
    assert "not counted, older run of the same seed" in rendered(tmp_path / "runs")


@pytest.mark.parametrize(
    ("words", "escaped"),
    [
        ("a_b", r"a\_b"),
        ("50%", r"50\%"),
        ("\\", r"\textbackslash{}"),
        ("a -- b-c", r"a -{}- b-c"),
        ("[x]", "{[}x{]}"),
        ("one\n two\u2028three", "one two three"),
        ("null\x00", "null?"),
        ("étude λ", "étude λ"),
    ],
)
def test_escaping(words: str, escaped: str) -> None:
    assert latex.escape(words) == escaped


# ---------------------------------------------------------------- the command


def test_the_command_writes_and_prints(make: Make, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    make("er_ace", 0, 0.5)
    runs, file = str(tmp_path / "runs"), tmp_path / "deep" / "table.tex"
    code, out, _ = cli("compare", runs, "--latex")
    assert code == 0
    assert out == rendered(tmp_path / "runs")
    assert cli("compare", runs, "--latex", str(file)) == (0, f"written to {file}\n", "")
    assert file.read_text(encoding="utf-8") == out
    code, _, error = cli("compare", "--latex", runs)
    assert code == 2
    assert "is a folder; write the file's name" in error
    code, _, error = cli("compare", runs, "--latex", "--metrics", "forgeting")
    assert (code, "did you mean 'forgetting'?" in error) == (2, True)
