"""The page over HTTP, for this machine alone, following runs while they are written."""

import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from time import monotonic
from typing import Any

from continual.dashboard.page import render
from continual.errors import UserError

LOOPBACK = "127.0.0.1"
FRESH_SECONDS = 0.5  # a page asks every second, and several may be open

Gather = Callable[[], dict[str, Any]]


class LiveServer(ThreadingHTTPServer):
    """``/`` is the page, ``/data.json`` what it polls; its ETag is the data's version.

    Bound to loopback, and it answers only to a ``Host`` of this machine: a page of another site, whose name was
    pointed here, learns nothing. It reads; no request changes anything.

    Args:
        gather: the page's data now; called by one thread at a time, at most every half second.
        port: 0 for a free one.

    Raises:
        UserError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, gather: Gather, port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise UserError(f"--port {port} must be in [0, 65535]; 0 takes a free one")
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            reason = f"--port {port} cannot be had: {error.strerror}"
            raise UserError(f"{reason}; choose another, or 0 for a free one") from None
        self.url = f"http://{LOOPBACK}:{self.server_port}/"
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}
        self._gather, self._lock = gather, Lock()
        self._data: dict[str, Any] = {}
        self._due = 0.0

    def data(self) -> dict[str, Any]:
        """What the page shows now."""
        with self._lock:
            if monotonic() >= self._due:
                self._data = self._gather()
                self._due = monotonic() + FRESH_SECONDS
            return self._data

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A tab that was closed while it waited is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.headers.get("Host") not in self.server.hosts:
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this page is for this machine only\n")
        elif path not in ("/", "/data.json"):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /data.json\n")
        else:
            self._answer(path)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, path: str) -> None:
        try:
            data = self.server.data()
        except UserError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n".encode())
            return
        etag = f'"{data["version"]}"'
        if path == "/":
            self._send(HTTPStatus.OK, "text/html", render(data, live=True).encode())
        elif self.headers.get("If-None-Match") == etag:
            self._send(HTTPStatus.NOT_MODIFIED, "application/json", b"", etag)
        else:
            self._send(HTTPStatus.OK, "application/json", json.dumps(data, allow_nan=False).encode(), etag)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, etag: str | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in (headers | ({"ETag": etag} if etag else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
