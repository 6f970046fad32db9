"""Processes that stand in for the rest of the herd, so that one part is measured in its real surroundings."""

from __future__ import annotations

import contextlib
import math
import multiprocessing as mp
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.config import ActorConfig, EnvConfig
from learner.networks import NetworkSpec, parameter_shapes
from replay.chunk import Schema
from replay.chunk_log.protocol import LogError

WEIGHTS_EVERY_S = 0.25
"""As often as the learner publishes at the most (learner/loop.py)."""


@contextlib.contextmanager
def beside(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run ``work`` in a fresh process while the block runs."""
    process = mp.get_context("spawn").Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def some_weights(spec: NetworkSpec, schema: Schema) -> dict[str, npt.NDArray[np.float32]]:
    """Returns random parameters of a network by name."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=shape) / np.sqrt(max(1, math.prod(shape[1:])))).astype(np.float32)
        for name, shape in parameter_shapes(spec, schema).items()
    }


def publish_weights(url: str, run: str, spec: NetworkSpec, schema: Schema) -> None:
    """What slot 0 sees of a learner: credit without end, and new weights of this network all the time.

    The run's env steps in their header stay 0: the actors' epsilon stays 1, so that they fly like random ones.
    """
    from learner.publisher import Publisher
    from learner.weights import pack
    from replay.chunk_log import open_log
    from replay.credit import Credit, pack_credit

    arrays = some_weights(spec, schema)
    credit = pack_credit({0: Credit(1, 0, 1 << 62)})
    publisher = Publisher(open_log(url, run, "publisher"), fence=1)
    for count in range(1, 1 << 30):
        publisher.set(credit, pack(count, 0, 0, arrays))
        time.sleep(WEIGHTS_EVERY_S)


def act(
    url: str, run: str, slot: int, slots: int, env: EnvConfig, config: ActorConfig, spec: NetworkSpec, chunks: int
) -> None:
    """One real actor, until it is terminated; its stream holds at most ``chunks``."""
    from actors.actor_id import ActorId
    from actors.builders import build_actor
    from replay.chunk_log import open_log

    actor, log = ActorId(run, 0, slot, slots, 1), open_log(url, run, "actor", chunks)
    rollout = build_actor(actor, env, config, spec, log)
    with contextlib.suppress(LogError):  # the server ends first
        while True:
            rollout.collect(1.0)
