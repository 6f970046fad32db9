"""What the learner reports. Free of torch: the driver reads it, and would import torch for it (2 s, 175 MB)."""

from __future__ import annotations

from typing import NamedTuple

from replay.errors import QherdError


class Diverged(QherdError, RuntimeError):
    """Update after update has a loss or a gradient that is not finite."""

    exit_code = 1


class Report(NamedTuple):
    """Totals so far, rates over the last slice, and counts by reason; names as in learner/catalogue.py."""

    figures: dict[str, float]
    refused: dict[str, int]
    rows_lost: dict[str, int]
    told: tuple[str, ...] = ()
    """What the learner has to tell the user, once."""


class Resumed(NamedTuple):
    """Where a learner goes on from: the counters of its checkpoint, and the newest incarnation of each slot in it."""

    updates: int
    env_steps: int
    incarnations: dict[int, int]
