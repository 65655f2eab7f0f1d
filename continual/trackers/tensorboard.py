"""TensorBoard: event files in the run's directory; look at them by ``tensorboard --logdir runs``.

A run that goes on writes its file anew: ``purge_step`` would take back all curves from one step on, and ours do not
count the same steps. A TensorBoard that is running shows the earlier file until it is started again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from continual.alerts import NO_ALERT, Alert
from continual.track import RunFacts, Tracker
from continual.trackers.outlet import Point, hyperparameters, need, outlet


@dataclass(frozen=True, slots=True)
class TensorBoard:
    """Writes an event file for each run: curves; the config, and in the end config and metrics as hyperparameters.

    Attributes:
        directory: the file lies in the subfolder named by the run's id; None for ``<run directory>/tensorboard``.
        alert: when to say a line on stderr.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    directory: str | None = None
    alert: Alert = NO_ALERT

    def __post_init__(self) -> None:
        need("tensorboard", "tensorboard")

    def __call__(self, run: RunFacts) -> Tracker:
        folder = Path(self.directory or run.directory / "tensorboard") / run.run_id
        return outlet("tensorboard", run, self.alert, lambda: _EventFile(folder, run))


class _EventFile:
    def __init__(self, folder: Path, run: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._config = hyperparameters(run)
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in self._config.items()))
        self._writer.flush()

    def send(self, points: Sequence[Point]) -> None:
        for name, value, at in points:
            self._writer.add_scalar(name, value, at)
        self._writer.flush()

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        hparams = {**self._config, "status": status}
        self._writer.add_hparams(hparams, {f"metrics/{name}": value for name, value in metrics.items()}, run_name=".")
        self._writer.close()
