"""Weights & Biases: one run of ours is one run there, with its matrix, its alerts and its page.

Call :func:`close` once per process, when the last run is over.

A moment's number is its step in wandb: each moment is a row there, the same one whenever it is logged, and a row that
is there already is left out. A run that goes on logs all its moments again: online those arrive that had not, offline
its new file holds the whole run. The earlier files are marked as synced, so that ``wandb sync`` leaves them out.

Not covered: models and snapshots are never uploaded; wandb cuts a table of more than 10,000 cells. If a run that was
tracked offline is moved before ``wandb sync``, the files of its matrix and page arrive, but not the artifact in which
wandb wraps the table (it stores an absolute path). Of a run that went on offline after its first part had arrived,
``wandb sync`` sends that part a second time; ``continual sync`` does not. Rows that are logged again have a later time.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual.alerts import NO_ALERT, Alert, first_time, watched
from continual.errors import UserError, nearest
from continual.files import write_atomic
from continual.ledger import MANIFEST
from continual.manifest import redact_text
from continual.record import Record
from continual.track import Curves, Matrix, RunFacts, Tracker, cells, row
from continual.trackers.wandb_mode import MODES, choose_mode

LOGGER = logging.getLogger(__name__)
FLUSH_SECONDS = 1.0  # calls are sent in bursts: one alone costs 2-4 times as much, as wandb's thread has to wake up
MATRIX, PAGE = "accuracy_matrix", "page"
MATRIX_COLUMNS = ("tasks_trained", "probe", "accuracy")
URL_FILE = "wandb-url.txt"
"""In a run's directory: where the run can be seen online."""


@dataclass(frozen=True, slots=True)
class Wandb:
    """Opens a Weights & Biases run for each run of ours.

    Attributes:
        project: project name, 1 to 128 characters.
        entity: user or team, None for the default one.
        mode: ``offline``; ``online``, which falls back to offline only without a login; ``auto``, which is online if
            there is a login and the server answers, and leaves the last word to ``WANDB_MODE=offline`` or ``disabled``.
        tags: 1 to 64 characters each.
        directory: wandb writes into its subfolder ``wandb``; None for the run's directory.
        page: whether the run's own dashboard page is logged at its end, as ``page``.
        alert: when to raise an alert, there and as a line on stderr.
        connect_timeout: seconds, > 0, that ``auto`` waits for the server's address and a TCP connection.
        init_timeout: seconds, > 0, to start a run online; wandb adds up to 10. What cannot start is tracked offline.
        finish_timeout: seconds, > 0, to send what is left; the rest stays on disk for ``continual sync``. The matrix of
            a run whose server went away adds up to 20.

    Raises:
        UserError: a value is outside the bounds above.
    """

    project: str = "continual"
    entity: str | None = None
    mode: str = "auto"
    tags: Sequence[str] = ()
    directory: str | None = None
    page: bool = True
    alert: Alert = NO_ALERT
    connect_timeout: float = 2.0
    init_timeout: float = 20.0
    finish_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"track.mode is '{self.mode}'{nearest(self.mode, MODES)}")
        if not 1 <= len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise UserError(f"track.project is '{self.project}'; use 1 to 128 characters without / \\ # ? % :")
        for tag in self.tags:
            if not 1 <= len(str(tag)) <= 64:
                raise UserError(f"track.tags holds '{tag}' of {len(str(tag))} characters; use 1 to 64")
        for name in ("connect_timeout", "init_timeout", "finish_timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"track.{name} is {getattr(self, name)}; it is in seconds and must be above 0")

    def __call__(self, run: RunFacts) -> Tracker:
        return self._tracker(run, _open)

    def online(self, run: RunFacts) -> Tracker:
        """The same, online or not at all: for a run that is on disk already."""
        return self._tracker(run, _start_online)

    def _tracker(self, run: RunFacts, start: "Callable[[Wandb, RunFacts, Path], Any]") -> Tracker:
        tracker = WandbTracker(self, run, start)
        return watched(tracker, self.alert, run, tracker.tell)


class WandbTracker:
    """One run in Weights & Biases. The first error ends the tracking with one warning, never the run.

    Args:
        options: how it is tracked.
        run: what it is.
        start: opens the run there; None for one that keeps nothing.
    """

    def __init__(self, options: Wandb, run: RunFacts, start: Callable[[Wandb, RunFacts, Path], Any]) -> None:
        self._facts, self._page = run, options.page
        self._directory = Path(options.directory or run.directory).absolute()
        self._curves = Curves(run.n_tasks)
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._due = 0.0
        self._number, self._moment = -1, (-1, -1, "")  # of the last moment
        self._run: Any = None
        with self._surviving("start"):
            self._run = start(options, run, self._directory)

    def go_on(self, moments: Iterable[Sequence[Record]]) -> None:
        """Log them again: what is there is left out."""
        for records in moments:
            self.log(records)
        if self._run is not None:
            with self._surviving("go on"):
                self._flush()
                _replace(self._directory, self._run)

    def log(self, records: Sequence[Record]) -> None:
        """Keep one moment for the next burst."""
        if self._run is None or not records:
            return
        with self._surviving("log"):
            values = row(records, self._facts.n_tasks, self._facts.n_classes) | self._curves(records)
            self._count(records[0])
            if not self._there:
                self._pending.append((self._number, {**values, "step": records[0].step}))
            if time.monotonic() >= self._due:
                self._flush()

    def tell(self, title: str, text: str) -> None:
        """Raise an alert; it belongs to the last moment, and where that is, the alert is."""
        if self._run is None or self._there:
            return
        with self._surviving("raise an alert"):
            if self._run.offline or first_time(self._facts, "wandb", title):  # a file offline holds the whole run
                self._run.alert(title=title, text=text, level="WARN")

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        """Send the summary, the matrix as a table, the page, and the end."""
        if self._run is None:
            return
        page = self._render() if self._page else None
        with self._surviving("finish"):
            self._flush()
            self._run.summary.update({**summary, "status": status})
            if matrix is not None:
                self._log_matrix(matrix)
            if page is not None:
                self._log_page(page)
            self._run.finish(exit_code=0 if status == "finished" else 1)
        self._run = None

    @property
    def _there(self) -> bool:
        """Whether the server had the last moment when the run was opened; then wandb takes nothing more for its row."""
        return bool(self._number < self._run.starting_step)

    def _count(self, first: Record) -> None:
        moment = (first.rows_seen, first.step, first.at)
        self._number += moment != self._moment
        self._moment = moment

    def _flush(self) -> None:
        for number, values in self._pending:
            self._run.log(values, step=number)
        self._pending.clear()
        self._due = time.monotonic() + FLUSH_SECONDS

    def _log_matrix(self, matrix: Matrix) -> None:
        import wandb

        columns, data = list(MATRIX_COLUMNS), cells(matrix)
        with _environment("WANDB_DATA_DIR", str(self._directory / "wandb")):  # else a copy stays in the home directory
            try:
                self._show(MATRIX, wandb.Table(columns=columns, data=data))
            except wandb.errors.CommError:  # online it is wrapped in an artifact, which cannot be made in an outage
                table = wandb.Table(columns=columns, data=data)
                # The file alone waits on disk for the server.
                table.bind_to_run(self._run, MATRIX, "summary" if self._there else self._number)
                self._show(MATRIX, table)

    def _log_page(self, page: str) -> None:
        import wandb

        # Its own policy forbids what wandb would inject.
        self._show(PAGE, wandb.Html(page, inject=False, data_is_not_path=True))

    def _show(self, name: str, media: Any) -> None:
        """Put it in the last moment's row; if that is there already, into the summary alone."""
        if self._there:
            self._run.summary[name] = media
        else:
            self._run.log({name: media}, step=self._number)

    def _render(self) -> str | None:
        """The run's page; None if it cannot be made, which is no reason to lose the rest."""
        if not (self._facts.directory / MANIFEST).exists():  # without a ledger there is nothing to show
            return None
        try:
            from continual.dashboard.collect import collect
            from continual.dashboard.page import render

            return render(collect([self._facts.directory]))
        except Exception as error:
            LOGGER.warning("the run's page could not be made, so it is not in wandb (%s)", _told(error))
            return None

    @contextmanager
    def _surviving(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            LOGGER.warning("wandb failed to %s, so tracking stops here; the run goes on (%s)", doing, _told(error))
            run, self._run = self._run, None
            if run is not None:  # left open, it would keep its id from being used again
                with suppress(Exception):
                    run.finish(exit_code=1)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {redact_text(' '.join(str(error).split()))}"


def close() -> None:
    """End wandb's background process once the last block of every file is written; call it when the last run is over.

    A normal exit of the interpreter does the same, a child of ``multiprocessing`` does not. A later tracker starts
    the background process again (0.3 s).
    """
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    try:
        wandb.teardown()
    except (Exception, SystemExit) as error:  # it passes the exit code of its background process on
        LOGGER.warning("wandb did not shut down cleanly (%s: %s)", type(error).__name__, error)


def write_url(directory: Path, url: str | None) -> None:
    """Write down where the run in ``directory`` can be seen online; None: nowhere, so that no old address stays."""
    if url is None:
        (directory / URL_FILE).unlink(missing_ok=True)
    else:
        write_atomic(directory / URL_FILE, f"{redact_text(url)}\n".encode())


def _open(options: Wandb, run: RunFacts, directory: Path) -> Any:
    mode = choose_mode(options.mode, options.connect_timeout)
    if mode == "disabled":
        return None
    try:
        return _start(options, run, directory, mode)
    except Exception as error:
        if mode == "offline":
            raise
        LOGGER.warning("wandb failed to start online: tracking offline, for `continual sync` (%s)", _told(error))
        close()  # its process holds the id of a start that failed; a run that is open beside this one ends there
        return _start(options, run, directory, "offline")


def _start_online(options: Wandb, run: RunFacts, directory: Path) -> Any:
    return _start(options, run, directory, "online")


def _start(options: Wandb, run: RunFacts, directory: Path, mode: str) -> Any:
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    facts = {"id": run.run_id, "scenario": run.scenario, "strategy": run.strategy, "seed": run.seed}
    opened = wandb.init(config={**run.config, "run": facts}, settings=_settings(options, run, mode, directory))
    opened.define_metric("*", step_metric="rows_seen")
    for name in ("R/*", "forgetting/*"):
        opened.define_metric(name, step_metric="task")
    write_url(run.directory, opened.url if mode == "online" else None)
    return opened


def _replace(directory: Path, run: Any) -> None:
    """Mark what earlier starts of a run wrote on this machine as synced: this one has it all."""
    for file in directory.glob(f"wandb/*/run-{run.id}.wandb"):
        if file.parent != Path(run.dir).parent:
            mark_synced(file)


def mark_synced(file: Path) -> None:
    """Let ``wandb sync`` leave out a file that wandb wrote, as it does itself."""
    file.with_suffix(".wandb.synced").touch()


def _settings(options: Wandb, run: RunFacts, mode: str, directory: Path) -> Any:
    """A fresh object, as ``init`` changes it. Everything that slows a start, prints or looks around is off."""
    import wandb

    return wandb.Settings(
        mode=mode,
        project=options.project,
        entity=options.entity,
        run_id=run.run_id,
        run_name=f"{run.name}-seed{run.seed}",
        run_group=f"{run.scenario}/{run.strategy}",
        run_job_type="train",
        run_tags=tuple(map(str, options.tags)),
        root_dir=str(directory),
        use_dot_wandb=False,
        reinit="create_new",
        resume="allow",  # a run that goes on keeps its id there
        init_timeout=options.init_timeout,
        finish_timeout=options.finish_timeout,
        x_transaction_log_flush_interval=FLUSH_SECONDS,  # its 15 s lose a whole short run to a kill
        silent=True,
        console="off",
        symlink=False,
        label_disable=True,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_save_requirements=False,
        x_disable_meta=True,  # it holds the command line, and that may hold a secret
        x_disable_stats=True,
        x_disable_machine_info=True,
    )


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
