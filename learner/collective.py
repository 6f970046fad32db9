"""What several learners of one run have to agree on passes through a collective. Built is the one of a single learner.

Each learner would train on the chunks of its own slots. They keep the same weights to the bit where each of these is
the same for all of them: the gradient, whether an update is skipped, and how many updates a cycle has.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Collective(Protocol):
    """The learners of one run. Each calls the same methods in the same order; every call waits for all of them."""

    def mean_(self, gradient: Tensor) -> None:
        """Replaces a gradient <float32>[P], in place, by its mean over the learners."""

    def any_(self, flag: Tensor) -> None:
        """Replaces a flag <float32>[], 0 or 1, in place, by 1 where any learner's is 1."""

    def agree(self, count: int) -> int:
        """Returns the count of the first learner."""


class Alone:
    """The collective of one learner: there is nothing to exchange."""

    def mean_(self, gradient: Tensor) -> None:
        """See ``Collective.mean_``: it is the mean already."""

    def any_(self, flag: Tensor) -> None:
        """See ``Collective.any_``: there is no other."""

    def agree(self, count: int) -> int:
        """See ``Collective.agree``: its own."""
        return count
