"""The modes local and cluster: learner, actors and evaluator as Ray actors, on an embedded server or existing ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from actors.closing import CLOSE_S, LATE_S
from actors.episodes import Episodes
from actors.evaluator import EvaluationResult
from actors.supervision.restarts import CrashLoopError, NotNowError, Restarts
from deploy.cluster.capacity import Capacity
from deploy.cluster.ray_running import ray_running
from deploy.config.errors import ConfigError, RunDirError, RunFailedError
from deploy.config.models import RunConfig
from deploy.planning.memory import (
    check_limiter,
    check_more_actors,
    check_windows,
    chunk_rows,
)
from deploy.process.signals import Stop
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import (
    HOLDOUT_S,
    Counts,
    Notify,
    Progress,
)
from deploy.sessions.replay_server import open_servers
from deploy.sessions.scale_requests import ScaleRequestInbox, ScaleRequests
from deploy.sessions.session_metrics import SessionMetrics, Supervised
from learner.report import Report, Resumed
from replay.chunk import Schema
from replay.chunk_log.protocol import LogError
from replay.metrics import flat

FLUSH_S = 9.0
"""How long the end of a run waits for the actors to flush, at the most."""
METRICS_ADDRESS_S = 5.0
"""How long the driver waits for the learner to say where its /metrics is."""


class RaySession:
    """``local``: Ray and an embedded server on this machine; ``cluster``: those that are there."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        schema: Schema,
        notify: Notify,
        stop: Stop,
        counts: Counts = dict[str, float],
    ) -> None:
        self._config, self._directory, self._schema, self._notify = config, directory, schema, notify
        self._counts = counts
        self._cleanup = contextlib.ExitStack()
        self._metrics = SessionMetrics(directory.history.newest(), config.checkpoint.every_s)
        self._registered: Any = None
        inbox = ScaleRequestInbox(directory.path)
        try:
            self._start(stop, inbox)
        except NotNowError as error:  # at the start there is nothing to wait for
            self._cleanup.close()
            raise ConfigError(str(error)) from error
        except BaseException:
            self._cleanup.close()
            raise

    def _start(self, stop: Stop, inbox: ScaleRequestInbox) -> None:
        config = self._config
        self._servers = open_servers(config, self._directory, self._schema, self._notify, self._cleanup)
        self._servers.claim()
        stop.check()
        self._notify(f"starting Ray ({'on this machine' if config.mode == 'local' else config.ray.address})")
        with ThreadPoolExecutor(1) as meanwhile:
            opened = meanwhile.submit(self._directory.history.open)
            self._cleanup.enter_context(ray_running(config, self._directory.ray_log))
        opened.result()
        stop.check()

        from actors.supervision.actor_supervisor import ActorSupervisor
        from actors.supervision.evaluator_supervisor import EvaluatorSupervisor
        from actors.supervision.stall import StallDetector
        from deploy.sessions.learner_supervisor import LearnerSupervisor
        from deploy.sessions.ray_starters import RayStarters

        budget = config.actors.restarts
        self._stall = StallDetector(config.actors.silence_s)
        capacity = self._check_capacity(config)
        self._starters = starters = RayStarters(config, capacity, self._directory, self._schema, self._servers.urls)
        self._cleanup.callback(starters.close)
        self._notify("starting the learner, the evaluator and the actors")
        resumes = self._directory.fences.fence > 0
        self._learner = LearnerSupervisor(
            lambda: starters.start_learner(must_resume=self._metrics.checkpointed),
            Restarts("the learner", budget),
            self._notify,
        )
        if resumes:
            resumed = self._learner.wait_until_resumed(lambda: starters.capacity.short(learner=True))
            if resumed is not None:
                self._directory.history.rewind(resumed)
                starters.incarnations = resumed.incarnations
        self._actors = ActorSupervisor(starters.start_actor, config.actors, config.env.id, self._notify)
        self._evaluator = EvaluatorSupervisor(
            starters.start_evaluator,
            self._learner.candidate,
            config.eval,
            budget,
            self._notify,
            self._directory.fences.spent,
        )
        self._parts = Supervised(self._actors, self._evaluator, self._learner, self._servers)
        self._scale_requests = ScaleRequests(
            inbox, self._rescale, self._actors.ladder_if_scaled, self._actors.status_line, self._notify
        )

    def _check_capacity(self, config: RunConfig) -> Capacity:
        """Raises ConfigError where the cluster can never hold the run."""
        capacity = Capacity(config, self._notify)
        if capacity.waits_for:
            self._notify(capacity.waits_for)
        return capacity

    @property
    def begun(self) -> bool:
        return not self._learner.starting and self._actors.alive > 0

    def status_line(self) -> str:
        return self._actors.status_line()

    def advance(self) -> Progress:
        import ray

        try:
            reported = self._take_report()
            self._servers.tick()
            self._scale_requests.tick()
            self._actors.tick()
            if self._starters.capacity.short(self._learner.starting, self._actors.starting):
                self._learner.reset_silence()
                self._actors.reset_silence()
                self._stall.reset()
            if self._actors.starting and not self._actors.alive:  # environments may take minutes to make
                self._stall.reset()
            if reported:  # a learner that does not report is its supervisor's to notice
                self._check_silence()
            result = self._evaluator.tick(learning=self._learner.has_process and self._metrics.updates > 0)
        except CrashLoopError as error:
            raise RunFailedError(str(error), error.details) from None
        self._servers.report_down(self._metrics.servers_down)
        try:
            verdict, policy = (result[0], ray.get(result[1])) if result else (None, None)
        except ray.exceptions.RayError:  # it went with the learner that had made it
            verdict, policy = None, None
        if verdict is not None:
            self._note_spent(verdict)
        self._metrics.update(self._parts, verdict)
        return self._metrics.progress(self._parts, verdict, policy)

    def _note_spent(self, verdict: EvaluationResult) -> None:
        """Records what a confirmation has spent, before what it found is used: one whose count is lost would be
        free."""
        if verdict.confirmed is not None:
            try:
                self._directory.fences.record_spent(verdict.spent)
            except RunDirError as error:  # a full disk
                self._notify(f"{error}; a resumed run will not count this confirmation")

    def _take_report(self) -> bool:
        """Waits up to a slice for the learner's report; returns whether there was one. The curves of one that was
        started anew continue from where it resumed."""
        found = self._learner.tick({**flat(self._metrics.driver), **self._counts()}, self._actors.died)
        if found is None:
            return False
        report, resumed = found
        if resumed is not None:
            self._rewind(resumed)
            self._stall.reset()
        self._take(report)
        self._register_metrics()
        return True

    def _take(self, report: Report) -> None:
        self._metrics.take(report)
        for text in report.notices:
            self._notify(text)

    def _rewind(self, resumed: Resumed) -> None:
        try:
            self._directory.history.rewind(resumed)
        except RunDirError as error:  # a full disk: what was learned matters more
            self._notify(f"{error}; the curve goes back to update {resumed.updates:,} there")

    def _check_silence(self) -> None:
        learner = self._metrics.learner
        if learner is not None and self._stall.stalled(learner.replay, learner.limiter):
            raise RunFailedError(
                f"no env step has come in for {self._config.actors.silence_s:g} s (actors.silence_s), though "
                f"actors have credit: {self._actors.status_line()}"
            )

    def _rescale(self, count: int) -> int:
        """Changes the number of slots; returns how many there were. Raises ConfigError or RunDirError, and changes
        nothing, where it cannot be."""
        before = self._config.actors.count
        actors = self._config.actors.model_copy(update={"count": count})
        config = self._config.model_copy(update={"actors": actors})
        check_limiter(config)
        check_windows(config, self._schema)
        check_more_actors(config, count - before)
        capacity = Capacity(config, self._notify)
        self._directory.record_config(config)
        self._config = self._starters.config = config
        self._starters.capacity = capacity
        if capacity.waits_for:
            self._notify(capacity.waits_for)
        if self._learner.has_process:  # one that starts is told as it starts
            self._learner.handle.expect.remote(count, chunk_rows(config))
        self._actors.scale(count)
        return before

    def _register_metrics(self) -> None:
        """Writes down where /metrics is, once per learner, when it works: only the learner has the address."""
        import ray

        from actors.supervision.restarts import cause

        if self._config.metrics.port is None or self._registered is self._learner.handle:
            return
        try:
            address = ray.get(self._learner.handle.metrics_address.remote(), timeout=METRICS_ADDRESS_S)
            self._directory.register_metrics(*address)
        except (ray.exceptions.RayError, RunDirError) as error:
            self._notify(f"Prometheus will not find this run yet: {cause(error)}")
            return
        self._registered = self._learner.handle

    def stop(
        self, deadline_s: float, policy: bytes | None = None, skip: Callable[[], bool] = lambda: False
    ) -> Progress | None:
        """See ``Session.stop``. The parts share the deadline: a server that is frozen takes at most FLUSH_S of it."""
        import ray

        end, flushed = time.monotonic() + deadline_s, time.monotonic() + FLUSH_S
        away = contextlib.suppress(ray.exceptions.RayError, LogError)
        holdout = None if policy is None else self._evaluator.holdout(policy, HOLDOUT_S)
        held_until = time.monotonic() + HOLDOUT_S + 1
        try:
            if self._learner.has_process:
                with away:
                    ray.get(self._learner.handle.take_credit_back.remote(), timeout=FLUSH_S / 2)
            with away:
                self._actors.stop(flushed - time.monotonic())
            if self._learner.has_process:
                with away:
                    finished = self._learner.handle.finish.remote(self._actors.died)
                    self._take(ray.get(finished, timeout=end - time.monotonic()))
            held = _played(holdout, min(end, held_until), skip)
            with away:
                self._evaluator.stop()
            return self._metrics.progress(self._parts)._replace(holdout=held)
        finally:
            with away:
                self._actors.end(min(CLOSE_S, end - time.monotonic()))
                self._evaluator.end(min(LATE_S, end - time.monotonic()))
            self._cleanup.close()


def _played(holdout: Any, until_s: float, skip: Callable[[], bool]) -> Episodes | None:
    """Returns the hold-out's episodes; None where it was not begun, has not come in time, failed, or is skipped."""
    import ray

    while holdout is not None and time.monotonic() < until_s and not skip():
        if ray.wait([holdout], timeout=0.1)[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                return cast("Episodes | None", ray.get(holdout))
            return None
    return None
