"""Whole runs with a recurrent core: a cue that is long gone decides, and what is stored is enough to learn by it."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import Run, running, summary
from test_survive import books

from deploy.config.models import RunConfig
from deploy.planning.preconditions import check_before_run, resolved
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.inline import InlineSession
from learner.checkpoint import names, read
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


# -- killed, and gone on with


START_S, CAPACITY = 120.0, 50_000
TRAIN = (
    *("train", "memory_envs:MaskedCartPole-v1", "--env.path", str(EXAMPLES), "--preset", "r2d2", "--run", "r"),
    *("--mode", "local", "--eval.threshold", "None", "--checkpoint.every-s", "1"),
)


def goes_on(run: Run) -> Kept:
    """Waits for 100 updates more, with the actor alive, and for a checkpoint of them, which it returns."""
    rows, folder = run.rows("r"), run.cwd / "runs" / "r" / "checkpoints"
    at = rows[-1]["wall_s"] if rows else -1.0

    def more() -> bool:
        later = [row for row in run.rows("r") if row["wall_s"] > at and row["actors_alive"]]
        return bool(later) and later[-1]["updates"] >= later[0]["updates"] + 100

    run.until(more, START_S, "100 updates more")
    updates = run.figure("r", "updates")
    run.until(lambda: names(folder)[0].updates >= updates, START_S, f"checkpoint of update {updates}")
    return Kept(folder)


class Kept:
    """What the newest checkpoint has of sequences and of the states that were sent with chunks, by row."""

    def __init__(self, folder: Path) -> None:
        self.name = names(folder)[0]
        state = read(folder, self.name)["mirror"]
        end, columns = int(state.values["end"]), state.arrays
        rows = np.arange(max(0, end - CAPACITY), end)
        named = rows[columns["sampleable"][rows % CAPACITY]]
        shapes = np.stack([columns[name][named % CAPACITY] for name in ("first", "burn_in", "trained", "length")], 1)
        self.sequences = dict(zip(named.tolist(), shapes.tolist(), strict=True))
        self.states = dict(zip(columns["core_rows"].tolist(), columns["core_states"].tolist(), strict=True))

    def check_goes_on_from(self, before: Kept) -> None:
        """This learner has what the one before it had, and more."""
        assert self.name > before.name
        for own, theirs in ((self.sequences, before.sequences), (self.states, before.states)):
            shared = own.keys() & theirs.keys()
            assert len(shared) > 50
            assert len(own.keys() - theirs.keys()) > 50
            assert all(own[row] == theirs[row] for row in shared)
        assert any(any(state) for state in before.states.values())


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_killed_learner_and_a_killed_driver_go_on_with_sequences_and_states(tmp_path: Path) -> None:
    """The next learner has the sequences of the one that was killed, each with the state that was stored with it, and
    trains as many steps per env step; so has that of a resumed run."""
    with running(*TRAIN, cwd=tmp_path) as run:
        first = goes_on(run)
        os.kill(run.find("ray::LearnerWorker")[0], signal.SIGKILL)
        run.until(lambda: run.figure("r", "learner_restarts") == 1, START_S, "new learner")
        second = goes_on(run)
        second.check_goes_on_from(first)
        assert "resumed from checkpoint 000001-" in run.out
        run.process.kill()
        run.process.wait(5)
    with running("resume", "runs/r", cwd=tmp_path) as again:
        goes_on(again).check_goes_on_from(second)
        again.process.send_signal(signal.SIGTERM)
        done = again.finish(25)
    assert (done.code, done.err, done.leftovers) == (75, "", []), done
    assert "resumed from checkpoint 000002-" in done.out
    books(tmp_path)
    ended = summary(tmp_path / "runs" / "r")
    assert ended["samples_per_insert"] == pytest.approx(16, rel=0.25)
    assert not set(ended["rows_lost"]) - {"resume", "gap", "rollback"}
