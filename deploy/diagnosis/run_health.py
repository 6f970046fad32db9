"""A run at work: whether it is well, by what it writes, counts and answers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console

from deploy.config.errors import ConfigError
from deploy.config.models import RedisConfig, RunConfig
from deploy.diagnosis.bottleneck import Diagnosis, Window, diagnose, measured, window_of
from deploy.diagnosis.checks.check import Check, guarded
from deploy.diagnosis.checks.machine import versions
from deploy.diagnosis.checks.server import round_trip
from deploy.planning.memory import megabytes
from deploy.process.host import usable_cores
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.files import CONFIG_BYTES
from deploy.run_directory.target import find_run
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import LogError
from replay.foreign import Unreadable, read_object

LOOK_S = 30.0
"""How much of a run's past is looked at."""
ENOUGH_S = 5.0
"""A shorter window is not conclusive: a run that is younger is waited for."""
PATIENCE_S = 60.0
STALE_S = 15.0
"""A driver writes a row a second: one that has not for so long is stuck."""
BUSY_S = 300.0
"""An inline run writes none while it evaluates, and no run while it starts or waits for room."""
SERVER_S = 1.0


def measure_run(directory: RunDirectory, config: RunConfig, lock_owner: str | None) -> tuple[Window, Diagnosis] | None:
    rows = _rows_when_enough(directory) if lock_owner is not None else directory.history.rows()
    bounds = window_of(rows, LOOK_S)
    if bounds is None:
        return None
    window = measured(*bounds)
    if config.mode == "inline":
        why = "the mode inline has learner, actors and evaluator take turns in one process"
        return window, Diagnosis("none", why, ("use --mode local for speed",))
    if lock_owner is not None:
        window = _with_server(window, directory)
    if config.mode == "local":
        window = replace(window, cores=usable_cores())
    diagnosis = diagnose(window, config)
    scale = f"qherd scale {directory.given_path}"
    changes = tuple(change.replace("qherd scale RUN", scale) for change in diagnosis.change)
    return window, replace(diagnosis, change=changes)


def _rows_when_enough(directory: RunDirectory) -> list[Mapping[str, float]]:
    """Returns the run's rows, once they cover some seconds of learning."""
    end, said = time.monotonic() + PATIENCE_S, False
    while True:
        rows = directory.history.rows()
        bounds = window_of([row for row in rows if row.get("updates", 0) > 0], LOOK_S)
        enough = bounds is not None and bounds[1]["wall_s"] - bounds[0]["wall_s"] >= ENOUGH_S
        if enough or time.monotonic() > end or directory.lock.owner() is None:
            return rows
        if not said:
            said = True
            Console(stderr=True).print("the run has only begun: waiting for some seconds of learning", style="dim")
        time.sleep(0.5)


def _with_server(window: Window, directory: RunDirectory) -> Window:
    """Adds the server's round trip and CPU utilisation to the window, the maximum over servers, where they can be
    measured."""
    busy, trips = list[float](), list[float]()
    with contextlib.suppress(ConfigError, LogError, OSError):
        # not the directory's own configuration: it keeps no password, the environment has it
        for url in find_run(str(directory.given_path), RedisConfig()).urls:
            with contextlib.closing(open_inspector(url, directory.run)) as server:
                trips.append(round_trip(server))
                before, began = _server_cpu_s(server, url), time.monotonic()
                if before is not None:
                    time.sleep(SERVER_S)
                    after = _server_cpu_s(server, url)
                    if after is not None:
                        busy.append((after - before) / (time.monotonic() - began))
    return replace(window, round_trip_s=max(trips, default=None), server_busy=max(busy, default=None))


def _server_cpu_s(server: RunInspector, url: str) -> float | None:
    """Returns the CPU seconds of the server so far: by its INFO, or, of an embedded one, by the process behind its
    socket."""
    with contextlib.suppress(LogError):
        return server.cpu_seconds()
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return None
    with contextlib.suppress(OSError, ValueError, IndexError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(unquote(parts.path))
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return None


def checks_of_run(directory: RunDirectory, config: RunConfig, lock_owner: str | None) -> Iterator[Check]:
    written = directory.written
    yield versions(written.get("versions"))
    rows = directory.history.rows()
    newest = rows[-1] if rows else {}
    if lock_owner is not None:
        yield from silence_checks(directory, config, lock_owner)
    yield from count_checks(newest)
    if "log_memory_limit_bytes" in newest:
        used, bound = newest["log_memory_bytes"], newest["log_memory_limit_bytes"]
        state, remedy = ("warning", "raise its maxmemory") if used > 0.9 * bound else ("ok", "")
        yield Check("server memory", state, f"{megabytes(used)} of {megabytes(bound)}", remedy)  # type: ignore[arg-type]
    if config.mode == "cluster" and lock_owner is not None:
        yield from guarded("server", lambda: credit_checks(directory))


def silence_checks(directory: RunDirectory, config: RunConfig, lock_owner: str) -> Iterator[Check]:
    """Checks how old the newest row is: a driver locks the directory anew when it starts, and then writes row after
    row."""
    started_s = (directory.path / "lock").stat().st_mtime
    metrics = directory.path / "metrics.jsonl"
    newest_s = metrics.stat().st_mtime if metrics.exists() else 0.0
    silent_s, starts = time.time() - max(started_s, newest_s), newest_s <= started_s
    if silent_s <= (BUSY_S if starts or config.mode == "inline" else STALE_S):
        return
    if starts:
        found = f"it started {silent_s:.0f} s ago, and there are none yet"
        yield Check("figures", "warning", found, f"what its driver ({lock_owner}) prints says what it waits for")
    else:
        yield Check("figures", "problem", f"the newest are {silent_s:.0f} s old", f"its driver ({lock_owner}) is stuck")


def credit_checks(directory: RunDirectory) -> Iterator[Check]:
    for url in find_run(str(directory.given_path), RedisConfig()).urls:
        with contextlib.closing(open_inspector(url, directory.run)) as server:
            alive = server.alive()
            found = f"{server.url} answers; the learner {'renews' if alive else 'does not renew'} its credit there"
            yield Check("server", "ok" if alive else "warning", found)


COUNTS = (
    ("log_full", "the server was nearly full {:,.0f} times", "raise its maxmemory, or lower replay.log_rows"),
    ("log_unavailable", "{:,.0f} calls of the learner were not answered", "look at the server and the network"),
    ("actor_restarts", "actors were restarted {:,.0f} times", "the run's own messages say of what they died"),
    ("learner_restarts", "the learner was restarted {:,.0f} times", "the run's own messages say of what it died"),
    ("server_restarts", "the server was restarted {:,.0f} times", "see its memory"),
    ("env_rebuilds", "environments raised {:,.0f} times", "logs/ in the run's folder has what they raised"),
    ("updates_skipped", "{:,.0f} updates were not finite", "lower learner.lr or learner.reward_scale"),
    ("checkpoint_failures", "{:,.0f} checkpoints could not be written", "make room on the disk"),
    ("write_failures", "{:,.0f} rows could not be written", "make room on the disk"),
    ("track_lost", "{:,.0f} rows are in no tracker's record", "look whether W&B or MLflow answers"),
)


def count_checks(newest: Mapping[str, float]) -> Iterator[Check]:
    """Checks what went wrong since the run began, by its own counts."""
    found = [(text.format(newest[name]), remedy) for name, text, remedy in COUNTS if newest.get(name)]
    for text, remedy in found:
        yield Check("counts", "warning", text, remedy)
    if newest and not found:
        yield Check("counts", "ok", "nothing was restarted, skipped or refused for want of room")


def how_it_ended(path: Path) -> str:
    try:
        reason = str(read_object(path / "summary.json", CONFIG_BYTES)["exit_reason"])[:200]
    except (FileNotFoundError, Unreadable, KeyError):
        reason = "killed"
    return "killed" if reason == "running" else reason
