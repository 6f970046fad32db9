"""The greedy evaluator: plays whole episodes. What they show is decided in actors/verdicts.py."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy.typing as npt

from actors.config import EvalConfig
from actors.contract import Env
from actors.episodes import Episodes, play
from actors.players import Players
from actors.policy import Acting, Policy
from actors.seeds import evaluation_seed, evaluation_seeds_from
from actors.verdicts import Spent, episodes_of, error_of, lower_bound
from learner.networks.portable import PolicyState
from learner.weights import unpack
from replay.breakable import Breakable, breakable
from replay.state import State, count

Array = npt.NDArray[Any]
LANES = 20
"""Episodes that are played side by side."""
CHECK_S = 0.2
"""Seconds between two looks at whether the evaluation is to stop."""


class EvaluationStopped(Exception):
    """An evaluation that was asked to stop."""


class EvaluationResult(NamedTuple):
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
        reason = f"{which}, failed: mean {self.confirmed.mean:.4g} over {len(returns)} episodes"
        if self.lower is None:
            return f"{reason}, below eval.threshold {threshold:g}"
        reason += f", its lower bound {self.lower:.4g} is below eval.threshold {threshold:g}"
        if returns.min() < returns.max():
            return reason
        more = "more episodes (eval.confirm_episodes) raise the bound, and never as far as that"
        if returns[0] > threshold:
            more = "or more episodes, by a greater eval.confirm_episodes"
        return (
            f"{reason}; all of them returned {returns[0]:g}, and so many without a worse one prove no more: resume "
            f"with --eval.threshold {_rounded_down(self.lower):g} or lower; {more}"
        )


def _rounded_down(value: float) -> float:
    """Returns the greatest number of three digits that is not above the value."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1.0
    return math.floor(value / unit) * unit


class TimeUp(Exception):
    """A hold-out that has to end."""


class _Until:
    """A policy that raises TimeUp once ``over()``."""

    def __init__(self, policy: Policy, over: Callable[[], bool]) -> None:
        self._policy, self._over = policy, over
        self.initial_state = policy.initial_state

    def __call__(self, obs: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        if self._over():
            raise TimeUp
        return self._policy(obs, state)


class Evaluator(Breakable):
    """Screens candidates and confirms those that pass, never on a seed twice."""

    def __init__(
        self,
        players: Players,
        policy: Policy,
        config: EvalConfig,
        seed: int,
        restart: int,
        stopped: Callable[[], bool],
    ) -> None:
        """``restart`` counts the evaluators of this run before this one, whose seeds are not played again. Where
        ``stopped()`` becomes true, what is being played ends with EvaluationStopped."""
        self._stopped, self._checked_s = stopped, time.monotonic()
        self._players, self._policy, self._config = players, policy, config
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
    def screen(self, candidate: bytes, spent: Spent = Spent()) -> EvaluationResult:  # noqa: B008
        """Plays a packed policy: the screen, and where its mean reaches the threshold the confirming episodes.

        ``spent``: what the run's confirmations before this one have used up.
        """
        started = time.process_time()
        header, arrays = unpack(candidate)
        self._policy.load(arrays)
        threshold = self._config.threshold
        screen = self._play(self._config.screen_episodes)
        screened = time.process_time()
        if threshold is None or screen.mean < threshold:
            cost, remade = screened - started, self._players.pop_remade()
            return EvaluationResult(
                header.version, header.updates, screen, None, False, cost, spent=spent, remade=remade
            )
        number = spent.confirmations + 1
        confirmed, lower = self._confirm(threshold, number, min(spent.worst, float(screen.returns.min())))
        spent = Spent(number, float(min(spent.worst, screen.returns.min(), confirmed.returns.min())))
        now = time.process_time()
        solved = lower is not None and lower >= threshold
        costs, remade = (now - started, now - screened), self._players.pop_remade()
        return EvaluationResult(header.version, header.updates, screen, confirmed, solved, *costs, lower, spent, remade)

    def _confirm(self, threshold: float, number: int, worst: float) -> tuple[Episodes, float | None]:
        """Returns the episodes of the run's ``number``-th confirmation, and the bound; gives up after half of them
        where their mean is below the threshold, which can only miss a solution."""
        alpha, first = self._config.alpha, self._config.confirm_episodes
        count = episodes_of(first, alpha, number)
        half = self._play(count - count // 2)
        if half.mean < threshold:
            return half, None
        played = half.plus(self._play(count // 2))
        return played, float(lower_bound(played.returns, error_of(alpha, number), worst))

    @breakable
    def holdout(self, candidate: bytes, seconds: float, skip: Callable[[], bool] = lambda: False) -> Episodes | None:
        """Plays a packed policy once more, whatever comes of it: whole rounds of episodes side by side, as many of
        ``eval.holdout_episodes`` as ``seconds`` allow, until ``skip()``; None where no round was finished."""
        end_s = time.monotonic() + seconds
        self._policy.load(unpack(candidate)[1])
        policy = _Until(self._policy, lambda: time.monotonic() > end_s or skip())
        played: Episodes | None = None
        with contextlib.suppress(TimeUp):
            while (left := self._config.holdout_episodes - (len(played.returns) if played else 0)) > 0:
                further = self._play(min(len(self._players.envs), left), policy)
                played = further if played is None else played.plus(further)
        return played

    def _play(self, episodes: int, policy: Acting | None = None) -> Episodes:
        seeds = [evaluation_seed(number) for number in range(self._next_seed, self._next_seed + episodes)]
        self._next_seed += episodes
        players, limit = self._players, self._config.max_episode_steps
        return play(players.envs, policy or self._policy, seeds, limit, players.replace, self._check_stopped)

    def restart(self) -> None:
        """Closes the environments and makes them anew; the next seed is kept."""
        self._players.make_anew()
        self._broken_by = None

    def _check_stopped(self, env: Env) -> None:
        del env
        if time.monotonic() - self._checked_s > CHECK_S:
            self._checked_s = time.monotonic()
            if self._stopped():
                raise EvaluationStopped

    def close(self) -> list[str]:
        """Closes the environments; returns a line for each that did not let itself be closed."""
        return self._players.close()
