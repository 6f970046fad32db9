"""The greedy evaluator: plays whole episodes, and says when a policy has solved its environment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from actors.config import EnvConfig, EvalConfig
from actors.envs import make_env, schema_of
from actors.policy import make_policy
from actors.seeds import evaluation_seed, evaluation_seeds_from
from learner.networks import NetworkSpec
from learner.weights import unpack
from replay.breakable import Breakable, breakable
from replay.state import State

Array = npt.NDArray[Any]
LANES = 20
"""Episodes that are played side by side."""


class Episodes(NamedTuple):
    """Returns <float64>[episodes] and lengths in env steps <int64>[episodes], in the seeds' order."""

    returns: Array
    lengths: Array

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns (one degree of freedom less)."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def lower(self) -> float:
        """Mean less 2 standard errors: what a fresh evaluation falls below about once in forty times."""
        return self.mean - 2 * self.std / math.sqrt(len(self.returns))


def play(
    envs: Sequence[gym.Env[Any, Any]],
    act: Callable[[Array], Array],
    seeds: Sequence[int],
    max_episode_steps: int = 27_000,
) -> Episodes:
    """One whole episode per seed, so that short episodes are not favoured. ``act``: [K, *input_shape] to actions [K].

    An environment that has finished its episode takes the next seed, until none is left. ``max_episode_steps`` bounds
    the episodes of environments without a limit of their own, where a greedy policy may walk in circles for ever.
    """
    waiting = list(enumerate(seeds))[::-1]
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    playing: list[tuple[gym.Env[Any, Any], int]] = []
    observations: list[Any] = []
    for env in envs[: len(seeds)]:
        index, seed = waiting.pop()
        playing.append((env, index))
        observations.append(env.reset(seed=seed)[0])
    while playing:
        actions = act(np.stack(observations)).tolist()
        still, observed = [], []
        for (env, index), action in zip(playing, actions, strict=True):
            obs, reward, terminated, truncated, _ = env.step(action)
            returns[index] += float(reward)
            lengths[index] += 1
            if not (terminated or truncated or lengths[index] >= max_episode_steps):
                still.append((env, index))
                observed.append(obs)
            elif waiting:
                following, seed = waiting.pop()
                still.append((env, following))
                observed.append(env.reset(seed=seed)[0])
        playing, observations = still, observed
    return Episodes(returns, lengths)


class Verdict(NamedTuple):
    """What an evaluation found. ``confirmed`` is there where the screen passed; ``seconds`` is its CPU time."""

    version: int
    updates: int
    screen: Episodes
    confirmed: Episodes | None
    solved: bool
    seconds: float

    @property
    def episodes(self) -> Episodes:
        """The most thorough evaluation: the confirming episodes where there are any."""
        return self.confirmed or self.screen


class Evaluator(Breakable):
    """Screens candidates and confirms those that pass, never on a seed twice."""

    def __init__(self, env: EnvConfig, config: EvalConfig, network: NetworkSpec, seed: int, restart: int = 0) -> None:
        """``restart`` counts the evaluators of this run before this one, whose seeds are not played again."""
        self._config = config
        self._envs = [make_env(env, training=False) for _ in range(min(LANES, config.confirm_episodes))]
        self._policy = make_policy(network, schema_of(self._envs[0]))
        self._next_seed = evaluation_seeds_from(seed, restart)

    def state(self) -> State:
        """See ``replay.state``: which seed comes next."""
        return State({"next_seed": self._next_seed}, {})

    def restore(self, state: State) -> None:
        """See ``replay.state``."""
        self._next_seed = state.values["next_seed"]

    @breakable
    def screen(self, candidate: bytes) -> Verdict:
        """Play a packed policy: the screen, and where its mean reaches the threshold the confirming episodes."""
        started = time.process_time()
        header, arrays = unpack(candidate)
        self._policy.load(arrays)
        threshold = self._config.threshold
        screen = self._play(self._config.screen_episodes)
        confirmed = None
        if threshold is not None and screen.mean >= threshold:
            confirmed = self._play(self._config.confirm_episodes)
        solved = confirmed is not None and threshold is not None and confirmed.lower >= threshold
        seconds = time.process_time() - started
        return Verdict(header.version, header.updates, screen, confirmed, solved, seconds)

    def _play(self, episodes: int) -> Episodes:
        seeds = [evaluation_seed(number) for number in range(self._next_seed, self._next_seed + episodes)]
        self._next_seed += episodes
        return play(self._envs, lambda obs: self._policy(obs).argmax(1), seeds, self._config.max_episode_steps)
