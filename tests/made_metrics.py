"""Metrics by hand: all 0, but for what a test gives by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from actors.metrics import ActorMetrics, EvaluationMetrics
from deploy.monitoring.metrics import DriverMetrics, RestartMetrics, RunMetrics
from learner.metrics import ActingMetrics, LearnerMetrics, TrainingMetrics
from learner.phases import PHASES
from replay.metrics import LimiterMetrics, ReplayMetrics, SentMetrics


def run_metrics(**values: Any) -> RunMetrics:
    """Those of a run of the mode inline; ``values``: see ``learner_metrics``."""
    driver = DriverMetrics(ActorMetrics(0), EvaluationMetrics(), RestartMetrics(0, 0), 0.0)
    return RunMetrics(driver, learner_metrics(**values))


def learner_metrics(**values: Any) -> LearnerMetrics:
    """``values``: fields of the parts that every report has."""
    left = dict(values)

    def made(kind: type[Any]) -> Any:
        return kind(**{field: left.pop(field, 0) for field in kind._fields})

    left.setdefault("learner_phase_seconds", dict.fromkeys(PHASES, 0.0))
    kinds: tuple[type[NamedTuple], ...] = (ReplayMetrics, LimiterMetrics, SentMetrics, ActingMetrics, TrainingMetrics)
    metrics = LearnerMetrics(*(made(kind) for kind in kinds))
    assert not left, left
    return metrics
