"""Flow control by credit: rows that a slot may send beyond what the learner has taken in.

The learner's ``Lender`` shares the limiter's room out over the slots. An actor reads its own slot's ``Credit`` with
every chunk that it sends, and stops by itself where that is used up. All its numbers are cumulative: to miss one, or to
read one twice, does no harm.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

LAPSE_S = 5.0
"""Credit that a slot has not used for so long is taken back, since its actor may be gone. From then on, as at the
start, the slot has credit for one chunk at a time, until it sends one."""

PROBE_S = 6.0
"""An actor without credit whose rows have not been acknowledged for so long sends one chunk more: what it sent may be
lost (a server that was emptied, a learner that went on from an older checkpoint), and the chunk's header has the true
count. Longer than credit outlives its learner, so that one that is frozen is sent nothing beyond it."""

_CREDIT = struct.Struct("<QQQ")
CREDIT_BYTES = _CREDIT.size


class Credit(NamedTuple):
    """What an actor may send: ``rows`` beyond the ``sent`` ones of ``incarnation`` that the learner has acknowledged.
    Incarnation 0 is before the first."""

    incarnation: int
    sent: int
    rows: int

    def allows(self, incarnation: int, sent: int, chunk_rows: int, waited_s: float) -> bool:
        """Returns whether an incarnation that has sent so many rows may send a chunk. A newer one than the acknowledged
        one may begin with a chunk where its slot has credit; ``waited_s``: see PROBE_S."""
        known = incarnation == self.incarnation
        acknowledged, further = (self.sent, self.rows) if known else (0, min(self.rows, chunk_rows))
        return sent + chunk_rows <= acknowledged + further or (sent > acknowledged and waited_s >= PROBE_S)

    @classmethod
    def unpack(cls, data: bytes) -> Credit | None:
        """Returns a slot's part of the value, None where there is none: the value has lapsed, or the slot is not
        expected."""
        return cls(*_CREDIT.unpack(data)) if len(data) == CREDIT_BYTES else None


def pack_credit(credit: Mapping[int, Credit]) -> bytes:
    """Packs the one value of all slots, an array indexed by slot."""
    slots = range(max(credit, default=-1) + 1)
    return b"".join(_CREDIT.pack(*credit.get(slot, Credit(0, 0, 0))) for slot in slots)


@dataclass
class _Slot:
    """``upto``: rows that ``incarnation`` may have sent in total, of which ``sent`` are acknowledged."""

    incarnation: int = 0
    sent: int = 0
    upto: int = 0
    turn: int = 0
    unused_s: float = 0.0
    sends: bool = False

    @property
    def held(self) -> int:
        """Returns the rows that may be on their way."""
        return self.upto - self.sent

    @property
    def credit(self) -> Credit:
        return Credit(self.incarnation, self.sent, self.held)


class Lender:
    """Shares the limiter's room out over the slots, in whole chunks: those with the fewest first, in turn."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        self._chunk_rows = self._share = 1
        self._turn = 0

    def fit(self, slots: Iterable[int], chunk_rows: int, window_rows: int) -> None:
        """Lends to these slots from now on; each holds at most an equal share of the window, and at least a chunk."""
        self._slots = {slot: self._slots.get(slot, _Slot()) for slot in slots}
        self._chunk_rows = chunk_rows
        self._share = max(1, window_rows // (chunk_rows * max(1, len(self._slots))))

    @property
    def rows(self) -> int:
        """Returns the rows for which there is credit, in whole chunks: a part of a chunk lets nobody send."""
        return sum(slot.held // self._chunk_rows * self._chunk_rows for slot in self._slots.values())

    def acknowledge(self, index: int, incarnation: int, sent: int) -> None:
        """Records how many rows this incarnation has sent, as the newest chunk of its that was taken in counts them."""
        slot = self._slots.get(index)
        if slot is None or (incarnation, sent) == (slot.incarnation, slot.sent):
            return
        if incarnation > slot.incarnation:  # the one before is fenced off, whatever it still had
            slot.incarnation, slot.upto = incarnation, sent
        slot.sent, slot.sends, slot.unused_s = sent, True, 0.0
        slot.upto = max(sent, min(slot.upto, sent + self._share * self._chunk_rows))

    def lend(self, room_rows: int) -> None:
        """Shares out what of the room no slot holds yet."""
        left = room_rows - sum(slot.held for slot in self._slots.values())
        queue = [(slot.held // self._chunk_rows, slot.turn, index) for index, slot in self._slots.items()]
        heapq.heapify(queue)
        while queue:
            chunks, _, index = heapq.heappop(queue)
            slot = self._slots[index]
            more = (chunks + 1) * self._chunk_rows - slot.held
            if more > left:
                return
            if chunks < (self._share if slot.sends else 1):
                left -= more
                self._turn += 1
                slot.upto, slot.turn = slot.upto + more, self._turn
                heapq.heappush(queue, (chunks + 1, slot.turn, index))

    def pass_time(self, seconds: float) -> None:
        """Takes back what was not used for LAPSE_S; only time counts in which the learner read all that there was."""
        for slot in self._slots.values():
            slot.unused_s = slot.unused_s + seconds if slot.held else 0.0
            if slot.unused_s >= LAPSE_S:
                slot.upto, slot.sends, slot.unused_s = slot.sent, False, 0.0

    def pack(self) -> bytes:
        """Packs what is to be published."""
        return pack_credit({index: slot.credit for index, slot in self._slots.items()})
