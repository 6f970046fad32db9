"""Observations that a run's policy meets: as the environment returns them, and as the network is given them."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from actors.contract import Env, columns_of, name_of
from actors.envs import checked_of
from actors.errors import ContractError, EnvError
from actors.policy import Policy
from actors.supervision.restarts import cause
from learner.networks.portable import REWARD, PolicyState, allowed, fed
from replay.chunk import ACTION_MASK

Array = npt.NDArray[Any]
EXPLORED = 0.2
"""Share of random actions, so that not all episodes are alike."""
NONE: PolicyState = MappingProxyType({})
"""The state of a network without a recurrent core."""


class Observed(NamedTuple):
    """N observations in their order: the environment's own, what the network is given of each
    <dtype>[N, (stack,) *shape], the action masks <uint8>[N, A] where they hold, and which begin an episode; the
    recurrent state at each, arrays [N, width] by name."""

    raw: list[Any]
    given: Array
    masks: Array | None
    begins: list[bool]
    state: PolicyState = NONE


class _Keeping(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what the environment within returned last."""

    newest: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        begun = self.env.reset(seed=seed, options=options)
        self.newest = copy.deepcopy(begun[0])  # the environment may write into the same array again
        return begun

    def step(self, action: Any) -> Any:
        stepped = self.env.step(action)
        self.newest = copy.deepcopy(stepped[0])
        return stepped


def observe(env: Env, policy: Policy, count: int, seed: int, max_episode_steps: int) -> Observed:
    """Plays an environment that ``make_env`` made until so many observations are met.

    Raises:
        EnvError: it raised.
    """
    checked = checked_of(env)
    assert checked is not None
    keeping = checked.env = _Keeping(checked.env)
    try:
        return _observe(env, keeping, policy, count, seed, max_episode_steps)
    except EnvError:
        raise
    except Exception as error:  # an environment may raise anything
        raise EnvError(f"{name_of(env)} raised {cause(error)}; its policy is not exported") from error


def _observe(env: Env, keeping: _Keeping, policy: Policy, count: int, seed: int, max_episode_steps: int) -> Observed:
    rng, masked = np.random.default_rng(seed), any(column.name == ACTION_MASK for column in columns_of(env))
    raw, given, masks, begins, states = list[Any](), list[Array](), list[Array](), list[bool](), list[PolicyState]()
    state = policy.initial_state(1)
    explored = 0.0 if REWARD in state else EXPLORED  # an exported policy takes its own actions for the previous ones
    while len(raw) < count:
        obs, infos = env.reset(seed=seed + sum(begins))
        state, over, steps = policy.initial_state(1), False, 0
        while not over and len(raw) < count:
            raw.append(keeping.newest)
            given.append(np.array(obs))
            begins.append(steps == 0)
            states.append(state)
            q, state = policy(given[-1][None], state)
            mask = infos[ACTION_MASK] if masked else np.ones(q.shape[1], np.uint8)
            if not mask.any():
                raise ContractError(f"{name_of(env)}: its action_mask allows no action, and the episode is not over")
            masks.append(mask)
            greedy = int(allowed(q, mask[None]).argmax())
            action = int(rng.choice(np.flatnonzero(mask))) if rng.random() < explored else greedy
            obs, reward, terminated, truncated, infos = env.step(action)
            state = fed(state, np.array([action]), np.array([reward]))
            steps += 1
            over = bool(terminated or truncated or steps >= max_episode_steps)
    before = {name: np.concatenate([each[name] for each in states]) for name in state}
    return Observed(raw, np.stack(given), np.stack(masks) if masked else None, begins, before)
