"""The learner's reports. Free of torch: the driver reads them, and would import torch for it (2 s, 175 MB)."""

from __future__ import annotations

from typing import NamedTuple

from learner.metrics import LearnerMetrics
from replay.errors import QherdError


class Diverged(QherdError, RuntimeError):
    """So many updates in a row had a loss or a gradient that is not finite that learning has come to nothing."""

    exit_code = 1


class Report(NamedTuple):
    """A learner's metrics, and its counts by reason over the whole run."""

    metrics: LearnerMetrics
    refused: dict[str, int]
    rows_lost: dict[str, int]
    notices: tuple[str, ...] = ()
    """Messages of the learner to the user, each once."""
    device: str = ""
    """What it learns on: CPU, or the GPU's name."""


class Resumed(NamedTuple):
    """Where a learner resumed from: the counters of its checkpoint, and the newest incarnation of each slot in it."""

    updates: int
    env_steps: int
    incarnations: dict[int, int]
