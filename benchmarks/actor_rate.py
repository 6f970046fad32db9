"""Actor rate: one actor at work against a bare SyncVectorEnv loop with random actions, in env steps per second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
from gymnasium.vector import SyncVectorEnv

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_env, schema_of
from actors.rollout import Rollout
from benchmarks.herd import beside, publish_weights
from benchmarks.result import Result, alternate
from deploy.server.embedded import EmbeddedServer
from learner.networks import NetworkSpec
from replay.chunk_log import open_log

RUN = "actor-rate"
LANES = 32
CHUNK_STEPS = 8
HIDDEN = (128, 128)
TARGET = 0.8
ENV = EnvConfig(id="LunarLander-v3")


@contextlib.contextmanager
def rollout_at_work() -> Iterator[Rollout]:
    """One actor's rollout on a real server, with weights and all the credit it can use."""
    with EmbeddedServer(RUN, 256 << 20) as server:
        schema = schema_of(make_env(ENV, training=True))
        sizes = (*schema.obs_shape, *HIDDEN, schema.num_actions)
        config = ActorConfig(count=1, lanes=LANES, chunk_steps=CHUNK_STEPS)
        with beside(publish_weights, server.url("learner"), RUN, sizes):
            log = open_log(server.url("actor"), RUN, "actor", 1000)
            rollout = build_actor(ActorId(RUN, 0, 0, 1, 1), ENV, config, NetworkSpec(), log)
            while not rollout.ready():
                time.sleep(0.05)
            yield rollout


def measure(quick: bool) -> list[Result]:
    """Both sides step the same kind of lanes and count env steps only (no boundary rows).

    The actor explores with epsilon 1, so that both fly the same episodes on average; it infers all the same, writes
    rows, encodes chunks, sends them to a real server, and fetches weights that change four times a second.
    """
    seconds, repetitions = (0.2, 2) if quick else (2.0, 15)
    with rollout_at_work() as rollout:
        actor, bare = actor_loop(rollout), bare_loop()
        (wall, cpu), (bare_wall, bare_cpu) = _both(actor, bare, seconds, repetitions)
    text = f"{LANES} lanes, {'-'.join(map(str, HIDDEN))} network, chunks of {LANES * CHUNK_STEPS} rows"
    other = "bare SyncVectorEnv, random actions"
    return [
        Result("actor rate", "env steps/s", wall, other, bare_wall, TARGET, notes=(text,)),
        Result("actor rate by CPU time", "env steps/CPU s", cpu, other, bare_cpu, notes=("the actor's process only",)),
    ]


Rates = tuple[tuple[float, ...], tuple[float, ...]]


def _both(
    actor: Callable[[float], int], bare: Callable[[float], int], seconds: float, repetitions: int
) -> tuple[Rates, Rates]:
    """(rates per second, rates per CPU second) of both sides."""
    cpu_rates: dict[Callable[[float], int], list[float]] = {actor: [], bare: []}

    def rate(loop: Callable[[float], int]) -> float:
        started, cpu_started = time.perf_counter(), time.process_time()
        env_steps = loop(seconds)
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        cpu_rates[loop].append(env_steps / cpu)
        return env_steps / elapsed

    ours, others = alternate(lambda: rate(actor), lambda: rate(bare), repetitions)
    return (ours, tuple(cpu_rates[actor])), (others, tuple(cpu_rates[bare]))


def actor_loop(rollout: Rollout) -> Callable[[float], int]:
    """A function that lets the actor work for some seconds and returns its env steps."""

    def work(seconds: float) -> int:
        before = rollout.counters.env_steps
        return rollout.collect(seconds).counters.env_steps - before

    return work


def bare_loop() -> Callable[[float], int]:
    """A function that steps lanes at random for some seconds and returns the env steps."""
    envs = SyncVectorEnv([lambda: make_env(ENV, training=True)] * LANES, copy=False)
    rng = np.random.default_rng(0)
    actions = int(envs.single_action_space.n)  # type: ignore[attr-defined]
    envs.reset(seed=0)
    ended = np.zeros(LANES, np.bool_)

    def work(seconds: float) -> int:
        nonlocal ended
        env_steps, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            _, _, terminated, truncated, _ = envs.step(rng.integers(0, actions, LANES))
            env_steps += LANES - int(np.count_nonzero(ended))
            ended = terminated | truncated
        return env_steps

    return work
