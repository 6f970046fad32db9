"""A TCP proxy between clients and a server's socket: what a network does to a connection, when a test tells it to."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

LOOK_S = 0.01
"""A connection at rest looks this often whether the test has changed something."""
DEADLINE_S = 120.0
"""Longer than any test: no thread of the proxy outlives it."""
SPOILT_AT = 1024
"""Which byte after an append's command is spoilt: well within the chunk."""
_AUTH = re.compile(rb"\r\nAUTH\r\n\$\d+\r\n([^\r]+)\r\n\$\d+\r\n([^\r]+)\r\n")


class Proxy:
    """Counts round trips, loses replies or parts, cuts connections, stalls, refuses, and acts at a command.

    ``stalled``: nothing is passed on in either direction, as by a network that drops all packets; what was kept is
    passed on when it ends. ``lose_replies``: the server gets all, the clients nothing. ``refusing``: new connections
    are closed at once. ``reply_bytes`` bounds what is still passed on of the replies. Then it hangs up that connection
    (``cut``), or keeps the rest until the same connection asks again. ``before``: when a client's data has these bytes,
    do this first. ``spoil``: so many of the next appends get a bit flipped on their way, ``spoilt`` counts them.
    ``appends`` counts all. ``passwords``: by user, as a listener on the network reads them.
    """

    def __init__(self, server_url: str, listen: Path | None = None) -> None:
        """``server_url``: a server on a Unix socket; ``listen``: the Unix socket of the proxy, else it has a port."""
        parts = urlsplit(server_url)
        self._server = parts.path
        if listen is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"redis://{parts.netloc}127.0.0.1:{self._listener.getsockname()[1]}/0"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(listen))
            self._listener.listen(64)
            self.url = f"unix://{parts.netloc}{listen}"
        self.round_trips = 0
        self.cuts = 0
        self.lose_replies = self.stalled = self.refusing = self.cut = False
        self.reply_bytes: int | None = None
        self.before: tuple[bytes, Callable[[], None]] | None = None
        self.spoil = self.spoilt = self.appends = 0
        self.passwords: dict[str, str] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="proxy", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def hang_up(self) -> None:
        """Cut all connections that are there."""
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def cut_reply_after(self, size: int) -> None:
        """Cut the connection that gets the next reply, after so many bytes of it; ``cuts`` counts it."""
        self.reply_bytes, self.cut = size, True

    def close(self) -> None:
        """Accept no more and cut all connections; returns when all threads have ended."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        end = time.monotonic() + 10
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, until either end or the test closes it."""
        with client, socket.socket(socket.AF_UNIX) as server:
            if self.refusing:
                return
            with self._lock:
                self._clients.add(client)
            with contextlib.suppress(OSError):  # either end is gone
                if client.family == socket.AF_INET:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for end in (client, server):
                    end.settimeout(DEADLINE_S)
                server.connect(self._server)
                self._pass_on(client, server)
            with self._lock:
                self._clients.discard(client)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        asking, kept = False, b""
        while not self._closed.is_set():
            ready = select.select([client, server], [], [], LOOK_S)[0]
            if self.stalled:
                self._wait_out_the_stall()
                continue
            for end in ready:
                data = end.recv(1 << 16)
                if not data:
                    return
                if end is server:
                    asking = False
                    if not self.lose_replies:
                        now, later = self._split(data)
                        client.sendall(now)
                        kept += later
                        if later and self.cut:
                            self.reply_bytes, self.cut = None, False
                            self.cuts += 1
                            return
                    continue
                client.sendall(kept)
                kept = b""
                self.round_trips += not asking
                asking = True
                data = self._overheard(data)
                if self.before and self.before[0] in data:
                    act, self.before = self.before[1], None
                    act()
                    self._wait_out_the_stall()
                server.sendall(data)

    def _overheard(self, data: bytes) -> bytes:
        """Note the passwords and appends in a client's ``data``; returns it, spoilt where that is asked for."""
        if (auth := _AUTH.search(data)) is not None:
            self.passwords[auth[1].decode()] = auth[2].decode()
        at = data.find(b"\r\nXADD\r\n")
        if at < 0:
            return data
        self.appends += 1
        if not self.spoil or len(data) <= at + SPOILT_AT:
            return data
        self.spoil -= 1
        self.spoilt += 1
        return data[: at + SPOILT_AT] + bytes([data[at + SPOILT_AT] ^ 1]) + data[at + SPOILT_AT + 1 :]

    def _wait_out_the_stall(self) -> None:
        while self.stalled and not self._closed.wait(LOOK_S):
            pass

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        """What is passed on of a reply, and what is not."""
        if self.reply_bytes is None:
            return data, b""
        now, later = data[: self.reply_bytes], data[self.reply_bytes :]
        self.reply_bytes -= len(now)
        return now, later
