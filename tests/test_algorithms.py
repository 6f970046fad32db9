"""Losses: hand-worked numbers, what each is with its options at their ends, and a chain whose Q* is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from learner.algorithms import ALGORITHMS, Algorithm, algorithm_of, build_loss
from learner.algorithms.loss import Transitions
from learner.config import LearnerConfig, QrDqnConfig
from learner.learner import Learner
from learner.networks import NetworkConfig
from learner.td import huber, quantile_regression
from replay.chunk import Schema
from replay.mirror import Batch

DUELING = NetworkConfig(hidden=(), dueling=True)
EVERY = [
    pytest.param({"algorithm": "dqn", "double": False}, id="dqn"),
    pytest.param({"algorithm": "dqn", "double": True}, id="double dqn"),
    pytest.param({"algorithm": "qr_dqn", "qr_dqn": QrDqnConfig(quantiles=9)}, id="qr_dqn"),
    pytest.param(
        {"algorithm": "qr_dqn", "double": False, "network": NetworkConfig(hidden=(), dueling=True)}, id="duel"
    ),
]
GAMMA, STATES = 0.9, 5


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_every_algorithm_is_tried_here() -> None:
    assert {case.values[0]["algorithm"] for case in EVERY} == ALGORITHMS.keys()  # type: ignore[index]


# -- quantile regression


def test_quantile_regression_by_hand() -> None:
    """Two quantiles learn (tau 1/4 and 3/4) at 0 and 1 from one target at 2, kappa 1. u = 2 and 1: Huber 1.5 and 0.5.
    Both lie below the target, so they weigh tau: 1.5/4 + 0.5 * 3/4. From a target at -2, u = -2 and -3: Huber 1.5 and
    2.5, and 1 - tau: 1.5 * 3/4 + 2.5/4. Of both targets the mean."""
    theta = torch.tensor([[0.0, 1.0]] * 3)
    for targets, expected in (
        ([[2.0]], 1.5 / 4 + 0.5 * 3 / 4),
        ([[-2.0]], 1.5 * 3 / 4 + 2.5 / 4),
        ([[2.0, -2.0]], (1.5 / 4 + 0.5 * 3 / 4 + 1.5 * 3 / 4 + 2.5 / 4) / 2),
    ):
        assert_close(quantile_regression(theta, torch.tensor(targets * 3), 1.0), torch.full((3,), expected))


def test_kappa_divides() -> None:
    """kappa 2, u = 1: within, so 0.5 * 1 / 2, times tau 1/2; u = 4: beyond, 2 * (4 - 1) / 2, times 1/2."""
    loss = quantile_regression(torch.zeros(2, 1), torch.tensor([[1.0], [4.0]]), 2.0)
    assert_close(loss, torch.tensor([0.125, 1.5]))


def test_one_quantile_is_half_of_huber() -> None:
    theta, target = torch.randn(2, 64, 1)
    assert_close(quantile_regression(theta, target, 1.0), 0.5 * huber(target - theta, 1.0).squeeze(1))


def test_quantile_regression_against_loops() -> None:
    rng = np.random.default_rng(0)
    theta, target = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    expected = np.zeros(6)
    for b in range(6):
        for i in range(4):
            for j in range(3):
                u = target[b, j] - theta[b, i]
                size = abs(u)
                h = 0.5 * u * u if size <= 0.7 else 0.7 * (size - 0.35)
                expected[b] += abs((i + 0.5) / 4 - (u < 0)) * h / 0.7 / 3
    assert_close(
        quantile_regression(torch.from_numpy(theta), torch.from_numpy(target), 0.7), torch.from_numpy(expected)
    )


@pytest.mark.parametrize("shapes", [((4,), (4, 2)), ((4, 2), (3, 2)), ((4, 2, 1), (4, 2))])
def test_quantiles_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"quantiles have to be \[B, N\] and \[B, N'\]"):
        quantile_regression(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 1.0)


# -- all of them, as the learner uses them


def learner(options: dict[str, object], schema: Schema, **more: object) -> Learner:
    config = {"network": NetworkConfig(hidden=()), "lr": 0.02, "target_period_updates": 10, "gamma": GAMMA}
    return Learner(LearnerConfig.model_validate({**config, **options, **more}), schema, torch.device("cpu"), 0)


def chain() -> Batch:
    """Every transition of a walk over STATES places in a row: left, and right; leaving there is worth 1 and ends."""
    eye, rows = np.eye(STATES, dtype=np.float32), []
    for state in range(STATES):
        for action, following in ((0, max(0, state - 1)), (1, state + 1)):
            over = following == STATES
            rows.append((eye[state], action, float(over), 0.0 if over else GAMMA, eye[0 if over else following]))
    s_tm1, a_tm1, r_t, discount_t, s_t = zip(*rows, strict=True)
    return Batch(
        np.array(s_tm1), np.array(a_tm1), np.array(r_t, np.float32), np.array(discount_t, np.float32), np.array(s_t)
    )


@pytest.mark.parametrize("options", EVERY)
def test_the_chains_q_values_are_learned(options: dict[str, object]) -> None:
    """To 1e-2: gamma^k after k more steps to the right; left costs two."""
    tested, batch = learner(options, Schema((STATES,), "float32", 2)), chain()
    for _ in range(1500):
        error = tested.update(batch)
    right = GAMMA ** np.arange(STATES - 1, -1, -1)
    expected = np.stack([GAMMA * right[np.maximum(np.arange(STATES) - 1, 0)], right], 1)
    with torch.no_grad():
        q = tested.online(torch.eye(STATES)).q.numpy()
    np.testing.assert_allclose(q, expected, atol=1e-2)
    assert error.abs().max() < 2e-2, "TD errors are in the unit of expected values"


@pytest.mark.parametrize("options", EVERY)
def test_td_errors_are_of_expected_values(options: dict[str, object]) -> None:
    """Terminal transitions: r_t - Q(s_tm1, a_tm1), before the step, whatever the loss; without gradient."""
    tested = learner(options, Schema((3,), "float32", 4))
    rng = np.random.default_rng(1)
    s_tm1, a_tm1 = rng.normal(size=(16, 3)).astype(np.float32), rng.integers(0, 4, 16)
    r_t, zeros = rng.normal(size=16).astype(np.float32), np.zeros(16, np.float32)
    with torch.no_grad():
        before = tested.online(torch.from_numpy(s_tm1)).q
    s, a, r, zero = map(torch.from_numpy, (s_tm1, a_tm1, r_t, zeros))
    out = build_loss(tested.config)(tested.online, tested.target, Transitions(s, a, r, zero, s))
    assert_close(out.q_tm1, before)
    assert_close(out.td_error, torch.from_numpy(r_t) - before[torch.arange(16), torch.from_numpy(a_tm1)])
    assert (out.losses.requires_grad, out.td_error.requires_grad, out.q_tm1.requires_grad) == (True, False, False)
    assert out.losses.shape == (16,)


@pytest.mark.parametrize("double", [True, False])
def test_quantiles_bootstrap_from_the_action_that_their_means_choose(double: bool) -> None:
    """Online prefers action 1 by its mean, target action 0: what is bootstrapped from are the target's quantiles of
    the one or the other, though single quantiles of it lie lower."""
    tested = learner(
        {"algorithm": "qr_dqn", "double": double, "qr_dqn": QrDqnConfig(quantiles=2)}, Schema((1,), "float32", 2)
    )
    with torch.no_grad():
        for network, quantiles in (
            (tested.online, [[0.0, 0.0], [-5.0, 7.0]]),
            (tested.target, [[4.0, 8.0], [1.0, 3.0]]),
        ):
            network.head.linear.weight.zero_()  # type: ignore[union-attr, operator]
            network.head.linear.bias.copy_(torch.tensor(quantiles).flatten())  # type: ignore[union-attr, operator]
    zeros = np.zeros((1, 1), np.float32)
    batch = Batch(zeros, np.zeros(1, np.int64), np.full(1, 10.0, np.float32), np.full(1, 0.5, np.float32), zeros)
    expected = 10 + 0.5 * (2.0 if double else 6.0)
    assert float(tested.update(batch)) == pytest.approx(expected)


def test_quantiles_find_a_distribution() -> None:
    """Returns of 0 and 1, a quarter of them 1: the quantiles above 3/4 come near 1, the others near 0."""
    tested = learner(
        {"algorithm": "qr_dqn", "qr_dqn": QrDqnConfig(quantiles=8, kappa=0.01)}, Schema((1,), "float32", 1), lr=0.005
    )
    size = 32
    r_t = (np.arange(size) % 4 == 0).astype(np.float32)
    ones, zeros = np.ones((size, 1), np.float32), np.zeros(size, np.float32)
    for _ in range(2000):
        tested.update(Batch(ones, np.zeros(size, np.int64), r_t, zeros, ones))
    distribution = tested.online(torch.ones(1, 1)).distribution
    assert distribution is not None
    expected = torch.tensor([0.0] * 6 + [1.0] * 2)
    assert_close(distribution[0, 0].detach(), expected, atol=0.1, rtol=0)


# -- by name


def test_what_is_no_algorithm_is_refused() -> None:
    assert isinstance(algorithm_of("dqn"), Algorithm)
    with pytest.raises(ValueError, match="algorithm 'sarsa' is unknown: use dqn, qr_dqn, or module:Name of your own"):
        LearnerConfig(algorithm="sarsa")
    with pytest.raises(ValueError, match=r"has to be a learner\.algorithms\.Algorithm"):
        algorithm_of("json:dumps")
