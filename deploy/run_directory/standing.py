"""How a run stands: at work, ended, or killed, and how far it has come. By its files alone, so from any terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.config.errors import RunDirError
from deploy.run_directory.directory import RunDirectory

State = Literal["at work", "solved", "out of budget", "interrupted", "failed", "killed", "damaged"]
AT_WORK: State = "at work"
KILLED = "killed: no process has it, and it has not said how it ended"


@dataclass(frozen=True)
class Standing:
    """One run. What is not known of it is None. ``greedy`` is the newest evaluation's mean, ``best`` that of the best
    policy, which it was chosen by."""

    path: Path
    state: State
    ended: str = ""
    env: str | None = None
    seed: int | None = None
    env_steps: int | None = None
    updates: int | None = None
    wall_s: float | None = None
    greedy: float | None = None
    best: float | None = None


def standing_of(path: Path) -> Standing:
    """Returns how the run in a directory stands; ``damaged`` where what it holds cannot be read.

    Raises:
        RunDirError: the directory is no run's.
    """
    directory = RunDirectory.open(path)
    owner, summary = directory.lock.owner(), directory.summary()  # in this order: the summary is written before the end
    try:
        config, newest = directory.config, directory.history.newest()
        manifest = directory.best.manifest() or {}
    except RunDirError as error:
        return Standing(path, "damaged", str(error))
    state, ended = _end(summary) if owner is None else (AT_WORK, owner)
    progress: Mapping[str, Any] = newest if owner is not None or not summary else {**newest, **summary}
    return Standing(
        path,
        state,
        ended,
        config.env.id,
        config.seed,
        _count(progress.get("env_steps")),
        _count(progress.get("updates")),
        _number(progress.get("wall_s")),
        _number(newest.get("greedy_return")),
        _number(manifest.get("mean")),
    )


def _end(summary: Mapping[str, Any]) -> tuple[State, str]:
    """Returns how a run ended that nobody has any more: in a word, and in its own words."""
    reason = summary.get("exit_reason")
    if not isinstance(reason, str) or reason == "running":
        return "killed", KILLED
    for state, beginning in ENDS.items():
        if reason.startswith(beginning):
            return state, reason
    return "failed", reason


ENDS: dict[State, str] = {"solved": "solved", "out of budget": "budget", "interrupted": "interrupted"}
"""How the reasons of runs begin that did not fail."""


def ended_well(reason: object) -> bool:
    """Returns whether a run that ended for this reason ended as it was meant to: solved, or out of budget."""
    return isinstance(reason, str) and _end({"exit_reason": reason})[0] in ("solved", "out of budget")


def _number(value: object) -> float | None:
    """Returns a finite number; None for all else, since anybody may have written it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
