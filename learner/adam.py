"""Adam on one parameter vector, with updates that are skipped on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam's moments ``m`` and ``v`` <float32>[P], and its ``steps`` <float32>[] (Kingma and Ba, arXiv 1412.6980).

    torch's functional form: the Optimizer class would import torch._dynamo, 1.1 s of every start, and costs twice as
    much per step on a single tensor (docs/performance.md).
    """

    def __init__(self, parameters: Tensor, lr: float, eps: float, weight_decay: Tensor | None = None) -> None:
        """``parameters`` <float32>[P]: the vector that ``step`` changes in place; ``weight_decay`` <float32>[P]: of
        each of them, decoupled from the gradient (AdamW: Loshchilov and Hutter, arXiv 1711.05101)."""
        self._shrink = None if weight_decay is None else lr * weight_decay
        self._parameters, self._lr, self._eps = parameters, lr, eps
        self.m, self.v = torch.zeros_like(parameters.detach()), torch.zeros_like(parameters.detach())
        self.steps = torch.zeros((), device=parameters.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, bad: Tensor) -> None:
        """Takes a step, and none where ``bad`` <float32>[] is 1: decided on the device, so that nobody waits for it."""
        if self._shrink is not None:
            self._parameters.sub_(self._parameters * self._shrink * (1 - bad))
        adam(
            [self._parameters],
            [gradient],
            [self.m],
            [self.v],
            [],
            [self.steps],
            fused=True,
            found_inf=bad,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr,
            weight_decay=0.0,
            eps=self._eps,
            maximize=False,
        )
