"""The chunk that an actor has in hand, and whether it has credit for the next one: no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.actor_id import ActorId
from replay.chunk_log.protocol import ChunkId, Fenced, Status, WeightsHeader
from replay.credit import Credit
from replay.state import count


class Outbox:
    """At most one chunk, in doubt until it is stored, and the newest status of the log."""

    def __init__(self, actor: ActorId, clock: Callable[[], float]) -> None:
        self._actor, self._clock = actor, clock
        self.pending: bytes | None = None
        """The chunk that is in hand or in doubt."""
        self.seq = 1
        """Of the pending chunk, or the next one."""
        self.unavailable = False
        """Whether the log did not answer when it was last called."""
        self._status = Status(None, None)
        self._acknowledged_s = 0.0

    @property
    def chunk_id(self) -> ChunkId:
        """The id of the pending chunk, or the next one."""
        return ChunkId(self._actor.incarnation, self.seq)

    @property
    def weights(self) -> WeightsHeader | None:
        """The newest weights that the log is known to have."""
        return self._status.weights

    def stored(self) -> None:
        """Records that the pending chunk is stored."""
        self.pending, self.seq = None, self.seq + 1
        self._acknowledged_s = self._clock()

    def record(self, status: Status) -> None:
        """Records what the log has answered.

        Raises:
            Fenced: the learner has rows of a newer incarnation.
        """
        before, now = (credit and credit[:2] for credit in (self._status.credit, status.credit))
        if before != now:
            self._acknowledged_s = self._clock()
        self._status, actor = status, self._actor
        if status.credit is not None and status.credit.incarnation > actor.incarnation:
            newer = status.credit.incarnation
            raise Fenced(f"slot {actor.slot}: incarnation {newer} has taken over from {actor.incarnation}")

    def allows(self, sent_rows: int, chunk_rows: int) -> bool:
        """Returns whether there is credit for a whole chunk beyond the ``sent_rows``."""
        credit = self._status.credit
        if credit is None:
            return False
        own = (self._actor.incarnation, sent_rows, chunk_rows)
        # the clock is read only where it decides: credit is usually there
        return credit.allows(*own, waited_s=0.0) or credit.allows(*own, self._clock() - self._acknowledged_s)

    def state(self) -> dict[str, Any]:
        """Returns values for JSON.

        Raises:
            ValueError: a chunk is in doubt.
        """
        if self.pending is not None:
            raise ValueError(f"chunk {self.seq} of slot {self._actor.slot} is in doubt; send it first")
        credit, header = self._status
        return {"seq": self.seq, "credit": credit and list(credit), "newest_weights": header and list(header)}

    def restore(self, values: Mapping[str, Any]) -> None:
        """See ``replay.state``."""
        credit, header = values["credit"], values["newest_weights"]
        self._status = Status(credit and Credit(*credit), header and WeightsHeader(*header))
        self.seq = count(values["seq"], "seq")
