"""What a metric is, and the metrics of the replay part.

A part reports its metrics as a ``NamedTuple`` whose fields are annotated with what Prometheus shows of them: a type
checker holds values and readers to it, and the help stands beside the value. Names as text are used at the edges alone:
``flat`` gives what metrics.jsonl and TensorBoard have, ``metrics_of`` what /metrics and docs/metrics.md have.

Counters count from the start of the process that shows them, as Prometheus wants it; what the run has done in all is a
gauge.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from replay.chunk import REFUSALS
from replay.ledger import LOSSES

PREFIX = "qherd_"
BY_REASON = "reason"
"""The label of the counts that come with the report, one series per reason of a closed set."""
SERVER = "where the server has a `maxmemory`"


class Metric(NamedTuple):
    """One metric as /metrics shows it. ``keys``: which key of a row each label value shows; without ``label`` there is
    one, under ``""``. ``when``: what it takes for the metric to be there."""

    name: str
    kind: Literal["gauge", "counter"]
    text: str
    keys: Mapping[str, str]
    label: str = ""
    when: str = ""
    reasons: tuple[str, ...] = ()
    """Of a count by reason: all that there may be. Each is shown from the start, at 0: ``increase()`` cannot see the
    first occurrence of a series that was not there before."""

    @property
    def exposed(self) -> str:
        """The name of its series in Prometheus."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


class Shown(NamedTuple):
    """How /metrics shows a field. ``name``: where it is not the field's. Of a field that is a mapping ``label`` and its
    ``values``, and in ``key`` what each is called in a row, with {} for the value."""

    kind: Literal["gauge", "counter"]
    text: str
    name: str = ""
    when: str = ""
    label: str = ""
    values: tuple[str, ...] = ()
    key: str = ""


def gauge(text: str, *, name: str = "", when: str = "") -> Shown:
    """Marks a field that may fall."""
    return Shown("gauge", text, name, when)


def counter(text: str, *, when: str = "") -> Shown:
    """Marks a field that only grows while its process lives."""
    return Shown("counter", text, when=when)


def by_reason(name: str, text: str, reasons: tuple[str, ...]) -> Metric:
    """Returns a count by reason, which no row has."""
    return Metric(name, "counter", text, {}, BY_REASON, reasons=reasons)


@functools.cache
def _shown(kind: Any) -> dict[str, Shown]:
    hints = get_type_hints(kind, include_extras=True)
    marks = {field: getattr(hint, "__metadata__", ()) for field, hint in hints.items()}
    return {field: mark for field, found in marks.items() for mark in found if isinstance(mark, Shown)}


def metrics_of(*kinds: Any) -> tuple[Metric, ...]:
    """Returns the metrics of these NamedTuples, in the order of their fields. What has no mark is in rows alone."""
    found = []
    for kind in kinds:
        for field, shown in _shown(kind).items():
            keys = {value: shown.key.format(value) for value in shown.values} or {"": field}
            found.append(Metric(shown.name or field, shown.kind, shown.text, keys, shown.label, shown.when))
    return tuple(found)


def flat(metrics: NamedTuple) -> dict[str, float]:
    """Returns the values by key. What is None is left out, and what is a NamedTuple or a mapping is laid flat."""
    return dict(_items(metrics))


def _items(metrics: NamedTuple) -> Iterator[tuple[str, float]]:
    for field, value in zip(metrics._fields, metrics, strict=True):
        if hasattr(value, "_fields"):
            yield from _items(value)
        elif isinstance(value, Mapping):
            key = _shown(type(metrics))[field].key
            yield from ((key.format(label), each) for label, each in value.items())
        elif value is not None:
            yield field, value


class ReplayMetrics(NamedTuple):
    """The log, what the reader took in of it, and the mirror."""

    chunks: Annotated[int, counter("Chunks that actors pushed and the mirror took in.")]
    chunk_bytes: Annotated[int, counter("Bytes of the chunks that the mirror took in.")]
    rows: Annotated[int, counter("Rows that the mirror took in, boundary rows included.")]
    env_steps: Annotated[int, counter("Env steps inserted into the mirror: rows without boundary rows.")]
    ingest_backlog_chunks: Annotated[
        int, gauge("Chunks that were read from the log and are yet to be taken into the mirror.")
    ]
    log_rows: Annotated[int, gauge("Rows that the log still has of those ingested.")]
    log_full: Annotated[
        float, counter("Times that the learner trimmed the log because the server's memory was nearly full.")
    ]
    log_unavailable: Annotated[float, counter("Calls of the learner that a server did not answer, or not now.")]
    servers_down: Annotated[int, gauge("Servers that did not answer the learner's newest call; their slots wait.")]
    replay_rows: Annotated[int, gauge("Rows alive in the mirror, boundary rows included.")]
    replay_capacity_rows: Annotated[int, gauge("Rows that the mirror can hold.")]
    replay_sampleable_rows: Annotated[int, gauge("Transitions or sequences of the mirror that can be sampled.")]
    replay_bytes: Annotated[int, gauge("Bytes that the mirror has allocated.")]
    log_memory_bytes: Annotated[
        int | None, gauge("Bytes that the server uses; of several servers the fullest.", when=SERVER)
    ] = None
    log_memory_limit_bytes: Annotated[
        int | None, gauge("Bytes at which the fullest server refuses writes.", when=SERVER)
    ] = None


REFUSED = by_reason("chunks_refused", "Chunks that the learner refused, by reason.", REFUSALS)
LOST = by_reason("rows_lost", "Rows that actors sent and the mirror does not have, by reason.", LOSSES)


class LimiterMetrics(NamedTuple):
    """Back-pressure."""

    samples_per_insert_target: Annotated[float, gauge("Transitions, or steps of sequences, to train on per env step.")]
    samples_per_insert: Annotated[float, gauge("Transitions, or steps of sequences, trained on per env step so far.")]
    samples: Annotated[int, counter("Transitions, or steps of sequences, trained on.")]
    limiter_error: Annotated[
        float, gauge("Samples that the inserts allow, less the samples taken: > 0, the learner is behind.")
    ]
    limiter_half_band: Annotated[float, gauge("At this error actors have no credit, at minus this the learner waits.")]
    limiter_min_rows: Annotated[int, gauge("Env steps that are collected before the first update.")]
    credit_rows: Annotated[
        int, gauge("Rows that actors may send beyond what the learner has taken in, in whole chunks.")
    ]


class SentMetrics(NamedTuple):
    """What the actors' chunks count, over all slots and incarnations."""

    actor_env_steps: Annotated[
        int, counter("Env steps that the actors took, over all incarnations, as their chunks tell.")
    ]
    actor_episodes: Annotated[int, counter("Episodes that the exploring actors finished.")]
    actor_returns_sum: Annotated[
        float,
        gauge(
            "Sum of the returns of the exploring actors' episodes since the run began; a gauge, since returns may be "
            "negative.",
            name="actor_returns",
        ),
    ]
    actor_push_retries: Annotated[
        int, counter("Pushes and questions of actors that the server did not answer or had no room for.")
    ]
    actor_credit_wait_seconds: Annotated[
        float, counter("Seconds that actors waited for credit, summed over the actors.")
    ]
