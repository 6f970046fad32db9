"""The metrics of a run: those that its parts own, put together for /metrics and docs/metrics.md, and the driver's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from actors.metrics import ActorMetrics, EvaluationMetrics
from deploy.config.models import RunConfig
from learner.metrics import (
    BUILD_INFO,
    PERCENTILES,
    REPORT_AGE,
    ActingMetrics,
    CheckpointMetrics,
    LearnerMetrics,
    SampleMetrics,
    TrainingMetrics,
    UpdateMetrics,
)
from replay.metrics import (
    LOST,
    REFUSED,
    LimiterMetrics,
    Metric,
    ReplayMetrics,
    SentMetrics,
    counter,
    gauge,
    metrics_of,
)
from replay.samplers import SAMPLERS, sampler_of

KINDS = ("actor", "evaluator", "learner", "server")


class RestartMetrics(NamedTuple):
    """What was restarted and made anew, over the whole run. The mode inline restarts its evaluator alone."""

    evaluator_restarts: int
    env_rebuilds: Annotated[int, counter("Environments that raised and were made anew.")]
    actor_restarts: int | None = None
    learner_restarts: int | None = None
    server_restarts: int | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, float]) -> RestartMetrics:
        """Returns those of a row of metrics.jsonl."""
        return cls(**{name: int(row.get(name, 0)) for name in cls._fields})

    def plus(self, earlier: RestartMetrics) -> RestartMetrics:
        """Returns these and those of earlier drivers."""
        pairs = zip(self, earlier, strict=True)
        return RestartMetrics(*(None if own is None else own + (before or 0) for own, before in pairs))  # type: ignore[arg-type]


class DriverMetrics(NamedTuple):
    """What the driver knows of a run."""

    actors: ActorMetrics
    evaluation: EvaluationMetrics
    restarts: RestartMetrics
    evaluation_failing: Annotated[
        float, gauge("1 while no policy can be evaluated, which does not end the run; else 0.")
    ]
    checkpoint_interval_seconds: Annotated[
        float | None,
        gauge("Seconds that are configured between two checkpoints.", when="modes local and cluster"),
    ] = None


class TrackingMetrics(NamedTuple):
    """What trackers have of a run, since this driver started."""

    track_lost: Annotated[
        int,
        counter(
            "Rows, and ends of runs, that are not in a tracker's record, over all trackers.",
            when="with `--track.wandb` or `--track.mlflow`",
        ),
    ]


class RunMetrics(NamedTuple):
    """All that is known of a run at work; of its learner nothing before the first report."""

    driver: DriverMetrics
    learner: LearnerMetrics | None = None


RESTARTS = Metric(
    "restarts", "counter", "Restarts by kind of process.", {kind: f"{kind}_restarts" for kind in KINDS}, "kind"
)
RUN = (
    Metric(
        "run_env_steps", "gauge", "Env steps inserted since the run began, over all its learners.", {"": "env_steps"}
    ),
    Metric("run_updates", "gauge", "Gradient steps since the run began, over all its learners.", {"": "updates"}),
)
_SAMPLERS = tuple(kind for kind in (sampler_of(name).metrics_type for name in SAMPLERS) if kind is not None)
PARTS: Mapping[str, tuple[Metric, ...]] = {
    "Actors and evaluator": metrics_of(ActorMetrics, SentMetrics, ActingMetrics, EvaluationMetrics),
    "Log and mirror": (*metrics_of(ReplayMetrics), REFUSED, LOST),
    "Sampler": metrics_of(SampleMetrics, *_SAMPLERS),
    "Limiter": metrics_of(LimiterMetrics),
    "Learner": (*metrics_of(TrainingMetrics, UpdateMetrics), PERCENTILES),
    "Checkpoints": metrics_of(CheckpointMetrics),
    "The run": (*RUN, RESTARTS, *metrics_of(RestartMetrics, DriverMetrics, TrackingMetrics), REPORT_AGE, BUILD_INFO),
}


def catalogue() -> tuple[Metric, ...]:
    """Returns the metrics of every run."""
    return tuple(metric for metrics in PARTS.values() for metric in metrics)


def shown_by(config: RunConfig) -> tuple[Metric, ...]:
    """Returns the metrics of a run: also those of a sampler of the user's own."""
    own = sampler_of(config.replay.sampler).metrics_type
    return catalogue() if own is None or own in _SAMPLERS else (*catalogue(), *metrics_of(own))
