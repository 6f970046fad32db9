"""The learner's Ray actor: a thin shell around LearnerLoop, with the run's /metrics."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from learner.builders import LearnerSpec, build_learner
from learner.checkpoint import Checkpointer, CheckpointError, Found
from learner.publisher import Publisher
from learner.report import Report, Resumed
from replay.chunk_log import open_log, open_sharded_log
from replay.identity import Identity
from replay.logs import LogFile, failures_logged
from replay.metrics import Metric

if TYPE_CHECKING:
    from learner.loop import LearnerLoop

LOG = logging.getLogger("qherd.learner")


@ray.remote(max_restarts=0, max_task_retries=0)
class LearnerWorker:
    """One run's learner. The driver calls ``train`` again and again: its return is heartbeat and report."""

    @failures_logged(LOG)
    def __init__(
        self,
        identity: Identity,
        log_file: LogFile,
        urls: Sequence[str],
        spec: LearnerSpec,
        *,
        checkpointer: Checkpointer,
        must_resume: bool,
        metrics: Sequence[Metric],
        metrics_address: tuple[str, int] | None,
        version: str,
        path: Path | None,
    ) -> None:
        """``urls`` of all servers have the learner's own passwords: they come as an argument since Ray logs a
        runtime_env in clear. ``must_resume``: an earlier learner of this run has written checkpoints. ``path``: the
        folder of the user's own modules, with encoders and algorithms perhaps.

        Raises:
            CheckpointError: there is no checkpoint to go on from but should be, or the first cannot be written.
        """
        identity.check()
        log_file.start(stderr=True)
        LOG.info("learner with fence %d", spec.fence)
        if path is not None:
            sys.path.append(str(path))
        _prepare_torch(spec.config.threads)
        from learner.exporter import MetricsServer

        self._metrics = MetricsServer(metrics, spec.run, version, metrics_address)
        self._publisher = publisher = _start_publisher(urls, spec.run, spec.fence)
        log = open_sharded_log(urls, spec.run, "reader", publisher)

        def build(found: Found | None) -> LearnerLoop:
            if found is None and must_resume:
                raise CheckpointError(
                    f"none of the run's checkpoints is in {checkpointer.folder} on {socket.gethostname()}: give a "
                    "--checkpoint.dir that every node sees on which the learner may run"
                )
            return build_learner(spec, log, publisher, checkpointer, found)

        self._loop = checkpointer.build_from_newest(build) if spec.fence > 1 else build(None)
        self._metrics.begin(self._loop.progress.initial_counters())
        self._loop.checkpoint(wait=self._loop.resumed is None)
        if self._loop.resumed is None:
            checkpointer.check()

    def resumed(self) -> Resumed | None:
        """Returns where this learner resumed from; None for one that began anew."""
        return self._loop.resumed

    @failures_logged(LOG)
    def train(self, seconds: float, driver_row: Mapping[str, float], died: Mapping[int, Mapping[int, int]]) -> Report:
        """See ``LearnerLoop.train``. ``driver_row`` is shown on /metrics beside the learner's own; ``died``: see
        ``Ledger.record_deaths``."""
        self._loop.ledger.record_deaths(died)
        report = self._loop.train(seconds)
        for text in report.notices:
            LOG.info("%s", text)
        self._metrics.show(report, driver_row)
        return report

    def expect(self, slots: int, chunk_rows: int) -> None:
        """See ``LearnerLoop.expect``: the run has so many slots from now on."""
        self._loop.expect(range(slots), chunk_rows)

    def metrics_address(self) -> tuple[str, int] | None:
        """Returns the address of its /metrics, which with port 0, and on a cluster, is not known before."""
        return self._metrics.address

    def candidate(self) -> bytes:
        """See ``LearnerLoop.candidate``."""
        return self._loop.candidate()

    def take_credit_back(self) -> None:
        """Has the actors stop inserting: no more updates follow."""
        LOG.info("takes the actors' credit back")
        self._publisher.stop()

    @failures_logged(LOG)
    def finish(self, died: Mapping[int, Mapping[int, int]]) -> Report:
        """Takes in what the actors have flushed, and writes a checkpoint; returns the last report. ``died``: as in
        ``train``."""
        self._loop.ledger.record_deaths(died)
        self._loop.drain()
        self._loop.checkpoint(wait=True)
        report = self._loop.report()
        LOG.info("finished after %d updates", report.metrics.training.updates)
        return report


def _prepare_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _start_publisher(urls: Sequence[str], run: str, fence: int) -> Publisher:
    first, *others = (open_log(url, run, "publisher") for url in urls)
    publisher = Publisher(first, fence, others)
    publisher.start()
    return publisher
