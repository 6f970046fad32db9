"""What a learner has done: its report, and the counters that go on over all learners of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from learner.broadcaster import Broadcaster
from learner.checkpoint import Checkpointer
from learner.cpu_time import CpuTime
from learner.ingest import Ingest
from learner.learner import Learner, device_name
from learner.log_upkeep import LogUpkeep
from learner.metrics import ActingMetrics, LearnerMetrics, Rates, TrainingMetrics, UpdateMetrics
from learner.phases import PHASE_KEY, PHASES, Phases
from learner.report import Diverged, Report
from learner.samples import Samples
from learner.weights import version_count
from replay.chunk import Counters
from replay.metrics import LimiterMetrics, ReplayMetrics, SentMetrics
from replay.state import number


class Sums(NamedTuple):
    """What the parts of each learner count from 0, by its key in a checkpoint."""

    weights_published: float = 0
    weights_published_bytes: float = 0
    log_full: float = 0
    log_unavailable: float = 0
    learner_starved_seconds: float = 0

    def plus(self, other: Sums) -> Sums:
        """Returns the sums, field by field."""
        return Sums(*(one + another for one, another in zip(self, other, strict=True)))


class Progress:
    """Makes the learner's reports. Counters are sums over this learner and those of the run before it."""

    def __init__(
        self,
        learner: Learner,
        ingest: Ingest,
        broadcaster: Broadcaster,
        upkeep: LogUpkeep,
        samples: Samples,
        phases: Phases,
        checkpointer: Checkpointer | None,
        notices: list[str],
    ) -> None:
        """``notices``: what is to be shown to the user once, by the next report."""
        self._learner, self._ingest, self._broadcaster, self._upkeep = learner, ingest, broadcaster, upkeep
        self._samples, self._phases, self._checkpointer, self._notices = samples, phases, checkpointer, notices
        self._starved_s, self.rates = 0.0, Rates()
        self._sums_before = Sums()
        self._seconds_before: Mapping[str, float] = dict.fromkeys(PHASES, 0.0)
        self._reported = Counters()
        self._device = device_name(learner.device)
        self._exploring_return: float | None = None
        self._newest_update: UpdateMetrics | None = None

    @contextlib.contextmanager
    def slice(self) -> Iterator[None]:
        """Measures the rates of the block, and how long this thread waited for a core in it."""
        totals, started, starved_s = self._ingest.ledger.totals, time.perf_counter(), CpuTime.now().starved_s
        env_steps, updates = totals.env_steps, self._learner.updates
        yield
        elapsed = time.perf_counter() - started
        self._starved_s += CpuTime.now().starved_s - starved_s
        self.rates = Rates((totals.env_steps - env_steps) / elapsed, (self._learner.updates - updates) / elapsed)

    def report(self) -> Report:
        """Returns the metrics, and the notices since the last report.

        Raises:
            Diverged: so many updates in a row were skipped that learning has come to nothing.
            Unbalanced: the ledger does not balance.
        """
        ledger = self._ingest.ledger
        ledger.check()
        self._newest_update = self._learner.metrics() or self._newest_update
        self._update_exploring_return(ledger.counters())
        if self._newest_update is not None:
            self._check_converging(self._newest_update)
        metrics, notices = self._metrics(), self._take_notices()
        if self._checkpointer is not None:
            notices += self._checkpointer.take_notices()
        self._phases.charge("report")
        return Report(metrics, dict(ledger.totals.refused), dict(ledger.totals.rows_lost), tuple(notices), self._device)

    def _take_notices(self) -> list[str]:
        notices = self._notices.copy()
        self._notices.clear()
        return notices

    def initial_counters(self) -> Report:
        """Returns the counters that this learner started from. Unlike ``report``, leaves pending notices in place."""
        totals = self._ingest.ledger.totals
        return Report(self._metrics(), dict(totals.refused), dict(totals.rows_lost), device=self._device)

    def _check_converging(self, update: UpdateMetrics) -> None:
        skipped, most = update.skipped_in_a_row, self._learner.config.max_skipped_updates
        if skipped >= most:
            raise Diverged(
                f"the last {skipped:.0f} of {self._learner.updates} updates had a loss or a gradient that is not "
                f"finite and were skipped (learner.max_skipped_updates is {most}): lower learner.lr or "
                "learner.reward_scale"
            )

    def _update_exploring_return(self, counters: Counters) -> None:
        """Takes the mean return of the episodes that ended since the last one that did."""
        episodes = counters.episodes - self._reported.episodes
        if episodes > 0:
            self._exploring_return = (counters.return_sum - self._reported.return_sum) / episodes
            self._reported = counters

    def _metrics(self) -> LearnerMetrics:
        sums = self._sums()
        return LearnerMetrics(
            replay=self._replay_metrics(sums),
            limiter=self._limiter_metrics(),
            sent=self._sent_metrics(),
            acting=self._acting_metrics(),
            training=self._training_metrics(sums),
            update=self._newest_update,
            samples=self._samples.metrics(),
            sampler=self._ingest.buffer.sampler.metrics(),
            checkpoint=None if self._checkpointer is None else self._checkpointer.metrics(),
        )

    def _replay_metrics(self, sums: Sums) -> ReplayMetrics:
        buffer, mirror, totals = self._ingest.buffer, self._ingest.buffer.mirror, self._ingest.ledger.totals
        memory = self._upkeep.memory
        return ReplayMetrics(
            chunks=totals.chunks,
            chunk_bytes=totals.bytes,
            rows=totals.rows,
            env_steps=totals.env_steps,
            ingest_backlog_chunks=self._ingest.reader.backlog_chunks,
            log_rows=buffer.log_rows,
            log_full=sums.log_full,
            log_unavailable=sums.log_unavailable,
            servers_down=self._broadcaster.publisher.servers_down,
            replay_rows=mirror.rows,
            replay_capacity_rows=mirror.capacity_rows,
            replay_sampleable_rows=mirror.sampleable_rows,
            replay_bytes=mirror.nbytes,
            log_memory_bytes=None if memory is None else memory.used,
            log_memory_limit_bytes=None if memory is None else memory.bound,
        )

    def _limiter_metrics(self) -> LimiterMetrics:
        limiter = self._ingest.limiter
        return LimiterMetrics(
            samples_per_insert_target=limiter.samples_per_insert,
            samples_per_insert=limiter.realised,
            samples=limiter.samples,
            limiter_error=limiter.error,
            limiter_half_band=limiter.half_band,
            limiter_min_rows=limiter.min_rows,
            credit_rows=self._ingest.lender.rows,
        )

    def _sent_metrics(self) -> SentMetrics:
        counters = self._ingest.ledger.counters()
        return SentMetrics(
            actor_env_steps=counters.env_steps,
            actor_episodes=counters.episodes,
            actor_returns_sum=counters.return_sum,
            actor_push_retries=counters.refusals,
            actor_credit_wait_seconds=counters.credit_wait_s,
        )

    def _acting_metrics(self) -> ActingMetrics:
        slots = [account for slot, account in self._ingest.ledger.slots.items() if slot in self._ingest.expected]
        acted_with = [version_count(account.weight_version) for account in slots if account.weight_version]
        lags = [max(0, self._broadcaster.published - count) for count in acted_with]
        return ActingMetrics(
            actors_expected=len(slots),
            weight_staleness_versions=max(lags, default=0),
            weight_staleness_mean_versions=sum(lags) / max(1, len(lags)),
            env_steps_per_second=self.rates.env_steps,
            exploring_return=self._exploring_return,
        )

    def _training_metrics(self, sums: Sums) -> TrainingMetrics:
        updates = self._learner.updates
        return TrainingMetrics(
            learner_phase_seconds=self._seconds(),
            learner_starved_seconds=sums.learner_starved_seconds,
            updates=updates,
            updates_per_second=self.rates.updates,
            target_syncs=updates // self._learner.config.target_period_updates,
            weights_published=sums.weights_published,
            weights_published_bytes=sums.weights_published_bytes,
            weight_version=self._broadcaster.version,
        )

    def _sums(self) -> Sums:
        publisher = self._broadcaster.publisher
        counted = Sums(
            weights_published=publisher.published,
            weights_published_bytes=publisher.published_bytes,
            log_full=self._upkeep.log_full,
            log_unavailable=self._ingest.outages + publisher.unavailable,
            learner_starved_seconds=self._starved_s,
        )
        return self._sums_before.plus(counted)

    def _seconds(self) -> dict[str, float]:
        """Returns where the time of all learners of this run went, by phase."""
        return {phase: self._seconds_before[phase] + spent for phase, spent in self._phases.seconds.items()}

    def values(self) -> dict[str, Any]:
        """Returns what ``restore`` continues from."""
        return {
            "noted": list(self._reported),
            "exploring_return": self._exploring_return,
            "figures": self._newest_update and list(self._newest_update),
            "sums": self._sums()._asdict(),
            "seconds": {PHASE_KEY.format(phase): spent for phase, spent in self._seconds().items()},
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continues the counters of earlier learners of the run."""
        self._reported = Counters.of(values["noted"], "noted")
        if (mean := values["exploring_return"]) is not None:
            self._exploring_return = number(mean, "exploring_return")
        if (update := values["figures"]) is not None:
            self._newest_update = UpdateMetrics(*(number(each, "figures") for each in update))
        sums, seconds = (
            {name: number(each, f"{what}.{name}", 0) for name, each in values[what].items()}
            for what in ("sums", "seconds")
        )
        self._sums_before = Sums(**sums)
        self._seconds_before = {phase: seconds.get(PHASE_KEY.format(phase), 0.0) for phase in PHASES}
