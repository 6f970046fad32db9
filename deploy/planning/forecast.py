"""The arithmetic of ``qherd plan``: what a run will take and do, from its configuration and two rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.measure import ActorRate
from deploy.planning.memory import (
    ACTOR_BYTES,
    LEARNER_BYTES,
    check_limiter,
    chunk_rows,
    megabytes,
    network_bytes,
    plan_memory,
)
from learner.config import PUBLISH_MIN_S
from replay.chunk import Schema
from replay.storage import available_memory

RUNNING_SHARE = 0.88
"""Updates of the running learner, of a bare loop's on one batch (docs/performance.md)."""


@dataclass(frozen=True)
class Forecast:
    """A run before it starts. Bytes, per second where the name says so; ``bound_by`` is what limits its env steps."""

    env: str
    mode: str
    actors: int
    lanes: int
    row_bytes: int
    weights_bytes: int
    server_bytes: int
    mirror_bytes: int
    tree_bytes: int
    states_bytes: int
    batch_bytes: int
    training_bytes: int
    actors_bytes: int
    actor_env_steps_per_s: float
    actor_cpu_share: float
    actor_env_share: float | None
    actor_env_bytes: int
    herd_env_steps_per_s: float
    updates_per_s: float
    learner_env_steps_per_s: float
    env_steps_per_s: float
    expected_updates_per_s: float
    bound_by: str
    samples_per_insert: float
    half_band_samples: float
    actors_wait_share: float
    learner_wait_share: float
    first_update_s: float
    replay_full_s: float
    rows_bytes_per_s: float
    chunks_per_s: float
    weights_published_bytes_per_s: float
    weights_fetched_bytes_per_s: float

    @property
    def network_bytes_per_s(self) -> float:
        """In and out of the server: every row goes in once and out once."""
        return 2 * self.rows_bytes_per_s + self.weights_published_bytes_per_s + self.weights_fetched_bytes_per_s


def forecast_run(config: RunConfig, schema: Schema, actor: ActorRate, updates_per_s: float, cores: float) -> Forecast:
    """Computes the forecast of a run. ``updates_per_s``: what the learner could do; ``cores``: of this machine, which
    in the modes of one machine is all there is.

    An update takes ``batch`` samples, of sequences all the trained steps of the longest, and an env step allows
    ``samples_per_insert``: the learner's updates allow ``updates_per_s * batch / samples_per_insert`` env steps per
    second. The slower side bounds the run, and the limiter has the other one wait. A run without
    actors, from a dataset alone, is bound by its learner.
    """
    limiter, actors = check_limiter(config), config.actors
    planned, weights = plan_memory(config, schema), network_bytes(config, schema)
    herd = actors.count * actor.env_steps_per_s
    if config.mode != "cluster":
        herd = min(herd, cores * actor.env_steps_per_s / max(actor.cpu_share, 1e-3))
    allowed = updates_per_s * limiter.batch / limiter.samples_per_insert
    env_steps = min(herd, allowed)
    updates = env_steps * limiter.samples_per_insert / limiter.batch if actors.count else updates_per_s
    rows_per_chunk = min(chunk_rows(config), max(actors.lanes, actors.flush_s * env_steps / max(1, actors.count)))
    published = min(1 / PUBLISH_MIN_S, updates / config.learner.publish_every_updates)
    fetched = actors.count * min(published, 1 / actors.fetch_every_s if actors.fetch_every_s else math.inf)
    header = schema.chunk_bytes(0, actors.lanes) / rows_per_chunk  # and the lanes' recurrent states
    return Forecast(
        env=config.env.id,
        mode=config.mode,
        actors=actors.count,
        lanes=actors.lanes,
        row_bytes=schema.row_bytes,
        weights_bytes=weights,
        server_bytes=planned.server,
        mirror_bytes=planned.mirror,
        tree_bytes=planned.tree,
        states_bytes=round(planned.states * chunk_rows(config) / rows_per_chunk),
        batch_bytes=planned.batch,
        training_bytes=6 * weights,
        actors_bytes=actors.count * (ACTOR_BYTES + weights + actor.env_bytes),
        actor_env_steps_per_s=actor.env_steps_per_s,
        actor_cpu_share=actor.cpu_share,
        actor_env_share=actor.env_share,
        actor_env_bytes=actor.env_bytes,
        herd_env_steps_per_s=herd,
        updates_per_s=updates_per_s,
        learner_env_steps_per_s=allowed,
        env_steps_per_s=env_steps,
        expected_updates_per_s=updates,
        bound_by="learner" if allowed < herd or not actors.count else "actors",
        samples_per_insert=limiter.samples_per_insert,
        half_band_samples=limiter.half_band,
        actors_wait_share=1 - env_steps / herd if actors.count else 0.0,
        learner_wait_share=1 - env_steps / allowed if actors.count else 0.0,
        first_update_s=config.replay.min_rows / herd if actors.count else 0.0,
        replay_full_s=config.replay.capacity_rows / env_steps if actors.count else 0.0,
        rows_bytes_per_s=env_steps * (schema.row_bytes + header),
        chunks_per_s=env_steps / rows_per_chunk,
        weights_published_bytes_per_s=published * weights,
        weights_fetched_bytes_per_s=fetched * weights,
    )


def check_machine_memory(config: RunConfig, forecast: Forecast) -> None:
    """Raises ConfigError where this machine cannot hold the run's processes and what they hold."""
    free = available_memory()
    if config.mode == "cluster" or free is None:
        return
    needed = memory_needed(config, forecast)
    if needed > free:
        raise ConfigError(
            f"{forecast.actors} actors of {megabytes(forecast.actors_bytes / forecast.actors)} each, the learner and "
            f"the server need {megabytes(needed)} of memory, {megabytes(free)} are free: lower --actors.count or "
            "--replay.capacity_rows, or use --mode cluster"
        )


def memory_needed(config: RunConfig, forecast: Forecast) -> float:
    """Returns bytes of this machine's memory, all processes together."""
    learner = (
        LEARNER_BYTES + forecast.training_bytes + forecast.tree_bytes + forecast.states_bytes + forecast.batch_bytes
    )
    learner += forecast.mirror_bytes if config.replay.storage == "ram" else 0
    if config.mode == "inline":  # of one process, to which the evaluator adds some lanes
        return learner + (forecast.actors + 1) * forecast.actor_env_bytes
    evaluator = ACTOR_BYTES + forecast.actor_env_bytes  # it is like an actor
    return learner + forecast.server_bytes + forecast.actors_bytes + evaluator
