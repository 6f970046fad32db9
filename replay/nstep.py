"""n-step windows over the rows of a lane, for all lanes of an actor at once.

For a row i whose env step was not followed by an end within n steps::

    r_t        = sum_{k=0}^{n-1} gamma^k r_{i+k}
    discount_t = gamma^n
    s_t        = obs_{i+n}

A window stops at the first boundary row j <= i + n and then has j - i rewards, gamma^(j-i), and s_t = obs_j; its
discount is 0 where row j-1 terminated (truncation keeps it: Pardo et al., arXiv 1712.00378). A window with neither n
rows after it nor a boundary row stays open until a later chunk closes it.

====================  =======================================================================================
what follows row i    what row i yields
====================  =======================================================================================
n rows, no end        n rewards, gamma^n, bootstraps from row i+n
terminated at i+k     k+1 rewards, 0
truncated at i+k      k+1 rewards, gamma^(k+1), bootstraps from the boundary row i+k+1
fewer rows, no end    nothing yet
the lane breaks       its last row is made a boundary row: as truncated there, without that row's reward
====================  =======================================================================================

With the actor's own Q values, which every row carries, a window that closes also has the actor's TD error, the initial
priority of Ape-X (arXiv 1803.00933, section 3)::

    td_error = r_t + discount_t max_a Q(s_t, a) - Q(s_tm1, a_tm1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.chunk import BOUNDARY, TERMINATED
from replay.state import State, array_in

Array = npt.NDArray[Any]


class NewTransitions(NamedTuple):
    """Rows whose windows have closed, each once: row <int64>[M], r_t, discount_t <float32>[M], bootstrap_row <int64>[M]
    (the row whose observation is s_t), td_error <float32>[M] (by the actor's Q values when it acted)."""

    row: Array
    r_t: Array
    discount_t: Array
    bootstrap_row: Array
    td_error: Array


class _Rows(NamedTuple):
    """T rows of E lanes, [T, E] each; ``done``: no window starts here any more."""

    reward: Array
    flags: Array
    row: Array
    q_taken: Array
    q_max: Array
    done: Array


class LaneWindows:
    """The open windows of one actor's E lanes: the last n rows of each, carried from chunk to chunk.

    ``n`` and ``gamma`` may be changed between two chunks: windows that close from then on have them.
    """

    def __init__(
        self, lanes: int, n: int, gamma: float, *, longest: int | None = None, value_rescale: bool = False
    ) -> None:
        """``longest``: the greatest ``n`` that there will be, where it changes; ``value_rescale``: Q values are those
        of returns under ``signed_hyperbolic``, and so are TD errors."""
        self.lanes, self.n, self.gamma, self._value_rescale = lanes, n, gamma, value_rescale
        self._longest = longest or n
        self._forget()

    def _forget(self) -> None:
        grid = (self._longest, self.lanes)
        zeros = np.zeros(grid, np.float32)
        row, done = np.full(grid, -1, np.int64), np.ones(grid, np.bool_)
        self._carried = _Rows(zeros, np.full(grid, BOUNDARY, np.uint8), row, zeros, zeros, done)

    @property
    def last_row(self) -> Array:
        """Returns each lane's newest row <int64>[E] where its episode goes on after it, else -1."""
        return np.where(self._carried.flags[-1] & BOUNDARY, -1, self._carried.row[-1])

    @property
    def last_flags(self) -> Array:
        """Returns the flags of each lane's newest row <uint8>[E]."""
        last: Array = self._carried.flags[-1]
        return last

    def state(self) -> dict[str, Array]:
        """Returns what is carried from chunk to chunk, by column: [longest n, E] each."""
        return self._carried._asdict()

    def restore(self, carried: Mapping[str, Array]) -> None:
        """Continues from there."""
        grid = {name: array_in(State({}, carried), name, like.shape, like.dtype) for name, like in self.state().items()}
        self._carried = _Rows(**{name: np.array(each) for name, each in grid.items()})

    def extend(self, reward: Array, flags: Array, row: Array, q_taken: Array, q_max: Array) -> NewTransitions:
        """Adds T rows per lane, [T, E] each: reward, q_taken, q_max <float32>, flags <uint8>, row <int64>.

        Returns what closed.
        """
        added = _Rows(reward, flags, row, q_taken, q_max, (flags & BOUNDARY) != 0)
        rows = _Rows(*(np.concatenate(pair) for pair in zip(self._carried, added, strict=True)))
        closed = self._close(rows)
        self._carried = _Rows(*(column[-self._longest :] for column in rows))
        return closed

    def break_lanes(self) -> NewTransitions:
        """Ends every lane here: its last row serves as its boundary row. Returns what that closed."""
        self._carried.flags[-1] |= BOUNDARY
        closed = self._close(self._carried)
        self._forget()
        return closed

    @np.errstate(over="ignore", invalid="ignore")
    def _close(self, rows: _Rows) -> NewTransitions:
        """Closes the windows that can be closed, for all lanes together; marks them in ``rows.done`` in place.

        Step k adds the reward of row i+k to every window i that is still open, in place and where ``live``: the time
        axis of a carried grid and a chunk is short (n + T), the lanes are many.
        """
        reward, flags, row, q_taken, q_max, done = rows
        length, lanes = reward.shape
        boundary = (flags & BOUNDARY) != 0
        factor = np.where((flags & TERMINATED) != 0, np.float32(0), np.float32(self.gamma))
        r_t, term = np.zeros_like(reward), np.empty_like(reward)
        discount_t = np.ones_like(reward)
        ahead = np.zeros(reward.shape, np.int64)  # rows from a window's first to the one it bootstraps from
        rolling = ~done
        for k in range(min(self.n, length - 1)):
            m = length - 1 - k  # windows that start in the first m rows have a row i+k+1 to look at
            live = rolling[:m]
            np.multiply(discount_t[:m], reward[k : k + m], out=term[:m])
            np.add(r_t[:m], term[:m], out=r_t[:m], where=live)
            np.multiply(discount_t[:m], factor[k : k + m], out=discount_t[:m], where=live)
            # A window ends where row i+k+1 is a boundary row, and after n rewards in any case.
            ends = live & boundary[k + 1 :] if k < self.n - 1 else live.copy()
            np.copyto(ahead[:m], k + 1, where=ends)
            live ^= ends  # ``ends`` is a part of ``live``, a view of ``rolling``: those that end stop rolling
        done |= ahead > 0
        # Rewards that float32 holds one by one but not in sum are never in a batch.
        start = np.flatnonzero((ahead > 0) & np.isfinite(r_t))
        bootstrap = start + lanes * ahead.ravel()[start]  # in the flat grid a row of the same lane is ``lanes`` further
        r, discount = r_t.ravel()[start], discount_t.ravel()[start]
        value, taken = q_max.ravel()[bootstrap], q_taken.ravel()[start]
        if self._value_rescale:
            td_error = signed_hyperbolic(r + discount * signed_parabolic(value)) - taken
        else:
            td_error = r + discount * value - taken
        return NewTransitions(row.ravel()[start], r, discount, row.ravel()[bootstrap], td_error)


RESCALE_SLOPE = 1e-3
"""The slope of ``signed_hyperbolic`` far from 0, which makes it invertible (arXiv 1805.11593, proposition A.2)."""


def signed_hyperbolic(x: Array) -> Array:
    """Returns ``sign(x) (sqrt(|x| + 1) - 1) + 1e-3 x``, elementwise: about x / 2 near 0, a root of great values.

    Written without that difference, which around 0 would leave little of a small ``x``.
    """
    root: Array = x / (np.sqrt(np.abs(x) + 1) + 1) + RESCALE_SLOPE * x
    return root


def signed_parabolic(x: Array) -> Array:
    """Returns the inverse of ``signed_hyperbolic``, elementwise; exact around 0, too."""
    root = np.sqrt(1 + 4 * RESCALE_SLOPE * (RESCALE_SLOPE + 1 + np.abs(x)))
    y = 2 * x / (root + 1 + 2 * RESCALE_SLOPE)  # what sqrt(|value| + 1) is above 1, with the sign
    value: Array = y * (np.abs(y) + 2)
    return value
