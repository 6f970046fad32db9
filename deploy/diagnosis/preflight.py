"""The checks of ``qherd doctor`` before a run: what it needs, looked at one by one."""

from __future__ import annotations

from collections.abc import Iterator

from actors.errors import EnvError
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.diagnosis.checks.check import Check, guarded
from deploy.diagnosis.checks.environment import environment_checks
from deploy.diagnosis.checks.machine import (
    cores_check,
    disk_check,
    gpu_checks,
    open_files_check,
    ports_checks,
    shared_memory_check,
    versions,
)
from deploy.diagnosis.checks.ray_nodes import ray_checks
from deploy.diagnosis.checks.server import server_checks
from deploy.planning.memory import (
    check_limiter,
    check_memory,
    check_network,
    check_windows,
    plan_memory,
)
from deploy.planning.preconditions import check_unused, look_at_env, resolved
from deploy.process.isolation import output_apart
from learner.networks import choice_of
from replay.chunk import Schema


def preflight(config: RunConfig) -> Iterator[Check]:
    """Checks everything that a run with this configuration needs, one after the other, the slow ones last."""
    yield versions()
    yield from guarded("limits", lambda: _limits(config))
    schema = None
    try:
        look = look_at_env(config)
        network = _network(config, look.schema)
        schema = look.schema if network.state == "ok" else None  # all that follows wants a network that fits
        config = resolved(config, look.schema)
        yield from environment_checks(config, look, rate=schema is not None)
        yield network
    except EnvError as error:
        yield Check("env", "problem", str(error), "see --env.id, --env.path and --env.kwargs")
    if schema is not None:
        yield from guarded("memory", lambda: _memory(config, schema))
    yield from guarded("ports", lambda: ports_checks(config))
    yield disk_check(config.runs_dir)
    yield open_files_check(config)
    yield cores_check(config)
    yield from guarded("GPU", lambda: gpu_checks(config))
    if config.mode != "inline":
        yield from guarded("server", lambda: server_checks(config, schema))
        yield shared_memory_check(config)
        yield from guarded("Ray", lambda: ray_checks(config))


def _limits(config: RunConfig) -> Iterator[Check]:
    limiter = check_limiter(config)
    check_unused(config)
    samples = "trained steps of sequences" if config.replay.sequences.trained else "samples"
    yield Check(
        "limits",
        "ok",
        f"{limiter.samples_per_insert:g} {samples} per insert from {limiter.min_rows:,} rows on, a replay of "
        f"{limiter.capacity_rows:,}",
    )


def _network(config: RunConfig, schema: Schema) -> Check:
    try:
        with output_apart():  # modules of the user's own may print as they are imported
            check_network(config, schema)
    except ConfigError as error:
        return Check("network", "problem", str(error), "see --learner.network.encoder and docs/algorithms.md")
    encoder, why = choice_of(config.learner.network, schema)
    return Check("network", "ok", f"encoder {encoder}, {why}")


def _memory(config: RunConfig, schema: Schema) -> Iterator[Check]:
    check_windows(config, schema)
    check_memory(config, schema)
    yield Check("memory", "ok", plan_memory(config, schema).summary_line(config))
