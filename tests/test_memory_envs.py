"""The example environments that have to be remembered (examples/memory_envs.py): what they hide, and nothing else."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from actors.config import EnvConfig
from actors.envs import make_env, schema_of
from replay.chunk import Schema

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
IDS = ("MaskedCartPole-v1", "MaskedLunarLander-v3", "MaskedBreakout-v1", "FlickeringBreakout-v1", "TMaze-v0")
HIDES = {
    "MaskedCartPole-v1": ("CartPole-v1", [0, 2], Schema((2,), "float32", 2)),
    "MaskedLunarLander-v3": ("LunarLander-v3", [0, 1, 4, 6, 7], Schema((5,), "float32", 4)),
    "MaskedBreakout-v1": ("MinAtar/Breakout-v1", [0, 1, 3], Schema((10, 10, 3), "int8", 3)),
}
"""What each is made of, the entries of the last axis that it shows, and what is stored of it."""


def made(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """As qherd makes it, and holds it to its spaces."""
    return make_env(EnvConfig(id=f"memory_envs:{name}", path=EXAMPLES, kwargs=kwargs), training=True)


def played(env: gym.Env[Any, Any], seed: int, steps: int = 300) -> list[Any]:
    """All that random play shows, over several episodes."""
    actions, shown = np.random.default_rng(7), [env.reset(seed=seed)[0]]
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(np.int64(actions.integers(env.action_space.n)))  # type: ignore[attr-defined]
        shown += [obs.copy(), reward, terminated]
        if terminated or truncated:
            shown.append(env.reset()[0].copy())
    return shown


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", IDS)
def test_all_follows_from_the_seed(name: str) -> None:
    first, again, other = played(made(name), 3), played(made(name), 3), played(made(name), 4)
    assert_same(first, again)
    with pytest.raises(AssertionError):
        assert_same(first, other)


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_finds_nothing(name: str) -> None:
    with warnings.catch_warnings():  # CartPole's own bounds, and that there are wrappers
        warnings.filterwarnings("ignore", ".*(infinity|different from the unwrapped version)", UserWarning)
        check_env(gym.make(f"memory_envs:{name}"), skip_render_check=True, skip_close_check=True)


@pytest.mark.parametrize("name", HIDES)
def test_what_is_left_is_the_environments_own(name: str) -> None:
    """The same episodes and rewards, and of each observation all but what is hidden."""
    of, shows, schema = HIDES[name]
    env = made(name)
    assert schema_of(env) == schema
    whole = played(make_env(EnvConfig(id=of), training=True), 5)
    left = [each[..., shows] if isinstance(each, np.ndarray) and each.ndim else each for each in whole]
    assert_same(played(env, 5), left)


def test_the_game_flickers_and_is_the_same() -> None:
    """Half of its frames are blank, each by itself, those of resets too; with none blank it is the game, and its
    episodes and rewards are."""
    whole = played(make_env(EnvConfig(id="MinAtar/Breakout-v1"), training=True), 5, 2000)
    assert_same(played(made("FlickeringBreakout-v1", blank=0.0), 5, 2000), whole)
    blank = list[bool]()
    for given, shown in zip(whole, played(made("FlickeringBreakout-v1"), 5, 2000), strict=True):
        if not (isinstance(given, np.ndarray) and given.ndim):
            assert given == shown
            continue
        assert given.any()
        blank.append(not shown.any())
        assert blank[-1] or (given == shown).all()
    after = [here for before, here in itertools.pairwise(blank) if before]
    for each in (blank, after):  # four standard errors
        assert abs(np.mean(each) - 0.5) < 4 * 0.5 / np.sqrt(len(each))


@pytest.mark.parametrize(
    ("name", "picture"), [("MaskedCartPole-v1", (400, 600, 3)), ("FlickeringBreakout-v1", (10, 10, 3))]
)
def test_they_are_rendered_as_what_they_are_made_of(name: str, picture: tuple[int, ...]) -> None:
    env = make_env(EnvConfig(id=f"memory_envs:{name}", path=EXAMPLES), training=False, render_mode="rgb_array")
    env.reset(seed=1)
    assert np.asarray(env.render()).shape == picture
    env.close()
