"""A peer of replay.py: cpprb's buffers, full, in its own venv (requirements-cpprb.txt)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer, ReplayBuffer  # type: ignore[import-not-found, unused-ignore]

from benchmarks.peers import Timed, answer, seconds_of

BLOCK = 10_000


def prepare(setting: dict[str, Any]) -> tuple[str, dict[str, Timed]]:
    """Buffers of ``rows`` transitions, with an observation of ``floats`` floats and the next one."""
    rows, floats, batch = setting["rows"], setting["floats"], setting["batch"]
    columns = {
        "obs": {"shape": floats},
        "next_obs": {"shape": floats},
        "act": {"dtype": np.int32},
        "rew": {},
        "discount": {},
    }
    rng = np.random.default_rng(0)
    uniform = ReplayBuffer(rows, columns)
    prioritised = PrioritizedReplayBuffer(rows, columns, alpha=setting["alpha"])
    for _ in range(rows // BLOCK):
        obs, next_obs = rng.normal(size=(2, BLOCK, floats)).astype("f4")
        block = {"obs": obs, "next_obs": next_obs, "act": rng.integers(0, 4, BLOCK), "rew": obs[:, 0]}
        block["discount"] = np.ones(BLOCK, "f4")
        uniform.add(**block)
        prioritised.add(**block, priorities=np.abs(rng.normal(size=BLOCK)) + 1e-6)

    def cycle() -> tuple[float, float]:
        sample_s, found = seconds_of(lambda: prioritised.sample(batch, beta=setting["beta"]))
        priorities = np.abs(rng.normal(size=batch)) + 1e-6
        update_s, _ = seconds_of(lambda: prioritised.update_priorities(found["indexes"], priorities))
        return sample_s, update_s

    def draw() -> tuple[float]:
        return (seconds_of(lambda: uniform.sample(batch))[0],)

    return f"cpprb {version('cpprb')}", {"prioritised": cycle, "uniform": draw}


if __name__ == "__main__":
    answer(prepare)
