"""Seeds of environments: 31 bits, which every generator takes, and of training and evaluation never the same one.

===============================  =======================
who resets with it               seeds
===============================  =======================
training lanes                   [0, 2^30)
a run's own evaluations          [2^30, 2^30 + 2^29)
``qherd eval``, ``qherd record``  from 2^30 + 2^29 on
===============================  =======================

numpy's old global generator takes 32 bits, simulators in C often 31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TRAINING = 1 << 30
"""Seeds below it are training's."""
EVALUATIONS = 1 << 29
"""How many seeds a run's own evaluations have."""
PLAYBACK = TRAINING + EVALUATIONS
"""The first seed of ``qherd eval`` and ``qherd record``."""
MAX_SEED = (1 << 31) - 1
"""The greatest seed."""
EPISODES = 1 << 20
"""Seeds that one evaluator has before it comes to those of the one after it."""


def training_seed(stream: np.random.SeedSequence) -> int:
    """Returns a training lane's seed, drawn from ``stream``."""
    return int(stream.generate_state(1)[0]) >> 2


def evaluation_seeds_from(run_seed: int, evaluator: int) -> int:
    """Returns the number of the first seed of a run's n-th evaluator; see ``evaluation_seed``."""
    import numpy as np  # not above: the command pins BLAS' threads before numpy is imported

    first = int(np.random.SeedSequence(run_seed).generate_state(1)[0])
    return first % EVALUATIONS + evaluator * EPISODES


def evaluation_seed(number: int) -> int:
    """Returns the seed that a run's evaluations have at ``number``; the same again only after 2^29 others."""
    return TRAINING + number % EVALUATIONS


def playback_seed(run_seed: int, episodes: int) -> int:
    """Returns the first seed of the episodes that a study plays after a run: none that the run has played, and other
    ones for each seed of the study."""
    return PLAYBACK + run_seed * episodes % (EVALUATIONS - episodes)
