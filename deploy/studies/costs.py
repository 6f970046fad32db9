"""How long the runs of a study take, and what they leave on the disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploy.config.models import RunConfig
from deploy.planning.forecast import Forecast
from deploy.run_directory.evaluation import evaluation_file
from deploy.studies.study_directory import State, StudyDirectory
from deploy.studies.study_file import StudyRun

START_S = {"inline": 2.0, "local": 6.0, "cluster": 6.0}
"""Seconds from a run's command to its first env steps."""
ROW_BYTES = 3_000
"""What a run writes down of each second, in metrics.jsonl and in TensorBoard's events."""
KNOWN_SHARE = 0.05
"""Share of a run's budget that has to be used up before its end is foretold from it."""

Cell = tuple[str, str]
"""Environment and variant."""


def cell_of(run: StudyRun) -> Cell:
    """Returns what the seeds of a run's kind have in common."""
    return run.env, run.variant


class Costs:
    """Seconds that a run takes, by cell, as far as they are known from runs that are finished."""

    def __init__(self) -> None:
        self._finished: dict[Cell, list[float]] = {}

    def add(self, run: StudyRun, seconds: float) -> None:
        """Takes in a finished run."""
        self._finished.setdefault(cell_of(run), []).append(seconds)

    def seconds(self, run: StudyRun) -> float | None:
        """Returns the mean of the run's cell; None where none of it is finished."""
        known = self._finished.get(cell_of(run))
        return sum(known) / len(known) if known else None


def finished_seconds(directory: StudyDirectory, run: StudyRun) -> float | None:
    """Returns what a finished run has taken, its evaluations included; None where its directory does not have it."""
    wall_s = directory.summary(run).get("wall_s")
    if not isinstance(wall_s, int | float) or not wall_s > 0:
        return None
    path = directory.run_path(run)
    # where the study was killed between the two this would be a night: the evaluations take no longer than the run
    evaluated_s = evaluation_file(path, "final").stat().st_mtime - (path / "summary.json").stat().st_mtime
    return wall_s + min(max(evaluated_s, 0.0), wall_s)


def known_costs(directory: StudyDirectory, runs: Iterable[StudyRun]) -> Costs:
    """Returns the costs of what is finished."""
    costs = Costs()
    for run in runs:
        if directory.state(run) is State.FINISHED and (seconds := finished_seconds(directory, run)) is not None:
            costs.add(run, seconds)
    return costs


def forecast_seconds(config: RunConfig, forecast: Forecast, cores: float, parallel: int) -> float:
    """Returns how long a run takes, of ``parallel`` ones that share the cores of this machine.

    An env step costs an actor and the learner core seconds, whose sum bounds what all runs together can do.
    """
    work_s = forecast.actor_cpu_share / forecast.actor_env_steps_per_s + 1 / forecast.learner_env_steps_per_s
    alone = 1 / work_s if config.mode == "inline" else forecast.env_steps_per_s
    rate = alone if config.mode == "cluster" else min(alone, cores / (parallel * work_s))
    by_steps = math.inf if config.budget.env_steps is None else config.budget.env_steps / rate
    return START_S[config.mode] + min(by_steps, config.budget.seconds or math.inf)


def forecast_bytes(config: RunConfig, forecast: Forecast, seconds: float) -> float:
    """Returns what a run leaves on the disk, at the most: its checkpoints, two policies and its history."""
    rows = forecast.mirror_bytes if forecast.mirror_bytes <= config.checkpoint.rows_max_bytes else 0
    filled = min(1.0, (config.budget.env_steps or math.inf) / config.replay.capacity_rows)
    checkpoint = rows * filled + forecast.training_bytes + forecast.weights_bytes
    return config.checkpoint.keep * checkpoint + forecast.weights_bytes + ROW_BYTES * seconds


def bytes_in(folder: Path) -> int:
    """Returns the bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def share_done(config: RunConfig, row: Mapping[str, float]) -> float:
    """Returns which share of its budget a run has used up, by its newest metrics."""
    steps, seconds = config.budget.env_steps, config.budget.seconds
    trained_s = row.get("wall_s", 0.0) - row.get("start_s", 0.0)
    shares = [row.get("env_steps", 0.0) / steps] if steps else []
    return min(1.0, max([*shares, trained_s / seconds if seconds else 0.0]))


def duration(seconds: float) -> str:
    """Returns a time as people give it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
