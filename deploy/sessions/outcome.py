"""How a run went: why it is over, its best policy, and what becomes of them in summary.json and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.episodes import Episodes
from actors.evaluator import EvaluationResult
from actors.metrics import EvaluationMetrics
from deploy.config.models import RunConfig, dump
from deploy.monitoring.metrics import RestartMetrics, RunMetrics
from deploy.run_directory.directory import RunDirectory, checkpoint_folder
from deploy.run_directory.standing import ended_well
from deploy.sessions.base import HOLDOUT_S, Progress
from deploy.sessions.clock import Clock
from learner.checkpoint import names


class Totals(NamedTuple):
    """What a run has done in all."""

    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    chunks: int = 0
    samples_per_insert: float = 0.0
    restarts: RestartMetrics = RestartMetrics(0, 0)

    @property
    def anything(self) -> bool:
        """Whether anything has come in, or been learned from a dataset."""
        return self.env_steps > 0 or self.updates > 0

    @classmethod
    def of(cls, metrics: RunMetrics) -> Totals:
        """Returns those of the newest metrics."""
        learner, restarts = metrics.learner, metrics.driver.restarts
        if learner is None:
            return cls(restarts=restarts)
        return cls(
            env_steps=learner.replay.env_steps,
            updates=learner.training.updates,
            episodes=learner.sent.actor_episodes,
            chunks=learner.replay.chunks,
            samples_per_insert=learner.limiter.samples_per_insert,
            restarts=restarts,
        )

    @classmethod
    def of_row(cls, row: Mapping[str, float]) -> Totals:
        """Returns those of a row of metrics.jsonl."""
        return cls(
            env_steps=int(row.get("env_steps", 0)),
            updates=int(row.get("updates", 0)),
            episodes=int(row.get("actor_episodes", 0)),
            chunks=int(row.get("chunks", 0)),
            samples_per_insert=row.get("samples_per_insert", 0.0),
            restarts=RestartMetrics.of_row(row),
        )


@dataclass
class Outcome:
    """How a run went so far; becomes summary.json. ``reason``: why it is over, empty while it is not."""

    reason: str = ""
    solved_s: float | None = None
    solved_env_steps: int | None = None
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    holdout: Episodes | None = None
    totals: Totals = field(default_factory=Totals)
    metrics: RunMetrics | None = None
    """The newest of this driver."""
    evaluation: EvaluationMetrics = field(default_factory=EvaluationMetrics)
    wall_s: float = 0.0
    start_s: float = 0.0
    cpu_s: float = 0.0
    """These three: of earlier drivers."""
    refused: dict[str, int] = field(default_factory=dict)
    rows_lost: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    unevaluated: str = ""
    learner_device: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run ended by an error."""
        return self.reason.startswith("failed")

    @property
    def completed(self) -> bool:
        """Whether the run ended as it was meant to: solved, or out of budget."""
        return ended_well(self.reason)

    def solve(self, elapsed_s: float) -> None:
        """Records that the best policy has solved the environment."""
        self.reason = "solved"
        self.solved_s = elapsed_s
        self.solved_env_steps = self.totals.env_steps

    def forget_totals(self) -> None:
        """Forgets what was counted before a resume: a learner counts on from its checkpoint, which may be older than
        the newest row of metrics.jsonl."""
        self.totals = Totals()

    def add(self, progress: Progress) -> None:
        """Takes in what an advance of the session brought."""
        if progress.metrics is not None:
            self.metrics, self.totals = progress.metrics, Totals.of(progress.metrics)
        if progress.verdict is not None:
            self.evaluation = self.evaluation.after(progress.verdict)
        self.holdout = progress.holdout
        self.deaths = dict(progress.deaths)
        self.unevaluated = progress.unevaluated
        self.refused = progress.refused or self.refused
        self.rows_lost = progress.rows_lost or self.rows_lost
        self.learner_device = progress.learner_device or self.learner_device

    def record_evaluation(
        self, config: RunConfig, directory: RunDirectory, verdict: EvaluationResult, policy: bytes, elapsed_s: float
    ) -> None:
        """Keeps the policy if it is the best so far, by the lower bound of its most thorough evaluation; records a
        solution.

        Raises:
            RunDirError: the disk refuses the policy. Nothing is recorded then: a later one may be kept.
        """
        episodes = verdict.episodes
        self.final = {"updates": verdict.updates, "mean": verdict.screen.mean}
        before = self.best.get("solved", False), self.best.get("rank_bound", float("-inf"))
        if (verdict.solved, episodes.cautious) > before:
            best = {
                "version": verdict.version,
                "updates": verdict.updates,
                "episodes": len(episodes.returns),
                "mean": episodes.mean,
                "std": episodes.std,
                "lower": episodes.cautious if verdict.lower is None else verdict.lower,
                "threshold": config.eval.threshold,
                "solved": verdict.solved,
                "rank_bound": episodes.cautious,
            }
            directory.best.save(policy, best)
            self.best = best
        if verdict.solved:
            self.solve(elapsed_s)

    def record_holdout(self, directory: RunDirectory) -> None:
        """Writes what the hold-out has shown, if one was played, beside its policy.

        Raises:
            RunDirError: the disk refuses it.
        """
        if (held := self.holdout) is not None:
            shown = {"holdout_mean": held.mean, "holdout_std": held.std, "holdout_episodes": len(held.returns)}
            self.best = {**self.best, **shown}
            directory.best.record_holdout(shown)

    def summary(self, config: RunConfig, run: str, clock: Clock) -> dict[str, Any]:
        """Returns the fields of summary.json."""
        totals, restarts = self.totals, self.totals.restarts
        refused = sum(self.refused.values())
        return {
            "run": run,
            "env": config.env.id,
            "env_kwargs": dump(config)["env"]["kwargs"],
            "reward_clip": config.learner.reward_clip,
            "seed": config.seed,
            "mode": config.mode,
            "encoder": config.learner.network.encoder,
            "exit_reason": self.reason or "running",
            "wall_s": round(clock.wall_s, 2),
            "start_s": round(clock.start_s, 2),
            "cpu_s": None if config.mode == "cluster" else round(clock.cpu_s, 2),
            "learner_device": self.learner_device or None,
            "solved_s": self.solved_s and round(self.solved_s, 2),
            "solved_env_steps": self.solved_env_steps,
            "env_steps": totals.env_steps,
            "updates": totals.updates,
            "episodes": totals.episodes,
            "eval_mean": self.best.get("mean"),
            "eval_std": self.best.get("std"),
            "eval_episodes": self.best.get("episodes"),
            "eval_lower": self.best.get("lower"),
            "best_updates": self.best.get("updates"),
            "holdout_mean": self.best.get("holdout_mean"),
            "holdout_std": self.best.get("holdout_std"),
            "holdout_episodes": self.best.get("holdout_episodes", 0),
            "final_updates": self.final.get("updates"),
            "final_mean": self.final.get("mean"),
            "confirmations": self.evaluation.confirmations or 0,
            "chunks_sent": totals.chunks + refused,
            "chunks_stored": totals.chunks,
            "chunks_refused": self.refused,
            "rows_lost": self.rows_lost,
            "deaths": self.deaths,
            "unevaluated": self.unevaluated,
            "samples_per_insert": totals.samples_per_insert,
            "actor_restarts": restarts.actor_restarts or 0,
            "evaluator_restarts": restarts.evaluator_restarts,
            "learner_restarts": restarts.learner_restarts or 0,
            "server_restarts": restarts.server_restarts or 0,
            "env_rebuilds": restarts.env_rebuilds,
        }


def load_outcome(config: RunConfig, directory: RunDirectory) -> Outcome:
    """Returns how a run has gone so far, by what its directory holds.

    Raises:
        RunDirError: the directory is damaged.
    """
    row, best = directory.history.newest(), directory.best.manifest() or {}
    totals = Totals.of_row(row)
    newest = names(checkpoint_folder(config, directory))[:1]
    for checkpoint in newest:  # its last driver may have drained the log after it wrote its last row
        totals = totals._replace(
            env_steps=max(totals.env_steps, checkpoint.env_steps), updates=max(totals.updates, checkpoint.updates)
        )
    outcome = Outcome(
        best=best,
        totals=totals,
        evaluation=EvaluationMetrics.of_row(row),
        wall_s=row.get("wall_s", 0.0),
        start_s=row.get("start_s", 0.0),
        cpu_s=row.get("cpu_s", 0.0),
    )
    if best.get("solved"):
        outcome.solve(outcome.wall_s)
    return outcome


def closing_message(directory: RunDirectory, outcome: Outcome) -> str:
    """Returns the last lines of a run."""
    best, shown = outcome.best, directory.given_path
    if not directory.path.exists():
        return "interrupted before anything had run: nothing is left of it, and its name is free"
    lines = [f"{outcome.reason}: {shown}"]
    if outcome.reason == "interrupted":
        lines[0] += f"    go on with it: qherd resume {shown}"
    if outcome.solved_s is not None:
        lines[0] = f"solved after {outcome.solved_s:.1f} s and {outcome.solved_env_steps:,} env steps: {shown}"
    if best:
        lines.append(
            f"best policy (update {best['updates']:,}): {best['mean']:.1f} ± {best['std']:.1f} over the "
            f"{best['episodes']} greedy episodes that it was chosen by; lower bound of its mean {best['lower']:.1f}"
        )
        if outcome.holdout is not None:
            lines.append(
                f"hold-out of the best policy: {outcome.holdout.mean:.1f} ± {outcome.holdout.std:.1f} over "
                f"{len(outcome.holdout.returns)} further episodes, whatever they show"
            )
        elif outcome.completed:
            lines.append(f"no hold-out was finished within {HOLDOUT_S:g} s: play it with qherd eval {shown}")
        lines.append(f"look at it: qherd eval {shown}    qherd record {shown}")
    return "\n".join(lines)
