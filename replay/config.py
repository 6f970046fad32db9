"""The replay's configuration. Field docs are the command line's help."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReplayConfig(BaseModel):
    """Replay memory and back-pressure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity_rows: int = Field(100_000, ge=1)
    """Rows that the replay memory holds, boundary rows included."""
    min_rows: int = Field(1_000, ge=1)
    """Env steps to collect before the first update."""
    samples_per_insert: float = Field(64.0, gt=0)
    """How often each env step is trained on, on average: batch / this = env steps per update."""
    ingest_every_updates: int = Field(16, ge=1)
    """Updates between two reads of the chunk log; their batches are chosen together."""
    ingest_budget_s: float = Field(0.02, gt=0)
    """Seconds that one read may keep the learner from its updates (not in the inline mode)."""
