"""``qherd plan``: what a run will take and do, before anything is started; each number with what it is made of.

Rates are measured here for a second each, with the run's own environment and network, or given.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from actors.actor_id import ActorId
from actors.closing import close_all
from actors.envs import make_lanes
from actors.policy import make_policy
from actors.rollout import Rollout
from deploy.config.models import ConfigError, RunConfig
from deploy.planning.memory import (
    ACTOR_BYTES,
    LEARNER_BYTES,
    check_limiter,
    check_memory,
    check_network,
    check_values,
    check_windows,
    chunk_rows,
    megabytes,
    network_bytes,
    plan,
)
from deploy.process.host import usable_cores
from deploy.process.isolation import environments_apart, output_apart
from deploy.run_directory.directory import env_of
from deploy.sessions.launch import check_unused, probe_env
from learner.config import PUBLISH_MIN_S
from learner.cpu_time import CpuTime
from learner.networks import parameter_shapes
from learner.weights import pack
from replay.chunk import HEADER_BYTES, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.server_kind import Bounds
from replay.credit import Credit, pack_credit
from replay.storage import available_memory

MEASURE_S, WARM_UP_S = 1.0, 0.2
RUNNING_SHARE = 0.88
"""Updates of the running learner, of a bare loop's on one batch (docs/performance.md)."""
LINK_BYTES_S = 125e6
"""What a link of 1 Gbit/s carries."""


class ActorRate(NamedTuple):
    """One actor with a core of its own: its env steps per second, and the shares of its time on that core and in the
    environment."""

    env_steps_per_s: float
    cpu_share: float = 1.0
    env_share: float | None = None
    env_bytes: int = 0
    """What its environments, and what they share, took of this machine's memory."""


@dataclass(frozen=True)
class Outlook:
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


def foresee(config: RunConfig, schema: Schema, actor: ActorRate, updates_per_s: float, cores: float) -> Outlook:
    """The arithmetic of the plan. ``updates_per_s``: what the learner could do; ``cores``: of this machine, which in
    the modes of one machine is all there is.

    An update takes ``batch`` samples, and an env step allows ``samples_per_insert``: the learner's updates allow
    ``updates_per_s * batch / samples_per_insert`` env steps per second. The slower side bounds the run, and the limiter
    has the other one wait.
    """
    limiter, actors = check_limiter(config), config.actors
    planned, weights = plan(config, schema), network_bytes(config, schema)
    herd = actors.count * actor.env_steps_per_s
    if config.mode != "cluster":
        herd = min(herd, cores * actor.env_steps_per_s / max(actor.cpu_share, 1e-3))
    allowed = updates_per_s * config.learner.batch / limiter.samples_per_insert
    env_steps = min(herd, allowed)
    updates = env_steps * limiter.samples_per_insert / config.learner.batch
    rows_per_chunk = min(chunk_rows(config), max(actors.lanes, actors.flush_s * env_steps / actors.count))
    published = min(1 / PUBLISH_MIN_S, updates / config.learner.publish_every_updates)
    fetched = actors.count * min(published, 1 / actors.fetch_every_s if actors.fetch_every_s else math.inf)
    header = HEADER_BYTES / rows_per_chunk
    return Outlook(
        env=config.env.id,
        mode=config.mode,
        actors=actors.count,
        lanes=actors.lanes,
        row_bytes=schema.row_bytes,
        weights_bytes=weights,
        server_bytes=planned.server,
        mirror_bytes=planned.mirror,
        tree_bytes=planned.tree,
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
        bound_by="learner" if allowed < herd else "actors",
        samples_per_insert=limiter.samples_per_insert,
        half_band_samples=limiter.half_band,
        actors_wait_share=1 - env_steps / herd,
        learner_wait_share=1 - env_steps / allowed,
        first_update_s=config.replay.min_rows / herd,
        replay_full_s=config.replay.capacity_rows / env_steps,
        rows_bytes_per_s=env_steps * (schema.row_bytes + header),
        chunks_per_s=env_steps / rows_per_chunk,
        weights_published_bytes_per_s=published * weights,
        weights_fetched_bytes_per_s=fetched * weights,
    )


def plan_command(
    config: RunConfig, env_steps_per_s: float | None, updates_per_s: float | None, *, as_json: bool
) -> int:
    """Print the plan; the exit code. Raises ConfigError, EnvError or CannotFit for what cannot work."""
    check_limiter(config)
    check_unused(config)
    with output_apart():  # modules of the user's own may print as they are imported
        schema = probe_env(config)
        check_network(config, schema)
        check_windows(config, schema)
        check_memory(config, schema)
        if config.mode != "inline":  # nobody is asked: by the bounds that servers have by default
            check_values(config, schema, Bounds(), "a server")
        actor = ActorRate(env_steps_per_s) if env_steps_per_s else measure_actor(config, schema)
        updates = updates_per_s or RUNNING_SHARE * measure_updates(config, schema)
    outlook = foresee(config, schema, actor, updates, usable_cores())
    _check_processes(config, outlook)
    if as_json:
        print(json.dumps(asdict(outlook) | {"network_bytes_per_s": outlook.network_bytes_per_s}))
    else:
        _print(config, schema, outlook, (env_steps_per_s is None, updates_per_s is None))
    return 0


def measure_actor(config: RunConfig, schema: Schema, seconds: float = MEASURE_S) -> ActorRate:
    """One actor of the run at work on a log in memory, so that nothing but itself holds it up."""
    log = MemoryLog(max_chunks=4)
    log.take_lease(1)
    log.publish(1, pack_credit({0: Credit(1, 0, 1 << 62)}), some_weights(config, schema))
    place, empty_bytes = ActorId("plan", config.seed, 0, 1, 1), resident_bytes()
    with environments_apart():
        lanes = make_lanes(env_of(config), config.actors.lanes, config.actors.restarts)
        try:
            policy = make_policy(config.learner.network_spec, schema)
            rollout = Rollout(place, lanes, schema, policy, log, config.actors)
            before = rollout.collect(WARM_UP_S)
            after = rollout.collect(seconds)
            env_bytes = max(0, resident_bytes() - empty_bytes)
        finally:
            close_all(lanes.envs)
    spent = {name: value - getattr(before.work, name) for name, value in after.work._asdict().items()}
    seconds = spent["seconds"] - spent["starved_seconds"]  # what else runs on this machine is not the run's
    return ActorRate(
        (after.counters.env_steps - before.counters.env_steps) / seconds,
        min(1.0, spent["cpu_seconds"] / seconds),
        spent["env_seconds"] / spent["seconds"],
        env_bytes,
    )


def resident_bytes() -> int:
    """This process's memory in RAM; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def some_weights(config: RunConfig, schema: Schema) -> bytes:
    """Packed weights as the run's first ones are: of its size, and random."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.learner.network_spec, schema)
    arrays = {
        name: (rng.normal(size=shape) / math.sqrt(math.prod(shape[1:])) * (len(shape) > 1)).astype(np.float32)
        for name, shape in shapes.items()  # biases are 0
    }
    return pack(1, 0, 0, arrays)


def measure_updates(config: RunConfig, schema: Schema, seconds: float = MEASURE_S) -> float:
    """Updates per second of a bare loop on one batch, on the learner's device where this machine has it."""
    import torch

    from learner.learner import Learner, choose_device
    from replay.mirror import Batch

    torch.set_num_threads(config.learner.threads)
    device = choose_device("auto" if config.mode == "cluster" else config.learner.device)
    learner, rng, batch = Learner(config.learner, schema, device, 0), np.random.default_rng(0), config.learner.batch
    dtype = np.dtype(schema.obs_dtype)
    obs = [rng.integers(0, 2, (batch, *schema.input_shape)).astype(dtype) for _ in range(2)]
    reward, discount = (rng.random(batch, np.float32) for _ in range(2))
    extras = {column.name: np.ones((batch, *column.shape), column.dtype) for column in schema.extras}
    transitions = Batch(obs[0], rng.integers(0, schema.num_actions, batch), reward, discount, obs[1], extras, extras)
    learner.update(transitions)  # the first one sets torch up
    learner.figures()
    updates, began, starved_s = 0, time.perf_counter(), CpuTime.now().starved_s
    while time.perf_counter() < began + seconds:
        learner.update(transitions)
        updates += 1
    learner.figures()  # waits for the device
    return updates / (time.perf_counter() - began - (CpuTime.now().starved_s - starved_s))


def _check_processes(config: RunConfig, outlook: Outlook) -> None:
    """Raises ConfigError where this machine cannot hold the run's processes and what they hold."""
    free = available_memory()
    if config.mode == "cluster" or free is None:
        return
    needed = _in_memory(config, outlook)
    if needed > free:
        raise ConfigError(
            f"{outlook.actors} actors of {megabytes(outlook.actors_bytes / outlook.actors)} each, the learner and the "
            f"server need {megabytes(needed)} of memory, {megabytes(free)} are free: lower --actors.count or "
            "--replay.capacity_rows, or use --mode cluster"
        )


def _in_memory(config: RunConfig, outlook: Outlook) -> float:
    """Bytes of this machine's memory, all processes together."""
    learner = LEARNER_BYTES + outlook.training_bytes + outlook.tree_bytes
    learner += outlook.mirror_bytes if config.replay.storage == "ram" else 0
    if config.mode == "inline":  # of one process, to which the evaluator adds some lanes
        return learner + (outlook.actors + 1) * outlook.actor_env_bytes
    evaluator = ACTOR_BYTES + outlook.actor_env_bytes  # it is like an actor
    return learner + outlook.server_bytes + outlook.actors_bytes + evaluator


def _print(config: RunConfig, schema: Schema, outlook: Outlook, measured: tuple[bool, bool]) -> None:
    at = {"inline": "in one process", "local": "on this machine", "cluster": "on a cluster"}[config.mode]
    print(
        f"plan for {outlook.env}: {outlook.actors} actor(s) of {outlook.lanes} lanes, a replay of "
        f"{config.replay.capacity_rows:,} rows, {at}"
    )
    lines = [*_memory_lines(config, schema, outlook), *_speed_lines(config, outlook, measured)]
    lines += _network_lines(config, outlook)
    for name, value, source in lines:
        print(f"  {name:18}  {value:>21}  {source}")
    print(_verdict(config, outlook))


Line = tuple[str, str, str]


def _memory_lines(config: RunConfig, schema: Schema, outlook: Outlook) -> Iterator[Line]:
    limits, row = config.replay, outlook.row_bytes
    stack = f", of {schema.stack} stacked ones the newest" if schema.stack > 1 else ""
    yield (
        "row",
        f"{row:,} B",
        f"observation {schema.obs_bytes:,} B ({schema.obs_dtype}{stack}) + {row - schema.obs_bytes} B: "
        + ", ".join(("action, reward, Qs", *(column.name for column in schema.extras))),
    )
    if outlook.server_bytes:
        in_flight = 4 * config.actors.count * chunk_rows(config)
        yield (
            "server, at most",
            megabytes(outlook.server_bytes),
            f"1.25 x ({limits.rows_in_log:,} rows of the log + {in_flight:,} in flight, chunk headers), 3 x "
            "the weights, 32 MB of its own",
        )
    yield (
        "mirror",
        megabytes(outlook.mirror_bytes),
        f"{limits.capacity_rows:,} rows in {limits.storage}, with links and n-step",
    )
    if outlook.tree_bytes:
        yield "sum tree", megabytes(outlook.tree_bytes), "16 B a row, capacity rounded up to a power of two"
    yield (
        "learner besides",
        megabytes(LEARNER_BYTES + outlook.training_bytes),
        f"Python, torch; 6 x the weights of {_bytes(outlook.weights_bytes)}: online, target, average, gradient, Adam",
    )
    if config.mode != "inline":
        each = megabytes(outlook.actors_bytes / outlook.actors)
        envs = "environments not counted, since their rate was given"
        if outlook.actor_env_share is not None:
            envs = f"of it {megabytes(outlook.actor_env_bytes)} its {outlook.lanes} environments, as measured here"
        yield "actors", megabytes(outlook.actors_bytes), f"{outlook.actors} processes of {each}, {envs}"
    free = available_memory()
    if config.mode != "cluster" and free is not None:
        yield (
            "in all",
            megabytes(_in_memory(config, outlook)),
            f"of this machine's memory, of which {megabytes(free)} are free",
        )


def _speed_lines(config: RunConfig, outlook: Outlook, measured: tuple[bool, bool]) -> Iterator[Line]:
    source = "measured here for a second" if measured[0] else "as given"
    if outlook.actor_env_share is not None:
        source += f": {outlook.actor_env_share:.0%} of it in the environment, {outlook.actor_cpu_share:.0%} on the core"
    yield "one actor", f"{outlook.actor_env_steps_per_s:,.0f} env steps/s", source
    shared = f"on {usable_cores():g} cores" if config.mode != "cluster" else "each on a core like this machine's"
    yield (
        "all actors",
        f"{outlook.herd_env_steps_per_s:,.0f} env steps/s",
        f"{outlook.actors} of them, {shared}, never waiting",
    )
    source = f"{RUNNING_SHARE:g} x a bare loop's, measured here for a second" if measured[1] else "as given"
    yield "learner", f"{outlook.updates_per_s:,.0f} updates/s", source
    spi, batch = outlook.samples_per_insert, config.learner.batch
    yield (
        "it allows",
        f"{outlook.learner_env_steps_per_s:,.0f} env steps/s",
        f"updates/s x batch {batch} / {spi:g} samples per insert",
    )
    yield "expected", f"{outlook.env_steps_per_s:,.0f} env steps/s", f"the smaller one: the {outlook.bound_by}"
    yield "", f"{outlook.expected_updates_per_s:,.0f} updates/s", f"{spi:g} / {batch} updates per env step"
    yield (
        "samples per insert",
        f"{spi:g}",
        f"held by the limiter to within {outlook.half_band_samples:,.0f} samples, however fast either side is",
    )
    yield (
        "waiting",
        f"{outlook.actors_wait_share:.0%} / {outlook.learner_wait_share:.0%}",
        "of the actors' time / of the learner's",
    )
    yield (
        "first update",
        f"{outlook.first_update_s:,.2f} s",
        f"after {config.replay.min_rows:,} env steps, once all works",
    )
    yield "replay full", f"{outlook.replay_full_s:,.0f} s", f"after {config.replay.capacity_rows:,} rows"


def _network_lines(config: RunConfig, outlook: Outlook) -> Iterator[Line]:
    if outlook.mode == "inline":
        return
    rows = outlook.rows_bytes_per_s
    chunks = f"{outlook.chunks_per_s:,.0f} chunks/s of {_bytes(rows / max(outlook.chunks_per_s, 1e-9))}"
    yield "rows in", f"{_bytes(rows)}/s", f"env steps/s x {outlook.row_bytes:,} B and headers: {chunks}"
    yield "rows out", f"{_bytes(rows)}/s", "read once, by the learner"
    weights, published = outlook.weights_bytes, outlook.weights_published_bytes_per_s
    times = f"{published / weights:,.1f} times/s {_bytes(weights)}"
    yield "weights in", f"{_bytes(published)}/s", times
    fetches = f"to {outlook.actors} actor(s), each at most every {config.actors.fetch_every_s:g} s"
    yield "weights out", f"{_bytes(outlook.weights_fetched_bytes_per_s)}/s", fetches
    yield (
        "network",
        f"{_bytes(outlook.network_bytes_per_s)}/s",
        f"{outlook.network_bytes_per_s / LINK_BYTES_S:.1%} of a link of 1 Gbit/s",
    )


def _verdict(config: RunConfig, outlook: Outlook) -> str:
    """What to change, in a line or two."""
    waiting, learner = outlook.actors_wait_share, outlook.learner_wait_share
    if outlook.bound_by == "learner":
        fewer = max(1, math.ceil(outlook.actors * (1 - waiting)))
        would_do = f"; {fewer} of them would do" if fewer < outlook.actors else ""
        text = (
            f"the learner bounds this run, and its actors wait {waiting:.0%} of their time{would_do}; a faster learner "
            "or fewer samples per insert would use them"
        )
    else:
        text = (
            f"the actors bound this run, and its learner waits {learner:.0%} of its time; more actors, or up to "
            f"{outlook.samples_per_insert / (1 - learner):,.3g} samples per insert, would use it"
        )
    if config.mode == "cluster" and outlook.network_bytes_per_s > LINK_BYTES_S:
        text += "\nmore goes over the network than a link of 1 Gbit/s carries"
    return text


def _bytes(nbytes: float) -> str:
    return decimal(int(nbytes))
