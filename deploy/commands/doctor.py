"""``qherd doctor``: is all here that a run needs; and of a run at work, what holds it up and what to change."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.text import Text

from deploy.config.models import ConfigError, RedisConfig, RunConfig
from deploy.diagnosis.bottleneck import Actors, Diagnosis, Window, diagnose, measured, window_of
from deploy.diagnosis.checks import Check, guarded, preflight, round_trip, versions
from deploy.planning.memory import megabytes
from deploy.process.host import usable_cores
from deploy.run_directory.directory import CONFIG_BYTES, RunDirectory
from deploy.run_directory.target import find_run
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import LogError
from replay.foreign import Unreadable, read_object

LOOK_S = 30.0
"""How much of a run's past is looked at."""
ENOUGH_S = 5.0
"""Less than this says little: a run that is younger is waited for."""
PATIENCE_S = 60.0
STALE_S = 15.0
"""A driver writes a row a second: one that has not for so long is stuck."""
BUSY_S = 300.0
"""An inline run writes none while it evaluates, and no run while it starts or waits for room."""
SERVER_S = 1.0
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(config: RunConfig, *, as_json: bool) -> int:
    """Check what a run with this configuration needs; 0 where there is no problem, else 1."""
    return _show(preflight(config), None, as_json, {})


def doctor_of_run(path: Path, *, as_json: bool) -> int:
    """Look at a run: whether it is well, and what bounds it; 0 where it is at work or over in order, else 1."""
    directory = RunDirectory.open(path)
    config, holder = directory.config, directory.holder()
    about: dict[str, Any] = {"run": directory.run, "holder": holder, "at_work": holder is not None}
    if holder is None:
        about["over"] = _how_it_ended(path)
    elif not as_json:
        print(f"{path} is at work, in {holder}")
    checks = list(_checks_of_run(directory, config, holder))
    found = _look(directory, config, holder)
    if found is not None:
        window, diagnosis = found
        about |= {"window": asdict(window), "diagnosis": asdict(diagnosis)}
        if window.actors is not None:
            about["window"]["actors"] = window.actors._asdict()
    return _show(iter(checks), found, as_json, about)


def _look(directory: RunDirectory, config: RunConfig, holder: str | None) -> tuple[Window, Diagnosis] | None:
    rows = _rows_when_enough(directory) if holder is not None else directory.rows()
    bounds = window_of(rows, LOOK_S)
    if bounds is None:
        return None
    window = measured(*bounds)
    if config.mode == "inline":
        why = "the mode inline has learner, actors and evaluator take turns in one process"
        return window, Diagnosis("none", why, ("use --mode local for speed",))
    if holder is not None:
        window = _with_server(window, directory)
    if config.mode == "local":
        window = replace(window, cores=usable_cores())
    diagnosis = diagnose(window, config)
    named = tuple(change.replace("qherd scale RUN", f"qherd scale {directory.shown}") for change in diagnosis.change)
    return window, replace(diagnosis, change=named)


def _rows_when_enough(directory: RunDirectory) -> list[Mapping[str, float]]:
    """The run's rows, once they tell of some seconds of learning."""
    end, said = time.monotonic() + PATIENCE_S, False
    while True:
        rows = directory.rows()
        bounds = window_of([row for row in rows if row.get("updates", 0) > 0], LOOK_S)
        enough = bounds is not None and bounds[1]["wall_s"] - bounds[0]["wall_s"] >= ENOUGH_S
        if enough or time.monotonic() > end or directory.holder() is None:
            return rows
        if not said:
            said = True
            Console(stderr=True).print("the run has only begun: waiting for some seconds of learning", style="dim")
        time.sleep(0.5)


def _with_server(window: Window, directory: RunDirectory) -> Window:
    """How far the server is away and how busy, as far as it lets us know; of several servers the busiest."""
    busy, trips = list[float](), list[float]()
    with contextlib.suppress(ConfigError, LogError, OSError):
        # not the directory's own configuration: it keeps no password, the environment has it
        for url in find_run(str(directory.shown), RedisConfig()).urls:
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
    """CPU seconds of the server so far: by its INFO, or, of an embedded one, by the process behind its socket."""
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


def _checks_of_run(directory: RunDirectory, config: RunConfig, holder: str | None) -> Iterator[Check]:
    written = directory.written
    yield versions(written.get("versions"))
    rows = directory.rows()
    newest = rows[-1] if rows else {}
    if holder is not None:
        yield from _silence(directory, config, holder)
    yield from _losses(newest)
    if "log_memory_limit_bytes" in newest:
        used, bound = newest["log_memory_bytes"], newest["log_memory_limit_bytes"]
        state, remedy = ("warning", "raise its maxmemory") if used > 0.9 * bound else ("ok", "")
        yield Check("server memory", state, f"{megabytes(used)} of {megabytes(bound)}", remedy)  # type: ignore[arg-type]
    if config.mode == "cluster" and holder is not None:
        yield from guarded("server", lambda: _server_check(directory))


def _silence(directory: RunDirectory, config: RunConfig, holder: str) -> Iterator[Check]:
    """A driver locks the directory anew when it starts, and then writes row after row."""
    started_s = (directory.path / "lock").stat().st_mtime
    metrics = directory.path / "metrics.jsonl"
    newest_s = metrics.stat().st_mtime if metrics.exists() else 0.0
    silent_s, starts = time.time() - max(started_s, newest_s), newest_s <= started_s
    if silent_s <= (BUSY_S if starts or config.mode == "inline" else STALE_S):
        return
    if starts:
        found = f"it started {silent_s:.0f} s ago, and there are none yet"
        yield Check("figures", "warning", found, f"what its driver ({holder}) prints says what it waits for")
    else:
        yield Check("figures", "problem", f"the newest are {silent_s:.0f} s old", f"its driver ({holder}) is stuck")


def _server_check(directory: RunDirectory) -> Iterator[Check]:
    for url in find_run(str(directory.shown), RedisConfig()).urls:
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
)


def _losses(newest: Mapping[str, float]) -> Iterator[Check]:
    """What went wrong since the run began, by its own counts."""
    found = [(text.format(newest[name]), remedy) for name, text, remedy in COUNTS if newest.get(name)]
    for text, remedy in found:
        yield Check("counts", "warning", text, remedy)
    if newest and not found:
        yield Check("counts", "ok", "nothing was restarted, skipped or refused for want of room")


def _how_it_ended(path: Path) -> str:
    try:
        reason = str(read_object(path / "summary.json", CONFIG_BYTES)["exit_reason"])[:200]
    except (FileNotFoundError, Unreadable, KeyError):
        reason = "killed"
    return "killed" if reason == "running" else reason


def _show(
    checks: Iterable[Check], found: tuple[Window, Diagnosis] | None, as_json: bool, about: Mapping[str, Any]
) -> int:
    """Print each check as it comes, or all as JSON; the exit code."""
    console, seen = Console(markup=False, highlight=False, soft_wrap=True), list[Check]()
    if not as_json and "over" in about:
        console.print(f"{about['run']} is not at work; it ended: {about['over']}")
    for check in checks:
        seen.append(check)
        if not as_json:
            line = Text(f"{check.state:8}", STYLES[check.state]) + Text(f" {check.name:13}  {check.found}", "default")
            console.print(line)
            if check.remedy:
                console.print(f"{'':24}-> {check.remedy}")
    problems = sum(check.state == "problem" for check in seen)
    if as_json:
        print(json.dumps({**about, "checks": [check._asdict() for check in seen], "problems": problems}))
        return 1 if problems else 0
    if found is not None:
        _print_window(console, *found)
    elif about:
        console.print("there are no figures yet to judge its speed by")
    if not about:
        console.print(f"{problems} problem(s)" if problems else "all is here that a run needs")
    return 1 if problems else 0


def _print_window(console: Console, window: Window, diagnosis: Diagnosis) -> None:
    rates = f"{window.env_steps_per_s:,.0f} env steps/s, {window.updates_per_s:,.0f} updates/s"
    console.print(f"\nthe last {window.seconds:.0f} s: {rates}, {window.actors_alive} actor(s)")
    if window.actors is not None:
        console.print(f"  actors   {_actors_line(window.actors)}")
    rest = 1 - sum(window.learner.values())
    phases = {name: share for name, share in window.learner.items() if share >= 0.005} | (
        {"work": rest} if rest > 0.05 else {}
    )
    shown = ", ".join(f"{name} {share:.0%}" for name, share in phases.items())
    console.print(f"  learner  {shown}  (waiting for a core {window.learner_starved:.0%})")
    if window.round_trip_s is not None:
        busy = "" if window.server_busy is None else f", busy {window.server_busy:.0%} of a core"
        console.print(f"  server   {window.round_trip_s * 1e6:,.0f} us a round trip{busy}")
    console.print(Text(f"\nbottleneck: {diagnosis.bottleneck}", "bold"))
    console.print(f"  {diagnosis.why}")
    for change in diagnosis.change:
        console.print(f"  -> {change}")


def _actors_line(actors: Actors) -> str:
    return (
        f"waiting for credit {actors.waiting:.0%}, env {actors.env:.0%}, own computing {actors.own:.0%}, "
        f"server {actors.log:.0%}, weights {actors.weights:.0%}  "
        f"(on a core {actors.on_core:.0%}, waiting for one {actors.starved:.0%})"
    )
