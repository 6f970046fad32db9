"""A run's replay memory in another process: a notebook, a second learner. It reads the log and never writes to it.

Five lines, while ``qherd train --run NAME`` runs on this machine (on a cluster, ``url`` is what
``secrets/reader/redis_url`` says)::

    import pathlib, replay
    url = pathlib.Path("runs/NAME/replay.url").read_text()
    with replay.attach(url, "NAME") as memory:
        print(memory.poll(), "env steps")
        s_tm1, a_tm1, r_t, discount_t, s_t = memory.sample(32)

(Not named attach.py: importing a module ``replay.attach`` would put itself in the place of the function.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from replay.buffer import ReplayBuffer
from replay.builders import Returns, make_assembler, make_mirror, planned_bytes
from replay.chunk import Codec
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import ChunkId, Entry, LogError, Unavailable
from replay.description import RunDescription
from replay.reader import Reader
from replay.ring import Ring
from replay.samplers.uniform import UniformSampler
from replay.storage import CannotFit, available_memory

REFRESH_S = 1.0
"""How often the run's description is read again: as often as the learner writes it."""
PAGES = 16
"""A page of the log is this part of the mirror. XREAD pages slot by slot: small ones keep the slots mixed by age."""


Log = TypeVar("Log")
T = TypeVar("T")


class NotThere(LogError):
    """No run of this name describes itself on these servers."""


class Replaced(LogError):
    """The run that was attached to is another one now."""


def attach(url: str | Sequence[str], run: str, capacity_rows: int | None = None) -> Attached:
    """Returns a mirror of the run's replay memory in this process, still empty: ``poll`` fills it.

    ``url``: the run's server, or all of its servers, in any order; a user who may only read is enough.
    ``capacity_rows``: rows to hold, as many as the run's own learner where it is not given.

    Raises NotThere where the run has not described itself (yet) or has slots elsewhere, CannotFit where its rows do not
    fit into memory, and what a RedisLog raises.
    """
    with contextlib.ExitStack() as stack:
        urls = [url] if isinstance(url, str) else url
        logs = [stack.enter_context(contextlib.closing(open_inspector(address.strip(), run))) for address in urls]
        attached = Attached(logs, run, capacity_rows)
        stack.pop_all()  # from here on it closes them itself
        return attached


def find_description(logs: Sequence[RunInspector], run: str) -> RunDescription:
    """Returns the description of the run that these logs are of: each has a copy. Raises NotThere where there is
    none."""
    found = first_answer(logs, lambda log: log.description())
    if found is not None:
        return RunDescription.unpack(found)
    raise NotThere(
        f"no run {run!r} describes itself on {', '.join(log.url for log in logs)}: is the name right, and has its "
        "learner started? (qherd replay stats URL names the runs of a server)"
    )


def slots_elsewhere(logs: Sequence[RunInspector], description: RunDescription) -> list[int]:
    """Slots whose chunks the learner has read and none of these servers has seen; none where one does not answer."""
    sent = [slot for slot, seen in description.slots.items() if seen.chunks]
    try:
        return [slot for slot in sent if not any(log.last_id(slot) > ChunkId() for log in logs)]
    except Unavailable:
        return []


def first_answer(logs: Sequence[Log], ask: Callable[[Log], T | None]) -> T | None:
    """Returns the first answer of a server that is not None. Raises a temporary error where none of them answers."""
    errors: list[LogError] = []
    for log in logs:
        try:
            if (answer := ask(log)) is not None:
                return answer
        except LogError as error:
            if not error.temporary:
                raise
            errors.append(error)
    if errors and len(errors) == len(logs):
        raise errors[0]
    return None


class Attached:
    """A run's replay memory, read from outside. ``mirror`` holds its newest rows; ``description`` is the run's.

    A context manager. Not thread-safe. What was interrupted in the middle of a chunk (Ctrl-C in a notebook) has to be
    attached again: its rows are half there.
    """

    def __init__(self, logs: Sequence[RunInspector], run: str, capacity_rows: int | None = None) -> None:
        """``logs``: the run's servers; each slot's stream is on one of them. See ``attach``."""
        self._logs, self.run = logs, run
        description = self.description = find_description(logs, run)
        if elsewhere := slots_elsewhere(logs, description):
            raise NotThere(
                f"slots {', '.join(map(str, elsewhere))} of run {run!r} are not on "
                f"{', '.join(log.url for log in logs)}: give all of its servers"
            )
        self._nonce = self._claimed_by()
        self.schema = description.row_schema
        self.mirror = _mirror(description, description.capacity_rows if capacity_rows is None else capacity_rows)
        self._streams = _Streams(logs)
        self._buffer = ReplayBuffer(
            self.mirror,
            make_assembler(
                self.mirror,
                Returns(
                    description.n_step,
                    description.gamma,
                    description.farthest_n_step,
                    description.reward_scale,
                    description.reward_clip,
                    description.value_rescale,
                ),
            ),
            UniformSampler(self.mirror, np.random.default_rng()),
        )
        self._reader = Reader(self._streams, Codec(self.schema, run), self._buffer)
        self._reader.follow(description.slots)
        self._page_bytes = min(64 << 20, max(1, self.mirror.capacity_rows // PAGES) * self.schema.row_bytes)
        self._refreshed_s = time.monotonic()

    @property
    def refused(self) -> Mapping[str, int]:
        """Chunks that were not taken, by reason."""
        return self._reader.ledger.totals.refused

    @property
    def down(self) -> Mapping[str, LogError]:
        """Returns those of several servers that did not answer the last poll, with the error. Their slots make no
        progress."""
        return self._streams.down

    def poll(self) -> int:
        """Takes in what has arrived since the last call, at most as much as the run's log holds; returns the env steps.

        Raises a temporary LogError where no server answers (call again), any other where the run cannot be followed
        any more.
        """
        self._reader.check_unbroken()
        self._streams.down.clear()
        if time.monotonic() - self._refreshed_s >= REFRESH_S:
            self._refresh()
        before = self._reader.ledger.totals.env_steps
        self._reader.drain(self._page_bytes, self.description.capacity_rows)
        if self.mirror.end == 0 and self.refused.get("size"):
            raise ValueError(f"capacity_rows={self.mirror.capacity_rows} cannot hold one chunk of this run: give more")
        return self._reader.ledger.totals.env_steps - before

    def sample(self, count: int, rng: np.random.Generator | None = None) -> Any:
        """Samples ``count`` transitions, uniformly and with replacement: a ``replay.mirror.Batch``. Of a recurrent run
        ``count`` sequences, a ``replay.sequences.SequenceBatch``. Raises ValueError where there are none yet."""
        self._reader.check_unbroken()
        if rng is not None:
            return self.mirror.gather(UniformSampler(self.mirror, rng).sample(count).rows)
        return self._buffer.sample(count).batch

    def close(self) -> None:
        """Gives up the connections; the mirror stays."""
        for log in self._logs:
            log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _refresh(self) -> None:
        """Reads the description again and follows the slots that it names; a server that was restarted may have
        none."""
        with contextlib.suppress(NotThere):
            description = find_description(self._logs, self.run)
            nonce = self._claimed_by()
            if None not in (nonce, self._nonce) and nonce != self._nonce:
                raise Replaced(f"another run has taken the name {self.run!r}: attach again")
            if not description.same_rows(self.description):
                raise Replaced(
                    f"run {self.run!r} has other rows, n_step, gamma, rewards, values or sequences now: attach again"
                )
            self.description = description
            self._buffer.assembler.set_horizon(description.n_step, description.gamma)
            self._reader.look_again()
            self._reader.follow(description.slots)
        self._refreshed_s = time.monotonic()

    def _claimed_by(self) -> str | None:
        return first_answer(self._logs, lambda log: log.nonce())


def _mirror(description: RunDescription, capacity_rows: int) -> Ring:
    """Raises CannotFit where there is no memory for it: the learner's may lie in a file, or on a bigger machine."""
    schema, sequences = description.row_schema, description.sequences
    needed, free = planned_bytes(schema, capacity_rows, sequences), available_memory()
    if free is not None and needed > free:
        raise CannotFit(
            f"a mirror of {capacity_rows:,} rows needs {needed / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free: "
            "give a smaller capacity_rows"
        )
    return make_mirror(schema, capacity_rows, sequences, description.farthest_n_step)


class _Streams:
    """The run's streams on all its servers, for a reader that never writes."""

    def __init__(self, logs: Sequence[RunInspector]) -> None:
        self._logs = logs
        self.down: dict[str, LogError] = {}

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        """See ``ChunkLog.read``. A server that does not hold a slot's stream returns nothing of it; one that stands
        in ``down`` is not asked. Raises a temporary error where none answers."""
        entries: list[Entry] = []
        for log in self._logs:
            if log.url in self.down:
                continue
            try:
                entries += log.read(cursors, max(1, max_bytes // len(self._logs)))
            except LogError as error:
                if not error.temporary or len(self._logs) == 1:
                    raise
                self.down[log.url] = error
        if len(self.down) == len(self._logs):
            raise next(iter(self.down.values()))
        return entries

    def trim(self, fence: int, oldest: Mapping[int, ChunkId]) -> None:
        """Leaves the log as it is: trimming is the run's own learner's."""

    def renew(self, fence: int, slot: int) -> None:
        """As ``trim``."""
