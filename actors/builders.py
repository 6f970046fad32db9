"""Builds an actor or an evaluator: for every mode, for ``plan``, tests and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from actors.actor_id import ActorId
from actors.closing import close_all
from actors.config import ActorConfig, EnvConfig, EvalConfig
from actors.envs import make_lanes, schema_of
from actors.evaluator import LANES, Evaluator
from actors.players import Players
from actors.policy import make_policy
from actors.rollout import Rollout
from learner.networks import NetworkSpec, core_width
from replay.chunk_log.protocol import ChunkLog


def build_actor(
    actor: ActorId,
    env: EnvConfig,
    config: ActorConfig,
    network: NetworkSpec,
    log: ChunkLog,
    *,
    recorded: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Rollout:
    """Builds a slot's actor on ``log``, which has to be this thread's own, with its lanes and its policy. Lanes that
    are ``recorded`` have a state. Closes the lanes where the rest cannot be built.

    Raises:
        EnvError: the environment cannot be used.
    """
    lanes = make_lanes(env, config.lanes, config.restarts, recorded=recorded, slot=actor.slot)
    try:
        schema = schema_of(lanes.envs[0])
        schema = replace(schema, core=core_width(network, schema.num_actions))
        return Rollout(actor, lanes, schema, make_policy(network, schema), log, config, clock)
    except BaseException:
        close_all(lanes.envs)
        raise


def build_evaluator(
    env: EnvConfig,
    config: EvalConfig,
    network: NetworkSpec,
    seed: int,
    restart: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluator:
    """Builds an evaluator with its environments and its policy; see ``Evaluator`` for ``restart`` and ``stopped``."""
    players = Players(env, min(LANES, max(config.screen_episodes, config.confirm_episodes)))
    try:
        policy = make_policy(network, schema_of(players.envs[0]))
        return Evaluator(players, policy, config, seed, restart, stopped)
    except BaseException:
        players.close()
        raise
