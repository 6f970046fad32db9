"""n-step windows over the rows of a lane, for all lanes of an actor at once.

For a row i whose env step was not followed by an end within n steps::

    r_t        = sum_{k=0}^{n-1} gamma^k r_{i+k}
    discount_t = gamma^n
    s_t        = obs_{i+n}

A window stops at the first boundary row j <= i + n and then has j - i rewards, gamma^(j-i), and s_t = obs_j; its
discount is 0 where row j-1 terminated (truncation keeps it: Pardo et al., arXiv 1712.00378). A window with neither n
rows behind it nor a boundary row stays open until a later chunk closes it.

====================  =======================================================================================
what follows row i    what row i yields
====================  =======================================================================================
n rows, no end        n rewards, gamma^n, bootstraps from row i+n
terminated at i+k     k+1 rewards, 0
truncated at i+k      k+1 rewards, gamma^(k+1), bootstraps from the boundary row i+k+1
fewer rows, no end    nothing yet
the lane breaks       its last row is made a boundary row: as truncated there, without that row's reward
====================  =======================================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.chunk import BOUNDARY, TERMINATED

Array = npt.NDArray[Any]


class Closed(NamedTuple):
    """Windows that closed, each once: row <int64>[M], r_t <float32>[M], discount_t <float32>[M], boot <int64>[M]
    (the row whose observation is s_t)."""

    row: Array
    r_t: Array
    discount_t: Array
    boot: Array


class LaneWindows:
    """The open windows of one actor's E lanes: the last n rows of each, carried from chunk to chunk."""

    def __init__(self, lanes: int, n: int, gamma: float) -> None:
        self._n, self._gamma = n, gamma
        self._reward = np.zeros((n, lanes), np.float32)
        self._flags = np.full((n, lanes), BOUNDARY, np.uint8)
        self._row = np.full((n, lanes), -1, np.int64)
        self._done = np.ones((n, lanes), np.bool_)

    def extend(self, reward: Array, flags: Array, row: Array) -> Closed:
        """Add T rows per lane (reward <float32>[T, E], flags <uint8>[T, E], row <int64>[T, E]); returns what closed."""
        reward = np.concatenate((self._reward, reward))
        flags = np.concatenate((self._flags, flags))
        row = np.concatenate((self._row, row))
        done = np.concatenate((self._done, (flags[self._n :] & BOUNDARY) != 0))
        closed = self._close(reward, flags, row, done)
        keep = slice(len(reward) - self._n, None)
        self._reward, self._flags, self._row, self._done = reward[keep], flags[keep], row[keep], done[keep]
        return closed

    def break_lanes(self) -> Closed:
        """End every lane here: its last row serves as its boundary row. Returns what that closed."""
        self._flags[-1] |= BOUNDARY
        closed = self._close(self._reward, self._flags, self._row, self._done)
        self.__init__(self._flags.shape[1], self._n, self._gamma)  # type: ignore[misc]
        return closed

    def _close(self, reward: Array, flags: Array, row: Array, done: Array) -> Closed:
        """Close what can be closed in [L, E] arrays; marks it in ``done`` in place."""
        length = len(reward)
        boundary = (flags & BOUNDARY) != 0
        factor = np.where((flags & TERMINATED) != 0, np.float32(0), np.float32(self._gamma))
        r_t = np.zeros(reward.shape, np.float32)
        discount_t = np.ones(reward.shape, np.float32)
        boot = np.full(row.shape, -1, np.int64)
        rolling = ~done
        for k in range(min(self._n, length - 1)):
            m = length - 1 - k  # windows that start in the first m rows have a row i+k+1 to look at
            live = rolling[:m]
            r_t[:m] += live * discount_t[:m] * reward[k : k + m]
            discount_t[:m] *= np.where(live, factor[k : k + m], np.float32(1))
            ends = live & boundary[k + 1 :] if k < self._n - 1 else live
            np.copyto(boot[:m], row[k + 1 :], where=ends)
            rolling[:m] ^= ends
        closed = boot >= 0
        done |= closed
        return Closed(row[closed], r_t[closed], discount_t[closed], boot[closed])
