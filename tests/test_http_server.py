"""What /metrics and qherd discovery do with clients that do not want an answer: they are few, and end."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from deploy.monitoring.discovery import Discovery
from learner import http_server
from learner.exporter import MetricsServer

MOST = 4


@pytest.fixture(params=["metrics", "discovery"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a server answers whose bound is a handful."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", MOST)
    if request.param == "metrics":
        metrics = MetricsServer((), "r", "0", ("127.0.0.1", 0))
        assert metrics.address is not None
        yield f"http://127.0.0.1:{metrics.address[1]}/metrics"
        metrics.close()
        return
    with Discovery(("127.0.0.1", 0), [tmp_path]) as discovery:
        threading.Thread(target=discovery.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{discovery.server_port}/targets"
        discovery.shutdown()


def answer(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as got:
        return int(got.status)


def half_sent(url: str, stack: contextlib.ExitStack) -> socket.socket:
    """A connection on which a request was begun."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    client.sendall(b"GET / HTTP/1.1\r\nX: ")
    return client


def ended(client: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        while client.recv(1000):
            pass
    return True


def handlers() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_half_sent_requests_end_by_time_also_when_bytes_trickle(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LONGEST_S", 0.5)
    with contextlib.ExitStack() as stack:
        silent, trickling = half_sent(url, stack), half_sent(url, stack)
        trickling.settimeout(0.05)

        def gone() -> bool:
            try:
                trickling.sendall(b"x")
                return trickling.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        until(gone, "the end of the one that trickles", 20)
        assert ended(silent)
        assert answer(url) == 200
        until(lambda: handlers() == 0, "the end of their threads")


def test_there_are_never_more_than_the_bound_and_others_are_answered(url: str) -> None:
    with contextlib.ExitStack() as stack:
        clients = [half_sent(url, stack) for _ in range(3 * MOST)]
        assert answer(url) == 200
        assert all(ended(client) for client in clients[: 2 * MOST])
        until(lambda: handlers() <= MOST, "a bounded number of threads")
        assert answer(url) == 200
    until(lambda: handlers() == 0, "the end of their threads")
