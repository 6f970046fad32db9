"""Whole runs with a recurrent core: a cue that is long gone decides, and what is stored is enough to learn by it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.config.models import RunConfig
from deploy.planning.preconditions import check_before_run, resolved
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.inline import InlineSession
from replay.metrics import flat
from replay.sequences import SequenceBatch

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.usefixtures("one_torch_thread", "torch_as_before")


def config_of(folder: Path, length: int, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "runs_dir": folder / "runs",
        "run": "maze",
        "mode": "inline",
        "env": {"id": "memory_envs:TMaze-v0", "path": EXAMPLES, "kwargs": {"length": length}},
        "actors": {
            "count": 1, "lanes": 8, "chunk_steps": 4, "epsilon": 0.5, "epsilon_alpha": 3, "epsilon_anneal_env_steps": 0,
        },
        "replay": {
            "capacity_rows": 10_000, "min_rows": 500, "samples_per_insert": 8, "sampler": "prioritised",
            "sequences": {"burn_in": 4, "trained": 12, "overlap": 4},
        },
        "learner": {
            "network": {"hidden": (16,), "core": "lstm", "core_size": 16, "core_previous": True}, "lr": 3e-3,
            "batch": 16, "n_step": 3, "target_period_updates": 1, "target_tau": 0.02, "average_tau": 0.02,
            "publish_every_updates": 20, "device": "cpu",
        },
        "eval": {
            "screen_episodes": 100, "confirm_episodes": 200, "every_updates": 200, "threshold": 0.95,
        },
    }  # fmt: skip
    return RunConfig.model_validate({**values, **changes})


def session_of(config: RunConfig) -> InlineSession:
    schema = check_before_run(config).schema
    config = resolved(config, schema)
    return InlineSession(config, RunDirectory.create(config), schema, print)


@pytest.fixture
def maze(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])
    return __import__("memory_envs")


def test_without_memory_half_of_the_episodes_are_right(maze: Any) -> None:
    """Of every policy that goes by the observation: the two mazes show it the same, but for the first step, from which
    every action leads on."""
    for first, corridor, junction in itertools.product((0, 1), repeat=3):
        rewards = {}
        for seed in range(20):
            env = maze.TMaze(length=5)
            obs, _ = env.reset(seed=seed)
            cue, over, steps = float(obs[0]), False, 0
            while not over:
                action = first if obs[0] else junction if obs[1] else corridor
                obs, reward, over, _, _ = env.step(np.int64(action))
                steps += 1
            assert steps == 6
            rewards[cue] = reward
        assert sorted(rewards) == [-1, 1]
        assert sum(rewards.values()) == 1


def test_samples_per_insert_are_trained_steps_by_env_steps(
    tmp_path: Path, maze: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where the environment is stepped and where the learner gets a batch. The maze's sequences are shorter
    than the longest, which has 12 trained steps."""
    session = session_of(config_of(tmp_path, 5, eval={"every_updates": 10**9}))
    stepped, trained = [0], list[int]()
    step, update = maze.TMaze.step, session.loop.learner.update

    def stepping(env: Any, action: np.int64) -> Any:
        stepped[0] += 1
        return step(env, action)

    def updating(batch: SequenceBatch, weights: Any) -> Any:
        trained.append(int(batch.trained.sum()))
        return update(batch, weights)

    monkeypatch.setattr(maze.TMaze, "step", stepping)
    monkeypatch.setattr(session.loop.learner, "update", updating)
    while len(trained) < 200:
        reported = session.advance()
    session.stop(1.0)
    limiter = session.loop.ingest.limiter
    assert sum(trained) == limiter.samples
    assert 0 <= stepped[0] - limiter.inserts < 8 * 4, "what is in no chunk yet"
    assert sum(trained) / (limiter.inserts - 500) == pytest.approx(8, abs=limiter.half_band / (limiter.inserts - 500))
    assert limiter.half_band / (limiter.inserts - 500) < 0.5
    assert sum(trained) < 0.7 * len(trained) * 16 * 12, "by the longest the ratio would be another one"
    assert reported.metrics is not None
    assert flat(reported.metrics)["samples_per_insert"] == pytest.approx(8, rel=0.1)


@pytest.mark.long
def test_a_cue_ten_steps_old_is_remembered(tmp_path: Path, maze: Any) -> None:
    """No policy without memory is right in more than half. The evaluation's lower bound of the mean reaches 0.95."""
    session = session_of(config_of(tmp_path, 10))
    best = 0.0
    while session.loop.learner.updates < 4000:
        progress = session.advance()
        assert not progress.refused
        if (result := progress.verdict) is not None:
            best = max(best, result.episodes.mean)
            if result.solved:
                break
    session.stop(1.0)
    assert best >= 0.95
