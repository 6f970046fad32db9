"""The replay's configuration. Field docs are the command line's help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from replay.kept import Kept
from replay.options import Options
from replay.samplers import SAMPLERS, sampler_of

MAX_STEPS = 1 << 14
"""Time steps of a part of a sequence, at the most."""


class PrioritisedConfig(Options):
    """Prioritised sampling (arXiv 1511.05952)."""

    alpha: Kept[float] = Field(0.6, ge=0, le=1)
    """Exponent of the priorities: 0 is uniform, 1 fully proportional to |TD error|."""
    beta: float = Field(0.4, ge=0, le=1)
    """Exponent of the importance weights at the start; it rises to 1 linearly."""
    beta_updates: int = Field(100_000, ge=1)
    """Updates after which it is 1."""


class SequencesConfig(Options):
    """Sequences of rows for recurrent networks, in the place of transitions (R2D2: Kapturowski et al., ICLR 2019)."""

    trained: int = Field(0, ge=0, le=MAX_STEPS)
    """Time steps of a sequence that are trained on; 0: transitions are sampled, no sequences."""
    burn_in: int = Field(0, ge=0, le=MAX_STEPS)
    """Time steps before them, at most, through which the recurrent state is only carried."""
    overlap: int = Field(0, ge=0, le=MAX_STEPS)
    """Trained time steps that the next sequence of an episode has again, at least."""

    @model_validator(mode="after")
    def _fits(self) -> SequencesConfig:
        if not self.trained:
            if self.burn_in or self.overlap:
                raise ValueError(
                    f"burn_in is {self.burn_in} and overlap {self.overlap}, and trained is 0, so that they do nothing: "
                    "give trained, too, or leave them out"
                )
            return self
        if self.burn_in > self.trained:
            raise ValueError(
                f"burn_in is {self.burn_in}, longer than the {self.trained} steps that are trained on after it: lower "
                "it, or raise trained"
            )
        if self.overlap >= self.trained:
            raise ValueError(
                f"overlap is {self.overlap}, and has to be below trained, which is {self.trained}: the next sequence "
                "would train no step further"
            )
        return self

    @property
    def longest_chunk_steps(self) -> int:
        """Returns how many time steps a chunk may have, before whose first row the recurrent state is known, for every
        row to be trained on."""
        return self.burn_in + self.trained - self.overlap


class DatasetOption(NamedTuple):
    """A dataset by its id, and its share of each batch; None: it fills the replay memory."""

    id: str
    share: float | None

    @classmethod
    def parse(cls, text: str) -> DatasetOption:
        """Returns what ``ID[,share]`` stands for. Raises ValueError."""
        name, comma, share = text.partition(",")
        try:
            number = float(share) if comma else None
        except ValueError:
            number = float("nan")
        if not name or not (number is None or 0 < number <= 1):
            raise ValueError(
                f"dataset is {text!r:.80}; give ID, or ID,SHARE with a share of each batch above 0 and up to 1, such "
                "as group/name-v0,0.25"
            )
        return cls(name, number)


class ReplayConfig(Options):
    """Replay memory and back-pressure."""

    capacity_rows: Kept[int] = Field(100_000, ge=1)
    """Rows that the replay memory holds, boundary rows included."""
    storage: Literal["ram", "memmap", "device"] = "ram"
    """Where the learner keeps them: ram; memmap, files for memories bigger than RAM; device, the learner's own."""
    memmap_dir: Path | None = None
    """Folder of the memmap's files, on the learner's machine; they have no name and vanish with it. The default is the
    run's folder, on a cluster the system's one for temporary files."""
    log_rows: int | None = Field(None, ge=0)
    """Newest rows to keep on the server. The default is all, so that a learner that starts again can read them back."""
    sampler: Kept[str] = "uniform"
    """How rows are chosen. uniform: all alike; prioritised: in proportion to their TD error (arXiv 1511.05952); or
    module:Name of your own, a class like replay.samplers.base.Sampler."""
    prioritised: PrioritisedConfig = PrioritisedConfig()
    sequences: Kept[SequencesConfig] = SequencesConfig()
    dataset: Kept[str | None] = None
    """ID[,SHARE] of a Minari dataset (docs/datasets.md), with the extra minari. Without a share it fills the replay
    memory, all of it at the start, and yields to the actors' rows; with one, that share of each batch comes from it."""
    min_rows: int = Field(1_000, ge=1)
    """Env steps to collect before the first update."""
    samples_per_insert: float = Field(64.0, gt=0)
    """How often each env step is trained on, on average: batch / this = env steps per update. Of sequences their
    trained steps count."""
    ingest_every_updates: int = Field(16, ge=1)
    """Updates between two reads of the chunk log; their batches are chosen together."""
    ingest_budget_s: float = Field(0.02, gt=0)
    """Seconds that one read may keep the learner from its updates (not in the inline mode)."""

    @field_validator("sampler")
    @classmethod
    def _is_known(cls, name: str) -> str:
        """A user's own is imported where it is used: its folder may not be on the path yet."""
        if name not in SAMPLERS and ":" not in name:
            sampler_of(name)  # raises, with the names that there are
        return name

    def most_steps(self, batch: int) -> int:
        """Returns the steps that an update trains on, at the most: of ``batch`` transitions or sequences."""
        return batch * max(1, self.sequences.trained)

    @field_validator("dataset")
    @classmethod
    def _is_an_id_and_a_share(cls, text: str | None) -> str | None:
        return text if text is None else (DatasetOption.parse(text), text)[1]

    @model_validator(mode="after")
    def _is_one_kind(self) -> ReplayConfig:
        if self.dataset is not None and self.sequences.trained:
            raise ValueError(
                f"dataset is {self.dataset!r:.80} and sequences.trained {self.sequences.trained}: a dataset has no "
                "recurrent states, so that no sequences can be made of it; leave one of them out"
            )
        return self

    @property
    def dataset_option(self) -> DatasetOption | None:
        """``dataset``, taken apart."""
        return None if self.dataset is None else DatasetOption.parse(self.dataset)

    @property
    def rows_in_log(self) -> int:
        """Rows that the server keeps for the learner: ``log_rows``, and never more than the learner holds."""
        return self.capacity_rows if self.log_rows is None else min(self.log_rows, self.capacity_rows)
