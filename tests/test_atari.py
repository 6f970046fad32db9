"""Atari's games by name: what ale-py's own vector environment plays, with its arguments written down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from ale_py.vector_env import AtariVectorEnv
from chunk_makers import RUN
from cli_runs import qherd
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from lending import plenty
from numpy.testing import assert_array_equal

from actors.actor_id import ActorId
from actors.atari import AtariLanes
from actors.builders import build_actor
from actors.config import ActorConfig, AtariOptions, EnvConfig
from actors.contract import Env
from actors.envs import make_env, make_lanes, schema_of
from actors.errors import EnvError
from actors.first_look import first_look
from actors.lanes import replay_refused
from deploy.config.layers import compose
from deploy.config.models import dump
from deploy.sessions.clock import Clock
from deploy.sessions.outcome import Outcome
from learner.networks import NetworkConfig, NetworkSpec, parameter_shapes
from learner.weights import pack
from replay.chunk import BOUNDARY, FIRST, TRUNCATED, Codec, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId

PONG = "ALE/Pong-v5"
DEFAULTS: dict[str, Any] = {
    "repeat_action_probability": 0.25,
    "frameskip": 4,
    "full_action_space": False,
    "noop_max": 0,
    "use_fire_reset": False,
    "episodic_life": False,
    "max_num_frames_per_episode": 108_000,
}


def game(name: str = PONG, *, training: bool = True, render_mode: str | None = None, **kwargs: Any) -> Env:
    return make_env(EnvConfig(id=name, kwargs=kwargs), training=training, render_mode=render_mode)


def played(env: Env, steps: int, *, seed: int = 1, actions: int = 0) -> Iterator[tuple[Any, float, bool, bool, Any]]:
    """Random play from a reset, through ends of episodes; ``actions`` seeds what is done."""
    rng = np.random.default_rng(actions)
    env.reset(seed=seed)
    for _ in range(steps):
        stepped = env.step(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
        yield stepped  # type: ignore[misc]
        if stepped[2] or stepped[3]:
            env.reset()


def frames_of(env: Env, steps: int, **seeds: int) -> npt.NDArray[np.uint8]:
    frames = np.array([obs for obs, *_ in played(env, steps, **seeds)])
    env.close()
    return frames


# -- what is played


def test_lanes_leave_what_ale_pys_own_vector_environment_leaves() -> None:
    """Frame by frame, over ends of episodes and the resets after them, in each of two lanes with its own seed: one
    environment for both, and one for each, as recorded lanes are."""
    arguments = {**DEFAULTS, "max_num_frames_per_episode": 60, "noop_max": 30}
    config = EnvConfig(id="ALE/SpaceInvaders-v5", kwargs=arguments, frame_stack=3)
    lanes = [make_lanes(config, 2, recorded=recorded) for recorded in (False, True)]
    assert [type(each) for each in lanes] == [AtariLanes, SyncVectorEnv]
    bare = AtariVectorEnv("space_invaders", 2, stack_num=1, reward_clipping=False, **arguments)
    seeds, rng, ends = [3, 2**30 - 1], np.random.default_rng(0), np.zeros(2, np.int64)
    shown, frame = [each.reset(seed=list(seeds))[0] for each in lanes], bare.reset(seed=np.array(seeds))[0]
    for _ in range(40):
        assert_array_equal(shown[0], shown[1])
        assert_array_equal(shown[0][:, 2], frame[:, 0])
        actions = rng.integers(6, size=2)
        frame, *flags, _ = bare.step(actions)
        for i, each in enumerate(lanes):
            shown[i], *ours, _ = each.step(actions)
            assert [part.tolist() for part in ours] == [part.tolist() for part in flags]
        ends += flags[2]
    assert ends.tolist() == [2, 2], "each 15 env steps and one of the reset"
    for each in lanes:
        each.close()


@pytest.mark.parametrize("recorded", [False, True])
def test_an_actor_plays_a_game(recorded: bool) -> None:
    """Its rows have an end after ten env steps, by the limit of a training episode, and a boundary row after it."""
    env = EnvConfig(id=PONG, frame_stack=2, max_episode_steps=10)
    log, schema = MemoryLog(), Schema((84, 84), "uint8", 6, stack=2, obs_divisor=255)
    spec = NetworkSpec(NetworkConfig(encoder="mlp", hidden=(4,)))
    shapes = parameter_shapes(spec, schema)
    log.publish(1, plenty(), pack(1, 0, 0, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}))
    actors = ActorConfig(lanes=2, chunk_steps=12, flush_s=60)
    rollout = build_actor(ActorId(RUN, 7, 0, 1, 1), env, actors, spec, log, recorded=recorded)
    assert rollout.schema == schema
    assert rollout.ready()
    rollout.fill()
    rollout.send()
    rollout.close()
    (entry,) = log.read({0: ChunkId()}, 2)
    chunk = Codec(schema, RUN).decode(entry.data, entry.slot, *entry.id)
    assert chunk.flags.T.tolist() == [[FIRST, *[0] * 8, TRUNCATED, BOUNDARY, FIRST]] * 2
    assert chunk.obs[11].any()


def test_gymnasiums_own_check_passes() -> None:
    env = game(max_num_frames_per_episode=400)
    check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
    env.close()


def test_frames_are_stacked_by_qherd() -> None:
    """So that each is stored once, and an episode's first one pads the stack."""
    env = make_env(EnvConfig(id=PONG, frame_stack=4), training=True)
    assert schema_of(env) == Schema((84, 84), "uint8", 6, stack=4, obs_divisor=255)
    first, _ = env.reset(seed=1)
    second, *_ = env.step(2)
    env.close()
    assert_array_equal(first, np.broadcast_to(first[3], (4, 84, 84)))
    assert_array_equal(second[:3], first[1:])


def test_rewards_are_the_games_own() -> None:
    env = game("ALE/SpaceInvaders-v5")
    rewards = {reward for _, reward, *_ in played(env, 300)}
    env.close()
    assert max(rewards) > 1


def test_a_first_look_is_taken_at_a_game() -> None:
    look = first_look(EnvConfig(id=PONG, frame_stack=4), 1, 30.0, print)
    assert look.schema == Schema((84, 84), "uint8", 6, stack=4, obs_divisor=255)
    assert (look.played.reproduces, look.warnings) == (True, ())


def test_an_emulator_is_not_replayed() -> None:
    env = game()
    assert "emulator" in str(replay_refused(env))
    env.close()


# -- its arguments


def test_the_arguments_are_written_out() -> None:
    """Those of ale-py's own registration, and what is given over them; from a file again the same."""
    assert EnvConfig(id=PONG).kwargs == DEFAULTS == AtariOptions().model_dump()
    assert EnvConfig(id=PONG, kwargs={"noop_max": 30}).kwargs == {**DEFAULTS, "noop_max": 30}
    assert EnvConfig(id="ale_py:ALE/Pong-v5").kwargs == EnvConfig(id="CartPole-v1").kwargs == {}
    config = compose(PONG, None, None, {"QHERD_ENV_KWARGS": "{full_action_space: true}"})
    assert config.env.kwargs == {**DEFAULTS, "full_action_space": True}
    assert type(config).model_validate(dump(config)) == config


def test_the_defaults_are_those_that_the_games_are_registered_with() -> None:
    env = make_env(EnvConfig(id="ale_py:ALE/Pong-v5"), training=True)
    registered = dict(env.unwrapped.spec.kwargs)  # type: ignore[union-attr]
    env.close()
    assert registered.pop("game") == "pong"
    assert registered.items() <= DEFAULTS.items()


def test_sticky_actions() -> None:
    """Without them a game follows from its actions."""
    for probability, alike in ((0.0, True), (0.25, False)):
        one, other = (frames_of(game(repeat_action_probability=probability), 60, seed=seed) for seed in (1, 2))
        assert np.array_equal(one, other) is alike
    assert_array_equal(frames_of(game(), 60, seed=3), frames_of(game(), 60, seed=3))


@pytest.mark.parametrize(("arguments", "begins", "after_one"), [({}, 0, 4), ({"frameskip": 2}, 0, 2)])
def test_frames_of_an_env_step(arguments: dict[str, Any], begins: int, after_one: int) -> None:
    env = game(**arguments)
    (_, reset), (*_, step) = env.reset(seed=1), env.step(0)
    env.close()
    assert (reset["episode_frame_number"], step["episode_frame_number"]) == (begins, after_one)


def test_episodes_begin_with_no_ops_or_fire_where_that_is_asked_for() -> None:
    no_ops, fire = game(noop_max=30), game("ALE/Breakout-v5", use_fire_reset=True)
    begun = {no_ops.reset(seed=seed)[1]["episode_frame_number"] for seed in range(8)}
    assert max(begun) < 30
    assert len(begun) > 2
    assert fire.reset(seed=1)[1]["episode_frame_number"] >= 1
    no_ops.close()
    fire.close()


def test_the_action_set() -> None:
    sets = [game(), game(full_action_space=True)]
    assert [schema_of(env).num_actions for env in sets] == [6, 18]
    for env in sets:
        env.close()


def test_the_limit_is_in_frames() -> None:
    env = game(max_num_frames_per_episode=40)
    ends = [truncated for _, _, terminated, truncated, _ in played(env, 20) if not terminated]
    env.close()
    assert np.flatnonzero(ends).tolist() == [9, 19]


@pytest.mark.parametrize(("training", "ends"), [(True, True), (False, False)])
def test_a_life_lost_ends_an_episode_in_training_where_that_is_asked_for(training: bool, ends: bool) -> None:
    """Evaluated are whole games."""
    env = game("ALE/Breakout-v5", training=training, episodic_life=True, use_fire_reset=True)
    lost = next(terminated for *_, terminated, _, infos in played(env, 400) if infos["lives"] < 5)
    env.close()
    assert lost is ends


# -- what is refused


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("ALE/Pung-v5", {}, r"ALE/Pung-v5.*Pung. doesn't exist in namespace ALE; did you mean ALE/Pong-v5"),
        ("ALE/Pong", {}, r"ALE/Pong'.*did you mean ALE/Pong-v5"),
        ("ALE/Abcdefghijkl", {}, r"ids with python -c 'import gymnasium as g, ale_py; g\.pprint_registry"),
        (PONG, {"mode": 1}, r"no argument 'mode', only repeat_action_.*ale_py:ALE/"),
        (PONG, {"frameskip": 0}, "frameskip: Input should be greater than or equal to 1, got 0"),
        (PONG, {"repeat_action_probability": 2}, "repeat_action_probability: .*less than or equal to 1, got 2"),
        (PONG, {"full_action_space": "perhaps"}, "full_action_space: .*boolean.*got 'perhaps'"),
    ],
)
def test_what_there_is_not_is_refused(name: str, kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(EnvError, match=told):
        game(name, **kwargs)


# -- pictures


def area(size: int) -> npt.NDArray[np.float64]:
    """Averages <float64>[84, size] over the stretches that 84 pixels take of ``size``."""
    edges = np.arange(85) * size / 84
    shares = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    return shares.clip(0) * 84 / size


HEIGHT, WIDTH = area(210), area(160)


def unlike(env: Env, obs: Any) -> float:
    """The share of the observation's pixels that the picture, made gray and small, has otherwise."""
    picture: Any = env.render()
    assert (picture.shape, picture.dtype) == ((210, 160, 3), np.uint8)
    gray = picture @ np.array([0.299, 0.587, 0.114])
    return float((np.abs(HEIGHT @ gray @ WIDTH.T - obs) > 8).mean())


def test_the_picture_in_colour_is_of_the_same_game() -> None:
    """Also after resets without a seed, with sticky actions and random no-ops; another game's is unlike it."""
    arguments: dict[str, Any] = {"render_mode": "rgb_array", "max_num_frames_per_episode": 60, "noop_max": 30}
    env, other = game("ALE/Boxing-v5", **arguments), game("ALE/Boxing-v5", **arguments)
    assert env.metadata["render_fps"] == 15
    both = zip(played(env, 30), played(other, 30, actions=1), strict=True)
    shares = [(unlike(env, obs), unlike(other, obs)) for (obs, *_), _ in both]
    env.close()
    other.close()
    same, others = np.array(shares).T
    assert same.max() < 0.001
    assert others.mean() > 0.02


# -- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of Pong."""
    cwd = tmp_path_factory.mktemp("pong")
    options = {
        "mode": "inline",
        "actors": {"lanes": 4, "chunk_steps": 8},
        "replay": {"capacity_rows": 1000, "min_rows": 64, "samples_per_insert": 4},
        "learner": {"network": {"encoder": "mlp", "hidden": [4]}, "batch": 4},
        "eval": {
            "every_updates": 200,
            "screen_episodes": 1,
            "confirm_episodes": 2,
            "holdout_episodes": 1,
            "max_episode_steps": 20,
        },
        "budget": {"env_steps": 200},
    }
    (cwd / "small.yaml").write_text(yaml.safe_dump(options))
    done = qherd("train", PONG, "--config", "small.yaml", "--run", "r", cwd=cwd)
    assert done.code == 0, done
    return cwd / "runs" / "r"


def test_the_summary_has_what_the_games_were_played_with() -> None:
    written = Outcome().summary(compose(PONG, None, None, {}), "r", Clock())
    assert (written["env_kwargs"], written["reward_clip"]) == (DEFAULTS, True)


@pytest.mark.long
def test_a_run_says_what_its_games_were_played_with(run: Path) -> None:
    written, kept = json.loads((run / "summary.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    assert (written["env_kwargs"], written["reward_clip"]) == (DEFAULTS, True)
    assert kept["config"]["env"]["kwargs"] == DEFAULTS
    assert written["updates"] > 0


@pytest.mark.long
def test_a_run_is_filmed(run: Path) -> None:
    done = qherd("record", run, cwd=run.parent)
    assert done.code == 0, done
    assert "in 20 env steps" in done.out
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(run / "best.mp4"))
    assert abs(frames - 21) <= 1
    assert seconds == pytest.approx(frames / 15, abs=0.1)


@pytest.mark.long
def test_a_resumed_run_says_that_it_does_not_go_on_to_the_bit(run: Path) -> None:
    done = qherd("resume", run, "--budget.env-steps", "600", cwd=run.parent)
    assert done.code == 0, done
    assert re.search(r"begins anew, so the run does not go on to the bit: lane 0 of ALE/Pong-v5.*emulator", done.out)
