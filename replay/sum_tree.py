"""A sum tree in float64, compiled: weights at the leaves, every inner node the exact sum of its two children.

Nodes lie in one array: the root at 1, the children of node i at 2i and 2i + 1, leaf k at ``size + k``. Because a change
recomputes each sum on its way up instead of adding a difference to it, no error piles up and nothing needs rebuilding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from replay.compiled import compiled

Array = npt.NDArray[Any]


class SumTree:
    """Weights >= 0 of ``capacity`` leaves, all 0 at first."""

    def __init__(self, capacity: int) -> None:
        self._size = 1 << max(1, (capacity - 1).bit_length())
        self._nodes = np.zeros(2 * self._size, np.float64)
        self.weights = self._nodes[self._size : self._size + capacity]
        """The leaves' weights <float64>[capacity]: to be read, not written."""

    @property
    def total(self) -> float:
        """Returns the sum of all weights."""
        return float(self._nodes[1])

    def set(self, leaves: Array, weights: Array) -> None:
        """Gives ``leaves`` <int64>[M] these weights <float64>[M]; of a leaf that comes twice the last one counts."""
        _set(self._nodes, leaves + self._size, weights)

    def find(self, masses: Array) -> Array:
        """Returns the leaves <int64>[B] at which the running sum of the weights passes ``masses`` <float64>[B] in [0,
        total).

        Never a leaf of weight 0, whatever the rounding, as long as the total is above 0.
        """
        leaves: Array = _find(self._nodes, self._size, masses)
        return leaves


@compiled("void(float64[::1], int64[::1], float64[::1])")
def _set(nodes: Array, places: Array, weights: Array) -> None:
    """All changes go up together, a level at a time: their cache misses overlap."""
    for i in range(len(places)):
        nodes[places[i]] = weights[i]
    up = places >> 1
    while len(up) and up[0]:
        for i in range(len(up)):
            nodes[up[i]] = nodes[2 * up[i]] + nodes[2 * up[i] + 1]
            up[i] >>= 1


@compiled("int64[::1](float64[::1], int64, float64[::1])")
def _find(nodes: Array, size: int, masses: Array) -> Array:
    """All masses go down together, a level at a time: their cache misses overlap."""
    rest = masses.copy()
    found = np.ones(len(masses), np.int64)
    level = 1
    while level < size:
        for i in range(len(found)):
            left = 2 * found[i]
            below = nodes[left]
            right = (rest[i] >= below) & (nodes[left + 1] > 0)
            rest[i] -= below * right
            found[i] = left + right
        level *= 2
    return found - size
