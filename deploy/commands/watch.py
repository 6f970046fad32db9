"""``qherd watch``: the live table of a run that another terminal or a cluster's job has started, until it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel

from deploy.config.cli_types import as_written
from deploy.monitoring.display import Display
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.standing import standing_of

POLL_S = 0.5
QUIET_S = 10.0
"""A run that nobody's lock is seen of, as on some network file systems, is over when it wrote no row for so long."""
LONGEST_S = 1e9
"""No run has been at work for longer, whatever its rows have: thirty years."""


class Watch(BaseModel):
    """Show a run's live table until it ends, and then how it ended. It reads the run's directory and touches nothing:
    Ctrl-C ends the watching, never the run.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory, on this machine or on a file system that is shared."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Watch, args=arguments, prog="qherd watch", registry=as_written())
    return watch(RunDirectory.open(call.run))


def watch(directory: RunDirectory) -> int:
    """Shows a run until it ends; returns the exit code.

    Raises:
        RunDirError: what it holds cannot be read.
    """
    row = directory.history.newest()
    worked_s = min(max(0.0, row.get("wall_s", 0.0)), LONGEST_S)
    with Display(directory.run, directory.config, worked_s=worked_s) as display:
        if row:
            display.update(row)
        else:
            display.notify("waiting for its first row of metrics")
        _follow(directory, display, row)
        standing = standing_of(directory.given_path)
        display.notify(standing.ended)
    return 0


def _follow(directory: RunDirectory, display: Display, row: Mapping[str, float]) -> None:
    """Shows new rows until the run is over."""
    seen_s = time.monotonic()
    while directory.lock.owner() is not None or (not _ended(directory) and time.monotonic() - seen_s < QUIET_S):
        time.sleep(POLL_S)
        newest = directory.history.newest()
        if newest != row:
            row, seen_s = newest, time.monotonic()
            display.update(row)


def _ended(directory: RunDirectory) -> bool:
    """Returns whether the run has said how it ended, after its newest row."""
    try:
        summary = (directory.path / "summary.json").stat().st_mtime
        return summary >= (directory.path / "metrics.jsonl").stat().st_mtime
    except OSError:
        return False
