"""The broadcast of the weights: their versions, their packing, and when the next one is due."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from learner.config import PUBLISH_MIN_S
from learner.ingest import Ingest
from learner.learner import Learner, host_arrays
from learner.networks.q_network import QNetwork
from learner.publisher import Publisher
from learner.weights import pack, version
from replay.state import count


class Broadcaster:
    """Publishes the online network, each time under the next version. ``published`` counts the versions of the run."""

    def __init__(self, publisher: Publisher, learner: Learner, ingest: Ingest, fence: int) -> None:
        self.publisher = publisher
        self._learner, self._ingest, self._fence = learner, ingest, fence
        self.published = self._published_at_updates = 0
        self._last_publish_s = -math.inf
        self._set_version(0)

    @property
    def version(self) -> int:
        """Returns the newest version, which no other learner of the run has used."""
        return version(self._fence, self.published)

    def publish(self) -> None:
        """Publishes the online network under the next version, and the credit with it."""
        self._set_version(self.published + 1)
        self.publisher.set(self._ingest.lender.pack(), self._pack(self._learner.online))
        self._published_at_updates = self._learner.updates

    def _set_version(self, published: int) -> None:
        self.published = published
        self._ingest.reader.newest_version = self.version  # no actor can have acted with a newer one

    def _pack(self, network: QNetwork) -> bytes:
        return pack(self.version, self._learner.updates, self._ingest.ledger.totals.env_steps, host_arrays(network))

    def publish_if_due(self) -> bool:
        """Publishes where ``publish_every_updates`` updates were done since the last time; returns whether it did."""
        due = self._learner.updates - self._published_at_updates >= self._learner.config.publish_every_updates
        if due:
            self.publish()
        return due

    def publish_when_due(self, now: float) -> bool:
        """As ``publish_if_due``, but not within PUBLISH_MIN_S of the last time."""
        published = now - self._last_publish_s >= PUBLISH_MIN_S and self.publish_if_due()
        if published:
            self._last_publish_s = now
        return published

    def candidate(self) -> bytes:
        """Returns the averaged policy for the evaluator, packed like published weights."""
        return self._pack(self._learner.average)

    def values(self) -> dict[str, Any]:
        """Returns what ``restore`` continues from."""
        return {"published": self.published, "published_at_updates": self._published_at_updates}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continues the versions of an earlier learner, under this one's fence."""
        self._set_version(count(values["published"], "published"))
        self._published_at_updates = count(values["published_at_updates"], "published_at_updates")
