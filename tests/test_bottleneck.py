"""The diagnosis, case by case, from hand-worked waits; and the waits from rows of metrics.jsonl."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from deploy.config.models import RunConfig
from deploy.diagnosis.bottleneck import Actors, Window, diagnose, measured, window_of
from replay.config import SequencesConfig

SEQUENCES = SequencesConfig(trained=16, burn_in=8)
CONFIG = RunConfig.model_validate({"replay": {"samples_per_insert": 16}, "actors": {"count": 4}})


def actors(own_core: float = 0.5, starved: float = 0.0, **shares: float) -> Actors:
    """The rest of the actors' time is spent in the environment."""
    given = {"waiting": 0.0, "log": 0.05, "weights": 0.01, "own": 0.1, **shares}
    return Actors(env=max(0.0, 1 - sum(given.values())), on_core=own_core, starved=starved, **given)


def window(of_actors: Actors, wait: float, **values: Any) -> Window:
    return Window(30, 1000, 100, 4, of_actors, {"wait": wait, **values.pop("phases", {})}, **values)


def test_a_recurrent_learners_compute_is_its_core_and_its_burn_in_too() -> None:
    busy = window(actors(waiting=0.6), 0.02, phases={"compute": 0.7})
    config = CONFIG.model_copy(update={"replay": CONFIG.replay.model_copy(update={"sequences": SEQUENCES})})
    assert "core" not in diagnose(busy, CONFIG).change[0]
    assert diagnose(busy, config).change[0].endswith("core-size, or a shorter --replay.sequences.burn-in")


CASES: Mapping[str, tuple[Window, str, str, str]] = {
    "the learner's compute": (
        window(actors(waiting=0.6), 0.02, phases={"compute": 0.7, "sample": 0.2}),
        "learner",
        r"compute being 70% .* wait for credit for 60%",
        r"GPU.*samples-per-insert below 16.*qherd scale RUN --actors 2",
    ),
    "the learner's reading": (
        window(actors(waiting=0.6), 0.0, phases={"compute": 0.3, "ingest": 0.5}),
        "learner",
        "ingest being 50%",
        "chunk-steps",
    ),
    "a learner without a core": (
        window(actors(waiting=0.6), 0.0, learner_starved=0.4),
        "learner",
        "waits for one for 40%",
        "give the learner a core",
    ),
    "both in turns": (
        window(actors(waiting=0.4), 0.4),
        "limiter",
        "band is narrow against the 4 x 256 rows",
        "capacity-rows",
    ),
    "an env that waits": (
        window(actors(own_core=0.15), 0.5),
        "env",
        r"84% of the actors' working time is the environment, which waits.*learner waits 50%",
        r"--actors 8.*samples-per-insert up to 32 \(now 16\)",
    ),
    "an env that computes": (
        window(actors(own_core=0.94), 0.5, cores=4),
        "env",
        "the environment, which computes",
        "more cores or nodes",
    ),
    "an env that computes beside idle cores": (
        window(actors(own_core=0.94), 0.5, cores=32),
        "env",
        "computes",
        "on the idle cores",
    ),
    "inference": (window(actors(own=0.7), 0.5), "actor CPU", "70% .*own computing", "lanes.*hidden"),
    "too few cores": (
        window(actors(starved=0.4), 0.5, cores=2),
        "actor CPU",
        r"more cores than there are \(2\): actors wait for one for 40%",
        "more actors here would not help",
    ),
    "a busy server": (window(actors(log=0.6), 0.5, server_busy=0.95), "Redis", "95% of its one core", r"redis\.urls"),
    "a server that is far away": (
        window(actors(log=0.6), 0.5, server_busy=0.05, round_trip_s=0.004),
        "network",
        "4,000 us a round trip though the server takes only 5%",
        "near the server",
    ),
    "big weights": (window(actors(weights=0.6), 0.5), "network", "60% .*fetching weights", r"fetch-every-s \(now 1\)"),
    "nothing waits": (
        window(actors(), 0.1),
        "none",
        r"both sides work.*84% of the actors' working time is the env",
        "actors",
    ),
    "nothing waits but for cores": (
        window(actors(starved=0.26), 0.01, cores=2),
        "none",
        r"both sides work nearly all the time .*more cores than there are \(2\): actors wait for one for 26%",
        "more cores or nodes",
    ),
    "a server that is gone": (window(actors(), 0.9, servers_down=1), "Redis", r"1 server\(s\) do not answer", "back"),
    "no actors": (Window(30, 0, 0, 0, None, {"wait": 1.0}), "not known", "starting", "terminal"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bottleneck_is_named_with_its_reason_and_what_to_change(case: str) -> None:
    of_run, bottleneck, why, change = CASES[case]
    found = diagnose(of_run, CONFIG)
    assert found.bottleneck == bottleneck, found
    assert re.search(why, found.why), found.why
    assert re.search(change, " ".join(found.change)), found.change


ROW = {"wall_s": 100.0, "env_steps": 5000, "updates": 50, "actors_alive": 4, "actor_seconds": 400.0}


def test_shares_are_differences_of_two_rows() -> None:
    """10 s of 4 actors are 40 s: 20 without credit, 8 in the env, 4 on the log, 2 with weights, 6 their own."""
    before = ROW | {f"actor_{name}_seconds": 7.0 for name in ("wait", "env", "log", "fetch", "cpu", "starved")}
    passed = {"wait": 20, "env": 8, "log": 4, "fetch": 2, "cpu": 10, "starved": 1}
    newest = before | {f"actor_{name}_seconds": 7.0 + seconds for name, seconds in passed.items()}
    newest |= {"wall_s": 110.0, "env_steps": 6000, "updates": 80, "actor_seconds": 440.0}
    found = measured(before | {"learner_wait_seconds": 3.0}, newest | {"learner_wait_seconds": 5.0})
    assert found.actors == pytest.approx(Actors(0.5, 0.2, 0.1, 0.05, 0.15, 0.25, 0.025))
    assert (found.seconds, found.env_steps_per_s, found.updates_per_s) == (10, 100, 3)
    assert found.learner == {"wait": 0.2}


def test_the_learners_phases_are_used_where_they_are() -> None:
    """12 s by its own clock: 3 waiting, 9 computing."""
    before = ROW | {"learner_wait_seconds": 1.0, "learner_compute_seconds": 1.0}
    found = measured(before, before | {"wall_s": 110.0, "learner_wait_seconds": 4.0, "learner_compute_seconds": 10.0})
    assert found.learner == {"wait": 0.25, "compute": 0.75}


def test_counts_that_went_back_are_none() -> None:
    """As a learner that goes on from an older checkpoint has them."""
    found = measured(ROW, ROW | {"wall_s": 110.0, "env_steps": 4000})
    assert (found.env_steps_per_s, found.actors) == (0, None)


def test_the_window_is_the_newest_seconds() -> None:
    rows = [ROW | {"wall_s": float(second)} for second in (1, 2, 30, 50, 61)]
    before, newest = window_of(rows, 30.0) or ({}, {})
    assert (before["wall_s"], newest["wall_s"]) == (30, 61)
    assert (window_of(rows, 300.0) or ({}, {}))[0]["wall_s"] == 1
    assert window_of(rows[:1], 30.0) is None
