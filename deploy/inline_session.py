"""The mode inline: learner, actors and evaluator in one process, in lock-step."""

from __future__ import annotations

import time
import traceback

from actors.envs import make_lanes
from actors.evaluator import Evaluator, Verdict
from deploy import __version__
from deploy.config import RunConfig
from deploy.plan import backstop_chunks, chunk_rows
from deploy.run_dir import RunDirectory, env_of
from deploy.session import Progress, RunFailedError, replay_of
from replay.chunk import Schema
from replay.log import MemoryLog


class InlineSession:
    """One process, in lock-step, reproducible to the bit: every cadence is in updates or env steps."""

    def __init__(self, config: RunConfig, directory: RunDirectory, schema: Schema) -> None:
        import torch

        from actors.policy import NumpyMlp
        from actors.rollout import Place, Rollout
        from learner.loop import LearnerLoop
        from learner.metrics import MetricsServer
        from learner.publisher import Publisher

        torch.set_num_threads(config.learner.threads)
        torch.use_deterministic_algorithms(True)
        self._config = config
        run, count = directory.run, config.actors.count
        address = None if config.metrics.port is None else (config.metrics.host, config.metrics.port)
        self._metrics = MetricsServer(run, __version__, address)
        if self._metrics.address:
            directory.show_metrics_address(*self._metrics.address)
        log, fence = MemoryLog(backstop_chunks(config)), directory.next_fence()
        self.loop = LearnerLoop(
            run,
            log,
            Publisher(log, fence),
            schema,
            replay_of(config, directory),
            config.learner,
            fence=fence,
            seed=config.seed,
            quarantine=directory.quarantine,
        )
        self.loop.expect(range(count), chunk_rows(config))
        env, dueling = env_of(config), config.learner.network.dueling
        untimed = config.actors.model_copy(update={"fetch_every_s": 0.0})
        self._rollouts = [
            Rollout(
                Place(run, config.seed, slot, count, directory.next_incarnation(slot)),
                make_lanes(env, config.actors.lanes),
                schema,
                NumpyMlp(dueling),
                log,
                untimed,
                clock=lambda: 0.0,
            )
            for slot in range(count)
        ]
        self._evaluator = Evaluator(env, config.eval, dueling, config.seed)
        self._screened_at = 0

    def advance(self) -> Progress:
        from learner.loop import Diverged

        until = self.loop.learner.updates + 200
        started, before = time.perf_counter(), (self.loop.learner.updates, self.loop.reader.totals.env_steps)
        for _ in range(200):
            for slot, rollout in enumerate(self._rollouts):
                try:
                    if rollout.ready():
                        rollout.fill()
                        rollout.send()
                except Exception as error:  # whatever the environment raised
                    message = f"actor {slot} failed: {type(error).__name__}: {error}"
                    raise RunFailedError(message, traceback.format_exc()) from error
            while self.loop.cycle():
                self.loop.publish_if_due()
            if self.loop.learner.updates >= until:
                break
        self.loop.reader.trim(0)  # nobody else reads this log
        elapsed = time.perf_counter() - started
        verdict, policy = self._screen()
        try:
            report = self.loop.report()
        except Diverged as error:
            raise RunFailedError(str(error)) from None
        figures = report.figures | {
            "actors_alive": len(self._rollouts),
            "actor_restarts": 0,
            "updates_per_second": (self.loop.learner.updates - before[0]) / elapsed,
            "env_steps_per_second": (self.loop.reader.totals.env_steps - before[1]) / elapsed,
        }
        if verdict is not None:
            figures["greedy_return"] = verdict.episodes.mean
        self._metrics.show(report, figures)
        return Progress(figures, report.refused, report.rows_lost, verdict, policy)

    def _screen(self) -> tuple[Verdict | None, bytes | None]:
        updates = self.loop.learner.updates
        if updates - self._screened_at < self._config.eval.every_updates:
            return None, None
        self._screened_at = updates
        policy = self.loop.candidate()
        return self._evaluator.screen(policy), policy

    def stop(self, deadline_s: float) -> Progress | None:
        del deadline_s
        self._metrics.close()
        return None
