"""Insert rate by the number of client processes and of servers: where it stops, and why."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.feed import Feed
from benchmarks.log_rate import SCHEMA
from benchmarks.result import Result
from deploy.server.embedded import EmbeddedServer
from replay.chunk_log.redis_log import RedisLog

RUN = "replay-clients"
CLIENTS, QUICK_CLIENTS, SERVERS = (1, 2, 4, 8), (1, 2), (1, 2)
MAX_CHUNKS = 200
SERVER_BYTES = 256 << 20
FULL = 0.9
"""A core or a machine that is busy for this share of the time is what stops the rate."""
HEADS = "clients  servers      rows/s   CPU of the busiest server   of a client   of the machine's cores"


class Load(NamedTuple):
    """One setting: rows per second, and the cores that each party kept busy."""

    clients: int
    servers: int
    rate: float
    server_cores: float
    client_cores: float
    cores: float

    def line(self) -> str:
        """For the table."""
        machine = f"{self.cores:.2f} of {_cores()}"
        return (
            f"{self.clients:7}  {self.servers:7}  {self.rate:10,.0f}   {self.server_cores:25.2f}"
            f"   {self.client_cores:11.2f}   {machine:>22}"
        )


def measure(quick: bool) -> list[Result]:
    """Each client is a process with a slot and a connection of its own; slots are dealt out among the servers.

    Clients send encoded chunks of the default size as fast as the answers come; nobody reads, a bound on the streams
    keeps the servers small.
    """
    seconds, repetitions = (0.2, 1) if quick else (2.0, 5)
    loads: dict[tuple[int, int], list[Load]] = {}
    for _ in range(repetitions):
        for servers in SERVERS:
            for clients in QUICK_CLIENTS if quick else CLIENTS:
                if clients >= servers:
                    loads.setdefault((clients, servers), []).append(_load(clients, servers, seconds))
    table = [Load(*(median(column) for column in zip(*some, strict=True))) for some in loads.values()]
    best = max(table, key=lambda load: load.rate)
    lines = (f"{SCHEMA.row_bytes}-byte rows, chunks of {_feed().rows}", HEADS, *(load.line() for load in table))
    rates = tuple(load.rate for load in loads[best.clients, best.servers])
    name = f"insert rate, {best.clients:g} clients, {best.servers:g} servers"
    return [Result(name, "rows/s", rates, notes=(*lines, *_why(table)))]


def _why(table: list[Load]) -> list[str]:
    """Where more clients, and where a second server, stop to help."""
    said = []
    for servers in SERVERS:
        rows = [load for load in table if load.servers == servers]
        best = max(rows, key=lambda load: load.rate)
        said.append(f"{servers} server(s): most at {best.clients:g} clients, {best.rate:,.0f} rows/s; {_bound(best)}")
    return said


def _bound(load: Load) -> str:
    if load.cores >= FULL * _cores():
        return f"the machine is full: {load.cores:.2f} of {_cores()} cores are busy"
    if load.server_cores >= FULL:
        return f"a server is one thread, and it is full: {load.server_cores:.2f} of a core"
    return f"each client waits for its answers: {load.client_cores:.2f} of a core, {load.server_cores:.2f} the server's"


def _load(clients: int, servers: int, seconds: float) -> Load:
    spawn = mp.get_context("spawn")
    with ExitStack() as stack:
        running = [stack.enter_context(EmbeddedServer(RUN, SERVER_BYTES)) for _ in range(servers)]
        ready, found = spawn.Barrier(clients + 1), spawn.Queue()
        for slot in range(clients):
            url = running[slot % servers].url("actor")
            process = spawn.Process(target=_send, args=(url, slot, seconds, ready, found), daemon=True)
            process.start()
            stack.callback(process.join)
        ready.wait(60)
        before, started = [_cpu_s(server.pid) for server in running], time.perf_counter()
        sent = [found.get(timeout=60 + seconds) for _ in range(clients)]
        elapsed = time.perf_counter() - started
        server_s = [_cpu_s(server.pid) - then for server, then in zip(running, before, strict=True)]
    rows, client_s = sum(count for count, _ in sent), [cpu for _, cpu in sent]
    cores = (sum(server_s) + sum(client_s)) / elapsed
    return Load(clients, servers, rows / elapsed, max(server_s) / elapsed, max(client_s) / elapsed, cores)


def _feed() -> Feed:
    return Feed(SCHEMA, RUN)


def _send(url: str, slot: int, seconds: float, ready: Any, found: Any) -> None:
    """One client: rows sent and CPU seconds used go to ``found``."""
    log, feed = RedisLog(url, RUN, MAX_CHUNKS), _feed()
    chunk_id, data = feed.next()
    log.append(slot, chunk_id, data)
    ready.wait(60)
    chunks, cpu, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        chunk_id = chunk_id._replace(seq=chunk_id.seq + 1)
        log.append(slot, chunk_id, data)
        chunks += 1
    found.put((chunks * feed.rows, time.process_time() - cpu))


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cores() -> int:
    return len(os.sched_getaffinity(0))
