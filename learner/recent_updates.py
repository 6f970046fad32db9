"""How learning went lately: kept on the device at each update, computed once per report."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

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


class RecentUpdates:
    """Records the updates since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._loss_sum = torch.zeros((), device=self._device)
        self._errors: deque[Tensor] = deque(maxlen=ERRORS_KEPT)
        self._last_q = self._grad_norm = self._loss_sum
        self._recorded = 0

    def record(self, loss: Tensor, td_error: Tensor, q_tm1: Tensor, grad_norm: Tensor) -> None:
        """Records an update: loss and grad_norm <float32>[], td_error <float32>[B], q_tm1 <float32>[B, A]. All stays on
        the device: reading it would wait for it."""
        self._loss_sum += torch.nan_to_num(loss, 0.0, 0.0, 0.0)
        self._errors.append(td_error)
        self._last_q, self._grad_norm = q_tm1, grad_norm
        self._recorded += 1

    def read(self, skipped: Tensor, in_a_row: Tensor) -> Figures | None:
        """Returns the figures since the last call, which waits for the device; None without an update. ``skipped`` and
        ``in_a_row`` <float32>[]: the updates skipped in all, and since the last that was not."""
        if not self._recorded:
            return None
        quantiles = torch.cat(tuple(self._errors)).abs().quantile(torch.tensor(QUANTILES, device=self._device))
        of_batch = (self._errors[-1].abs().mean(), self._last_q.mean(), self._last_q.abs().max(), self._grad_norm)
        tensors = (self._loss_sum / self._recorded, *of_batch, skipped, in_a_row, *quantiles)
        figures = Figures(*torch.nan_to_num(torch.stack(tensors), 0.0, 0.0, 0.0).tolist())
        self._clear()
        return figures
