"""The mode inline: learner, actors and evaluator in one process, in lock-step."""

from __future__ import annotations

import time
from collections.abc import Callable

from actors.metrics import ActorMetrics, EvaluationMetrics
from actors.supervision.rebuilds import RebuildNotices
from deploy import __version__
from deploy.config.errors import RunFailedError
from deploy.config.models import RunConfig
from deploy.monitoring.metrics import DriverMetrics, RestartMetrics, RunMetrics, shown_by
from deploy.planning.memory import backstop_chunks
from deploy.process import arithmetic
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import Counts, Notify, Progress, learner_spec, make_checkpointer
from deploy.sessions.inline_actors import InlineActors
from deploy.sessions.inline_evaluation import InlineEvaluation
from learner.builders import build_learner
from learner.checkpoint import Found, restoring
from learner.metrics import Rates
from learner.report import Diverged
from replay.breakable import Breakable, breakable
from replay.chunk import Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.metrics import flat
from replay.state import State, count


class InlineSession(Breakable):
    """One process, in lock-step, reproducible to the bit: every cadence is in updates or env steps."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        schema: Schema,
        notify: Notify,
        counts: Counts = dict[str, float],
    ) -> None:
        import torch

        from learner.exporter import MetricsServer

        if (threads := arithmetic.blas_threads()) > 1:  # not in the command qherd, which pins them
            notify(
                f"numpy's BLAS uses {threads} threads, so the run is the same to the bit only where it has as many: "
                "call deploy.process.arithmetic.pin() before numpy is imported"
            )
        torch.set_num_threads(config.learner.threads)
        torch.set_deterministic_debug_mode("error")  # its other name imports torch._dynamo: seconds of every start
        self._config, self._directory, self._schema, self._notify = config, directory, schema, notify
        self._counts = counts
        address = None if config.metrics.port is None else (config.metrics.host, config.metrics.port)
        self._metrics = MetricsServer(shown_by(config), directory.run, __version__, address)
        if self._metrics.address:
            directory.register_metrics(*self._metrics.address)
        self._fence = directory.fences.next_fence()
        self._checkpointer = make_checkpointer(config, directory, schema)
        if not self._checkpointer.with_rows:
            notify(
                f"the replay memory is bigger than checkpoint.rows_max_bytes = {config.checkpoint.rows_max_bytes:,}: a "
                "resumed run begins with an empty one, not to the bit"
            )
        self._verdicts = EvaluationMetrics()
        self._parts = list[InlineActors | InlineEvaluation]()
        try:
            if self._fence > 1:
                self._checkpointer.build_from_newest(self._build)
            else:
                self._build(None)
            self._begin()
        except BaseException:
            self._close_parts()
            raise

    def _build(self, found: Found | None) -> None:
        """Makes the learner, the actors and the evaluator, from what was ``found``.

        Raises:
            CheckpointError: it holds nothing to go on from.
        """
        from learner.publisher import Publisher

        config, directory = self._config, self._directory
        self._close_parts()  # of a newer checkpoint that was of no use
        self._log = MemoryLog(backstop_chunks(config))
        if found is not None:
            with restoring(found, "log"):
                self._log.restore(found.parts["log"])
        spec, publisher = learner_spec(config, directory, self._schema, self._fence), Publisher(self._log, self._fence)
        self.loop = build_learner(spec, self._log, publisher, self._checkpointer, found, republish=found is None)
        self._rebuilt = RebuildNotices(self._notify)
        self._actors = InlineActors(config, directory, self._log, self._rebuilt, self._notify)
        self._parts.append(self._actors)
        self._actors.build(found)
        self._evaluation = InlineEvaluation(config, self._rebuilt, self._notify)
        self._parts.append(self._evaluation)
        if found is not None:
            with restoring(found, "evaluator"):
                self._evaluation.restore_evaluator(found.parts["evaluator"])
            with restoring(found, "session"):
                values = found.parts["session"].values
                self._evaluation.restore_counts(values)
                self._rebuilt.total = count(values["env_rebuilds"], "env_rebuilds")

    def _begin(self) -> None:
        """Truncates the history to the checkpoint, and writes the first one of this driver."""
        self._metrics.begin(self.loop.progress.initial_counters())
        if self.loop.resumed is not None:
            self._directory.history.rewind(self.loop.resumed)
        self._checkpoint()
        if self.loop.resumed is None:
            self._checkpointer.check()

    def _restarts(self) -> RestartMetrics:
        return RestartMetrics(evaluator_restarts=self._evaluation.restarts, env_rebuilds=self._rebuilt.total)

    def _checkpoint(self) -> None:
        """Writes all of the process, between two advances: whatever the last one did is in metrics.jsonl by then."""
        counts = {**self._evaluation.counts(), **flat(self._restarts())}
        session = {"session": State(counts, {}), "evaluator": self._evaluation.evaluator_state()}
        self.loop.checkpoint({**self._actors.states(), **session, "log": self._log.state()}, wait=True)
        self._checkpointed_at = self.loop.learner.updates

    @property
    def begun(self) -> bool:
        return True

    def status_line(self) -> str:
        return f"{len(self._actors)} actor(s) in this process"

    def advance(self) -> Progress:
        if self.loop.learner.updates - self._checkpointed_at >= self._config.checkpoint.every_updates:
            self._checkpoint()
        return self._advance()

    @breakable
    def _advance(self) -> Progress:
        until, steps = self.loop.learner.updates + 200, 0
        started, before = time.perf_counter(), (self.loop.learner.updates, self.loop.ledger.totals.env_steps)
        while steps < 200 and self.loop.learner.updates < until:
            if self.loop.cycle():
                self.loop.broadcaster.publish_if_due()
            else:
                self._actors.step()
                steps += 1
        self.loop.ingest.reader.trim(0)  # nobody else reads this log
        elapsed = time.perf_counter() - started
        verdict, policy = self._evaluation.screen(self.loop.learner.updates, self.loop.candidate)
        if verdict is not None:
            self._verdicts = self._verdicts.after(verdict)
        updates, env_steps = self.loop.learner.updates - before[0], self.loop.ledger.totals.env_steps - before[1]
        self.loop.progress.rates = Rates(env_steps / elapsed, updates / elapsed)
        try:
            report = self.loop.report()
        except Diverged as error:
            raise RunFailedError(str(error)) from None
        metrics = DriverMetrics(
            ActorMetrics(actors_alive=len(self._actors)),
            self._verdicts,
            self._restarts(),
            evaluation_failing=float(bool(self._evaluation.failing)),
        )
        self._metrics.show(report, {**flat(metrics), **self._counts()})
        self._rebuilt.catch_up()
        for text in report.notices:
            self._notify(text)
        failing = self._evaluation.failing
        return Progress(
            RunMetrics(metrics, report.metrics),
            report.refused,
            report.rows_lost,
            verdict,
            policy,
            unevaluated=failing,
            learner_device=report.device,
        )

    def stop(
        self, deadline_s: float, policy: bytes | None = None, skip: Callable[[], bool] = lambda: False
    ) -> Progress | None:
        del deadline_s
        holdout = None
        try:
            if self._broken_by is None:
                self._checkpoint()
            if policy is not None:
                holdout = self._evaluation.hold_out(policy, skip)
        finally:
            self._close_parts()
            self._metrics.close()
        return Progress(None, {}, {}, None, None, unevaluated=self._evaluation.failing, holdout=holdout)

    def _close_parts(self) -> None:
        parts, self._parts = self._parts, []
        for part in parts:
            part.close()
