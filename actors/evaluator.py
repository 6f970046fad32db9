"""The greedy evaluator: plays whole episodes. What they show is decided in actors/verdicts.py."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from actors.config import EnvConfig, EvalConfig
from actors.contract import ContractError, Env, name_of
from actors.envs import schema_of
from actors.players import Players, Replace, no_other
from actors.policy import make_policy
from actors.seeds import evaluation_seed, evaluation_seeds_from
from actors.verdicts import Spent, episodes_of, error_of, lower_bound, skewed_bound
from learner.networks import NetworkSpec
from learner.weights import unpack
from replay.breakable import Breakable, breakable
from replay.state import State, count

Array = npt.NDArray[Any]
LANES = 20
"""Episodes that are played side by side."""
RANK_ERROR = 0.025
"""Error of the bounds that policies are ranked by: the same for all of them, so that they compare."""


ASK_S = 0.2
"""Seconds between two questions whether the evaluation is to stop."""


class EvaluationStopped(Exception):
    """An evaluation that was asked to stop."""


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

    def plus(self, others: Episodes) -> Episodes:
        """Returns these episodes and the others after them."""
        return Episodes(*(np.concatenate(pair) for pair in zip(self, others, strict=True)))

    @property
    def cautious(self) -> float:
        """A lower bound of the mean, to rank policies by: the greatest of many means is too high."""
        return float(skewed_bound(self.returns, RANK_ERROR))


def play(
    envs: Sequence[Env],
    act: Callable[[Array], Array],
    seeds: Sequence[int],
    max_episode_steps: int = 27_000,
    replace: Replace = no_other,
    seen: Callable[[Env], None] = lambda env: None,
) -> Episodes:
    """One whole episode per seed, so that short episodes are not favoured. ``act``: [K, *input_shape] to actions [K].

    An environment that has finished its episode takes the next seed, until none is left. One that raises is replaced,
    and its episode is played again from its beginning, with its seed. ``max_episode_steps`` bounds the episodes of
    environments without a limit of their own, where a greedy policy may walk in circles for ever. ``seen`` is called
    with an environment after each reset and step. Raises ContractError for what is not finite.
    """
    if not envs:
        raise ValueError("there is no environment to play in")
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    waiting = list(range(len(seeds)))[::-1]
    playing = {place: waiting.pop() for place in range(min(len(envs), len(seeds)))}
    stages = dict(enumerate(envs))

    def begin(place: int) -> Any:
        """The first observation of the episode that is to be played at ``place``."""
        while True:
            index = playing[place]
            returns[index], lengths[index] = 0.0, 0
            try:
                return _finite(stages[place], stages[place].reset(seed=int(seeds[index]))[0], 0.0)
            except Exception as error:  # an environment may raise anything
                stages[place] = replace(place, error)

    observations = {place: begin(place) for place in playing}
    while playing:
        for place in observations:
            seen(stages[place])
        actions = act(np.stack(list(observations.values()))).tolist()
        for place, action in zip(list(observations), actions, strict=True):
            env, index = stages[place], playing[place]
            try:
                obs, reward, terminated, truncated, _ = env.step(action)
                observations[place] = _finite(env, obs, float(reward))
            except Exception as error:  # an environment may raise anything
                stages[place] = replace(place, error)
                observations[place] = begin(place)
                continue
            returns[index] += float(reward)
            lengths[index] += 1
            if terminated or truncated or lengths[index] >= max_episode_steps:
                seen(env)
                if waiting:
                    playing[place] = waiting.pop()
                    observations[place] = begin(place)
                else:
                    del playing[place], observations[place]
    return Episodes(returns, lengths)


def _finite(env: Env, obs: Any, reward: float) -> Any:
    """The observation. Raises ContractError where it or the reward is not finite, as training does."""
    if not math.isfinite(reward):
        raise ContractError(f"{name_of(env)} returned the reward {reward} in an evaluation")
    if obs.dtype.kind == "f" and not np.isfinite(obs).all():
        what = f"an observation that is not finite as {obs.dtype}, in an evaluation"
        raise ContractError(f"{name_of(env)} returned {what}")
    return obs


class Verdict(NamedTuple):
    """What an evaluation found. ``confirmed`` is there where the screen passed: half of the episodes where their mean
    is below the threshold. ``lower``: the bound that decided; ``spent``: what the run has used up with this one.
    ``seconds``: CPU time, ``confirming_seconds`` of it for the confirmation."""

    version: int
    updates: int
    screen: Episodes
    confirmed: Episodes | None
    solved: bool
    seconds: float
    confirming_seconds: float = 0.0
    lower: float | None = None
    spent: Spent = Spent()
    remade: tuple[str, ...] = ()
    """A line for each environment that raised and was made anew."""

    @property
    def episodes(self) -> Episodes:
        """The most thorough evaluation: the confirming episodes where there are any."""
        return self.confirmed or self.screen

    def unconfirmed(self, threshold: float) -> str:
        """Returns why a confirmation has failed, and what to do where no policy could do better; empty where none has
        failed."""
        if self.confirmed is None or self.solved:
            return ""
        returns, which = self.confirmed.returns, f"confirmation {self.spent.confirmations}, of update {self.updates:,}"
        told = f"{which}, failed: mean {self.confirmed.mean:.4g} over {len(returns)} episodes"
        if self.lower is None:
            return f"{told}, below eval.threshold {threshold:g}"
        told += f", its lower bound {self.lower:.4g} is below eval.threshold {threshold:g}"
        if returns.min() < returns.max():
            return told
        more = "more episodes (eval.confirm_episodes) raise the bound, and never as far as that"
        if returns[0] > threshold:
            more = "or more episodes, by a greater eval.confirm_episodes"
        return (
            f"{told}; all of them returned {returns[0]:g}, and so many without a worse one prove no more: resume with "
            f"--eval.threshold {_rounded_down(self.lower):g} or lower; {more}"
        )


def _rounded_down(value: float) -> float:
    """Returns the greatest number of three digits that is not above the value."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1.0
    return math.floor(value / unit) * unit


class TimeUp(Exception):
    """A hold-out that has to end."""


class Evaluator(Breakable):
    """Screens candidates and confirms those that pass, never on a seed twice."""

    def __init__(
        self,
        env: EnvConfig,
        config: EvalConfig,
        network: NetworkSpec,
        seed: int,
        restart: int = 0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """``restart`` counts the evaluators of this run before this one, whose seeds are not played again. Where
        ``stopped()`` becomes true, what is being played ends with EvaluationStopped."""
        self._stopped, self._asked_s = stopped, time.monotonic()
        self._config = config
        self._env = env
        self._players = self._make_players()
        self._policy = make_policy(network, schema_of(self._players.envs[0]))
        self._next_seed = evaluation_seeds_from(seed, restart)

    def check_unbroken(self) -> None:
        """See ``Breakable``. A stop comes between env steps, and all episodes begin with a reset: it breaks nothing."""
        if isinstance(self._broken_by, EvaluationStopped):
            self._broken_by = None
        super().check_unbroken()

    def state(self) -> State:
        """See ``replay.state``: which seed comes next."""
        return State({"next_seed": self._next_seed}, {})

    def restore(self, state: State) -> None:
        """See ``replay.state``."""
        self._next_seed = count(state.values["next_seed"], "next_seed")

    @breakable
    def screen(self, candidate: bytes, spent: Spent = Spent()) -> Verdict:  # noqa: B008
        """Play a packed policy: the screen, and where its mean reaches the threshold the confirming episodes.

        ``spent``: what the run's confirmations before this one have used up.
        """
        started = time.process_time()
        header, arrays = unpack(candidate)
        self._policy.load(arrays)
        threshold = self._config.threshold
        screen = self._play(self._config.screen_episodes)
        screened = time.process_time()
        if threshold is None or screen.mean < threshold:
            cost, remade = screened - started, self._players.take_remade()
            return Verdict(header.version, header.updates, screen, None, False, cost, spent=spent, remade=remade)
        number = spent.confirmations + 1
        confirmed, lower = self._confirm(threshold, number, min(spent.worst, float(screen.returns.min())))
        spent = Spent(number, float(min(spent.worst, screen.returns.min(), confirmed.returns.min())))
        now = time.process_time()
        solved = lower is not None and lower >= threshold
        costs, remade = (now - started, now - screened), self._players.take_remade()
        return Verdict(header.version, header.updates, screen, confirmed, solved, *costs, lower, spent, remade)

    def _confirm(self, threshold: float, number: int, worst: float) -> tuple[Episodes, float | None]:
        """The episodes of the run's ``number``-th confirmation, and the bound; given up after half of them where their
        mean is below the threshold, which can only cost a verdict."""
        alpha, first = self._config.alpha, self._config.confirm_episodes
        count = episodes_of(first, alpha, number)
        half = self._play(count - count // 2)
        if half.mean < threshold:
            return half, None
        played = half.plus(self._play(count // 2))
        return played, float(lower_bound(played.returns, error_of(alpha, number), worst))

    @breakable
    def holdout(self, candidate: bytes, seconds: float, skip: Callable[[], bool] = lambda: False) -> Episodes | None:
        """Play a packed policy once more, whatever comes of it: whole rounds of episodes side by side, as many of
        ``eval.holdout_episodes`` as ``seconds`` allow, until ``skip()``; None where no round was finished."""
        end_s = time.monotonic() + seconds
        self._policy.load(unpack(candidate)[1])

        def act(obs: Array) -> Array:
            if time.monotonic() > end_s or skip():
                raise TimeUp
            return self._greedy(obs)

        played: Episodes | None = None
        with contextlib.suppress(TimeUp):
            while (left := self._config.holdout_episodes - (len(played.returns) if played else 0)) > 0:
                further = self._play(min(len(self._players.envs), left), act)
                played = further if played is None else played.plus(further)
        return played

    def _greedy(self, obs: Array) -> Array:
        actions: Array = self._policy(obs).argmax(1)
        return actions

    def _play(self, episodes: int, act: Callable[[Array], Array] | None = None) -> Episodes:
        seeds = [evaluation_seed(number) for number in range(self._next_seed, self._next_seed + episodes)]
        self._next_seed += episodes
        players, limit = self._players, self._config.max_episode_steps
        return play(players.envs, act or self._greedy, seeds, limit, players.replace, self._go_on)

    def _make_players(self) -> Players:
        return Players(self._env, min(LANES, max(self._config.screen_episodes, self._config.confirm_episodes)))

    def restart(self) -> None:
        """Close the environments and make them anew; the seeds go on."""
        self._players.close()
        self._players = self._make_players()
        self._broken_by = None

    def _go_on(self, env: Env) -> None:
        del env
        if time.monotonic() - self._asked_s > ASK_S:
            self._asked_s = time.monotonic()
            if self._stopped():
                raise EvaluationStopped

    def close(self) -> list[str]:
        """Close the environments; a line for each that did not let itself be closed."""
        return self._players.close()
