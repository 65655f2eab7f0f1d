"""The page by itself: what its text admits, and, where a browser can be had, what it draws from hand-made data."""

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from continual.dashboard.page import SCRIPTS, render
from continual.report import text
from continual.statistics import Estimate

HOSTILE = (
    "</script><script>document.documentElement.dataset.broken=1</script>",
    '<img src=x onerror="document.documentElement.dataset.broken=1">',
    "\"'><svg onload=alert(1)>&lt;/script&gt;<!--<script>",
    "a\u2028b\u2029c\x00d\ud800",
    "\u202eevil\u202c \u200f\u05d0\u05d1",
    "${1}$title$$`+{{x}}",
    "x" * 10_000,
)
ASSETS = files("continual.dashboard") / "assets"
SCRIPTS_FOLDER = Path(__file__).parents[1] / "scripts" / "vendor_plot"


def curve(xs: list[int], mean: list[float | None], n: int = 2) -> dict[str, Any]:
    def moved(by: float) -> list[float | None]:
        return [None if value is None or n == 1 else round(value + by, 4) for value in mean]

    return {"x": xs, "mean": mean, "low": moved(-0.02), "high": moved(0.02), "n": [n] * len(xs)}


def estimate(mean: float | None, half: float | None, n: int) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "low": None, "high": None, "n": n, "method": "no interval: a value is infinite"}
    if half is None:
        return {"mean": mean, "low": None, "high": None, "n": n, "method": "no interval: n = 1"}
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "method": "95% Student t"}


def row(label: str, colour: int, accuracy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    n = accuracy["n"]
    rows_seen = [10, 20, 30, 40]
    return {
        "label": label,
        "colour": colour,
        "role": None,
        "n": n,
        "provisional": False,
        "schedule": 0,
        "metrics": {
            "average_accuracy": accuracy,
            "forgetting": estimate(0.3, None if n == 1 else 0.011, n),
            "backward_transfer": estimate(-0.3, None if n == 1 else 0.01, n),
            "forward_transfer": estimate(0.05, None if n == 1 else 0.01, n),
            "peak_bytes": estimate(1_234_567, None if n == 1 else 1000, n),
            "forward_equivalents_per_row": estimate(3.0 * (colour + 1), None if n == 1 else 0.1, n),
            "seconds": estimate(2.5, None if n == 1 else 0.25, n),
        },
        "seeds": [0, 1][:n],
        "trained": [0, 1],
        "matrices": [[[0.1, 0.2], [0.9, 0.15], [0.6, 0.8]], [[0.1, 0.2], [0.8, 0.25], [0.4, 0.9]]][:n],
        "forgetting": curve([0], [0.3], n),
        "damage": curve([2], [-0.35], n),
        "anytime": curve(rows_seen, [0.5, 0.9, 0.6, 0.7], n),
        "switches": [20, 40],
        "gap": curve([0, 10, 20], [0.0, -0.3, -0.2], n),
        "newest": curve(rows_seen, [0.5, 0.9, 0.4, 0.8], n),
        "prequential": curve(rows_seen, [0.2, 0.5, 0.3, 0.6], n),
        "last_label": curve(rows_seen, [0.4, 0.4, 0.4, 0.4], n),
        "blind": curve(rows_seen, [0.45, 0.5, 0.5, 0.5], n),
        "classes": curve([0, 1, 2], [0.5, None, 0.75], n),
        "class_matrix": [[0.9, 0.8, 0.0], [0.5, None, 0.75]],
    } | changes


def run(label: str, seed: int, state: str = "finished", **changes: Any) -> dict[str, Any]:
    return {
        "row": label,
        "seed": seed,
        "state": state,
        "reason": None,
        "path": f"runs/{label}/seed{seed}",
        "created": "2025-01-02T03:04:05+00:00",
        "seconds": 2.5,
        "counted": state == "finished",
        "difference": ["strategy=er", "train.epochs=2"],
        "wandb": None,
        "ended": 2,
        "tasks": 2,
        "rows_seen": 40,
    } | changes


DESCRIBED = ("name", "title", "unit", "better", "standard", "over_time", "cost")
METRICS = [
    ("average_accuracy", "average accuracy", "%", 1, True, False, False),
    ("forgetting", "forgetting", "%", -1, True, False, False),
    ("backward_transfer", "backward transfer", "%", 1, True, False, False),
    ("forward_transfer", "forward transfer", "%", 1, True, False, False),
    ("peak_bytes", "memory", "B", -1, True, False, True),
    ("forward_equivalents_per_row", "forwards per row", "", -1, True, False, True),
    ("seconds", "seconds", "s", -1, False, False, True),
]
TIMED = ("anytime_accuracy", "anytime accuracy", "%", 1, True, True, False)


def described(metric: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(DESCRIBED, metric, strict=True))


def scenario(label: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    return {
        "label": label,
        "n_tasks": 2,
        "notes": notes,
        "metrics": [described(own) for own in METRICS],
        "schedules": ["every 10 rows, all probe rows", "every 5 rows, 20 probe rows"],
        "rows": rows,
        "runs": runs,
    }


@pytest.fixture
def data() -> dict[str, Any]:
    """Two scenarios; in the first four rows: two seeds, other seeds, one seed as the floor, and an unfinished one."""
    naive = row("naive", 1, estimate(0.254, 0.02, 2), seeds=[0, 7])
    naive["matrices"] = [[[0.1, 0.1], [0.9, 0.1], [0.2, 0.9]], [[0.1, 0.1], [0.9, 0.1], [0.3, 0.9]]]
    rows = [
        row("er", 0, estimate(0.7512, 0.0124, 2)),
        naive,
        row("slda", 2, estimate(0.6, None, 1), role="floor", schedule=1),
        row("lwf", 3, estimate(0.9, None, 1), provisional=True, n=0),
    ]
    del rows[2]["metrics"]["forward_transfer"]
    runs = [
        *(run(label, seed) for label in ("er", "naive") for seed in (0, 1)),
        run("lwf", 0, "failed", reason="out of memory", ended=1, wandb="https://wandb.example/lwf"),
        run("lwf", 2, "killed", ended=1, wandb="http://wandb.local:8080/lwf"),
        run("lwf", 1, "running", ended=1, wandb="javascript:alert(1)"),
    ]
    first = scenario("digits", rows, runs, ["different devices: cpu (er); cuda (naive)"])
    second = scenario(
        "drift",
        [
            row("joint", 4, estimate(0.8, 0.01, 2), role="bound"),
            row("er", 0, estimate(0.5, 0.01, 2)),
            row("naive", 1, estimate(0.4, 0.01, 2)),
        ],
        [run("er", 0)],
        ["NOT COMPARABLE on seeds 1: different data: a (er); b (joint)"],
    )
    about = {"format": 1, "title": "runs/main", "made": "2025-01-02T03:04:05+00:00", "version": "v1"}
    return about | {"scenarios": [first, second]}


@pytest.fixture
def hostile() -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Puts a text wherever a user's text can be."""

    def put(data: dict[str, Any], text: str) -> dict[str, Any]:
        data = deepcopy(data)
        data["title"] = text
        for own in data["scenarios"]:
            own["label"] += text
            own["notes"] += [text, f"NOT COMPARABLE {text}"]
            own["schedules"][0] += text
            for item in own["rows"]:
                item["label"] += text
            for item in own["runs"]:
                item |= {"row": item["row"] + text, "reason": text, "path": text, "difference": [text], "wandb": text}
        return data

    return put


class Document(HTMLParser):
    """Every element with its attributes, and the text inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.texts:
            self._inside = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside][-1] += data

    @property
    def policy(self) -> dict[str, str]:
        """Directive -> its sources."""
        found = [a["content"] or "" for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert len(found) == 1
        return dict(part.strip().split(" ", 1) for part in found[0].split(";"))

    @property
    def data(self) -> Any:
        """What the page will draw, its shared lists put back."""
        packed = json.loads(self.texts["script"][0])

        def walk(node: Any) -> Any:
            if isinstance(node, list):
                return [walk(value) for value in node]
            if not isinstance(node, dict):
                return node
            if isinstance(node.get("list"), int):
                return packed["lists"][node["list"]]
            return {key: walk(value) for key, value in node.items()}

        return walk(packed["page"])


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_policy_admits_exactly_the_scripts_and_the_style_of_the_page(data: dict[str, Any]) -> None:
    document = Document(render(data))
    policy = document.policy
    scripts = [a for tag, a in document.elements if tag == "script"]
    assert [a.get("type") for a in scripts] == ["application/json", None, None]
    assert policy["script-src"].split() == [digest(text) for text in document.texts["script"][1:]]
    assert policy["style-src"].split() == [digest(text) for text in document.texts["style"]]
    assert len(document.texts["style"]) == 1
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in str(policy)
    for tag, attributes in document.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")], tag
        assert attributes.get("href", "data:,") == "data:,"


def test_only_a_live_page_may_connect_and_only_to_its_own_origin(data: dict[str, Any]) -> None:
    still, live = Document(render(data)), Document(render(data, live=True))
    assert still.policy["connect-src"] == "'none'"
    assert live.policy["connect-src"] == "'self'"
    told = [a["data-live"] for page in (still, live) for _, a in page.elements if a.get("id") == "data"]
    assert told == ["false", "true"]
    assert {**still.policy, "connect-src": ""} == {**live.policy, "connect-src": ""}


def test_equal_data_give_equal_text_and_order_of_data_is_kept(data: dict[str, Any]) -> None:
    assert render(data) == render(deepcopy(data))
    assert Document(render(data)).data == data


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_user_text_stays_text(
    data: dict[str, Any], hostile: Callable[[dict[str, Any], str], dict[str, Any]], text: str
) -> None:
    calm, wild = Document(render(data)), Document(render(hostile(data, text)))
    assert [tag for tag, _ in wild.elements] == [tag for tag, _ in calm.elements]
    assert wild.policy == calm.policy
    assert wild.data == hostile(data, text)
    assert wild.texts["title"] == [text.replace("\ud800", "\ufffd").replace("\x00", "\ufffd")]
    render(hostile(data, text)).encode()


def test_lists_that_recur_are_written_once() -> None:
    own = [round(k / 7, 4) for k in range(500)]
    many = {"title": "t", "version": "v", "rows": [{"x": list(own), "n": [3] * 500} for _ in range(24)]}
    document = Document(render(many))
    assert document.data == many
    assert len(document.texts["script"][0]) < 2 * len(json.dumps(own))


def test_page_without_data_leaves_a_megabyte_for_it(data: dict[str, Any]) -> None:
    assert len(render(data | {"scenarios": []}).encode()) < 500_000


def test_not_a_number_is_an_error_and_not_a_broken_page(data: dict[str, Any]) -> None:
    data["scenarios"][0]["rows"][0]["metrics"]["forgetting"]["mean"] = math.nan
    with pytest.raises(ValueError, match="Out of range float"):
        render(data)


def test_every_script_file_is_in_the_page_once() -> None:
    folder = Path(str(ASSETS / "js"))
    lying = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.js")}
    assert sorted(SCRIPTS) == sorted(lying)


def test_vendored_library_is_what_the_lock_file_says_with_its_licences() -> None:
    lock = json.loads((SCRIPTS_FOLDER / "package-lock.json").read_text())["packages"]
    head = (ASSETS / "vendor" / "plot.min.js").read_text().splitlines()[0]
    licence = (ASSETS / "vendor" / "LICENSE").read_text()
    version = lock["node_modules/@observablehq/plot"]["version"]
    assert f"Observable Plot {version} " in head
    assert f"@observablehq/plot {version} (ISC)" in licence
    assert f"d3-shape {lock['node_modules/d3-shape']['version']} (ISC)" in licence
    assert not [name for name, package in lock.items() if "resolved" in package]


OKLAB_IN = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
OKLAB_OUT = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
SEEN = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def times(matrix: tuple[tuple[float, ...], ...], vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(line, vector, strict=True)) for line in matrix]


def oklab(colour: list[float]) -> list[float]:
    return times(OKLAB_OUT, [max(0.0, value) ** (1 / 3) for value in times(OKLAB_IN, colour)])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_of_rows_differ_for_every_eye_and_from_the_card(theme: int) -> None:
    css = (ASSETS / "page.css").read_text()
    colours = [re.findall(rf"--row-{k}: (#\w{{6}})", css)[theme] for k in range(8)]
    card = re.findall(r"--card: (#\w{6})", css)[theme]

    def luminance(colour: str) -> float:
        return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True)) + 0.05

    for colour in colours:
        dark, bright = sorted((luminance(colour), luminance(card)))
        assert bright / dark >= 3, colour  # WCAG 2.2, 1.4.11
    for eye in SEEN.values():
        seen = [oklab(times(eye, linear(colour))) for colour in colours]
        assert min(math.dist(a, b) for at, a in enumerate(seen) for b in seen[:at]) > 0.12


class Tab:
    """A page in the browser that remembers what went wrong in it and what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.wrong.append(message.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def ready(self) -> None:
        # not wait_for_function: the page's policy forbids the eval that it needs
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=10_000)

    def panel(self, name: str) -> Any:
        return self.page.locator(f'[data-panel="{name}"]')

    def choose(self, panel: str, control: str, value: str) -> None:
        self.panel(panel).locator(f'select[data-control="{control}"]').select_option(value)
        self.ready()

    def cell(self, name: str, metric: str) -> str:
        return plain(self.panel("strategies").locator(f'tr[data-row="{name}"] [data-metric="{metric}"]').inner_text())

    def order(self) -> list[str]:
        return [line.get_attribute("data-row") for line in self.panel("strategies").locator("tbody tr").all()]

    def tip(self, panel: str, place: str) -> str:
        """What hovering over the first element at ``place`` shows."""
        self.panel(panel).locator(place).first.hover(force=True)
        tip = self.panel(panel).locator("g[aria-label=tip] text")
        tip.first.wait_for(state="attached")
        return "\n".join(plain(text) for text in tip.first.locator("tspan").all_text_contents())

    def matrix(self, cell: str) -> list[str]:
        return self.tip("matrix", f'[data-cell="{cell}"]').split("\n")[2:]


def plain(text: str) -> str:
    """Without the invisible marks that keep writing directions apart."""
    return re.sub("[\u2068\u2069\u200b]", "", text).strip()


def copied(tab: Tab, panel: str) -> list[list[str]]:
    """What its data look like where there is no clipboard."""
    tab.page.evaluate(
        "() => { Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true }); }"
    )
    tab.panel(panel).locator("[data-copy]").click()
    tab.panel(panel).locator("textarea").wait_for()
    return list(csv.reader(io.StringIO(tab.panel(panel).locator("textarea").input_value())))


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Opens data as a file; at the end nothing may have gone wrong, and only the file may have been asked for."""
    tabs: list[Tab] = []

    def open_(data: dict[str, Any], **options: Any) -> Tab:
        path = tmp_path / f"page{len(tabs)}.html"
        path.write_text(render(data), encoding="utf-8")
        tabs.append(Tab(browser.new_context(viewport={"width": 1300, "height": 900}, **options).new_page()))
        tabs[-1].page.goto(path.as_uri())
        tabs[-1].ready()
        return tabs[-1]

    yield open_
    for at, tab in enumerate(tabs):
        tab.page.context.close()
        assert tab.wrong == []
        assert tab.asked == [(tmp_path / f"page{at}.html").as_uri()]


def test_table_shows_the_numbers_marks_and_missing_intervals(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    tab = show(data)
    assert tab.cell("er", "average_accuracy") == "75.1±1.2"
    assert tab.cell("er", "forgetting") == "30.0±1.1"
    assert tab.cell("er", "backward_transfer") == "-30.0±1.0"
    assert tab.cell("er", "peak_bytes") == "1.23 MB"  # half an interval of 1 kB is 0.00 MB
    assert tab.cell("naive", "forward_equivalents_per_row") == "6±0.10"
    assert tab.cell("slda", "average_accuracy") == "60.0"
    assert tab.cell("slda", "forward_transfer") == "–"
    assert tab.cell("lwf", "average_accuracy") == "90.0 [1]"
    assert [tab.cell(name, "row").split("\n")[1:] for name in ("er", "slda", "lwf")] == [[], ["floor"], ["unfinished"]]
    assert "One seed, so no interval: slda, lwf." in plain(tab.panel("strategies").inner_text())
    best = tab.panel("strategies").locator('[data-metric="average_accuracy"] b')
    assert best.count() == 0  # where slda lies, one seed does not tell
    assert tab.panel("strategies").locator('[data-metric="seconds"]').count() == 0
    tab.panel("strategies").locator('[data-control="all"]').check()
    tab.ready()
    assert tab.cell("er", "seconds") == "2.50±0.25"


def test_numbers_are_written_as_the_terminal_writes_them(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    rows = data["scenarios"][0]["rows"]
    for own, scale in zip(rows[:2], (1.0, 1234.56), strict=True):
        own["metrics"] |= {
            "average_accuracy": estimate(0.0449, 0.00049, 2),
            "forward_transfer": estimate(-0.0004, 0.1, 2),
            "peak_bytes": estimate(999.0 * scale, 10.0 * scale, 2),
            "forward_equivalents_per_row": estimate(0.012345 * scale, 0.00067 * scale, 2),
            "seconds": estimate(100 * scale, 7.77, 2) | {"method": "95% BCa bootstrap"},
        }
    tab = show(data)
    tab.panel("strategies").locator('[data-control="all"]').check()
    tab.ready()
    for own in rows[:2]:
        for name, value in own["metrics"].items():
            told = text.estimate(name, Estimate(deviation=None, **value))
            assert re.sub(r"\s", "", tab.cell(own["label"], name)) == re.sub(r"\s", "", reordered(told))


def reordered(told: str) -> str:
    """The terminal puts a unit behind the interval, the page behind the mean."""
    return re.sub(r"(±\S+) (\w+)$", r" \2\1", told)


def test_only_a_mean_beyond_all_other_intervals_is_bold(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    rows = data["scenarios"][0]["rows"]
    rows[2] |= row("slda", 2, estimate(0.6, 0.1, 2), role="floor")
    rows[1]["metrics"]["forgetting"] = estimate(0.321, 0.0101, 2)  # from 31.09: er's 28.9 to 31.1 reaches it
    rows[2]["metrics"]["forgetting"] = estimate(0.4, 0.011, 2)
    rows.append(row("joint", 4, estimate(0.95, 0.01, 2), role="bound"))
    bold = show(data).panel("strategies").locator("tbody b")
    assert bold.all_inner_texts() == ["75.1"]  # 73.88 > 70; neither joint nor lwf; no cost, though er's is least
    rows[1]["metrics"]["forgetting"] = estimate(0.321, 0.0099, 2)
    rows[4]["metrics"]["forgetting"] = estimate(0.1, 0.011, 2)
    rows[2]["metrics"]["average_accuracy"] = estimate(0.6, 0.15, 2)  # to 75.0
    assert show(data).panel("strategies").locator("tbody b").all_inner_texts() == ["30.0"]


def test_what_was_never_reached_is_infinite_and_sorts_last(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    rows = data["scenarios"][0]["rows"]
    rows[0]["metrics"]["forward_transfer"] = estimate(None, None, 2)
    rows[1]["metrics"]["forward_transfer"] = estimate(0.4, 0.01, 2)
    rows.insert(0, rows.pop(2))  # the order of the data would put slda first
    tab = show(data)
    assert tab.panel("strategies").locator("tbody b").count() == 0
    assert [tab.cell(name, "forward_transfer") for name in ("er", "slda")] == ["∞", "–"]
    for name, why in (("er", "no interval: a value is infinite"), ("slda", "not measured")):
        place = f'tr[data-row="{name}"] [data-metric="forward_transfer"] > span'
        assert tab.panel("strategies").locator(place).get_attribute("title") == why
    for _ in range(2):
        tab.panel("strategies").locator('th[data-metric="forward_transfer"][scope=col] button').click()
        tab.ready()
        assert tab.order()[2:] == ["er", "slda"]


def test_metrics_over_time_are_told_of_one_schedule_only(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    first = data["scenarios"][0]
    first["metrics"].insert(1, described(TIMED))
    for own, value in zip(first["rows"], (0.5, 0.3, 0.9, 0.6), strict=True):
        own["metrics"]["anytime_accuracy"] = estimate(value, 0.01, 2)
    first["metrics"][3]["over_time"] = first["metrics"][0]["over_time"] = True
    tab = show(data)
    timed = tab.panel("strategies").locator('td[data-metric="anytime_accuracy"]')
    off = tab.panel("strategies").locator('tr[data-row="slda"] td[data-metric="anytime_accuracy"]')
    assert plain(off.inner_text()) == "–"
    assert off.locator("span").get_attribute("title") == "evaluated on another schedule"
    assert [timed.locator(what).count() for what in ("b", ".bar")] == [1, 3]
    assert timed.locator("b").inner_text() == "50.0"  # not slda's 90.0
    here = "as evaluated otherwise (here: every 10 rows, all probe rows): slda (every 5 rows, 20 probe rows)."
    remark = f"“–” under average accuracy, anytime accuracy, backward transfer, {here}"
    assert remark in plain(tab.panel("strategies").locator(".remarks").inner_text())
    for panel in ("compute", "transfer"):
        assert plain(tab.panel(panel).locator(".remarks").inner_text()) == f"Not drawn, {here}"
        assert "slda" not in tab.panel(panel).locator("svg.plot").first.get_attribute("aria-label")
    tab.page.locator('[data-control="schedule"]').select_option("1")
    tab.ready()
    assert plain(off.inner_text()).startswith("90.0")
    assert timed.locator("b, .bar").count() == 1
    assert tab.cell("er", "anytime_accuracy") == "–"


def test_table_sorts_by_mouse_and_keyboard_with_absent_values_last(
    data: dict[str, Any], show: Callable[..., Tab]
) -> None:
    tab = show(data)
    panel = tab.panel("strategies")

    def heading(metric: str) -> Any:
        return panel.locator(f'th[data-metric="{metric}"][scope=col]')

    assert tab.order() == ["lwf", "er", "slda", "naive"]
    assert heading("average_accuracy").get_attribute("aria-sort") == "descending"
    heading("average_accuracy").locator("button").click()
    tab.ready()
    assert tab.order() == ["naive", "slda", "er", "lwf"]
    assert heading("average_accuracy").get_attribute("aria-sort") == "ascending"
    heading("forward_equivalents_per_row").locator("button").focus()
    tab.page.keyboard.press("Enter")
    tab.ready()
    assert tab.order() == ["er", "naive", "slda", "lwf"]  # less is better: it comes first
    tab.page.keyboard.press("Enter")  # the focus stayed on the heading
    tab.ready()
    assert tab.order() == ["lwf", "slda", "naive", "er"]
    for _ in range(2):
        heading("forward_transfer").locator("button").click()
        tab.ready()
        assert tab.order()[-1] == "slda"


def test_matrix_in_every_mode(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    tab = show(data)
    panel = tab.panel("matrix")
    assert tab.matrix("2,0") == ["accuracy: 50.0%", "seeds from 40.0% to 60.0%, n = 2"]
    assert tab.matrix("0,1") == ["accuracy: 20.0%", "seeds from 20.0% to 20.0%, n = 2"]
    assert panel.locator("[data-cell]").count() == 6
    tab.choose("matrix", "seed", "1")
    assert tab.matrix("2,0") == ["accuracy: 40.0%", "1 seed"]
    tab.choose("matrix", "seed", "mean")
    tab.choose("matrix", "show", "change")
    assert tab.matrix("2,0") == [
        "change while the line's task was trained: -35.0 points",
        "seeds from -40.0 points to -30.0 points, n = 2",
    ]
    assert panel.locator("[data-cell]").count() == 4  # nothing changed before training
    tab.choose("matrix", "show", "minus")
    tab.choose("matrix", "base", "naive")
    assert tab.matrix("2,0") == ["accuracy minus that of naive: +40.0 points", "1 seed"]  # seed 0 is all they share
    assert "Paired over seed 0." in panel.inner_text()
    tab.choose("matrix", "seed", "1")
    assert "have no seed in common" in panel.inner_text()
    tab.choose("matrix", "seed", "mean")
    tab.choose("matrix", "row", "naive")
    tab.choose("matrix", "base", "er")
    assert tab.matrix("2,0") == ["accuracy minus that of er: -40.0 points", "1 seed"]
    red, green, blue = map(int, re.findall(r"\d+", panel.locator("[data-cell]").first.get_attribute("fill")))
    assert 235 < min(red, green, blue) <= max(red, green, blue) < min(red, green, blue) + 5  # no difference: white


def test_matrix_begins_with_a_finished_row_and_tells_of_seeds_left_out(
    data: dict[str, Any], show: Callable[..., Tab]
) -> None:
    rows = data["scenarios"][0]["rows"]
    rows[0], rows[3] = rows[3], rows[0] | {"n": 3}
    rows[1]["matrices"][0][2][0] = 0.897  # 0.3 points less
    tab = show(data)
    panel = tab.panel("matrix")
    assert panel.locator('[data-control="row"]').input_value() == "naive"
    assert tab.panel("class-time").locator('[data-control="row"]').input_value() == "naive"
    assert "seeds" not in panel.locator(".remarks").inner_text()
    tab.choose("matrix", "seed", "0")
    tab.choose("matrix", "show", "change")
    shown = panel.locator("svg.plot g[aria-label=text] text").all_text_contents()
    assert sorted(shown) == ["+80", "+80", "0", "0"]
    assert tab.matrix("1,1")[0].endswith(": 0.0 points")
    tab.choose("matrix", "row", "er")
    assert panel.locator(".remarks p").first.inner_text() == "2 of 3 seeds: the others trained in another order."
    tab.choose("matrix", "row", "slda")
    assert panel.locator(".remarks p").first.inner_text() == "One seed."


def test_staircase_follows_the_order_of_training(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    data["scenarios"][0]["rows"][0]["trained"] = [1, 0]
    tab = show(data)
    assert "not trained yet" in tab.tip("matrix", '[data-cell="1,0"]')
    assert "not trained yet" not in tab.tip("matrix", '[data-cell="1,1"]')
    left, right = (tab.panel("matrix").locator(f'[data-cell="1,{task}"]').bounding_box() for task in (1, 0))
    assert left["x"] < right["x"]


def test_hovering_shows_values(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    data["scenarios"][0]["rows"] = data["scenarios"][0]["rows"][:1]
    tab = show(data)

    def told(panel: str, place: str) -> list[str]:
        label, *lines = tab.tip(panel, f"g[aria-label={place}] > *").split("\n")
        assert label == "er"
        return [line for line in lines if line != "2 seeds"]

    assert told("forgetting", "dot") == ["task 0", "+30.0 points, 95% interval +28.0 points to +32.0 points"]
    assert told("damage", "dot") == ["task number 2", "-35.0 points, 95% interval -37.0 points to -33.0 points"]
    assert told("anytime", "dot") == ["rows seen 10", "50.0%, 95% interval 48.0% to 52.0%"]
    assert told("transfer", "dot") == ["backward transfer -30.0 points, 95% interval -31.0 points to -29.0 points"]
    assert told("compute", "dot") == [
        "accuracy 75.1%, 95% interval 73.9% to 76.4%",
        "3 forwards per row",
        "memory 1.23 MB",
    ]
    assert told("class-time", "rect") == ["class 0, after task 0", "accuracy: 90.0%"]


def test_only_rows_of_one_schedule_are_drawn_together(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    tab = show(data)
    for panel in ("anytime", "gap", "newest", "prequential"):
        drawn = tab.panel(panel).locator("svg.plot").get_attribute("aria-label")
        assert "3 rows" in drawn, panel
        assert "slda" not in drawn, panel
        told = plain(tab.panel(panel).locator(".remarks").inner_text())
        assert "(here: every 10 rows, all probe rows): slda (every 5 rows, 20 probe rows)." in told
    assert "slda" in tab.panel("damage").locator("svg.plot").get_attribute("aria-label")
    tab.page.locator('[data-control="schedule"]').select_option("1")
    tab.ready()
    drawn = plain(tab.panel("anytime").locator("svg.plot").get_attribute("aria-label"))
    assert drawn == "Anytime accuracy: 1 row. slda 70.0% at the end."


def test_tasks_are_named_from_the_row_that_got_furthest(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    first = data["scenarios"][0]["rows"][0]
    first |= {"trained": [0], "switches": [20], "anytime": curve([20], [0.9])}
    tab = show(data)
    for panel in ("anytime", "newest", "prequential"):
        words = tab.panel(panel).locator("g[aria-label=text] text").all_text_contents()
        assert [text for text in words if text.startswith("task")] == ["task 0", "task 1"], panel
    data["scenarios"][0]["rows"] = [first]
    chart = show(data).panel("anytime").locator("svg.plot")
    axis = chart.locator('g[aria-label="y-axis tick label"]').bounding_box()
    name = chart.get_by_text("task 0", exact=True).bounding_box()
    assert name["x"] > axis["x"] + axis["width"]  # though the first moment is the end of the task


def test_references_of_one_window_are_dots_with_names_apart(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    one = {"prequential": curve([40], [0.9]), "last_label": curve([40], [0.4]), "blind": curve([40], [0.401])}
    data["scenarios"][0]["rows"] = [row("er", 0, estimate(0.5, 0.01, 2)) | one]
    panel = show(data).panel("prequential")
    assert panel.locator('g[aria-label=dot][fill="var(--soft)"] > *').count() == 2
    names = [panel.locator("svg.plot").get_by_text(text).bounding_box() for text in ("last label", "labels only")]
    assert abs(names[0]["y"] - names[1]["y"]) >= 12


def test_front_of_compute_is_of_rows_that_compete(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    first = data["scenarios"][0]
    first["rows"].append(row("joint", 4, estimate(0.95, 0.01, 2), role="bound"))
    tab = show(data)
    panel = tab.panel("compute")

    def front() -> list[str]:
        header, *lines = copied(tab, "compute")
        return [line[0] for line in lines if line[header.index("on the front")] == "true"]

    assert front() == ["er"]  # joint and lwf are better and dearer
    ruled = panel.locator("g[aria-label=rule] line").all()
    across = [line for line in ruled if line.get_attribute("x1") != line.get_attribute("x2")]
    assert len(across) == 3  # er, naive, joint: the interval of the cost
    tab.page.locator('[data-control="scenario"]').select_option("1")
    tab.ready()
    assert front() == []
    assert panel.locator(".remarks").inner_text() == "No dashed line: these rows are not comparable."
    modes = tab.panel("matrix").locator('[data-control="show"] option')
    assert [mode.get_attribute("value") for mode in modes.all()] == ["accuracy", "change"]


def test_no_baseline_stays_chosen_where_rows_must_not_be_compared(
    data: dict[str, Any], show: Callable[..., Tab]
) -> None:
    tab = show(data)
    tab.choose("matrix", "show", "minus")
    assert "Paired over" in tab.panel("matrix").inner_text()
    tab.page.locator('[data-control="scenario"]').select_option("1")
    tab.ready()
    assert "Paired over" not in tab.panel("matrix").inner_text()
    assert tab.panel("matrix").locator('[data-control="base"]').count() == 0
    assert tab.matrix("2,0")[0] == "accuracy: 50.0%"


def test_classes_are_dots_beside_each_other_until_there_is_no_room(
    data: dict[str, Any], show: Callable[..., Tab]
) -> None:
    first = data["scenarios"][0]
    for classes, drawn in ((12, "dots"), (40, "lines")):
        own = curve(list(range(classes)), [0.5] * classes)
        first["rows"] = [row(f"row {k}", k, estimate(0.5, 0.01, 2)) | {"classes": own} for k in range(10)]
        chart = show(data).panel("classes").locator("svg.plot")
        lines = chart.locator("g[aria-label=line] path").count()
        assert lines == (0 if drawn == "dots" else 10)
        if drawn == "dots":
            assert chart.locator("g[aria-label=dot] > *").count() == 120
            across = "dots => dots.map((dot) => dot.getBoundingClientRect().x)"
            assert len(set(chart.locator("g[aria-label=dot] > *").evaluate_all(across))) == 120


def test_classes_over_time_tell_that_seeds_may_differ(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    first = data["scenarios"][0]["rows"][0]
    first["classes"] = curve([0, 2], [0.5, 0.75])  # class 1 was not measured at the end
    first["class_matrix"] = [[0.9, 0.8, 0.0], [0.5, None, 0.75]]
    tab = show(data)
    assert tab.panel("class-time").locator(".remarks").inner_text().startswith("Mean over 2 seeds; where the seed")
    assert tab.tip("class-time", '[data-cell="1,2"]').split("\n")[1:] == ["class 2, after task 1", "accuracy: 75.0%"]
    tab.choose("class-time", "row", "slda")
    assert tab.panel("class-time").locator(".remarks").inner_text() == ""


def test_scenario_rows_and_panels_follow_the_users_choice(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    for own in data["scenarios"][1]["rows"]:
        own |= dict.fromkeys(("prequential", "last_label", "blind", "classes", "class_matrix", "gap"))
    tab = show(data)
    colour = tab.page.locator('#top [data-row="er"] path').first.get_attribute("stroke")
    assert tab.page.locator(".warning").count() == 0
    tab.page.locator('#top [data-row="lwf"]').click()
    tab.ready()
    assert tab.order() == ["er", "slda", "naive"]
    assert "lwf" not in tab.panel("damage").locator("svg.plot").get_attribute("aria-label")
    assert tab.panel("runs").locator("tbody tr").count() == 4
    tab.page.locator('[data-control="scenario"]').select_option("1")
    tab.ready()
    assert tab.order() == ["joint", "er", "naive"]
    assert plain(tab.page.locator(".warning").inner_text()).startswith("⚠ NOT COMPARABLE on seeds 1")
    assert tab.panel("strategies").locator("b").count() == 0  # no best row among rows that must not be compared
    assert "upper bound" in tab.cell("joint", "row")
    assert tab.page.locator('#top [data-row="er"] path').first.get_attribute("stroke") == colour
    for panel in ("prequential", "classes", "class-time", "gap"):
        assert tab.panel(panel).count() == 0
    tab.page.locator('[data-control="scenario"]').select_option("0")
    tab.ready()
    assert tab.order() == ["er", "slda", "naive"]
    assert tab.panel("prequential").count() == 1


def test_what_is_not_measured_is_absent(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    curves = ("forgetting", "damage", "anytime", "gap", "newest", "prequential", "last_label", "blind", "classes")
    nothing = dict.fromkeys((*curves, "class_matrix")) | {"metrics": {}}
    nothing |= {name: [] for name in ("seeds", "trained", "switches", "matrices")}
    only = data["scenarios"][0] | {"notes": [], "metrics": []}
    only["rows"] = [row("er", 0, estimate(0.5, None, 1), provisional=True) | nothing]
    tab = show(data | {"scenarios": [only]})
    assert [card.get_attribute("data-panel") for card in tab.page.locator("[data-panel]").all()] == ["runs"]
    only["rows"][0] |= {"seeds": [0], "matrices": [[[0.1, None]]]}  # measured once, before training
    tab = show(data | {"scenarios": [only]})
    assert tab.panel("matrix").locator("[data-cell]").count() == 1
    assert "There are no runs" in show(data | {"scenarios": []}).page.locator("#top").inner_text()


def test_runs_say_how_they_stand(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    panel = show(data).panel("runs")
    failed, running = (panel.locator(f'tr[data-run="lwf/{seed}"]') for seed in (0, 1))
    assert re.sub(r"\s+", " ", failed.locator('[data-metric="state"]').inner_text()) == "✗ failed : out of memory"
    assert plain(running.locator('[data-metric="state"]').inner_text()) == "▶ running"
    assert running.locator("progress").get_attribute("value") == "1"
    assert panel.locator("progress").count() == 3
    links = [link.get_attribute("href") for link in panel.locator("a").all()]
    assert links == ["https://wandb.example/lwf", "http://wandb.local:8080/lwf"]
    assert panel.locator('tr[data-run="er/0"] [data-metric="difference"]').inner_text() == "strategy=er train.epochs=2"


def test_copied_data_are_the_values_of_the_chart(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    data["scenarios"][0]["rows"][0]["label"] = 'er, "best"'
    tab = show(data)
    lines = copied(tab, "damage")
    assert lines[0] == ["row", "task number", "mean", "low", "high", "n"]
    assert lines[1] == ['er, "best"', "2", "-0.35", "-0.37", "-0.33", "2"]
    assert [line for line in lines if line[0] == "slda"] == [["slda", "2", "-0.35", "", "", "1"]]
    tab.panel("damage").locator("summary").click()
    shown = tab.panel("damage").locator(".plain tbody tr").first.locator("td").all_inner_texts()
    assert shown == ['er, "best"', "2", "-0.35", "-0.37", "-0.33", "2"]


def test_copy_takes_the_clipboard_where_it_may(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    tab = show(data, permissions=["clipboard-read", "clipboard-write"])
    tab.panel("matrix").locator("[data-copy]").click()
    tab.panel("matrix").get_by_text("copied as CSV").wait_for()
    lines = list(csv.reader(io.StringIO(tab.page.evaluate("() => navigator.clipboard.readText()"))))
    assert lines[0] == ["row", "ends", "task", "trained", "value", "smallest", "largest", "n"]
    assert lines[5] == ["er", "2", "0", "true", "0.5", "0.4", "0.6", "2"]


def test_hostile_text_is_drawn_as_text_and_runs_nothing(
    data: dict[str, Any], hostile: Callable[[dict[str, Any], str], dict[str, Any]], show: Callable[..., Tab]
) -> None:
    for name in ("".join(HOSTILE[:3] + HOSTILE[4:6]), HOSTILE[6]):
        tab = show(hostile(data, name))
        assert tab.page.locator("html[data-broken]").count() == 0
        assert tab.page.locator("#top img, #panels img, [onload], [onerror], #panels script").count() == 0
        assert tab.page.locator("#panels .row-name bdi").first.text_content().endswith(name)
        assert tab.page.locator("#panels a").count() == 0
        assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_nothing_sticks_out_in_any_width_and_theme(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    tab = show(data)
    for width, scheme in ((1300, "dark"), (380, "dark"), (380, "light")):
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.set_viewport_size({"width": width, "height": 800})
        tab.page.wait_for_selector(f'#panels[data-width="{width}"]')
        tab.ready()
        assert tab.page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert max(drawn.bounding_box()["width"] for drawn in tab.page.locator("svg.plot").all()) <= width
        background = tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert background == {"dark": "rgb(15, 20, 27)", "light": "rgb(244, 245, 248)"}[scheme]


def test_every_chart_has_a_sentence_and_its_data(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    tab = show(data)
    panels = [card.get_attribute("data-panel") for card in tab.page.locator("[data-panel]").all()]
    assert panels[:7] == ["strategies", "matrix", "forgetting", "damage", "anytime", "gap", "newest"]
    assert panels[7:] == ["prequential", "compute", "transfer", "classes", "class-time", "runs"]
    for name in panels:
        assert tab.panel(name).locator("[data-copy]").count() == 1
        charts = tab.panel(name).locator("svg.plot").all()
        assert charts or name in ("strategies", "runs")
        for drawn in charts:
            assert re.search(r"\d+\.\d(%| points)", drawn.get_attribute("aria-label")), name
            assert drawn.locator("style").count() == 0


def test_a_live_page_follows_and_keeps_what_the_user_chose(data: dict[str, Any], browser: Any) -> None:
    page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
    tab, answers = Tab(page), []
    newer = deepcopy(data) | {"version": "v2"}
    newer["scenarios"][0]["rows"][0]["metrics"]["average_accuracy"] = estimate(0.8, 0.01, 2)
    state: dict[str, Any] = {"data": data}

    def answer(route: Any) -> None:
        if not route.request.url.endswith("data.json"):
            route.fulfill(body=render(data, live=True), content_type="text/html; charset=utf-8")
        elif state["data"] is None:
            route.abort()
        else:
            tag = f'"{state["data"]["version"]}"'
            same = route.request.headers.get("if-none-match") == tag
            answers.append(304 if same else 200)
            route.fulfill(status=answers[-1], headers={"ETag": tag}, body="" if same else json.dumps(state["data"]))

    page.route("http://page.test/**", answer)
    page.goto("http://page.test/")
    page.wait_for_selector('html[data-version="v1"][data-ready]', state="attached")
    tab.panel("strategies").locator('th[data-metric="row"][scope=col] button').click()
    tab.choose("matrix", "row", "naive")
    page.locator('#top [data-row="slda"]').click()
    with page.expect_response("**/data.json"):
        pass
    state["data"] = newer
    page.wait_for_selector('html[data-version="v2"][data-ready]', state="attached", timeout=5000)
    assert answers[0] == 304
    assert tab.cell("er", "average_accuracy") == "80.0±1.0"
    assert tab.order() == ["er", "lwf", "naive"]
    assert tab.panel("matrix").locator('[data-control="row"]').input_value() == "naive"
    with page.expect_response("**/data.json") as last:
        pass
    assert last.value.status == 304  # the new tag is sent
    assert tab.wrong == []
    state["data"] = None
    page.wait_for_selector('[data-connection="lost"]', timeout=5000)
    state["data"] = newer
    page.wait_for_selector('[data-connection="live"]', timeout=5000)
    assert {url for url in tab.asked if not url.startswith("http://page.test/")} == set()
    page.context.close()


MANY = 14


def test_of_many_rows_lines_are_drawn_without_bands(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    data["scenarios"][0]["rows"] = [row(f"row {k}", k, estimate(0.5, 0.01, 2)) for k in range(MANY)]
    panels = ("damage", "anytime", "gap", "newest", "prequential")
    tab = show(data)
    for panel in panels:
        assert tab.panel(panel).locator("g[aria-label=area] path").count() == 0, panel
        assert "hover to read the intervals" in tab.panel(panel).locator(".remarks").inner_text(), panel
    assert "95% interval -37.0 points" in tab.tip("damage", "g[aria-label=dot] > *")
    for k in range(2):
        tab.page.locator(f'#top [data-row="row {k}"]').click()
    tab.ready()
    for panel in panels:
        assert tab.panel(panel).locator("g[aria-label=area] path").count() == MANY - 2, panel
        assert tab.panel(panel).locator(".remarks").inner_text() == "", panel


def test_intervals_that_reach_beyond_what_can_be_do_not_stretch_an_axis(
    data: dict[str, Any], show: Callable[..., Tab]
) -> None:
    wide = {"low": [-4.1], "high": [3.5], "n": [2]}
    own = row("er", 0, estimate(0.5, 2.0, 2)) | {
        "forgetting": {"x": [0], "mean": [0.3], **wide},
        "damage": {"x": [2], "mean": [-0.3], **wide},
        "gap": {"x": [10], "mean": [-0.3], **wide},
    }
    own["metrics"]["backward_transfer"] = own["metrics"]["forward_transfer"] = estimate(-0.3, 2.0, 2)
    data["scenarios"][0]["rows"] = [own]
    tab = show(data)
    for panel, axis in (("forgetting", "y"), ("damage", "y"), ("gap", "y"), ("compute", "y"), ("transfer", "x")):
        ticks = tab.panel(panel).locator(f'g[aria-label="{axis}-axis tick label"] text').all_text_contents()
        assert len(ticks) > 2, panel
        assert max(abs(float(tick.replace("−", "-"))) for tick in ticks) <= 100, panel


def test_few_of_many_rows_are_chosen_by_hiding_all(data: dict[str, Any], show: Callable[..., Tab]) -> None:
    assert show(data).page.get_by_text("hide all").count() == 0
    data["scenarios"][0]["rows"] = [row(f"row {k}", k, estimate(0.5, 0.01, 2)) for k in range(MANY)]
    tab = show(data)
    tab.page.get_by_text("hide all").click()
    tab.ready()
    assert tab.order() == []
    assert tab.page.get_by_text("hide all").count() == 0
    tab.page.locator('#top [data-row="row 3"]').click()
    tab.ready()
    assert tab.order() == ["row 3"]
    tab.page.get_by_text("show all").click()
    tab.ready()
    assert len(tab.order()) == MANY
