"""Actor rate: one actor at work against a bare vector environment with random actions, in env steps per second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from actors.actor_id import ActorId
from actors.atari import atari_arguments, atari_spec
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.envs import make_env, schema_of
from actors.policy import make_policy
from actors.rollout import Rollout
from benchmarks.herd import beside, publish_weights, some_weights
from benchmarks.result import Result, alternate
from deploy.server.embedded import EmbeddedServer
from learner.networks import NetworkConfig, NetworkSpec
from replay.chunk_log import open_log

RUN = "actor-rate"
TARGET = 0.8


class Subject(NamedTuple):
    """An environment, its lanes, and the network that the actor infers by; ``infers``: the bare loop does, too."""

    env: str
    lanes: int
    network: NetworkConfig
    infers: bool
    chunk_steps: int = 8
    frame_stack: int = 1

    @property
    def config(self) -> EnvConfig:
        """The environment's configuration."""
        return EnvConfig(id=self.env, frame_stack=self.frame_stack)

    def bare_lanes(self) -> VectorEnv[Any, Any, Any]:
        """The lanes without anything of qherd: an Atari game's are ale-py's C++ vector environment."""
        if not self.env.startswith("ALE/"):
            return SyncVectorEnv([lambda: make_env(self.config, training=True)] * self.lanes, copy=False)
        from ale_py.vector_env import AtariVectorEnv

        options = atari_arguments({}, None, training=True)
        game = atari_spec(self.env).kwargs["game"]
        return AtariVectorEnv(game, self.lanes, stack_num=self.frame_stack, num_threads=1, **options)


LANDER = Subject("LunarLander-v3", 32, NetworkConfig(hidden=(128, 128)), infers=False)
MINATAR = NetworkConfig(encoder="minatar", hidden=(128,), layer_norm=True)
SUBJECTS = (
    LANDER,
    Subject("MinAtar/Breakout-v1", 16, MINATAR, True, chunk_steps=16),
    Subject("ALE/Pong-v5", 16, NetworkConfig(encoder="nature", hidden=(512,)), True, chunk_steps=16, frame_stack=4),
)
"""The last two have the lanes, chunks and networks of their presets."""


@contextlib.contextmanager
def rollout_at_work(subject: Subject = LANDER) -> Iterator[Rollout]:
    """One actor's rollout on a real server, with weights and all the credit it can use."""
    with EmbeddedServer(RUN, 256 << 20) as server:
        schema, spec = schema_of(make_env(subject.config, training=True)), NetworkSpec(subject.network)
        config = ActorConfig(count=1, lanes=subject.lanes, chunk_steps=subject.chunk_steps)
        with beside(publish_weights, server.url("learner"), RUN, spec, schema):
            log = open_log(server.url("actor"), RUN, "actor", 1000)
            rollout = build_actor(ActorId(RUN, 0, 0, 1, 1), subject.config, config, spec, log)
            while not rollout.ready():
                time.sleep(0.05)
            yield rollout


def measure(quick: bool) -> list[Result]:
    """Both sides step the same kind of lanes and count env steps only (no boundary rows).

    The actor explores with epsilon 1, so that both play the same episodes on average; it infers all the same, writes
    rows, encodes chunks, sends them to a real server, and fetches weights that change four times a second.
    """
    return [result for subject in SUBJECTS for result in _measure(subject, quick)]


def _measure(subject: Subject, quick: bool) -> list[Result]:
    seconds, repetitions = (0.2, 2) if quick else (2.0, 15)
    with rollout_at_work(subject) as rollout:
        actor, bare = actor_loop(rollout), bare_loop(subject)
        (wall, cpu), (bare_wall, bare_cpu) = _both(actor, bare, seconds, repetitions)
    rows = subject.lanes * subject.chunk_steps
    units = "-".join(map(str, subject.network.hidden))
    text = f"{subject.env}, {subject.lanes} lanes, {subject.network.encoder} {units}, chunks of {rows} rows"
    other = f"bare vector environment, random actions{' and the forward pass' if subject.infers else ''}"
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


def bare_loop(subject: Subject) -> Callable[[float], int]:
    """A function that steps lanes at random for some seconds and returns the env steps."""
    lanes = subject.lanes
    envs = subject.bare_lanes()
    rng = np.random.default_rng(0)
    actions = int(envs.single_action_space.n)  # type: ignore[attr-defined]
    obs, _ = envs.reset(seed=0)
    ended = np.zeros(lanes, np.bool_)
    spec, schema = NetworkSpec(subject.network), schema_of(make_env(subject.config, training=True))
    policy = make_policy(spec, schema) if subject.infers else None
    if policy is not None:
        policy.load(some_weights(spec, schema))

    def work(seconds: float) -> int:
        nonlocal obs, ended
        env_steps, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            if policy is not None:
                policy(obs, {})
            obs, _, terminated, truncated, _ = envs.step(rng.integers(0, actions, lanes))
            env_steps += lanes - int(np.count_nonzero(ended))
            ended = terminated | truncated
        return env_steps

    return work
