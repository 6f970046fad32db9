"""``qherd plan``: what a run will take and do, before anything is started; each number with what it is made of.

Rates are measured here for a second each, with the run's own environment and network, or given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import tyro
from pydantic import Field
from rich.filesize import decimal

from deploy.commands.run_options import RunOptions, base_config
from deploy.config.cli_types import as_written
from deploy.config.models import RunConfig
from deploy.planning.dataset import check_dataset
from deploy.planning.forecast import RUNNING_SHARE, Forecast, check_machine_memory, forecast_run, memory_needed
from deploy.planning.measure import ActorRate, measure_actor, measure_updates
from deploy.planning.memory import (
    LEARNER_BYTES,
    batches_together,
    check_limiter,
    check_memory,
    check_network,
    check_values,
    check_windows,
    chunk_rows,
    megabytes,
)
from deploy.planning.preconditions import check_unused, resolved, warning_look
from deploy.process.host import usable_cores
from deploy.process.isolation import output_apart
from learner.networks import choice_of
from replay.chunk import Schema
from replay.chunk_log.server_kind import Bounds
from replay.storage import available_memory

LINK_BYTES_S = 125e6
"""What a link of 1 Gbit/s carries."""


class Plan(RunOptions):
    """Say what a run will take and do, before it is started: memory of server, learner and actors, env steps and
    updates per second, samples per insert, bytes per second on the network, each with what it is made of. What is
    impossible is refused. ENV and the options are those of qherd train.

    The environment and the network are tried on this machine, for a second each, unless their rates are given.
    """

    env_steps_per_second: float | None = Field(None, gt=0)
    """Env steps per second of one actor, all its lanes together. The default is measured."""
    updates_per_second: float | None = Field(None, gt=0)
    """Updates per second that the learner can do. The default is measured, on this machine."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    base = base_config(arguments)
    call = tyro.cli(Plan, args=arguments, default=Plan(options=base), prog="qherd plan [ENV]", registry=as_written())
    return plan_command(call.options, call.env_steps_per_second, call.updates_per_second, as_json=call.as_json)


def plan_command(
    config: RunConfig, env_steps_per_s: float | None, updates_per_s: float | None, *, as_json: bool
) -> int:
    """Prints the plan; returns the exit code.

    Raises:
        ConfigError, EnvError, CannotFit: what cannot work.
    """
    check_limiter(config)
    check_unused(config)
    with output_apart():  # modules of the user's own may print as they are imported
        look = warning_look(config)
        schema = look.schema
        config = resolved(config, schema)
        check_network(config, schema)
        check_windows(config, schema)
        check_dataset(config, schema, look.about)
        check_memory(config, schema)
        if config.mode != "inline":  # nobody is asked: by the bounds that servers have by default
            check_values(config, schema, Bounds(), "a server")
        known = env_steps_per_s if config.actors.count else 0.0
        actor = measure_actor(config, schema) if known is None else ActorRate(known)
        updates = updates_per_s or RUNNING_SHARE * measure_updates(config, schema)
    forecast = forecast_run(config, schema, actor, updates, usable_cores())
    check_machine_memory(config, forecast)
    if as_json:
        further = {"network_bytes_per_s": forecast.network_bytes_per_s, "encoder": config.learner.network.encoder}
        print(json.dumps(asdict(forecast) | further))
    else:
        _print(config, schema, forecast, (env_steps_per_s is None, updates_per_s is None))
    return 0


def _print(config: RunConfig, schema: Schema, forecast: Forecast, measured: tuple[bool, bool]) -> None:
    at = {"inline": "in one process", "local": "on this machine", "cluster": "on a cluster"}[config.mode]
    print(
        f"plan for {forecast.env}: {forecast.actors} actor(s) of {forecast.lanes} lanes, a replay of "
        f"{config.replay.capacity_rows:,} rows, {at}"
    )
    lines = [
        ("encoder", *choice_of(config.learner.network, schema)),
        *_memory_lines(config, schema, forecast),
        *_speed_lines(config, forecast, measured),
    ]
    lines += _network_lines(config, forecast)
    for name, value, source in lines:
        print(f"  {name:18}  {value:>21}  {source}")
    print(_verdict(config, forecast))


Line = tuple[str, str, str]


def _memory_lines(config: RunConfig, schema: Schema, forecast: Forecast) -> Iterator[Line]:
    limits, row = config.replay, forecast.row_bytes
    stack = f", of {schema.stack} stacked ones the newest" if schema.stack > 1 else ""
    yield (
        "row",
        f"{row:,} B",
        f"observation {schema.obs_bytes:,} B ({schema.obs_dtype}{stack}) + {row - schema.obs_bytes} B: "
        + ", ".join(("action, reward, Qs", *(column.name for column in schema.extras))),
    )
    if forecast.server_bytes:
        in_flight = 4 * config.actors.count * chunk_rows(config)
        yield (
            "server, at most",
            megabytes(forecast.server_bytes),
            f"1.25 x ({limits.rows_in_log:,} rows of the log + {in_flight:,} in flight, chunk headers), 3 x "
            "the weights, 32 MB of its own",
        )
    yield (
        "mirror",
        megabytes(forecast.mirror_bytes),
        f"{limits.capacity_rows:,} rows in {limits.storage}, with links and n-step"
        + ("; the dataset's besides" if limits.dataset else ""),
    )
    if forecast.batch_bytes:
        sequences = limits.sequences
        yield (
            "recurrent states",
            megabytes(forecast.states_bytes),
            f"one of {schema.core:,} numbers for each lane of a chunk of {config.actors.chunk_steps} steps; more where "
            f"actors.flush_s sends shorter ones",
        )
        yield (
            "gathered batches",
            megabytes(forecast.batch_bytes),
            f"{batches_together(config, schema)} at once, of {config.learner.batch} sequences of {sequences.burn_in} + "
            f"{sequences.trained} steps and the bootstrap's",
        )
    if forecast.tree_bytes:
        yield "sum tree", megabytes(forecast.tree_bytes), "16 B a row, capacity rounded up to a power of two"
    yield (
        "learner besides",
        megabytes(LEARNER_BYTES + forecast.training_bytes),
        f"Python, torch; 6 x the weights of {_bytes(forecast.weights_bytes)}: online, target, average, gradient, Adam",
    )
    if config.mode != "inline":
        each = megabytes(forecast.actors_bytes / forecast.actors)
        envs = "environments not counted, since their rate was given"
        if forecast.actor_env_share is not None:
            envs = f"of it {megabytes(forecast.actor_env_bytes)} its {forecast.lanes} environments, as measured here"
        yield "actors", megabytes(forecast.actors_bytes), f"{forecast.actors} processes of {each}, {envs}"
    free = available_memory()
    if config.mode != "cluster" and free is not None:
        yield (
            "in all",
            megabytes(memory_needed(config, forecast)),
            f"of this machine's memory, of which {megabytes(free)} are free",
        )


def _speed_lines(config: RunConfig, forecast: Forecast, measured: tuple[bool, bool]) -> Iterator[Line]:
    if not config.actors.count:
        source = f"{RUNNING_SHARE:g} x a bare loop's, measured here for a second" if measured[1] else "as given"
        yield "learner", f"{forecast.updates_per_s:,.0f} updates/s", f"{source}: from the dataset alone"
        return
    source = "measured here for a second" if measured[0] else "as given"
    if forecast.actor_env_share is not None:
        source += (
            f": {forecast.actor_env_share:.0%} of it in the environment, {forecast.actor_cpu_share:.0%} on the core"
        )
    yield "one actor", f"{forecast.actor_env_steps_per_s:,.0f} env steps/s", source
    shared = f"on {usable_cores():g} cores" if config.mode != "cluster" else "each on a core like this machine's"
    yield (
        "all actors",
        f"{forecast.herd_env_steps_per_s:,.0f} env steps/s",
        f"{forecast.actors} of them, {shared}, never waiting",
    )
    source = f"{RUNNING_SHARE:g} x a bare loop's, measured here for a second" if measured[1] else "as given"
    yield "learner", f"{forecast.updates_per_s:,.0f} updates/s", source
    spi, sequences = forecast.samples_per_insert, config.replay.sequences
    batch = f"{config.learner.batch}"
    if sequences.trained:
        batch = f"({batch} x {sequences.trained} trained steps)"
    yield (
        "it allows",
        f"{forecast.learner_env_steps_per_s:,.0f} env steps/s",
        f"updates/s x batch {batch} / {spi:g} samples per insert{_shorter(config)}",
    )
    yield "expected", f"{forecast.env_steps_per_s:,.0f} env steps/s", f"the smaller one: the {forecast.bound_by}"
    yield "", f"{forecast.expected_updates_per_s:,.0f} updates/s", f"{spi:g} / {batch} updates per env step"
    yield (
        "samples per insert",
        f"{spi:g}",
        f"held by the limiter to within {forecast.half_band_samples:,.0f} samples, however fast either side is",
    )
    yield (
        "waiting",
        f"{forecast.actors_wait_share:.0%} / {forecast.learner_wait_share:.0%}",
        "of the actors' time / of the learner's",
    )
    yield (
        "first update",
        f"{forecast.first_update_s:,.2f} s",
        f"after {config.replay.min_rows:,} env steps, once all works",
    )
    yield "replay full", f"{forecast.replay_full_s:,.0f} s", f"after {config.replay.capacity_rows:,} rows"


def _shorter(config: RunConfig) -> str:
    return "; less where episodes end sooner" if config.replay.sequences.trained else ""


def _network_lines(config: RunConfig, forecast: Forecast) -> Iterator[Line]:
    if forecast.mode == "inline":
        return
    rows = forecast.rows_bytes_per_s
    chunks = f"{forecast.chunks_per_s:,.0f} chunks/s of {_bytes(rows / max(forecast.chunks_per_s, 1e-9))}"
    states = ", recurrent states" if config.replay.sequences.trained else ""
    yield "rows in", f"{_bytes(rows)}/s", f"env steps/s x {forecast.row_bytes:,} B{states} and headers: {chunks}"
    yield "rows out", f"{_bytes(rows)}/s", "read once, by the learner"
    weights, published = forecast.weights_bytes, forecast.weights_published_bytes_per_s
    times = f"{published / weights:,.1f} times/s {_bytes(weights)}"
    yield "weights in", f"{_bytes(published)}/s", times
    fetches = f"to {forecast.actors} actor(s), each at most every {config.actors.fetch_every_s:g} s"
    yield "weights out", f"{_bytes(forecast.weights_fetched_bytes_per_s)}/s", fetches
    yield (
        "network",
        f"{_bytes(forecast.network_bytes_per_s)}/s",
        f"{forecast.network_bytes_per_s / LINK_BYTES_S:.1%} of a link of 1 Gbit/s",
    )


def _verdict(config: RunConfig, forecast: Forecast) -> str:
    """Returns what to change, in a line or two."""
    waiting, learner = forecast.actors_wait_share, forecast.learner_wait_share
    if not config.actors.count:
        return "the learner bounds this run, which has no actors: give --budget.updates or --budget.seconds"
    if forecast.bound_by == "learner":
        fewer = max(1, math.ceil(forecast.actors * (1 - waiting)))
        would_do = f"; {fewer} of them would do" if fewer < forecast.actors else ""
        text = (
            f"the learner bounds this run, and its actors wait {waiting:.0%} of their time{would_do}; a faster learner "
            "or fewer samples per insert would use them"
        )
    else:
        text = (
            f"the actors bound this run, and its learner waits {learner:.0%} of its time; more actors, or up to "
            f"{forecast.samples_per_insert / (1 - learner):,.3g} samples per insert, would use it"
        )
    if config.mode == "cluster" and forecast.network_bytes_per_s > LINK_BYTES_S:
        text += "\nmore goes over the network than a link of 1 Gbit/s carries"
    return text


def _bytes(nbytes: float) -> str:
    return decimal(int(nbytes))
