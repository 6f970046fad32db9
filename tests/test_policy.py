"""Acting: one coin per lane, and no torch in an actor's process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from actors.policy import Array, EpsilonGreedy, explore
from learner.networks.portable import PolicyState, allowed


def test_greedy_and_random_ends() -> None:
    """epsilon 0 never explores; 1 always does, over all actions, in the same plan."""
    plan = explore(np.array([0.0, 1.0]), 3000, 3, np.random.default_rng(0))
    assert plan.dtype == np.int64
    assert plan.shape == (3000, 2)
    assert (plan[:, 0] == -1).all()
    assert_allclose(np.bincount(plan[:, 1], minlength=3) / 3000, 1 / 3, atol=0.04)


def test_each_lane_and_step_tosses_its_own_coin() -> None:
    """With one coin for the whole vector all lanes would explore together (CleanRL's and SB3's DQN)."""
    lanes, steps = 8, 4000
    explored = explore(np.full(lanes, 0.3), steps, 2, np.random.default_rng(5)) >= 0
    assert_allclose(explored.mean(0), 0.3, atol=0.03)
    assert_allclose(np.asarray(np.corrcoef(explored.T))[~np.eye(lanes, dtype=bool)], 0, atol=0.07)  # 4 standard errors
    successive = np.asarray(np.corrcoef(explored[:-1].ravel(), explored[1:].ravel()))[0, 1]
    assert_allclose(successive, 0, atol=0.03)


def test_whether_and_how_are_independent() -> None:
    """An exploring lane takes each action equally often, however rarely it explores."""
    plan = explore(np.full(8, 0.05), 20_000, 4, np.random.default_rng(8))
    assert_allclose(np.bincount(plan[plan >= 0], minlength=4) / (plan >= 0).sum(), 0.25, atol=0.02)


def test_lanes_have_their_own_epsilon() -> None:
    explored = explore(np.array([0.1, 0.5, 0.9]), 3000, 2, np.random.default_rng(6)) >= 0
    assert_allclose(explored.mean(0), [0.1, 0.5, 0.9], atol=0.04)


def test_the_same_seed_explores_the_same() -> None:
    first, again = (explore(np.full(4, 0.5), 50, 3, np.random.default_rng(2)) for _ in range(2))
    assert_array_equal(first, again)


class Always:
    """A policy that values action 2 most, and counts its calls in its state."""

    def initial_state(self, lanes: int) -> PolicyState:
        return {"calls": np.zeros(lanes, np.int64)}

    def __call__(self, obs: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        return np.tile(np.array([-5, -6, 7, -8], np.float32), (len(obs), 1)), {"calls": state["calls"] + 1}


def test_with_epsilon_each_lane_takes_now_and_then_any_action_that_is_allowed() -> None:
    """And the policy's own state goes on, whatever was taken."""
    lanes, steps = 50, 400
    policy = EpsilonGreedy(Always(), 0.2, np.random.default_rng(4))
    state, taken = policy.initial_state(lanes), []
    mask = np.array([[1, 1, 1, 0]], np.uint8)
    for _ in range(steps):
        q, state = policy(np.zeros((lanes, 1)), state)
        taken.append(allowed(q, np.repeat(mask, lanes, 0)).argmax(1))
    shares = np.bincount(np.concatenate(taken), minlength=4) / (lanes * steps)
    assert_allclose(shares, [0.2 / 3, 0.2 / 3, 0.8 + 0.2 / 3, 0], atol=0.01)
    assert_array_equal(state["calls"], np.full(lanes, steps))
    together = np.corrcoef((np.array(taken) != 2).T.astype(float))
    assert np.abs(together[~np.eye(lanes, dtype=bool)]).max() < 0.3, "each lane tosses a coin of its own"


@pytest.mark.parametrize("module", ["actors.builders", "actors.worker"])
def test_an_actor_never_imports_torch(module: str) -> None:
    """175 MB and seconds in every process. One chunk is acted, encoded and sent, since imports hide in functions."""
    program = f"""
import sys
import {module}
from actors.actor_id import ActorId
from actors.builders import build_actor, build_evaluator
from actors.config import ActorConfig, EnvConfig, EvalConfig
from learner.networks import NetworkSpec
from learner.weights import pack
from replay.credit import Credit, pack_credit
from replay.chunk_log.memory_log import MemoryLog
import numpy as np
env = EnvConfig(id="CartPole-v1")
log = MemoryLog()
layer = np.ones((2, 4), np.float32), np.zeros(2, np.float32)
weights = pack(1, 0, 0, {{"head.linear.weight": layer[0], "head.linear.bias": layer[1]}})
log.take_lease(1)
log.publish(1, pack_credit({{0: Credit(1, 0, 1000)}}), weights)
network = NetworkSpec()
rollout = build_actor(ActorId("r", 0, 0, 1, 1), env, ActorConfig(lanes=2), network, log)
assert rollout.ready()
rollout.fill()
assert rollout.send()
build_evaluator(env, EvalConfig(screen_episodes=1), network, 0).screen(weights)
print(sorted(name for name in sys.modules if name == "torch" or name.startswith("torch.")))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "[]"
