"""Minari datasets for tests, written by Minari itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from grid_env import ACTIONS, GOAL, STATES, move
from gymnasium import Space, spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from learner.minari_store import folder_of


def write(
    dataset_id: str, observation: Space[Any], action: Space[Any], episodes: Sequence[Any], data_format: str = "hdf5"
) -> Path:
    """Writes episodes, dicts of the fields of Minari's EpisodeBuffer; returns the dataset's folder."""
    folder = folder_of(dataset_id)
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(folder / "data", observation, action, data_format=data_format, jpeg_encoding=False)
    storage.update_metadata({"dataset_id": dataset_id, "minari_version": version("minari")})
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])
    return folder


def walks(count: int, seed: int = 0, longest: int = 50) -> list[dict[str, Any]]:
    """Random walks on the grid of tests/grid_env.py, truncated after ``longest`` env steps."""
    rng = np.random.default_rng(seed)
    return [_walk(rng, longest) for _ in range(count)]


def _walk(rng: np.random.Generator, longest: int) -> dict[str, Any]:
    states, actions, rewards, over = [int(rng.integers(GOAL))], list[int](), list[float](), False
    while not over and len(actions) < longest:
        actions.append(int(rng.integers(ACTIONS)))
        state, reward, over = move(states[-1], actions[-1])
        states.append(state)
        rewards.append(reward)
    ends = np.zeros((2, len(actions)), np.bool_)
    ends[:, -1] = over, not over
    return {
        "observations": np.array(states),
        "actions": np.array(actions),
        "rewards": np.array(rewards),
        "terminations": ends[0],
        "truncations": ends[1],
        "infos": {},
    }


def write_walks(dataset_id: str, count: int, seed: int = 0, data_format: str = "hdf5") -> Path:
    """Writes random walks on the grid."""
    return write(dataset_id, spaces.Discrete(STATES), spaces.Discrete(ACTIONS), walks(count, seed), data_format)
