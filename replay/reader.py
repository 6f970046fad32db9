"""The reader: takes chunks from the log to the mirror, refuses bad ones, and keeps the books.

The books follow each slot's cursor, which only moves forward, and hold every chunk to the conservation law::

    rows read + rows lost, by reason = rows sent, as far as they are known

of each slot's newest incarnation, and of each slot over all its incarnations. Known are the rows that the header of a
chunk counts which this reader took, or an earlier reader that took more than this one's checkpoint has (``Reading``).
What nobody has read is not known: the chunks that an incarnation sent after the last one that was taken of it, where
the next good chunk is of a newer incarnation (its actor died and its server forgot, or those chunks were refused).
``LOSSES`` has the reasons; a chunk that was refused is counted by ``REFUSALS`` in any case.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from replay.breakable import Breakable, breakable
from replay.chunk import MOST_VERSION, BadChunk, Chunk, Codec, Counters, check_order
from replay.log import ChunkId, ChunkLog, Entry, LogError, may_follow
from replay.mirror import Mirror
from replay.nstep import CARRIED, LaneWindows
from replay.state import State

Array = npt.NDArray[Any]
FIRST_ID, NOTHING = ChunkId(), Counters()
PAGE_BYTES = 64 << 20
REFILL_WAIT_S = 60.0
"""How long a refill waits for servers that are away. A learner that says nothing for 120 s counts as hung."""
QUARANTINED = 5
"""How many bad chunks are kept for inspection."""


LOSSES = ("gap", "refused", "resume", "rollback")
"""Why rows that were sent are not in the mirror: the closed set, which /metrics shows at 0 from the start.

gap: chunks before the present one never came, or not all of them were refused; refused: all of them came and were
refused; resume: as a gap, the first one after a resume, so the log had lost or dropped them meanwhile; rollback: an
earlier learner of this run had read them after the checkpoint that this one goes on from, and the log has them no more.
"""


class Reading(NamedTuple):
    """How far a reader has come with a slot: its incarnation, and the rows sent so far by it and those before it."""

    incarnation: int
    sent: int


UNREAD = Reading(0, 0)


class Source(Protocol):
    """The part of a ``ChunkLog`` that a reader uses."""

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkLog.read``."""

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """See ``ChunkLog.trim``."""

    def renew(self, fence: int, slot: int) -> None:
        """See ``ChunkLog.renew``."""


class Stored(NamedTuple):
    """Where a chunk lies in the mirror: its id in the log, its first row and the row behind its last one."""

    slot: int
    id: ChunkId
    start: int
    end: int


class Unbalanced(AssertionError):
    """The reader's books break the conservation law: qherd has a bug, and counts and rows cannot be trusted."""


class Gap(NamedTuple):
    """Chunks of an incarnation that were not taken before the present one, and their rows."""

    chunks: int
    rows: int


@dataclass
class Totals:
    """What the reader has counted since it started, over all slots or of one."""

    chunks: int = 0
    rows: int = 0
    env_steps: int = 0
    bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    rows_lost: Counter[str] = field(default_factory=Counter)

    def values(self) -> dict[str, Any]:
        """Returns the fields as JSON can say them. (``asdict`` makes pairs of a Counter's items, and counts those.)"""
        return {**vars(self), "refused": dict(self.refused), "rows_lost": dict(self.rows_lost)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns totals from what ``values`` gave."""
        counts = {name: Counter(values[name]) for name in ("refused", "rows_lost")}
        return cls(**{**values, **counts})


@dataclass
class Slot:
    """The books of one slot: ``cursor`` is the last chunk seen, ``taken`` the last that was not refused, ``checked``
    the cursor when the books were last checked."""

    cursor: ChunkId = FIRST_ID
    taken: ChunkId = FIRST_ID
    counters: Counters = NOTHING
    past: Counters = NOTHING
    rows_read: int = 0
    rows_lost: int = 0
    refused_since: int = 0
    weight_version: int = 0
    windows: LaneWindows | None = None
    lanes: int = 0
    totals: Totals = field(default_factory=Totals)
    resumed: bool = False
    checked: ChunkId = FIRST_ID
    before: Reading = UNREAD
    """How far an earlier reader of this run had come."""

    @property
    def reading(self) -> Reading:
        """How far any reader of this run has come, as far as is known."""
        return max(self.before, Reading(self.taken.incarnation, self.past.rows + self.counters.rows))

    def values(self) -> dict[str, Any]:
        """All but the windows, as JSON can say it."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        ids = {name: list(getattr(self, name)) for name in ("cursor", "taken", "counters", "past", "before")}
        return {**plain, **ids, "totals": self.totals.values()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From what ``values`` gave. What this slot sent meanwhile and the log has no more is lost to the resume."""
        return cls(
            ChunkId(*values["cursor"]),
            ChunkId(*values["taken"]),
            Counters(*values["counters"]),
            Counters(*values["past"]),
            **{name: values[name] for name in _PLAIN},
            totals=Totals.of(values["totals"]),
            before=Reading(*values["before"]),
            resumed=True,
        )


_PLAIN = ("rows_read", "rows_lost", "refused_since", "weight_version", "lanes")


class Reader(Breakable):
    """Reads the chunks of known slots into a mirror. ``n`` and ``gamma`` shape the windows (replay/nstep.py)."""

    def __init__(
        self,
        log: Source,
        codec: Codec,
        mirror: Mirror,
        n: int,
        gamma: float,
        reward_scale: float = 1.0,
        quarantine: Path | None = None,
        fence: int = 0,
    ) -> None:
        """``quarantine``: the folder for the first few bad chunks; None keeps none. ``reward_scale``: for training.
        ``fence``: the learner's, to trim with."""
        self._log, self._codec, self._mirror = log, codec, mirror
        self._n, self._gamma = n, gamma
        self._reward_scale = np.float32(reward_scale)
        self._quarantine, self._quarantined = quarantine, 0
        self._stored: deque[Stored] = deque()
        self.unread = set[int]()
        """Slots whose rows a refill could not read, since their server was away for too long."""
        self._backlog: deque[Entry] = deque()
        self._trimmed: dict[int, ChunkId] = {}
        self._fence = fence
        self._exhausted = set[int]()
        self.newest_version = MOST_VERSION
        """The newest version of the weights that was published, where that is known."""
        self.slots: dict[int, Slot] = {}
        self.totals = Totals()

    def readings(self) -> dict[int, Reading]:
        """Returns how far each slot was read, by this reader or an earlier one; ``know`` takes it."""
        return {slot: books.reading for slot, books in self.slots.items()}

    def know(self, readings: Mapping[int, Reading]) -> None:
        """Note how far an earlier reader of this run had come, which may have read what the log has no more."""
        self.follow(readings)
        for slot, reading in readings.items():
            books = self.slots[slot]
            books.before = max(books.before, reading)

    def follow(self, slots: Iterable[int]) -> None:
        """Read these slots too, each from its first chunk."""
        for slot in slots:
            self.slots.setdefault(slot, Slot())

    def poll(self, max_bytes: int = PAGE_BYTES, budget_s: float | None = None) -> int:
        """Read once and take chunks in until ``budget_s`` is spent (the rest waits for the next poll).

        Returns the env steps inserted. At least one chunk is taken where there is one.
        """
        if not self._backlog:
            cursors = {slot: books.cursor for slot, books in self.slots.items() if slot not in self._exhausted}
            self._backlog.extend(self._log.read(cursors, max_bytes))
        inserted = 0
        deadline = None if budget_s is None else time.perf_counter() + budget_s
        while self._backlog:
            inserted += self._take(self._backlog.popleft())
            if deadline is not None and time.perf_counter() > deadline:
                break
        return inserted

    def drain(self, page_bytes: int = PAGE_BYTES, most_rows: float = math.inf) -> None:
        """Take in all that the log has, a page at a time, or about ``most_rows`` of it."""
        seen, end = None, self._mirror.end + most_rows
        while self._mirror.end < end and seen != (seen := [books.cursor for books in self.slots.values()]):
            self.poll(page_bytes)

    @property
    def log_rows(self) -> int:
        """Rows that the log still has of those that were taken in, to within a chunk."""
        return self._mirror.end - self._stored[0].end if self._stored else 0

    @property
    def backlog_chunks(self) -> int:
        """Chunks that were read and are yet to be taken in: how far the mirror is behind."""
        return len(self._backlog)

    def trim(self, keep_rows: int) -> None:
        """Let the log drop what the mirror no longer holds, and all but the newest ``keep_rows``."""
        oldest = max(self._mirror.start, self._mirror.end - keep_rows)
        while self._stored and self._stored[0].end <= oldest:
            self._stored.popleft()
        held: dict[int, ChunkId] = {}
        for stored in self._stored:
            held.setdefault(stored.slot, stored.id)
        behind = {
            slot: held.get(slot, ChunkId(books.cursor.incarnation, books.cursor.seq + 1))
            for slot, books in self.slots.items()
            if books.cursor > ChunkId()
        }
        changed = {slot: bound for slot, bound in behind.items() if self._trimmed.get(slot) != bound}
        if changed:
            self._log.trim(self._fence, changed)
            self._trimmed.update(changed)
        for slot in tuple(self._exhausted):
            self._log.renew(self._fence, slot)
            self._exhausted.discard(slot)

    @property
    def exhausted(self) -> Set[int]:
        """Slots in whose stream is an id that no actor can have sent. The server takes no chunk after it, and the
        actor waits: the next ``trim`` begins the stream anew."""
        return self._exhausted

    def look_again(self) -> None:
        """Read those slots again too: for a reader that does not trim."""
        self._exhausted.clear()

    def counters(self) -> Counters:
        """What all actors have done, over all slots and incarnations, as far as their chunks arrived."""
        total = Counters()
        for books in self.slots.values():
            total = total.plus(books.past).plus(books.counters)
        return total

    def check_conservation(self) -> None:
        """Raises Unbalanced unless the law holds for each slot's newest incarnation and for each slot over all of
        them, and no cursor has moved back."""
        for slot, books in self.slots.items():
            if books.rows_read + books.rows_lost != books.counters.rows:
                raise Unbalanced(
                    f"slot {slot}, incarnation {books.taken.incarnation}: {books.rows_read} rows read + "
                    f"{books.rows_lost} lost are not the {books.counters.rows} that its actor has sent up to "
                    f"{books.taken}"
                )
            totals, sent = books.totals, books.past.rows + books.counters.rows
            if totals.rows + totals.rows_lost.total() != sent:
                raise Unbalanced(
                    f"slot {slot}: {totals.rows} rows read + {dict(totals.rows_lost)} lost are not the {sent} that all "
                    f"its incarnations have sent up to {books.taken}"
                )
            if not max(books.checked, books.taken) <= books.cursor:
                raise Unbalanced(
                    f"slot {slot}: the cursor moved back to {books.cursor}, from {max(books.checked, books.taken)}"
                )
            books.checked = books.cursor

    @breakable
    def _take(self, entry: Entry) -> int:
        books = self.slots[entry.slot]
        if entry.slot in self._exhausted:
            return 0  # it comes after the id that no actor can have sent, so no actor has sent it either
        if entry.id <= books.cursor:
            self._count_refused(books, "duplicate")
            return 0
        if not may_follow(entry.id, books.cursor):  # the cursor stays: no honest id would be above it any more
            self._exhausted.add(entry.slot)
            self._refuse(books, entry, BadChunk("id", f"{entry.id} cannot come after {books.cursor}"))
            return 0
        books.cursor = entry.id
        try:
            chunk = self._codec.decode(entry.data, entry.slot, *entry.id)
            gap = self._check(books, entry.id, chunk)
            follows = gap.chunks == 0 and entry.id.incarnation == books.taken.incarnation
            if follows and books.windows is not None and books.lanes == chunk.flags.shape[1]:
                check_order(np.stack((books.windows.last_flags, chunk.flags[0])))
        except BadChunk as error:
            books.refused_since += 1
            self._refuse(books, entry, error)
            return 0
        env_steps = chunk.env_steps
        self._account(books, entry, chunk, gap, env_steps)
        self._insert(books, entry, chunk, follows)
        return env_steps

    def _check(self, books: Slot, chunk_id: ChunkId, chunk: Chunk) -> Gap:
        """Returns what this incarnation sent before a chunk and was never taken. Raises BadChunk where the chunk does
        not fit the mirror, the weights or the chunk before it."""
        if chunk.rows > self._mirror.capacity_rows:
            raise BadChunk("size", f"{chunk.rows} rows, the mirror holds {self._mirror.capacity_rows}")
        if chunk.weight_version > self.newest_version:
            raise BadChunk("weights", f"version {chunk.weight_version}, the newest is {self.newest_version}")
        return self._gap_before(books, chunk_id, chunk)

    def _refuse(self, books: Slot, entry: Entry, error: BadChunk) -> None:
        self._count_refused(books, error.reason)
        self._quarantine_chunk(entry, error)

    def note_strays(self, entries: int) -> None:
        """Count entries of streams that are no slot's."""
        self.totals.refused["slot"] += entries

    def _count_refused(self, books: Slot, reason: str) -> None:
        """Its rows show as a gap before the next good chunk."""
        self.totals.refused[reason] += 1
        books.totals.refused[reason] += 1

    def _quarantine_chunk(self, entry: Entry, error: BadChunk) -> None:
        """Keep the first few bad chunks for inspection."""
        if self._quarantine is None or self._quarantined >= QUARANTINED:
            return
        self._quarantined += 1
        with contextlib.suppress(OSError):  # a full disk must not stop the learner
            self._quarantine.mkdir(parents=True, exist_ok=True)
            (self._quarantine / f"{entry.slot}-{entry.id}.{error.reason}.chunk").write_bytes(entry.data)

    def _gap_before(self, books: Slot, chunk_id: ChunkId, chunk: Chunk) -> Gap:
        """What this incarnation sent before this chunk and was never taken.

        Raises BadChunk where the header's count cannot be: the conservation law holds for every chunk that is taken.
        """
        same = chunk_id.incarnation == books.taken.incarnation
        before = books.counters if same else NOTHING
        rows = chunk.counters.rows - chunk.rows - before.rows
        chunks = chunk_id.seq - (books.taken.seq + 1 if same else 1)
        if not 0 <= rows <= chunks * self._codec.max_rows:
            raise BadChunk("counters", f"{chunk.counters.rows} rows counted, {before.rows} before its own {chunk.rows}")
        chunk.counters.check_after(before, chunk.rows, chunk.env_steps, rows)
        return Gap(chunks, rows)

    def _account(self, books: Slot, entry: Entry, chunk: Chunk, gap: Gap, env_steps: int) -> None:
        """Book a good chunk, and what was lost before it."""
        if entry.id.incarnation > books.taken.incarnation:
            self._end_incarnation(books, entry.id.incarnation)
        books.rows_read += chunk.rows
        books.rows_lost += gap.rows
        books.taken, books.counters, books.weight_version = entry.id, chunk.counters, chunk.weight_version
        why_lost = "refused" if books.refused_since == gap.chunks else "resume" if books.resumed else "gap"
        books.refused_since, books.resumed = 0, False
        for totals in (self.totals, books.totals):
            if gap.rows:
                totals.rows_lost[why_lost] += gap.rows
            totals.chunks += 1
            totals.rows += chunk.rows
            totals.env_steps += env_steps
            totals.bytes += len(entry.data)

    def _end_incarnation(self, books: Slot, next_one: int) -> None:
        """Book what is known to have been sent before ``next_one`` and did not come again: nothing of it can now."""
        books.past = books.past.plus(books.counters)
        books.counters, books.rows_read, books.rows_lost = NOTHING, 0, 0
        missing = books.before.sent - books.past.rows
        if books.before.incarnation < next_one and missing > 0:
            books.past = books.past._replace(rows=books.past.rows + missing)
            for totals in (self.totals, books.totals):
                totals.rows_lost["rollback"] += missing

    def _insert(self, books: Slot, entry: Entry, chunk: Chunk, follows: bool) -> None:
        lanes, start = chunk.flags.shape[1], self._mirror.end
        if books.windows is not None and not (follows and lanes == books.lanes):
            self._break(books)
        if books.windows is None:
            books.windows, books.lanes = self._new_windows(lanes), lanes
        ids = self._mirror.add(chunk, books.windows.last_row)
        with np.errstate(over="ignore"):  # what is infinite then, no window takes
            reward = chunk.reward * self._reward_scale
        self._mirror.close(books.windows.extend(reward, chunk.flags, ids, chunk.q_taken, chunk.q_max))
        self._stored.append(Stored(entry.slot, entry.id, start, self._mirror.end))
        while self._stored[0].end <= self._mirror.start:
            self._stored.popleft()

    def _new_windows(self, lanes: int) -> LaneWindows:
        return LaneWindows(lanes, self._n, self._gamma)

    def _break(self, books: Slot) -> None:
        """What comes next does not follow: each lane's last row serves as its boundary row."""
        assert books.windows is not None
        self._mirror.close(books.windows.break_lanes())
        books.windows = None

    def state(self) -> State:
        """See ``replay.state``: the books, the open windows, and where in the mirror which chunk lies.

        What was read and not yet taken in is left out: it is read again.
        """
        values = {
            "totals": self.totals.values(),
            "quarantined": self._quarantined,
            "slots": {str(slot): books.values() for slot, books in self.slots.items()},
        }
        stored = [(each.slot, *each.id, each.start, each.end) for each in self._stored]
        arrays = {"stored": np.array(stored, np.int64).reshape(-1, 5)}
        for slot, books in self.slots.items():
            if books.windows is not None:
                arrays |= {f"{slot}.{name}": column for name, column in books.windows.state().items()}
        return State(values, arrays)

    def restore(self, state: State, refill: ChunkLog | None) -> tuple[Array, Array]:
        """See ``replay.state``. The mirror is restored already, or ``refill`` is the log that fills it again.

        Returns which rows of the state's mirror <int64>[M] are which of this one's <int64>[M].
        """
        self.totals = Totals.of(state.values["totals"])
        self._quarantined = state.values["quarantined"]
        self.slots = {int(slot): Slot.of(values) for slot, values in state.values["slots"].items()}
        stored = [
            Stored(slot, ChunkId(incarnation, seq), start, end)
            for slot, incarnation, seq, start, end in state.arrays["stored"].tolist()
        ]
        if refill is not None:
            return self._refill(refill, stored)
        self._stored = deque(stored)
        for slot, books in self.slots.items():
            carried = {name: state.arrays[key] for name in CARRIED if (key := f"{slot}.{name}") in state.arrays}
            if carried:
                books.windows = self._new_windows(books.lanes)
                books.windows.restore(carried)
        alive = np.arange(self._mirror.start, self._mirror.end)
        return alive, alive

    def _refill(self, log: ChunkLog, stored: list[Stored]) -> tuple[Array, Array]:
        """Take in again what the log still has up to the cursors; nothing of it is booked a second time."""
        had = {(each.slot, each.id): each for each in stored}
        until_s = time.monotonic() + REFILL_WAIT_S
        was, now = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        newest: dict[int, ChunkId] = {}
        # slots are merged by the weights that their chunks were acted with, and so about as they came in before
        pages = (self._log_again(log, slot, books.cursor, had, until_s) for slot, books in self.slots.items())
        for entry, chunk in merge(*pages, key=lambda each: (each[1].weight_version, each[0].id.seq)):
            before = newest.get(entry.slot, FIRST_ID)
            follows = entry.id == (before.incarnation, before.seq + 1)
            self._insert(self.slots[entry.slot], entry, chunk, follows)
            newest[entry.slot] = entry.id
            old = had.get((entry.slot, entry.id))
            if old is not None and old.end - old.start == chunk.rows:
                was.append(np.arange(old.start, old.end))
                now.append(np.arange(self._mirror.end - chunk.rows, self._mirror.end))
        for slot, books in self.slots.items():
            if books.windows is not None and newest[slot] != books.taken:
                self._break(books)  # the log's end is missing: what comes next does not follow
        old_rows, new_rows = np.concatenate(was), np.concatenate(now)
        alive = new_rows >= self._mirror.start
        return old_rows[alive], new_rows[alive]

    def _log_again(
        self, log: ChunkLog, slot: int, upto: ChunkId, taken: Container[tuple[int, ChunkId]], until_s: float
    ) -> Iterator[tuple[Entry, Chunk]]:
        """A slot's chunks up to an id that were ``taken``, from the oldest that the log has; a page of them in memory
        at a time. What was refused when it first came is refused again, also where only its order told."""
        cursor, page = FIRST_ID, PAGE_BYTES // max(1, len(self.slots))
        while entries := self._page(log, slot, cursor, page, until_s):
            for entry in entries:
                if entry.id > upto:
                    return
                if (slot, entry.id) not in taken:
                    continue
                with contextlib.suppress(BadChunk):  # spoilt since
                    yield entry, self._codec.decode(entry.data, entry.slot, *entry.id)
            cursor = entries[-1].id

    def _page(self, log: ChunkLog, slot: int, cursor: ChunkId, most_bytes: int, until_s: float) -> list[Entry]:
        """Some entries behind a cursor; none only where the log has no more. A server that is away is waited for, since
        what is not read now is trimmed later; at last its slot is ``unread``. Raises Unavailable where no server is
        there."""
        while True:
            try:
                entries = log.read({slot: cursor}, most_bytes)
                if not entries:  # of a log of several servers also where that of the slot is away: last_id raises then
                    log.last_id(slot)
                    entries = log.read({slot: cursor}, most_bytes)
                return entries
            except LogError as error:
                if not error.temporary:
                    raise
                if time.monotonic() > until_s:
                    log.description()
                    self.unread.add(slot)
                    return []
            time.sleep(0.2)
