"""Losses over sequences: a recurrent network's values of all rows, numbered so that any algorithm finds its rows.

The rows of a batch <..>[T, B] that come after the burn-in are numbered ``t * B + b``. To a loss the numbers are the
observations, and a network unrolled over the rows is the network: it looks the values of a row up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learner.algorithms.loss import Transitions
from learner.networks.portable import ACTION, REWARD
from learner.networks.q_network import QNetwork, QOutput
from replay.chunk import ACTION_MASK
from replay.sequences import SequenceBatch


class Unrolled:
    """A network's values of R = T * B rows: ``QNetwork`` to a loss, with the rows' numbers for observations."""

    def __init__(self, head: nn.Module, features: Tensor) -> None:
        """``features`` <float>[R, F]: what the head is given."""
        self.head, self._features = head, features
        self._output: QOutput = head(features)

    def __call__(self, obs: Tensor) -> QOutput:
        """Returns the values of rows <int64>[M]."""
        q, distribution = self._output
        return QOutput(q[obs], None if distribution is None else distribution[obs])

    def features(self, obs: Tensor) -> Tensor:
        """Returns what the head is given of rows <int64>[M] <float>[M, F]."""
        return self._features[obs]


class Windows(NamedTuple):
    """The M rows that are trained on, <int64>[M] each: their numbers, the sequences that they are of, and how many
    rewards come before the row that each bootstraps from."""

    row: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batch: SequenceBatch, burn_in: int, n: int) -> Windows:
        """Returns the windows of up to ``n`` rewards, which end at a sequence's last row at the latest."""
        time, sequence = np.nonzero(batch.trained[burn_in:])
        last = len(batch.valid) - 1 - burn_in - batch.valid[::-1].argmax(0)
        lanes = batch.valid.shape[1]
        return cls(time * lanes + sequence, sequence, np.minimum(n, last[sequence] - time))


class SequenceLosses(NamedTuple):
    """What a loss is given in the place of networks and batch; ``sequence`` <int64>[M]: which one each is of."""

    online: Unrolled
    target: Unrolled
    transitions: Transitions
    sequence: Tensor


def unroll(online: QNetwork, target: QNetwork, batch: SequenceBatch, n: int) -> SequenceLosses:
    """Unrolls both networks from the stored states over the rows of a batch on their device, without gradient over the
    burn-in (R2D2, Kapturowski et al., ICLR 2019, section 3), and makes n-step transitions of the rows that are trained
    on."""
    burn_in = int(batch.trained.any(1).argmax())  # every sequence's first trained row is at the same time step
    windows, lanes = Windows.of(batch, burn_in, n), batch.valid.shape[1]
    row, sequence, steps = (torch.from_numpy(column).to(batch.core_state.device) for column in windows)
    rewards, discounts = (column[burn_in:].flatten() for column in (batch.rewards, batch.discounts))
    r_t, discount_t = _returns(rewards, discounts, row, steps, lanes, int(windows.steps.max()))
    boot = row + steps * lanes
    transitions = Transitions(row, batch.actions[burn_in:].flatten()[row], r_t, discount_t, boot)
    if batch.masks is not None:
        masks = batch.masks[burn_in:].flatten(0, 1)
        transitions = transitions._replace(extras_tm1={ACTION_MASK: masks[row]}, extras_t={ACTION_MASK: masks[boot]})
    with torch.no_grad():
        valued = _unrolled(target, batch, burn_in)
    return SequenceLosses(_unrolled(online, batch, burn_in), valued, transitions, sequence)


def _returns(
    rewards: Tensor, discounts: Tensor, row: Tensor, steps: Tensor, lanes: int, n: int
) -> tuple[Tensor, Tensor]:
    """Returns each window's discounted sum of rewards and what its bootstrap is multiplied by, <float>[M] each.

    Rewards are added in their order, as in ``replay.nstep``. rewards, discounts: <float>[R]; row, steps: <int64>[M].
    """
    r_t = torch.zeros_like(rewards[row])
    discount_t = torch.ones_like(r_t)
    for k in range(n):
        within = k < steps
        at = torch.where(within, row + k * lanes, row)
        r_t = r_t + torch.where(within, discount_t * rewards[at], 0.0)
        discount_t = torch.where(within, discount_t * discounts[at], discount_t)
    return r_t, discount_t


def _unrolled(network: QNetwork, batch: SequenceBatch, burn_in: int) -> Unrolled:
    core = network.core
    assert core is not None, "sequences are for networks with a core"
    lengths = batch.valid[:burn_in].sum(0)
    cells = state = core.unpacked(batch.core_state)
    if lengths.any():
        with torch.no_grad():
            cells = core.burn_in(_inputs(network, batch, slice(0, burn_in), state), state, lengths.tolist())
    out, _ = core.unroll(_inputs(network, batch, slice(burn_in, len(batch.valid)), state), cells)
    return Unrolled(network.head, out.flatten(0, 1))


def _inputs(network: QNetwork, batch: SequenceBatch, times: slice, state: dict[str, Tensor]) -> Tensor:
    """Returns what the core is given at these time steps <float>[T, B, inputs]: the features, and where it wants them
    the previous action and reward, those of each sequence's first row by its stored state."""
    assert network.core is not None
    obs = batch.obs[times]
    features = network.features(obs.flatten(0, 1)).reshape(*obs.shape[:2], -1)
    if not network.core.previous:
        return features
    actions, rewards = torch.zeros_like(batch.rewards), torch.zeros_like(batch.rewards)
    actions[1:], rewards[1:] = batch.actions[:-1] + 1, batch.rewards[:-1]
    first, lanes = batch.valid.argmax(0), np.arange(batch.valid.shape[1])
    actions[first, lanes] = state[ACTION][:, 0]
    rewards[first, lanes] = network.core.trained_reward(state[REWARD][:, 0])
    return network.core.with_previous(features, actions[times], rewards[times])


def mixture(td_error: Tensor, sequence: Tensor, sequences: int, eta: float) -> Tensor:
    """Returns each sequence's priority <float>[B], of the |TD errors| <float>[M] of its transitions::

        eta max_t |td_error_t| + (1 - eta) mean_t |td_error_t|

    sequence <int64>[M]: which one each is of (R2D2, section 2.3).
    """
    size = td_error.abs()
    zeros = size.new_zeros(sequences)
    most = zeros.scatter_reduce(0, sequence, size, "amax")
    total, count = zeros.index_add(0, sequence, size), zeros.index_add(0, sequence, torch.ones_like(size))
    return eta * most + (1 - eta) * total / count.clamp(min=1)
