"""The catalogue of metrics: every one that /metrics has, with its help. docs/metrics.md is made from it.

Free of prometheus_client and torch. Counters count from the start of the process that shows them, as Prometheus wants
it; what the run has done in all is a gauge. A metric shows a *figure* of the report (or of the driver), or, where it
has a label, several of them under one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from learner.phases import PHASES
from replay.chunk import REFUSALS
from replay.ledger import LOSSES

PREFIX = "qherd_"
BY_REASON = "reason"
"""The label of the counts that come with the report, one series per reason of a closed set."""

ANYWHERE = ""
RAY = "modes local and cluster"
SERVER = "where the server has a `maxmemory`"
PRIORITISED = "with `replay.sampler: prioritised`"
DISCOUNTED = "from the first update on, with `learner.gamma` < 1"
EVALUATED = "from the first evaluation on"
CONFIRMED = "from the first confirmation on, with `eval.threshold`"
EPISODES = "from the first finished episode on"
UPDATED = "from the first update on"


class Metric(NamedTuple):
    """One metric. ``figures``: which figure each label value shows; without ``label`` there is one, under ``""``.

    ``when``: what it takes for the metric to be there.
    """

    name: str
    kind: Literal["gauge", "counter"]
    text: str
    figures: Mapping[str, str]
    label: str = ""
    when: str = ANYWHERE
    reasons: tuple[str, ...] = ()
    """Of a count by reason: all that there may be. Each is shown from the start, at 0: ``increase()`` cannot see the
    first occurrence of a series that was not there before."""

    @property
    def exposed(self) -> str:
        """The name of its series in Prometheus."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


def _gauge(name: str, text: str, figure: str = "", when: str = ANYWHERE) -> Metric:
    return Metric(name, "gauge", text, {"": figure or name}, when=when)


def _counter(name: str, text: str, when: str = ANYWHERE) -> Metric:
    return Metric(name, "counter", text, {"": name}, when=when)


def _by_reason(name: str, text: str, reasons: tuple[str, ...]) -> Metric:
    return Metric(name, "counter", text, {}, BY_REASON, reasons=reasons)


ACTORS = (
    _gauge("actors_alive", "Actors that have answered and did not die since."),
    _gauge("actors_expected", "Actors that the run has slots for: as configured, or as qherd scale has set it."),
    _counter("actor_env_steps", "Env steps that the actors took, over all incarnations, as their chunks tell."),
    _counter("actor_episodes", "Episodes that the exploring actors finished."),
    _gauge(
        "actor_returns",
        "Sum of the returns of the exploring actors' episodes since the run began; a gauge, since returns may be "
        "negative.",
        "actor_returns_sum",
    ),
    _gauge("exploring_return", "Mean return of the exploring actors' newest episodes.", when=EPISODES),
    _counter("actor_push_retries", "Pushes and questions of actors that the server did not answer or had no room for."),
    _counter("actor_credit_wait_seconds", "Seconds that actors waited for credit, summed over the actors."),
    Metric(
        "actor_phase_seconds",
        "counter",
        "Seconds of the actors by phase, summed over them: in the environment, computing, waiting for the server, with "
        "new weights, without credit.",
        {phase: f"actor_{phase}_seconds" for phase in ("env", "own", "log", "fetch", "wait")},
        "phase",
        RAY,
    ),
    _counter("actor_cpu_seconds", "Seconds that the actors were on a core, summed over them.", RAY),
    _counter("actor_starved_seconds", "Seconds that the actors waited for a core, summed over them.", RAY),
    _counter("weights_fetched", "Versions of the weights that actors fetched, summed over them.", RAY),
    _counter("weights_fetched_bytes", "Bytes of the weights that actors fetched, summed over them.", RAY),
    _gauge(
        "weight_staleness_versions",
        "Versions from the weights that a slot's newest chunk was acted with to the newest weights: of the slot that "
        "is furthest behind.",
    ),
    _gauge(
        "weight_staleness_mean_versions",
        "Versions from the weights that slots' newest chunks were acted with to the newest weights: the mean.",
    ),
    _gauge(
        "env_steps_per_second", "Env steps inserted per second, over the learner's newest slice of a quarter second."
    ),
    _gauge("greedy_return", "Mean return of the newest greedy screen.", when=EVALUATED),
    _gauge("confirmed_return", "Mean return of the newest confirmation.", when=CONFIRMED),
)
LOG = (
    _counter("chunks", "Chunks that actors pushed and the mirror took in."),
    _counter("chunk_bytes", "Bytes of the chunks that the mirror took in."),
    _counter("rows", "Rows that the mirror took in, boundary rows included."),
    _counter("env_steps", "Env steps inserted into the mirror: rows without boundary rows."),
    _by_reason("chunks_refused", "Chunks that the learner refused, by reason.", REFUSALS),
    _by_reason("rows_lost", "Rows that actors sent and the mirror does not have, by reason.", LOSSES),
    _gauge("ingest_backlog_chunks", "Chunks that were read from the log and are yet to be taken into the mirror."),
    _gauge("log_rows", "Rows that the log still has of those ingested."),
    _gauge("log_memory_bytes", "Bytes that the server uses; of several servers the fullest.", when=SERVER),
    _gauge("log_memory_limit_bytes", "Bytes at which the fullest server refuses writes.", when=SERVER),
    _counter("log_full", "Times that the learner trimmed the log because the server's memory was nearly full."),
    _counter("log_unavailable", "Calls of the learner that a server did not answer, or not now."),
    _gauge("servers_down", "Servers that did not answer the learner's newest call; their slots wait."),
    _gauge("replay_rows", "Rows alive in the mirror, boundary rows included."),
    _gauge("replay_capacity_rows", "Rows that the mirror can hold."),
    _gauge("replay_sampleable_rows", "Rows of the mirror that can be sampled."),
    _gauge("replay_bytes", "Bytes that the mirror has allocated."),
)
SAMPLER = (
    _gauge("batch_size", "Transitions of one update.", when=UPDATED),
    _gauge(
        "sample_age_rows",
        "Rows inserted after a sampled row, the mean over the newest cycle's samples.",
        when=UPDATED,
    ),
    _gauge("sample_age_max_rows", "Rows inserted after the oldest of the newest cycle's samples.", when=UPDATED),
    _gauge(
        "effective_sample_size",
        "Equally weighted transitions that a batch is worth: (sum w)^2 / sum w^2 of its importance weights.",
        when=UPDATED,
    ),
    _gauge("priority_mean", "Mean priority to the power alpha, over the rows that can be sampled.", when=PRIORITISED),
    _gauge("importance_beta", "Exponent of the importance weights.", when=PRIORITISED),
    _counter("priority_updates_missed", "TD errors that came for rows evicted meanwhile.", when=PRIORITISED),
)
LIMITER = (
    _gauge("samples_per_insert_target", "Transitions to train on per env step."),
    _gauge("samples_per_insert", "Transitions trained on per env step since the run began."),
    _counter("samples", "Transitions trained on."),
    _gauge("limiter_error", "Samples that the inserts allow, less the samples taken: > 0, the learner is behind."),
    _gauge("limiter_half_band", "At this error actors have no credit, at minus this the learner waits."),
    _gauge("limiter_min_rows", "Env steps that are collected before the first update."),
    _gauge("credit_rows", "Rows that actors may send beyond what the learner has taken in, in whole chunks."),
)
LEARNER = (
    Metric(
        "learner_phase_seconds",
        "counter",
        "Seconds of the learner by phase; they add up to the time since it started.",
        {phase: f"learner_{phase}_seconds" for phase in PHASES},
        "phase",
    ),
    _counter("learner_starved_seconds", "Seconds that the learner waited for a core, in whichever phase."),
    _counter("updates", "Gradient steps."),
    _gauge("updates_per_second", "Gradient steps per second, over the learner's newest slice."),
    _counter(
        "updates_skipped",
        "Updates whose loss or gradient was not finite: the weights stayed as they were.",
        when=UPDATED,
    ),
    _counter("target_syncs", "Copies of the online network to the target network, partial ones included."),
    _gauge("loss", "Mean loss since the last report.", when=UPDATED),
    _gauge("td_error", "Mean absolute TD error of the last batch.", when=UPDATED),
    Metric(
        "td_error_percentile",
        "gauge",
        "Percentiles of the absolute TD errors of the newest batches; 100 is the greatest.",
        {str(percent): f"td_error_p{percent}" for percent in (50, 90, 99, 100)},
        "percentile",
        UPDATED,
    ),
    _gauge("q_mean", "Mean Q value of the last batch, over all actions.", when=UPDATED),
    _gauge("q_abs_max", "Greatest absolute Q value of the last batch.", when=UPDATED),
    _gauge(
        "q_bound",
        "Greatest absolute Q value that the rewards sampled so far can explain, max abs(r) / (1 - discount).",
        when=DISCOUNTED,
    ),
    _gauge("grad_norm", "Norm of the last gradient before clipping.", when=UPDATED),
    _counter("weights_published", "Versions of the weights that reached a server."),
    _counter("weights_published_bytes", "Bytes of the weights sent, over all servers."),
)
CHECKPOINT = (
    _gauge("checkpoint_age_seconds", "Seconds since the newest checkpoint was whole."),
    _gauge("checkpoint_interval_seconds", "Seconds that are configured between two checkpoints.", when=RAY),
    _counter("checkpoints", "Checkpoints written."),
    _counter("checkpoint_failures", "Checkpoints that could not be written."),
    _gauge("checkpoint_bytes", "Size of the newest checkpoint."),
    _counter("checkpoint_pause_seconds", "Seconds that the learner paused for checkpoints."),
)
RUN = (
    _gauge("run_env_steps", "Env steps inserted since the run began, over all its learners.", "env_steps"),
    _gauge("run_updates", "Gradient steps since the run began, over all its learners.", "updates"),
    Metric(
        "restarts",
        "counter",
        "Restarts by kind of process.",
        {kind: f"{kind}_restarts" for kind in ("actor", "evaluator", "learner", "server")},
        "kind",
    ),
    _counter("env_rebuilds", "Environments that raised and were made anew."),
    _gauge("evaluation_failing", "1 while no policy can be evaluated, which does not end the run; else 0."),
    _gauge("report_age_seconds", "Seconds since the learner's newest report, at the scrape: its heartbeat."),
    Metric("build_info", "gauge", "1, with the versions that run.", {}, "version"),
)
PARTS: Mapping[str, tuple[Metric, ...]] = {
    "Actors and evaluator": ACTORS,
    "Log and mirror": LOG,
    "Sampler": SAMPLER,
    "Limiter": LIMITER,
    "Learner": LEARNER,
    "Checkpoints": CHECKPOINT,
    "The run": RUN,
}


def catalogue() -> Iterator[Metric]:
    """All metrics."""
    for metrics in PARTS.values():
        yield from metrics
