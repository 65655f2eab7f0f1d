"""The live page's server: who is answered, what is sent again, and what follows a run while it is written."""

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from continual.cli import main
from continual.dashboard import live
from continual.dashboard.live import LiveServer
from continual.errors import UserError

EMPTY = {"format": 1, "title": "t", "notes": [], "scenarios": [], "made": "2026-01-01T00:00:00+00:00", "version": "v1"}


@contextmanager
def serving(gather: live.Gather, kind: type[LiveServer] = LiveServer) -> Iterator[LiveServer]:
    with kind(gather) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: LiveServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), body


def test_the_page_and_its_data_are_served_to_this_machine() -> None:
    with serving(lambda: EMPTY) as server:
        status, headers, body = ask(server, "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"connect-src 'self'" in body
        status, headers, body = ask(server, "/data.json?x=1", Host=f"localhost:{server.server_port}")
        assert (status, headers["ETag"], json.loads(body)) == (200, '"v1"', EMPTY)
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        assert server.server_address[0] == "127.0.0.1"


def test_data_that_has_not_changed_is_not_sent_again() -> None:
    with serving(lambda: EMPTY) as server:
        assert ask(server, "/data.json", **{"If-None-Match": '"v1"'})[::2] == (304, b"")
        assert ask(server, "/data.json", **{"If-None-Match": '"v0"'})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_host_name_is_refused(host: str) -> None:
    """A name of another site may be made to point to this machine; the page then does not belong to it."""
    asked: list[int] = []
    with serving(lambda: asked.append(1) or EMPTY) as server:
        status, _, body = ask(server, "/data.json", Host=host)
        assert status == 421
        assert b"version" not in body
        assert not asked


def test_only_two_things_are_served_and_only_read() -> None:
    with serving(lambda: EMPTY) as server:
        assert ask(server, "/../../etc/passwd")[0] == 404
        assert ask(server, "/data.json/..")[0] == 404
        assert ask(server, "/", "POST")[0] == 501


def test_a_head_has_no_body() -> None:
    """One connection: a body would be taken for the beginning of the next answer."""
    with serving(lambda: EMPTY) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        assert (answer.read(), answer.status, int(answer.headers["Content-Length"]) > 0) == (b"", 200, True)
        connection.request("GET", "/data.json")
        assert json.loads(connection.getresponse().read()) == EMPTY
        connection.close()


def test_a_mistake_while_gathering_is_told_and_the_server_goes_on() -> None:
    answers: list[Any] = [UserError("runs/a is damaged"), EMPTY]

    def gather() -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    with serving(gather) as server:
        assert ask(server, "/data.json")[::2] == (503, b"runs/a is damaged\n")
        assert ask(server, "/data.json")[0] == 200


def test_many_pages_gather_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [100.0], []
    monkeypatch.setattr(live, "monotonic", lambda: clock[0])
    with serving(lambda: calls.append(1) or EMPTY) as server:
        for _ in range(5):
            ask(server, "/data.json")
        assert len(calls) == 1
        clock[0] += live.FRESH_SECONDS
        ask(server, "/data.json")
        assert len(calls) == 2


def test_a_tab_that_is_closed_while_it_waits_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    closed, answered = Event(), Event()

    def gather() -> dict[str, Any]:
        closed.wait(10)
        return EMPTY | {"title": "x" * 10_000_000}  # more than what the connection takes unread

    class Watched(LiveServer):
        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            answered.set()

    with serving(gather, Watched) as server:
        tab = socket.create_connection(("127.0.0.1", server.server_port))
        tab.sendall(f"GET /data.json HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
        tab.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tab.close()
        closed.set()
        assert answered.wait(10)
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_or_none_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveServer(lambda: EMPTY) as server:
        taken = server.server_port
        assert main(["dashboard", "--live", "--port", str(taken)]) == 2
        assert f"--port {taken} cannot be had" in capsys.readouterr().err
    assert main(["dashboard", "--live", "--port", "65536"]) == 2
    assert "--port 65536 must be in [0, 65535]" in capsys.readouterr().err
    assert main(["dashboard", "--port", "8000"]) == 2
    assert "add --live" in capsys.readouterr().err
