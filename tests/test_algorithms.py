"""Losses: hand-worked numbers, what each is with its options at their ends, and a chain whose Q* is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.testing import assert_close

from learner.algorithms import ALGORITHMS, Algorithm, algorithm_of, build_loss
from learner.algorithms.loss import Transitions
from learner.config import C51Config, IqnConfig, LearnerConfig, MunchausenConfig, QrDqnConfig
from learner.learner import Learner
from learner.networks import NetworkConfig
from learner.networks.heads import AtomsHead
from learner.td import huber, quantile_regression, signed_parabolic
from replay.chunk import Schema
from replay.mirror import Batch
from replay.state import State

DUELING = NetworkConfig(hidden=(), dueling=True)
WIDE = NetworkConfig(hidden=(64,), dueling=True)
"""For implicit quantiles: their embeddings are products with features, of which a table has one per state."""
UNIT = C51Config(atoms=21, v_min=0.0, v_max=1.0)
FEW = IqnConfig(samples=4, target_samples=4, fractions=16, cosines=16)
EVERY = [
    pytest.param({"algorithm": "dqn", "double": False}, id="dqn"),
    pytest.param({"algorithm": "dqn", "double": True}, id="double dqn"),
    pytest.param({"algorithm": "qr_dqn", "qr_dqn": QrDqnConfig(quantiles=9)}, id="qr_dqn"),
    pytest.param({"algorithm": "qr_dqn", "double": False, "network": DUELING}, id="duel"),
    pytest.param({"algorithm": "c51", "c51": UNIT}, id="c51"),
    pytest.param(
        {"algorithm": "c51", "double": False, "network": DUELING, "c51": UNIT}, id="c51 duel", marks=pytest.mark.long
    ),
    pytest.param({"algorithm": "iqn", "iqn": FEW, "network": WIDE}, id="iqn"),
]
MUNCHAUSEN = [
    pytest.param({"algorithm": "dqn"}, id="munchausen"),
    pytest.param({"algorithm": "qr_dqn", "qr_dqn": QrDqnConfig(quantiles=9)}, id="munchausen qr_dqn"),
    pytest.param({"algorithm": "iqn", "iqn": FEW, "network": WIDE}, id="munchausen iqn"),
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


@pytest.mark.parametrize("kappa", [0.3, 1.0])
def test_the_gradient_of_quantile_regression_is_autograd_s(kappa: float) -> None:
    rng = torch.Generator().manual_seed(5)
    theta = torch.randn(4, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 9, generator=rng, dtype=torch.float64) * 2
    tau, weights = torch.rand(4, 6, generator=rng, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0, 0.0])
    (weights * quantile_regression(theta, target, kappa, tau)).sum().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    ours = theta.grad.clone()
    theta.grad = None
    u = target.unsqueeze(1) - theta.unsqueeze(2)
    pairs = (tau.unsqueeze(2) - (u < 0).to(u.dtype)).abs() * huber(u, kappa) / kappa
    (weights * pairs.mean(2).sum(1)).sum().backward()  # type: ignore[no-untyped-call]
    assert_close(ours, theta.grad, rtol=1e-12, atol=1e-12)


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
    config = {
        "network": NetworkConfig(hidden=()),
        "lr": 0.02,
        "target_period_updates": 10,
        "gamma": GAMMA,
        "average_tau": 0.01,
    }
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
    for _ in range(700):
        error = tested.update(batch)
    right = GAMMA ** np.arange(STATES - 1, -1, -1)
    expected = np.stack([GAMMA * right[np.maximum(np.arange(STATES) - 1, 0)], right], 1)
    with torch.no_grad():
        q = tested.average(torch.eye(STATES)).q.numpy()
    noise = 3 if options["algorithm"] == "iqn" else 1  # its quantiles are random ones, and few here
    np.testing.assert_allclose(q, expected, atol=1e-2 * noise)
    assert error.abs().max() < 2e-2 * noise, "TD errors are in the unit of expected values"


def soft_fixed_point(alpha: float, tau: float, clip: float) -> npt.NDArray[np.float64]:
    """The chain's values <float64>[STATES, 2] under Munchausen, by iterating its equation."""
    q = np.zeros((STATES, 2))
    for _ in range(2000):
        policy = np.exp((q - q.max(1, keepdims=True)) / tau)
        policy /= policy.sum(1, keepdims=True)
        log = tau * np.log(policy)
        value = (policy * (q - log)).sum(1)
        following = GAMMA * np.stack([value[np.maximum(np.arange(STATES) - 1, 0)], np.append(value[1:], 0)], 1)
        following[-1, 1] = 1.0
        q = following + alpha * np.clip(log, clip, 0)
    return q


@pytest.mark.parametrize(
    ("options", "alpha", "tau", "clip"),
    [
        pytest.param({}, 0.9, 0.05, -1.0, id="the paper's"),
        pytest.param({}, 0.5, 0.3, -0.1, id="clipped"),
        pytest.param({}, 0.0, 0.2, -1.0, id="soft"),
        *(pytest.param(case.values[0], 0.9, 0.05, -1.0, id=case.id, marks=pytest.mark.long) for case in MUNCHAUSEN[1:]),
    ],
)
def test_munchausens_fixed_point_is_learned(options: dict[str, object], alpha: float, tau: float, clip: float) -> None:
    """To 2e-2, where the clip matters and where it does not; with alpha 0 it is soft Q-learning."""
    munchausen = MunchausenConfig(enabled=True, alpha=alpha, tau=tau, clip=clip)
    tested, batch = learner(options, Schema((STATES,), "float32", 2), munchausen=munchausen), chain()
    for _ in range(800):
        tested.update(batch)
    with torch.no_grad():
        q = tested.average(torch.eye(STATES)).q.numpy()
    np.testing.assert_allclose(q, soft_fixed_point(alpha, tau, clip), atol=2e-2)


def test_value_rescaling_learns_the_rescaled_values() -> None:
    """With rewards of 1,000 the values that are learned are roots, and expected returns are what they invert to."""
    tested, batch = learner({"value_rescale": True}, Schema((STATES,), "float32", 2), lr=0.1), chain()
    batch = replace(batch, r_t=batch.r_t * 1000)
    for _ in range(1500):
        tested.update(batch)
    with torch.no_grad():
        q = signed_parabolic(tested.average(torch.eye(STATES)).q)
    right = torch.from_numpy(1000 * GAMMA ** np.arange(STATES - 1, -1, -1)).float()
    assert_close(q[:, 1], right, rtol=1e-2, atol=0)


# -- action masks


@pytest.mark.parametrize("options", [*EVERY, *MUNCHAUSEN])
def test_what_the_mask_forbids_is_not_bootstrapped_from(options: dict[str, object], request: Any) -> None:
    """Action 1 of s_t, worth far more than the others, is not allowed: the target is as if it were worth nothing."""
    munchausen = MunchausenConfig(enabled="munchausen" in request.node.callspec.id, tau=0.1)
    tested = learner(options, Schema((2,), "float32", 3), munchausen=munchausen, lr=1e-9)
    zeros = torch.zeros(4, 2)
    mask = torch.tensor([[True, False, True]] * 4)
    s_tm1, a_tm1, r_t = zeros, torch.tensor([0, 0, 2, 2]), torch.zeros(4)
    batch = Transitions(
        s_tm1, a_tm1, r_t, torch.full((4,), 0.5), zeros,
        {"action_mask": mask}, {"action_mask": mask},
    )  # fmt: skip
    loss = build_loss(tested.config)
    values = []
    for forbidden in (0.9, -0.9):
        prefer(tested, 1, forbidden)
        values.append(loss(tested.online, tested.target, batch).td_error[:1])
    assert_close(*values, atol=0.02, rtol=0)
    unmasked = batch._replace(extras_tm1={}, extras_t={})
    prefer(tested, 1, 0.9)
    without = loss(tested.online, tested.target, unmasked).td_error[:1]
    assert (without - values[0]).abs() > 0.1, "unmasked it matters"


def prefer(tested: Learner, action: int, value: float) -> None:
    """Have both networks expect about ``value`` of one action in every state, and 0 of the others."""
    for network in (tested.online, tested.target):
        head = cast(Any, network.head)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            per_action = head.linear.bias.view(-1, head.linear.bias.numel() // (3 + int(head._dueling)))
            row = per_action[action + int(head._dueling)]
            if head._dueling and not isinstance(head, AtomsHead):
                per_action[0] = value / 3
            if isinstance(head, AtomsHead):
                per_action[:] = torch.linspace(30, -30, 21)
                row.copy_(torch.linspace(-30, 30, 21) * (1 if value > 0 else -1))
            else:
                row.fill_(value)


@pytest.mark.parametrize("options", [*EVERY, *MUNCHAUSEN])
def test_a_terminal_state_may_allow_nothing(options: dict[str, object], request: Any) -> None:
    """Its discount is 0: the loss stays finite, and the TD error is r - q."""
    munchausen = MunchausenConfig(enabled="munchausen" in request.node.callspec.id)
    tested = learner(options, Schema((2,), "float32", 3), munchausen=munchausen)
    mask = {"action_mask": torch.zeros(4, 3, dtype=torch.bool)}
    ones = {"action_mask": torch.ones(4, 3, dtype=torch.bool)}
    zeros = torch.zeros(4)
    s_tm1, s_t = torch.randn(2, 4, 2)
    batch = Transitions(s_tm1, torch.zeros(4, dtype=torch.int64), zeros, zeros, s_t, ones, mask)
    out = build_loss(tested.config)(tested.online, tested.target, batch)
    assert out.losses.isfinite().all()
    assert out.td_error.isfinite().all()


@pytest.mark.parametrize("options", [*EVERY, *MUNCHAUSEN])
def test_a_truncated_state_that_allows_nothing_keeps_its_values(options: dict[str, object], request: Any) -> None:
    """Its discount is not 0: the bootstrap is what it is without a mask, not that of a forbidden action, -1e30."""
    munchausen = MunchausenConfig(enabled="munchausen" in request.node.callspec.id)
    tested = learner(options, Schema((2,), "float32", 3), munchausen=munchausen)
    ones = {"action_mask": torch.ones(4, 3, dtype=torch.uint8)}
    zeros = {"action_mask": torch.zeros(4, 3, dtype=torch.uint8)}
    s_tm1, s_t = torch.randn(2, 4, 2)
    batch = Transitions(
        s_tm1, torch.zeros(4, dtype=torch.int64), torch.zeros(4), torch.full((4,), 0.9), s_t, ones, zeros
    )
    loss = build_loss(tested.config)
    masked = loss(tested.online, tested.target, batch).td_error
    assert_close(masked, loss(tested.online, tested.target, batch._replace(extras_t={})).td_error)


# -- Munchausen, C51 and their options


def test_an_infinite_delta_is_half_of_the_squared_error() -> None:
    error = torch.tensor([-300.0, 0.0, 0.5, 1e6])
    assert_close(huber(error, LearnerConfig(huber_delta=math.inf).huber_delta), 0.5 * error**2)


def test_munchausen_by_hand() -> None:
    """Target values 0 and tau ln 3 (tau 0.5) in both states: the policy is 1/4 and 3/4. The soft value is
    1/4 (0 - 0.5 ln 1/4) + 3/4 (0.5 ln 3 - 0.5 ln 3/4) = 0.5 ln 4. Action 0 was taken: bonus 0.9 * 0.5 ln 1/4, above the
    clip of -1."""
    tested = learner({}, Schema((1,), "float32", 2), munchausen=MunchausenConfig(enabled=True, tau=0.5))
    with torch.no_grad():
        for network in (tested.online, tested.target):
            for parameter in network.parameters():
                parameter.zero_()
        cast(Any, tested.target.head).linear.bias.copy_(torch.tensor([0.0, 0.5 * math.log(3)]))
    one = torch.ones(1, 1)
    batch = Transitions(one, torch.zeros(1, dtype=torch.int64), torch.tensor([2.0]), torch.tensor([0.9]), one)
    out = build_loss(tested.config)(tested.online, tested.target, batch)
    expected = 2 + 0.9 * 0.5 * math.log(1 / 4) + 0.9 * 0.5 * math.log(4)
    assert_close(out.td_error, torch.tensor([expected]))


def test_atoms_find_a_distribution() -> None:
    """Returns of 0 and 1, a quarter of them 1."""
    tested = learner({"algorithm": "c51", "c51": UNIT}, Schema((1,), "float32", 1))
    size = 32
    r_t = (np.arange(size) % 4 == 0).astype(np.float32)
    ones, zeros = np.ones((size, 1), np.float32), np.zeros(size, np.float32)
    for _ in range(700):
        tested.update(Batch(ones, np.zeros(size, np.int64), r_t, zeros, ones))
    logits = tested.online(torch.ones(1, 1)).distribution
    assert logits is not None
    probability = logits.detach().softmax(2)[0, 0]
    assert_close(probability[[0, -1]], torch.tensor([0.75, 0.25]), atol=0.02, rtol=0)
    assert probability[1:-1].max() < 0.02


def test_implicit_quantiles_find_a_distribution() -> None:
    """Returns of 0 and 1, a quarter of them 1: the quantile function is near 0 below 3/4 and near 1 above."""
    options = {"algorithm": "iqn", "iqn": IqnConfig(samples=32, target_samples=32, kappa=0.01)}
    tested = learner(options, Schema((1,), "float32", 1), lr=0.01, network=NetworkConfig(hidden=(32,)))
    size = 8
    r_t = (np.arange(size) % 4 == 0).astype(np.float32)
    ones, zeros = np.ones((size, 1), np.float32), np.zeros(size, np.float32)
    for _ in range(700):
        tested.update(Batch(ones, np.zeros(size, np.int64), r_t, zeros, ones))
    with torch.no_grad():
        features = tested.online.features(torch.ones(1, 1))
        quantiles = cast(Any, tested.online.head).quantiles(features, torch.tensor([[0.2, 0.4, 0.6, 0.9]]))
    assert_close(quantiles[0, 0], torch.tensor([0.0, 0.0, 0.0, 1.0]), atol=0.15, rtol=0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"algorithm": "c51", "munchausen": {"enabled": True}}, "learner.munchausen is for dqn, qr_dqn and iqn"),
        (
            {"algorithm": "iqn", "value_rescale": True},
            "learner.value_rescale is for dqn, not for iqn: .*no-value-rescale",
        ),
        ({"value_rescale": True, "munchausen": {"enabled": True}}, "exclude each other"),
        ({"c51": {"v_min": 1.0, "v_max": 1.0}}, "v_min has to be below v_max, got 1 and 1"),
        ({"c51": {"v_max": math.inf}}, "c51.v_max\n.*finite number"),
        ({"c51": {"v_min": -1e39}}, "c51.v_min\n.*greater than or equal to -1"),
        ({"munchausen": {"tau": 1e-40}}, "munchausen.tau\n.*greater than or equal to 0.000001"),
        ({"lr": 0.5, "weight_decay": 2.0}, "learner.lr x learner.weight_decay is 1; .* below 1"),
        ({"weight_decay": math.inf}, "learner.lr x learner.weight_decay is inf"),
        (
            {"c51": {"v_min": 1e6, "v_max": 1e6 + 1}},
            r"51 atoms from 1000000\.0 to .* are 0\.02 apart.* least 100",
        ),
        ({"c51": {"v_min": 0.0, "v_max": 1e-40}}, "atoms from 0.0 to 1e-40 are 2e-42 apart"),
        *(
            ({section: {option: math.inf}} if section else {option: math.inf}, rf"{option}\n.*finite number")
            for section, option in (
                ("qr_dqn", "kappa"),
                ("iqn", "kappa"),
                ("munchausen", "tau"),
                ("", "lr"),
                ("", "reward_scale"),
                ("", "adam_eps"),
            )
        ),
        ({"iqn": {"kappa": 0.0}}, r"kappa\n.*greater than or equal to 0\.000001"),
        ({"network": {"hidden": [8, 0]}}, r"network\.hidden\.1\n.*greater than or equal to 1"),
        ({"network": {"hidden": [-5]}}, r"network\.hidden\.0\n.*greater than or equal to 1"),
        ({"network": {"hidden": [10**9]}}, r"network\.hidden\.0\n.*less than or equal to 16384"),
    ],
)
def test_options_that_nothing_is_learned_with_are_refused(options: dict[str, object], why: str) -> None:
    """Those that do not go together, and values by which losses are 0 or no number, or there is no network."""
    with pytest.raises(ValueError, match=why):
        LearnerConfig.model_validate(options)


@pytest.mark.parametrize("options", EVERY)
def test_td_errors_are_of_expected_values(options: dict[str, object]) -> None:
    """Terminal transitions: r_t - Q(s_tm1, a_tm1), before the step, whatever the loss; without gradient."""
    tested = learner(options, Schema((3,), "float32", 4), c51=C51Config(v_min=-9, v_max=9))
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
        {"algorithm": "qr_dqn", "qr_dqn": QrDqnConfig(quantiles=8, kappa=0.01)}, Schema((1,), "float32", 1), lr=0.015
    )
    size = 32
    r_t = (np.arange(size) % 4 == 0).astype(np.float32)
    ones, zeros = np.ones((size, 1), np.float32), np.zeros(size, np.float32)
    for _ in range(800):
        tested.update(Batch(ones, np.zeros(size, np.int64), r_t, zeros, ones))
    distribution = tested.online(torch.ones(1, 1)).distribution
    assert distribution is not None
    expected = torch.tensor([0.0] * 6 + [1.0] * 2)
    assert_close(distribution[0, 0].detach(), expected, atol=0.1, rtol=0)


def test_a_restored_learner_draws_the_same_random_quantiles() -> None:
    """So that a run that draws goes on to the bit: another learner, from the state of the first one in its middle."""
    options, schema, batch = {"algorithm": "iqn", "iqn": FEW, "network": WIDE}, Schema((STATES,), "float32", 2), chain()
    first = learner(options, schema)
    first.update(batch)
    state = first.state()
    state = State(dict(state.values), {name: np.array(array) for name, array in state.arrays.items()})
    expected = [first.update(batch) for _ in range(3)]
    second = learner(options, schema)
    torch.rand(7)
    second.restore(state)
    for after in expected:
        assert_close(second.update(batch), after, rtol=0, atol=0)


def test_a_run_may_resume_on_another_kind_of_device() -> None:
    """Where random numbers have another kind of state, which is passed over."""
    options, schema = {"algorithm": "iqn", "iqn": FEW, "network": WIDE}, Schema((STATES,), "float32", 2)
    state = learner(options, schema).state()
    values = {**state.values, "random_of": "cuda"}
    second = learner(options, schema, lr=0.01)
    second.restore(State(values, {**state.arrays, "random": np.zeros(16, np.uint8)}))
    assert second.state().arrays["online"].tobytes() == state.arrays["online"].tobytes()
    second.update(chain())


@pytest.mark.parametrize("spoilt", [np.zeros(3, np.uint8), np.zeros(5056, np.float32), np.zeros(5056, np.uint8)])
def test_random_numbers_of_no_learner_are_refused(spoilt: npt.NDArray[Any]) -> None:
    tested = learner({}, Schema((STATES,), "float32", 2))
    state = tested.state()
    with pytest.raises(ValueError, match="random is no state of cpu's random numbers"):
        tested.restore(State(state.values, {**state.arrays, "random": spoilt}))


# -- by name


def test_what_is_no_algorithm_is_refused() -> None:
    assert isinstance(algorithm_of("dqn"), Algorithm)
    with pytest.raises(ValueError, match="algorithm 'sarsa' is unknown: use dqn, c51, qr_dqn, iqn, or module"):
        LearnerConfig(algorithm="sarsa")
    with pytest.raises(ValueError, match=r"has to be a learner\.algorithms\.Algorithm"):
        algorithm_of("json:dumps")
