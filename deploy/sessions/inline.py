"""The mode inline: learner, actors and evaluator in one process, in lock-step."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gymnasium.vector import SyncVectorEnv

from actors.closing import close_all
from actors.envs import TELL_EVERY_S, make_lanes
from actors.evaluator import Evaluator, Verdict
from actors.lanes import NotReplayable
from actors.restarts import Rebuilt, Restarts
from actors.setbacks import Setbacks
from actors.verdicts import Spent
from deploy import __version__
from deploy.config.models import RunConfig
from deploy.planning.memory import backstop_chunks, chunk_rows
from deploy.process import arithmetic
from deploy.run_directory.directory import RunDirectory, env_of
from deploy.sessions.base import HOLDOUT_S, Progress, RunFailedError, Say, make_checkpointer, replay_of, shown
from learner.checkpoint import Found, restoring
from learner.report import Diverged
from replay.breakable import Breakable, breakable
from replay.chunk import Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.state import State, count, number

if TYPE_CHECKING:
    from actors.rollout import Rollout


class InlineSession(Breakable):
    """One process, in lock-step, reproducible to the bit: every cadence is in updates or env steps."""

    def __init__(self, config: RunConfig, directory: RunDirectory, schema: Schema, say: Say) -> None:
        import torch

        from learner.metrics import MetricsServer

        if (threads := arithmetic.blas_threads()) > 1:  # not in the command qherd, which pins them
            say(
                f"numpy's BLAS uses {threads} threads, so the run is the same to the bit only where it has as many: "
                "call deploy.process.arithmetic.pin() before numpy is imported"
            )
        torch.set_num_threads(config.learner.threads)
        torch.use_deterministic_algorithms(True)
        self._config, self._directory, self._schema, self._say = config, directory, schema, say
        address = None if config.metrics.port is None else (config.metrics.host, config.metrics.port)
        self._metrics = MetricsServer(directory.run, __version__, address)
        if self._metrics.address:
            directory.show_metrics_address(*self._metrics.address)
        self._fence = directory.next_fence()
        self._checkpointer = make_checkpointer(config, directory, schema)
        if not self._checkpointer.with_rows:
            say(
                f"the replay memory is bigger than checkpoint.rows_max_bytes = {config.checkpoint.rows_max_bytes:,}: a "
                "resumed run begins with an empty one, not to the bit"
            )
        self._lanes = list[SyncVectorEnv]()
        try:
            if self._fence > 1:
                self._checkpointer.go_on(self._build)
            else:
                self._build(None)
            self._begin()
        except BaseException:
            self._close_envs()
            raise

    def _build(self, found: Found | None) -> None:
        """Make the learner, the actors and the evaluator, from what was ``found``. Raises CheckpointError where it
        holds nothing to go on from."""
        from learner.loop import LearnerLoop
        from learner.publisher import Publisher

        config, directory = self._config, self._directory
        self._close_envs()  # of a newer checkpoint that was of no use
        self._log = MemoryLog(backstop_chunks(config))
        if found is not None:
            with restoring(found, "log"):
                self._log.restore(found.parts["log"])
        self.loop = LearnerLoop(
            directory.run,
            self._log,
            Publisher(self._log, self._fence),
            self._schema,
            replay_of(config, directory),
            config.learner,
            fence=self._fence,
            seed=config.seed,
            quarantine=directory.quarantine,
            checkpointer=self._checkpointer,
            found=found,
            republish=found is None,
        )
        self.loop.expect(range(config.actors.count), chunk_rows(config))
        self._evaluator_restarts = Restarts("the evaluator", config.actors.restarts)
        self._setbacks, self._not_before_s = Setbacks(self._evaluator_restarts, self._say), 0.0
        self._screened_at, self._spent = 0, Spent()
        self._rebuilt = Rebuilt(self._say)
        self._rollouts = [self._rollout(slot, found) for slot in range(config.actors.count)]
        with _aloud(self._say, "the evaluator is still making its environments"):
            self._evaluator = Evaluator(env_of(config), config.eval, config.learner.network_spec, config.seed)
        if found is not None:
            with restoring(found, "evaluator"):
                self._evaluator.restore(found.parts["evaluator"])
            with restoring(found, "session"):
                self._restore_session(found.parts["session"].values)

    def _restore_session(self, values: Mapping[str, Any]) -> None:
        self._screened_at = count(values["screened_at"], "screened_at")
        confirmations, worst = values.get("spent", (0, None))
        self._spent = Spent(count(confirmations, "spent"), math.inf if worst is None else number(worst, "spent"))
        self._rebuilt.total = count(values["env_rebuilds"], "env_rebuilds")
        self._evaluator_restarts.total = count(values["evaluator_restarts"], "evaluator_restarts")

    def _begin(self) -> None:
        """Have the curves go on from there, and write the first checkpoint."""
        self._metrics.begin(self.loop.progress.initial_counters())
        if self.loop.resumed is not None:
            self._directory.rewind(self.loop.resumed)
        self._checkpoint()
        if self.loop.resumed is None:
            self._checkpointer.check()

    def _rollout(self, slot: int, found: Found | None) -> Rollout:
        """The slot's actor: as it was in the checkpoint, or, where its environment cannot be played again to the bit,
        a new incarnation."""
        if found is not None:
            part = f"actor-{slot}"
            try:
                with restoring(found, part):
                    incarnation = count(found.parts[part].values["incarnation"], "incarnation")
                rollout = self._make_rollout(slot, incarnation)
                with restoring(found, part), _aloud(self._say, f"actor {slot} is still playing its episodes again"):
                    rollout.restore(found.parts[part])
            except NotReplayable as error:
                close_all(self._lanes.pop().envs)
                self._say(f"actor {slot} begins anew, so the run does not go on to the bit: {error}")
            else:
                return rollout
        return self._make_rollout(slot, self._directory.next_incarnation(slot))

    def _make_rollout(self, slot: int, incarnation: int) -> Rollout:
        from actors.actor_id import ActorId
        from actors.policy import make_policy
        from actors.rollout import Rollout

        config = self._config
        lanes, restarts = config.actors.lanes, config.actors.restarts
        with _aloud(self._say, f"actor {slot} is still making its {lanes} environments"):
            self._lanes.append(make_lanes(env_of(config), lanes, restarts, recorded=True, slot=slot))
        return Rollout(
            ActorId(self._directory.run, config.seed, slot, config.actors.count, incarnation),
            self._lanes[-1],
            self._schema,
            make_policy(config.learner.network_spec, self._schema),
            self._log,
            config.actors.model_copy(update={"fetch_every_s": 0.0}),
            clock=lambda: 0.0,
        )

    def _restarts(self) -> dict[str, int]:
        return {"env_rebuilds": self._rebuilt.total, "evaluator_restarts": self._evaluator_restarts.total}

    def _checkpoint(self) -> None:
        """All of the process, between two advances: whatever the last one did is in metrics.jsonl by then."""
        actors = {f"actor-{slot}": rollout.state() for slot, rollout in enumerate(self._rollouts)}
        spent = [self._spent.confirmations, self._spent.worst if math.isfinite(self._spent.worst) else None]
        session = {
            "session": State({"screened_at": self._screened_at, "spent": spent, **self._restarts()}, {}),
            "evaluator": self._evaluator.state(),
        }
        self.loop.checkpoint({**actors, **session, "log": self._log.state()}, wait=True)
        self._checkpointed_at = self.loop.learner.updates

    @property
    def begun(self) -> bool:
        return True

    def told(self) -> str:
        return f"{len(self._rollouts)} actor(s) in this process"

    def advance(self) -> Progress:
        if self.loop.learner.updates - self._checkpointed_at >= self._config.checkpoint.every_updates:
            self._checkpoint()
        return self._advance()

    @breakable
    def _advance(self) -> Progress:
        until = self.loop.learner.updates + 200
        started, before = time.perf_counter(), (self.loop.learner.updates, self.loop.ledger.totals.env_steps)
        for _ in range(200):
            for slot, rollout in enumerate(self._rollouts):
                try:
                    if rollout.ready():
                        rollout.fill()
                        rollout.send()
                    self._rebuilt.note(f"actor {slot}", rollout.pop_rebuilt())
                except Exception as error:  # whatever the environment raised
                    message = f"actor {slot} failed: {type(error).__name__}: {error}"
                    raise RunFailedError(message, traceback.format_exc()) from error
            while self.loop.cycle():
                self.loop.broadcaster.publish_if_due()
            if self.loop.learner.updates >= until:
                break
        self.loop.ingest.reader.trim(0)  # nobody else reads this log
        elapsed = time.perf_counter() - started
        verdict, policy = self._screen()
        try:
            report = self.loop.report()
        except Diverged as error:
            raise RunFailedError(str(error)) from None
        figures = report.figures | {
            **self._restarts(),
            "actors_alive": len(self._rollouts),
            "evaluation_failing": float(bool(self._setbacks.failing)),
            "updates_per_second": (self.loop.learner.updates - before[0]) / elapsed,
            "env_steps_per_second": (self.loop.ledger.totals.env_steps - before[1]) / elapsed,
        }
        if verdict is not None:
            figures |= shown(verdict)
            self._spent = verdict.spent
        self._metrics.show(report, figures)
        self._rebuilt.catch_up()
        for text in report.told:
            self._say(text)
        failing = self._setbacks.failing
        return Progress(figures, report.refused, report.rows_lost, verdict, policy, unevaluated=failing)

    def _screen(self) -> tuple[Verdict | None, bytes | None]:
        updates = self.loop.learner.updates
        if updates - self._screened_at < self._config.eval.every_updates:
            return None, None
        self._screened_at = updates
        if time.monotonic() < self._not_before_s:
            return None, None
        policy = self.loop.candidate()
        try:
            verdict = self._evaluator.screen(policy, self._spent)
        except Exception as error:  # whatever the environment raised
            self._restart_evaluator(error)
            return None, None
        self._setbacks.succeeded()
        self._rebuilt.note("the evaluator", verdict.remade)
        return verdict, policy

    def _restart_evaluator(self, error: Exception) -> None:
        """Another evaluator goes on with the next seeds. Where there are too many no policy is judged for a while."""
        wait_s = self._setbacks.died(error)
        if self._setbacks.failing:
            self._not_before_s = time.monotonic() + wait_s
        try:
            with _aloud(self._say, "the evaluator is still making its environments"):
                self._evaluator.restart()
        except Exception as again:  # whatever its constructor raises
            self._not_before_s = time.monotonic() + self._setbacks.died(again)

    def stop(
        self, deadline_s: float, policy: bytes | None = None, skip: Callable[[], bool] = lambda: False
    ) -> Progress | None:
        del deadline_s
        holdout = None
        try:
            if self._broken_by is None:
                self._checkpoint()
            if policy is not None:
                with contextlib.suppress(Exception):  # whatever the environment raises: there is no hold-out then
                    holdout = self._evaluator.holdout(policy, HOLDOUT_S, skip)
        finally:
            self._close_envs()
            self._metrics.close()
        return Progress({}, {}, {}, None, None, unevaluated=self._setbacks.failing, holdout=holdout)

    def _close_envs(self) -> None:
        lanes, self._lanes = self._lanes, []
        told = close_all([lane for each in lanes for lane in each.envs])
        if hasattr(self, "_evaluator"):
            told += self._evaluator.close()
            del self._evaluator
        for line in told:
            self._say(line)


@contextlib.contextmanager
def _aloud(say: Say, what: str) -> Iterator[None]:
    """Says now and then for how long the block has been at work, which holds up this thread."""
    over, began_s = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(TELL_EVERY_S):
            say(f"{what}, for {time.monotonic() - began_s:.0f} s now")

    telling = threading.Thread(target=tell, name="qherd-aloud", daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()
