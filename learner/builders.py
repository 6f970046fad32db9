"""Builds a run's learner: for every mode, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learner.config import LearnerConfig
from replay.chunk import Schema
from replay.chunk_log.protocol import ChunkLog
from replay.config import ReplayConfig

if TYPE_CHECKING:
    from learner.checkpoint import Checkpointer, Found
    from learner.dataset import DatasetSpec
    from learner.loop import LearnerLoop
    from learner.publisher import Publisher


@dataclass(frozen=True)
class LearnerSpec:
    """All that decides what a run's learner computes, wherever it is built; sent to its process."""

    run: str
    schema: Schema
    replay: ReplayConfig
    config: LearnerConfig
    fence: int
    seed: int
    slots: int
    """Slots that have actors."""
    chunk_rows: int
    """Rows of a full chunk, which credit is lent for."""
    slots_ever: int = 0
    """Slots that there were at the most; the last of them may have left."""
    quarantine: Path | None = None
    """Where refused chunks are kept."""
    dataset: DatasetSpec | None = None
    """The dataset of ``replay.dataset``."""


def build_learner(
    spec: LearnerSpec,
    log: ChunkLog,
    publisher: Publisher,
    checkpointer: Checkpointer | None = None,
    found: Found | None = None,
    *,
    republish: bool = True,
) -> LearnerLoop:
    """Builds a learner on ``log``, from the checkpoint ``found``, if any; see ``LearnerLoop`` for ``republish``.

    Raises:
        CheckpointError: the checkpoint holds nothing to go on from.
        CannotFit: the replay does not fit into its storage.
        DatasetError, OtherDataset: the dataset cannot be used, or is another one than in the checkpoint.
    """
    from learner.loop import LearnerLoop

    loop = LearnerLoop(
        spec.run,
        log,
        publisher,
        spec.schema,
        spec.replay,
        spec.config,
        fence=spec.fence,
        seed=spec.seed,
        quarantine=spec.quarantine,
        checkpointer=checkpointer,
        found=found,
        republish=republish,
        dataset=spec.dataset,
    )
    loop.expect(range(spec.slots), spec.chunk_rows, range(spec.slots_ever))
    return loop
