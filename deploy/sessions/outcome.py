"""How a run went: why it is over, its best policy, and what becomes of them in summary.json and on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.episodes import Episodes
from actors.evaluator import Verdict
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import HOLDOUT_S, RESTARTS, Progress, checkpoint_folder
from deploy.sessions.clock import Clock
from learner.checkpoint import names

_SCREENS = ("greedy_return", "first_greedy_return", "confirmed_return", "confirmations")


@dataclass
class Outcome:
    """How a run went so far; becomes summary.json. ``reason``: why it is over, empty while it is not."""

    reason: str = ""
    solved_s: float | None = None
    solved_env_steps: int | None = None
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    holdout: Episodes | None = None
    figures: dict[str, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    rows_lost: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    unevaluated: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run ended by an error."""
        return self.reason.startswith("failed")

    @property
    def completed(self) -> bool:
        """Whether the run ended as it was meant to: solved, or out of budget."""
        return self.reason == "solved" or self.reason.startswith("budget")

    def solve(self, elapsed_s: float) -> None:
        """Records that the best policy has solved the environment."""
        self.reason = "solved"
        self.solved_s = elapsed_s
        self.solved_env_steps = int(self.figures.get("env_steps", 0))

    def keep_screens_only(self) -> None:
        """Forgets the figures of before a resume but for the evaluations': the learner's own are its checkpoint's,
        which may be older than the newest row of metrics.jsonl."""
        self.figures = {name: self.figures[name] for name in _SCREENS if name in self.figures}

    def add(self, progress: Progress) -> None:
        """Takes in what an advance of the session brought."""
        self.figures |= progress.figures
        self.holdout = progress.holdout
        self.deaths = dict(progress.deaths)
        self.unevaluated = progress.unevaluated
        self.refused = progress.refused or self.refused
        self.rows_lost = progress.rows_lost or self.rows_lost

    def record_evaluation(
        self, config: RunConfig, directory: RunDirectory, verdict: Verdict, policy: bytes, elapsed_s: float
    ) -> None:
        """Keeps the policy if it is the best so far, by the lower bound of its most thorough evaluation; records a
        solution.

        Raises:
            RunDirError: the disk refuses the policy. Nothing is recorded then: a later one may be kept.
        """
        episodes = verdict.episodes
        self.figures.setdefault("first_greedy_return", verdict.screen.mean)
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
        figures = self.figures
        refused = sum(self.refused.values())
        return {
            "run": run,
            "env": config.env.id,
            "seed": config.seed,
            "mode": config.mode,
            "exit_reason": self.reason or "running",
            "wall_s": round(clock.wall_s, 2),
            "start_s": round(clock.start_s, 2),
            "solved_s": self.solved_s and round(self.solved_s, 2),
            "solved_env_steps": self.solved_env_steps,
            "env_steps": int(figures.get("env_steps", 0)),
            "updates": int(figures.get("updates", 0)),
            "episodes": int(figures.get("actor_episodes", 0)),
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
            "confirmations": int(figures.get("confirmations", 0)),
            "chunks_sent": int(figures.get("chunks", 0)) + refused,
            "chunks_stored": int(figures.get("chunks", 0)),
            "chunks_refused": self.refused,
            "rows_lost": self.rows_lost,
            "deaths": self.deaths,
            "unevaluated": self.unevaluated,
            "samples_per_insert": figures.get("samples_per_insert", 0.0),
            **{name: int(figures.get(name, 0)) for name in RESTARTS},
        }


def load_outcome(config: RunConfig, directory: RunDirectory) -> Outcome:
    """Returns how a run has gone so far, by what its directory holds.

    Raises:
        RunDirError: the directory is damaged.
    """
    figures, best = directory.history.newest(), directory.best.manifest() or {}
    newest = names(checkpoint_folder(config, directory))[:1]
    for checkpoint in newest:  # its last driver may have drained the log after it wrote its last row
        figures["env_steps"] = max(figures.get("env_steps", 0), checkpoint.env_steps)
    outcome = Outcome(best=best, figures=figures)
    if best.get("solved"):
        outcome.solve(figures.get("wall_s", 0.0))
    return outcome


def closing_message(directory: RunDirectory, outcome: Outcome) -> str:
    """Returns the last lines of a run."""
    best, shown = outcome.best, directory.shown
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
