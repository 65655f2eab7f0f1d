"""Bring runs that the wandb server does not have, or not whole, there, and read back what arrived.

A run of which nothing is there is uploaded by ``wandb sync``, which keeps its times. Whether that worked is not what it
says (it ends with 0 although files were lost), but what the server answers when it is asked, compared with the ledger.
What is missing then is sent from the ledger: like a run that goes on, the run is logged from its first moment, and what
is there is left out. So it does not matter in how many parts and in which modes it was tracked::

    for upload in sync(find_runs(paths)):
        upload.missing  # () if all is there
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from continual.alerts import Alert
from continual.errors import UserError
from continual.ledger import RunData, read
from continual.metrics import accuracy_matrix, summary
from continual.record import Record
from continual.track import RunFacts, cells, moments_of, run_id
from continual.trackers.wandb import MATRIX, MATRIX_COLUMNS, PAGE, Wandb, mark_synced, write_url
from continual.trackers.wandb_mode import require_server

WAIT_SECONDS = 30.0  # the server may count what it was sent a little later
POLL_SECONDS = 0.5
AT_ONCE = 50  # runs per process of `wandb sync`
ENDS = {"finished": ("finished",), "killed": ("failed", "crashed", "running")}
"""How a run may have ended there, by how it ended here; interrupted and failed ones have failed there."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run that was tracked in wandb on this machine.

    Attributes:
        data: what its ledger says.
        address: ``[entity/]project/id``.
        files: what wandb wrote, one file per start, oldest first.
    """

    data: RunData
    address: str
    files: tuple[Path, ...]

    @property
    def whole(self) -> bool:
        """Whether its last file holds all of it: one that was begun where nothing was, and not torn by a kill."""
        alone = len(self.files) == 1 or self.files[-1].parent.name.startswith("offline-")
        return alone and self.data.status != "killed"


@dataclass(frozen=True, slots=True)
class There:
    """What the server says of a run.

    Attributes:
        url: where it can be seen.
        state: ``finished``, ``failed``, ``crashed`` or ``running``.
        rows: rows of its history.
        summary: final values by name.
        table: columns and data of the matrix; None if its file did not arrive.
        page: whether the file of its page arrived, None if none was logged.
    """

    url: str
    state: str
    rows: int
    summary: Mapping[str, Any]
    table: Mapping[str, Any] | None
    page: bool | None


@dataclass(frozen=True, slots=True)
class Upload:
    """How it went with one run.

    Attributes:
        path: the run's directory.
        url: where it can be seen, None if it is not there.
        sent: False if all was there before.
        missing: what the ledger says and the server does not.
        skipped: why nothing was tried, None if it was.
    """

    path: Path
    url: str | None = None
    sent: bool = False
    missing: tuple[str, ...] = ()
    skipped: str | None = None


def sync(paths: Sequence[Path], wait: float = WAIT_SECONDS) -> Iterator[Upload]:
    """Upload the runs in directories ``paths`` that are not on the server yet, and compare each with its ledger.

    The address of a run that arrived is written to ``wandb-url.txt`` in its directory.

    Args:
        paths: directories of runs.
        wait: seconds until what the server does not show counts as missing, >= 0.

    Raises:
        UserError: there is no login, the server does not answer, or a ledger is damaged; before anything is sent.
    """
    found = [tracked(path) for path in paths]
    require_server()
    import wandb

    api = wandb.Api()
    pending, new = [], []
    for run in found:
        if isinstance(run, Upload):
            yield run
            continue
        there = read_back(api, run)
        if not missing(run.data, there):
            yield _arrived(run, there, sent=False)
        elif there is None and run.whole:
            new.append(run)
        else:
            pending.append(run)
    for start in range(0, len(new), AT_ONCE):
        some = new[start : start + AT_ONCE]
        _upload([run.files[-1] for run in some])
        for run in some:
            there = _wait_for(api, run, wait)
            if missing(run.data, there):
                pending.append(run)
            else:
                yield _arrived(run, there, sent=True)
    for run in pending:
        _go_on(run)
        yield _arrived(run, _wait_for(api, run, wait), sent=True)


def tracked(path: Path) -> Tracked | Upload:
    """What wandb wrote of the run in ``path``; or why there is nothing to upload."""
    data = read(path)
    if data.status == "running":
        return Upload(path, skipped="it is still running")
    track = data.manifest["resolved"].get("track", {})
    name = run_id(data.manifest["name"], data.manifest["seed"], data.manifest["hash"], path)
    folder = Path(track.get("directory") or path) / "wandb"
    files = sorted(folder.glob(f"*/run-{name}.wandb"), key=lambda file: file.parent.name.removeprefix("offline-"))
    if not str(track.get("_target_")).endswith(".Wandb") or not files:
        return Upload(path, skipped="it was not tracked in wandb")
    parts = (track.get("entity"), track["project"], name)
    return Tracked(data, "/".join(part for part in parts if part), tuple(files))


def missing(data: RunData, there: There | None) -> tuple[str, ...]:
    """What the ledger says of a run and the server does not, one phrase each."""
    if there is None:
        return ("the whole run",)
    rows = len(_moments(data))
    lost = [] if there.rows >= rows else [f"{rows - there.rows} of {rows} rows of its history"]
    expected = summary(data.records)
    values = [name for name, value in expected.items() if not _equal(there.summary.get(name), value)]
    if values:
        lost.append(f"{len(values)} of {len(expected)} values of its summary ({', '.join(sorted(values)[:3])}, ...)")
    matrix = cells(accuracy_matrix(data.records).values.tolist())
    if there.table is None or not _same_cells(there.table, matrix):
        lost.append("its accuracy matrix")
    if there.page is False:
        lost.append("its page")
    if there.state not in ENDS.get(data.status, ("failed", "crashed")):
        lost.append(f"its end: it is {data.status} here and {there.state} there")
    return tuple(lost)


def read_back(api: Any, run: Tracked) -> There | None:
    """What the server says of a run; None if it does not know it."""
    import wandb

    api.flush()  # it remembers what it read
    try:
        answer = api.run(run.address)
    except wandb.errors.CommError as error:
        if str(error).startswith("Could not find run"):
            return None
        raise UserError(f"{run.address} cannot be read from the server: {error}") from None
    values = dict(answer.summary_metrics)
    table, page = (_file(answer, values.get(name)) for name in (MATRIX, PAGE))
    return There(
        url=answer.url,
        state=answer.state,
        rows=int(answer.historyLineCount or 0),
        summary=values,
        table=json.loads(table) if table else None,
        page=None if PAGE not in values else page is not None,
    )


def _arrived(run: Tracked, there: There | None, *, sent: bool) -> Upload:
    lost = missing(run.data, there)
    write_url(run.data.path, None if there is None or lost else there.url)
    if not lost:
        for file in run.files:
            mark_synced(file)
    return Upload(run.data.path, None if there is None else there.url, sent, lost)


def _wait_for(api: Any, run: Tracked, seconds: float) -> There | None:
    """What the server says once nothing is missing, or when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        there = read_back(api, run)
        if not missing(run.data, there) or time.monotonic() >= deadline:
            return there
        time.sleep(POLL_SECONDS)


def _upload(files: Sequence[Path]) -> None:
    """Run wandb's own command, whose exit code says little."""
    words = ("sync", "--include-online", "--include-synced", *(str(file.absolute()) for file in files))
    with tempfile.TemporaryDirectory() as folder:  # its logs; else they stay in the working directory
        environment = {**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": folder}
        command = [sys.executable, "-m", "wandb", *words]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _go_on(run: Tracked) -> None:
    """Go on with the run there, and end it as it ended here."""
    data, about = run.data, run.data.manifest
    matrix = accuracy_matrix(data.records).values
    facts = RunFacts(
        name=about["name"],
        scenario=about["scenario"],
        strategy=about["name"],
        seed=about["seed"],
        run_id=run.address.rsplit("/", 1)[-1],
        directory=data.path,
        config=yaml.safe_load(about["config"]),
        n_tasks=matrix.shape[1],
        n_classes=about["spec"]["n_classes"],
    )
    track = about["resolved"]["track"]
    kept = {name: track[name] for name in ("project", "entity", "tags", "page")}
    with tempfile.TemporaryDirectory() as folder:
        options = Wandb(**kept, alert=Alert(track["alert"]["forgetting"]), directory=folder)
        tracker = options.online(facts)
        tracker.go_on(_moments(data))
        tracker.finish(summary(data.records), matrix.tolist(), data.status)


def _moments(data: RunData) -> list[list[Record]]:
    """The moments of a run; without the last of one that was killed, which may be half written and will come again."""
    moments = list(moments_of(data.records))
    return moments[:-1] if data.status == "killed" else moments


def _file(answer: Any, value: Any) -> bytes | None:
    """The file that a value of the summary names; None if it did not arrive."""
    path = str(value["path"]) if isinstance(value, Mapping) and "path" in value else ""
    if not path:
        return None
    files = list(answer.files(names=[path]))
    if not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        files[0].download(root=folder, replace=True).close()
        return (Path(folder) / path).read_bytes()


def _same_cells(table: Mapping[str, Any], matrix: Sequence[Sequence[float]]) -> bool:
    rows = table.get("data", [])
    if table.get("columns") != list(MATRIX_COLUMNS) or len(rows) != len(matrix):
        return False
    pairs = zip(rows, matrix, strict=True)
    return all(len(row) == len(ours) and all(map(_equal, row, ours)) for row, ours in pairs)


def _equal(there: Any, here: float) -> bool:
    """Whether a value is what was sent; infinity travels as text."""
    try:
        return math.isclose(float(there), here, rel_tol=1e-9, abs_tol=1e-12)
    except (TypeError, ValueError):
        return False
