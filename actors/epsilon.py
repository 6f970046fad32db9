"""The exploration rate of every lane: a ladder over the lanes, annealed on the run's env steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ladder(lane: npt.NDArray[Any], lanes: int, base: float, alpha: float) -> npt.NDArray[np.float64]:
    """``epsilon_i = base^(1 + alpha * i / (N - 1))`` for the lanes ``i`` of N in all; N = 1 has ``base``.

    Horgan et al., arXiv 1803.00933, section 4 (base 0.4, alpha 7), over lanes instead of actors.
    """
    if lanes < 1 or lane.min() < 0 or lane.max() >= lanes:
        raise ValueError(f"lanes {lane.min()}..{lane.max()} do not lie in 0..{lanes - 1}")
    return np.asarray(base ** (1 + alpha * lane / max(1, lanes - 1)), np.float64)


def annealed(floor: npt.NDArray[np.float64], env_steps: int, anneal_env_steps: int) -> npt.NDArray[np.float64]:
    """From 1 down to ``floor`` in a straight line over the run's first ``anneal_env_steps`` env steps."""
    share = min(1.0, env_steps / anneal_env_steps) if anneal_env_steps > 0 else 1.0
    return 1.0 + (floor - 1.0) * share
