"""A run's policy in another program: raw observations in, actions out, the same as in the run's own evaluations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from policies import a_run

from actors.contract import Checked
from actors.episodes import play
from actors.players import Players
from actors.spaces import observations_of
from deploy.config.models import env_of
from deploy.playback.players import policy_of
from deploy.run_directory.directory import RunDirectory
from learner import load_policy
from learner.checkpoint import CheckpointError
from learner.networks.portable import Acted, Observations, Policy, actions_of
from learner.policy_files import PolicyError
from learner.weights import pack

EPISODES, SEED, LIMIT = 6, 40, 60
MASKED, SIGNAL, ARM = "masked_env:MaskedGrid-v0", "signal_env:Signal-v0", "arm_env:Arm-v0"


# -- as in the run's own evaluation


def evaluated(run: Path) -> list[float]:
    """The returns that ``qherd eval`` finds."""
    directory = RunDirectory.open(run)
    with Players(env_of(directory.config), 2) as players:
        policy, _ = policy_of(directory, players.envs[0], "best")
        return list(play(players.envs, policy, range(SEED, SEED + EPISODES), LIMIT).returns)


def played(run: Path, env: gym.Env[Any, Any], *, masked: bool = False) -> list[float]:
    """The returns of a plain loop in the bare environment."""
    policy, returns = load_policy(run), []
    for seed in range(SEED, SEED + EPISODES):
        obs, info = env.reset(seed=seed)
        policy.reset()
        total, over, steps = 0.0, False, 0
        while not over and steps < LIMIT:
            action, _ = policy.act(obs, info["action_mask"] if masked else None)
            obs, reward, terminated, truncated, info = env.step(action)
            total, over, steps = total + float(reward), terminated or truncated, steps + 1
        returns.append(total)
    return returns


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        pytest.param("CartPole-v1", {}, id="mlp"),
        pytest.param("CartPole-v1", {"env": {"frame_stack": 3}}, id="stacked frames"),
        pytest.param("CartPole-v1", {"algorithm": "iqn", "network": {"dueling": True}}, id="implicit quantiles"),
        pytest.param(MASKED, {}, id="one-hot, masked"),
        pytest.param(SIGNAL, {"network": {"hidden": (8,)}}, id="a picture and a rule"),
        pytest.param(SIGNAL, {"env": {"frame_stack": 2}, "network": {"hidden": (8,)}}, id="both stacked"),
        pytest.param(ARM, {"network": {"hidden": (8,)}}, id="Dict, combinations from 5"),
    ],
)
def test_a_plain_loop_reaches_the_runs_own_evaluation(tmp_path: Path, env_id: str, options: dict[str, Any]) -> None:
    run = a_run(tmp_path, env_id, **options)
    expected = evaluated(run)
    assert len(set(expected)) > 1
    assert played(run, gym.make(env_id), masked=env_id == MASKED) == expected


def test_a_user_part_is_found_where_the_run_found_it(tmp_path: Path) -> None:
    """In a process whose path does not have it."""
    run = a_run(tmp_path, SIGNAL, network={"encoder": "arm_env:Sines", "hidden": (8,)})
    program = (
        f"import json, numpy as np, learner; p = learner.load_policy({str(run)!r})\n"
        "print(json.dumps(p.act({'picture': np.ones((4, 4, 1), np.uint8), 'rule': 1}).q.tolist()))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=True).stdout
    obs = {"picture": np.ones((4, 4, 1), np.uint8), "rule": 1}
    np.testing.assert_allclose(json.loads(shown), load_policy(run).act(obs).q, rtol=1e-6)


def test_actions_without_bound_are_refused() -> None:
    """A table of them would be made: whoever wrote the file chooses how big."""
    about = {"counts": [1 << 40, 1 << 40], "first": [0, 0], "dtype": "int64"}
    for n in (4, 1 << 80):
        with pytest.raises(ValueError, match="combinations"):
            actions_of({**about, "n": n})


# -- batches and lanes


UNIT = Box(0, 1, (2,), np.float32)
LEAVES = st.sampled_from(
    [UNIT, Discrete(3, start=-1), MultiDiscrete([2, 3]), MultiBinary(2), Box(0, 255, (2, 1), np.uint8), Box(-5, 5, ())]
)  # fmt: skip
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(Dict),
        st.lists(inner, min_size=1, max_size=3).map(Tuple),
    ),
    max_leaves=4,
)


@given(SPACES, st.integers(1, 3), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
def test_a_batch_is_stored_as_its_rows_are(space: Space[Any], rows: int, seed: int) -> None:
    """As gymnasium's vector environments batch them; and so does what went through JSON."""
    space.seed(seed)
    single = observations_of("E", space)
    stored = Observations(json.loads(json.dumps(single.about)))
    observations = [space.sample() for _ in range(rows)]
    empty: Any = create_empty_array(space, rows)
    batch = concatenate(space, observations, empty)
    assert (stored.rows(observations[0]), stored.rows(batch)) == ((), (rows,))
    found = stored(batch, (rows,))
    assert found.dtype == single.space.dtype
    assert_array_equal(found, np.stack([single("step", obs) for obs in observations]))


def cartpole(frames: int, tmp_path: Path) -> Policy:
    return load_policy(a_run(tmp_path, "CartPole-v1", env={"frame_stack": frames}))


def test_a_batch_has_an_action_for_each_row(tmp_path: Path) -> None:
    policy = load_policy(a_run(tmp_path, "CartPole-v1"))
    obs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    acted = policy.act(obs)
    assert (acted.action.shape, acted.q.shape, str(acted.q.dtype)) == ((7,), (7, 2), "float32")
    singles = [policy.act(row) for row in obs]
    assert acted.action.tolist() == [int(single.action) for single in singles]
    np.testing.assert_allclose(acted.q, [single.q for single in singles], rtol=1e-5, atol=1e-6)
    assert policy.act(obs.astype(np.float64).tolist()).action.tolist() == acted.action.tolist()


def test_each_lane_has_frames_of_its_own(tmp_path: Path) -> None:
    """Rows of a batch are lanes: values are those of a policy that sees each lane alone, resets included."""
    alone = [cartpole(3, tmp_path / str(lane)) for lane in range(3)]
    together = cartpole(3, tmp_path / "all")
    rng = np.random.default_rng(1)
    for step in range(8):
        lanes = 2 if step == 0 else 3  # the third comes later
        obs = rng.normal(size=(lanes, 4)).astype(np.float32)
        if step == 4:
            together.reset(1)
            alone[1].reset()
        if step == 6:
            together.reset()
            for policy in alone:
                policy.reset(0)
        q = together.act(obs).q
        np.testing.assert_allclose(q, [alone[lane].act(obs[lane]).q for lane in range(lanes)], rtol=1e-5, atol=1e-6)


def test_without_a_reset_the_frames_of_the_last_episode_are_still_seen(tmp_path: Path) -> None:
    policy, obs = cartpole(2, tmp_path), np.ones(4, np.float32)
    first = policy.act(obs).q
    policy.act(np.full(4, -2, np.float32))
    assert not np.array_equal(policy.act(obs).q, first)
    policy.reset()
    assert_array_equal(policy.act(obs).q, first)


# -- masks


def test_a_refused_call_leaves_the_frames_and_the_memory_as_they_were(tmp_path: Path) -> None:
    policy, spoilt = cartpole(3, tmp_path / "a"), cartpole(3, tmp_path / "b")
    for step, obs in enumerate(np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)):
        with pytest.raises(ValueError, match=r"of shape \(3,\)"):
            spoilt.act(obs, [1, 0, 1])
        assert_array_equal(spoilt.act(obs, [1, 1]).q, policy.act(obs, [1, 1]).q, str(step))


def test_masks_choose_among_what_is_allowed(tmp_path: Path) -> None:
    policy = load_policy(a_run(tmp_path, MASKED))
    q = policy.act(3, np.ones(4).astype(bool)).q
    best = int(q.argmax())
    mask = np.arange(4) != best
    assert int(policy.act(3, mask).action) == int(np.where(mask, q, -np.inf).argmax())
    assert_array_equal(policy.act(3, mask).q, q)
    rows = policy.act(np.array([3, 3]), np.stack([mask, np.zeros(4, np.int8)]))
    assert rows.action.tolist() == [int(policy.act(3, mask).action), best], "a row that allows none allows all"


def test_a_policy_without_masks_takes_one(tmp_path: Path) -> None:
    policy = load_policy(a_run(tmp_path, "CartPole-v1"))
    assert [int(policy.act(np.zeros(4), mask).action) for mask in ([1, 0], [0, 1])] == [0, 1]


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (None, r"was given no mask, and this policy was trained with action masks: pass info\['action_mask'\]"),
        ([1, 0, 1], r"of shape \(3,\); it has to be 0 or 1 for each action, of shape \(4,\)"),
        ([[1, 0, 1, 1]], r"of shape \(1, 4\)"),
        ([1, 0, 2, 1], r"the mask \[1, 0, 2, 1\]"),
        (np.ones(4), "has to be 0 or 1"),
    ],
    ids=["none", "short", "a batch", "2", "floats"],
)
def test_a_wrong_mask_is_refused(tmp_path: Path, mask: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_policy(a_run(tmp_path, MASKED)).act(3, mask)


# -- what is refused


@pytest.mark.parametrize(
    ("obs", "why"),
    [
        (np.zeros(3), r"act\(\) was given an observation of shape \(3,\); its space Box.* says shape \(4,\)"),
        (np.zeros((2, 3)), r"of shape \(2, 3\)"),
        (np.zeros((2, 2, 4)), r"of shape \(2, 2, 4\)"),
        ({"a": 1}, "was given an observation of"),
        (None, "was given an observation of"),
        (["a"] * 4, "of dtype <U1"),
    ],
    ids=["short", "a batch of short", "batches", "a dict", "none", "words"],
)
def test_an_observation_of_another_space_is_refused(tmp_path: Path, obs: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_policy(a_run(tmp_path, "CartPole-v1")).act(obs)


def _without(name: str) -> Any:
    return lambda run: next(run.glob(name)).unlink()


def _written(name: str, change: Any) -> Any:
    def write(run: Path) -> None:
        path = next(run.glob(name))
        path.write_bytes(change(path.read_bytes()))

    return write


def _described(**changes: Any) -> Any:
    return _written("policy.json", lambda data: json.dumps(json.loads(data) | changes).encode())


def _of_another_network(run: Path) -> None:
    weights = {"head.linear.weight": np.zeros((2, 4), np.float32), "head.linear.bias": np.zeros(2, np.float32)}
    best = RunDirectory.open(run).best
    best.save(pack(1, 7, 0, weights), best.manifest() or {})


def _exported(run: Path) -> None:
    _without("policy.json")(run)
    (run / "policy.npz").touch()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(
            _without("checkpoints/best.json"),
            "has no best policy: no evaluation was finished; .*eval.every-updates",
            id="unevaluated",
        ),
        pytest.param(_without("checkpoints/*.weights"), "which best.json names, is missing", id="no weights"),
        pytest.param(_without("policy.json"), "has no policy.json: qherd resume writes it", id="undescribed"),
        pytest.param(_exported, "is an exported policy, no run: use load", id="an export"),
        pytest.param(
            _written("policy.json", lambda data: data[:50]), "policy.json is damaged", id="half a description"
        ),
        pytest.param(_written("policy.json", lambda _: b"[]"), "holds no JSON object", id="a list"),
        pytest.param(_described(format=99), "has format 99, this qherd reads 1: load it with", id="of another format"),
        pytest.param(_described(schema={"obs_shape": 3}), "policy.json is damaged: Validation", id="no schema"),
        pytest.param(_described(spec={}), "policy.json is damaged: KeyError", id="no network"),
        pytest.param(_described(about={}), "policy.json is damaged: KeyError", id="no spaces"),
        pytest.param(_written("checkpoints/*.weights", lambda d: d[:-1]), "does not match the sha256", id="torn"),
        pytest.param(_of_another_network, "weights are of another network.*: encoder.layers.0.bias", id="foreign"),
    ],
)
def test_a_run_without_a_policy_is_refused_with_the_remedy(tmp_path: Path, spoil: Any, why: str) -> None:
    run = a_run(tmp_path, "CartPole-v1")
    spoil(run)
    with pytest.raises(PolicyError, match=why):
        load_policy(run)


def test_code_that_came_with_a_policy_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """policy.json may name any folder as that of the network's own parts, and a downloaded one its own: also where it
    has another name. Whoever trusts it puts it on the path."""
    run = a_run(tmp_path, "CartPole-v1")
    (run / "came_with_it.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    described = json.loads((run / "policy.json").read_text())
    described["spec"]["config"]["encoder"], described["env"]["path"] = "came_with_it:Encoder", str(run)
    (tmp_path / "link").symlink_to(run)
    for named in (str(run), str(tmp_path / "link")):
        described["env"]["path"] = named
        (run / "policy.json").write_text(json.dumps(described))
        with pytest.raises(PolicyError, match="nothing is run that comes with a policy"):
            load_policy(run)
        assert not (tmp_path / "ran").exists()
        assert named not in sys.path
    monkeypatch.syspath_prepend(run)
    with pytest.raises(ValueError, match="came_with_it:Encoder"):
        load_policy(run)
    assert (tmp_path / "ran").exists()


def test_no_run_no_checkpoint_and_a_wrong_word_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere is no run: give its directory, such as runs/NAME"):
        load_policy(tmp_path / "nowhere")
    run = a_run(tmp_path, "CartPole-v1")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_policy(run, "final")
    with pytest.raises(PolicyError, match="which is 'worst'; it has to be 'best' or 'final'"):
        load_policy(run, "worst")  # type: ignore[arg-type]


# -- what it takes


def test_an_mlp_acts_without_torch_ray_redis_or_gymnasium(tmp_path: Path) -> None:
    run = a_run(tmp_path, "CartPole-v1")
    program = (
        f"import sys, learner; p = learner.load_policy({str(run)!r}); print(int(p.act([0.1, 0.2, 0.3, 0.4]).action))\n"
        "print(sorted({'torch', 'ray', 'redis', 'gymnasium', 'actors', 'deploy'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=True).stdout
    action = int(load_policy(run).act(np.array([0.1, 0.2, 0.3, 0.4], np.float32)).action)
    assert shown.splitlines() == [str(action), "[]"]


def test_what_an_environment_is_about_is_what_it_is_checked_by() -> None:
    env = Checked(gym.make("CartPole-v1"))
    assert (env.about["actions"]["n"], env.about["masked"], env.about["observation"]["shape"]) == (2, False, [4])
    assert Acted._fields == ("action", "q")
