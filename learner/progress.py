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
from learner.learner import Learner
from learner.log_upkeep import LogUpkeep
from learner.metrics import UpdateMetrics
from learner.phases import Phases
from learner.report import Diverged, Report
from learner.samples import Samples
from learner.weights import version_count
from replay.chunk import Counters
from replay.mirror import Mirror
from replay.state import number


class Rates(NamedTuple):
    """Per second, over the newest slice of ``LearnerLoop.train``."""

    env_steps: float = 0.0
    updates: float = 0.0


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
        self._starved_s, self._rates = 0.0, Rates()
        self._sums_before: Mapping[str, float] = {}
        self._seconds_before: Mapping[str, float] = {}
        self._reported = Counters()
        self._exploring_return: float | None = None
        self._newest_figures: UpdateMetrics | None = None

    @contextlib.contextmanager
    def slice(self) -> Iterator[None]:
        """Measures the rates of the block, and how long this thread waited for a core in it."""
        totals, started, starved_s = self._ingest.ledger.totals, time.perf_counter(), CpuTime.now().starved_s
        env_steps, updates = totals.env_steps, self._learner.updates
        yield
        elapsed = time.perf_counter() - started
        self._starved_s += CpuTime.now().starved_s - starved_s
        self._rates = Rates((totals.env_steps - env_steps) / elapsed, (self._learner.updates - updates) / elapsed)

    def report(self) -> Report:
        """Returns the figures of the live table and of Prometheus, and the notices since the last report.

        Raises:
            Diverged: so many updates in a row were skipped that learning has come to nothing.
            Unbalanced: the ledger does not balance.
        """
        ledger = self._ingest.ledger
        ledger.check()
        self._newest_figures = self._learner.figures() or self._newest_figures
        counters = ledger.counters()
        self._update_exploring_return(counters)
        figures: dict[str, float] = (
            self._ingest.buffer.sampler.figures()
            | self._samples.figures()
            | self._counts(counters)
            | {
                "actor_returns_sum": counters.return_sum,
                "weight_version": self._broadcaster.version,
                "servers_down": self._broadcaster.publisher.servers_down,
                "env_steps_per_second": self._rates.env_steps,
                "updates_per_second": self._rates.updates,
            }
            | self._replay_figures()
            | self._limiter_figures()
            | self._staleness()
        )
        if self._exploring_return is not None:
            figures["exploring_return"] = self._exploring_return
        if self._newest_figures is not None:
            self._check_converging(self._newest_figures)
            figures |= self._newest_figures._asdict()
        if (memory := self._upkeep.memory) is not None:
            figures |= {"log_memory_bytes": memory.used, "log_memory_limit_bytes": memory.bound}
        notices = self._take_notices()
        if self._checkpointer is not None:
            figures |= self._checkpointer.figures()
            notices += self._checkpointer.take_notices()
        self._phases.charge("report")
        return Report(figures, dict(ledger.totals.refused), dict(ledger.totals.rows_lost), tuple(notices))

    def _take_notices(self) -> list[str]:
        notices = self._notices.copy()
        self._notices.clear()
        return notices

    def initial_counters(self) -> Report:
        """Returns the counters that this learner started from. Unlike ``report``, leaves pending notices in place."""
        totals = self._ingest.ledger.totals
        figures = self._counts(self._ingest.ledger.counters()) | self._ingest.buffer.sampler.figures()
        if self._newest_figures is not None:
            figures["updates_skipped"] = self._newest_figures.updates_skipped
        return Report(figures, dict(totals.refused), dict(totals.rows_lost))

    def _check_converging(self, figures: UpdateMetrics) -> None:
        skipped, most = figures.skipped_in_a_row, self._learner.config.max_skipped_updates
        if skipped >= most:
            raise Diverged(
                f"the last {skipped:.0f} of {self._learner.updates} updates had a loss or a gradient that is not "
                f"finite and were skipped (learner.max_skipped_updates is {most}): lower learner.lr or "
                "learner.reward_scale; the best policy so far is kept"
            )

    def _update_exploring_return(self, counters: Counters) -> None:
        """Takes the mean return of the episodes that ended since the last one that did."""
        episodes = counters.episodes - self._reported.episodes
        if episodes > 0:
            self._exploring_return = (counters.return_sum - self._reported.return_sum) / episodes
            self._reported = counters

    def _counts(self, counters: Counters) -> dict[str, float]:
        """Returns what only grows, over all learners of the run."""
        totals, updates = self._ingest.ledger.totals, self._learner.updates
        return {
            **self._sums(),
            **self._seconds(),
            "updates": updates,
            "target_syncs": updates // self._learner.config.target_period_updates,
            "samples": self._ingest.limiter.samples,
            "env_steps": totals.env_steps,
            "rows": totals.rows,
            "chunks": totals.chunks,
            "chunk_bytes": totals.bytes,
            "actor_env_steps": counters.env_steps,
            "actor_episodes": counters.episodes,
            "actor_credit_wait_seconds": counters.credit_wait_s,
            "actor_push_retries": counters.refusals,
        }

    def _replay_figures(self) -> dict[str, float]:
        buffer, mirror = self._ingest.buffer, self._ingest.buffer.mirror
        return {
            "log_rows": buffer.log_rows,
            "replay_rows": mirror.rows,
            "replay_capacity_rows": mirror.capacity_rows,
            "replay_sampleable_rows": mirror.sampleable_rows,
            "replay_bytes": Mirror.planned_bytes(mirror.schema, mirror.capacity_rows),
            "ingest_backlog_chunks": self._ingest.reader.backlog_chunks,
        }

    def _limiter_figures(self) -> dict[str, float]:
        limiter = self._ingest.limiter
        return {
            "samples_per_insert": limiter.realised,
            "samples_per_insert_target": limiter.samples_per_insert,
            "limiter_error": limiter.error,
            "limiter_half_band": limiter.half_band,
            "limiter_min_rows": limiter.min_rows,
            "credit_rows": self._ingest.lender.rows,
        }

    def _staleness(self) -> dict[str, float]:
        """Returns by how many versions the expected slots' newest chunks lag behind the newest weights."""
        slots = [account for slot, account in self._ingest.ledger.slots.items() if slot in self._ingest.expected]
        acted_with = [version_count(account.weight_version) for account in slots if account.weight_version]
        lags = [max(0, self._broadcaster.published - count) for count in acted_with]
        return {
            "weight_staleness_versions": max(lags, default=0),
            "weight_staleness_mean_versions": sum(lags) / max(1, len(lags)),
            "actors_expected": len(slots),
        }

    def _sums(self) -> dict[str, float]:
        publisher = self._broadcaster.publisher
        counted = {
            "weights_published": publisher.published,
            "weights_published_bytes": publisher.published_bytes,
            "log_full": self._upkeep.log_full,
            "log_unavailable": self._ingest.outages + publisher.unavailable,
            "learner_starved_seconds": self._starved_s,
        }
        return {name: self._sums_before.get(name, 0) + count for name, count in counted.items()}

    def _seconds(self) -> dict[str, float]:
        """Returns where the time of all learners of this run went."""
        return {name: self._seconds_before.get(name, 0) + spent for name, spent in self._phases.figures().items()}

    def values(self) -> dict[str, Any]:
        """Returns what ``restore`` continues from."""
        return {
            "noted": list(self._reported),
            "exploring_return": self._exploring_return,
            "figures": self._newest_figures and list(self._newest_figures),
            "sums": self._sums(),
            "seconds": self._seconds(),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continues the counters of earlier learners of the run."""
        self._reported = Counters.of(values["noted"], "noted")
        if (mean := values["exploring_return"]) is not None:
            self._exploring_return = number(mean, "exploring_return")
        if (figures := values["figures"]) is not None:
            self._newest_figures = UpdateMetrics(*(number(each, "figures") for each in figures))
        self._sums_before, self._seconds_before = (
            {name: number(each, f"{what}.{name}", 0) for name, each in values[what].items()}
            for what in ("sums", "seconds")
        )
