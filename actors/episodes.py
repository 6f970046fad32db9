"""Plays whole episodes greedily, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from actors.contract import Env, columns_of, name_of
from actors.errors import ContractError
from actors.players import Replace, no_other
from actors.policy import Acting, carried
from actors.verdicts import skewed_bound
from learner.networks.portable import allowed, fed
from replay.chunk import ACTION_MASK, MAX_REWARD

Array = npt.NDArray[Any]
RANK_ERROR = 0.025
"""Error of the bounds that policies are ranked by: the same for all of them, so that they compare."""


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
    def stderr(self) -> float | None:
        """Standard error of the mean; None of a single episode, of which it cannot be estimated."""
        return self.std / len(self.returns) ** 0.5 if len(self.returns) > 1 else None

    def plus(self, others: Episodes) -> Episodes:
        """Returns these episodes and the others after them."""
        return Episodes(*(np.concatenate(pair) for pair in zip(self, others, strict=True)))

    @property
    def cautious(self) -> float:
        """A lower bound of the mean, to rank policies by: the greatest of many means is too high."""
        return float(skewed_bound(self.returns, RANK_ERROR))


def play(
    envs: Sequence[Env],
    policy: Acting,
    seeds: Sequence[int],
    max_episode_steps: int = 27_000,
    replace: Replace = no_other,
    seen: Callable[[Env], None] = lambda env: None,
) -> Episodes:
    """Plays one whole episode per seed, so that short episodes are not favoured.

    An environment that has finished its episode takes the next seed, until none is left. One that raises is replaced,
    and its episode is played again from its beginning, with its seed. ``max_episode_steps`` bounds the episodes of
    environments without a limit of their own, where a greedy policy may walk in circles for ever. ``seen`` is called
    with an environment after each reset and step.

    Raises:
        ContractError: an observation is not finite, or a reward none that float32 holds.
    """
    if not envs:
        raise ValueError("there is no environment to play in")
    games = _Games(envs, seeds, max_episode_steps, replace, seen)
    state = policy.initial_state(len(games.observations))
    while games.observations:
        for stage in games.observations:
            seen(games.stages[stage])
        q, state = policy(np.stack(list(games.observations.values())), state)
        if games.masks:
            q = allowed(q, np.stack([games.masks[stage] for stage in games.observations]))
        actions, stages = q.argmax(1), list(games.observations)
        kept, begun = games.step(actions.tolist())
        if state:
            state = fed(state, actions, np.array([games.rewards[stage] for stage in stages]))
            state = carried(policy, state, np.array(kept, np.int64), np.array(begun, np.int64))
    return Episodes(games.returns, games.lengths)


class _Games:
    """Episodes that are being played, each on a stage of its own: one of the environments."""

    def __init__(
        self,
        envs: Sequence[Env],
        seeds: Sequence[int],
        max_episode_steps: int,
        replace: Replace,
        seen: Callable[[Env], None],
    ) -> None:
        """Begins the first episodes."""
        self._seeds, self._limit, self._replace, self._seen = seeds, max_episode_steps, replace, seen
        self.returns, self.lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
        self._waiting = list(range(len(seeds)))[::-1]
        self._playing = {stage: self._waiting.pop() for stage in range(min(len(envs), len(seeds)))}
        self.stages = dict(enumerate(envs))
        self._masked = any(column.name == ACTION_MASK for column in columns_of(envs[0]))
        self.masks: dict[int, Array] = {}
        """The newest action masks <uint8>[A] by stage, where masks hold."""
        self.rewards = dict.fromkeys(self._playing, 0.0)
        """The newest by stage."""
        self.observations = {stage: self._begin(stage) for stage in self._playing}
        """The newest by stage, of the episodes that are being played."""

    def _begin(self, stage: int) -> Any:
        """Returns the first observation of the episode that is to be played on a stage."""
        while True:
            index = self._playing[stage]
            self.returns[index], self.lengths[index] = 0.0, 0
            try:
                env = self.stages[stage]
                obs, infos = env.reset(seed=int(self._seeds[index]))
                if self._masked:
                    self._mask(stage, infos)
                return _finite(env, obs, 0.0)
            except Exception as error:  # an environment may raise anything
                self.stages[stage] = self._replace(stage, error)

    def step(self, actions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Steps each environment that plays, in the order of ``observations``.

        Returns where the observations that are left stood before, and the positions of those that begin an episode.
        """
        kept: list[int] = []
        begun: list[int] = []
        for position, (stage, action) in enumerate(zip(list(self.observations), actions, strict=True)):
            went_on = self._step(stage, action)
            if not went_on and stage not in self._playing:
                continue
            if not went_on:
                begun.append(len(kept))
            kept.append(position)
        return kept, begun

    def _step(self, stage: int, action: int) -> bool:
        """Steps one environment. Returns whether its episode is not over; where it is, another one is begun, if
        there is one."""
        env, index = self.stages[stage], self._playing[stage]
        try:
            obs, reward, terminated, truncated, infos = env.step(action)
            self.observations[stage] = _finite(env, obs, float(reward))
            self.rewards[stage] = float(reward)
            if self._masked and not (terminated or truncated):
                self._mask(stage, infos)
        except Exception as error:  # an environment may raise anything
            self.stages[stage] = self._replace(stage, error)
            self.observations[stage] = self._begin(stage)
            return False
        self.returns[index] += float(reward)
        self.lengths[index] += 1
        if not (terminated or truncated or self.lengths[index] >= self._limit):
            return True
        self._seen(env)
        if self._waiting:
            self._playing[stage] = self._waiting.pop()
            self.observations[stage] = self._begin(stage)
        else:
            del self._playing[stage], self.observations[stage]
        return False

    def _mask(self, stage: int, infos: Mapping[str, Any]) -> None:
        """Keeps the newest action mask of a stage, whose episode is not over."""
        self.masks[stage] = infos[ACTION_MASK]
        if not self.masks[stage].any():
            raise ContractError(f"{name_of(self.stages[stage])}: its action_mask allows no action, in an evaluation")


def _finite(env: Env, obs: Any, reward: float) -> Any:
    """Returns the observation.

    Raises:
        ContractError: it is not finite, or the reward is none that float32 holds, which training refuses, too.
    """
    if not abs(reward) <= MAX_REWARD:  # a sum of greater ones, and of their squares, would be infinite
        raise ContractError(f"{name_of(env)} returned the reward {reward}, which float32 has to hold, in an evaluation")
    if obs.dtype.kind == "f" and not np.isfinite(obs).all():
        what = f"an observation that is not finite as {obs.dtype}, in an evaluation"
        raise ContractError(f"{name_of(env)} returned {what}")
    return obs
