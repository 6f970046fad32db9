"""HTTP for Prometheus that nobody can clog: connections are few and short, whatever is sent on them."""

from __future__ import annotations

import socket
import sys
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MAX_CONNECTIONS = 32
"""One more has the oldest end: Prometheus' own takes milliseconds and is never that."""
LONGEST_S = 10.0
"""A connection that has not ended by then is ended: half of a request, or an answer that nobody takes."""


class BoundedMixIn(ThreadingMixIn):
    """A thread per connection, as many and as long as the bounds allow. Goes before a class of ``socketserver``."""

    daemon_threads = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._lock = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See ``socketserver.BaseServer``."""
        with self._lock:
            self._since[request] = time.monotonic()
            self._end(list(self._since)[:-MAX_CONNECTIONS])
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """See ``socketserver.BaseServer``."""
        with self._lock:
            self._since.pop(request, None)
        super().close_request(request)  # type: ignore[misc]

    def service_actions(self) -> None:
        """See ``socketserver.BaseServer``, which calls it twice a second."""
        before = time.monotonic() - LONGEST_S
        with self._lock:
            self._end([request for request, since in self._since.items() if since < before])
        super().service_actions()  # type: ignore[misc]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """See ``socketserver.BaseServer``; a connection that ends early is none."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[misc]

    def _end(self, requests: list[socket.socket]) -> None:
        """Has the threads of these connections read or write no more, so that they close them."""
        for request in requests:
            del self._since[request]
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:  # its client has gone
                continue


class BoundedWSGIServer(BoundedMixIn, WSGIServer):
    """Serves a WSGI application within the bounds, on IPv4 or IPv6 as the address asks."""

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        """Raises OSError where the port is taken, or the host is none."""
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, handler)


class SilentHandler(WSGIRequestHandler):
    """Writes no line for each of Prometheus' requests, which come every few seconds."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Writes nothing."""
