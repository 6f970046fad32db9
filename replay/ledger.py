"""The reader's ledger: what was sent, read, refused and lost, of each slot and in all. It does no input or output.

It follows each slot's cursor, which only moves forward, and holds every chunk to the conservation law::

    rows read + rows lost, by reason = rows sent, as far as they are known

of each slot's newest incarnation, and of each slot over all its incarnations. Known are the rows that the header of a
chunk counts which this reader took, or an earlier reader that took more than this one's checkpoint has (``Reading``),
and those that the last heartbeat of an incarnation counted which has died since (``record_deaths``). What it did after
that is not known. ``LOSSES`` has the reasons; a chunk that was refused is counted by ``REFUSALS`` in any case.
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
        """Returns the fields in JSON's types. (``asdict`` makes pairs of a Counter's items, and counts those.)"""
        return {**vars(self), "refused": dict(self.refused), "rows_lost": dict(self.rows_lost)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns totals from what ``values`` gave."""
        chunks, rows, env_steps, size = (count(values[name], name) for name in ("chunks", "rows", "env_steps", "bytes"))
        refused, rows_lost = (Counter(counts(values[name], name)) for name in ("refused", "rows_lost"))
        return cls(chunks, rows, env_steps, size, refused, rows_lost)


@dataclass
class SlotAccount:
    """The account of one slot: ``cursor`` is the last chunk seen, ``taken`` the last that was not refused, ``checked``
    the cursor when the account was last checked."""

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
    """Rows of incarnations that died and are not ended in this account yet, as their last heartbeats counted them."""
    ended: Reading = UNREAD
    """The incarnation that was ended last, and its rows as they were counted then."""

    @property
    def reading(self) -> Reading:
        """Returns how far any reader of this run has come, as far as is known."""
        return max(self.before, Reading(self.taken.incarnation, self.past.rows + self.counters.rows))

    def values(self) -> dict[str, Any]:
        """Returns the account in types that JSON has."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        ids = {name: list(getattr(self, name)) for name in ("cursor", "taken", "counters", "past", "before")}
        return {**plain, **ids, "totals": self.totals.values()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns an account from what ``values`` gave. What this slot sent meanwhile and the log has no more is lost
        to the resume."""
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
    """The accounts of all slots, and their sums."""

    def __init__(self, max_rows: int) -> None:
        """``max_rows``: of a chunk, which bounds what a gap may hold."""
        self._max_rows = max_rows
        self.slots: dict[int, SlotAccount] = {}
        self.totals = Totals()

    def open(self, slots: Iterable[int]) -> None:
        """Opens accounts of these slots, too, each from its first chunk."""
        for slot in slots:
            self.slots.setdefault(slot, SlotAccount())

    def readings(self) -> dict[int, Reading]:
        """Returns how far each slot was read, by this reader or an earlier one; ``record_earlier`` takes it."""
        return {slot: account.reading for slot, account in self.slots.items()}

    def record_earlier(self, readings: Mapping[int, Reading]) -> None:
        """Records how far an earlier reader of this run had come, which may have read what the log has no more."""
        self.open(readings)
        for slot, reading in readings.items():
            account = self.slots[slot]
            account.before = max(account.before, reading)

    def record_deaths(self, died: Mapping[int, Mapping[int, int]]) -> None:
        """Records the rows that incarnations which have died since had made, by slot and incarnation, as their last
        heartbeats counted them. Repeating it does no harm; what is missing is counted as the incarnation ends."""
        for slot, made in died.items():
            if (account := self.slots.get(slot)) is None:
                continue
            oldest = max(account.taken.incarnation, account.ended.incarnation + 1)
            account.died = {incarnation: rows for incarnation, rows in made.items() if incarnation >= oldest}
            late = made.get(account.ended.incarnation, 0) - account.ended.sent
            if late > 0:  # the next incarnation's first chunk was taken before this was known
                account.ended = account.ended._replace(sent=account.ended.sent + late)
                self._count_missing(account, "tail", late)

    def end_dead(self, last_id: Callable[[int], ChunkId]) -> None:
        """Ends the newest incarnations of slots where they have died, at a run's end: where the log, whose last ids
        these are, has no more of theirs than was taken."""
        for slot, account in self.slots.items():
            newest = max(account.died, default=0)
            if newest >= account.taken.incarnation and account.died and last_id(slot) <= account.cursor:
                self._end_incarnation(account, newest + 1)

    def counters(self) -> Counters:
        """Returns what all actors have done, over all slots and incarnations, as far as their chunks arrived."""
        total = Counters()
        for account in self.slots.values():
            total = total.plus(account.past).plus(account.counters)
        return total

    def refuse(self, slot: int, reason: str) -> None:
        """Counts a refused chunk. Its rows show as a gap before the next good chunk."""
        self.totals.refused[reason] += 1
        self.slots[slot].totals.refused[reason] += 1

    def count_strays(self, entries: int) -> None:
        """Counts entries of streams that are no slot's."""
        self.totals.refused["slot"] += entries

    def gap_before(self, chunk: Chunk) -> Gap:
        """Returns what this incarnation sent before this chunk and was never taken.

        Raises BadChunk where the header's count cannot be: the conservation law holds for every chunk that is taken.
        """
        account = self.slots[chunk.slot]
        same = chunk.incarnation == account.taken.incarnation
        before = account.counters if same else NOTHING
        rows = chunk.counters.rows - chunk.rows - before.rows
        chunks = chunk.seq - (account.taken.seq + 1 if same else 1)
        if not 0 <= rows <= chunks * self._max_rows:
            raise BadChunk("counters", f"{chunk.counters.rows} rows counted, {before.rows} before its own {chunk.rows}")
        chunk.counters.check_after(before, chunk.rows, chunk.env_steps, rows)
        return Gap(chunks, rows)

    def record(self, chunk: Chunk, gap: Gap, env_steps: int, nbytes: int) -> None:
        """Records a good chunk, and what was lost before it."""
        account = self.slots[chunk.slot]
        if chunk.incarnation > account.taken.incarnation:
            self._end_incarnation(account, chunk.incarnation)
        account.rows_read += chunk.rows
        account.rows_lost += gap.rows
        account.taken, account.counters, account.weight_version = (
            ChunkId.of(chunk),
            chunk.counters,
            chunk.weight_version,
        )
        why_lost = "refused" if account.refused_since == gap.chunks else "resume" if account.resumed else "gap"
        account.refused_since, account.resumed = 0, False
        for totals in (self.totals, account.totals):
            if gap.rows:
                totals.rows_lost[why_lost] += gap.rows
            totals.chunks += 1
            totals.rows += chunk.rows
            totals.env_steps += env_steps
            totals.bytes += nbytes

    def _end_incarnation(self, account: SlotAccount, next_one: int) -> None:
        """Counts what is known to have been sent before ``next_one`` and did not come again: nothing of it can now."""
        earlier, last = account.past.rows, account.taken.incarnation
        made = {incarnation: rows for incarnation, rows in account.died.items() if last <= incarnation < next_one}
        made[last] = max(made.get(last, 0), account.counters.rows)
        account.past = account.past.plus(account.counters)
        account.counters, account.rows_read, account.rows_lost, account.died = NOTHING, 0, 0, {}
        if account.before.incarnation < next_one:
            self._count_missing(account, "rollback", account.before.sent - account.past.rows)
        self._count_missing(account, "tail", earlier + sum(made.values()) - account.past.rows)
        if (
            next_one - 1 > account.ended.incarnation
        ):  # what is known of no single incarnation counts as the newest one's
            others = earlier + sum(made.values()) - made.get(next_one - 1, 0)
            account.ended = Reading(next_one - 1, account.past.rows - others)

    def _count_missing(self, account: SlotAccount, why: str, rows: int) -> None:
        """Counts rows of incarnations that have ended, where there are any, as lost."""
        if rows > 0:
            account.past = account.past._replace(rows=account.past.rows + rows)
            for totals in (self.totals, account.totals):
                totals.rows_lost[why] += rows

    def check(self) -> None:
        """Raises Unbalanced unless the law holds for each slot's newest incarnation and for each slot over all of
        them, and no cursor has moved back."""
        for slot, account in self.slots.items():
            if account.rows_read + account.rows_lost != account.counters.rows:
                raise Unbalanced(
                    f"slot {slot}, incarnation {account.taken.incarnation}: {account.rows_read} rows read + "
                    f"{account.rows_lost} lost are not the {account.counters.rows} that its actor has sent up to "
                    f"{account.taken}"
                )
            totals, sent = account.totals, account.past.rows + account.counters.rows
            if totals.rows + totals.rows_lost.total() != sent:
                raise Unbalanced(
                    f"slot {slot}: {totals.rows} rows read + {dict(totals.rows_lost)} lost are not the {sent} that all "
                    f"its incarnations have sent up to {account.taken}"
                )
            if not max(account.checked, account.taken) <= account.cursor:
                furthest = max(account.checked, account.taken)
                raise Unbalanced(f"slot {slot}: the cursor moved back to {account.cursor}, from {furthest}")
            account.checked = account.cursor

    def values(self) -> dict[str, Any]:
        """Returns all accounts in types that JSON has."""
        slots = {str(slot): account.values() for slot, account in self.slots.items()}
        return {"totals": self.totals.values(), "slots": slots}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continues from what ``values`` gave."""
        self.totals = Totals.of(values["totals"])
        self.slots = {int(slot): SlotAccount.of(account) for slot, account in values["slots"].items()}
