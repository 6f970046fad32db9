"""Environments as lanes: what is taken, how it is narrowed, and what is refused, with a reason."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import scripted_env
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_array_equal

from actors.config import EnvConfig
from actors.contract import Checked
from actors.envs import make_env, make_lanes, schema_of
from actors.errors import EnvError
from actors.players import Players
from replay.chunk import DTYPES, Schema

UNIT = Box(-1, 1, (2,), np.float32)


def spaces(observation: Space[Any], action: Space[Any] | None = None, state: Any = None) -> EnvConfig:
    return EnvConfig(id="scripted_env:Spaces-v0", kwargs={"observation": observation, "action": action, "state": state})


def first(config: EnvConfig) -> tuple[Schema, npt.NDArray[Any]]:
    """The schema, and the first observation, which has to be of that schema; a step's has to be, too."""
    env = make_env(config, training=True)
    schema = schema_of(env)
    start, after = env.reset(seed=0)[0], env.step(0)[0]
    for obs in (start, after):
        assert np.asarray(obs).shape == schema.obs_shape
        assert np.asarray(obs).dtype == schema.obs_dtype
    return schema, start


@pytest.mark.parametrize(("start", "state", "hot"), [(0, 0, 0), (0, 3, 3), (5, 5, 0), (5, 8, 3), (-2, 1, 3)])
def test_discrete_observations_are_one_hot(start: int, state: int, hot: int) -> None:
    """Also where the states are not numbered from 0."""
    schema, obs = first(spaces(Discrete(4, start=start), state=np.int64(state)))
    assert schema == Schema((4,), "float32", 2)
    assert_array_equal(obs, np.eye(4)[hot])


def test_float64_becomes_float32_once() -> None:
    schema, obs = first(spaces(Box(-np.inf, np.inf, (2,), np.float64), state=np.array([1 / 3, 1e-3])))
    assert schema == Schema((2,), "float32", 2)
    assert_array_equal(obs, np.array([1 / 3, 1e-3], np.float32))


def test_a_missing_file_is_told_with_the_folder_that_its_relative_path_begins_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "opens_a_level.py").write_text(
        "import gymnasium\n"
        "def opened(path='levels/one.txt'):\n    return open(path)\n"
        "gymnasium.register('Level-v0', entry_point=opened)\n"
    )
    with pytest.raises(EnvError, match=f"'levels/one.txt'; relative paths begin in .*, {re.escape(str(tmp_path))}$"):
        make_env(EnvConfig(id="opens_a_level:Level-v0"), training=True)
    with pytest.raises(EnvError, match=r"'/none/one\.txt'$"):
        make_env(EnvConfig(id="opens_a_level:Level-v0", kwargs={"path": "/none/one.txt"}), training=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 1)])
def test_storable_dtypes_and_all_shapes_are_kept(dtype: str, shape: tuple[int, ...]) -> None:
    """uint8 stays uint8 until it is on the device."""
    schema, _ = first(spaces(Box(0, 100, shape, np.dtype(dtype).type)))
    assert schema == Schema(shape, dtype, 2)


@pytest.mark.parametrize(
    ("space", "state"),
    [
        (Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64), [-70_000, 2**24]),
        (Box(0, 2**40, (2,), np.int64), [0, 2**40]),
        (Box(0, 2**32 - 1, (2,), np.uint32), [5, 2**31]),
        (Box(0, 1, (2,), np.bool_), [False, True]),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_wide_and_boolean_dtypes_keep_their_values(space: Box, state: list[int]) -> None:
    """Narrowed, not wrapped."""
    schema, obs = first(spaces(space, state=np.array(state, space.dtype)))
    assert schema.obs_dtype in DTYPES
    assert_array_equal(obs.astype(np.float64), np.array(state, np.float64))


def test_numbers_from_another_start_are_learned_as_from_0() -> None:
    """Actions and observations alike: the environment gets and gives its own numbers."""
    given = []

    class Numbered(scripted_env.SpacesEnv):
        def step(self, action: Any) -> Any:
            given.append(action)
            return super().step(action)

    env = Checked(Numbered(Discrete(5, start=-2), Discrete(3, start=1), np.int64(1)))
    assert schema_of(env) == Schema((5,), "float32", 3)
    assert env.reset(seed=0)[0].tolist() == [0, 0, 0, 1, 0]
    for action in (0, np.int64(2)):
        env.step(action)
    assert given == [1, 3]
    assert {type(action) for action in given} == {np.int64}


def test_a_real_continuous_environment_is_refused() -> None:
    with pytest.raises(EnvError, match=r"Pendulum-v1 has the action space Box"):
        schema_of(make_env(EnvConfig(id="Pendulum-v1"), training=True))


@pytest.mark.parametrize(
    ("unknown", "near"),
    [("LunarLandr-v3", "LunarLander-v3"), ("CartPole-v7", "CartPole-v1"), ("carpole-v1", "CartPole-v1")],
)
def test_an_unknown_id_names_the_nearest(unknown: str, near: str) -> None:
    with pytest.raises(EnvError, match=rf"'{unknown}' cannot be made: .*did you mean .*{near}"):
        make_env(EnvConfig(id=unknown), training=True)


def test_an_id_like_no_other_says_where_the_ids_are() -> None:
    with pytest.raises(EnvError, match="pprint_registry"):
        make_env(EnvConfig(id="Zzzzzzzz-v99"), training=True)


def test_a_missing_module_says_how_to_name_its_folder() -> None:
    with pytest.raises(EnvError, match=r"No module named 'nowhere'.*--env\.path"):
        make_env(EnvConfig(id="nowhere:Some-v0"), training=True)


def test_an_unknown_argument_is_refused_by_name() -> None:
    with pytest.raises(EnvError, match="colour"):
        make_env(EnvConfig(id="CartPole-v1", kwargs={"colour": "red"}), training=True)


def test_an_environment_may_do_without_render_mode() -> None:
    """Gymnasium passes on what it is given: a plain environment of a user's own has no such parameter."""
    env = make_env(EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": (4,)}), training=True)
    assert env.reset(seed=1)[0].tolist() == [1, 0, 0]


def test_a_module_of_the_users_own(tmp_path: Path) -> None:
    """Imported from --env.path, behind everything that is installed: a folder ``learner`` there shadows nothing."""
    source = Path(scripted_env.__file__).read_text().replace("Scripted-v0", "Mine-v0")
    (tmp_path / "my_env.py").write_text(source)
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "__init__.py").write_text("raise RuntimeError('shadowed')\n")
    program = f"""
from pathlib import Path
from actors.config import EnvConfig
from actors.envs import make_env, make_lanes, schema_of
config = EnvConfig(id="my_env:Mine-v0", path=Path({str(tmp_path)!r}))
print(schema_of(make_env(config, training=False)).num_actions, make_lanes(config, 3).num_envs)
import learner.weights
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["2", "3"]


def test_lanes_reset_in_the_step_after_an_end() -> None:
    """NEXT_STEP: that step ignores the action and returns the first observation with r = 0, neither flag set."""
    lanes = make_lanes(EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": (2,)}), 1)
    assert lanes.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    rows = [(lanes.reset(seed=[7])[0].tolist()[0], 0.0, False, False)]
    for _ in range(4):
        obs, reward, terminated, truncated, _ = lanes.step(np.array([0]))
        rows.append((obs.tolist()[0], float(reward[0]), bool(terminated[0]), bool(truncated[0])))
    assert rows == [
        ([7, 0, 0], 0, False, False),
        ([7, 0, 1], 0, False, False),
        ([7, 0, 2], 1, True, False),
        ([7, 1, 0], 0, False, False),
        ([7, 1, 1], 100, False, False),
    ]


def test_the_training_limit_is_not_the_evaluations() -> None:
    """env.max_episode_steps truncates training episodes only."""
    config = EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": (9,)}, max_episode_steps=4)
    lengths = []
    for training in (True, False):
        env = make_env(config, training=training)
        env.reset(seed=0)
        steps, over = 0, False
        while not over:
            _, _, terminated, truncated, _ = env.step(np.int64(0))
            steps, over = steps + 1, terminated or truncated
        lengths.append((steps, terminated, truncated))
    assert lengths == [(4, False, True), (9, True, False)]


def test_gymnasiums_own_limit_holds_where_none_is_given() -> None:
    env = make_env(EnvConfig(id="CartPole-v1"), training=True)
    assert env.spec is not None
    assert env.spec.max_episode_steps == gym.spec("CartPole-v1").max_episode_steps == 500


def test_each_environment_of_a_run_can_learn_which_it_is() -> None:
    """For a port or a display of its own."""
    config = EnvConfig(id="strange_env:Strange-v0", kwargs={"after": "{index+5000}", "kind": "of {slot}, {lane}"})
    with Players(config, 2) as players:
        found = [(env.unwrapped.kind, env.unwrapped.after) for env in players.envs]  # type: ignore[attr-defined]
    assert found == [("of -1, 0", 5000), ("of -1, 1", 5001)]
    found = []
    for slot in range(2):
        lanes = make_lanes(config, 3, slot=slot)
        found += [(env.unwrapped.kind, env.unwrapped.after) for env in lanes.envs]  # type: ignore[attr-defined]
    assert found == [(f"of {slot}, {lane}", 6000 + 3 * slot + lane) for slot in range(2) for lane in range(3)]
