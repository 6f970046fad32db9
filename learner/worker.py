"""The learner's Ray actor: a thin shell around LearnerLoop, with the run's /metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from learner.config import LearnerConfig
from learner.report import Report
from replay.chunk import Schema
from replay.config import ReplayConfig
from replay.identity import Identity
from replay.redis_log import RedisLog
from replay.sharded_log import READ_TIMEOUT_S, ShardedLog


@ray.remote(max_restarts=0, max_task_retries=0)
class LearnerWorker:
    """One run's learner. The driver calls ``train`` again and again: its return is heartbeat and report."""

    def __init__(
        self,
        identity: Identity,
        urls: Sequence[str],
        run: str,
        schema: Schema,
        replay: ReplayConfig,
        config: LearnerConfig,
        *,
        fence: int,
        seed: int,
        slots: int,
        chunk_rows: int,
        quarantine: Path | None,
        metrics_address: tuple[str, int] | None,
        version: str,
    ) -> None:
        """``urls`` of all servers have the learner's own passwords: they come as an argument since Ray logs a
        runtime_env in clear."""
        identity.check()
        import torch

        from learner.loop import LearnerLoop
        from learner.metrics import MetricsServer
        from learner.publisher import Publisher

        torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)
        self._metrics = MetricsServer(run, version, metrics_address)
        first, *others = (RedisLog(url, run) for url in urls)
        publisher = Publisher(first, fence, others)
        publisher.start()
        self._publisher = publisher
        log = ShardedLog([RedisLog(url, run, timeout_s=READ_TIMEOUT_S) for url in urls], publisher)
        self._loop = LearnerLoop(
            run, log, publisher, schema, replay, config, fence=fence, seed=seed, quarantine=quarantine
        )
        self._loop.expect(range(slots), chunk_rows)

    def train(self, seconds: float, driver_figures: Mapping[str, float]) -> Report:
        """See ``LearnerLoop.train``. ``driver_figures`` are shown on /metrics beside the learner's own."""
        report = self._loop.train(seconds)
        self._metrics.show(report, driver_figures)
        return report

    def metrics_address(self) -> tuple[str, int] | None:
        """Where its /metrics is: with port 0, and on a cluster, nobody else knows."""
        return self._metrics.address

    def candidate(self) -> bytes:
        """See ``LearnerLoop.candidate``."""
        return self._loop.candidate()

    def shut_gate(self) -> None:
        """Have the actors stop inserting: no more updates follow."""
        self._publisher.stop()

    def drain(self) -> Report:
        """Take in what the actors have flushed; the last report."""
        self._loop.drain()
        return self._loop.report()
