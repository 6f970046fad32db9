"""A learner's metrics by hand: all 0, but for what a test gives by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from learner.metrics import ActingMetrics, LearnerMetrics, TrainingMetrics
from learner.phases import PHASES
from replay.metrics import LimiterMetrics, ReplayMetrics, SentMetrics


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
