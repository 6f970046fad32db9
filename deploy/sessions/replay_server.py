"""The replay servers of a run: those of a cluster, which are there, or one of the run's own, which is kept at work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.supervision.restarts import Restarts
from actors.supervision.supervised import Supervised
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.memory import longest_value_bytes, rows_in_checkpoint, server_bytes
from deploy.run_directory.directory import RunDirectory
from deploy.server.embedded import EmbeddedServer
from deploy.server.private_dir import temporary_folder
from deploy.sessions.base import Notify
from replay.chunk import Schema
from replay.chunk_log import open_inspector

FROZEN_S = 60.0
"""How long the embedded server may be silent, though its process lives."""


class ExternalServers:
    """Servers that others keep at work. Their outages are shown, as the learner meets them."""

    def __init__(self, directory: RunDirectory, urls: Mapping[str, tuple[str, ...]], notify: Notify) -> None:
        """Connects to nothing yet. ``urls``: of the servers, by the role that uses them."""
        self._directory, self._notify = directory, notify
        self.urls = urls
        self.restarts = Restarts("the replay server", 0)
        self._down = 0

    def claim(self) -> None:
        """Claims the run's name on every server, in their order, so that of two runs the first server's wins.

        Raises:
            ConfigError: another run has it.
            LogError: a server does not answer.
        """
        for url in self.urls["learner"]:
            with contextlib.closing(open_inspector(url, self._directory.run)) as log:
                if not log.claim(self._directory.fences.nonce):
                    raise ConfigError(
                        f"another run {self._directory.run!r} has its keys on {log.url}: choose another --run"
                    )

    def tick(self) -> None:
        """Restarts what has died, where it is this run's."""

    def report_down(self, down: int) -> None:
        """Shows when servers stop or begin to answer the learner; ``down``: how many do not."""
        if down != self._down:
            self._down = down
            self._notify(
                f"replay servers that do not answer: {down}; their actors wait" if down else "all servers answer"
            )


class LocalServer(ExternalServers):
    """The embedded server of one run. Where it dies it is brought back, empty or with what its file has: the mirror has
    the rows, and the learner publishes again. One that stays silent is killed, and so restarted."""

    def __init__(
        self,
        directory: RunDirectory,
        server: EmbeddedServer,
        budget: int,
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes over a ``server`` that is started. ``budget``: the restarts that it may need."""
        super().__init__(directory, {role: (server.url(role),) for role in ("learner", "actor")}, notify)
        self.restarts = Restarts("the replay server", budget, clock)
        self._server, self._clock = server, clock
        self._process: Supervised[EmbeddedServer] = Supervised(self._start, self.restarts.died, clock)
        self._process.adopt(server)
        self._down_since_s = 0.0

    def tick(self) -> None:
        """Restarts the server once its wait is over.

        Raises:
            CrashLoopError: it died more often than its budget allows.
            ServerError: it does not come up.
        """
        if self._process.has_process and not self._server.alive():
            wait_s = self._process.died(RuntimeError("its process ended"))
            self._notify(f"the replay server died; it restarts in {wait_s:.1f} s")
        self._process.start_if_due()

    def _start(self) -> EmbeddedServer:
        self._server.start()
        self.claim()
        return self._server

    def report_down(self, down: int) -> None:
        if down != self._down:
            self._down_since_s = self._clock()
        elif down and self._clock() - self._down_since_s > FROZEN_S:
            self._down_since_s = self._clock()
            self._notify(f"the replay server has not answered for {FROZEN_S:.0f} s; it is killed")
            self._server.kill()
        super().report_down(down)


def open_servers(
    config: RunConfig, directory: RunDirectory, schema: Schema, notify: Notify, cleanup: contextlib.ExitStack
) -> ExternalServers:
    """Returns the run's servers: an embedded one is started, and ``cleanup`` ends it.

    Raises:
        ServerError: it does not come up.
    """
    if config.mode == "cluster":
        servers, actor_servers = config.redis.servers, config.redis.actor_servers
        return ExternalServers(directory, {"learner": servers, "actor": actor_servers or servers}, notify)
    if warning := temporary_folder()[1]:
        notify(warning)
    server = EmbeddedServer(
        directory.run,
        server_bytes(config, schema),
        _data_dir(config, directory, schema, notify),
        max_value_bytes=longest_value_bytes(config, schema),
    )
    cleanup.enter_context(server)
    cleanup.enter_context(directory.showing_replay_url(server.url("reader")))
    return LocalServer(directory, server, config.actors.restarts, notify)


def _data_dir(config: RunConfig, directory: RunDirectory, schema: Schema, notify: Notify) -> Path | None:
    """Returns where the embedded server keeps the rows that checkpoints are too small for; None where they hold
    them."""
    folder = directory.path / "redis"
    if rows_in_checkpoint(config, schema):
        return folder if folder.exists() else None  # the limit was raised since
    bound = f"checkpoint.rows_max_bytes = {config.checkpoint.rows_max_bytes:,}"
    notify(f"the replay memory is bigger than {bound}: its server keeps an append-only file in {folder}")
    return folder
