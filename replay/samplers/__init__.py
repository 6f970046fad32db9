"""Samplers by name. A new one is a file here and a line in ``SAMPLERS``, or a user's own class.

Nothing here imports numpy or numba before a sampler is asked for: the configuration uses the names alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.registry import load, make

if TYPE_CHECKING:
    import numpy as np

    from replay.config import ReplayConfig
    from replay.ring import Ring
    from replay.samplers.base import Sampler

__all__ = ["SAMPLERS", "make_sampler", "sampler_of"]

SAMPLERS: dict[str, str] = {
    "uniform": "replay.samplers.uniform:UniformSampler",
    "prioritised": "replay.samplers.prioritised:PrioritisedSampler",
}
"""Sampler classes by name: see ``replay.samplers.base.Sampler``."""
MEMBERS = (
    *("make", "planned_bytes", "sample", "update", "metrics", "state", "restore"),
    *("section", "metrics_type"),
)


def sampler_of(name: str) -> type[Sampler]:
    """Returns the class of this name, or a user's own by ``module:Name``.

    Raises:
        ValueError: an unknown name, a module that cannot be imported, or nothing there that is a sampler's class.
    """
    found: type[Sampler] = load(SAMPLERS, name, "sampler")
    if not all(hasattr(found, member) for member in MEMBERS):
        raise ValueError(f"sampler {name!r} is no class with {', '.join(MEMBERS)}: see replay.samplers.base.Sampler")
    return found


def make_sampler(config: ReplayConfig, mirror: Ring, rng: np.random.Generator) -> Sampler:
    """Makes the sampler that the configuration names. Make it before rows are added: it learns of them as they
    arrive."""
    kind = sampler_of(config.sampler)
    return make(config.sampler, "sampler", lambda: kind.make(config, mirror, rng))
