"""The reader's ledger: what was sent, read, refused and lost, of each slot and in all. It does no input or output.

It follows each slot's cursor, which only moves forward, and holds every chunk to the conservation law::

    rows read + rows lost, by reason = rows sent, as far as they are known

of each slot's newest incarnation, and of each slot over all its incarnations. Known are the rows that the header of a
chunk counts which this reader took, or an earlier reader that took more than this one's checkpoint has (``Reading``),
and those that the last heartbeat of an incarnation counted which has died since (``note_died``). What it did after that
is not known. ``LOSSES`` has the reasons; a chunk that was refused is counted by ``REFUSALS`` in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from replay.chunk import BadChunk, Chunk, Counters
from replay.chunk_log.protocol import ChunkId
from replay.state import count, counts

FIRST_ID, NOTHING = ChunkId(), Counters()

LOSSES = ("gap", "refused", "resume", "rollback", "tail")
"""Why rows that were sent are not in the mirror: the closed set, which /metrics shows at 0 from the start.

gap: chunks before the present one never came, or not all of them were refused; refused: all of them came and were
refused; resume: as a gap, the first one after a resume, so the log had lost or dropped them meanwhile; rollback: an
earlier learner of this run had read them after the checkpoint that this one goes on from, and the log has them no
more; tail: the last heartbeat of an actor that died counted them, and no chunk that was taken does: they were never
stored, or a server forgot them.
"""


class Unbalanced(AssertionError):
    """The ledger breaks the conservation law: qherd has a bug, and counts and rows cannot be trusted."""


class Reading(NamedTuple):
    """How far a reader has come with a slot: its incarnation, and the rows sent so far by it and those before it."""

    incarnation: int
    sent: int


UNREAD = Reading(0, 0)


class Gap(NamedTuple):
    """Chunks of an incarnation that were not taken before the present one, and their rows."""

    chunks: int
    rows: int


@dataclass
class Totals:
    """What was counted since the run began, over all slots or of one."""

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
        chunks, rows, env_steps, size = (count(values[name], name) for name in ("chunks", "rows", "env_steps", "bytes"))
        refused, rows_lost = (Counter(counts(values[name], name)) for name in ("refused", "rows_lost"))
        return cls(chunks, rows, env_steps, size, refused, rows_lost)


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
    totals: Totals = field(default_factory=Totals)
    resumed: bool = False
    checked: ChunkId = FIRST_ID
    before: Reading = UNREAD
    """How far an earlier reader of this run had come."""
    died: dict[int, int] = field(default_factory=dict)
    """Rows of incarnations that died and are not ended in these books yet, as their last heartbeats counted them."""
    ended: Reading = UNREAD
    """The incarnation that was ended last, and its rows as they are booked."""

    @property
    def reading(self) -> Reading:
        """How far any reader of this run has come, as far as is known."""
        return max(self.before, Reading(self.taken.incarnation, self.past.rows + self.counters.rows))

    def values(self) -> dict[str, Any]:
        """Returns the books as JSON can say them."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        ids = {name: list(getattr(self, name)) for name in ("cursor", "taken", "counters", "past", "before")}
        return {**plain, **ids, "totals": self.totals.values()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns books from what ``values`` gave. What this slot sent meanwhile and the log has no more is lost to
        the resume."""
        plain: dict[str, Any] = {name: count(values[name], name) for name in _PLAIN}
        cursor, taken, before = ([count(each, name) for each in values[name]] for name in ("cursor", "taken", "before"))
        return cls(
            ChunkId._make(cursor),
            ChunkId._make(taken),
            Counters.of(values["counters"], "counters"),
            Counters.of(values["past"], "past"),
            **plain,
            totals=Totals.of(values["totals"]),
            before=Reading._make(before),
            resumed=True,
        )


_PLAIN = ("rows_read", "rows_lost", "refused_since", "weight_version")


class Ledger:
    """The books of all slots, and their sums."""

    def __init__(self, max_rows: int) -> None:
        """``max_rows``: of a chunk, which bounds what a gap may hold."""
        self._max_rows = max_rows
        self.slots: dict[int, Slot] = {}
        self.totals = Totals()

    def open(self, slots: Iterable[int]) -> None:
        """Keep books of these slots, too, each from its first chunk."""
        for slot in slots:
            self.slots.setdefault(slot, Slot())

    def readings(self) -> dict[int, Reading]:
        """Returns how far each slot was read, by this reader or an earlier one; ``know`` takes it."""
        return {slot: books.reading for slot, books in self.slots.items()}

    def know(self, readings: Mapping[int, Reading]) -> None:
        """Note how far an earlier reader of this run had come, which may have read what the log has no more."""
        self.open(readings)
        for slot, reading in readings.items():
            books = self.slots[slot]
            books.before = max(books.before, reading)

    def note_died(self, died: Mapping[int, Mapping[int, int]]) -> None:
        """Note the rows that incarnations which have died since had made, by slot and incarnation, as their last
        heartbeats counted them. To be told again does no harm; what is missing is booked as the incarnation ends."""
        for slot, made in died.items():
            if (books := self.slots.get(slot)) is None:
                continue
            oldest = max(books.taken.incarnation, books.ended.incarnation + 1)
            books.died = {incarnation: rows for incarnation, rows in made.items() if incarnation >= oldest}
            late = made.get(books.ended.incarnation, 0) - books.ended.sent
            if late > 0:  # the next incarnation's first chunk was taken before this was told
                books.ended = books.ended._replace(sent=books.ended.sent + late)
                self._book_missing(books, "tail", late)

    def end_dead(self, last_id: Callable[[int], ChunkId]) -> None:
        """End the newest incarnations of slots where they have died, at a run's end: where the log, whose last ids
        these are, has no more of theirs than was taken."""
        for slot, books in self.slots.items():
            newest = max(books.died, default=0)
            if newest >= books.taken.incarnation and books.died and last_id(slot) <= books.cursor:
                self._end_incarnation(books, newest + 1)

    def counters(self) -> Counters:
        """Returns what all actors have done, over all slots and incarnations, as far as their chunks arrived."""
        total = Counters()
        for books in self.slots.values():
            total = total.plus(books.past).plus(books.counters)
        return total

    def refuse(self, slot: int, reason: str) -> None:
        """Count a refused chunk. Its rows show as a gap before the next good chunk."""
        self.totals.refused[reason] += 1
        self.slots[slot].totals.refused[reason] += 1

    def note_strays(self, entries: int) -> None:
        """Count entries of streams that are no slot's."""
        self.totals.refused["slot"] += entries

    def gap_before(self, chunk: Chunk) -> Gap:
        """Returns what this incarnation sent before this chunk and was never taken.

        Raises BadChunk where the header's count cannot be: the conservation law holds for every chunk that is taken.
        """
        books = self.slots[chunk.slot]
        same = chunk.incarnation == books.taken.incarnation
        before = books.counters if same else NOTHING
        rows = chunk.counters.rows - chunk.rows - before.rows
        chunks = chunk.seq - (books.taken.seq + 1 if same else 1)
        if not 0 <= rows <= chunks * self._max_rows:
            raise BadChunk("counters", f"{chunk.counters.rows} rows counted, {before.rows} before its own {chunk.rows}")
        chunk.counters.check_after(before, chunk.rows, chunk.env_steps, rows)
        return Gap(chunks, rows)

    def take(self, chunk: Chunk, gap: Gap, env_steps: int, nbytes: int) -> None:
        """Book a good chunk, and what was lost before it."""
        books = self.slots[chunk.slot]
        if chunk.incarnation > books.taken.incarnation:
            self._end_incarnation(books, chunk.incarnation)
        books.rows_read += chunk.rows
        books.rows_lost += gap.rows
        books.taken, books.counters, books.weight_version = ChunkId.of(chunk), chunk.counters, chunk.weight_version
        why_lost = "refused" if books.refused_since == gap.chunks else "resume" if books.resumed else "gap"
        books.refused_since, books.resumed = 0, False
        for totals in (self.totals, books.totals):
            if gap.rows:
                totals.rows_lost[why_lost] += gap.rows
            totals.chunks += 1
            totals.rows += chunk.rows
            totals.env_steps += env_steps
            totals.bytes += nbytes

    def _end_incarnation(self, books: Slot, next_one: int) -> None:
        """Book what is known to have been sent before ``next_one`` and did not come again: nothing of it can now."""
        earlier, last = books.past.rows, books.taken.incarnation
        made = {incarnation: rows for incarnation, rows in books.died.items() if last <= incarnation < next_one}
        made[last] = max(made.get(last, 0), books.counters.rows)
        books.past = books.past.plus(books.counters)
        books.counters, books.rows_read, books.rows_lost, books.died = NOTHING, 0, 0, {}
        if books.before.incarnation < next_one:
            self._book_missing(books, "rollback", books.before.sent - books.past.rows)
        self._book_missing(books, "tail", earlier + sum(made.values()) - books.past.rows)
        if next_one - 1 > books.ended.incarnation:  # what is known of no single incarnation counts as the newest one's
            others = earlier + sum(made.values()) - made.get(next_one - 1, 0)
            books.ended = Reading(next_one - 1, books.past.rows - others)

    def _book_missing(self, books: Slot, why: str, rows: int) -> None:
        """Book rows of incarnations that have ended, where there are any."""
        if rows > 0:
            books.past = books.past._replace(rows=books.past.rows + rows)
            for totals in (self.totals, books.totals):
                totals.rows_lost[why] += rows

    def check(self) -> None:
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

    def values(self) -> dict[str, Any]:
        """Returns all books as JSON can say them."""
        slots = {str(slot): books.values() for slot, books in self.slots.items()}
        return {"totals": self.totals.values(), "slots": slots}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from what ``values`` gave."""
        self.totals = Totals.of(values["totals"])
        self.slots = {int(slot): Slot.of(books) for slot, books in values["slots"].items()}
