"""``inline``: a run that is killed at any update and resumed ends as one that was never killed, to the bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import Run, qherd, running, summary
from disks import small_disk

from learner.checkpoint import names, read
from learner.phases import PHASE_KEY, PHASES
from learner.policy_files import HELD
from learner.weights import unpack

PRESET = """
mode: inline
actors: {count: 2, lanes: 3, chunk_steps: 8, epsilon_anneal_env_steps: 2000}
replay: {capacity_rows: 1500, min_rows: 100, samples_per_insert: 8}
learner:
  {network: {hidden: [16]}, batch: 32, target_period_updates: 10, target_tau: 0.5, average_tau: 0.01,
   publish_every_updates: 5}
eval: {every_updates: 300, screen_episodes: 2, confirm_episodes: 3, threshold: 1000}
checkpoint: {every_updates: 350}
"""
BUDGET = 6000
"""About 1,480 updates, a row each 200 and a checkpoint each 400: a kill at 600 or 1,000 is far from one."""


EXAMPLES = Path(__file__).parents[1] / "examples"
RECURRENT = (
    *("--env.path", str(EXAMPLES), "--replay.sampler", "prioritised", "--learner.batch", "4"),
    *("--learner.network.core", "lstm", "--learner.network.core-size", "8", "--learner.network.core-previous"),
    *("--replay.sequences.trained", "8", "--replay.sequences.burn-in", "4", "--replay.sequences.overlap", "2"),
    *("--budget.env-steps", "3500"),
)
"""Sequences from stored states: as many trained steps an update as the others have transitions, at the most. An update
takes longer, and there are fewer."""


def started(tmp_path: Path, run: str, *more: str) -> list[str]:
    (tmp_path / "preset.yaml").write_text(PRESET)
    options = ["--config", "preset.yaml", "--run", run, "--budget.env-steps", str(BUDGET), "--seed", "3"]
    return ["train", more[0], *options, *more[1:]]


def ended(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times and the fence, and the hold-out, which has what time allows."""
    name = names(folder / "checkpoints")[0]
    parts = read(folder / "checkpoints", name)
    arrays = {f"{part}.{key}": array for part, state in parts.items() for key, array in state.arrays.items()}
    unfenced = [each for each in arrays if each not in ("log.weights", "log.description")]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {
        "wall_s",
        "start_s",
        "cpu_s",
        "env_steps_per_second",
        "updates_per_second",
        "weight_version",
        *map(PHASE_KEY.format, PHASES),
    }
    curve = [{key: row[key] for key in row if key not in timed and "checkpoint" not in key} for row in rows]
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    weights = unpack((folder / "checkpoints" / best["file"]).read_bytes())[1]
    return {
        "name": name[1:],
        "arrays": {each: arrays[each] for each in unfenced},
        "learner": parts["learner"].values,
        "sampler": parts["sampler"].values,
        "curve": curve,
        "best": {key: best[key] for key in best if key not in ("version", "file", "sha256") and key not in HELD},
        "weights": weights,
        "rngs": [parts[f"actor-{slot}"].values["rng"] for slot in (0, 1)],
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, where)
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole, never killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert qherd(*started(folder, "whole", "CartPole-v1"), cwd=folder, deadline_s=90).code == 0
    return folder / "runs" / "whole"


@pytest.fixture(scope="module")
def whole(whole_run: Path) -> dict[str, Any]:
    """What that leaves."""
    return ended(whole_run)


def shows(run: Run, updates: int) -> bool:
    return run.figure("killed", "updates") >= updates


def killed(tmp_path: Path, kills: tuple[int, ...], env: str, *options: str) -> dict[str, Any]:
    """A run that is killed when it shows so many updates, resumed each time, and comes to its end."""
    command = started(tmp_path, "killed", env, *options)
    for updates in kills:
        with running(*command, cwd=tmp_path) as run:
            run.until(partial(shows, run, updates), 60, f"update {updates}")
            os.kill(run.process.pid, signal.SIGKILL)
            assert run.process.wait(10) == -signal.SIGKILL
        command = ["resume", "runs/killed"]
    done = qherd(*command, cwd=tmp_path, deadline_s=90)
    assert done.code == 0, done
    assert "resumed from checkpoint" in done.out
    assert "begins anew" not in done.out
    assert (tmp_path / "runs" / "killed" / "metrics.superseded.jsonl").exists(), "a kill at a checkpoint proves little"
    return ended(tmp_path / "runs" / "killed")


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Weights, moments, rows, priorities, random numbers, counters, curve and best policy; killed twice."""
    assert_same(whole, killed(tmp_path, (600, 1000), "CartPole-v1"))


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("env", "options"),
    [
        pytest.param("LunarLander-v3", ("--replay.sampler", "prioritised"), id="lunarlander, prioritised"),
        pytest.param("Acrobot-v1", ("--env.frame-stack", "3"), id="acrobot, stacked"),
        pytest.param("memory_envs:MaskedCartPole-v1", RECURRENT, id="masked cartpole, recurrent"),
    ],
)
def test_other_environments_and_samplers_do_too(tmp_path: Path, env: str, options: tuple[str, ...]) -> None:
    assert qherd(*started(tmp_path, "whole", env, *options), cwd=tmp_path, deadline_s=90).code == 0
    assert_same(ended(tmp_path / "runs" / "whole"), killed(tmp_path, (600,), env, *options))


@pytest.mark.long
@pytest.mark.timeout(120)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, whole: dict[str, Any]) -> None:
    """SIGTERM: exit 75, a checkpoint of where it stands, and nothing superseded."""
    with running(*started(tmp_path, "stopped", "CartPole-v1"), cwd=tmp_path) as run:
        run.until(lambda: run.figure("stopped", "updates") >= 400, 60, "update 400")
        run.process.send_signal(signal.SIGTERM)
        done = run.finish(20)
    assert done.code == 75, done
    assert "qherd resume runs/stopped" in done.out
    assert summary(tmp_path / "runs" / "stopped")["exit_reason"] == "interrupted"
    assert qherd("resume", "runs/stopped", cwd=tmp_path, deadline_s=90).code == 0
    assert_same(whole, ended(tmp_path / "runs" / "stopped"))
    assert not (tmp_path / "runs" / "stopped" / "metrics.superseded.jsonl").exists()


HIDDEN = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Hidden(CartPoleEnv):
    resets = 0

    def reset(self, *, seed=None, options=None):
        Hidden.resets += 1
        self.shift = 1e-3 * Hidden.resets
        obs, info = super().reset(seed=seed)
        return obs + self.shift, info

    def step(self, action):
        obs, *rest = super().step(action)
        return obs + self.shift, *rest

gym.register("Hidden-v0", Hidden, max_episode_steps=200)
"""


@pytest.mark.long
@pytest.mark.timeout(120)
def test_what_cannot_be_played_again_begins_anew_and_is_said(tmp_path: Path) -> None:
    """An environment whose observations depend on all that came before in its process."""
    (tmp_path / "hidden.py").write_text(HIDDEN)
    options = ("--env.path", ".", "--actors.count", "1", "--checkpoint.every-updates", "1")
    with running(*started(tmp_path, "r", "hidden:Hidden-v0", *options), cwd=tmp_path) as run:
        run.until(lambda: run.figure("r", "updates") >= 400, 60, "update 400")
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(10)
    done = qherd("resume", "runs/r", cwd=tmp_path, deadline_s=90)
    assert done.code == 0, done
    assert "actor 0 begins anew, so the run does not go on to the bit: lane " in done.out, done
    assert "hidden:Hidden-v0" in done.out
    written = summary(tmp_path / "runs" / "r")
    assert written["exit_reason"] == "budget of env steps"
    assert not set(written["rows_lost"]) - {"resume"}
    assert json.loads((tmp_path / "runs" / "r" / "fences.json").read_text())["incarnations"] == {"0": 2}


def remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def damage(checkpoint: Path) -> None:
    policy = checkpoint / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:-1] + b"\7")


@pytest.mark.parametrize("lose", [remove, damage])
def test_a_run_whose_last_checkpoint_was_lost_is_trained_to_its_end_again(
    lose: Callable[[Path], None], whole_run: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """And until then nothing passes for its final policy."""
    folder = Path(shutil.copytree(whole_run, tmp_path / "runs" / "whole"))
    newest, before = names(folder / "checkpoints")[:2]
    lose(folder / "checkpoints" / str(newest))
    played = qherd("eval", "runs/whole", "--policy", "final", "--episodes", "2", cwd=tmp_path)
    assert played.code == 2
    other = f"ended with a final policy of update {newest.updates:,}, and the one there is of update {before.updates:,}"
    assert (other if lose is remove else "policy.safetensors does not match its size") in played.err
    resumed = qherd("resume", "runs/whole", cwd=tmp_path, deadline_s=90)
    assert resumed.code == 0, resumed.err
    assert_same(ended(folder), whole)
    again = qherd("resume", "runs/whole", cwd=tmp_path)
    assert (again.code, "is over: budget of env steps" in again.out) == (0, True)


@pytest.mark.root
def test_a_run_whose_last_checkpoint_finds_no_room_has_failed_and_goes_on_where_there_is_some(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk:
        short = ("--eval.every-updates", "300", "--eval.screen-episodes", "4", "--eval.holdout-episodes", "4")
        where = ("--mode", "inline", "--runs-dir", "disk", "--run", "full", "--budget.env-steps", "2500", *short)
        done = qherd("train", "CartPole-v1", *where, cwd=tmp_path, deadline_s=90)
        assert done.code == 1, done
        assert re.search(r"the last [\d,]+ updates are in no checkpoint: see that .*full/checkpoints can", done.err)
        shutil.copytree(disk / "full", tmp_path / "full")
    assert summary(tmp_path / "full")["exit_reason"].startswith("failed: the last ")
    assert qherd("resume", "full", cwd=tmp_path, deadline_s=90).code == 0
    updates = summary(tmp_path / "full")["updates"]
    assert names(tmp_path / "full" / "checkpoints")[0].updates == updates > 900
