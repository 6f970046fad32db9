"""A peer of replay.py: TorchRL's buffers, in memory and on Redis, in its own venv (requirements-torchrl.txt)."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import torch
from tensordict import TensorDict  # type: ignore[import-not-found, unused-ignore]
from torchrl.data import (  # type: ignore[import-not-found, unused-ignore]
    LazyTensorStorage,
    ReplayBuffer,
    SliceSampler,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import StoreStorage  # type: ignore[import-not-found, unused-ignore]

from benchmarks.peers import Timed, answer, medians, seconds_of

BLOCK = 10_000
STORE_ROWS, STORE_BLOCK, STORE_BATCH = 10_000, 500, 256
"""Size, rows per extend and per sample of TorchRL's own benchmark of its StoreStorage."""


def prepare(setting: dict[str, Any]) -> tuple[str, dict[str, Timed]]:
    """Either buffer, by what ``setting`` has."""
    about = f"TorchRL {version('torchrl')}"
    if "socket" in setting:
        return f"{about} StoreStorage", on_redis(setting)
    slices = "sequence_rows" in setting
    measures = in_slices(setting) if slices else in_memory(setting)
    speeds: dict[int, float] = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        speeds[threads] = sum(medians(measures["slices"], 10) if slices else medians(measures["prioritised"], 100))
    best = min(speeds, key=lambda threads: speeds[threads])
    torch.set_num_threads(best)
    return f"{about} with {best} torch thread(s), the faster number", measures


def in_memory(setting: dict[str, Any]) -> dict[str, Timed]:
    """A prioritised buffer of ``rows`` transitions, with an observation of ``floats`` floats and the next one."""
    rows, batch = setting["rows"], setting["batch"]
    buffer = TensorDictPrioritizedReplayBuffer(
        alpha=setting["alpha"], beta=setting["beta"], storage=LazyTensorStorage(rows), batch_size=batch
    )
    for _ in range(rows // BLOCK):
        index = buffer.extend(transitions(BLOCK, setting["floats"]))
        buffer.update_priority(index, torch.randn(BLOCK).abs() + 1e-6)

    def cycle() -> tuple[float, float]:
        sample_s, found = seconds_of(buffer.sample)
        priorities = torch.randn(batch).abs() + 1e-6
        update_s, _ = seconds_of(lambda: buffer.update_priority(found["index"], priorities))
        return sample_s, update_s

    return {"prioritised": cycle}


def in_slices(setting: dict[str, Any]) -> dict[str, Timed]:
    """A full buffer of episodes one after the other, and a sampler of slices of ``steps`` steps that keeps what it
    knows of the episodes, since nothing is written any more."""
    rows, steps = setting["sequence_rows"], setting["steps"]
    sampler = SliceSampler(slice_len=steps, traj_key="episode", cache_values=True)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(rows), sampler=sampler, batch_size=setting["batch"] * steps
    )
    for start in range(0, rows, BLOCK):
        place = torch.arange(start, min(start + BLOCK, rows))
        columns = {"episode": place // setting["episode"], "obs": observations(len(place), setting)}
        columns |= {"action": place % 4, "reward": torch.randn(len(place)), "discount": torch.ones(len(place))}
        buffer.extend(TensorDict(columns, [len(place)]))

    def sample() -> tuple[float]:
        return (seconds_of(buffer.sample)[0],)

    return {"slices": sample}


def observations(count: int, setting: dict[str, Any]) -> Any:
    """Random ones, of the shape and dtype that ``setting`` has."""
    shape = (count, *setting["shape"])
    return torch.randint(0, 256, shape, dtype=torch.uint8) if setting["dtype"] == "uint8" else torch.randn(shape)


def transitions(count: int, floats: int) -> Any:
    """Random ones."""
    obs, next_obs = torch.randn(2, count, floats)
    columns = {"obs": obs, "next_obs": next_obs, "action": torch.randint(0, 4, (count,), dtype=torch.int32)}
    columns |= {"reward": obs[:, 0].clone(), "discount": torch.ones(count)}
    return TensorDict(columns, [count])


def on_redis(setting: dict[str, Any]) -> dict[str, Timed]:
    """A buffer in a server at a Unix socket, with the 276-byte rows of TorchRL's own benchmark."""
    place = {"unix_socket_path": setting["socket"], "username": setting["user"], "password": setting["password"]}
    buffer = ReplayBuffer(storage=StoreStorage(STORE_ROWS, **place), batch_size=STORE_BATCH)
    columns = {"obs": torch.randn(STORE_BLOCK, 64), "action": torch.randn(STORE_BLOCK, 4)}
    block = TensorDict({**columns, "reward": torch.randn(STORE_BLOCK, 1)}, [STORE_BLOCK])
    for _ in range(STORE_ROWS // STORE_BLOCK):
        buffer.extend(block)

    def insert() -> tuple[float]:
        return (seconds_of(lambda: buffer.extend(block))[0] / STORE_BLOCK,)

    def sample() -> tuple[float]:
        return (seconds_of(buffer.sample)[0] / STORE_BATCH,)

    return {"insert": insert, "sample": sample}


if __name__ == "__main__":
    answer(prepare)
