"""Checks of the replay servers: version, memory policy, room, and how far away they are."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator

from deploy.config.models import SERVER_OPTIONS, RunConfig
from deploy.diagnosis.checks.check import Check, guarded
from deploy.planning.memory import (
    chunk_bytes,
    megabytes,
    network_bytes,
    server_bytes,
)
from deploy.planning.preconditions import check_values
from deploy.server.binary import find_server
from deploy.server.embedded import EmbeddedServer
from replay.chunk import Schema
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector

TRIES = 50
SLOW_S = 0.002
"""A round trip that takes longer costs actors of fast environments more than their steps."""


def server_checks(config: RunConfig, schema: Schema | None) -> Iterator[Check]:
    if config.mode == "local":
        began = time.perf_counter()
        with EmbeddedServer("doctor", 8 << 20) as server:
            started_s = time.perf_counter() - began
            with contextlib.closing(open_inspector(server.url("learner"), "doctor")) as log:
                log.check()
                took_s = round_trip(log)
        shown_version = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=False).stdout
        version = " ".join(shown_version.split()[:3])
        yield Check(
            "server",
            "ok",
            f"{version}, noeviction, up in {started_s:.1f} s; a round trip takes {took_s * 1e6:,.0f} us",
        )
        if schema is not None:
            yield from guarded("values", lambda: _values(config, schema))
        return
    if not config.redis.servers:
        yield Check("server", "problem", "the cluster mode has none", f"give {SERVER_OPTIONS}")
    planned = server_bytes(config, schema) // max(1, len(config.redis.servers)) if schema is not None else 0
    checks = [
        each
        for url in config.redis.servers
        for each in guarded("server", lambda url=url: iter([server_check(url, planned)]))  # type: ignore[misc]
    ]
    yield from checks
    if schema is not None and not any(each.state == "problem" for each in checks):
        yield from guarded("values", lambda: _values(config, schema))


def _values(config: RunConfig, schema: Schema) -> Iterator[Check]:
    check_values(config, schema)
    sizes = f"a chunk has at most {chunk_bytes(config, schema):,} B, the weights {network_bytes(config, schema):,} B"
    yield Check("values", "ok", f"{sizes}: the server takes both")


def server_check(url: str, planned: int) -> Check:
    """Checks one of the cluster's servers: version, memory policy, room, and how far away it is."""
    with contextlib.closing(open_inspector(url, "doctor")) as log:
        log.check()
        round_trip_s, memory = round_trip(log), log.memory()
    found = f"{log.url} answers in {round_trip_s * 1e6:,.0f} us; noeviction"
    if memory is None:
        return Check("server", "warning", f"{found}, no maxmemory", f"set one: this run wants {megabytes(planned)}")
    room = memory.bound - memory.used
    found += f"; {megabytes(room)} of {megabytes(memory.bound)} are free"
    if room < planned:
        return Check(
            "server",
            "warning",
            f"{found}, this run wants {megabytes(planned)}",
            "raise its maxmemory, or lower --replay.log_rows",
        )
    if round_trip_s > SLOW_S:
        return Check(
            "server", "warning", found, "slow: run qherd near it, or send bigger chunks (--actors.chunk_steps)"
        )
    return Check("server", "ok", found)


def round_trip(server: RunInspector) -> float:
    """Returns the seconds of one exchange with the server: the median of some."""
    took = []
    for _ in range(TRIES):
        began = time.perf_counter()
        server.ping()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
