"""How learning went lately: kept on the device at each update, computed once per report."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from learner.metrics import UpdateMetrics

QUANTILES = (0.5, 0.9, 0.99, 1.0)
ERRORS_KEPT = 16
"""Batches whose TD errors the quantiles are of, the newest."""


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

    def read(self, skipped: Tensor, in_a_row: Tensor) -> UpdateMetrics | None:
        """Returns the metrics since the last call, which waits for the device; None without an update. ``skipped`` and
        ``in_a_row`` <float32>[]: the updates skipped in all, and since the last that was not."""
        if not self._recorded:
            return None
        quantiles = torch.cat(tuple(self._errors)).abs().quantile(torch.tensor(QUANTILES, device=self._device))
        of_batch = (self._errors[-1].abs().mean(), self._last_q.mean(), self._last_q.abs().max(), self._grad_norm)
        tensors = (self._loss_sum / self._recorded, *of_batch, skipped, in_a_row, *quantiles)
        metrics = UpdateMetrics(*torch.nan_to_num(torch.stack(tensors), 0.0, 0.0, 0.0).tolist())
        self._clear()
        return metrics
