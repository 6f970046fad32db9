"""The chunk log. ``protocol`` has what each may rely on; ``open_log`` connects to the log that a URL names.

One is on a server (``redis_log``), one in this process (``memory_log``), one over several others (``sharded_log``). A
further kind of server is a module here and a scheme in ``open_log``. Nothing here imports redis before it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from replay.chunk_log.inspector import RunInspector
    from replay.chunk_log.protocol import ChunkLog
    from replay.chunk_log.sharded_log import ServerHealth

__all__ = ["MAX_CHUNKS", "Role", "open_inspector", "open_log", "open_sharded_log"]

Role = Literal["actor", "publisher", "reader", "driver"]
READER_TIMEOUT_S, DRIVER_TIMEOUT_S = 1.0, 2.0
"""The learner's reader waits so long for progress of a server. To leave a slow one alone costs nothing (its chunks stay
where they are), to wait for it costs the updates of all others'. The driver waits so long before it restarts an actor:
as long as the others have calls in flight."""
MAX_CHUNKS = 1 << 16
_CONNECTIONS: dict[Role, dict[str, Any]] = {
    "actor": {},
    "publisher": {"keep": True},
    "reader": {"keep": True, "timeout_s": READER_TIMEOUT_S},
    "driver": {"timeout_s": DRIVER_TIMEOUT_S},
}
"""How each role is connected: ``keep`` is the learner's, see ``RedisClient``."""


def open_log(url: str, run: str, role: Role, max_chunks: int = MAX_CHUNKS) -> ChunkLog:
    """Returns a run's log on one server, for one thread. ``max_chunks``: of a slot that the server keeps at the most.

    Raises:
        UrlError: the URL names no server.
    """
    from replay.chunk_log.redis_log import RedisLog

    return RedisLog(url, run, max_chunks, **_CONNECTIONS[role])


def open_sharded_log(urls: Sequence[str], run: str, role: Role, health: ServerHealth | None = None) -> ChunkLog:
    """Returns a run's log over all of its servers; ``health``: see ``ShardedLog``."""
    from replay.chunk_log.sharded_log import ShardedLog

    return ShardedLog([open_log(url, run, role) for url in urls], health)


def open_inspector(url: str, run: str) -> RunInspector:
    """Returns a run's keys on one server, for whoever looks at the run from outside.

    Raises:
        UrlError: the URL names no server.
    """
    from replay.chunk_log.inspector import RunInspector

    return RunInspector(url, run)
