"""Temporal-difference errors. One equation, one function; loss and weighting are the caller's.

Subscripts name time, as in rlax: ``a_tm1`` was taken in ``s_tm1``, ``r_t`` and ``discount_t`` came of it, ``q_t`` are
the values of ``s_t``. Terminal is ``discount_t = 0``; truncation keeps the discount.
"""

from __future__ import annotations

import torch
from torch import Tensor


def q_learning(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor) -> Tensor:
    """``r_t + discount_t * max_a q_t[a] - q_tm1[a_tm1]``, the target without gradient.

    q_tm1, q_t: <float>[B, A]; a_tm1: <int64>[B]; r_t, discount_t: <float>[B]. Returns <float>[B].
    Watkins 1989; with ``q_t`` of a target network: Mnih et al. 2015, doi 10.1038/nature14236.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t)
    target_tm1 = r_t + discount_t * q_t.amax(1)
    return target_tm1.detach() - _taken(q_tm1, a_tm1)


def double_q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor
) -> Tensor:
    """``r_t + discount_t * q_t_value[argmax_a q_t_selector[a]] - q_tm1[a_tm1]``, the target without gradient.

    ``q_t_selector`` is the online network's on s_t, ``q_t_value`` the target network's; shapes as in ``q_learning``.
    Van Hasselt et al., arXiv 1509.06461.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector)
    target_tm1 = r_t + discount_t * _taken(q_t_value, q_t_selector.argmax(1))
    return target_tm1.detach() - _taken(q_tm1, a_tm1)


def quantile_regression(theta_tm1: Tensor, target_tm1: Tensor, kappa: float) -> Tensor:
    """The quantile Huber loss, summed over the quantiles that learn and averaged over those of the target::

        sum_i mean_j |tau_i - 1{u_ij < 0}| huber(u_ij, kappa) / kappa,    u_ij = target_tm1[j] - theta_tm1[i]

    with the midpoints tau_i = (i + 0.5) / N. theta_tm1: <float>[B, N], of the action taken; target_tm1: <float>[B, N'],
    taken without gradient. Returns <float>[B]. Dabney et al., arXiv 1710.10044, equation 10.
    """
    if theta_tm1.dim() != 2 or target_tm1.dim() != 2 or len(theta_tm1) != len(target_tm1):
        shapes = [tuple(theta_tm1.shape), tuple(target_tm1.shape)]
        raise ValueError(f"quantiles have to be [B, N] and [B, N'], got {shapes}")
    count = theta_tm1.shape[1]
    tau = (torch.arange(count, device=theta_tm1.device, dtype=theta_tm1.dtype) + 0.5) / count
    u = target_tm1.detach().unsqueeze(1) - theta_tm1.unsqueeze(2)  # [B, N, N']: learning quantiles before the target's
    weight = (tau.view(1, -1, 1) - (u.detach() < 0).to(u.dtype)).abs()
    return (weight * huber(u, kappa) / kappa).mean(2).sum(1)


def huber(error: Tensor, delta: float) -> Tensor:
    """``0.5 e^2`` within ``|e| <= delta``, ``delta (|e| - 0.5 delta)`` beyond, elementwise."""
    size = error.abs()
    quadratic = size.clamp(max=delta)
    return quadratic * (size - 0.5 * quadratic)


def _taken(q: Tensor, action: Tensor) -> Tensor:
    return q.gather(1, action.unsqueeze(1)).squeeze(1)


def _check(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, *q_ts: Tensor) -> None:
    """Refuse what would broadcast silently into a wrong answer."""
    batch = q_tm1.shape[:1]
    if q_tm1.dim() != 2 or any(q_t.shape != q_tm1.shape for q_t in q_ts):
        raise ValueError(f"Q values have to be [B, A] alike, got {[tuple(q.shape) for q in (q_tm1, *q_ts)]}")
    if any(column.shape != batch for column in (a_tm1, r_t, discount_t)):
        shapes = [tuple(column.shape) for column in (a_tm1, r_t, discount_t)]
        raise ValueError(f"a_tm1, r_t and discount_t have to be [{batch[0]}], got {shapes}")
    if a_tm1.dtype != torch.int64:
        raise ValueError(f"a_tm1 has to be int64, got {a_tm1.dtype}")
