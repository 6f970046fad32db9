"""One update of deep Q-learning: batch in, parameters moved. No log, no clock, no process."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.adam import Adam
from learner.algorithms import build_loss
from learner.algorithms.loss import LossOutput, Transitions
from learner.collective import Alone, Collective
from learner.config import LearnerConfig
from learner.horizon import horizon_at
from learner.metrics import UpdateMetrics
from learner.networks import build_network
from learner.networks.q_network import (
    FoldedWeight,
    QNetwork,
    decayed,
    flatten_parameters,
    in_shape_order,
    set_in_shape_order,
)
from learner.recent_updates import RecentUpdates
from learner.samples import on_device
from learner.sequences import mixture, unroll
from replay.chunk import Schema
from replay.mirror import Batch
from replay.sequences import SequenceBatch
from replay.state import State, count, number


class Learner:
    """Online network, target network, the running average that is evaluated, and Adam's moments.

    ``updates`` counts gradient steps, the unit of every period.
    """

    def __init__(
        self,
        config: LearnerConfig,
        schema: Schema,
        device: torch.device,
        seed: int,
        collective: Collective | None = None,
    ) -> None:
        """``seed`` starts the networks' random numbers; ``collective``: the learners that share this one's updates,
        none where it is not given."""
        self.config, self.device, self.collective = config, device, collective or Alone()
        torch.manual_seed(seed)
        self._loss, spec = build_loss(config), config.network_spec
        self.online = build_network(spec, schema).to(device)
        self.target = build_network(spec, schema).to(device).requires_grad_(False)
        self._parameters = flatten_parameters(self.online)
        self._target_parameters = flatten_parameters(self.target).detach()
        self.average = build_network(spec, schema).to(device).requires_grad_(False)
        self._average_parameters = flatten_parameters(self.average).detach()
        for copy in (self._target_parameters, self._average_parameters):
            copy.copy_(self._parameters.detach())
        decay = decayed(self.online) * config.weight_decay if config.weight_decay else None
        self._adam = Adam(self._parameters, config.lr, config.adam_eps, decay)
        self._skipped, self._in_a_row = torch.zeros((), device=device), torch.zeros((), device=device)
        self.recent = RecentUpdates(device)
        self.updates = 0

    def update(self, batch: Batch | SequenceBatch, weights: npt.NDArray[Any] | Tensor | None = None) -> Tensor:
        """Takes one gradient step on a batch of transitions, or of sequences where the network has a core; ``weights``
        <float32>[B] are the importance weights of their losses (None: all 1). Returns the TD errors <float32>[B], of
        sequences the priorities that their errors give (see ``sequences.mixture``), on the device."""
        factors = None if weights is None else on_device(weights, self.device)
        if isinstance(batch, SequenceBatch):
            return self._update_on_sequences(batch.map(lambda column: on_device(column, self.device)), factors)
        on = batch.map(lambda column: on_device(column, self.device))
        s_tm1, s_t = self.online.scaled(on.s_tm1), self.online.scaled(on.s_t)
        transitions = Transitions(s_tm1, on.a_tm1, on.r_t, on.discount_t, s_t, on.extras_tm1, on.extras_t)
        return self._descend(self._loss(self.online, self.target, transitions), factors)

    def _update_on_sequences(self, batch: SequenceBatch, weights: Tensor | None) -> Tensor:
        """The loss is the mean over all rows that are trained on, each with its sequence's weight."""
        n = horizon_at(self.config, self.updates).n
        online, target, transitions, sequence = unroll(self.online, self.target, batch, n)
        out = self._loss(online, target, transitions)
        error = self._descend(out, None if weights is None else weights[sequence])
        return mixture(error, sequence, batch.valid.shape[1], self.config.priority_eta)

    def _descend(self, out: LossOutput, weights: Tensor | None) -> Tensor:
        """Takes the gradient step of these losses. Returns their TD errors."""
        loss = (out.losses if weights is None else out.losses * weights).mean()
        grad_norm = self._step(loss)
        self.recent.record(loss.detach(), out.td_error, out.q_tm1, grad_norm)
        return out.td_error

    def _step(self, loss: Tensor) -> Tensor:
        """Moves the parameters, and what follows them. Returns the gradient's norm <float32>[] before clipping."""
        gradient = self._parameters.grad
        assert gradient is not None
        gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        self.collective.mean_(gradient)
        grad_norm: Tensor = torch.linalg.vector_norm(gradient)
        gradient.mul_((self.config.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        # The loss counts, too: Huber's gradient is bounded, so it stays finite where the loss overflows. The loss is of
        # this learner's own batch, so all have to agree: one that skipped alone would have other weights for good.
        bad = (loss.detach() + grad_norm).isfinite().logical_not().float()
        self.collective.any_(bad)
        self._skipped.add_(bad)
        self._in_a_row.add_(1).mul_(bad)
        self._adam.step(gradient, bad)
        self.updates += 1
        if self.updates % self.config.target_period_updates == 0:
            self._target_parameters.lerp_(self._parameters.detach(), self.config.target_tau)
        self._average_parameters.lerp_(self._parameters.detach(), self.config.average_tau)
        return grad_norm

    def metrics(self) -> UpdateMetrics | None:
        """See ``RecentUpdates.read``."""
        return self.recent.read(self._skipped, self._in_a_row)

    def state(self) -> State:
        """See ``replay.state``. Figures that were not read yet are left out: a checkpoint comes after a report."""
        arrays = {
            name: in_shape_order(vector.detach(), self.online).cpu().numpy() for name, vector in self._vectors().items()
        }
        arrays["random"] = _random_state(self.device).numpy()
        values = {name: float(scalar) for name, scalar in self._scalars().items()}
        return State({"updates": self.updates, "random_of": self.device.type, **values}, arrays)

    def restore(self, state: State) -> None:
        """See ``replay.state``. Raises ValueError where the state is of another network."""
        for name, vector in self._vectors().items():
            saved = state.arrays[name]
            if saved.shape != vector.shape:
                raise ValueError(f"a network of {vector.numel()} parameters, the checkpoint's has {saved.size}")
            if saved.dtype != np.float32 or not np.isfinite(saved).all():
                raise ValueError(f"{name} has parameters that are no finite <float32>")
            set_in_shape_order(vector.detach(), self.online, torch.from_numpy(saved))
        if state.values["random_of"] == self.device.type:  # another kind of device has another kind of random numbers
            _set_random_state(self.device, state.arrays["random"])
        for name, scalar in self._scalars().items():
            scalar.fill_(number(state.values[name], name, 0))
        self.updates = count(state.values["updates"], "updates")

    @property
    def last_was_skipped(self) -> bool:
        """Returns whether the newest update was not finite, which waits for the device."""
        return bool(self._in_a_row > 0)

    def _vectors(self) -> dict[str, Tensor]:
        return {
            "online": self._parameters,
            "target": self._target_parameters,
            "average": self._average_parameters,
            "adam_m": self._adam.m,
            "adam_v": self._adam.v,
        }

    def _scalars(self) -> dict[str, Tensor]:
        return {"adam_steps": self._adam.steps, "skipped": self._skipped, "skipped_in_a_row": self._in_a_row}


def _random_state(device: torch.device) -> Tensor:
    """Returns the state of torch's random numbers <uint8>[N] where losses draw them, such as IQN's fractions."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, saved: npt.NDArray[Any]) -> None:
    """Raises ValueError for an array that is no such state."""
    if saved.dtype != np.uint8 or saved.shape != _random_state(device).shape:
        raise ValueError(f"random is no state of {device.type}'s random numbers")
    state = torch.from_numpy(np.array(saved))
    try:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
    except RuntimeError as error:
        raise ValueError(f"random is no state of {device.type}'s random numbers: {error}") from error


def host_arrays(network: QNetwork) -> dict[str, npt.NDArray[Any]]:
    """Returns the parameters of the network that acts, by name, on the host: where a layer computes its weight from
    another one (spectral norm), the computed one, so that nobody who acts computes it again."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules():
        if isinstance(module, FoldedWeight):
            with torch.no_grad():
                arrays[f"{name}.weight"] = module.folded_weight().cpu().numpy()
    return arrays


def device_name(device: torch.device) -> str:
    """Returns what is behind a device: CPU, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def choose_device(name: str) -> torch.device:
    """Returns the device of this name; ``auto`` is a GPU if there is one. Raises ValueError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}; try auto or cpu") from error
    return device
