"""What a run on Ray has counted: the learner's newest report and the driver's metrics, earlier drivers' included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from actors.evaluator import EvaluationResult
from actors.metrics import ActorMetrics, EvaluationMetrics, work_of
from deploy.monitoring.metrics import DriverMetrics, RestartMetrics, RunMetrics
from deploy.sessions.base import Progress
from deploy.sessions.replay_server import ExternalServers
from learner.metrics import LearnerMetrics
from learner.report import Report

if TYPE_CHECKING:  # they import ray, which has to wait for its variables
    from actors.supervision.actor_supervisor import ActorSupervisor
    from actors.supervision.evaluator_supervisor import EvaluatorSupervisor
    from deploy.sessions.learner_supervisor import LearnerSupervisor


class Supervised(NamedTuple):
    """The parts of a run that are restarted where they die."""

    actors: ActorSupervisor
    evaluator: EvaluatorSupervisor
    learner: LearnerSupervisor
    servers: ExternalServers

    def restarts(self) -> RestartMetrics:
        """Returns how often each was restarted by this driver."""
        return RestartMetrics(
            actor_restarts=self.actors.restarts,
            evaluator_restarts=self.evaluator.restarts,
            learner_restarts=self.learner.restarts.total,
            server_restarts=self.servers.restarts.total,
            env_rebuilds=self.actors.rebuilds + self.evaluator.rebuilds,
        )

    def deaths(self) -> dict[str, int]:
        """Returns what died of what, such as ``actor: ActorDiedError``, since this driver started."""
        reasons_by_part = {
            "actor": self.actors.restart_reasons,
            "evaluator": self.evaluator.restart_reasons,
            "learner": self.learner.restarts.reasons,
            "server": self.servers.restarts.reasons,
        }
        return {f"{part}: {name}": n for part, reasons in reasons_by_part.items() for name, n in reasons.items()}


class SessionMetrics:
    """The newest metrics of a run at work."""

    def __init__(self, before: Mapping[str, float], checkpoint_interval_s: float) -> None:
        """Begins from ``before``, the newest row of the run that is resumed; empty for a new one."""
        self._restarts_before, self._work_before = RestartMetrics.of_row(before), work_of(before)
        self.checkpointed = before.get("checkpoints", 0) > 0
        """Whether there is a checkpoint that a learner has to resume from."""
        self.learner: LearnerMetrics | None = None
        self.driver = DriverMetrics(
            ActorMetrics(actors_alive=0),
            EvaluationMetrics(),
            self._restarts_before,
            evaluation_failing=0.0,
            checkpoint_interval_seconds=checkpoint_interval_s,
        )
        self._refused: dict[str, int] = {}
        self._rows_lost: dict[str, int] = {}
        self._device = ""

    @property
    def updates(self) -> int:
        """Updates of the run, as far as they are reported."""
        return 0 if self.learner is None else self.learner.training.updates

    @property
    def servers_down(self) -> int:
        """How many replay servers do not answer the learner."""
        return 0 if self.learner is None else self.learner.replay.servers_down

    def take(self, report: Report) -> None:
        """Takes in the learner's newest report."""
        self.learner, self._refused, self._rows_lost = report.metrics, report.refused, report.rows_lost
        self._device = report.device
        if (checkpoint := report.metrics.checkpoint) is not None:
            self.checkpointed = checkpoint.checkpoints > 0

    def update(self, parts: Supervised, verdict: EvaluationResult | None) -> None:
        """Counts what this driver's ``parts`` have done, on top of what was counted before the run was resumed."""
        evaluation = self.driver.evaluation
        self.driver = self.driver._replace(
            actors=ActorMetrics.of(parts.actors.alive, self._work_before.plus(parts.actors.work)),
            evaluation=evaluation if verdict is None else evaluation.after(verdict),
            restarts=parts.restarts().plus(self._restarts_before),
            evaluation_failing=float(bool(parts.evaluator.failing)),
        )

    def progress(
        self, parts: Supervised, verdict: EvaluationResult | None = None, policy: bytes | None = None
    ) -> Progress:
        """Returns what an advance of the run brought."""
        metrics = RunMetrics(self.driver, self.learner)
        return Progress(
            metrics,
            self._refused,
            self._rows_lost,
            verdict,
            policy,
            parts.deaths(),
            parts.evaluator.failing,
            learner_device=self._device,
        )
