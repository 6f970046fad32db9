"""The run's description: one small JSON value, which the learner replaces about once a second.

Whoever attaches reads there what the rows look like, how they become transitions, and which slots there are. It is
for reading only: nothing of the run itself depends on it, and its clock is the learner's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from replay.chunk import MAX_COUNT, MAX_VERSION, Schema
from replay.chunk_log.protocol import LogError
from replay.config import SequencesConfig
from replay.foreign import parse_json
from replay.ledger import SlotAccount

FORMAT = 2
"""Raised where a field changes its meaning; fields that a reader does not know are passed over."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
MAX_CAPACITY_ROWS, MAX_N_STEP = 1 << 40, 1 << 20


class DescriptionError(LogError):
    """A description that cannot be read: of another version, or no description at all."""


class SlotDescription(BaseModel):
    """One slot as far as the learner has read it. Chunks, rows, env steps and bytes are sums since it began."""

    model_config = ConfigDict(frozen=True)

    chunks: Count
    rows: Count
    env_steps: Count
    bytes: Count
    weight_version: Annotated[int, Field(ge=0, le=MAX_VERSION)]
    """Of the weights that the newest chunk was acted with; 0 before the first."""
    incarnation: Count
    cursor: str
    """Id of the last chunk seen."""
    refused: dict[str, Annotated[PositiveInt, Field(le=MAX_COUNT)]]
    """Refused chunks by reason."""

    @classmethod
    def of(cls, account: SlotAccount) -> Self:
        """Returns what the reader's ledger has of a slot."""
        totals = account.totals
        return cls(
            chunks=totals.chunks,
            rows=totals.rows,
            env_steps=totals.env_steps,
            bytes=totals.bytes,
            weight_version=account.weight_version,
            incarnation=account.cursor.incarnation,
            cursor=str(account.cursor),
            refused=dict(totals.refused),
        )


class SequencesDescription(SequencesConfig):
    """How rows become sequences; the default: they become transitions."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RunDescription(BaseModel):
    """A run, as those see it who attach to it."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    format: PositiveInt = FORMAT
    row_schema: Schema = Field(alias="schema")
    n_step: Annotated[PositiveInt, Field(le=MAX_N_STEP)]
    gamma: float = Field(ge=0, le=1)
    longest_n_step: Annotated[PositiveInt, Field(le=MAX_N_STEP)] | None = None
    """The greatest n_step that there will be, where it and gamma change as the run goes on."""
    reward_scale: float = Field(gt=0, allow_inf_nan=False)
    reward_clip: bool = False
    value_rescale: bool = False
    sequences: SequencesDescription = SequencesDescription()
    capacity_rows: Annotated[PositiveInt, Field(le=MAX_CAPACITY_ROWS)]
    """Rows that the learner's mirror holds at the most; the log is trimmed to it."""
    env_steps: Count
    updates: Count
    written_s: float = Field(default_factory=time.time)
    """When, by the learner's clock, in Unix seconds: for information only."""
    slots: dict[Count, SlotDescription]

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.longest_n_step is not None and self.n_step > self.longest_n_step:
            raise ValueError(f"n_step is {self.n_step}, and longest_n_step {self.longest_n_step}")
        return self

    @property
    def farthest_n_step(self) -> int:
        """Returns the greatest n_step that there will be, also where it stays."""
        return self.longest_n_step or self.n_step

    def pack(self) -> bytes:
        """Packs it as JSON."""
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises DescriptionError where ``data`` is no description of this format."""
        try:
            found: Any = parse_json(data)
            written = found.get("format") if isinstance(found, Mapping) else None
            if written != FORMAT:
                raise DescriptionError(
                    f"the run describes itself in format {written!r}, this qherd reads {FORMAT}: install the run's own"
                )
            return cls.model_validate(found)
        except ValidationError as error:
            finding = error.errors()[0]
            what = f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}"
            raise DescriptionError(f"the run's description is damaged: {what}") from error
        except (ValueError, RecursionError) as error:
            raise DescriptionError(f"the run's description is damaged: {error}") from error

    def same_rows(self, other: Self) -> bool:
        """Returns whether both make the same of the same rows, but for a horizon that is annealed."""
        names = ["row_schema", "longest_n_step", "reward_scale", "reward_clip", "value_rescale", "sequences"]
        if self.longest_n_step is None:
            names += ["n_step", "gamma"]
        return all(getattr(self, name) == getattr(other, name) for name in names)
