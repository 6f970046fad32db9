"""Back-pressure as an equation: how far the learner may run ahead of the actors, and the actors of the learner.

The rule is Reverb's SampleToInsertRatio (arXiv 2102.04736, section 3.2), with one number::

    error = samples_per_insert * (inserts - min_rows) - samples + carried

where ``carried`` is 0 in a run whose ratio was never changed. Below ``min_rows`` the gate is open and the learner
waits. After that ``error`` is held within ± half_band: the learner waits when a batch would bring it below, the gate
shuts when it is above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass
class Limiter:
    """Holds the realised samples per insert near ``samples_per_insert``.

    An insert is a row of an env step that reached the mirror, a sample a transition that was trained on.
    ``slack_rows`` is what may still arrive after the gate shut: see ``set_slack``.
    """

    samples_per_insert: float
    min_rows: int
    capacity_rows: int
    batch: int
    inserts: int = 0
    samples: int = 0
    carried: float = 0.0
    half_band: float = 0.0

    def __post_init__(self) -> None:
        if self.samples_per_insert <= 0:
            raise ValueError(f"samples_per_insert is {self.samples_per_insert}; it has to be above 0")
        if self.min_rows < 1:
            raise ValueError(f"min_rows is {self.min_rows}; it has to be at least 1")
        self.set_slack(0)

    def set_slack(self, slack_rows: int) -> None:
        """Set the band from the rows that arrive before the gate is obeyed: live actors x chunk rows, and the rows of
        one gate refresh. Refuses a slack that could overrun the mirror before it was sampled once."""
        half_band = max(2.0 * self.samples_per_insert * slack_rows, float(self.batch), self.samples_per_insert)
        needed = self.min_rows + math.ceil(half_band / self.samples_per_insert) + slack_rows
        if needed > self.capacity_rows:
            raise ValueError(
                f"a capacity of {self.capacity_rows} rows is too small for min_rows {self.min_rows} and {slack_rows} "
                f"rows in flight: at least {needed} are needed; raise replay.capacity_rows, or lower actors.count, "
                "actors.lanes or actors.chunk_steps"
            )
        self.half_band = half_band

    @property
    def error(self) -> float:
        """Samples that the inserts allow, less the samples taken."""
        return self.samples_per_insert * (self.inserts - self.min_rows) - self.samples + self.carried

    def state(self) -> dict[str, float]:
        """What ``restore`` goes on from."""
        names = ("samples_per_insert", "min_rows", "inserts", "samples", "carried")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on. Another ratio, or another min_rows, holds from here on and not for the past, for which the learner
        would else train on and on, or wait."""
        before = replace(self, **state)
        self.inserts, self.samples, self.carried = before.inserts, before.samples, before.carried
        if (self.samples_per_insert, self.min_rows) != (before.samples_per_insert, before.min_rows):
            error = before.error if before.inserts >= before.min_rows else 0.0
            past = self.samples_per_insert * max(0, self.inserts - self.min_rows)
            self.carried = error + self.samples - past

    @property
    def gate_open(self) -> bool:
        """Whether actors may insert."""
        return self.inserts < self.min_rows or self.error <= self.half_band

    @property
    def may_sample(self) -> bool:
        """Whether the learner may take a batch."""
        return self.inserts >= self.min_rows and self.error - self.batch >= -self.half_band

    @property
    def realised(self) -> float:
        """Samples per insert so far, counted from ``min_rows`` on; 0 before."""
        beyond = self.inserts - self.min_rows
        return self.samples / beyond if beyond > 0 else 0.0
