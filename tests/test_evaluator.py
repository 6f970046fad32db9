"""The greedy evaluator: one whole episode per seed, fresh seeds, and what counts as solved."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scripted_env
from numpy.testing import assert_allclose, assert_array_equal

from actors.actor_id import ActorId
from actors.builders import build_evaluator
from actors.config import EnvConfig, EvalConfig
from actors.envs import make_env
from actors.episodes import Episodes, play
from actors.errors import EnvError
from actors.evaluator import EvaluationResult, EvaluationStopped
from actors.lanes import LaneError
from actors.players import Players
from actors.seeds import PLAYBACK
from actors.verdicts import Spent
from learner.networks import NetworkSpec
from learner.networks.portable import PolicyState
from learner.weights import pack

Array = npt.NDArray[Any]
NOTHING = Spent()
FIXED = EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": (4,)})


class LuckEnv(scripted_env.ScriptedEnv):
    """The seed decides an episode's length, 1 to 40; each env step is worth 1, and an unseeded reset is an error."""

    played: list[int]

    def __init__(self, played: list[int]) -> None:
        super().__init__()
        self.played = played

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert seed is not None
        self.played.append(seed)
        self._lengths = (1 + seed * 7919 % 40,)
        return super().reset(seed=seed)

    def step(self, action: np.int64) -> Any:
        obs, _, *rest = super().step(action)
        return (obs, 1.0, *rest)


def length_of(seed: int) -> int:
    return 1 + seed * 7919 % 40


class Chooses:
    """A feed-forward policy by what it chooses: obs [K, ...] to actions <int64>[K]."""

    def __init__(self, act: Callable[[Array], Array]) -> None:
        self._act = act

    def initial_state(self, lanes: int) -> PolicyState:
        return {}

    def __call__(self, obs: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        return np.eye(2, dtype=np.float32)[self._act(obs)], state


ZEROS = Chooses(lambda obs: np.zeros(len(obs), np.int64))


@pytest.mark.parametrize(("envs", "episodes"), [(1, 5), (4, 30), (8, 3), (20, 20)])
def test_exactly_one_whole_episode_per_seed(envs: int, episodes: int) -> None:
    """In the seeds' order, however many environments share the work: what finishes early does not count more often."""
    played: list[int] = []
    seeds = range(100, 100 + episodes)
    result = play([LuckEnv(played) for _ in range(envs)], ZEROS, seeds)
    assert sorted(played) == list(seeds)
    assert_array_equal(result.lengths, [length_of(seed) for seed in seeds])
    assert_array_equal(result.returns, result.lengths)


def test_actions_reach_their_environment() -> None:
    """Rewards are negative for action 1: the policy sees which environment is which, also when some have finished."""
    seeds, seen = [5, 6, 7], set()

    def act(obs: Array) -> Array:
        seen.add(len(obs))
        return np.asarray(obs[:, 0] == 6).astype(np.int64)

    lengths = {5: 2, 6: 4, 7: 3}
    envs = [scripted_env.ScriptedEnv(lengths=(lengths[seed],)) for seed in seeds]
    result = play(envs, Chooses(act), seeds)
    assert_array_equal(result.returns, [0 + 1, -(0 + 1 + 2 + 3), 0 + 1 + 2])
    assert_array_equal(result.lengths, [2, 4, 3])
    assert seen == {3, 2, 1}


def test_an_endless_episode_is_cut() -> None:
    """A greedy policy may walk in circles for ever."""
    result = play([scripted_env.ScriptedEnv(lengths=(10**9,))], ZEROS, [1, 2], max_episode_steps=50)
    assert_array_equal(result.lengths, [50, 50])


class Breaking(LuckEnv):
    """A LuckEnv that raises in the third env step of its life, where ``breaks``."""

    def __init__(self, played: list[int], breaks: bool) -> None:
        super().__init__(played)
        self._left = 3 if breaks else 10**9

    def step(self, action: np.int64) -> Any:
        self._left -= 1
        if self._left == 0:
            raise OSError("the bridge is down")
        return super().step(action)


def test_an_episode_that_raised_is_played_again_with_its_seed() -> None:
    """As if nothing had been: its half is not counted, the others' go on."""
    played, replaced, seeds = list[int](), list[tuple[int, str]](), range(100, 112)

    def replace(place: int, error: Exception) -> Any:
        replaced.append((place, str(error)))
        return Breaking(played, breaks=False)

    result = play([Breaking(played, breaks=True) for _ in range(3)], ZEROS, seeds, replace=replace)
    assert_array_equal(result.lengths, [length_of(seed) for seed in seeds])
    assert_array_equal(result.returns, result.lengths)
    assert sorted(replaced) == [(place, "the bridge is down") for place in range(3)]
    assert sorted(set(played)) == list(seeds)
    assert len(played) == len(seeds) + 3


def test_players_make_anew_within_a_budget_and_close_all(tmp_path: Path) -> None:
    book = tmp_path / "book"
    config = EnvConfig(id="strange_env:Strange-v0", kwargs={"kind": "raises", "after": 7, "book": str(book)})
    with Players(config, 2) as players:
        with pytest.raises(
            LaneError, match=r"environment [01] of .*Strange-v0 died 6 .*qherd allows 5.*RuntimeError: the bridge"
        ):
            play(players.envs, ZEROS, [1, 2], replace=players.replace)
        remade = players.pop_remade()
        assert set(remade) == {f"environment {place}: RuntimeError: the bridge is down" for place in range(2)}
    words = book.read_text().split()
    assert words.count("made") == words.count("closed") == 2 + len(remade)


@pytest.mark.parametrize("reward", [math.nan, math.inf, 1e200, -3.5e38])
def test_a_reward_that_float32_cannot_hold_is_refused_as_in_training(reward: float) -> None:
    """The sum of some, and of their squares, would be infinite: no mean, no deviation and no JSON."""
    env = scripted_env.ScriptedEnv(lengths=(5,), bad_reward=reward)
    with pytest.raises(EnvError, match=re.escape(f"returned the reward {reward}, which float32 has to hold, in an ev")):
        play([env], ZEROS, [1])


def test_an_observation_that_is_not_finite_is_refused() -> None:
    env = scripted_env.ScriptedEnv(lengths=(5,), bad_obs=math.inf)
    with pytest.raises(EnvError, match="an observation that is not finite as float32, in an evaluation"):
        play([env], ZEROS, [1])


def test_an_evaluation_can_be_stopped() -> None:
    """However long its episodes are."""
    endless = EnvConfig(id="scripted_env:Scripted-v0", kwargs={"lengths": (10**9,)})
    asked = iter([False, True])
    config = EvalConfig(max_episode_steps=10**9)
    evaluator = build_evaluator(endless, config, NetworkSpec(), 0, stopped=lambda: next(asked))
    with pytest.raises(EvaluationStopped):
        evaluator.screen(policy())


def test_mean_and_std_by_hand() -> None:
    """Of 2, 4, 6: mean 4, standard deviation 2; a single episode ranks as what it returned."""
    episodes = Episodes(np.array([2.0, 4.0, 6.0]), np.array([1, 1, 1]))
    assert (episodes.mean, episodes.std) == (4, 2)
    assert episodes.cautious == pytest.approx(4 - 4.3027 * 2 / math.sqrt(3), rel=1e-3)
    assert Episodes(np.array([3.0]), np.array([1])).cautious == 3


def policy(version: int = 9, updates: int = 77, action: int = 0) -> bytes:
    """Always the same action."""
    bias = np.eye(2, dtype=np.float32)[action]
    return pack(version, updates, 0, {"head.linear.weight": np.zeros((2, 3), np.float32), "head.linear.bias": bias})


Scripted = Callable[..., tuple[EvaluationResult, list[list[int]]]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Screens one policy where play returns the given returns; the verdict, and the seeds that were played."""

    def screen(
        returns: list[list[float]], threshold: float | None, spent: Spent = NOTHING
    ) -> tuple[EvaluationResult, list[list[int]]]:
        seeds_played = []

        def fake(envs: Any, act: Any, seeds: Any, *_: Any) -> Episodes:
            seeds_played.append(list(seeds))
            values = np.resize(returns[len(seeds_played) - 1], len(seeds))
            return Episodes(values, np.ones(len(seeds), np.int64))

        monkeypatch.setattr("actors.evaluator.play", fake)
        config = EvalConfig(screen_episodes=20, confirm_episodes=100, threshold=threshold)
        return build_evaluator(FIXED, config, NetworkSpec(), 0).screen(policy(), spent), seeds_played

    return screen


def test_a_failed_screen_costs_no_confirmation(scripted: Scripted) -> None:
    verdict, seeds = scripted([[199.0]], 200)
    assert (verdict.confirmed, verdict.solved, len(seeds)) == (None, False, 1)
    assert verdict.episodes is verdict.screen
    assert (verdict.version, verdict.updates) == (9, 77)


def test_a_lucky_mean_does_not_solve(scripted: Scripted) -> None:
    """The confirming mean is 205 >= 200, its lower bound is below: of 165 and 245, half each, Clopper and Pearson's."""
    verdict, seeds = scripted([[250.0], [165.0, 245.0], [165.0, 245.0]], 200)
    assert verdict.confirmed is not None
    assert verdict.confirmed.mean == 205
    assert verdict.lower == pytest.approx(165 + 80 * 0.3983, abs=0.1)
    assert not verdict.solved
    assert [len(each) for each in seeds] == [20, 50, 50]
    assert len({seed for each in seeds for seed in each}) == 120
    assert tuple(verdict.spent) == (1, 165.0)
    assert verdict.episodes is verdict.confirmed


def test_solved_is_the_lower_bound_at_the_threshold(scripted: Scripted) -> None:
    verdict, _ = scripted([[200.0], [190.0, 230.0], [190.0, 230.0]], 200)
    assert verdict.lower is not None
    assert verdict.lower >= 200
    assert verdict.solved


def test_a_confirmation_that_goes_badly_is_given_up_after_half(scripted: Scripted) -> None:
    """Which costs a look all the same."""
    verdict, seeds = scripted([[250.0], [150.0, 249.0]], 200)
    assert [len(each) for each in seeds] == [20, 50]
    assert (verdict.solved, verdict.lower, verdict.spent) == (False, None, (1, 150.0))


def test_a_threshold_that_no_policy_can_prove_is_told_with_what_can_be(scripted: Scripted) -> None:
    """FrozenLake's best return is 1: a hundred of those prove 0.025^(1/100) and no more."""
    best, _ = scripted([[1.0]] * 3, 1.0)
    assert best.lower == pytest.approx(0.025 ** (1 / 100), rel=1e-6)
    assert best.unconfirmed(1.0) == (
        "confirmation 1, of update 77, failed: mean 1 over 100 episodes, its lower bound 0.9638 is below "
        "eval.threshold 1; all of them returned 1, and so many without a worse one prove no more: resume with "
        "--eval.threshold 0.963 or lower; more episodes (eval.confirm_episodes) raise the bound, and never as far as "
        "that"
    )
    assert scripted([[1.0]] * 3, 0.963)[0].solved
    above = scripted([[-1.0]] * 3, -1.01)[0].unconfirmed(-1.01)
    assert above.endswith("--eval.threshold -1.04 or lower; or more episodes, by a greater eval.confirm_episodes")
    assert scripted([[-1.0]] * 3, -1.04)[0].solved


def test_other_failed_confirmations_are_told_shortly(scripted: Scripted) -> None:
    lucky, given_up = scripted([[250.0], [165.0, 245.0], [165.0, 245.0]], 200)[0], scripted([[250.0], [150.0]], 200)[0]
    failed = "confirmation 1, of update 77, failed: mean"
    assert (
        lucky.unconfirmed(200) == f"{failed} 205 over 100 episodes, its lower bound 196.9 is below eval.threshold 200"
    )
    assert given_up.unconfirmed(200) == f"{failed} 150 over 50 episodes, below eval.threshold 200"
    for passed in (scripted([[199.0]], 200)[0], scripted([[200.0], [190.0, 230.0], [190.0, 230.0]], 200)[0]):
        assert passed.unconfirmed(200) == ""


def test_a_later_confirmation_plays_more_and_needs_more(scripted: Scripted) -> None:
    """The tenth one has twice as many episodes, and its bound is about as far from the mean."""
    verdict, seeds = scripted([[200.0], [190.0, 230.0], [190.0, 230.0]], 200, Spent(9, 100.0))
    assert [len(each) for each in seeds] == [20, 105, 104]
    assert verdict.spent == (10, 100.0)
    assert verdict.lower is not None
    assert 205 < verdict.lower < 190 + 40 * 0.3983, "as the first one, with its 100 episodes, would have shown"


def test_a_hold_out_plays_whole_rounds_until_its_time_is_up() -> None:
    """As many episodes as are asked for where there is time; what was not finished is left out."""
    config = EvalConfig(screen_episodes=3, confirm_episodes=3, holdout_episodes=7)
    evaluator = build_evaluator(FIXED, config, NetworkSpec(), 0)
    played = evaluator.holdout(policy(), 60.0)
    assert played is not None
    assert played.lengths.tolist() == [4] * 7
    assert evaluator.holdout(policy(), 0.0) is None
    steps = iter([False] * 6 + [True] * 100)
    cut = evaluator.holdout(policy(), 60.0, lambda: next(steps))
    assert cut is not None
    assert len(cut.returns) == 3
    assert evaluator.screen(policy()).screen.returns.size == 3, "a hold-out that was cut leaves the evaluator whole"


def test_without_a_threshold_nothing_is_solved(scripted: Scripted) -> None:
    verdict, seeds = scripted([[1e9]], None)
    assert (verdict.confirmed, verdict.solved, len(seeds)) == (None, False, 1)


def test_no_seed_is_played_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the same evaluator, nor after its restart, nor in training; and each has 31 bits."""
    played: list[int] = []

    def fake(envs: Any, act: Any, seeds: Any, *_: Any) -> Episodes:
        played.extend(seeds)
        return Episodes(np.zeros(len(seeds)), np.ones(len(seeds), np.int64))

    monkeypatch.setattr("actors.evaluator.play", fake)
    for seed in (0, 1):
        for restart in (0, 1, 2):
            evaluator = build_evaluator(FIXED, EvalConfig(threshold=0.0), NetworkSpec(), seed, restart)
            for _ in range(50):
                evaluator.screen(policy())
    assert len(set(played)) == len(played) == 2 * 3 * 50 * 120
    lanes = (ActorId("r", 7, slot, 9, incarnation).seeds(16)[0] for slot in range(9) for incarnation in range(1, 30))
    training = [seed for seeds in lanes for seed in seeds if seed is not None]
    assert 0 <= min(training) < max(training) < 2**30 <= min(played) < max(played) < 2**30 + 2**29
    assert PLAYBACK == 2**30 + 2**29


def test_a_real_evaluation_is_greedy() -> None:
    """Four env steps of the first scripted episodes, the chosen action in each; the time it took is counted."""
    evaluator = build_evaluator(FIXED, EvalConfig(screen_episodes=1, confirm_episodes=2), NetworkSpec(), 0)
    worse, better = evaluator.screen(policy(action=1)), evaluator.screen(policy(action=0))
    assert worse.screen.returns.tolist() == [-(0 + 1 + 2 + 3)]
    assert better.screen.returns.tolist() == [400 + 1 + 2 + 3]
    assert better.screen.lengths.tolist() == [4]
    assert 0 <= better.seconds < 5


def test_training_limits_do_not_shorten_the_evaluation() -> None:
    config = FIXED.model_copy(update={"max_episode_steps": 2})
    verdict = build_evaluator(config, EvalConfig(screen_episodes=1), NetworkSpec(), 0).screen(policy())
    assert verdict.screen.lengths.tolist() == [4]


def test_the_same_seeds_give_the_same_returns() -> None:
    envs = [make_env(EnvConfig(id="CartPole-v1"), training=False) for _ in range(3)]
    first, again = (play(envs, ZEROS, range(6)) for _ in range(2))
    assert_allclose(first.returns, again.returns)
    assert len(set(first.returns.tolist())) > 1


def test_a_screen_that_was_stopped_leaves_an_evaluator_that_plays_the_hold_out() -> None:
    """As at the end of a run whose budget is over in the middle of a screen: a stop breaks nothing."""
    asked = [True]
    config = EvalConfig(screen_episodes=2, confirm_episodes=2, holdout_episodes=4)
    evaluator = build_evaluator(FIXED, config, NetworkSpec(), 0, 0, lambda: asked[0])
    evaluator._checked_s = -math.inf  # it asks at once
    with pytest.raises(EvaluationStopped):
        evaluator.screen(policy())
    asked[0] = False
    played = evaluator.holdout(policy(), 60)
    assert played is not None
    assert_array_equal(played.lengths, [4] * 4)
