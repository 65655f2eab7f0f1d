"""MLflow: one run of ours is one run there, on a server or in a local database."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from continual.alerts import NO_ALERT, Alert
from continual.track import RunFacts, Tracker
from continual.trackers.outlet import Point, hyperparameters, need, outlet


@dataclass(frozen=True, slots=True)
class MLflow:
    """Opens an MLflow run for each run of ours, or goes on with the one that was begun.

    Attributes:
        uri: of the tracking server or database; None for ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db``.
        experiment: made if needed.
        alert: when to say a line on stderr.

    Raises:
        UserError: the package mlflow is not installed.
    """

    uri: str | None = None
    experiment: str = "continual"
    alert: Alert = NO_ALERT

    def __post_init__(self) -> None:
        need("mlflow", "mlflow")

    def __call__(self, run: RunFacts) -> Tracker:
        return outlet("mlflow", run, self.alert, lambda: _Run(self, run))


class _Run:
    def __init__(self, options: MLflow, run: RunFacts) -> None:
        patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # else 15 minutes
        os.environ.update({**patience, "MLFLOW_DISABLE_TELEMETRY": "true", **os.environ})
        from mlflow import MlflowClient, entities

        self._metric = entities.Metric
        self._client = client = MlflowClient(tracking_uri=options.uri)
        known = client.get_experiment_by_name(options.experiment)
        experiment = known.experiment_id if known else client.create_experiment(options.experiment)
        begun = client.search_runs([experiment], f"tags.run_id = '{run.run_id}'")
        runs = begun or [client.create_run(experiment, tags={"run_id": run.run_id}, run_name=run.run_id)]
        self._id = runs[0].info.run_id
        self._there = self._sent_before(runs[0].data.metrics)
        if begun:
            client.update_run(self._id, status="RUNNING")
        client.log_batch(self._id, params=[entities.Param(*item) for item in hyperparameters(run).items()])

    def send(self, points: Sequence[Point]) -> None:
        """Leave out as many points of a curve's place as were there when the run was opened: it sends all again."""
        new = []
        for point in points:
            place = (point.name, point.at)
            if self._there[place]:
                self._there[place] -= 1
            else:
                new.append(point)
        self._log(new)

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        self._log([Point(f"metrics/{name}", value, 0) for name, value in metrics.items()])
        self._client.set_terminated(self._id, {"finished": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))

    def _log(self, points: Sequence[Point]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(name, value, now, at) for name, value, at in points])

    def _sent_before(self, names: Iterable[str]) -> Counter[tuple[str, int]]:
        """(name, at) -> how many points are there; one request for each name."""
        client = self._client
        return Counter((name, point.step) for name in names for point in client.get_metric_history(self._id, name))
