"""Action masks in a loss: what is not allowed is neither maximised over nor chosen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ACTION_MASK = "action_mask"
"""The extra column that says which actions are allowed: <bool>[A] per state, as in Gymnasium's ``info``."""
FORBIDDEN = -1e30
"""The value of an action that is not allowed, where actions are compared. Finite: a terminal state may allow none, and
its value is multiplied by a discount of 0."""


def allowed(q: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
    """Returns values <float32>[B, A] with FORBIDDEN for what the states' action mask rules out, where there is one."""
    mask = extras.get(ACTION_MASK)
    return q if mask is None else q.masked_fill(mask.logical_not(), FORBIDDEN)
