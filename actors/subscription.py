"""The weights that an actor acts with, as new as the log has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from actors.policy import Array, Policy
from learner.weights import unpack
from replay.chunk_log.protocol import WeightsHeader
from replay.state import count


class WeightSubscription:
    """Loads newer weights into a policy, at most every ``fetch_every_s``. Versions never go back."""

    def __init__(self, policy: Policy, fetch_every_s: float) -> None:
        self._policy, self._fetch_every_s = policy, fetch_every_s
        self._fetched_s = -math.inf
        self.version = 0
        """Of the loaded weights; 0 before the first."""

    def is_due(self, header: WeightsHeader | None, now_s: float) -> bool:
        """Returns whether to fetch the weights that the log has, by their header."""
        if header is None or header.version <= self.version:
            return False
        return now_s - self._fetched_s >= self._fetch_every_s

    def load(self, packed: bytes | None, now_s: float) -> WeightsHeader | None:
        """Loads fetched weights. Returns their header; None where there were none, or older ones: a server may have
        come back with an older file since its header was read."""
        if packed is None:
            return None
        header, arrays = unpack(packed)
        if header.version <= self.version:
            return None
        self._policy.load(arrays)
        self.version, self._fetched_s = header.version, now_s
        return header

    def arrays(self) -> dict[str, Array]:
        """Returns the loaded weights by their names in a checkpoint."""
        return {f"policy.{name}": array for name, array in self._policy.state().items()}

    def restore(self, arrays: Mapping[str, Array], version: object) -> None:
        """Loads the weights of a checkpoint; when they were fetched is not in it."""
        self._policy.load({name.removeprefix("policy."): a for name, a in arrays.items() if name.startswith("policy.")})
        self.version = count(version, "weight_version")
