"""What the three modes have in common: a session that is advanced until the run is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from actors.evaluator import Verdict
from deploy.config import RunConfig
from deploy.run_dir import RunDirectory
from replay.config import ReplayConfig

Say = Callable[[str], None]


class RunFailedError(RuntimeError):
    """A run that cannot go on; the text says which part failed of what. ``details`` is that part's own traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Progress(NamedTuple):
    """What one advance brought: the newest figures, counts by label, and a verdict with its policy if one came in."""

    figures: dict[str, float]
    refused: dict[str, int]
    rows_lost: dict[str, int]
    verdict: Verdict | None
    policy: bytes | None


class Session(Protocol):
    """A run at work, in whichever mode."""

    def advance(self) -> Progress:
        """Let the run go on for a moment."""

    def stop(self, deadline_s: float) -> Progress | None:
        """Flush, take in what was flushed, and end everything that this session started."""


def replay_of(config: RunConfig, directory: RunDirectory) -> ReplayConfig:
    """The replay's configuration, with the run's folder for a memmap on this machine."""
    if config.mode == "cluster" or config.replay.memmap_dir is not None:
        return config.replay
    return config.replay.model_copy(update={"memmap_dir": directory.path})
