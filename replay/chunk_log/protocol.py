"""The chunk log: what actors, learner and evaluator see of the shared replay memory and of the weights.

Four promises, which one contract suite (tests/test_log_contract.py) holds every implementation to:

* a chunk is stored under the explicit id (incarnation, seq); an id at or below a slot's last one is never stored again;
* the error of an ``append`` tells what is known: ``Unavailable`` leaves the chunk in doubt; the caller repeats its id;
* weights and their header are one value: no reader sees half of two;
* nothing is published by a learner whose fence is older than the newest one that took the lease, for ever.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, Protocol, Self

from replay.chunk import MAX_COUNT, MAX_VERSION, Chunk
from replay.credit import Credit
from replay.errors import QherdError


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


class UnusableServer(LogError):
    """A server that this caller cannot use: wrong password, missing right, wrong kind of server, no server's URL."""


@contextlib.contextmanager
def tolerating_outages(on_error: Callable[[LogError], object]) -> Iterator[None]:
    """Suppresses temporary errors raised in the block, and passes them to ``on_error``."""
    try:
        yield
    except LogError as error:
        if not error.temporary:
            raise
        on_error(error)


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


MAX_INCARNATION_STEP, MAX_SEQ_STEP = 1 << 20, 1 << 32
"""How far incarnation and seq may be from those before them in a stream: what restarts and a server that forgot leave
unseen. The server takes ids up to 2^64 - 1, above which nothing can be appended to a stream any more."""


def may_follow(chunk_id: ChunkId, before: ChunkId) -> bool:
    """Returns whether an actor of a slot can have sent ``chunk_id`` after ``before``; if not, it is a stranger's."""
    restarts = chunk_id.incarnation - before.incarnation
    chunks = chunk_id.seq - (before.seq if restarts == 0 else 0)
    return (
        0 <= restarts <= MAX_INCARNATION_STEP and 1 <= chunks <= MAX_SEQ_STEP and 1 <= chunk_id.incarnation <= MAX_COUNT
    )


class Entry(NamedTuple):
    """One stored chunk, not yet decoded."""

    slot: int
    id: ChunkId
    data: bytes


_WEIGHTS = struct.Struct("<QQQI4x")
WEIGHTS_HEADER_BYTES = _WEIGHTS.size
FENCE_SHIFT = 40
MAX_FENCE = MAX_VERSION >> FENCE_SHIFT


class WeightsHeader(NamedTuple):
    """What precedes the weights in their one value. ``version`` is fence << 40 | n and never goes back."""

    version: int
    updates: int
    env_steps: int
    crc: int

    def pack(self) -> bytes:
        """Returns the header's 32 bytes."""
        return _WEIGHTS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> WeightsHeader | None:
        """Returns the header at the start of ``data``; None where no weights were published yet, or where its numbers
        cannot be: the learner then publishes its own again."""
        if len(data) < WEIGHTS_HEADER_BYTES:
            return None
        header = cls(*_WEIGHTS.unpack_from(data))
        plausible = header.version <= MAX_VERSION and max(header.updates, header.env_steps) <= MAX_COUNT
        return header if plausible else None


def append_error(slot: int, chunk_id: ChunkId, last: ChunkId) -> LogError:
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


class MemoryUsage(NamedTuple):
    """Bytes that a server uses, and the bound at which it refuses writes."""

    used: int
    bound: int


class ChunkStream(Protocol):
    """The chunks of each slot, in the order of their ids."""

    def append(self, slot: int, chunk_id: ChunkId, data: bytes) -> Status:
        """Stores a chunk once. Repeating the id of a stored chunk stores nothing and is no error.

        Returns what ``Broadcast.status`` does, which a server gives in the same round trip.

        Raises:
            Fenced: the slot's last id is another incarnation's or a later one.
            Unavailable: also where the last id is one that no actor can have sent: the learner begins the stream anew.
        """

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """Returns chunks after each slot's cursor, in each slot's order, about ``max_bytes`` of them at the most."""

    def last_id(self, slot: int) -> ChunkId:
        """Returns the last id that this slot's stream has seen, also if the chunk is trimmed; the zero id for none."""

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """Drops each slot's chunks before the given id. Raises Fenced where a newer fence took the lease."""

    def renew(self, fence: int, slot: int) -> None:
        """Begins a slot's stream anew, without any chunk or last id: the last one leaves no id to its actor, see
        ``may_follow``. Raises Fenced where a newer fence took the lease."""


class Broadcast(Protocol):
    """What the learner publishes to the actors, under its fence."""

    def status(self, slot: int) -> Status:
        """Returns the slot's credit and the weights header."""

    def fetch_weights(self) -> bytes | None:
        """Returns the newest published weights, header included."""

    def take_lease(self, fence: int) -> None:
        """Becomes the learner. Raises Fenced where a newer fence did already, whether it still runs or not."""

    def publish(self, fence: int, credit: bytes, weights: bytes | None = None) -> None:
        """Replaces all slots' credit (replay/credit.py), and publishes weights (header included) with it, all or
        nothing. Raises Fenced where a newer fence took the lease."""

    def release_lease(self, fence: int) -> None:
        """Takes all credit back, unless a newer fence took the lease."""


class RunAdmin(Protocol):
    """What belongs to the run as a whole: its name, its description and its room."""

    def claim(self, nonce: str) -> bool:
        """Claims the run's name for ``nonce``; returns False where another holds it."""

    def describe(self, fence: int, description: bytes) -> None:
        """Replaces the run's description (replay/description.py). Raises Fenced where a newer fence took the lease."""

    def description(self) -> bytes | None:
        """Returns the newest description, for whoever attaches; None before the learner has written one."""

    def memory(self) -> MemoryUsage | None:
        """Returns how full the server is; None where it has no bound."""

    def strays(self, slots: Collection[int]) -> dict[str, int]:
        """Returns the run's streams that are none of these slots', with how many entries each has: nobody reads or
        trims them."""

    def remove_strays(self, fence: int, strays: Collection[str]) -> None:
        """Removes such streams. Raises Fenced where a newer fence took the lease."""


class ChunkLog(ChunkStream, Broadcast, RunAdmin, Protocol):
    """One run's log. Every call is bounded in time and may raise ``LogError``."""

    def close(self) -> None:
        """Gives up connections."""


CREDIT_MS = 5_000
"""Credit lapses where no learner renews it."""
