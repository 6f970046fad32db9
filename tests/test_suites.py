"""Suites of environments that come with an extra of qherd: by their names alone."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from cli_runs import qherd, summary

from actors.config import EnvConfig
from actors.envs import SUITES, make_env, schema_of
from actors.errors import EnvError
from actors.lanes import replay_refused
from deploy.config.layers import compose, preset_for
from deploy.config.models import RunConfig
from deploy.playback.players import players_of, sticky_of
from deploy.run_directory.directory import RunDirectory
from replay.chunk import Schema

GAMES = {"Asterix": (4, 5), "Breakout": (4, 3), "Freeway": (7, 3), "Seaquest": (10, 6), "SpaceInvaders": (6, 4)}
"""MinAtar's games: their channels, and how many actions the minimal sets have (Young and Tian, arXiv 1903.03176)."""


@pytest.mark.parametrize("game", GAMES)
def test_minatars_games_are_known_by_name(game: str) -> None:
    """Pixels are 0 and 1: the network does not divide them."""
    channels, actions = GAMES[game]
    env = make_env(EnvConfig(id=f"MinAtar/{game}-v1"), training=True)
    assert schema_of(env) == Schema((10, 10, channels), "int8", actions)
    obs, _ = env.reset(seed=5)
    assert set(np.unique(obs)) == {0, 1}
    assert preset_for(f"MinAtar/{game}-v1") == "minatar"
    assert compose(f"MinAtar/{game}-v1", None, None, {}).learner.network.encoder == "minatar"


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_all_actions_and_own_kwargs() -> None:
    env = make_env(
        EnvConfig(id="MinAtar/Breakout-v0", kwargs={"sticky_action_prob": 0.0, "difficulty_ramping": False}),
        training=True,
    )
    assert schema_of(env).num_actions == 6
    assert env.unwrapped.game.sticky_action_prob == 0.0  # type: ignore[attr-defined]


def test_an_evaluation_may_have_other_sticky_actions(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"run": "r", "runs_dir": tmp_path, "env": {"id": "MinAtar/Breakout-v1"}})
    with contextlib.closing(RunDirectory.create(config)) as directory:
        for asked, there in ((None, 0.1), (0.0, 0.0), (0.7, 0.7)):
            with players_of(directory, 1, None, sticky=asked) as players:
                game: Any = players.envs[0].unwrapped
                assert game.game.sticky_action_prob == there
        assert sticky_of(directory.config.env) == 0.1


def test_a_game_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(EnvError, match=r"'MinAtar/Breakdown-v1' cannot be made: .*did you mean .*MinAtar/Breakout-v1"):
        make_env(EnvConfig(id="MinAtar/Breakdown-v1"), training=True)


@pytest.mark.parametrize("suite", SUITES)
def test_a_missing_extra_is_told_with_the_command_that_installs_it(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, extra = SUITES[suite]
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ModuleNotFoundError
    for name in [name for name in gym.registry if name.startswith(f"{suite}/")]:
        monkeypatch.delitem(gym.registry, name)
    with pytest.raises(
        EnvError, match=rf"'{suite}/Pong-v5' needs the package {module}: pip install 'qherd\[{extra}\]'"
    ):
        make_env(EnvConfig(id=f"{suite}/Pong-v5"), training=True)


def test_minatar_is_not_brought_back_to_where_it_was() -> None:
    """A sticky action is remembered across episodes, and its random numbers are not gymnasium's."""
    assert "MinAtar" in str(replay_refused(make_env(EnvConfig(id="MinAtar/Breakout-v1"), training=True)))


@pytest.mark.long
def test_a_run_of_minatar_from_its_plan_to_its_video(tmp_path: Path) -> None:
    game = "MinAtar/Freeway-v1"
    small = ("--mode", "inline", "--run", "f", "--replay.min-rows", "600", "--eval.max-episode-steps", "50")
    often = ("--eval.every-updates", "100")
    assert qherd("plan", game, cwd=tmp_path).code == 0
    done = qherd("train", game, *small, *often, "--budget.env-steps", "1500", cwd=tmp_path)
    assert done.code == 0, done
    assert summary(tmp_path / "runs/f")["updates"] > 150
    done = qherd("resume", "runs/f", "--budget.env-steps", "2000", cwd=tmp_path)
    assert done.code == 0, done
    done = qherd("record", "runs/f", cwd=tmp_path)
    assert done.code == 0, done
    assert list((tmp_path / "runs/f").glob("*.mp4"))
