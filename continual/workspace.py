"""A wandb workspace with our panels, the "Forgetting dashboard", and the heat map that wandb lacks.

The spec is built without a server; :func:`push` sends it. It needs the extra ``workspace``: the package
``wandb-workspaces`` is pinned, because reading a spec back and updating a workspace in place are its private parts.
"""

import logging
import warnings
from typing import Any

from continual.errors import UserError
from continual.trackers.wandb import MATRIX, MATRIX_COLUMNS, PAGE
from continual.trackers.wandb_mode import require_server

LOGGER = logging.getLogger(__name__)
NAME = "Forgetting dashboard"
VIEW = "nw-continualforgetting-v"  # one name, so that pushing again updates; wandb's own form, read from its addresses
CHART = "continual-accuracy-matrix-1"  # presets cannot be changed: another HEAT_MAP needs another number
STRATEGY = "run.strategy"
TRAINED, PROBE, ACCURACY = MATRIX_COLUMNS

HEAT_MAP: dict[str, Any] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"name": "wandb"},
    "mark": {"type": "rect", "tooltip": True},
    "encoding": {
        "x": {"field": "${field:probe}", "type": "ordinal", "title": "accuracy on task"},
        "y": {"field": "${field:trained}", "type": "ordinal", "title": "tasks trained"},
        "color": {
            "field": "${field:accuracy}",
            "type": "quantitative",
            "aggregate": "mean",  # over the runs that are shown
            "title": "accuracy",
            "scale": {"scheme": "viridis", "domain": [0, 1]},
        },
    },
}
"""A Vega-Lite preset; ``${field:...}`` is bound to columns by the panel."""


def spec() -> dict[str, Any]:
    """The workspace as it is sent, without anything that depends on where it goes."""
    sent: dict[str, Any] = build("entity", "project")._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    return sent


def build(entity: str, project: str) -> Any:
    """The workspace as an object of ``wandb_workspaces``.

    Raises:
        UserError: the package is not installed.
    """
    ws, wr = _packages()
    grouped = {"groupby": wr.Config(STRATEGY), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}

    def bars(title: str, *names: str) -> Any:
        return wr.BarPlot(title=title, metrics=list(names), **grouped)

    matrix = wr.CustomChart(
        query={"summaryTable": {"tableKey": MATRIX}},
        chart_name=f"{entity}/{CHART}",
        chart_fields={"trained": TRAINED, "probe": PROBE, "accuracy": ACCURACY},
        chart_strings={"title": "Accuracy matrix"},
    )
    forgotten = [
        matrix,
        wr.LinePlot(title="Forgetting per task", x="task", metric_regex=r"^forgetting/\d+$"),
        wr.LinePlot(title="Accuracy at ends of tasks", x="task", metric_regex=r"^R/\d+$"),
        bars("Forgetting", "forgetting"),
        bars("Transfer", "backward_transfer", "forward_transfer"),
        bars("Stability gap", "stability_gap"),
    ]
    over_time = [
        wr.LinePlot(title="Accuracy on the tasks seen so far", x="rows_seen", y=["seen_accuracy"], **grouped),
        bars("Anytime accuracy", "anytime_accuracy"),
    ]
    compute, accuracy = wr.SummaryMetric("forward_equivalents_per_row"), wr.SummaryMetric("average_accuracy")
    cost = [
        wr.ScatterPlot(title="Accuracy against compute", x=compute, y=accuracy),
        bars("Peak bytes", "peak_bytes"),
    ]
    pages = [wr.MediaBrowser(title="The run's page", media_keys=[PAGE], num_columns=1)]

    def section(name: str, panels: list[Any], columns: int, rows: int = 1) -> Any:
        settings = ws.SectionLayoutSettings(columns=columns, rows=rows)
        return ws.Section(name=name, panels=panels, is_open=True, layout_settings=settings)

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            section("What was forgotten", forgotten, columns=3, rows=2),
            section("Over time", over_time, columns=2),
            section("What it cost", cost, columns=2),
            section("Pages", pages, columns=1),
        ],
        settings=ws.WorkspaceSettings(x_axis="rows_seen", max_runs=100),
    )


def push(entity: str, project: str) -> str:
    """Put preset and workspace into a project and return the workspace's address; again, it updates the workspace.

    Raises:
        UserError: the package is not installed, there is no login, the server does not answer or refuses it.
    """
    workspace = build(entity, project)
    require_server()
    from wandb_workspaces.workspaces import internal

    try:
        _create_chart(entity)
        workspace._internal_name = VIEW
        workspace._internal_id = _known_view(internal, entity, project)
        internal.upsert_view2(workspace._to_model())
        return str(workspace.url)
    except Exception as error:  # private parts raise what they like
        told = " ".join(str(error).split())
        raise UserError(f"{entity}/{project} did not take the workspace: {told}; does the project exist?") from error


def _create_chart(entity: str) -> None:
    """Create the heat-map preset. That it is there already is an error of the server's, and none of ours."""
    import wandb

    try:
        wandb.Api().create_custom_chart(
            entity=entity,
            name=CHART,
            display_name="Accuracy matrix",
            spec_type="vega2",
            access="private",
            spec=HEAT_MAP,
        )
    except Exception as error:
        if "exist" not in str(error).lower():
            LOGGER.warning("the heat map's preset was not created; no matter if %s has it already (%s)", entity, error)


def _known_view(internal: Any, entity: str, project: str) -> str:
    """The id of our workspace in the project; empty if it has none."""
    try:
        return str(internal.View.from_name(entity, project, VIEW).id)
    except ValueError as error:
        if "workspace" in str(error).lower():
            return ""
        raise


def _packages() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it declares its fields in an old way
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("wandb_workspaces"):
            raise
        raise UserError("a workspace needs a further package; run: pip install 'continual[workspace]'") from None
    return ws, wr
