"""The learner's metrics: see ``replay.metrics``. Free of torch: the driver reads them, and would import torch for them
(2 s, 175 MB)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from learner.phases import PHASE_KEY, PHASES
from replay.metrics import (
    LimiterMetrics,
    Metric,
    ReplayMetrics,
    SentMetrics,
    Shown,
    counter,
    gauge,
)

UPDATED = "from the first update on"
EPISODES = "from the first finished episode on"
DISCOUNTED = "from the first update on, with `learner.gamma` < 1"


REPORT_AGE = Metric(
    "report_age_seconds",
    "gauge",
    "Seconds since the learner's newest report, at the scrape: its heartbeat.",
    {"": "report_age_seconds"},
)
BUILD_INFO = Metric("build_info", "gauge", "1, with the versions that run.", {}, "version")


class Rates(NamedTuple):
    """Per second, over the newest slice of ``LearnerLoop.train``, or of an inline run's advance."""

    env_steps: float = 0.0
    updates: float = 0.0


class ActingMetrics(NamedTuple):
    """What the learner sees of how its actors act."""

    actors_expected: Annotated[
        int, gauge("Actors that the run has slots for: as configured, or as qherd scale has set it.")
    ]
    weight_staleness_versions: Annotated[
        int,
        gauge(
            "Versions from the weights that a slot's newest chunk was acted with to the newest weights: of the slot "
            "that is furthest behind."
        ),
    ]
    weight_staleness_mean_versions: Annotated[
        float,
        gauge("Versions from the weights that slots' newest chunks were acted with to the newest weights: the mean."),
    ]
    env_steps_per_second: Annotated[
        float, gauge("Env steps inserted per second, over the learner's newest slice of a quarter second.")
    ]
    exploring_return: Annotated[
        float | None, gauge("Mean return of the exploring actors' newest episodes.", when=EPISODES)
    ] = None


class TrainingMetrics(NamedTuple):
    """Where the learner's time went, and what came of it."""

    learner_phase_seconds: Annotated[
        Mapping[str, float],
        Shown(
            "counter",
            "Seconds of the learner by phase; they add up to the time since it started.",
            label="phase",
            values=tuple(PHASES),
            key=PHASE_KEY,
        ),
    ]
    learner_starved_seconds: Annotated[
        float, counter("Seconds that the learner waited for a core, in whichever phase.")
    ]
    updates: Annotated[int, counter("Gradient steps.")]
    updates_per_second: Annotated[float, gauge("Gradient steps per second, over the learner's newest slice.")]
    target_syncs: Annotated[int, counter("Copies of the online network to the target network, partial ones included.")]
    weights_published: Annotated[float, counter("Versions of the weights that reached a server.")]
    weights_published_bytes: Annotated[float, counter("Bytes of the weights sent, over all servers.")]
    weight_version: int


class UpdateMetrics(NamedTuple):
    """How learning went since the last reading: the mean loss, and of the last batch the mean |TD error|, the mean Q,
    the greatest |Q| and the gradient's norm before clipping; 0 where they are not finite. ``td_error_p50`` and so on
    are quantiles of the newest batches' |TD error|. ``updates_skipped`` counts the updates whose loss or gradient was
    not finite, since the beginning; ``skipped_in_a_row`` those since the last that was."""

    loss: Annotated[float, gauge("Mean loss since the last report.", when=UPDATED)]
    td_error: Annotated[float, gauge("Mean absolute TD error of the last batch.", when=UPDATED)]
    q_mean: Annotated[float, gauge("Mean Q value of the last batch, over all actions.", when=UPDATED)]
    q_abs_max: Annotated[float, gauge("Greatest absolute Q value of the last batch.", when=UPDATED)]
    grad_norm: Annotated[float, gauge("Norm of the last gradient before clipping.", when=UPDATED)]
    updates_skipped: Annotated[
        float,
        counter("Updates whose loss or gradient was not finite: the weights stayed as they were.", when=UPDATED),
    ]
    skipped_in_a_row: float
    td_error_p50: float
    td_error_p90: float
    td_error_p99: float
    td_error_p100: float


PERCENTILES = Metric(
    "td_error_percentile",
    "gauge",
    "Percentiles of the absolute TD errors of the newest batches; 100 is the greatest.",
    {str(percent): f"td_error_p{percent}" for percent in (50, 90, 99, 100)},
    "percentile",
    UPDATED,
)


class SampleMetrics(NamedTuple):
    """The newest cycle's samples."""

    batch_size: Annotated[float, gauge("Transitions of one update.", when=UPDATED)]
    sample_age_rows: Annotated[
        float, gauge("Rows inserted after a sampled row, the mean over the newest cycle's samples.", when=UPDATED)
    ]
    sample_age_max_rows: Annotated[
        float, gauge("Rows inserted after the oldest of the newest cycle's samples.", when=UPDATED)
    ]
    effective_sample_size: Annotated[
        float,
        gauge(
            "Equally weighted transitions that a batch is worth: (sum w)^2 / sum w^2 of its importance weights.",
            when=UPDATED,
        ),
    ]
    q_bound: Annotated[
        float | None,
        gauge(
            "Greatest absolute Q value that the rewards sampled so far can explain, max abs(r) / (1 - discount), "
            "with Munchausen's bonus.",
            when=DISCOUNTED,
        ),
    ]


class CheckpointMetrics(NamedTuple):
    """The checkpoints of this learner."""

    checkpoints: Annotated[int, counter("Checkpoints written.")]
    checkpoint_failures: Annotated[int, counter("Checkpoints that could not be written.")]
    checkpoint_bytes: Annotated[int, gauge("Size of the newest checkpoint.")]
    checkpoint_age_seconds: Annotated[float, gauge("Seconds since the newest checkpoint was whole.")]
    checkpoint_pause_seconds: Annotated[float, counter("Seconds that the learner paused for checkpoints.")]


class LearnerMetrics(NamedTuple):
    """All that a learner reports. ``sampler``: the sampler's own metrics. None is what there is nothing to say of yet,
    or never: ``checkpoint`` of a learner that writes none."""

    replay: ReplayMetrics
    limiter: LimiterMetrics
    sent: SentMetrics
    acting: ActingMetrics
    training: TrainingMetrics
    update: UpdateMetrics | None = None
    samples: SampleMetrics | None = None
    sampler: NamedTuple | None = None
    checkpoint: CheckpointMetrics | None = None
