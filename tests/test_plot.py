"""`continual compare --plot`: what is drawn, by hand; equal bytes; names that stay text."""

import io
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import style

from continual.errors import UserError
from continual.report import figure, plot, table
from continual.report.compare import compare
from continual.report.sense import colours
from continual.types import Record

Make = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]
SLDA, JOINT = "continual.learners.slda.SLDA", "continual.learners.joint.Joint"


@pytest.fixture
def make(make_run: Make) -> Make:
    return make_run


def final(metric: str, value: float) -> list[Record]:
    return [Record(20, 20, 1, "final", None, metric, value)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Renders the runs of a folder, and gives the figure that was rendered."""

    def show(at: str = "runs", metrics: tuple[str, ...] = ()) -> Any:
        made = []

        def draw(shown: Any) -> Any:
            made.append(figure.draw(shown))
            return made[-1]

        monkeypatch.setattr(plot, "draw", draw)
        plot.render(compare([tmp_path / at]), ".svg", metrics)
        return made[0]

    return show


def dots(axes: Any) -> dict[float, tuple[float, list[float]]]:
    """{position: (mean, ends of its interval)} of a panel."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        ends = [end for bar in bars for segment in bar.get_segments() for end in segment[:, 0].tolist()]
        found[line.get_ydata()[0]] = (line.get_xdata()[0], ends)
    return found


def words(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


# ---------------------------------------------------------------- what is drawn


def test_a_panel_by_hand(make: Make, drawn: Callable[..., Any]) -> None:
    for seed, none, er in ((0, 0.1, 0.6), (1, 0.3, 0.8)):
        make("none", seed, none)
        make("er", seed, er)
    # none: accuracies .55 and .65, so .6 ± 12.706 * .0707 / sqrt(2) = .635; forgetting .9 and .7, .8 ± 1.271
    accuracy, forgetting, curve = drawn().axes
    assert words(accuracy) == ["er", "none"]  # the best on top
    assert accuracy.get_ylim() == (1.5, -0.5)
    assert accuracy.get_title(loc="left") == "split-digits"
    assert [axes.get_xlabel() for axes in (accuracy, forgetting)] == ["average accuracy (%)", "forgetting (%)"]
    for axes, er, none, half in ((accuracy, 85, 60, 63.53), (forgetting, 30, 80, 127.06)):
        shown = dots(axes)
        assert {y: mean for y, (mean, _) in shown.items()} == {0: pytest.approx(er), 1: pytest.approx(none)}
        assert shown[0][1] == pytest.approx([er - half, er + half], abs=0.01)
        assert shown[1][1] == pytest.approx([none - half, none + half], abs=0.01)
    # an interval may reach beyond what a mean can be, the axis does not
    assert [axes.get_xlim() for axes in (accuracy, forgetting)] == [(-3, 103), (-103, 103)]
    # after task 0 the mean is that on task 0 alone
    lines = {line.get_color(): [line.get_xdata(), line.get_ydata()] for line in curve.lines}
    assert [list(map(float, x)) for x, _ in lines.values()] == [[1, 2], [1, 2]]
    assert [pytest.approx(y) for _, y in lines.values()] == [[100, 85], [100, 60]]
    assert [container.lines[0].get_color() for container in accuracy.containers] == list(lines)
    band = curve.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(60 - 63.53, abs=0.01), pytest.approx(60 + 63.53, abs=0.01))
    assert curve.get_xlabel() == "tasks learned"


def test_the_foot_says_what_the_bars_are(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", 0, 0.5)
    make("er", 1, 0.6)
    assert drawn().get_supxlabel() == "Means over n = 2 seeds with 95% Student t intervals."


def test_one_seed_has_no_interval_and_says_so(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", 0, 0.5)
    shown = drawn()
    assert shown.get_supxlabel() == "Means over n = 1 seed; no interval where n = 1."
    assert [ends for axes in shown.axes[:2] for _, ends in dots(axes).values()] == [[], []]
    assert list(shown.axes[2].collections) == []
    make("er", 1, 0.6)
    make("none", 0, 0.1)
    shown = drawn()
    assert words(shown.axes[0]) == ["er (n = 2)", "none (n = 1)"]
    assert " ".join(shown.get_supxlabel().split()) == (
        "Means over n = 1 to 2 seeds with 95% Student t intervals; no interval where n = 1."
    )


def test_floor_and_bound_are_hollow_and_marked_by_a_line(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", kept=0.8)
    make("joint", kept=0.9, learner=JOINT)
    make("slda", kept=0.6, learner=SLDA)
    accuracy = drawn().axes[0]
    assert words(accuracy) == ["joint (bound)", "er", "slda (floor)"]
    faces = [container.lines[0].get_markerfacecolor() for container in accuracy.containers]
    assert [face == "white" for face in faces] == [True, False, True]
    marked = [line.get_xdata()[0] for line in accuracy.lines if list(line.get_ydata()) == [0, 1]]
    assert marked == [pytest.approx(95), pytest.approx(80)]
    assert "closed-form floor, joint training (bound)" in " ".join(drawn().get_supxlabel().split())


def test_streams_are_stacked_and_a_row_looks_the_same_in_each(make: Make, drawn: Callable[..., Any]) -> None:
    for scenario, names in (("one", ("none", "er")), ("two", ("er", "ewc", "none"))):
        for name in names:
            make(name, kept={"er": 0.8, "ewc": 0.5, "none": 0.1}[name], scenario=scenario)
    panels = drawn().axes
    assert [axes.get_title(loc="left") for axes in panels] == ["one", "", "", "two", "", ""]
    looks = [
        {
            label: (c.lines[0].get_color(), c.lines[0].get_marker())
            for label, c in zip(words(a), a.containers, strict=True)
        }
        for a in (panels[0], panels[3])
    ]
    assert looks[0]["er"] == looks[1]["er"] != looks[0]["none"]
    assert looks[0]["none"] == looks[1]["none"]
    shown = [looks[1][name][0] for name in ("none", "er", "ewc")]
    assert shown == list(figure.COLOURS[:3])  # in the order in which they were first run, as in the dashboard
    assert panels[0].get_position().y0 > panels[3].get_position().y1


def test_colours_are_numbered_in_the_order_in_which_labels_were_first_run(make: Make, tmp_path: Path) -> None:
    for name, scenario in (("none", "one"), ("er", "two"), ("ewc", "one"), ("none", "two")):
        make(name, scenario=scenario)
    assert colours(compare([tmp_path])) == {"none": 0, "er": 1, "ewc": 2}


def test_fifty_rows_differ_in_colour_or_marker(make: Make, drawn: Callable[..., Any]) -> None:
    for number in range(50):
        make(f"r{number}", records=[Record(10, 1, 0, "end", 0, "accuracy", number / 100)])
    (axes,) = drawn().axes
    assert len({(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axes.containers}) == 50


@pytest.mark.parametrize("rows", [12, 13])
def test_curves_of_many_rows_have_no_bands_and_the_foot_says_so(
    rows: int, make: Make, drawn: Callable[..., Any]
) -> None:
    for number, seed in ((number, seed) for number in range(rows) for seed in (0, 1)):
        make(f"r{number}", seed, 0.5 + seed / 10)
    shown = drawn()
    assert len(shown.axes[-1].lines) == rows
    assert len(shown.axes[-1].collections) == (rows if rows == 12 else 0)
    told = "; curves of more than 12 rows without intervals." in " ".join(shown.get_supxlabel().split())
    assert told == (rows == 13)


def test_a_prequential_stream_shows_what_labels_alone_would_have_done(make: Make, drawn: Callable[..., Any]) -> None:
    values = {"prequential_rows": 50, "prequential_accuracy": 0.8, "last_label_accuracy": 0.9, "blind_accuracy": 0.7}
    make("er", records=[Record(50, 5, 0, "arrival", None, name, value) for name, value in values.items()])
    (axes,) = drawn().axes
    assert words(axes) == ["last label", "er", "labels only"]
    assert [mean for mean, _ in dots(axes).values()] == [pytest.approx(90), pytest.approx(80), pytest.approx(70)]
    assert axes.get_xlabel() == "prequential accuracy (%)"


def test_chosen_metrics_in_their_own_units(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", extra=final("seconds", 2.5))
    make("none")
    panels = drawn(metrics=("seconds", "forgetting"))
    assert [axes.get_xlabel() for axes in panels.axes] == ["seconds (s)", "forgetting (%)"]
    assert words(panels.axes[0]) == ["er", "none"]
    assert dots(panels.axes[0]) == {0: (2.5, [])}  # none has not measured it


def test_what_forbids_the_comparison_stands_in_the_figure(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", data_digest="a")
    make("none", data_digest="b")
    assert "NOT COMPARABLE on seeds 0: different data" in " ".join(drawn().get_supxlabel().split())


def test_curves_end_where_a_seed_has_no_more(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", 0)
    rows = [(0, None, "start", 0, 0.5), (0, None, "start", 1, 0.5), (10, 0, "end", 0, 0.8), (10, 0, "end", 1, 0.5)]
    make("er", 1, records=[Record(n, n, task, at, probe, "accuracy", v) for n, task, at, probe, v in rows])
    curve = drawn(metrics=()).axes[-1]
    assert curve.get_xlabel() == "forgetting (%)"  # one point is no curve


def test_the_best_is_on_top_also_where_less_is_better_and_what_is_absent_is_last(
    make: Make, drawn: Callable[..., Any]
) -> None:
    for name, kept, seconds, norm in (("a", 0.1, 3.0, 1.0), ("b", 0.9, 2.0, 2.0), ("c", 0.5, 1.0, 3.0)):
        make(name, kept=kept, extra=[*final("seconds", seconds), *final("weight_norm", norm)])
    make("absent", kept=0.7)
    for metrics, order in (
        (("average_accuracy", "seconds"), ["b", "absent", "c", "a"]),
        (("forgetting",), ["b", "absent", "c", "a"]),
        (("seconds", "forgetting"), ["c", "b", "a", "absent"]),
        (("weight_norm", "forgetting"), ["c", "b", "a", "absent"]),  # neither is better: the highest
    ):
        assert words(drawn(metrics=metrics).axes[0]) == order


def test_what_forbids_anytime_metrics_is_told_where_one_is_drawn(make: Make, drawn: Callable[..., Any]) -> None:
    make("er", config={"probe": {"every": 5}})
    make("none", config={"probe": {"every": 50}})
    told = "different probe.every: 5 (er); 50 (none): anytime metrics are not comparable"
    assert told in " ".join(drawn(metrics=("forgetting", "anytime_accuracy")).get_supxlabel().split())
    assert "anytime" not in drawn(metrics=("forgetting",)).get_supxlabel()


def test_an_infinite_mean_stands_at_the_edge(make: Make, drawn: Callable[..., Any], tmp_path: Path) -> None:
    make("never", 0, first=0.7)  # the first task ends below the threshold, 0.8
    make("never", 1)
    with pytest.raises(UserError, match="'samples_to_threshold' is infinite in every row"):
        plot.render(compare([tmp_path]), ".svg", ["samples_to_threshold"])
    make("er")
    make("none", first=0.7, scenario="other")
    shown = drawn(metrics=("samples_to_threshold",))
    panel, other = shown.axes
    assert words(panel) == ["er (n = 1)", "never (n = 2)"]
    assert dots(panel) == {0: (10, [])}
    for axes, y in ((panel, 1), (other, 0)):
        assert [(t.get_text(), t.get_position(), t.get_ha()) for t in axes.texts] == [("∞", (1, y), "right")]
    assert list(other.get_xticks()) == []  # no scale
    assert "∞: infinite for at least one seed" in " ".join(shown.get_supxlabel().split())


def test_labels_of_several_lines_do_not_touch(make: Make, drawn: Callable[..., Any]) -> None:
    make("short", kept=0.65)
    for number in range(6):
        settings = {"memory": {"capacity": 100 * number}} | ({"epochs": number} if number % 2 else {})
        make("er", kept=number / 10, config={"strategy": settings, "probe": {"every": 10 * number}})
    with style.context(["default", dict(figure.STYLE)]):
        shown = drawn()
        shown.draw_without_rendering()
        boxes = [label.get_window_extent() for label in shown.axes[0].get_yticklabels()]
        title = shown.axes[0].title.get_window_extent()
        frame = shown.axes[0].get_window_extent().height / shown.dpi
    assert {word.count("\n") for word in words(shown.axes[0])} >= {0, 2}
    for upper, lower in pairwise(boxes):
        assert upper.y0 > lower.y1
    places = list(shown.axes[0].get_yticks())
    assert places == [container.lines[0].get_ydata()[0] for container in shown.axes[0].containers]
    assert shown.axes[0].get_ylim()[0] > places[-1] > places[0] > shown.axes[0].get_ylim()[1]
    assert title.y0 > boxes[0].y1
    rows = sum(1 + figure.FURTHER * word.count("\n") for word in words(shown.axes[0]))
    assert frame == pytest.approx(rows * figure.ROW, rel=0.03)  # what is around it took none of its height


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_equal_runs_give_equal_bytes_whatever_the_user_s_style(
    make: Make, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("er", 0, 0.5)
    make("er", 1, 0.6)
    first = plot.render(compare([tmp_path]), suffix)
    before = dict(matplotlib.rcParams)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # another day
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "xtick.major.size", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert plot.render(compare([tmp_path]), suffix) == first
    assert {**matplotlib.rcParams, "font.size": 0, "xtick.major.size": 0, "svg.fonttype": 0} == {
        **before, "font.size": 0, "xtick.major.size": 0, "svg.fonttype": 0,
    }  # fmt: skip


def test_the_figure_is_a_column_wide(make: Make, tmp_path: Path) -> None:
    make("a-rather-long-name-of-a-method-that-nobody-would-print" * 2)
    png = plot.render(compare([tmp_path]), ".png")
    assert struct.unpack(">I", png[16:20])[0] == 3.3 * 400
    svg = ElementTree.parse(io.BytesIO(plot.render(compare([tmp_path]), ".svg"))).getroot()
    assert svg.get("width") == f"{3.3 * 72}pt"
    sizes = {text.get("style", "").split("px")[0].split()[-1] for text in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert sizes == {"6", "7"}  # points: an svg of matplotlib has 72 px to the inch


def test_hostile_names_stay_text(make: Make, tmp_path: Path) -> None:
    name, scenario = r"a_{b}$ \frac{1}{2} $ <b>&amp;</b> ]]>", 'x"/><script>$\\alpha$\n\x00\ud800 日本'
    make(name, scenario=scenario)
    svg = plot.render(compare([tmp_path]), ".svg")
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name in " ".join(texts)
    assert 'x"/><script>$\\alpha$ \ufffd\ufffd 日本' in texts
    assert b"<script" not in svg
    for suffix in (".png", ".pdf"):
        assert plot.render(compare([tmp_path]), suffix)


# ---------------------------------------------------------------- the command


def test_the_command_writes_a_figure_and_says_what_was_left_out(make: Make, tmp_path: Path, cli: Cli) -> None:
    make("er")
    failed = make("er", 1, end="failed")
    file = tmp_path / "new" / "figure.SVG"
    code, out, error = cli("compare", str(tmp_path / "runs"), "--plot", str(file))
    assert (code, error) == (0, "")
    assert out == f"written to {file}\n! not counted, failed: {failed}\n"
    assert file.read_bytes() == plot.render(compare([tmp_path / "runs"]), ".svg")
    assert [path.name for path in file.parent.iterdir()] == ["figure.SVG"]


@pytest.mark.parametrize("way", [["--json"], ["--csv"], ["--latex"], ["--plot", "x.svg"]])
def test_only_what_is_asked_for_is_rendered(
    make: Make, tmp_path: Path, cli: Cli, way: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("er")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "render", None)
    assert cli("compare", *way)[0] == 0
    (tmp_path / "x.svg").unlink(missing_ok=True)
    code, out, error = cli("compare", "--metrics", "forgeting", *way)
    assert (code, out, "did you mean 'forgetting'?" in error) == (2, "", True)
    assert not (tmp_path / "x.svg").exists()


@pytest.mark.parametrize(("name", "told"), [("x.gif", "ends in '.gif'"), ("x", "has no ending"), (".png", "no ending")])
def test_an_unknown_ending_is_told_before_anything_is_read(name: str, told: str, tmp_path: Path, cli: Cli) -> None:
    code, out, error = cli("compare", str(tmp_path / "nowhere"), "--plot", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert told in error
    assert error.endswith("choose from .png, .svg, .pdf\n")


def test_a_baseline_is_not_ignored(make: Make, tmp_path: Path, cli: Cli) -> None:
    make("er")
    code, _, error = cli("compare", str(tmp_path / "runs"), "--plot", str(tmp_path / "x.svg"), "--baseline", "er")
    assert (code, "--baseline er is not drawn by --plot" in error) == (2, True)
    assert not (tmp_path / "x.svg").exists()


def test_nothing_is_written_if_there_is_nothing_to_draw(make: Make, tmp_path: Path, cli: Cli) -> None:
    make("er", end="failed")
    file = tmp_path / "x.svg"
    code, _, error = cli("compare", str(tmp_path / "runs"), "--plot", str(file))
    assert (code, "no finished run has measured an accuracy" in error) == (2, True)
    assert not file.exists()


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (("forgetting",) * 4, "at most 3 metrics side by side, and --metrics names 4"),
        (("forgeting",), "no finished run has measured 'forgeting'; did you mean 'forgetting'?"),
    ],
)
def test_metrics_that_cannot_be_drawn(make: Make, tmp_path: Path, metrics: tuple[str, ...], told: str) -> None:
    make("er")
    with pytest.raises(UserError) as error:
        plot.render(compare([tmp_path]), ".svg", metrics)
    assert told in str(error.value)
