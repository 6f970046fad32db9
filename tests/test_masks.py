"""Action masks, from the infos to the target: what is not allowed is neither done nor valued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import masked_env
import numpy as np
import pytest
from cli_runs import qherd, summary
from grid_env import ACTIONS, GOAL, STATES, move
from gymnasium import spaces
from masked_env import MaskedGridEnv, mask_of
from numpy.testing import assert_array_equal
from test_known_answer import GAMMA, TOLERANCE, config

from actors.config import EnvConfig
from actors.contract import Checked, columns_of
from actors.envs import make_env, make_lanes, schema_of
from actors.episodes import play
from actors.errors import ContractError, EnvError
from actors.policy import DRAWS, draw, explore, make_policy
from actors.stepper import Stepper
from deploy.planning.preconditions import probe_env, resolved
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.inline import InlineSession
from learner.networks.portable import FORBIDDEN, allowed
from learner.weights import unpack
from replay.chunk import ACTION_MASK, BOUNDARY, Counters

MASKED = EnvConfig(id="masked_env:MaskedGrid-v0", action_mask="obey")


class Upwards:
    """Values the move up most, which is never allowed, in every state."""

    def initial_state(self, lanes: int) -> dict[str, Any]:
        del lanes
        return {}

    def __call__(self, obs: Any, state: Any) -> Any:
        return np.tile(np.array([9, 1, 2, 3], np.float32), (len(obs), 1)), state


# -- choosing


def test_forbidden_actions_are_worth_nothing_and_a_mask_of_zeros_says_nothing() -> None:
    q, mask = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[1, 0, 1, 0], [0, 0, 0, 0]], np.uint8)
    assert_array_equal(allowed(q, mask), [[0, FORBIDDEN, 2, FORBIDDEN], [4, 5, 6, 7]])


def test_each_allowed_action_is_drawn_equally_often() -> None:
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]], np.uint8)
    plan = explore(np.ones(3), 6000, DRAWS, np.random.default_rng(0))
    drawn = np.stack([draw(planned, mask) for planned in plan])
    for lane in range(3):
        counts = np.bincount(drawn[:, lane], minlength=5) / len(drawn)
        np.testing.assert_allclose(counts, mask[lane] / mask[lane].sum(), atol=0.03)


# -- what an environment's infos have to have


def test_a_mask_becomes_a_column() -> None:
    """<uint8>[A], beside the environment's own, whatever its dtype was."""
    env = make_env(MASKED, training=True)
    assert [(each.name, each.dtype, each.shape) for each in schema_of(env).extras] == [(ACTION_MASK, "uint8", (4,))]
    obs, infos = env.reset(seed=3)
    assert_array_equal(infos[ACTION_MASK], mask_of(int(obs.argmax())))
    assert infos[ACTION_MASK].dtype == np.uint8
    assert not schema_of(make_env(MASKED.model_copy(update={"action_mask": "ignore"}), training=True)).extras
    assert columns_of(Checked(MaskedGridEnv())) == ()


def test_a_mask_that_is_declared_as_a_column_is_obeyed_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    column = {ACTION_MASK: spaces.Box(0, 1, (4,), np.int8)}
    monkeypatch.setattr(MaskedGridEnv, "metadata", {"render_modes": [], "qherd_columns": column})
    tested = stepper(MASKED.model_copy(update={"action_mask": "ignore"}))
    columns, _ = tested.collect(explore(np.ones(3), 100, tested.draws, np.random.default_rng(1)), 1.0, Counters())
    inside = (columns.flags & BOUNDARY) == 0
    taken = np.take_along_axis(columns.extras[ACTION_MASK], columns.action[..., None], 2)[..., 0]
    assert taken[inside].all()
    assert not tested.pop_rebuilt()


@pytest.mark.parametrize(
    "mask", [None, np.ones(3, np.int8), np.ones((1, 4)), [1, 0, 2, 1], [0.5] * 4, ["yes"] * 4, [[1], [1, 1]]]
)
def test_what_is_no_mask_is_refused_in_words(mask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(MASKED, training=True)
    monkeypatch.setattr(MaskedGridEnv, "_infos", lambda self: {} if mask is None else {"action_mask": mask})
    with pytest.raises(ContractError, match=r"reset\(\) returned info\['action_mask'\] = .*; an array of 4 flags"):
        env.reset(seed=1)


# -- acting


def stepper(env: EnvConfig, lanes: int = 3) -> Stepper:
    envs = make_lanes(env, lanes)
    schema = schema_of(envs.envs[0])
    return Stepper(envs, list(range(lanes)), schema, Upwards(), 200, lambda: 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_actors_take_allowed_actions_only(epsilon: float) -> None:
    """The environment itself refuses others. The greatest Q value that a row has is that of an allowed action: 3, or
    less where the move to the left is not allowed; where an episode is over, the mask need not allow anything."""
    tested = stepper(MASKED)
    plan = explore(np.full(3, epsilon), 200, tested.draws, np.random.default_rng(1))
    columns, _ = tested.collect(plan, 1.0, Counters())
    states, mask = columns.obs.argmax(2), columns.extras[ACTION_MASK]
    inside = (columns.flags & BOUNDARY) == 0
    assert np.take_along_axis(mask, columns.action[..., None], 2)[..., 0][inside].all()
    q = np.array([9, 1, 2, 3], np.float32)
    for state in range(GOAL):
        here = inside & (states == state)
        assert here.any() or epsilon == 0
        assert_array_equal(mask[here], np.tile(mask_of(state), (here.sum(), 1)))
        assert_array_equal(columns.q_max[here], np.full(here.sum(), (q * mask_of(state)).max()))
    assert not tested.pop_rebuilt(), "no environment raised"


def test_a_lane_whose_mask_allows_nothing_is_named() -> None:
    tested = stepper(MASKED.model_copy(update={"kwargs": {"stuck": 4}}))
    with pytest.raises(EnvError, match=r"MaskedGrid-v0: the action_mask in lane \d allows no action"):
        tested.collect(explore(np.ones(3), 200, tested.draws, np.random.default_rng(1)), 1.0, Counters())


def test_evaluations_take_allowed_actions_only() -> None:
    """Side by side, while their number shrinks; greedy for the move up it goes left, then down, and never ends."""
    envs = [make_env(MASKED, training=False) for _ in range(3)]
    played = play(envs, Upwards(), [1, 2, 3, 4, 5, 6, 7], 40)
    assert played.lengths.tolist() == [40] * 7
    stuck = make_env(MASKED.model_copy(update={"kwargs": {"stuck": 6}}), training=False)
    with pytest.raises(ContractError, match="its action_mask allows no action, in an evaluation"):
        play([stuck], Upwards(), [1], 40)


# -- the whole


def value_iteration() -> Any:
    """Q* of the masked MDP <float64>[STATES - 1, ACTIONS]: the maximum is over what is allowed."""
    q, may = np.zeros((STATES, ACTIONS)), np.array([mask_of(state) for state in range(STATES)], bool)
    for _ in range(200):
        for state in range(GOAL):
            for action in range(ACTIONS):
                following, reward, terminated = move(state, action)
                best = 0 if terminated else q[following][may[following]].max()
                q[state, action] = reward + GAMMA * best
    return q[:GOAL], may[:GOAL]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="dqn", marks=pytest.mark.long),
        pytest.param({"learner__double": False}, id="max target", marks=pytest.mark.long),
        pytest.param(
            {"learner__algorithm": "qr_dqn", "learner__qr_dqn": {"quantiles": 5}}, id="qr_dqn", marks=pytest.mark.long
        ),
    ],
)
def test_inline_reaches_value_iteration_over_what_is_allowed(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of the allowed actions; of others nothing is ever learned. No environment is made anew for a forbidden one."""
    run = config(tmp_path, env={"id": MASKED.id, "path": Path(masked_env.__file__).parent}, **options)
    schema = probe_env(run)
    run = resolved(run, schema)
    assert run.env.action_mask == "obey"
    notices: list[str] = []
    session = InlineSession(run, RunDirectory.create(run), schema, notices.append)
    while session.loop.learner.updates < 1500:
        progress = session.advance()
    assert not progress.refused
    policy = make_policy(run.learner.network_spec, schema)
    policy.load(unpack(session.loop.candidate())[1])
    session.stop(1.0)
    assert not [line for line in notices if "forbidden" in line]
    expected, may = value_iteration()
    q, _ = policy(np.eye(STATES, dtype=np.float32)[:GOAL], policy.initial_state(GOAL))
    assert np.abs(q - expected)[may].max() < (1e-2 if "learner__algorithm" in options else TOLERANCE)


@pytest.mark.long
def test_a_run_evaluation_and_resume_obey_the_mask(tmp_path: Path) -> None:
    """On the command line: the first look finds the mask, the run's configuration has it, eval plays by it."""
    (tmp_path / "masked_env.py").write_text(Path(masked_env.__file__).read_text())
    (tmp_path / "grid_env.py").write_text((Path(masked_env.__file__).parent / "grid_env.py").read_text())
    options = ("--env.path", ".", "--mode", "inline", "--run", "masks", "--eval.threshold", "None")
    done = qherd("train", MASKED.id, *options, "--budget.env-steps", "3000", cwd=tmp_path)
    assert done.code == 0, done
    assert "action_mask: obey" in (tmp_path / "runs/masks/config.yaml").read_text()
    assert summary(tmp_path / "runs/masks")["updates"] > 50
    done = qherd("resume", "runs/masks", "--budget.env-steps", "4000", cwd=tmp_path)
    assert done.code == 0, done
    assert "computes otherwise" not in done.out
    done = qherd("eval", "runs/masks", "--episodes", "5", cwd=tmp_path)
    assert done.code == 0, done
    done = qherd("train", MASKED.id, *options[:-2], "--env.action-mask", "ignore", "--run", "all", cwd=tmp_path)
    assert done.code == 2
    assert "forbidden action" in done.err
    assert "--env.action-mask obey uses" in done.err


def test_rows_have_the_mask_of_their_own_observation() -> None:
    """At the end of a chunk, too: the boundary rows of a flush have those where the lanes stand."""
    tested = stepper(MASKED, 2)
    tested.collect(explore(np.ones(2), 7, tested.draws, np.random.default_rng(1)), 1.0, Counters())
    columns, _ = tested.close_episodes(Counters())
    for lane in range(2):
        assert_array_equal(columns.extras[ACTION_MASK][0, lane], mask_of(int(columns.obs[0, lane].argmax())))
