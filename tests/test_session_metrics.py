"""What a run on Ray has counted: earlier drivers' counts are part of it, and each part's deaths have their reasons."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from actors.heartbeat import Work
from deploy.sessions.session_metrics import SessionMetrics, Supervised
from replay.metrics import flat

BEFORE = {"actor_restarts": 3, "server_restarts": 1, "env_rebuilds": 10, "actor_env_seconds": 5.0, "weights_fetched": 7}


def parts(**actors: Any) -> Supervised:
    """Supervisors that have counted so much."""
    restarts = SimpleNamespace(total=2, reasons=Counter({"ActorDiedError": 2}))
    none = SimpleNamespace(total=0, reasons=Counter[str]())
    given = {"alive": 2, "restarts": 1, "rebuilds": 4, "restart_reasons": {"EnvError": 1}, "work": Work(), **actors}
    evaluator = SimpleNamespace(restarts=0, rebuilds=1, restart_reasons={}, failing="it hangs")
    learner, servers = SimpleNamespace(restarts=restarts), SimpleNamespace(restarts=none)
    return Supervised(*cast("Any", (SimpleNamespace(**given), evaluator, learner, servers)))


def test_counts_of_earlier_drivers_are_part_of_it() -> None:
    metrics = SessionMetrics(BEFORE, 30.0)
    metrics.update(parts(work=Work(env_seconds=2.0, fetches=1)), None)
    row = flat(metrics.driver)
    assert (row["actor_restarts"], row["learner_restarts"], row["server_restarts"]) == (4, 2, 1)
    assert (row["env_rebuilds"], row["actor_env_seconds"], row["weights_fetched"]) == (15, 7.0, 8)
    metrics.update(parts(work=Work(env_seconds=3.0, fetches=1)), None)
    assert flat(metrics.driver)["actor_env_seconds"] == 8.0, "not added up again"


def test_before_the_first_report_nothing_is_known_of_the_learner() -> None:
    metrics = SessionMetrics({}, 30.0)
    assert (metrics.updates, metrics.servers_down, metrics.checkpointed) == (0, 0, False)
    assert SessionMetrics({"checkpoints": 2}, 30.0).checkpointed
    metrics.update(parts(), None)
    progress = metrics.progress(parts())
    assert progress.metrics is not None
    assert progress.metrics.learner is None
    assert flat(progress.metrics.driver)["evaluation_failing"] == 1
    assert progress.unevaluated == "it hangs"


def test_deaths_are_counted_by_part_and_reason() -> None:
    assert SessionMetrics({}, 30.0).progress(parts()).deaths == {"actor: EnvError": 1, "learner: ActorDiedError": 2}
