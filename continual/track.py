"""Sinks for records; the only importer of wandb.

A tracker sees what the ledger sees and may lose it: the ledger is the truth, so nothing that a tracker does can end a
run. One run of ours is one run there::

    tracker = open_tracker(facts)           # NoTracker() or Wandb(...), built from conf/track
    for records in moments:
        tracker.log(records)
    tracker.finish(summary, matrix, "finished")
    close()                                 # once per process

Not covered: models and snapshots are never uploaded. A matrix table that was tracked offline reaches the server only
when it is synced from the machine that wrote it (wandb stores the absolute path); wandb cuts one of more than 10,000
cells. A run that is killed loses what came in its last one or two seconds.
"""

import logging
import math
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from continual.errors import UserError, nearest
from continual.types import Record

LOGGER = logging.getLogger(__name__)
MODES = ("auto", "online", "offline")
FLUSH_SECONDS = 1.0  # calls are sent in bursts: one alone costs 2-4 times as much, as wandb's thread has to wake up

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a tracker may know about a run before its first record.

    Attributes:
        name: what is compared, e.g. ``er``; runs that differ only by seed share it.
        scenario: name of the stream.
        strategy: name of the learner or of its strategies, e.g. ``er+ewc``.
        seed: the run's seed.
        run_id: stable hash; a run that is resumed continues under the same id. No ``:;,#?/'``.
        directory: the run's directory.
        config: the config as written: interpolations unresolved and secrets redacted, as it is stored in clear.
        n_tasks: number of tasks, which decides how many digits a probe's name has.
    """

    name: str
    scenario: str
    strategy: str
    seed: int
    run_id: str
    directory: Path
    config: Mapping[str, Any]
    n_tasks: int


class Tracker(Protocol):
    """A sink for the records of one run."""

    def log(self, records: Sequence[Record]) -> None:
        """Take all records of one moment; moments come in order of their step."""
        ...

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        """End the run.

        Args:
            summary: final metrics by name.
            matrix: accuracy (rows, probes): row 0 before any training, row i after the i-th task; None or NaN where
                nothing was measured.
            status: ``finished``; anything else marks the run as failed.
        """
        ...


class NoTracker:
    """Keeps nothing; its own factory."""

    def __call__(self, run: RunFacts) -> Tracker:
        return self

    def log(self, records: Sequence[Record]) -> None:
        pass

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        pass


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
        connect_timeout: seconds, > 0, that ``auto`` waits for the server's address and a TCP connection.
        init_timeout: seconds, > 0, to start a run online; wandb adds up to 10.
        finish_timeout: seconds, > 0, to send what is left; the rest stays on disk for ``wandb sync``. The matrix of a
            run whose server went away adds up to 20.

    Raises:
        UserError: a value is outside the bounds above.
    """

    project: str = "continual"
    entity: str | None = None
    mode: str = "auto"
    tags: Sequence[str] = ()
    directory: str | None = None
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
        return WandbTracker(self, run)


class WandbTracker:
    """One run in Weights & Biases. The first error ends the tracking with one warning, never the run."""

    def __init__(self, options: Wandb, run: RunFacts) -> None:
        self._directory = Path(options.directory or run.directory).absolute()
        self._n_tasks = run.n_tasks
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._due = 0.0
        self._last_step = 0
        self._run: Any = None
        with self._surviving("start"):
            self._run = _open(options, run, self._directory)

    def log(self, records: Sequence[Record]) -> None:
        if self._run is None or not records:
            return
        with self._surviving("log"):
            self._pending.append((records[0].step, row(records, self._n_tasks)))
            if time.monotonic() >= self._due:
                self._flush()

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        if self._run is None:
            return
        with self._surviving("finish"):
            self._flush()
            self._run.summary.update({**summary, "status": status})
            if matrix is not None:
                self._log_matrix(matrix)
            self._run.finish(exit_code=0 if status == "finished" else 1)
        self._run = None

    def _flush(self) -> None:
        for step, values in self._pending:
            self._run.log(values, step=step)  # equal steps become one row
            self._last_step = step
        self._pending.clear()
        self._due = time.monotonic() + FLUSH_SECONDS

    def _log_matrix(self, matrix: Matrix) -> None:
        import wandb

        table = wandb.Table(columns=["tasks_trained", "probe", "accuracy"], data=cells(matrix))
        with _environment("WANDB_DATA_DIR", str(self._directory / "wandb")):  # else a copy stays in the home directory
            self._run.log({"accuracy_matrix": table}, step=self._last_step)

    @contextmanager
    def _surviving(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            LOGGER.warning("wandb failed to %s, so tracking stops here; the run goes on (%s)", doing, reason)
            run, self._run = self._run, None
            if run is not None:  # left open, it would keep its id from being used again
                with suppress(Exception):
                    run.finish(exit_code=1)


def row(records: Sequence[Record], n_tasks: int) -> dict[str, float]:
    """The records of one moment as the values of one ``run.log``.

    ``rows_seen`` is the axis of ``<metric>``, or ``<metric>/<probe>`` if it was measured on a probe; ``task`` is the
    axis of ``R/<probe>``, the accuracy before training (task -1) and at the end of each task. Values of an arrival or
    after the stream have that before their name: ``arrival/...``, ``final/...``. Tasks and probes count from 0.
    """
    digits = len(str(n_tasks - 1))
    values: dict[str, float] = {"rows_seen": records[0].rows_seen}
    for record in records:
        prefix = f"{record.at}/" if record.at in ("arrival", "final") else ""
        probe = "" if record.probe is None else f"/{record.probe:0{digits}}"
        values[f"{prefix}{record.metric}{probe}"] = record.value
        if probe and record.metric == "accuracy" and record.at in ("start", "end"):
            values[f"R{probe}"] = record.value
            values["task"] = -1 if record.task is None else record.task
    return values


def cells(matrix: Matrix) -> list[list[float]]:
    """[tasks trained, probe, accuracy] of every measured cell of an accuracy matrix."""
    return [
        [trained, probe, float(value)]
        for trained, line in enumerate(matrix)
        for probe, value in enumerate(line)
        if value is not None and not math.isnan(value)
    ]


def choose_mode(mode: str, connect_timeout: float = 2.0) -> str:
    """``online``, ``offline`` or ``disabled`` for one of ``MODES``; never asks, and connects only if logged in.

    It leaves the answer in ``WANDB_MODE``, so that later runs of the process need not try a dead connection again.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # telemetry, also of offline runs; read when wandb is imported
    wish = os.environ.get("WANDB_MODE", "").lower() if mode == "auto" else mode
    if wish == "disabled":
        return wish
    offline = wish in ("offline", "dryrun") or not _can_send(mode, connect_timeout)
    os.environ["WANDB_MODE"] = "offline" if offline else "online"
    return os.environ["WANDB_MODE"]


def _can_send(mode: str, connect_timeout: float) -> bool:
    import wandb

    session = wandb.setup(wandb.Settings(silent=True))
    if mode == "online":
        session.settings.mode = mode  # outranks WANDB_MODE and wandb's settings file
    try:
        logged_in = bool(wandb.login(prompt=False, verify=False))
    except Exception:  # a key of the wrong form
        logged_in = False
    if mode == "online" and not logged_in:
        LOGGER.warning("track.mode is online but there is no login: tracking offline; run `wandb login`")
    return logged_in and (mode == "online" or reachable(session.settings.base_url, connect_timeout))


def reachable(url: str, seconds: float) -> bool:
    """Whether ``url``'s server, or the proxy that leads to it, accepts a TCP connection within ``seconds``."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy)
    address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # a name server that is gone blocks for longer than asked
    thread.start()
    thread.join(seconds)
    return answered.is_set()


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


def _open(options: Wandb, run: RunFacts, directory: Path) -> Any:
    mode = choose_mode(options.mode, options.connect_timeout)
    if mode == "disabled":
        return None
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    facts = {"id": run.run_id, "scenario": run.scenario, "strategy": run.strategy, "seed": run.seed}
    opened = wandb.init(config={**run.config, "run": facts}, settings=_settings(options, run, mode, directory))
    opened.define_metric("*", step_metric="rows_seen")
    opened.define_metric("R/*", step_metric="task")
    return opened


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
        resume="allow",  # else `wandb sync` does not join the pieces of a run that was continued
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
