"""Action masks in a loss: what is not allowed is neither maximised over nor chosen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from replay.chunk import ACTION_MASK

FORBIDDEN = -1e30
"""The value of an action that is not allowed, where actions are compared. Finite, since softmax multiplies it by 0."""


def allowed(q: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
    """Returns values <float32>[B, A] with FORBIDDEN for what the states' action mask rules out, where there is one. A
    state that allows none, as one after the end of an episode may, keeps its own: where the end is a truncation it is
    bootstrapped from."""
    if ACTION_MASK not in extras:
        return q
    may = extras[ACTION_MASK] != 0
    return q.masked_fill(~may & may.any(1, keepdim=True), FORBIDDEN)
