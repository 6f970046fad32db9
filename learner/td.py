"""Temporal-difference errors. One equation, one function; loss and weighting are the caller's.

Subscripts name time, as in rlax: ``a_tm1`` was taken in ``s_tm1``, ``r_t`` and ``discount_t`` came of it, ``q_t`` are
the values of ``s_t``. Terminal is ``discount_t = 0``; truncation keeps the discount.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from replay.nstep import RESCALE_SLOPE


class Transform(NamedTuple):
    """A monotonic function that values are learned under, and its inverse."""

    apply: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]


def q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, transform: Transform | None = None
) -> Tensor:
    """``r_t + discount_t * max_a q_t[a] - q_tm1[a_tm1]``, the target without gradient.

    q_tm1, q_t: <float>[B, A]; a_tm1: <int64>[B]; r_t, discount_t: <float>[B]. Returns <float>[B].
    Watkins 1989; with ``q_t`` of a target network: Mnih et al. 2015, doi 10.1038/nature14236.
    ``transform``: see ``transformed``.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t)
    return transformed(r_t, discount_t, q_t.amax(1), transform).detach() - taken(q_tm1, a_tm1)


def double_q_learning(
    q_tm1: Tensor,
    a_tm1: Tensor,
    r_t: Tensor,
    discount_t: Tensor,
    q_t_value: Tensor,
    q_t_selector: Tensor,
    transform: Transform | None = None,
) -> Tensor:
    """``r_t + discount_t * q_t_value[argmax_a q_t_selector[a]] - q_tm1[a_tm1]``, the target without gradient.

    ``q_t_selector`` is the online network's on s_t, ``q_t_value`` the target network's; shapes as in ``q_learning``.
    Van Hasselt et al., arXiv 1509.06461. ``transform``: see ``transformed``.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector)
    value = taken(q_t_value, q_t_selector.argmax(1))
    return transformed(r_t, discount_t, value, transform).detach() - taken(q_tm1, a_tm1)


def transformed(r_t: Tensor, discount_t: Tensor, value: Tensor, transform: Transform | None) -> Tensor:
    """Returns the target ``r_t + discount_t * value``; with a transform h, of values that are learned under it:
    ``h(r_t + discount_t * h^-1(value))`` (Pohlen et al., arXiv 1805.11593)."""
    if transform is None:
        return r_t + discount_t * value
    return transform.apply(r_t + discount_t * transform.invert(value))


def signed_hyperbolic(x: Tensor) -> Tensor:
    """``sign(x) (sqrt(|x| + 1) - 1) + 1e-3 x``, elementwise: near x / 2 around 0, a root of great values.

    Written without that difference, which around 0 would leave little of a small ``x``.
    """
    return x / ((x.abs() + 1).sqrt() + 1) + RESCALE_SLOPE * x


def signed_parabolic(x: Tensor) -> Tensor:
    """The inverse of ``signed_hyperbolic``, elementwise; exact around 0, too."""
    root = (1 + 4 * RESCALE_SLOPE * (RESCALE_SLOPE + 1 + x.abs())).sqrt()
    y = 2 * x / (root + 1 + 2 * RESCALE_SLOPE)  # what sqrt(|value| + 1) is above 1, with the sign
    return y * (y.abs() + 2)


def scaled_log_policy(q: Tensor, tau: float) -> Tensor:
    """``tau ln softmax(q / tau)`` <float>[B, A] of values <float>[B, A], without overflow for small ``tau``
    (Vieillard et al., arXiv 2007.14430, appendix B.1)."""
    return tau * torch.log_softmax(q / tau, 1)


def quantile_regression(theta_tm1: Tensor, target_tm1: Tensor, kappa: float, tau: Tensor | None = None) -> Tensor:
    """The quantile Huber loss, summed over the quantiles that learn and averaged over those of the target::

        sum_i mean_j |tau_i - 1{u_ij < 0}| huber(u_ij, kappa) / kappa,    u_ij = target_tm1[j] - theta_tm1[i]

    theta_tm1: <float>[B, N], of the action taken, at ``tau`` <float>[B, N], which are the midpoints (i + 0.5) / N where
    they are not given; target_tm1: <float>[B, N'], taken without gradient. Returns <float>[B].
    Dabney et al., arXiv 1710.10044, equation 10.
    """
    if theta_tm1.dim() != 2 or target_tm1.dim() != 2 or len(theta_tm1) != len(target_tm1):
        shapes = [tuple(theta_tm1.shape), tuple(target_tm1.shape)]
        raise ValueError(f"quantiles have to be [B, N] and [B, N'], got {shapes}")
    if tau is None:
        tau = midpoints(theta_tm1.shape[1], theta_tm1).unsqueeze(0)
    theta, tau = theta_tm1.detach(), tau.detach().unsqueeze(2)
    u = target_tm1.detach().unsqueeze(1) - theta.unsqueeze(2)  # [B, N, N']: learning quantiles before the target's
    slope = u.clamp(-kappa, kappa)  # of huber(u), which is slope * (u - slope / 2)
    weighted = torch.addcmul(tau * slope, 1 - 2 * tau, slope.clamp(max=0))
    losses = (weighted * torch.sub(u, slope, alpha=0.5)).mean(2) / kappa
    # the gradient by hand: autograd would go through all N N' pairs four times more
    return (losses - (theta_tm1 - theta) * weighted.mean(2) / kappa).sum(1)


def midpoints(count: int, like: Tensor) -> Tensor:
    """Returns (i + 0.5) / count <float>[count], of the dtype and on the device of ``like``."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def categorical_projection(support: Tensor, probability: Tensor, atoms: Tensor) -> Tensor:
    """Projects distributions onto atoms: each probability is shared by the two atoms around its place, by nearness.

    support, probability: <float>[B, M], places and probabilities; atoms: <float>[N], ascending and evenly spaced. What
    lies beyond the first or the last atom goes to it. Returns <float>[B, N], with the sums of ``probability``.
    Bellemare et al., arXiv 1707.06887, equation 7.
    """
    if support.dim() != 2 or support.shape != probability.shape or atoms.dim() != 1 or len(atoms) < 2:
        shapes = [tuple(each.shape) for each in (support, probability, atoms)]
        raise ValueError(f"support and probability have to be [B, M], atoms [N], N at least 2, got {shapes}")
    places = support.clamp(float(atoms[0]), float(atoms[-1])).unsqueeze(1)  # [B, 1, M]
    nearness = (1 - (places - atoms.view(1, -1, 1)).abs() / (atoms[1] - atoms[0])).clamp(0, 1)  # [B, N, M]
    return (nearness * probability.unsqueeze(1)).sum(2)


def huber(error: Tensor, delta: float) -> Tensor:
    """``0.5 e^2`` within ``|e| <= delta``, ``delta (|e| - 0.5 delta)`` beyond, elementwise."""
    size = error.abs()
    quadratic = size.clamp(max=delta)
    return quadratic * (size - 0.5 * quadratic)


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Returns the values <float>[B] of one action each <int64>[B]; q: <float>[B, A]."""
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
