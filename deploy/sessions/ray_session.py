"""The modes local and cluster: learner, actors and evaluator as Ray actors, on an embedded server or existing ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from actors.closing import CLOSE_S, LATE_S
from actors.episodes import Episodes
from actors.evaluator import Verdict
from actors.metrics import ActorMetrics, EvaluationMetrics, work_of
from actors.restarts import CrashLoopError, NotNowError, Restarts
from deploy import __version__
from deploy.cluster.capacity import Capacity
from deploy.cluster.placement import options
from deploy.cluster.ray_running import ray_running
from deploy.config.errors import ConfigError, RunDirError, RunFailedError
from deploy.config.models import RunConfig, env_of
from deploy.monitoring.metrics import DriverMetrics, RestartMetrics, RunMetrics, shown_by
from deploy.planning.memory import (
    backstop_chunks,
    check_limiter,
    check_more_actors,
    check_windows,
    chunk_rows,
)
from deploy.process.signals import Stop
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import (
    HOLDOUT_S,
    Notify,
    Progress,
    log_file,
    make_checkpointer,
    replay_of,
)
from deploy.sessions.replay_server import open_servers
from deploy.sessions.scale_requests import ScaleRequestInbox, ScaleRequests
from learner.metrics import LearnerMetrics
from learner.report import Report, Resumed
from replay.chunk import Schema
from replay.chunk_log import open_sharded_log
from replay.chunk_log.protocol import ChunkId, LogError, may_follow
from replay.chunk_log.sharded_log import shard_of
from replay.identity import Identity
from replay.metrics import flat

FLUSH_S = 9.0
"""How long the end of a run waits for the actors to flush, at the most."""
METRICS_ADDRESS_S = 5.0
"""How long the driver waits for the learner to say where its /metrics is."""


class RaySession:
    """``local``: Ray and an embedded server on this machine; ``cluster``: those that are there."""

    def __init__(self, config: RunConfig, directory: RunDirectory, schema: Schema, notify: Notify, stop: Stop) -> None:
        self._config, self._directory, self._schema, self._notify, self._stop = config, directory, schema, notify, stop
        self._cleanup = contextlib.ExitStack()
        before = directory.history.newest()
        self._restarts_before, self._work_before = RestartMetrics.of_row(before), work_of(before)
        self._checkpointed = before.get("checkpoints", 0) > 0
        self._learner: LearnerMetrics | None = None
        self._refused: dict[str, int] = {}
        self._rows_lost: dict[str, int] = {}
        self._driver = DriverMetrics(
            ActorMetrics(actors_alive=0),
            EvaluationMetrics(),
            self._restarts_before,
            evaluation_failing=0.0,
            checkpoint_interval_seconds=config.checkpoint.every_s,
        )
        self._registered: Any = None
        self._inbox = ScaleRequestInbox(directory.path)
        self._folder = Path.cwd() if config.mode == "local" else None
        """What relative paths of the environment start from; nodes of a cluster have folders of their own."""
        try:
            self._start()
        except NotNowError as error:  # at the start there is nothing to wait for
            self._cleanup.close()
            raise ConfigError(str(error)) from error
        except BaseException:
            self._cleanup.close()
            raise

    def _start(self) -> None:
        config = self._config
        self._servers = open_servers(config, self._directory, self._schema, self._notify, self._cleanup)
        self._servers.claim()
        self._stop.check()
        self._notify(f"starting Ray ({'on this machine' if config.mode == 'local' else config.ray.address})")
        with ThreadPoolExecutor(1) as meanwhile:
            opened = meanwhile.submit(self._directory.history.open)
            self._cleanup.enter_context(ray_running(config, self._directory.ray_log))
        opened.result()
        self._stop.check()

        from actors.supervision.actor_supervisor import ActorSupervisor
        from actors.supervision.evaluator_supervisor import EvaluatorSupervisor
        from actors.supervision.stall import StallDetector
        from deploy.sessions.learner_seat import LearnerSeat

        budget = config.actors.restarts
        self._stall = StallDetector(config.actors.silence_s)
        identity = Identity.here()
        self._capacity = self._check_capacity(config)
        self._notify("starting the learner, the evaluator and the actors")
        urls, resumes = self._servers.urls, self._directory.fences.fence > 0
        self._seat = LearnerSeat(
            lambda: self._start_learner(identity, urls["learner"]), Restarts("the learner", budget), self._notify
        )
        incarnations: Mapping[int, int] = {}
        if resumes and (resumed := self._seat.started(lambda: self._capacity.short(learner=True))) is not None:
            self._directory.history.rewind(resumed)
            incarnations = resumed.incarnations
        self._supervisor = ActorSupervisor(
            self._actor_starter(identity, urls, incarnations), config.actors, config.env.id, self._notify
        )
        self._screening = EvaluatorSupervisor(
            self._evaluator_starter(identity),
            self._seat.candidate,
            config.eval,
            budget,
            self._notify,
            self._directory.fences.spent,
        )
        self._scale_requests = ScaleRequests(
            self._inbox, self._rescale, self._supervisor.ladder_if_scaled, self._supervisor.status_line, self._notify
        )

    def _check_capacity(self, config: RunConfig) -> Capacity:
        """Raises ConfigError where the cluster can never hold the run."""
        capacity = Capacity(config, self._notify)
        if capacity.waits_for:
            self._notify(capacity.waits_for)
        return capacity

    def _start_learner(self, identity: Identity, urls: Sequence[str]) -> Any:
        from learner.worker import LearnerWorker

        config = self._config
        local = config.mode == "local"
        with _later_if_away():
            fence = self._directory.fences.next_fence()
        return LearnerWorker.options(**options(self._capacity.request.learner)).remote(  # type: ignore[attr-defined]
            identity,
            log_file(config, self._directory, "learner"),
            urls,
            self._directory.run,
            self._schema,
            replay_of(config, self._directory),
            config.learner,
            fence=fence,
            seed=config.seed,
            slots=config.actors.count,
            slots_ever=self._directory.fences.slots_ever,
            chunk_rows=chunk_rows(config),
            quarantine=self._directory.quarantine if local else None,
            checkpointer=make_checkpointer(config, self._directory, self._schema),
            must_resume=self._checkpointed,
            metrics=shown_by(config),
            metrics_address=_metrics_address(config),
            version=__version__,
            path=env_of(config).path,
        )

    def _actor_starter(
        self, identity: Identity, urls: Mapping[str, Sequence[str]], incarnations: Mapping[int, int]
    ) -> Callable[[int], Any]:
        """``incarnations``: the newest that the checkpoint knows, of a run that is resumed."""
        from actors.actor_id import ActorId
        from actors.worker import ActorWorker

        config = self._config
        run, env, network = self._directory.run, env_of(config), config.learner.network_spec
        log = self._cleanup.enter_context(contextlib.closing(open_sharded_log(urls["learner"], run, "driver")))

        def start(slot: int) -> Any:
            with _later_if_away():
                newest = max(self._directory.fences.incarnation(slot), incarnations.get(slot, 0))
                last = log.last_id(slot)
                if may_follow(last, ChunkId(newest)):  # else a stranger's: the learner begins the stream anew
                    newest = last.incarnation
                incarnation = self._directory.fences.next_incarnation(slot, newest)
            place = ActorId(run, config.seed, slot, self._config.actors.count, incarnation)
            url = urls["actor"][shard_of(slot, len(urls["actor"]))]
            placed = options(self._capacity.request.actor) | {"scheduling_strategy": "SPREAD"}
            return ActorWorker.options(**placed).remote(  # type: ignore[attr-defined]
                identity,
                log_file(config, self._directory, f"actor-{slot}"),
                url,
                place,
                env,
                config.actors,
                network,
                backstop_chunks(config),
                self._folder,
            )

        return start

    def _evaluator_starter(self, identity: Identity) -> Callable[[], Any]:
        from actors.worker import EvaluatorWorker

        config = self._config
        env, network = env_of(config), config.learner.network_spec

        def start() -> Any:
            with _later_if_away():
                number = self._directory.fences.next_evaluator()
            return EvaluatorWorker.options(**options(self._capacity.request.evaluator)).remote(  # type: ignore[attr-defined]
                identity,
                log_file(config, self._directory, "evaluator"),
                env,
                config.eval,
                network,
                config.seed,
                number,
                self._folder,
            )

        return start

    @property
    def begun(self) -> bool:
        return self._seat.heard and self._supervisor.alive > 0

    def status_line(self) -> str:
        return self._supervisor.status_line()

    def advance(self) -> Progress:
        import ray

        try:
            reported = self._take_report()
            self._servers.tick()
            self._scale_requests.tick()
            self._supervisor.tick()
            if self._capacity.short(not self._seat.heard, self._supervisor.starting):
                self._seat.excuse()
                self._supervisor.reset_silence()
                self._stall.reset()
            if self._supervisor.starting and not self._supervisor.alive:  # environments may take minutes to make
                self._stall.reset()
            if reported:  # a learner that says nothing is the seat's to notice
                self._check_silence()
            result = self._screening.tick(learning=self._seat.works and self._updates > 0)
        except CrashLoopError as error:
            raise RunFailedError(str(error), error.details) from None
        self._servers.report_down(0 if self._learner is None else self._learner.replay.servers_down)
        try:
            verdict, policy = (result[0], ray.get(result[1])) if result else (None, None)
        except ray.exceptions.RayError:  # it went with the learner that had made it
            verdict, policy = None, None
        if verdict is not None:
            self._note_spent(verdict)
        self._driver = self._driver_metrics(verdict)
        return self._progress(verdict, policy)

    def _note_spent(self, verdict: Verdict) -> None:
        """Before what it found is used: a confirmation whose count is lost would be free."""
        if verdict.confirmed is not None:
            try:
                self._directory.fences.record_spent(verdict.spent)
            except RunDirError as error:  # a full disk
                self._notify(f"{error}; a resumed run will not count this confirmation")

    def _take_report(self) -> bool:
        """Wait up to a slice for what the learner has to report, and whether it had; one that was started anew has its
        curves go on from where it went on."""
        found = self._seat.tick(flat(self._driver), self._supervisor.died)
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
        self._learner, self._refused, self._rows_lost = report.metrics, report.refused, report.rows_lost
        if (checkpoint := report.metrics.checkpoint) is not None:
            self._checkpointed = checkpoint.checkpoints > 0
        for text in report.notices:
            self._notify(text)

    def _rewind(self, resumed: Resumed) -> None:
        try:
            self._directory.history.rewind(resumed)
        except RunDirError as error:  # a full disk: what was learned matters more
            self._notify(f"{error}; the curve goes back to update {resumed.updates:,} there")

    @property
    def _updates(self) -> int:
        return 0 if self._learner is None else self._learner.training.updates

    def _driver_metrics(self, verdict: Verdict | None) -> DriverMetrics:
        """Returns them, what was counted before the run was resumed included."""
        restarts = RestartMetrics(
            actor_restarts=self._supervisor.restarts,
            evaluator_restarts=self._screening.restarts,
            learner_restarts=self._seat.restarts.total,
            server_restarts=self._servers.restarts.total,
            env_rebuilds=self._supervisor.rebuilds + self._screening.rebuilds,
        )
        evaluation = self._driver.evaluation
        return self._driver._replace(
            actors=ActorMetrics.of(self._supervisor.alive, self._work_before.plus(self._supervisor.work)),
            evaluation=evaluation if verdict is None else evaluation.after(verdict),
            restarts=restarts.plus(self._restarts_before),
            evaluation_failing=float(bool(self._screening.failing)),
        )

    def _check_silence(self) -> None:
        if self._learner is not None and self._stall.stalled(self._learner.replay, self._learner.limiter):
            raise RunFailedError(
                f"no env step has come in for {self._config.actors.silence_s:g} s (actors.silence_s), though "
                f"actors have credit: {self._supervisor.status_line()}"
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
        self._config, self._capacity = config, capacity
        if capacity.waits_for:
            self._notify(capacity.waits_for)
        if self._seat.works:  # one that starts is told as it starts
            self._seat.handle.expect.remote(count, chunk_rows(config))
        self._supervisor.scale(count)
        return before

    def _register_metrics(self) -> None:
        """Once per learner, when it works: write down where its /metrics is, which only it knows."""
        import ray

        from actors.restarts import cause

        if self._config.metrics.port is None or self._registered is self._seat.handle:
            return
        try:
            address = ray.get(self._seat.handle.metrics_address.remote(), timeout=METRICS_ADDRESS_S)
            self._directory.register_metrics(*address)
        except (ray.exceptions.RayError, RunDirError) as error:
            self._notify(f"Prometheus will not find this run yet: {cause(error)}")
            return
        self._registered = self._seat.handle

    def _progress(self, verdict: Verdict | None, policy: bytes | None) -> Progress:
        metrics, failing = RunMetrics(self._driver, self._learner), self._screening.failing
        return Progress(metrics, self._refused, self._rows_lost, verdict, policy, self._deaths(), failing)

    def _deaths(self) -> dict[str, int]:
        parts = {
            "actor": self._supervisor.restart_reasons,
            "evaluator": self._screening.restart_reasons,
            "learner": self._seat.restarts.reasons,
            "server": self._servers.restarts.reasons,
        }
        return {f"{part}: {reason}": count for part, reasons in parts.items() for reason, count in reasons.items()}

    def stop(
        self, deadline_s: float, policy: bytes | None = None, skip: Callable[[], bool] = lambda: False
    ) -> Progress | None:
        """See ``Session.stop``. The parts share the deadline: a server that is frozen takes at most FLUSH_S of it."""
        import ray

        end, flushed = time.monotonic() + deadline_s, time.monotonic() + FLUSH_S
        away = contextlib.suppress(ray.exceptions.RayError, LogError)
        holdout = None if policy is None else self._screening.holdout(policy, HOLDOUT_S)
        held_until = time.monotonic() + HOLDOUT_S + 1
        try:
            if self._seat.works:
                with away:
                    ray.get(self._seat.handle.take_credit_back.remote(), timeout=FLUSH_S / 2)
            with away:
                self._supervisor.stop(flushed - time.monotonic())
            if self._seat.works:
                with away:
                    finished = self._seat.handle.finish.remote(self._supervisor.died)
                    self._take(ray.get(finished, timeout=end - time.monotonic()))
            held = _played(holdout, min(end, held_until), skip)
            with away:
                self._screening.stop()
            return self._progress(None, None)._replace(holdout=held)
        finally:
            with away:
                self._supervisor.end(min(CLOSE_S, end - time.monotonic()))
                self._screening.end(min(LATE_S, end - time.monotonic()))
            self._cleanup.close()


def _played(holdout: Any, until_s: float, skip: Callable[[], bool]) -> Episodes | None:
    """The hold-out's episodes; None where it was not begun, has not come in time, failed, or is skipped."""
    import ray

    while holdout is not None and time.monotonic() < until_s and not skip():
        if ray.wait([holdout], timeout=0.1)[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                return cast("Episodes | None", ray.get(holdout))
            return None
    return None


def _metrics_address(config: RunConfig) -> tuple[str, int] | None:
    """Where to serve /metrics; 0 is a free port."""
    return None if config.metrics.port is None else (config.metrics.host, config.metrics.port)


@contextlib.contextmanager
def _later_if_away() -> Iterator[None]:
    """A number that fences comes from the server or from the disk; where either is away for now, so is the start."""
    try:
        yield
    except RunDirError as error:
        raise NotNowError(str(error)) from error
    except LogError as error:
        if not error.temporary:
            raise
        raise NotNowError(str(error)) from error
