"""The check of the environment: what comes out of it, and how fast it is."""

from __future__ import annotations

from collections.abc import Iterator

from actors.errors import EnvError
from actors.first_look import Look, Played
from deploy.config.models import RunConfig
from deploy.diagnosis.checks.check import Check
from deploy.planning.measure import measure_actor
from replay.chunk import Schema

COMPUTES = 0.7
"""An actor that is on the core for a greater share of its time is bound by the CPU."""


def environment_checks(config: RunConfig, look: Look, *, rate: bool) -> Iterator[Check]:
    """Checks spaces and dtypes, what comes out of it, and, with ``rate``, the autoreset mode and the step rate of an
    actor, which needs a network that fits."""
    name, schema = "env", look.schema
    stored = f"stored as {schema.obs_dtype}{list(schema.obs_shape)}, {schema.row_bytes} B a row"
    yield Check(name, "ok", f"{config.env.id}: {look.spaces}; {stored}")
    yield _played(name, look.played, config)
    for text in look.warnings:
        yield Check(name, "warning", text, "see docs/environments.md")
    if rate:
        yield _rate(name, config, schema)


def _rate(name: str, config: RunConfig, schema: Schema) -> Check:
    """Checks an actor at work."""
    try:
        rate = measure_actor(config, schema)
    except EnvError as error:
        return Check(name, "problem", f"it raises as it is played: {error}", "mend it: each time costs an episode")
    kind = "it computes" if rate.cpu_share > COMPUTES else "it waits most of the time, and not for the CPU"
    return Check(
        name,
        "ok",
        f"autoreset NEXT_STEP; an actor of {config.actors.lanes} lanes does {rate.env_steps_per_s:,.0f} env steps/s, "
        f"{rate.env_share:.0%} of its time in the environment; {kind} ({rate.cpu_share:.0%} on the core)",
    )


def _played(name: str, played: Played, config: RunConfig) -> Check:
    """Checks how it was played at random."""
    if played.slowest_s * config.actors.lanes > config.actors.step_timeout_s / 2:
        return Check(
            name,
            "warning",
            f"a step took {played.slowest_s:.1f} s, and an actor makes {config.actors.lanes} of them in turn",
            f"raise --actors.step_timeout_s ({config.actors.step_timeout_s:g} s) or lower --actors.lanes",
        )
    if not played.reproduces:
        return Check(
            name, "warning", "the same seed gives another first observation", "runs of it cannot be reproduced"
        )
    found = f"{played.steps:,} env steps at random: {played.ends} episode(s) ended, seeds reproduce, values are finite"
    return Check(name, "ok", found)
