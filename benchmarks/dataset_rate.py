"""Dataset rate: rows per second of flat observations into a Minari dataset, and out of one into the replay memory.

``python -m benchmarks --only dataset_rate``. A part of an episode's cost is the same whatever its length, so the
figures name the lengths of their episodes.
"""

from __future__ import annotations

import os
import tempfile
import time
from importlib.metadata import version

import numpy as np

from actors.config import EnvConfig
from actors.envs import about_of, make_env, schema_of
from benchmarks.result import Result
from deploy.datasets.episode import Episode, RawEpisodes
from deploy.datasets.writer import writing
from learner.dataset import DatasetSpec, read_dataset
from learner.minari_store import folder_of
from replay.assembler import NStepAssembler
from replay.buffer import ReplayBuffer
from replay.mirror import Mirror
from replay.samplers.uniform import UniformSampler

ENV, N_STEP, GAMMA, TARGET = "LunarLander-v3", 3, 0.99, 3e5
LENGTHS, JUDGED = (100, 200, 300, 1000), 300
"""Env steps of an episode, and those that the target is for: a policy that lands takes 200 to 400."""


def measure(quick: bool) -> list[Result]:
    """In: ``DatasetWriter`` with its conversions, until Minari has loaded the dataset. Out: ``read_dataset`` with its
    conversions, checks and 3-step windows."""
    rows, repetitions = (12_000, 1) if quick else (200_000, 5)
    rates: dict[int, list[tuple[float, float]]] = {length: [] for length in LENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        _pass("bench/first-v0", 10, 10)  # imports
        for turn in range(repetitions):
            for length, some in rates.items():
                some.append(_pass(f"bench/{length}-{turn}-v0", length, rows // length))
    results = []
    for index, what in enumerate(("in", "out")):
        by_length = {length: tuple(rate[index] for rate in some) for length, some in rates.items()}
        medians = ", ".join(f"{length}: {np.median(some):,.0f}" for length, some in by_length.items())
        notes = (
            f"{ENV}'s observations of 8 floats, in episodes of {JUDGED} env steps",
            f"{repetitions} × {rows:,} rows for each length of episode; the medians by length: {medians}",
        )
        results.append(Result(f"dataset rate {what}", "rows/s", by_length[JUDGED], target=TARGET, notes=notes))
    return results


def _pass(dataset_id: str, length: int, episodes: int) -> tuple[float, float]:
    """Returns rows per second in and out."""
    env, rng = make_env(EnvConfig(id=ENV), training=False), np.random.default_rng(0)
    schema, about = schema_of(env), about_of(env)
    obs = rng.normal(size=(episodes, length + 1, *schema.obs_shape)).astype(schema.obs_dtype)
    actions, rewards = rng.integers(0, schema.num_actions, (episodes, length)), rng.normal(size=(episodes, length))
    began = time.perf_counter()
    with writing(dataset_id, RawEpisodes(env)) as writer:
        for number in range(episodes):
            writer.add(Episode(obs[number], actions[number], rewards[number], True, False, {}))
        writer.finish({"dataset_id": dataset_id, "minari_version": version("minari")})
    written_s = time.perf_counter() - began

    def make(rows: int) -> ReplayBuffer:
        mirror = Mirror(schema, rows)
        return ReplayBuffer(mirror, NStepAssembler(mirror, N_STEP, GAMMA), UniformSampler(mirror, rng))

    began = time.perf_counter()
    read = read_dataset(DatasetSpec(dataset_id, folder_of(dataset_id), about), schema, make)
    read_s = time.perf_counter() - began
    env.close()
    assert read.env_steps == episodes * length
    return read.env_steps / written_s, read.env_steps / read_s
