"""The embedded server of ``local`` mode: a Valkey or Redis that only its owner can reach and that ends with its owner.

It listens on a Unix socket in a private directory, on no port; each role has a generated password and only the rights
it needs; passwords are never in an argument list, an environment or, in clear, on a disk. On Linux the kernel kills
the server when the process that started it ends, however that ends.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.config.errors import ServerError
from deploy.process.children import dying_with_parent
from deploy.server.acl import acl_rules
from deploy.server.binary import find_server
from deploy.server.private_dir import PrivateDir, remove_stale_dirs

MIN_VALUE_BYTES = 1 << 20
"""The least that a server can be set to take as one value."""
CLIENTS_SHARE = "40%"
"""What requests that are not whole and replies that are not fetched may take of a server's memory, all clients'
together: beyond it those with most of it are cut off, but not the learner. The launchers' servers have the same."""
MIN_MEMORY_BYTES = 2 * 2**20
"""An empty server already uses about 1 MB: below this it could refuse the first write."""
START_DEADLINE_S = 10.0
LOAD_DEADLINE_S = 600.0
"""A server that answers LOADING (it reads its AOF) is making progress: it gets this long."""
_LOG_TAIL_LINES = 15


class ServerStartError(ServerError):
    """The server was found but did not come up."""


class EmbeddedServer:
    """One server process, its private directory and its passwords.

    ``start()`` after a crash brings it back at the same URLs (empty, unless it has a ``data_dir``); ``stop()`` ends it
    and removes the directory. As a context manager it does both.

    Args:
        run: the run whose keys ``qherd:{run}:*`` the roles may touch.
        maxmemory_bytes: bound on the server's memory; at the bound, writes are refused (``noeviction``).
        data_dir: where to keep an append-only file; without it nothing is stored.
        binary: the server to run; default: :func:`find_server`.
        roles: ACL rules by role; default: :func:`acl_rules`.
        max_value_bytes: the longest value that may be sent; at least MIN_VALUE_BYTES. Whoever begins to send a longer
            one is cut off: a request that is never finished holds memory. None leaves the server's 512 MB.

    Raises:
        ValueError: a run name or memory bound that cannot work.
        ServerMissingError: no usable server on this machine.
    """

    def __init__(
        self,
        run: str,
        maxmemory_bytes: int,
        data_dir: Path | None = None,
        *,
        binary: Path | None = None,
        roles: Mapping[str, str] | None = None,
        max_value_bytes: int | None = None,
    ) -> None:
        if maxmemory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(f"maxmemory_bytes={maxmemory_bytes}: a server needs at least {MIN_MEMORY_BYTES}")
        self._roles = dict(acl_rules(run) if roles is None else roles)
        self._passwords = {role: secrets.token_urlsafe(32) for role in self._roles}
        self._maxmemory_bytes, self._max_value_bytes = maxmemory_bytes, max_value_bytes
        self._data_dir = data_dir.resolve() if data_dir else None
        self._binary = binary or find_server()
        self._home: PrivateDir | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server.

        Raises:
            ServerError: it was not started.
        """
        if self._process is None:
            raise ServerError("the embedded server was not started: call start() first")
        return self._process.pid

    def url(self, role: str) -> str:
        """Returns the redis-py URL with the role's name and password: a secret, never to be printed.

        Raises:
            ValueError: unknown role.
            ServerError: the server was not started.
        """
        if role not in self._passwords:
            raise ValueError(f"role {role!r}: this server has {', '.join(sorted(self._passwords))}")
        return f"unix://{role}:{self._passwords[role]}@{quote(str(self._socket()))}"

    def alive(self) -> bool:
        """Returns whether the server's process runs (a frozen one does, too)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises:
            ServerStartError: it runs already, this is not the main thread, or the server ended or stayed silent (then
                the message has the end of its log).
            NoFolderError: there is no folder for its socket.
        """
        if self.alive():
            raise ServerStartError(f"the embedded server runs already, as process {self.pid}")
        if threading.current_thread() is not threading.main_thread():
            # The parent-death signal fires when the *thread* that forked ends.
            raise ServerStartError("start the embedded server from the main thread: it ends with its starting thread")
        if self._home is None:
            remove_stale_dirs()
            self._home = PrivateDir()
            atexit.register(self.stop)
        try:
            self._launch(self._home.path)
            self._await_answer()
        except BaseException:
            self.stop(grace_s=0)
            raise

    def kill(self) -> None:
        """Ends a server that does not answer, and leaves its directory for ``start()``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, grace_s: float = 5.0) -> None:
        """Ends the server, by SIGKILL if SIGTERM did not within ``grace_s``, and removes its directory. Idempotent."""
        if self._home is None or not self._home.is_mine():
            return
        if self._process is not None:
            _end(self._process, grace_s)
            self._process = None
        self._home.remove()
        self._home = None
        atexit.unregister(self.stop)

    def _socket(self) -> Path:
        if self._home is None:
            raise ServerError("the embedded server was not started: call start() first")
        return self._home.path / "server.sock"

    def _launch(self, home: Path) -> None:
        conf = home / "server.conf"
        _write_private(conf, self._config(home))
        command = [str(self._binary), str(conf)]
        command = dying_with_parent(command, signal.SIGKILL)
        with (home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                env=_environment(),
                start_new_session=True,  # the terminal's Ctrl-C is for the driver, which stops the server last
            )

    def _config(self, home: Path) -> str:
        """Returns the server's configuration file."""
        users = [
            f"user {role} reset on #{hashlib.sha256(self._passwords[role].encode()).hexdigest()} {rules}"
            for role, rules in self._roles.items()
        ]
        storage = ["appendonly no", f"dir {_quoted(home)}"]
        if self._data_dir:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            storage = ["appendonly yes", "appendfsync everysec", f"dir {_quoted(self._data_dir)}"]
        lines = [
            "port 0",
            f"unixsocket {_quoted(self._socket())}",
            "unixsocketperm 600",
            "daemonize no",
            "databases 1",
            f"maxmemory {self._maxmemory_bytes}",
            "maxmemory-policy noeviction",
            *self._request_bounds(),
            'save ""',
            *storage,
            "user default reset off",
            *users,
        ]
        return "\n".join(lines) + "\n"

    def _request_bounds(self) -> tuple[str, ...]:
        if self._max_value_bytes is None:
            return ()
        value = max(self._max_value_bytes, MIN_VALUE_BYTES)
        return (
            f"proto-max-bulk-len {value}",
            f"client-query-buffer-limit {value + MIN_VALUE_BYTES}",
            f"maxmemory-clients {CLIENTS_SHARE}",
        )

    def _await_answer(self) -> None:
        """Pings until PONG; LOADING counts as progress."""
        role = next(iter(self._roles))
        started = time.monotonic()
        with redis.Redis.from_url(self.url(role), socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            deadline_s, answer = START_DEADLINE_S, "it did not answer"
            while time.monotonic() - started < deadline_s:
                if not self.alive():
                    raise self._start_error("the embedded server ended while starting")
                try:
                    client.ping()
                except redis.BusyLoadingError:
                    deadline_s, answer = LOAD_DEADLINE_S, "it is still loading its append-only file"
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    answer = str(error)
                else:
                    return
                time.sleep(0.01)
        raise self._start_error(f"the embedded server was not ready within {deadline_s:g} s: {answer}")

    def _start_error(self, what: str) -> ServerStartError:
        log = (self._socket().parent / "server.log").read_text(errors="replace").splitlines()
        tail = "\n".join(f"  {line}" for line in log[-_LOG_TAIL_LINES:]) or "  (empty)"
        return ServerStartError(f"{what} ({self._binary}). The end of its log:\n{tail}")


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Sends SIGTERM, which lets the server write its append-only file out, then SIGKILL."""
    process.terminate()
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """Returns next to nothing: none of our environment's secrets is meant for the server."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}
    return {"LC_ALL": "C", **kept}


def _quoted(path: Path) -> str:
    """As a string of the server's configuration file."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
