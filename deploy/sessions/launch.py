"""Before a run: what cannot work is refused, what can becomes a session of its mode."""

from __future__ import annotations

import contextlib

from deploy.config.models import RunConfig
from deploy.process.signals import Stop
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import Counts, Notify, Session
from deploy.sessions.inline import InlineSession
from deploy.sessions.ray_session import RaySession
from replay.chunk import Schema
from replay.chunk_log import open_inspector
from replay.chunk_log.protocol import LogError


def start_session(
    config: RunConfig, directory: RunDirectory, schema: Schema, notify: Notify, stop: Stop, counts: Counts
) -> Session:
    """Starts the session of ``config.mode``. Raises Interrupted where it was asked to stop meanwhile."""
    if config.mode == "inline":
        session = InlineSession(config, directory, schema, notify, counts)
        stop.check()
        return session
    return RaySession(config, directory, schema, notify, stop, counts)


def give_name_back(config: RunConfig, directory: RunDirectory) -> None:
    """Removes a new run in which nothing has run: its directory, and on a cluster's servers the keys that it claimed
    its name with."""
    if config.mode == "cluster":
        for url in config.redis.servers:
            with (
                contextlib.suppress(LogError, ValueError),
                contextlib.closing(open_inspector(url, directory.run)) as keys,
            ):
                if keys.nonce() == directory.fences.nonce:
                    keys.remove(keys.keys())
    directory.discard()
