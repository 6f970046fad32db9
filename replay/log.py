"""The chunk log: what actors, learner and evaluator see of the shared replay memory and of the weights.

Four promises, which one contract suite (tests/test_log_contract.py) holds every implementation to:

* a chunk is stored under the explicit id (incarnation, seq); an id at or below a slot's last one is never stored again;
* what ``append`` raises says what is known: ``Unavailable`` leaves the chunk in doubt; the caller repeats its id;
* weights and their header are one value: no reader sees half of two;
* nothing is published by a learner whose fence is older than the newest one that took the lease, for ever.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, Protocol, Self

import numpy as np

from replay.chunk import MOST_COUNT, MOST_VERSION, Chunk
from replay.credit import CREDIT_BYTES, Credit
from replay.errors import QherdError
from replay.state import State, count


class LogError(QherdError):
    """What a log may raise. ``temporary``: the same call may succeed later."""

    temporary = False


class Unavailable(LogError):
    """No answer in time, or the server is loading, read-only or gone. An append is in doubt: repeat the same id."""

    temporary = True


class Full(LogError):
    """The server's memory bound is reached; nothing was stored. The learner has to trim."""

    temporary = True


class Fenced(LogError):
    """A newer incarnation (or learner) has taken over; the caller has to stop."""


class Refused(LogError):
    """The server answers but will not serve this caller: wrong password, missing right, wrong kind of server."""


@contextlib.contextmanager
def unless_away(note: Callable[[LogError], object]) -> Iterator[None]:
    """Go on where the block's server is away for now, after ``note`` of the temporary error."""
    try:
        yield
    except LogError as error:
        if not error.temporary:
            raise
        note(error)


class ChunkId(NamedTuple):
    """Orders the chunks of a slot. The zero id is before the first."""

    incarnation: int = 0
    seq: int = 0

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.seq}"

    @classmethod
    def of(cls, chunk: Chunk) -> Self:
        """Returns the id that a chunk is stored under."""
        return cls(chunk.incarnation, chunk.seq)


MOST_RESTARTS, MOST_CHUNKS = 1 << 20, 1 << 32
"""How far incarnation and seq may be from those before them in a stream: what restarts and a server that forgot leave
unseen. The server takes ids up to 2^64 - 1, above which nothing can be appended to a stream any more."""


def may_follow(chunk_id: ChunkId, before: ChunkId) -> bool:
    """Returns whether an actor of a slot can have sent ``chunk_id`` after ``before``; if not, it is a stranger's."""
    restarts = chunk_id.incarnation - before.incarnation
    chunks = chunk_id.seq - (before.seq if restarts == 0 else 0)
    return 0 <= restarts <= MOST_RESTARTS and 1 <= chunks <= MOST_CHUNKS and 1 <= chunk_id.incarnation <= MOST_COUNT


class Entry(NamedTuple):
    """One stored chunk, not yet decoded."""

    slot: int
    id: ChunkId
    data: bytes


_WEIGHTS = struct.Struct("<QQQI4x")
WEIGHTS_HEADER_BYTES = _WEIGHTS.size
FENCE_SHIFT = 40
MOST_FENCE = MOST_VERSION >> FENCE_SHIFT


class WeightsHeader(NamedTuple):
    """What precedes the weights in their one value. ``version`` is fence << 40 | n and never goes back."""

    version: int
    updates: int
    env_steps: int
    crc: int

    def pack(self) -> bytes:
        """The header's 32 bytes."""
        return _WEIGHTS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> WeightsHeader | None:
        """Returns the header at the start of ``data``; None where no weights were published yet, or where its numbers
        cannot be: the learner then publishes its own again."""
        if len(data) < WEIGHTS_HEADER_BYTES:
            return None
        header = cls(*_WEIGHTS.unpack_from(data))
        plausible = header.version <= MOST_VERSION and max(header.updates, header.env_steps) <= MOST_COUNT
        return header if plausible else None


def refused_append(slot: int, chunk_id: ChunkId, last: ChunkId) -> LogError:
    """Returns what an append of ``chunk_id`` raises where the slot's stream is at ``last``, which is above it."""
    if may_follow(last, chunk_id):
        return Fenced(f"slot {slot}: {chunk_id} is refused, the stream is at {last}")
    return Unavailable(
        f"slot {slot}: {chunk_id} is refused, the stream is at {last}, which none of its actors can have sent: the "
        "learner has to begin the stream anew"
    )


class Status(NamedTuple):
    """What an actor reads with every chunk it sends: what it may send (None: no learner is there), and which weights
    are the newest."""

    credit: Credit | None
    weights: WeightsHeader | None


class Memory(NamedTuple):
    """Bytes that a server uses, and the bound at which it refuses writes."""

    used: int
    bound: int


class ChunkLog(Protocol):
    """One run's log. Every call is bounded in time and may raise ``LogError``."""

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        """Store a chunk once. Repeating the id of a stored chunk stores nothing and is no error.

        Raises Fenced where the slot's last id is another incarnation's or a later one, and Unavailable where it is one
        that no actor can have sent: the learner begins the stream anew.
        """

    def status(self, slot: int) -> Status:
        """The slot's credit and the weights header, without a chunk."""

    def fetch_weights(self) -> bytes | None:
        """The newest published weights, header included."""

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """Chunks behind each slot's cursor, in each slot's order, about ``max_bytes`` of them at the most."""

    def last_id(self, slot: int) -> ChunkId:
        """The last id that this slot's stream has seen, also if the chunk is trimmed; the zero id for none."""

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """Drop each slot's chunks before the given id. Raises Fenced where a newer fence took the lease."""

    def renew(self, fence: int, slot: int) -> None:
        """Begin a slot's stream anew, without any chunk or last id: the last one leaves no id to its actor, see
        ``may_follow``. Raises Fenced where a newer fence took the lease."""

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        """Returns the run's streams that are none of these slots', with how many entries each has: nobody reads or
        trims them."""

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        """Remove such streams. Raises Fenced where a newer fence took the lease."""

    def memory(self) -> Memory | None:
        """How full the server is; None where it has no bound."""

    def claim(self, nonce: str) -> bool:
        """Claim the run's name for ``nonce``; False where another holds it."""

    def take_lease(self, fence: int) -> None:
        """Become the learner. Raises Fenced where a newer fence did already, whether it still runs or not."""

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        """Replace all slots' credit (replay/credit.py), and publish weights (header included) with it, all or nothing.

        Raises Fenced where a newer fence took the lease.
        """

    def release_lease(self, fence: int) -> None:
        """Take all credit back, unless a newer fence took the lease."""

    def describe(self, fence: int, description: bytes) -> None:
        """Replace the run's description (replay/about.py). Raises Fenced where a newer fence took the lease."""

    def description(self) -> bytes | None:
        """The newest description, for whoever attaches; None before the learner has written one."""

    def close(self) -> None:
        """Give up connections."""


CREDIT_MS = 5_000
"""Credit lapses where no learner renews it."""


class MemoryLog:
    """The in-process twin, for the inline mode and for tests: same contract, no server, no clock."""

    def __init__(self, max_chunks: int = 1 << 16) -> None:
        self._chunks: dict[int, dict[ChunkId, bytes]] = {}
        self._last: dict[int, ChunkId] = {}
        self._max_chunks = max_chunks
        self._weights: bytes | None = None
        self._credit = b""
        self._nonce: str | None = None
        self._fence = 0
        self._description: bytes | None = None

    def state(self) -> State:
        """All of it, as bytes; chunks that were trimmed are not in it."""
        stored = {"weights": self._weights, "description": self._description, "credit": self._credit or None} | {
            f"chunk.{slot}.{chunk_id}": data
            for slot, chunks in self._chunks.items()
            for chunk_id, data in chunks.items()
        }
        return State(
            {
                "last": [[slot, *chunk_id] for slot, chunk_id in self._last.items()],
                "nonce": self._nonce,
                "fence": self._fence,
            },
            {name: np.frombuffer(data, np.uint8) for name, data in stored.items() if data is not None},
        )

    def restore(self, state: State) -> None:
        """Go on from there."""
        values, arrays = state
        stored = {name: array.tobytes() for name, array in arrays.items()}
        self._weights, self._description = stored.pop("weights", None), stored.pop("description", None)
        self._credit = stored.pop("credit", b"")
        last = [[count(each, "last") for each in row] for row in values["last"]]
        self._last = {slot: ChunkId(incarnation, seq) for slot, incarnation, seq in last}
        self._nonce, self._fence = values["nonce"], count(values["fence"], "fence")
        self._chunks = {}
        names = (name.split(".") for name in stored)
        ids = sorted((int(slot), ChunkId(*map(int, each.split("-")))) for _, slot, each in names)
        for slot, chunk_id in ids:  # in their order, which is how they are read and dropped
            self._chunks.setdefault(slot, {})[chunk_id] = stored[f"chunk.{slot}.{chunk_id}"]

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        last = self.last_id(slot)
        if chunk_id < last:
            raise refused_append(slot, chunk_id, last)
        if chunk_id > last:
            chunks = self._chunks.setdefault(slot, {})
            chunks[chunk_id] = data
            self._last[slot] = chunk_id
            if len(chunks) > self._max_chunks:
                del chunks[next(iter(chunks))]
        return self.status(slot)

    def status(self, slot: int) -> Status:
        own = self._credit[slot * CREDIT_BYTES : (slot + 1) * CREDIT_BYTES]
        return Status(Credit.unpack(own), WeightsHeader.unpack(self._weights or b""))

    def fetch_weights(self) -> bytes | None:
        return self._weights

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        entries = []
        for slot, cursor in cursors.items():
            for chunk_id, data in self._chunks.get(slot, {}).items():
                if chunk_id > cursor and max_bytes > 0:
                    entries.append(Entry(slot, chunk_id, data))
                    max_bytes -= len(data)
        return entries

    def last_id(self, slot: int) -> ChunkId:
        return self._last.get(slot, ChunkId())

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        self._check_fence(fence)
        for slot, bound in oldest.items():
            chunks = self._chunks.get(slot, {})
            for chunk_id in [chunk_id for chunk_id in chunks if chunk_id < bound]:
                del chunks[chunk_id]

    def renew(self, fence: int, slot: int) -> None:
        self._check_fence(fence)
        self._chunks.pop(slot, None)
        self._last.pop(slot, None)

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        return {str(slot): len(chunks) for slot, chunks in self._chunks.items() if slot not in slots}

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        for slot in map(int, strays):
            self.renew(fence, slot)

    def memory(self) -> Memory | None:
        return None

    def claim(self, nonce: str) -> bool:
        self._nonce = self._nonce or nonce
        return self._nonce == nonce

    def take_lease(self, fence: int) -> None:
        self._check_fence(fence)
        self._fence = fence

    def _check_fence(self, fence: int) -> None:
        if fence < self._fence:
            raise Fenced(f"fence {fence} is older than {self._fence}, which took the lease")

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        self.take_lease(fence)
        self._credit = credit
        self._weights = weights or self._weights

    def release_lease(self, fence: int) -> None:
        if fence == self._fence:
            self._credit = b""

    def describe(self, fence: int, description: bytes) -> None:
        self.take_lease(fence)
        self._description = description

    def description(self) -> bytes | None:
        return self._description

    def close(self) -> None:
        pass
