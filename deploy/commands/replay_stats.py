"""``qherd replay stats``: what the replay memory of a run holds, slot by slot, read from outside the run."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from pydantic import BaseModel
from rich.filesize import decimal
from rich.table import Table

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.config.models import RedisConfig
from deploy.monitoring.tables import print_table
from deploy.run_directory.target import Target, find_run, is_url, run_name
from replay.attached import find_description, slots_elsewhere
from replay.chunk import Chunk, Codec
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector, StreamContents
from replay.chunk_log.protocol import FENCE_SHIFT, Unavailable, UnusableServer
from replay.chunk_log.urls import public_url
from replay.description import RunDescription

WINDOW_S = 1.0
"""Between the two readings that give the rows per second."""


class ReplayStats(BaseModel):
    """Print what a run's replay memory holds, per slot: rows and bytes stored, rows per second sent, the newest weights
    acted with, incarnation, and chunks refused by reason. It reads only, and takes a second.

    A run of mode local is given by its directory, while it runs. A run on a server of your own is given by its
    directory, its name, or the server's URL.
    """

    given: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|URL")]
    """A run's directory or name, or a server's URL (redis://, rediss://, unix://)."""
    run: str | None = None
    """With a URL: the run's name. A server's only run needs none."""
    redis: RedisConfig = RedisConfig()
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(ReplayStats, args=arguments, prog="qherd replay stats", registry=as_written())
    return stats(call.given, call.run, call.redis, as_json=call.as_json)


@dataclass
class Line:
    """One slot. ``rows`` and ``bytes`` are stored in the log; ``rows`` is None where its chunks cannot be read."""

    slot: int
    rows: int | None
    bytes: int
    rows_per_second: float
    weight_version: int
    incarnation: int
    refused: Mapping[str, int]


def stats(given: str, name: str | None, redis: RedisConfig, *, as_json: bool) -> int:
    """Prints the statistics of a run, given by its directory, its name or its server's URL; returns the exit code."""
    if name is not None and not is_url(given):
        raise ConfigError(f"--run {name} goes with a server's URL, and {given} names a run already")
    target = _on_server(given, name) if is_url(given) else find_run(given, redis)
    with contextlib.ExitStack() as stack:
        given_servers = [
            stack.enter_context(contextlib.closing(open_inspector(url, target.run))) for url in target.urls
        ]
        about = find_description(given_servers, target.run)
        servers = [server for server in given_servers if _answers(server)]
        if elsewhere := slots_elsewhere(servers, about):
            shown = ", ".join(map(str, elsewhere))
            print(f"qherd: slots {shown} are on none of these servers; the run may have further ones", file=sys.stderr)
        lines = measure(servers, about, Codec(about.row_schema, target.run))
        figures = _figures(target, servers, about, lines)
    if as_json:
        print(json.dumps(figures))
    else:
        _print(figures)
    return 0


def _on_server(url: str, name: str | None) -> Target:
    """Returns the run ``name``, or the only run of the server."""
    if name is not None:
        return Target(run_name(name), (url,))
    with contextlib.closing(open_inspector(url, "any")) as server:
        try:
            runs = server.runs()
        except UnusableServer as error:
            raise ConfigError(f"{error}; give the run's name with --run") from error
    if len(runs) == 1:
        return Target(runs[0], (url,))
    if not runs:
        raise ConfigError(f"{public_url(url)} has no run of qherd")
    raise ConfigError(f"{public_url(url)} has {len(runs)} runs, choose one with --run: {', '.join(runs)}")


def _answers(server: RunInspector) -> bool:
    """Returns whether a server answers; prints on stderr where it does not."""
    try:
        server.alive()
    except Unavailable as error:
        print(f"qherd: left out: {error}", file=sys.stderr)
        return False
    return True


def measure(servers: Sequence[RunInspector], about: RunDescription, codec: Codec) -> list[Line]:
    """Reads every slot twice, WINDOW_S apart by this machine's monotonic clock: no other machine's clock matters."""
    first = {slot: (*_stored(servers, slot, codec), time.monotonic()) for slot in sorted(about.slots)}
    time.sleep(WINDOW_S)
    lines = []
    for slot, (server, stored, read_s) in first.items():
        newest, seen = server.newest(slot, codec), about.slots[slot]
        rate = rows_between(stored.newest, newest) / (time.monotonic() - read_s)
        lines.append(
            Line(
                slot,
                stored.rows,
                stored.bytes,
                round(rate, 1),
                newest.weight_version if newest else seen.weight_version,
                newest.incarnation if newest else seen.incarnation,
                seen.refused,
            )
        )
    return lines


def _stored(servers: Sequence[RunInspector], slot: int, codec: Codec) -> tuple[RunInspector, StreamContents]:
    """Returns the server that has the slot's stream, and what it holds."""
    return max(((server, server.stored(slot, codec)) for server in servers), key=lambda found: found[1].chunks)


def rows_between(before: Chunk | None, now: Chunk | None) -> int:
    """Returns the rows that an actor sent after ``before`` up to ``now``, by its own count, which each incarnation
    begins anew.

    Where nothing was stored before, at least what ``now`` holds.
    """
    if now is None:
        return 0
    if before is None:
        return now.rows
    return now.counters.rows - (before.counters.rows if before.incarnation == now.incarnation else 0)


def _figures(
    target: Target, servers: Sequence[RunInspector], about: RunDescription, lines: Sequence[Line]
) -> dict[str, Any]:
    rows = [line.rows for line in lines]
    published = [status.weights.version for server in servers if (status := server.status(0)).weights]
    return {
        "run": target.run,
        "servers": [server.url for server in servers],
        "alive": any(server.alive() for server in servers),
        "capacity_rows": about.capacity_rows,
        "env_steps": about.env_steps,
        "updates": about.updates,
        "slots": [asdict(line) for line in lines],
        "total": {
            "rows": None if None in rows else sum(row or 0 for row in rows),
            "bytes": sum(line.bytes for line in lines),
            "rows_per_second": round(sum(line.rows_per_second for line in lines), 1),
            "weight_version": max(published, default=0),
            "refused": dict(sum((Counter(line.refused) for line in lines), Counter())),
        },
    }


def _print(figures: Mapping[str, Any]) -> None:
    learner = "at work" if figures["alive"] else "gone (its credit has lapsed)"
    print(f"run {figures['run']} on {', '.join(figures['servers'])}")
    print(
        f"learner {learner}: {figures['updates']:,} updates, {figures['env_steps']:,} env steps, a mirror of "
        f"{figures['capacity_rows']:,} rows"
    )
    print_table(_table(figures))
    print("weights: learner's fence - number; of a slot the newest acted with, in total the newest published")


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table("slot", "rows", "bytes", "rows/s", "weights", "incarnation", "refused chunks", show_footer=True)
    for column in table.columns[:-1]:
        column.justify = "right"
    for line in figures["slots"]:
        table.add_row(str(line["slot"]), *_cells(line), str(line["incarnation"]), _reasons(line["refused"]))
    total = figures["total"]
    footers = ("total", *_cells(total), "", _reasons(total["refused"]))
    for column, footer in zip(table.columns, footers, strict=True):
        column.footer = footer
    return table


def _cells(line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    rows, version = line["rows"], line["weight_version"]
    return (
        "?" if rows is None else f"{rows:,}",
        decimal(line["bytes"]),
        f"{line['rows_per_second']:,.0f}",
        f"{version >> FENCE_SHIFT}-{version & ((1 << FENCE_SHIFT) - 1)}" if version else "none",
    )


def _reasons(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items())) or "none"
