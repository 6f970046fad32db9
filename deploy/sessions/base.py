"""What the three modes have in common: a session that is advanced until the run is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from actors.episodes import Episodes
from actors.evaluator import EvaluationResult
from deploy.config.models import RunConfig
from deploy.monitoring.metrics import RunMetrics
from deploy.planning.dataset import dataset_spec
from deploy.planning.memory import chunk_rows, rows_in_checkpoint
from deploy.run_directory.directory import RunDirectory, checkpoint_folder
from learner.builders import LearnerSpec
from learner.checkpoint import Checkpointer
from learner.policy import description_of
from replay.chunk import Schema
from replay.config import ReplayConfig
from replay.logs import LogFile

Notify = Callable[[str], None]
Counts = Callable[[], Mapping[str, float]]
"""Returns what the driver itself has counted, by key, for /metrics."""


class Progress(NamedTuple):
    """What one advance brought: the newest metrics (None: those of before), counts by reason, and a verdict with its
    policy if one came in.
    ``deaths``: what died of what, such as ``actor: ActorDiedError``, since this driver started. ``unevaluated``: why no
    policy can be evaluated; empty where one can."""

    metrics: RunMetrics | None
    refused: dict[str, int]
    rows_lost: dict[str, int]
    verdict: EvaluationResult | None
    policy: bytes | None
    deaths: Mapping[str, int] = MappingProxyType({})
    unevaluated: str = ""
    holdout: Episodes | None = None
    learner_device: str = ""


HOLDOUT_S = 8.0
"""Seconds that the hold-out may take at a run's end, while the actors flush and the last checkpoint is written."""


class Session(Protocol):
    """A run at work, in whichever mode."""

    @property
    def begun(self) -> bool:
        """Whether learner and an actor have answered: what came before was the start."""

    def status_line(self) -> str:
        """Returns what each actor was last known to do, in one line."""

    def advance(self) -> Progress:
        """Lets the run proceed for a moment."""

    def stop(
        self, deadline_s: float, policy: bytes | None = None, skip: Callable[[], bool] = lambda: False
    ) -> Progress | None:
        """Flushes, takes in what was flushed, writes a checkpoint, and ends everything that this session started.

        Meanwhile ``policy``, if there is one, is played once more for at most HOLDOUT_S, or until ``skip()``.
        """


def make_checkpointer(config: RunConfig, directory: RunDirectory, schema: Schema) -> Checkpointer:
    """Returns the writer of this run's checkpoints."""
    return Checkpointer(checkpoint_folder(config, directory), config.checkpoint, rows_in_checkpoint(config, schema))


def log_file(config: RunConfig, directory: RunDirectory, name: str) -> LogFile:
    """Returns the log of one of the run's processes."""
    return LogFile(directory.logs, name, config.log_level)


def learner_spec(config: RunConfig, directory: RunDirectory, schema: Schema, fence: int) -> LearnerSpec:
    """Returns what decides what the run's learner computes."""
    return LearnerSpec(
        directory.run,
        schema,
        _replay_of(config, directory),
        config.learner,
        fence,
        config.seed,
        slots=config.actors.count,
        chunk_rows=chunk_rows(config),
        slots_ever=0 if config.mode == "inline" else directory.fences.slots_ever,
        quarantine=None if config.mode == "cluster" else directory.quarantine,
        dataset=None if config.replay.dataset is None else dataset_spec(config, description_of(directory.path).about),
    )


def _replay_of(config: RunConfig, directory: RunDirectory) -> ReplayConfig:
    """Returns the replay's configuration, with the run's folder for a memmap on this machine, where none is given;
    absolute, since the learner has a working directory of its own."""
    if config.mode == "cluster":
        return config.replay
    folder = config.replay.memmap_dir or directory.path
    return config.replay.model_copy(update={"memmap_dir": folder.absolute()})
