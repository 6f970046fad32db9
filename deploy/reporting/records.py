"""What a report takes from a run's directory: read once, and checked, since anybody may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from deploy.config.errors import RunDirError
from deploy.config.explain import explain
from deploy.config.models import RunConfig
from deploy.reporting.curves import Curve, Points
from deploy.run_directory.checked import Checked, read_checked
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.evaluation import MAX_RETURN, Evaluation, last_updates, read_evaluation
from deploy.run_directory.standing import ended_well
from replay.options import MAX_WHOLE

LAST_SHARE = 0.1
"""Of a run's env steps: the training return over the last of them is reported."""
READ = ("wall_s", "env_steps", "updates", "greedy_return", "actor_returns_sum", "actor_episodes")
DETAILS = ("samples_per_insert", "weight_staleness_mean_versions", "replay_rows")
"""What is read of the rows of one run that is reported alone."""


Count = Annotated[int, Field(ge=0, lt=MAX_WHOLE)]
Real = Annotated[float, Field(ge=-MAX_RETURN, le=MAX_RETURN)]
Seconds = Annotated[float, Field(ge=0, le=MAX_RETURN)]


class Summary(Checked):
    """summary.json, which a run writes at its end."""

    exit_reason: str
    wall_s: Seconds = 0.0
    start_s: Seconds = 0.0
    cpu_s: Seconds | None = None
    learner_device: str | None = None
    solved_s: Seconds | None = None
    solved_env_steps: Count | None = None
    env_steps: Count = 0
    updates: Count = 0
    episodes: Count = 0
    eval_mean: Real | None = None
    eval_std: Real | None = None
    eval_episodes: Count | None = None
    eval_lower: Real | None = None
    best_updates: Count | None = None
    holdout_mean: Real | None = None
    holdout_std: Real | None = None
    holdout_episodes: Count = 0
    final_updates: Count | None = None
    final_mean: Real | None = None
    confirmations: Count = 0
    chunks_sent: Count = 0
    chunks_stored: Count = 0
    chunks_refused: dict[str, Count] = Field(default_factory=dict)
    rows_lost: dict[str, Count] = Field(default_factory=dict)
    deaths: dict[str, Count] = Field(default_factory=dict)
    unevaluated: str = ""
    samples_per_insert: Real = 0.0
    actor_restarts: Count = 0
    evaluator_restarts: Count = 0
    learner_restarts: Count = 0
    server_restarts: Count = 0
    env_rebuilds: Count = 0

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.holdout_mean is not None and not self.holdout_episodes:
            raise ValueError("holdout_mean is there, and holdout_episodes is 0")
        if self.final_mean is not None and self.final_updates is None:
            raise ValueError("final_mean is there, and final_updates is not")
        return self


@dataclass(frozen=True)
class RunRecord:
    """One run. ``variant``: its name within its study, empty outside of one. ``columns``: its rows by name, <float64>
    each; ``newest``: its newest row. ``final`` and ``best``: what these policies played after the run's end."""

    path: Path
    name: str
    variant: str
    config: RunConfig
    written: Mapping[str, Any]
    summary: Summary | None
    columns: Mapping[str, Points]
    newest: Mapping[str, float]
    final: Evaluation | None
    best: Evaluation | None

    @property
    def env(self) -> str:
        """The environment's name."""
        return self.config.env.id

    @property
    def trained(self) -> bool:
        """Whether the training ended as it was meant to: solved, or out of budget."""
        return self.summary is not None and ended_well(self.summary.exit_reason)

    @property
    def completed(self) -> bool:
        """Whether the run counts: it was trained, and in a study its final policy was played."""
        return self.trained and (not self.variant or self.final is not None)

    @property
    def state(self) -> str:
        """How it ended."""
        if self.summary is None:
            return "at work, or killed: it has no summary yet"
        unplayed = "; its final policy was not played yet" if self.trained and not self.completed else ""
        return f"{self.summary.exit_reason[:200]}{unplayed}"

    @property
    def wall_s(self) -> float | None:
        """The seconds that it has taken, so far where it is at work."""
        return self.summary.wall_s if self.summary is not None else self._newest("wall_s")

    @property
    def newest_screen(self) -> float | None:
        """The mean of the newest evaluation during training."""
        return self._newest("greedy_return")

    def _newest(self, name: str) -> float | None:
        known = self.columns[name]
        known = known[np.isfinite(known)]
        return float(known[-1]) if len(known) else None

    @property
    def training_return(self) -> float | None:
        """The mean return of the actors' episodes, exploration included, over the last LAST_SHARE of the env steps."""
        env_steps, total, count = (self.columns[name] for name in ("env_steps", "actor_returns_sum", "actor_episodes"))
        known = np.isfinite(env_steps) & np.isfinite(total) & np.isfinite(count)
        if not known.any():
            return None
        env_steps, total, count = env_steps[known], total[known], count[known]
        first = int(np.searchsorted(env_steps, (1 - LAST_SHARE) * env_steps[-1], side="right")) - 1
        before = (total[first], count[first]) if first >= 0 else (0.0, 0.0)
        episodes = count[-1] - before[1]
        return float((total[-1] - before[0]) / episodes) if episodes > 0 else None

    def curve(self, axis: str, value: str = "greedy_return") -> Curve | None:
        """Returns a metric over ``env_steps`` or ``wall_s``; None where there is none."""
        x, y = self.columns[axis], self.columns[value]
        if not np.isfinite(x).any():
            return None
        end, known = float(np.nanmax(x)), np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return None
        return Curve(np.maximum.accumulate(x[known]), y[known], end)


def read_run(path: Path, variant: str = "", *, details: bool = False) -> RunRecord:
    """Reads a run's directory. ``details``: also the columns that only a report of one run shows.

    Raises:
        RunDirError: it is none, is damaged, or has no row yet.
    """
    directory = RunDirectory.open(path)
    written = directory.written
    try:
        config = RunConfig.model_validate(written["config"])
    except ValidationError as error:  # another qherd may have written it: options come, go, and are renamed
        raise RunDirError(explain(error, f"{directory.config_file}, as this qherd has it")) from error
    except KeyError as error:
        raise RunDirError(f"{directory.config_file} is damaged: it has no options") from error
    summary, newest = read_checked(path / "summary.json", Summary), directory.history.newest()
    if summary is not None and ended_well(summary.exit_reason) and summary.updates < newest.get("updates", 0):
        summary = None  # of an earlier end: the run was resumed since
    final = best = None
    if summary is not None:
        final = read_evaluation(directory, "final", config.env.id, last_updates(summary.updates, newest))
        best = read_evaluation(directory, "best", config.env.id, summary.best_updates)
    columns = {
        name: np.where(np.abs(values) <= MAX_RETURN, values, np.nan)
        for name, values in directory.history.columns((*READ, *DETAILS) if details else READ).items()
    }
    if not np.isfinite(columns["env_steps"]).any():
        raise RunDirError(f"{path} has nothing to report yet: no row of its metrics.jsonl has env steps")
    return RunRecord(
        path=path,
        name=config.run or path.absolute().name,
        variant=variant,
        config=config,
        written=written,
        summary=summary,
        columns=columns,
        newest=newest,
        final=final,
        best=best,
    )
