"""Rates of one actor and of the learner, measured on this machine for a second each."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from actors.actor_id import ActorId
from actors.builders import build_actor
from deploy.config.models import RunConfig, env_of
from deploy.process.isolation import environments_apart
from learner.cpu_time import CpuTime
from learner.horizon import longest_n_step
from learner.networks import parameter_shapes
from learner.weights import pack
from replay.chunk import ACTION_MASK, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.credit import Credit, pack_credit
from replay.mirror import Batch
from replay.sequences import SequenceBatch

MEASURE_S, WARM_UP_S = 1.0, 0.2


class ActorRate(NamedTuple):
    """One actor with a core of its own: its env steps per second, and the shares of its time on that core and in the
    environment."""

    env_steps_per_s: float
    cpu_share: float = 1.0
    env_share: float | None = None
    env_bytes: int = 0
    """What its environments, and what they share, took of this machine's memory."""


def measure_actor(config: RunConfig, schema: Schema, seconds: float = MEASURE_S) -> ActorRate:
    """Measures one actor of the run at work on a log in memory, so that nothing but itself holds it up.

    Raises:
        EnvError: the environment cannot be made, or raised more often than it may.
    """
    log = MemoryLog(max_chunks=4)
    log.take_lease(1)
    log.publish(1, pack_credit({0: Credit(1, 0, 1 << 62)}), random_weights(config, schema))
    actor, empty_bytes = ActorId("plan", config.seed, 0, 1, 1), resident_bytes()
    with environments_apart():
        rollout = build_actor(actor, env_of(config), config.actors, config.learner.network_spec, log)
        try:
            before = rollout.collect(WARM_UP_S)
            after = rollout.collect(seconds)
            env_bytes = max(0, resident_bytes() - empty_bytes)
        finally:
            rollout.close()
    spent = {name: value - getattr(before.work, name) for name, value in after.work._asdict().items()}
    seconds = spent["seconds"] - spent["starved_seconds"]  # what else runs on this machine is not the run's
    return ActorRate(
        (after.counters.env_steps - before.counters.env_steps) / seconds,
        min(1.0, spent["cpu_seconds"] / seconds),
        spent["env_seconds"] / spent["seconds"],
        env_bytes,
    )


def resident_bytes() -> int:
    """Returns this process's memory in RAM, in bytes; 0 where the system does not have the number."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def random_weights(config: RunConfig, schema: Schema) -> bytes:
    """Returns packed weights as the run's first ones are: of its size, and random."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.learner.network_spec, schema)
    arrays = {
        name: (rng.normal(size=shape) / math.sqrt(math.prod(shape[1:])) * (len(shape) > 1)).astype(np.float32)
        for name, shape in shapes.items()  # biases are 0
    }
    return pack(1, 0, 0, arrays)


def random_batch(config: RunConfig, schema: Schema) -> Batch:
    """Returns a batch of random transitions."""
    rng, batch = np.random.default_rng(0), config.learner.batch
    obs = [_observations(rng, schema, (batch,)) for _ in range(2)]
    reward, discount = (rng.random(batch, np.float32) for _ in range(2))
    extras = {column.name: np.ones((batch, *column.shape), column.dtype) for column in schema.extras}
    return Batch(obs[0], rng.integers(0, schema.num_actions, batch), reward, discount, obs[1], extras, extras)


def random_sequences(config: RunConfig, schema: Schema) -> SequenceBatch:
    """Returns a batch of random sequences, each as long as they may be."""
    rng, batch, sequences = np.random.default_rng(0), config.learner.batch, config.replay.sequences
    grid = (sequences.burn_in + sequences.trained + longest_n_step(config.learner), batch)
    reward, discount = (rng.random(grid, np.float32) for _ in range(2))
    masked = any(column.name == ACTION_MASK for column in schema.extras)
    trained = np.zeros(grid, np.bool_)
    trained[sequences.burn_in : sequences.burn_in + sequences.trained] = True
    return SequenceBatch(
        _observations(rng, schema, grid),
        rng.integers(0, schema.num_actions, grid),
        reward,
        discount,
        np.ones((*grid, schema.num_actions), np.uint8) if masked else None,
        trained,
        np.ones(grid, np.bool_),
        np.zeros((batch, schema.core), np.float32),
    )


def _observations(rng: np.random.Generator, schema: Schema, grid: tuple[int, ...]) -> npt.NDArray[Any]:
    return rng.integers(0, 2, (*grid, *schema.input_shape)).astype(np.dtype(schema.obs_dtype))


def measure_updates(config: RunConfig, schema: Schema, seconds: float = MEASURE_S) -> float:
    """Measures updates per second of a bare loop on one batch, on the learner's device where this machine has it."""
    import torch

    from learner.learner import Learner, choose_device

    torch.set_num_threads(config.learner.threads)
    device = choose_device("auto" if config.mode == "cluster" else config.learner.device)
    learner = Learner(config.learner, schema, device, 0)
    batch = random_sequences(config, schema) if schema.core else random_batch(config, schema)
    learner.update(batch)  # the first one sets torch up
    learner.metrics()
    updates, began, starved_s = 0, time.perf_counter(), CpuTime.now().starved_s
    while time.perf_counter() < began + seconds:
        learner.update(batch)
        updates += 1
    learner.metrics()  # waits for the device
    return updates / (time.perf_counter() - began - (CpuTime.now().starved_s - starved_s))
