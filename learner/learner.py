"""One update of deep Q-learning: batch in, parameters moved. No log, no clock, no process."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.adam import adam

from learner.algorithms import build_loss
from learner.algorithms.loss import Transitions
from learner.config import LearnerConfig
from learner.networks import build_network
from learner.networks.q_network import QNetwork, flatten_parameters
from replay.chunk import Schema
from replay.mirror import Batch
from replay.state import State, count, number

QUANTILES = (0.5, 0.9, 0.99, 1.0)
ERRORS_KEPT = 16
"""Batches whose TD errors the quantiles are of, the newest."""


class Figures(NamedTuple):
    """How learning went since the last reading: the mean loss, and of the last batch the mean |TD error|, the mean Q,
    the greatest |Q| and the gradient's norm before clipping; 0 where they are not finite. ``td_error_p50`` and so on
    are quantiles of the newest ERRORS_KEPT batches' |TD error|. ``updates_skipped`` counts the updates whose loss or
    gradient was not finite, since the beginning; ``skipped_in_a_row`` those since the last that was."""

    loss: float
    td_error: float
    q_mean: float
    q_abs_max: float
    grad_norm: float
    updates_skipped: float
    skipped_in_a_row: float
    td_error_p50: float
    td_error_p90: float
    td_error_p99: float
    td_error_p100: float


class Learner:
    """Online network, target network, the running average that is evaluated, and Adam's moments.

    ``updates`` counts gradient steps, the unit of every period.
    """

    def __init__(self, config: LearnerConfig, schema: Schema, device: torch.device, seed: int) -> None:
        self.config = config
        self.device = device
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
        self._adam_m, self._adam_v = (
            torch.zeros_like(self._target_parameters),
            torch.zeros_like(self._target_parameters),
        )
        self._adam_steps = torch.zeros((), device=device)
        self._skipped, self._in_a_row = torch.zeros((), device=device), torch.zeros((), device=device)
        self.updates = 0
        self._reset_figures()

    def update(self, batch: Batch, weights: npt.NDArray[Any] | Tensor | None = None) -> Tensor:
        """Takes one gradient step on a batch of transitions; ``weights`` <float32>[B] are the importance weights of
        their losses (None: all 1). Returns the TD errors <float32>[B], on the device."""
        on = batch.map(self._to_device)
        transitions = Transitions(on.s_tm1, on.a_tm1, on.r_t, on.discount_t, on.s_t, on.extras_tm1, on.extras_t)
        out = self._loss(self.online, self.target, transitions)
        loss = (out.losses if weights is None else out.losses * self._to_device(weights)).mean()
        self._step(loss)
        self._record(loss.detach(), out.td_error, out.q_tm1)
        return out.td_error

    def _step(self, loss: Tensor) -> None:
        gradient = self._parameters.grad
        assert gradient is not None
        gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        self._grad_norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((self.config.max_grad_norm / (self._grad_norm + 1e-6)).clamp(max=1.0))
        bad = (loss.detach() + self._grad_norm).isfinite().logical_not().float()
        self._skipped.add_(bad)
        self._in_a_row.add_(1).mul_(bad)
        self._adam(gradient, bad)
        self.updates += 1
        if self.updates % self.config.target_period_updates == 0:
            self._target_parameters.lerp_(self._parameters.detach(), self.config.target_tau)
        self._average_parameters.lerp_(self._parameters.detach(), self.config.average_tau)

    def _adam(self, gradient: Tensor, bad: Tensor) -> None:
        """One step of Adam (Kingma and Ba, arXiv 1412.6980) on the parameter vector; none where ``bad`` is 1, decided
        on the device, so that nobody waits for it.

        torch's functional form: the Optimizer class would import torch._dynamo, 1.1 s of every start, and costs twice
        as much per step on a single tensor (docs/performance.md).
        """
        with torch.no_grad():
            adam(
                [self._parameters],
                [gradient],
                [self._adam_m],
                [self._adam_v],
                [],
                [self._adam_steps],
                fused=True,
                found_inf=bad,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self.config.lr,
                weight_decay=0.0,
                eps=self.config.adam_eps,
                maximize=False,
            )

    def _to_device(self, column: npt.NDArray[Any] | Tensor) -> Tensor:
        """A column of the host's, or of a mirror that lies on the device already."""
        return torch.as_tensor(column).to(self.device, non_blocking=True)

    def _record(self, loss: Tensor, error: Tensor, q_tm1: Tensor) -> None:
        """Keep figures on the device: reading them would wait for it."""
        self._loss_sum += torch.nan_to_num(loss, 0.0, 0.0, 0.0)
        self._errors.append(error)
        self._last_q = q_tm1
        self._recorded += 1

    def _reset_figures(self) -> None:
        self._loss_sum = torch.zeros((), device=self.device)
        self._errors: deque[Tensor] = deque(maxlen=ERRORS_KEPT)
        self._last_q = self._grad_norm = self._loss_sum
        self._recorded = 0

    def figures(self) -> Figures | None:
        """The figures since the last call (it waits for the device: once per log interval); None without an update."""
        if not self._recorded:
            return None
        quantiles = torch.cat(tuple(self._errors)).abs().quantile(torch.tensor(QUANTILES, device=self.device))
        of_batch = (self._errors[-1].abs().mean(), self._last_q.mean(), self._last_q.abs().max(), self._grad_norm)
        tensors = (self._loss_sum / self._recorded, *of_batch, self._skipped, self._in_a_row, *quantiles)
        figures = Figures(*torch.nan_to_num(torch.stack(tensors), 0.0, 0.0, 0.0).tolist())
        self._reset_figures()
        return figures

    def state(self) -> State:
        """See ``replay.state``. Figures that were not read yet are left out: a checkpoint comes behind a report."""
        arrays = {name: vector.detach().cpu().numpy() for name, vector in self._vectors().items()}
        values = {name: float(scalar) for name, scalar in self._scalars().items()}
        return State({"updates": self.updates, **values}, arrays)

    def restore(self, state: State) -> None:
        """See ``replay.state``. Raises ValueError where the state is of another network."""
        for name, vector in self._vectors().items():
            saved = state.arrays[name]
            if saved.shape != vector.shape:
                raise ValueError(f"a network of {vector.numel()} parameters, the checkpoint's has {saved.size}")
            if saved.dtype != np.float32 or not np.isfinite(saved).all():
                raise ValueError(f"{name} has parameters that are no finite <float32>")
            vector.detach().copy_(torch.from_numpy(saved))
        for name, scalar in self._scalars().items():
            scalar.fill_(number(state.values[name], name, 0))
        self.updates = count(state.values["updates"], "updates")

    @property
    def last_was_skipped(self) -> bool:
        """Whether the newest update was not finite (it waits for the device)."""
        return bool(self._in_a_row > 0)

    def _vectors(self) -> dict[str, Tensor]:
        return {
            "online": self._parameters,
            "target": self._target_parameters,
            "average": self._average_parameters,
            "adam_m": self._adam_m,
            "adam_v": self._adam_v,
        }

    def _scalars(self) -> dict[str, Tensor]:
        return {"adam_steps": self._adam_steps, "skipped": self._skipped, "skipped_in_a_row": self._in_a_row}


def host_arrays(network: QNetwork) -> dict[str, npt.NDArray[Any]]:
    """A network's parameters by name, on the host."""
    return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}; try auto or cpu") from error
    return device
