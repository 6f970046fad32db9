"""The exploration rate of every lane: a ladder over the lanes, annealed on the run's env steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actors.config import ActorConfig


def ladder(lane: npt.NDArray[Any], lanes: int, base: float, alpha: float) -> npt.NDArray[np.float64]:
    """Returns ``epsilon_i = base^(1 + alpha * i / (N - 1))`` for the lanes ``i`` of N in all; N = 1 has ``base``.

    Horgan et al., arXiv 1803.00933, section 4 (base 0.4, alpha 7), over lanes instead of actors.
    """
    if lanes < 1 or lane.min() < 0 or lane.max() >= lanes:
        raise ValueError(f"lanes {lane.min()}..{lane.max()} do not lie in 0..{lanes - 1}")
    return np.asarray(base ** (1 + alpha * lane / max(1, lanes - 1)), np.float64)


def annealed(floor: npt.NDArray[np.float64], env_steps: int, anneal_env_steps: int) -> npt.NDArray[np.float64]:
    """Returns what lies between 1 and ``floor``, in a straight line over the run's first ``anneal_env_steps``."""
    share = min(1.0, env_steps / anneal_env_steps) if anneal_env_steps > 0 else 1.0
    return 1.0 + (floor - 1.0) * share


class Exploration:
    """One actor's exploration rates: ``epsilon`` <float64>[E], on its way down to ``floor`` <float64>[E]."""

    def __init__(self, slot: int, slots: int, lanes: int, config: ActorConfig) -> None:
        self._slot, self._lanes, self._config = slot, lanes, config
        self.run_env_steps = 0
        """Of the run, by the newest weights."""
        self.set_slot_count(slots)

    def set_slot_count(self, slots: int) -> tuple[float, ...]:
        """Moves each lane to its place on the ladder of so many slots. Returns the epsilon that each anneals to.

        Raises:
            ValueError: the slot is none of them.
        """
        config, lanes = self._config, self._slot * self._lanes + np.arange(self._lanes)
        self.floor = ladder(lanes, slots * self._lanes, config.epsilon, config.epsilon_alpha)
        self.anneal(self.run_env_steps)
        return tuple(self.floor.tolist())

    def anneal(self, run_env_steps: int) -> None:
        """Moves epsilon to where it is after so many env steps of the run."""
        self.run_env_steps = run_env_steps
        self.epsilon = annealed(self.floor, run_env_steps, self._config.epsilon_anneal_env_steps)
