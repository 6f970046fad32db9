"""Which actor of which run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actors.seeds import training_seed


@dataclass(frozen=True)
class ActorId:
    """An actor's slot of ``slots`` and its incarnation, and the run's name and seed."""

    run: str
    seed: int
    slot: int
    slots: int
    incarnation: int

    def seeds(self, lanes: int) -> tuple[list[int | None], np.random.Generator]:
        """Returns a seed per lane, and the generator of the actions. Each restart has new ones, by its incarnation,
        which is on record in the run's fences.json."""
        root = np.random.SeedSequence(self.seed, spawn_key=(self.slot, self.incarnation))
        actions, *per_lane = root.spawn(lanes + 1)
        return [training_seed(stream) for stream in per_lane], np.random.default_rng(actions)
