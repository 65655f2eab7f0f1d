"""Bring runs that were tracked offline to the wandb server, and read back what arrived.

The upload is ``wandb sync`` itself. Whether it worked is not what that says (it ends with 0 although files were lost),
but what the server answers when it is asked, compared with the ledger::

    for upload in sync(find_runs(paths)):
        upload.missing  # () if all is there

A run that is there already is not sent again: the client would append its history a second time.
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

from continual.errors import UserError
from continual.ledger import RunData, read
from continual.metrics import accuracy_matrix, summary
from continual.track import cells, run_id
from continual.trackers.wandb import MATRIX, MATRIX_COLUMNS, PAGE, write_url
from continual.trackers.wandb_mode import require_server

WAIT_SECONDS = 30.0  # the server may count what it was sent a little later
POLL_SECONDS = 0.5
ENDS = {"finished": ("finished",), "killed": ("failed", "crashed", "running")}
"""How a run may have ended there, by how it ended here; interrupted and failed ones have failed there."""
AT_ONCE = 50  # runs per process of `wandb sync`


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run that was tracked in wandb on this machine.

    Attributes:
        data: what its ledger says.
        address: ``[entity/]project/id``.
        files: what wandb wrote, one file per start.
    """

    data: RunData
    address: str
    files: tuple[Path, ...]


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
    pending = []
    for run in found:
        if isinstance(run, Upload):
            yield run
            continue
        there = read_back(api, run)
        if missing(run.data, there):
            pending.append(run)
        else:
            yield _arrived(run, there, sent=False)
    for start in range(0, len(pending), AT_ONCE):
        some = pending[start : start + AT_ONCE]
        _upload([file for run in some for file in run.files])
        for run in some:
            yield _arrived(run, _wait_for(api, run, wait), sent=True)


def tracked(path: Path) -> Tracked | Upload:
    """What wandb wrote of the run in ``path``; or why there is nothing to upload."""
    data = read(path)
    if data.status == "running":
        return Upload(path, skipped="it is still running")
    track = data.manifest["resolved"].get("track", {})
    name = run_id(data.manifest["name"], data.manifest["seed"], data.manifest["hash"], path)
    folder = Path(track.get("directory") or path) / "wandb"
    files = sorted(folder.glob(f"*/run-{name}.wandb"))
    if not str(track.get("_target_")).endswith(".Wandb") or not files:
        return Upload(path, skipped="it was not tracked in wandb")
    parts = (track.get("entity"), track["project"], name)
    return Tracked(data, "/".join(part for part in parts if part), tuple(files))


def missing(data: RunData, there: There | None) -> tuple[str, ...]:
    """What the ledger says of a run and the server does not, one phrase each."""
    if there is None:
        return ("the whole run",)
    steps = len({record.step for record in data.records})
    lost = [] if there.rows >= steps else [f"{steps - there.rows} of {steps} rows of its history"]
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
    if there is not None and not lost:
        write_url(run.data.path, there.url)
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
