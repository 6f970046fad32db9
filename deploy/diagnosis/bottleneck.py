"""What holds a run up, from its measured waits. Pure: figures in, words out.

Two sides work at a ratio that the limiter holds. The slower side is never made to wait, so it is the one that bounds
the run; where its own time goes then decides what to change. A table of cases:

=====================  ==================  ===================================================================
actors without credit  learner waits       what bounds the run
=====================  ==================  ===================================================================
much                   little              learner: its biggest phase
much                   much                limiter: its band is narrower than what is under way
little                 much, or little     actors: for a core, env, own computing, the server, or weights
=====================  ==================  ===================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from deploy.config.models import RunConfig
from learner.phases import PHASE_KEY

Kind = Literal["env", "actor CPU", "Redis", "network", "learner", "limiter", "none", "not known"]
MUCH = 0.15
"""A side that waits for less than this share of its time is busy."""
STARVED = 0.25
"""Share of its working time for which an actor waits for a core, beyond which cores are what is missing."""
BUSY_SERVER = 0.7
"""A server works on one core: beyond this share of it, it is what actors wait for."""
PHASES = ("wait", "ingest", "sample", "transfer", "compute", "priorities", "publish", "trim", "checkpoint", "report")


class Actors(NamedTuple):
    """Shares of the actors' time, which add up to 1; and, across them, those on a core and waiting for one."""

    waiting: float
    env: float
    log: float
    weights: float
    own: float
    on_core: float
    starved: float


@dataclass(frozen=True)
class Window:
    """What was measured over the last seconds of a run. ``learner``: shares of its time by phase, of which ``wait`` is
    always there; ``learner_starved``: share for which it waited for a core, across them; ``server_busy``: share of a
    core that the server took, where that can be measured; ``cores`` of the one machine that all runs on."""

    seconds: float
    env_steps_per_s: float
    updates_per_s: float
    actors_alive: int
    actors: Actors | None
    learner: Mapping[str, float]
    learner_starved: float = 0.0
    servers_down: int = 0
    server_busy: float | None = None
    round_trip_s: float | None = None
    cores: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What bounds the run, why, and what to change."""

    bottleneck: Kind
    why: str
    change: tuple[str, ...] = field(default=())


def window_of(
    rows: Sequence[Mapping[str, float]], seconds: float
) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
    """Returns the newest row, and the one about ``seconds`` before it by the run's own clock; None for fewer than
    two rows."""
    if len(rows) < 2:
        return None
    newest = rows[-1]
    before = next((row for row in reversed(rows[:-1]) if newest["wall_s"] - row["wall_s"] >= seconds), rows[0])
    return before, newest


def measured(before: Mapping[str, float], newest: Mapping[str, float]) -> Window:
    """Returns what passed between two rows of metrics.jsonl."""

    def passed(name: str) -> float:
        return max(0.0, newest.get(name, 0.0) - before.get(name, 0.0))

    seconds = max(1e-9, passed("wall_s"))
    phases = {phase: passed(key) for phase in PHASES if (key := PHASE_KEY.format(phase)) in newest}
    spent = sum(phases.values()) if len(phases) > 1 else seconds
    learner = {phase: min(1.0, took / max(spent, 1e-9)) for phase, took in phases.items()}
    return Window(
        seconds=seconds,
        env_steps_per_s=passed("env_steps") / seconds,
        updates_per_s=passed("updates") / seconds,
        actors_alive=int(newest.get("actors_alive", 0)),
        actors=_actors({name: passed(f"actor_{name}_seconds") for name in ACTOR_SECONDS}, passed("actor_seconds")),
        learner={"wait": 0.0, **learner},
        learner_starved=min(1.0, passed("learner_starved_seconds") / seconds),
        servers_down=int(newest.get("servers_down", 0)),
    )


ACTOR_SECONDS = ("wait", "env", "log", "fetch", "cpu", "starved")


def _actors(spent: Mapping[str, float], seconds: float) -> Actors | None:
    if seconds <= 0:
        return None
    share = {name: min(1.0, took / seconds) for name, took in spent.items()}
    own = max(0.0, 1 - share["wait"] - share["env"] - share["log"] - share["fetch"])
    return Actors(share["wait"], share["env"], share["log"], share["fetch"], own, share["cpu"], share["starved"])


def diagnose(window: Window, config: RunConfig) -> Diagnosis:
    """Names the bottleneck of a run that is at work."""
    if window.servers_down:
        why = f"{window.servers_down} server(s) do not answer the learner, and the actors of their slots wait"
        return Diagnosis("Redis", why, ("bring the server back: the run goes on by itself",))
    if not window.actors_alive or window.actors is None:
        why = "no actor has told of its time: they are starting, or the cluster has no room for them"
        return Diagnosis("not known", why, ("see what the run says on its own terminal, and ask again",))
    return _of_both_sides(window, window.actors, config)


def _of_both_sides(window: Window, actors: Actors, config: RunConfig) -> Diagnosis:
    """Applies the table of cases above."""
    waiting, wait = actors.waiting, window.learner["wait"]
    if waiting >= MUCH:
        return _learner(window, waiting, config) if wait < MUCH else _limiter(waiting, wait, config)
    found = _actors_side(window, actors, config)
    if wait < MUCH:
        why = f"both sides work nearly all the time (actors without credit {waiting:.0%}, learner waiting {wait:.0%})"
        return Diagnosis("none", f"{why}; of the actors' side: {found.why}", found.change)
    more = (
        f"or train more on what there is: --replay.samples-per-insert up to "
        f"{config.replay.samples_per_insert / (1 - min(wait, 0.99)):.3g} (now {config.replay.samples_per_insert:g}) "
        "costs no env steps; set it as you resume"
    )
    return Diagnosis(found.bottleneck, f"{found.why}; the learner waits {wait:.0%} of its time", (*found.change, more))


def _learner(window: Window, waiting: float, config: RunConfig) -> Diagnosis:
    """Names the learner's biggest phase: the actors wait for credit, and the learner does not wait."""
    phases = {name: share for name, share in window.learner.items() if name != "wait"}
    biggest = max(phases, key=lambda name: phases[name], default="")
    takes = f", {biggest} being {phases[biggest]:.0%} of its time" if biggest else ""
    does = f"the learner does all it can ({window.updates_per_s:,.0f} updates/s{takes})"
    why = f"{does}, and the actors wait for credit for {waiting:.0%} of their time"
    if window.learner_starved >= STARVED:
        why = (
            f"the learner does all it can with the core that it gets ({window.updates_per_s:,.0f} updates/s): it waits "
            f"for one for {window.learner_starved:.0%} of its time, and the actors for credit for {waiting:.0%}"
        )
        room = "give the learner a core: fewer actors here, nothing else on this machine, or more cores"
        return Diagnosis("learner", why, (room,))
    smaller = "a smaller --learner.network.hidden"
    if config.replay.sequences.trained:
        smaller += " or --learner.network.core-size, or a shorter --replay.sequences.burn-in"
    remedies = {
        "compute": f"a GPU (--learner.device cuda), or {smaller}",
        "transfer": "keep the replay where the learner computes: --replay.storage device",
        "sample": "--replay.sampler uniform, or --replay.storage ram where it is memmap",
        "priorities": "--replay.sampler uniform, or a greater --replay.ingest-every-updates",
        "ingest": "bigger chunks: --actors.chunk-steps or --actors.lanes",
        "publish": "a greater --learner.publish-every-updates",
        "trim": "a --replay.log-rows that the server holds with ease",
        "checkpoint": "a greater --checkpoint.every-s",
    }
    change = [remedies[biggest]] if biggest in remedies else [remedies["compute"]]
    spi = config.replay.samples_per_insert
    change.append(f"or fewer updates per env step: --replay.samples-per-insert below {spi:g}")
    enough = max(1, math.ceil(window.actors_alive * (1 - waiting)))
    if enough < window.actors_alive:
        change.append(f"{enough} actor(s) would bring as much: qherd scale RUN --actors {enough}")
    return Diagnosis("learner", why, tuple(change))


def _limiter(waiting: float, wait: float, config: RunConfig) -> Diagnosis:
    chunk = config.actors.lanes * config.actors.chunk_steps
    return Diagnosis(
        "limiter",
        f"both sides wait for each other (actors without credit {waiting:.0%}, learner {wait:.0%}): the limiter's band "
        f"is narrow against the {config.actors.count} x {chunk} rows that are under way",
        (
            f"a greater --replay.capacity-rows (now {config.replay.capacity_rows:,}), which widens the band",
            "or smaller chunks: --actors.chunk-steps, --actors.lanes",
        ),
    )


def _actors_side(window: Window, actors: Actors, config: RunConfig) -> Diagnosis:
    """Names where the actors' time goes: the learner never holds them up."""
    alive, cores = window.actors_alive, window.cores
    working = max(1e-9, 1 - actors.waiting)
    if actors.starved / working >= STARVED:
        on = "" if cores is None else f" ({cores:g})"
        wanted = f"{alive} actor(s), the learner and what else runs here want more cores than there are{on}"
        why = f"{wanted}: actors wait for one for {actors.starved:.0%} of their time"
        return Diagnosis("actor CPU", why, ("more cores or nodes (--mode cluster); more actors here would not help",))
    parts = {"env": actors.env, "own": actors.own, "log": actors.log, "weights": actors.weights}
    biggest = max(parts, key=lambda name: parts[name])
    share = f"{parts[biggest] / working:.0%} of the actors' working time"
    if biggest == "env":
        return _env(window, actors, share)
    if biggest == "own":
        why = f"{share} is their own computing: inference and rows"
        grow = (
            "more --actors.lanes (one inference for all of an actor's lanes) or more actors: qherd scale RUN --actors"
        )
        return Diagnosis("actor CPU", why, (grow, "or a smaller --learner.network.hidden"))
    if biggest == "log":
        return _server(window, share, config)
    return Diagnosis(
        "network",
        f"{share} goes into fetching weights",
        (
            f"a greater --actors.fetch-every-s (now {config.actors.fetch_every_s:g}) or "
            f"--learner.publish-every-updates (now {config.learner.publish_every_updates})",
        ),
    )


def _env(window: Window, actors: Actors, share: str) -> Diagnosis:
    """Distinguishes an environment that computes from one that waits for something else than a core."""
    asleep = max(0.0, 1 - actors.waiting - actors.log - actors.weights - actors.on_core - actors.starved)
    if asleep > actors.env / 2:
        why = f"{share} is the environment, which waits for most of it and takes only {actors.on_core:.0%} of a core"
        change = f"more actors, which cost little CPU: qherd scale RUN --actors {2 * window.actors_alive}"
        return Diagnosis("env", why, (change,))
    room = window.cores is not None and window.cores > window.actors_alive + 1
    change = (
        "more actors on the idle cores: qherd scale RUN --actors" if room else "more cores or nodes for more actors"
    )
    return Diagnosis("env", f"{share} is the environment, which computes", (change, "or a faster environment"))


def _server(window: Window, share: str, config: RunConfig) -> Diagnosis:
    bigger = f"bigger chunks: --actors.chunk-steps (now {config.actors.chunk_steps}) or --actors.lanes"
    if window.server_busy is not None and window.server_busy >= BUSY_SERVER:
        why = f"{share} is waiting for the server, which takes {window.server_busy:.0%} of its one core"
        return Diagnosis("Redis", why, ("spread the actors over several servers: --redis.urls", bigger))
    trip = f", {window.round_trip_s * 1e6:,.0f} us a round trip" if window.round_trip_s is not None else ""
    idle = "" if window.server_busy is None else f" though the server takes only {window.server_busy:.0%} of a core"
    why = f"{share} is waiting for the server{trip}{idle}"
    return Diagnosis("network", why, ("actors near the server, or a faster network", bigger))
