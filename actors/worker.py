"""The Ray actors of this part: thin shells around Rollout and Evaluator. Ray imports this module in every worker."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray

from actors.actor_id import ActorId
from actors.builders import build_actor, build_evaluator
from actors.config import ActorConfig, EnvConfig, EvalConfig
from actors.episodes import Episodes
from actors.evaluator import EvaluationResult, EvaluationStopped
from actors.heartbeat import Heartbeat
from actors.verdicts import Spent
from learner.networks import NetworkSpec
from replay.chunk_log import open_log
from replay.identity import Identity
from replay.logs import LogFile, failures_logged

ACTOR = logging.getLogger("qherd.actor")
EVALUATOR = logging.getLogger("qherd.evaluator")


@ray.remote(max_restarts=0, max_task_retries=0)
class ActorWorker:
    """One slot's actor. The supervisor calls ``collect`` again and again: its return is its heartbeat."""

    @failures_logged(ACTOR)
    def __init__(
        self,
        identity: Identity,
        log_file: LogFile,
        url: str,
        actor: ActorId,
        env: EnvConfig,
        config: ActorConfig,
        network: NetworkSpec,
        chunks: int,
        folder: Path | None,
    ) -> None:
        """``url`` has the actor's own password: it comes as an argument since Ray logs a runtime_env in clear.
        ``folder``: the working directory that environments find; None leaves it as this node's Ray has it."""
        identity.check()
        log_file.start(stderr=True)
        ACTOR.info("incarnation %d of slot %d, %d lanes of %s", actor.incarnation, actor.slot, config.lanes, env.id)
        if folder is not None:
            os.chdir(folder)
        log = open_log(url, actor.run, "actor", chunks)
        self._rollout = build_actor(actor, env, config, network, log)

    def pid(self) -> int:
        """Returns this worker's process id."""
        return os.getpid()

    @failures_logged(ACTOR)
    def collect(self, seconds: float) -> Heartbeat:
        """See ``Rollout.collect``."""
        return self._rollout.collect(seconds)

    def set_slot_count(self, slots: int) -> tuple[float, ...]:
        """See ``Rollout.set_slot_count``."""
        ACTOR.info("one of %d slots from now on", slots)
        return self._rollout.set_slot_count(slots)

    @failures_logged(ACTOR)
    def flush(self, deadline_s: float) -> bool:
        """See ``Rollout.flush``."""
        flushed = self._rollout.flush(deadline_s)
        ACTOR.info("flushed" if flushed else "not flushed: no answer in time")
        return flushed

    def close(self) -> list[str]:
        """Closes the environments; returns a line for each that did not let itself be closed."""
        unclosed = self._rollout.close()
        ACTOR.info("closed its environments%s", "".join(f"; {line}" for line in unclosed))
        return unclosed


@ray.remote(max_restarts=0, max_task_retries=0)
class EvaluatorWorker:
    """The greedy evaluator in a process of its own."""

    @failures_logged(EVALUATOR)
    def __init__(
        self,
        identity: Identity,
        log_file: LogFile,
        env: EnvConfig,
        config: EvalConfig,
        network: NetworkSpec,
        seed: int,
        restart: int,
        folder: Path | None,
    ) -> None:
        """``folder``: see ``ActorWorker``."""
        identity.check()
        log_file.start(stderr=True)
        EVALUATOR.info("evaluator %d of the run", restart + 1)
        if folder is not None:
            os.chdir(folder)
        stopped = ray.get_runtime_context().is_canceled
        self._evaluator = build_evaluator(env, config, network, seed, restart, stopped)

    @failures_logged(EVALUATOR, EvaluationStopped)
    def screen(self, candidate: bytes, spent: Spent) -> EvaluationResult:
        """See ``Evaluator.screen``."""
        verdict = self._evaluator.screen(candidate, spent)
        solved = ", solved" if verdict.solved else ""
        played = len(verdict.episodes.returns)
        EVALUATOR.info("update %d: mean %.4g of %d episodes%s", verdict.updates, verdict.episodes.mean, played, solved)
        return verdict

    @failures_logged(EVALUATOR, EvaluationStopped)
    def holdout(self, candidate: bytes, seconds: float) -> Episodes | None:
        """See ``Evaluator.holdout``."""
        return self._evaluator.holdout(candidate, seconds)

    def close(self) -> list[str]:
        """See ``Evaluator.close``."""
        return self._evaluator.close()
