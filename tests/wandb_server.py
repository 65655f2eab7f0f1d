"""A stand-in for the wandb server on loopback, for wandb's real client; it keeps what it is sent and can be made ill.

It proves the client's side: what is sent, in which order, what is repeated after an error. It does not prove what the
real server accepts. A request that it does not know is kept in ``unknown``, which a test should find empty.
"""
# ruff: noqa: N802  -- a method is named after the operation that it answers

import base64
import gzip
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from continual import experiment
from continual.ledger import read
from continual.metrics import accuracy_matrix
from continual.track import Curves, cells, moments_of, row
from continual.trackers.wandb import MATRIX, MATRIX_COLUMNS, PAGE, close

ENTITY = "lab"
KEY = "0123456789abcdef0123456789abcdef01234567"
HASTE = {  # what else waits for seconds: wandb repeats and sends in bursts
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB__FILE_TRANSFER_RETRY_MAX": "1",
    **{
        f"WANDB__{what}_RETRY_WAIT_{bound}_SECONDS": "1"  # whole ones
        for what in ("FILE_STREAM", "FILE_TRANSFER", "GRAPHQL")
        for bound in ("MIN", "MAX")
    },
}
FOLDERS = {"NETRC": "netrc", "WANDB_CONFIG_DIR": "config", "WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}

History, Events, Summary = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"
Json = dict[str, Any]


@dataclass
class Run:
    """What has arrived of one run."""

    id: str
    project: str
    entity: str
    fields: Json = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    def lines(self, name: str) -> list[str]:
        """The lines of a stream in their order."""
        return [line for _, line in sorted(self.streams.get(name, {}).items())]

    @property
    def history(self) -> list[Json]:
        return [json.loads(line) for line in self.lines(History)]

    @property
    def summary(self) -> Json:
        lines = self.lines(Summary)
        return json.loads(lines[-1]) if lines else {}

    @property
    def config(self) -> Json:
        return {key: item["value"] for key, item in json.loads(self.fields.get("config", "{}")).items()}

    @property
    def state(self) -> str:
        return "running" if self.exit_code is None else "failed" if self.exit_code else "finished"


class WandbServer:
    """Serves within a ``with`` block.

    Attributes:
        runs: by id.
        asked: what was asked, in order: a GraphQL operation or ``PUT /path``.
        alerts, charts, views, artifacts: what was made.
        ill: gets what is asked and gives an HTTP status to answer instead, 0 never to answer, or None to be well.
        unknown: what is not implemented.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.asked: list[str] = []
        self.alerts: list[Json] = []
        self.charts: dict[str, Json] = {}
        self.views: dict[str, Json] = {}
        self.artifacts: list[Json] = []
        self.blobs: dict[str, bytes] = {}
        self.ill: Callable[[str], int | None] = well
        self.unknown: list[str] = []
        self._over = threading.Event()
        self._lock = threading.RLock()

    def __enter__(self) -> "WandbServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                path = unquote(urlsplit(self.path).path)
                status, answer = server.answer(self.command, path, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("ETag", '"x"')
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:  # the client has left
                pass

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and body of the answer to one request."""
        request = json.loads(body) if path == "/graphql" else {}
        named = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
        asked = named[1] if named else f"{method} {path}"
        with self._lock:
            self.asked.append(asked)
        status = self.ill(asked)
        if status == 0:
            self._over.wait()
        if status is not None:
            return status or 503, {"errors": [{"message": "made ill by a test"}]}
        with self._lock:
            try:
                if named:
                    return 200, {"data": getattr(self, f"on_{asked}")(request.get("variables") or {})}
                return self._files(method, path, body)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                if asked == "CreateCustomChart":
                    return 400, {"errors": [{"message": str(error)}]}
                self.unknown.append(f"{asked}: {error!r} {request.get('query', '')[:2000]} {request.get('variables')}")
                return 400, {"errors": [{"message": repr(error)}]}

    # ---- files

    def _files(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
        if stream:
            return 200, self._stream(self.runs[stream[1]], json.loads(body))
        kind, name = path[1:].split("/", 1)
        store = {"blob": self.blobs}.get(kind) or (self.runs[kind].files if kind in self.runs else self.blobs)
        if method == "PUT":
            store[name] = body
            return 200, b""
        return (200, store[name]) if name in store else (404, b"")

    def _stream(self, run: Run, sent: Json) -> Json:
        for name, chunk in (sent.get("files") or {}).items():
            lines = run.streams.setdefault(name, {})
            for index, line in enumerate(chunk["content"]):
                lines[0 if name == Summary else chunk["offset"] + index] = line
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
        return {"exitcode": None, "limits": {}}

    # ---- who, and what the server can do

    def on_Viewer(self, variables: Json) -> Json:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "a@b.c", "name": ENTITY, "flags": "{}"}
        return {
            "viewer": {**viewer, "admin": False, "deletedAt": None, "teams": {"edges": [{"node": {"name": ENTITY}}]}}
        }

    def on_GetDefaultEntity(self, variables: Json) -> Json:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def on_ServerInfo(self, variables: Json) -> Json:
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}}

    def on_ServerFeaturesQuery(self, variables: Json) -> Json:
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, variables: Json) -> Json:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    # ---- runs

    def on_RunResumeStatus(self, variables: Json) -> Json:
        run = self.runs.get(variables["name"])
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": ENTITY}}
        return {"model": {**project, "bucket": run and self._resumed(run)}}

    def _resumed(self, run: Run) -> Json:
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.fields.get("displayName"),
            "tags": [],
            "config": run.fields.get("config", "{}"),
            "wandbConfig": json.dumps({"t": 1}),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": len(run.lines(Events)),
            "logLineCount": len(run.lines("output.log")),
            "historyTail": json.dumps(run.lines(History)[-1:]),
            "eventsTail": json.dumps(run.lines(Events)[-1:]),
        }

    def on_UpsertBucket(self, variables: Json) -> Json:
        name = variables["name"]
        new = name not in self.runs
        project, entity = variables.get("project") or "uncategorized", variables.get("entity") or ENTITY
        run = self.runs.setdefault(name, Run(name, project, entity))
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        where = {"id": "p", "name": run.project, "entity": {"id": "e", "name": run.entity}}
        known = {"displayName": run.fields.get("displayName") or name, "description": None, "config": "{}"}
        bucket = {"id": name, "name": name, **known, "sweepName": None, "historyLineCount": len(run.history)}
        return {"upsertBucket": {"inserted": new, "bucket": {**bucket, "project": where}}}

    def on_CreateRunFiles(self, variables: Json) -> Json:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def on_RunStoppedStatus(self, variables: Json) -> Json:
        return {"project": {"run": {"stopped": False}}}

    def on_NotifyScriptableRunAlert(self, variables: Json) -> Json:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_Run(self, variables: Json) -> Json:
        run = self.runs.get(variables["name"])
        if run is None or (run.project, run.entity) != (variables["project"], variables["entity"]):
            return {"project": {"run": None}}
        about = {"id": run.id, "name": run.id, "displayName": run.fields.get("displayName"), "state": run.state}
        measured = {"summaryMetrics": json.dumps(run.summary), "historyLineCount": len(run.history)}
        absent = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes", "createdAt"))
        rest = {"config": "{}", "systemMetrics": "{}", "tags": [], "user": {"name": ENTITY, "username": ENTITY}}
        return {
            "project": {
                "run": {
                    "projectId": "1",
                    **about,
                    **absent,
                    **measured,
                    **rest,
                    "readOnly": False,
                    "historyKeys": {},
                    "heartbeatAt": None,
                }
            }
        }

    def on_RunFiles(self, variables: Json) -> Json:
        run = self.runs[variables["name"]]
        nodes = [self._file(run, name) for name in variables["fileNames"] if name in run.files]
        page = {"endCursor": "", "hasNextPage": False}
        edges = [{"node": node, "cursor": ""} for node in nodes]
        return {
            "project": {
                "internalId": "1",
                "run": {"fileCount": len(nodes), "files": {"edges": edges, "pageInfo": page}},
            }
        }

    def _file(self, run: Run, name: str) -> Json:
        data = run.files[name]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        url = f"{self.url}/{run.id}/{name}"
        about = {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": len(data), "md5": md5}
        return {**about, "mimetype": "application/json", "updatedAt": None, "uploadedAt": None}

    # ---- artifacts, in which the client wraps tables

    def on_ArtifactType(self, variables: Json) -> Json:
        name = variables["name"].split(":")[0]
        found = next((a for a in self.artifacts if a["artifactCollectionName"] == name), None)
        return {"project": {"artifact": found and {"artifactType": {"name": found["artifactTypeName"]}}}}

    def on_CreateArtifact(self, variables: Json) -> Json:
        asked = variables["input"]
        found = next((a for a in self.artifacts if a["digest"] == asked["digest"]), None)
        if found is None:
            found = {**asked, "id": f"A{len(self.artifacts)}", "state": "PENDING"}
            self.artifacts.append(found)
        artifact = {"id": found["id"], "state": found["state"], "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, variables: Json) -> Json:
        name = f"{variables['artifactID']}/manifest"
        file = {"id": "F", "uploadUrl": f"{self.url}/blob/{name}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"M{variables['artifactID']}", "file": file}}}

    def on_CreateArtifactFiles(self, variables: Json) -> Json:
        asked = variables.get("artifactFiles") or variables["input"]["artifactFiles"]
        edges = [{"node": self._artifact_file(file["artifactID"], file["name"])} for file in asked]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _artifact_file(self, artifact: str, name: str) -> Json:
        path = f"{artifact}/{name}"
        upload = {"uploadUrl": f"{self.url}/blob/{path}", "uploadHeaders": [], "uploadMultipartUrls": None}
        return {"storagePath": path, **upload, "artifact": {"id": artifact}}

    def on_CommitArtifact(self, variables: Json) -> Json:
        found = next(a for a in self.artifacts if a["id"] == variables["artifactID"])
        found["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}

    # ---- charts and workspaces

    def on_CreateCustomChart(self, variables: Json) -> Json:
        name = f"{variables['entity']}/{variables.get('chartName') or variables['name']}"
        if name in self.charts:
            raise ValueError("a chart of this name already exists")
        self.charts[name] = variables
        return {"createCustomChart": {"chart": {"id": name}}}

    def on_View(self, variables: Json) -> Json:
        found = [view for view in self.views.values() if view["name"] == variables.get("viewName")]
        edges = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in found]
        return {"project": {"allViews": {"edges": edges}}}

    def on_UpsertView2(self, variables: Json) -> Json:
        known = variables.get("id")
        number = known or f"V{len(self.views)}"
        self.views[number] = {**variables, "id": number}
        return {"upsertView": {"view": {"id": number, "name": variables["name"]}, "inserted": known is None}}


@contextmanager
def serving(home: Path) -> Iterator["WandbServer"]:
    """A server, and an environment in which wandb knows it and nothing else."""
    close()
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        for name in [n for n in os.environ if n.startswith("WANDB_") or n.lower().endswith("_proxy")]:
            patch.delenv(name)
        for name, value in {"HOME": "", **FOLDERS}.items():
            patch.setenv(name, str(home / value))
        for name, value in {**HASTE, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}.items():
            patch.setenv(name, value)
        for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):  # set by what is tested
            patch.setenv(name, "")
            patch.delenv(name)
        try:
            yield server
        finally:
            server.ill = well
            close()
    assert server.unknown == []


def assert_whole(found: Run, run: experiment.Run) -> None:
    """All that the ledger says has arrived, once."""
    assert found.state == "finished"
    assert rows(found) == expected(run)
    summary = found.summary
    assert {name: summary[name] for name in run.metrics} == pytest.approx(run.metrics)
    assert summary["status"] == "finished"
    table = json.loads(found.files[summary[MATRIX]["path"]])
    matrix = cells(accuracy_matrix(run.records).values.tolist())
    assert table == {"columns": list(MATRIX_COLUMNS), "data": matrix}
    assert b"</html>" in found.files[summary[PAGE]["path"]]


def rows(found: Run) -> list[Json]:
    """The history that arrived; without times and media."""
    left_out = ("_timestamp", "_runtime", MATRIX, PAGE)
    return [{name: value for name, value in line.items() if name not in left_out} for line in found.history]


def expected(run: experiment.Run) -> list[Json]:
    """The history that has to arrive: one row for each moment, numbered."""
    n_tasks, n_classes = accuracy_matrix(run.records).values.shape[1], read(run.path).manifest["spec"]["n_classes"]
    curves = Curves(n_tasks)
    return [
        {"_step": number, "step": moment[0].step, **row(moment, n_tasks, n_classes), **curves(moment)}
        for number, moment in enumerate(moments_of(run.records))
    ]


def well(asked: str) -> None:
    """What a server that is not ill has."""


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
