"""The recurrent core in torch: one time step for acting, whole sequences for learning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from learner.networks.config import NetworkSpec
from learner.networks.portable import ACTION, REWARD, Memory
from learner.networks.program import core_of
from learner.networks.shapes import core_inputs


class RecurrentCore(nn.Module):
    """An LSTM or a GRU of one layer (Hochreiter and Schmidhuber 1997; Cho et al., arXiv 1406.1078)."""

    def __init__(self, features: int, num_actions: int, spec: NetworkSpec) -> None:
        """``features``: of the encoder."""
        super().__init__()
        config = spec.config
        self._num_actions, self._spec, self.previous = num_actions, spec, config.core_previous
        self.memory, self.features = Memory.of(core_of(spec, num_actions)), config.core_size
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[config.core]
        self.rnn = kind(core_inputs(config, features, num_actions), config.core_size)

    def step(self, features: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Maps features <float>[B, F] and the lanes' state to what the head is given <float>[B, H] and the state
        after."""
        if self.previous:
            reward = self.trained_reward(state[REWARD][:, 0])
            features = self.with_previous(features, state[ACTION][:, 0], reward)
        out, cells = self.unroll(features.unsqueeze(0), state)
        return out[0], {**state, **cells}

    def trained_reward(self, reward: Tensor) -> Tensor:
        """Returns an environment's rewards as they are trained on."""
        return (reward.sign() if self._spec.reward_clip else reward) * self._spec.reward_scale

    def with_previous(self, features: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Returns features <float>[..., F] with the previous action (its number + 1, 0: none) and reward [...]."""
        numbers = torch.arange(1, self._num_actions + 1, device=action.device)
        hot = (action.unsqueeze(-1) == numbers).to(features.dtype)
        return torch.cat((features, hot, reward.to(features.dtype).unsqueeze(-1)), -1)

    def unroll(self, x: Tensor, cells: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps x <float>[T, B, inputs] and the cells before it (h <float>[B, H], and c of an LSTM) to the outputs
        <float>[T, B, H] and the cells after."""
        out, after = self.rnn(x, self._given(cells))
        return out, self._named(after)

    def burn_in(self, x: Tensor, cells: Mapping[str, Tensor], lengths: list[int]) -> dict[str, Tensor]:
        """Returns the cells after the last ``lengths`` <int>[B] of the time steps x <float>[T, B, inputs] each."""
        steps = len(x)
        if min(lengths) == steps:
            return self.unroll(x, cells)[1]
        count = torch.tensor(lengths, device=x.device)
        index = (torch.arange(steps, device=x.device)[:, None] + (steps - count)).clamp(max=steps - 1)
        first = x.gather(0, index.unsqueeze(-1).expand_as(x))  # each sequence's own steps begin at 0
        packed = pack_padded_sequence(first, torch.tensor(lengths).clamp(min=1), enforce_sorted=False)
        _, after = self.rnn(packed, self._given(cells))
        return {
            name: torch.where((count > 0).unsqueeze(-1), cell, cells[name]) for name, cell in self._named(after).items()
        }

    def unpacked(self, state: Tensor) -> dict[str, Tensor]:
        """Returns the arrays by name of states <float>[B, width] that lie one after another."""
        parts = torch.split(state, list(self.memory.widths.values()), 1)
        return dict(zip(self.memory.widths, parts, strict=True))

    @property
    def _cells(self) -> tuple[str, ...]:
        return ("h", "c") if isinstance(self.rnn, nn.LSTM) else ("h",)

    def _given(self, cells: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Returns the cells as torch's modules take them, <float>[1, B, H] each."""
        given = tuple(cells[name].unsqueeze(0).contiguous() for name in self._cells)
        return given if len(given) > 1 else given[0]

    def _named(self, after: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        each = after if isinstance(after, tuple) else (after,)
        return {name: cell[0] for name, cell in zip(self._cells, each, strict=True)}
