"""Builds the buffer of a run's kind: of transitions, or of sequences."""

from __future__ import annotations

from dataclasses import dataclass

from replay.assembler import NStepAssembler
from replay.chunk import Schema
from replay.config import SequencesConfig
from replay.mirror import Mirror
from replay.ring import Ring
from replay.sequence_assembler import SequenceAssembler
from replay.sequences import SequenceMirror, SequenceSpec
from replay.storage import Storage


@dataclass(frozen=True)
class Returns:
    """What is trained on of rows: see ``NStepAssembler``. ``longest``: the greatest ``n`` that there will be."""

    n: int
    gamma: float
    longest: int
    reward_scale: float = 1.0
    reward_clip: bool = False
    value_rescale: bool = False


def planned_bytes(schema: Schema, capacity_rows: int, sequences: SequencesConfig) -> int:
    """Returns the bytes that a mirror of this kind and size allocates."""
    kind = SequenceMirror if sequences.trained else Mirror
    return kind.planned_bytes(schema, capacity_rows)


def make_mirror(
    schema: Schema,
    capacity_rows: int,
    sequences: SequencesConfig,
    longest: int,
    storage: Storage | None = None,
    *,
    eta: float = 0.9,
    reuse: bool = False,
) -> Mirror | SequenceMirror:
    """Makes the mirror; ``longest``: see ``Returns``; ``eta``: see ``SequenceSpec``; ``reuse``: see
    ``SequenceMirror``."""
    if not sequences.trained:
        return Mirror(schema, capacity_rows, storage)
    spec = SequenceSpec(sequences.burn_in, sequences.trained, sequences.overlap, longest, eta)
    return SequenceMirror(schema, capacity_rows, spec, storage, reuse=reuse)


def make_assembler(mirror: Ring, returns: Returns) -> NStepAssembler:
    """Makes the assembler of a mirror."""
    options = {"reward_clip": returns.reward_clip, "value_rescale": returns.value_rescale}
    if isinstance(mirror, SequenceMirror):
        return SequenceAssembler(mirror, returns.n, returns.gamma, returns.reward_scale, **options)
    return NStepAssembler(mirror, returns.n, returns.gamma, returns.reward_scale, longest=returns.longest, **options)
