"""Learning from sequences: windows, losses, gradients and priorities against a network that is unrolled by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from learner.algorithms import build_loss
from learner.algorithms.loss import Transitions
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.networks import build_network, core_width
from learner.networks.portable import ACTION, REWARD
from learner.networks.q_network import QNetwork, QOutput
from learner.sequences import Windows, mixture, unroll
from learner.td import huber, signed_hyperbolic, signed_parabolic
from replay.chunk import ACTION_MASK, Schema
from replay.sequences import SequenceBatch

Array = npt.NDArray[Any]
SCHEMA, ACTIONS, GAMMA = Schema((3,), "float32", 3), 3, 0.9
BURN_IN, TRAINED, N = 4, 5, 2
STEPS = BURN_IN + TRAINED + N


class Shape:
    """Of a sequence: rows of burn-in, trained ones, all after the burn-in, and whether its last step terminated."""

    def __init__(self, burn_in: int, trained: int, rows: int, terminated: bool = False) -> None:
        self.burn_in, self.trained, self.rows, self.terminated = burn_in, trained, rows, terminated


SHAPES = (
    Shape(4, 5, 7),
    Shape(0, 5, 7),  # the beginning of an episode
    Shape(2, 3, 4),  # a truncation: the boundary row is the last one
    Shape(1, 4, 5, terminated=True),
    Shape(3, 1, 2, terminated=True),
)


def batch_of(config: LearnerConfig, masked: bool = False, dtype: Any = np.float64) -> SequenceBatch:
    """A sequence of each shape, with random rows, also where they are padding: what is there may make no difference."""
    rng = np.random.default_rng(8)
    grid = (STEPS, len(SHAPES))
    valid, trained = np.zeros(grid, np.bool_), np.zeros(grid, np.bool_)
    rewards, discounts = rng.normal(0, 2, grid).astype(dtype), np.full(grid, GAMMA, dtype)
    width = core_width(config.network_spec, ACTIONS)
    state = rng.normal(0, 0.5, (len(SHAPES), width)).astype(dtype)
    if config.network.core_previous:
        state[:, -2] = rng.integers(0, ACTIONS + 1, len(SHAPES))
    for lane, shape in enumerate(SHAPES):
        valid[BURN_IN - shape.burn_in : BURN_IN + shape.rows, lane] = True
        trained[BURN_IN : BURN_IN + shape.trained, lane] = True
        if shape.terminated:
            discounts[BURN_IN + shape.rows - 2, lane] = 0
        if not shape.burn_in:
            state[lane] = 0
    masks = None
    if masked:
        masks = rng.integers(0, 2, (*grid, ACTIONS)).astype(np.uint8)
    obs = rng.normal(size=(*grid, 3)).astype(dtype)
    actions = rng.integers(0, ACTIONS, grid)
    return SequenceBatch(obs, actions, rewards * valid, discounts * valid, masks, trained, valid, state)


def config_of(core: str, previous: bool = False, **options: Any) -> LearnerConfig:
    network = {"hidden": (6,), "core": core, "core_size": 5, "core_previous": previous}
    given: dict[str, Any] = {"network": network, "n_step": N, "gamma": GAMMA, "reward_scale": 0.5, **options}
    return LearnerConfig.model_validate(given)


def networks(config: LearnerConfig) -> tuple[QNetwork, QNetwork]:
    """Online and target network in float64, which differ."""
    torch.manual_seed(2)
    online, target = (build_network(config.network_spec, SCHEMA).double() for _ in range(2))
    return online, target.requires_grad_(False)


class ByHand:
    """A network's features at each row of each sequence, one time step after another; without gradient over the
    burn-in."""

    def __init__(self, network: QNetwork, batch: SequenceBatch, config: LearnerConfig) -> None:
        self.head = network.head
        core = network.core
        assert core is not None
        self.rows: dict[tuple[int, int], Tensor] = {}
        for lane in range(batch.valid.shape[1]):
            state = {name: each[lane : lane + 1] for name, each in core.unpacked(batch.core_state).items()}
            for t in np.flatnonzero(batch.valid[:, lane]).tolist():
                with torch.set_grad_enabled(t >= BURN_IN):
                    x = network.features(batch.obs[t, lane][None])
                    if t == BURN_IN:
                        state = {name: each.detach() for name, each in state.items()}
                    out, after = core.step(x, state)
                state = dict(after)
                if core.previous:  # the environment's own reward, of which the network makes what is trained on
                    state[ACTION] = (batch.actions[t, lane] + 1).double().reshape(1, 1)
                    state[REWARD] = (batch.rewards[t, lane] / config.reward_scale).reshape(1, 1)
                self.rows[t, lane] = out[0]

    def __call__(self, obs: Tensor) -> QOutput:
        output: QOutput = self.head(self.features(obs))
        return output

    def features(self, obs: Tensor) -> Tensor:
        """Of rows (t, lane) <int64>[M, 2]."""
        return torch.stack([self.rows[t, lane] for t, lane in obs.tolist()])


def windows_by_hand(batch: SequenceBatch) -> tuple[Transitions, Tensor]:
    """The transitions of all trained rows, with rows (t, lane) for observations; and their sequences."""
    found: list[Any] = []
    for t, lane in np.argwhere(batch.trained).tolist():
        last = int(np.flatnonzero(batch.valid[:, lane]).max())
        r_t, discount_t, at = 0.0, 1.0, t
        while at < last and at < t + N:
            r_t += discount_t * float(batch.rewards[at, lane])
            discount_t *= float(batch.discounts[at, lane])
            at += 1
        found.append(((t, lane), int(batch.actions[t, lane]), r_t, discount_t, (at, lane)))
    rows, actions, rewards, discounts, boot = map(list, zip(*found, strict=True))
    masks = {}
    if batch.masks is not None:
        masks = {
            name: {ACTION_MASK: torch.stack([batch.masks[t, lane] for t, lane in where])}
            for name, where in (("extras_tm1", rows), ("extras_t", boot))
        }
    transitions = Transitions(
        torch.tensor(rows),
        torch.tensor(actions),
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(discounts, dtype=torch.float64),
        torch.tensor(boot),
        **masks,
    )
    return transitions, torch.tensor([lane for _, lane in rows])


CASES = [
    pytest.param(config_of("lstm"), False, id="lstm"),
    pytest.param(config_of("gru"), False, id="gru"),
    pytest.param(config_of("lstm", True), True, id="lstm-previous-masks"),
    pytest.param(config_of("gru", True, double=False), False, id="gru-previous-single"),
    pytest.param(config_of("lstm", value_rescale=True), True, id="lstm-rescaled-masks"),
    pytest.param(config_of("lstm", munchausen={"enabled": True}), True, id="munchausen"),
    pytest.param(config_of("lstm", algorithm="c51"), False, id="c51"),
    pytest.param(config_of("lstm", True, algorithm="qr_dqn"), True, id="qr_dqn"),
    pytest.param(config_of("gru", algorithm="iqn"), False, id="iqn"),
]


@pytest.fixture
def doubles() -> Iterator[None]:
    """Random numbers in float64, too, such as IQN's fractions."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize(("config", "masked"), CASES)
def test_losses_and_gradients_are_those_of_a_network_unrolled_by_hand(config: LearnerConfig, masked: bool) -> None:
    """Sequences with whole, short and no burn-in, truncated, terminated and cut ones, in one batch, in float64."""
    batch = batch_of(config, masked).map(torch.from_numpy)
    online, target = networks(config)
    loss, weights = build_loss(config), torch.rand(len(SHAPES), dtype=torch.float64)
    given = unroll(online, target, batch, N)
    torch.manual_seed(5)
    out = loss(given.online, given.target, given.transitions)
    gradients = torch.autograd.grad((out.losses * weights[given.sequence]).mean(), list(online.parameters()))
    transitions, sequence = windows_by_hand(batch)
    torch.manual_seed(5)
    naive = loss(ByHand(online, batch, config), ByHand(target, batch, config), transitions)
    expected = torch.autograd.grad((naive.losses * weights[sequence]).mean(), list(online.parameters()))
    assert sequence.tolist() == given.sequence.tolist()
    torch.testing.assert_close(given.transitions.r_t, transitions.r_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(given.transitions.discount_t, transitions.discount_t, rtol=1e-12, atol=1e-12)
    for own, other in ((out.losses, naive.losses), (out.td_error, naive.td_error), (out.q_tm1, naive.q_tm1)):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)
    for (name, _), own, other in zip(online.named_parameters(), gradients, expected, strict=True):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)


def test_the_targets_of_dqn_are_double_rescaled_and_of_n_steps() -> None:
    """By the formula, of each trained row."""
    config = config_of("lstm", value_rescale=True)
    batch = batch_of(config).map(torch.from_numpy)
    online, target = networks(config)
    given = unroll(online, target, batch, N)
    out = build_loss(config)(given.online, given.target, given.transitions)
    transitions, _ = windows_by_hand(batch)
    with torch.no_grad():
        own, other = (ByHand(network, batch, config) for network in (online, target))
        q_tm1, q_t, value = own(transitions.s_tm1).q, own(transitions.s_t).q, other(transitions.s_t).q
    every = torch.arange(len(q_tm1))
    bootstrap = signed_parabolic(value[every, q_t.argmax(1)])
    wanted = signed_hyperbolic(transitions.r_t + transitions.discount_t * bootstrap)
    error = wanted - q_tm1[every, transitions.a_tm1]
    torch.testing.assert_close(out.td_error, error)
    torch.testing.assert_close(out.losses.detach(), huber(error, config.huber_delta))
    assert (transitions.discount_t == 0).any()
    assert (transitions.discount_t == GAMMA).any()


def test_what_is_padding_makes_no_difference() -> None:
    config = config_of("lstm", True)
    batch = batch_of(config, masked=True)
    other = batch._replace(
        obs=np.where(batch.valid[..., None], batch.obs, 7.0),
        actions=np.where(batch.valid, batch.actions, 1),
        masks=np.where(batch.valid[..., None], batch.masks, 1),
    )
    losses = []
    for each in (batch, other):
        given = unroll(*networks(config), each.map(torch.from_numpy), N)
        losses.append(build_loss(config)(given.online, given.target, given.transitions).losses)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_a_window_ends_at_its_sequences_last_row() -> None:
    batch = batch_of(config_of("gru"))
    windows = Windows.of(batch, BURN_IN, N)
    of = [windows.steps[windows.sequence == lane].tolist() for lane in range(len(SHAPES))]
    assert of == [[2] * 5, [2] * 5, [2, 2, 1], [2, 2, 2, 1], [1]]
    assert windows.row[windows.sequence == 2].tolist() == [2, 7, 12]


def test_a_sequences_priority_mixes_its_greatest_and_its_mean_error() -> None:
    error, sequence = torch.tensor([1.0, -3.0, 2.0, 0.5, -0.5]), torch.tensor([0, 0, 0, 2, 2])
    assert mixture(error, sequence, 3, 0.9).tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 0, 0.5])
    assert mixture(error, sequence, 3, 0.0).tolist() == pytest.approx([2, 0, 0.5])


@pytest.mark.parametrize("algorithm", ["dqn", "qr_dqn"])
def test_a_learner_takes_batches_of_sequences(algorithm: str) -> None:
    """Its priorities are those of its TD errors, weights scale the loss, and updates change all parameters."""
    config = config_of("lstm", True, algorithm=algorithm, lr=0.01)
    batch = batch_of(config, dtype=np.float32)
    learner = Learner(config, SCHEMA, torch.device("cpu"), seed=1)
    before = {name: each.clone() for name, each in learner.online.state_dict().items()}
    given = unroll(learner.online, learner.target, batch.map(torch.from_numpy), N)
    out = build_loss(config)(given.online, given.target, given.transitions)
    expected = mixture(out.td_error, given.sequence, len(SHAPES), 0.9)
    priorities = learner.update(batch)
    torch.testing.assert_close(priorities, expected)
    metrics = learner.metrics()
    assert metrics is not None
    assert metrics.loss == pytest.approx(float(out.losses.detach().mean()), rel=1e-5)
    for name, each in learner.online.state_dict().items():
        assert (each != before[name]).any(), name
    first = [float(learner.update(batch).mean()) for _ in range(2)][-1]
    for _ in range(50):
        learner.update(batch)
    assert float(learner.update(batch).mean()) < first
    assert learner.updates == 54


def test_a_weight_scales_the_losses_of_its_sequence() -> None:
    config = config_of("gru")
    batch = batch_of(config, dtype=np.float32)
    losses = []
    for weights in (None, np.ones(5, np.float32), np.array([1, 0, 0, 0, 0], np.float32)):
        learner = Learner(config, SCHEMA, torch.device("cpu"), seed=1)
        learner.update(batch, weights)
        metrics = learner.metrics()
        assert metrics is not None
        losses.append(metrics.loss)
    assert losses[0] == losses[1] > losses[2] > 0
