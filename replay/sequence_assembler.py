"""The assembler of a recurrent run: it cuts each lane's episodes into sequences (``replay.sequences``).

A lane's rows are cut by piece: from an episode's start, or from the first row after rows that were lost, to the
episode's boundary row, or the last row before such a loss. In a piece the recurrent state is *known* before the first
row of each chunk, and at an episode's start, where it is zero. With positions in the piece, b = burn_in, t = trained,
p = t - overlap and n = bootstrap:

* The first sequence is trained from the first row whose state is known (and whose stack of frames is there).
* After one that is trained from row i the next one is trained from the last row up to i + p that has a row of known
  state among the b rows before it, or is one itself. It begins at the earliest of these, and so has the longest
  burn-in. With chunks of at most b + p steps there always is one; else the next chunk's first row is waited for.
* It has t trained rows and the n rows after them. Where the piece ends sooner it has all rows up to there: the last one
  is bootstrapped from, and not trained on. There is none that would train no further row.

With b = 2, t = 4, overlap 1 (p = 3), n = 1 and chunks of 3 steps (states known before rows 0, 3, 6, ...):

===================================================  ===============================================================
what comes of a lane                                 the sequences: burn-in | trained | bootstrap
===================================================  ===============================================================
rows 0-4 of an episode                               trained from 0: ``| 0 1 2 3 | 4``
rows 5-7                                             trained from 3, where the state is known: ``| 3 4 5 6 | 7``
row 9 is the boundary row                            what is left: ``| 6 7 8 | 9``
row 7 is the boundary row                            nothing more: all rows before it are trained already
an episode of two rows and a boundary row            ``| 0 1 | 2``
a chunk is lost after row 5                          as if row 5 were the boundary row: ``| 3 4 | 5``
the first row after that, in mid-episode             a new piece from its own state: ``| 0 1 2 3 | 4``
... with a stack of k frames                         from the first known state after k - 1 rows: 0-2 are in none, k = 4
an episode from the last row of a chunk on: states   trained from 0, then from 3: ``1 2 | 3 4 5 6 | 7``, then from 6:
are known before 0, 1, 4, 7                          ``4 5 | 6 7 8 9 | 10``
chunks of 9 steps, which are longer than b + p       trained from 0, from 2 (``0 1 | 2 3 4 5 | 6``), and from 9: rows 6
                                                     to 8 are trained in none
===================================================  ===============================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.assembler import NStepAssembler
from replay.chunk import BOUNDARY, FIRST, TERMINATED, Chunk
from replay.sequences import NewSequences, SequenceMirror, SequenceSpec
from replay.state import State, array_in

Array = npt.NDArray[Any]
Cut = tuple[int, ...]
"""A sequence as ``NewSequences`` has it: its name, its first row, and its numbers of rows."""


class SequenceAssembler(NStepAssembler):
    """Makes sequences, of rows whose n-step windows have closed: see this module's table."""

    def __init__(
        self,
        mirror: SequenceMirror,
        n: int,
        gamma: float,
        reward_scale: float = 1.0,
        *,
        reward_clip: bool = False,
        value_rescale: bool = False,
    ) -> None:
        """See ``NStepAssembler``. The longest window is the mirror's ``spec.bootstrap``."""
        super().__init__(
            mirror,
            n,
            gamma,
            reward_scale,
            reward_clip=reward_clip,
            value_rescale=value_rescale,
            longest=mirror.spec.bootstrap,
        )
        self._sequences = mirror
        self._lanes: dict[int, list[LanePiece]] = {}

    def append(self, chunk: Chunk, follows: bool) -> None:
        """See ``NStepAssembler.append``."""
        super().append(chunk, follows)
        mirror = self._sequences
        ids = mirror.newest(*chunk.flags.shape)
        boundary = (chunk.flags & BOUNDARY) != 0
        reward = self._reward(chunk)
        # What float32 cannot hold is in the window of no row that is trained on.
        counts = ~boundary & np.isfinite(reward)
        ended = boundary | ((chunk.flags & TERMINATED) != 0)
        mirror.add_steps(ids, np.where(counts, reward, 0), np.where(ended, 0, np.float32(self._gamma)))
        lanes = self._lanes.get(chunk.slot)
        if lanes is None:
            blind = np.where(chunk.flags[0] & FIRST, 0, mirror.schema.stack - 1)
            lanes = self._lanes[chunk.slot] = [LanePiece(mirror.spec, each) for each in blind.tolist()]
        cuts: list[Cut] = []
        for lane, rows, ends in zip(lanes, list(ids.T), list(boundary.T), strict=True):
            cuts += _cuts(lane, rows.tolist(), np.flatnonzero(ends).tolist())
        self._add(cuts)

    def break_lanes(self, slot: int) -> None:
        """See ``NStepAssembler.break_lanes``."""
        super().break_lanes(slot)
        self._add([cut for lane in self._lanes.pop(slot, ()) for cut in lane.end()])

    def _add(self, cuts: list[Cut]) -> None:
        if cuts:
            self._sequences.add_sequences(NewSequences(*np.array(cuts, np.int64).T))

    def state(self) -> State:
        """See ``NStepAssembler.state``; and the lanes' pieces."""
        values, arrays = super().state()
        pieces: dict[str, Array] = {}
        for slot, lanes in self._lanes.items():
            for number, lane in enumerate(lanes):
                pieces |= {f"{slot}.{name}.{number}": array for name, array in lane.state().items()}
        return State(values, {**arrays, **pieces})

    def restore(self, state: State) -> None:
        """See ``NStepAssembler.restore``."""
        super().restore(state)
        self._lanes = {}
        for slot, windows in self._windows.items():
            self._lanes[slot] = [LanePiece(self._sequences.spec) for _ in range(windows.lanes)]
            for number, lane in enumerate(self._lanes[slot]):
                arrays = {name: state.arrays[f"{slot}.{name}.{number}"] for name in lane.state()}
                lane.restore(arrays, self._sequences.end)


def _cuts(lane: LanePiece, rows: list[int], boundaries: list[int]) -> Iterator[Cut]:
    """Yields the sequences that a chunk's rows of a lane complete; ``boundaries``: which of them are boundary rows."""
    begin = 0
    for end in boundaries:
        lane.add(rows[begin : end + 1])
        yield from lane.end()
        begin = end + 1
    if begin < len(rows):
        lane.add(rows[begin:])
        yield from lane.cut()


class LanePiece:
    """The piece of a lane that is still to be cut, as far as sequences to come need its rows.

    Positions count from the oldest of these: ``_rows`` are the rows, ``_known`` the positions before which the state is
    known, ``_next`` where the next sequence is trained from (-1: at the next row of known state), ``_covered`` the
    first position that none so far is trained on, ``_blind`` how many of the next rows have lost frames of their stack.
    """

    def __init__(self, spec: SequenceSpec, blind: int = 0) -> None:
        self._spec = spec
        self._begin(blind)

    def _begin(self, blind: int) -> None:
        self._rows, self._known = list[int](), list[int]()
        self._next, self._covered, self._blind = -1, 0, blind

    def add(self, rows: list[int]) -> None:
        """Adds rows, before the first of which the state is known; none of them but the last is a boundary row."""
        here = len(self._rows)
        self._rows += rows
        if here >= self._blind:
            self._known.append(here)
            if self._next < 0:
                self._next = self._covered = here

    def end(self) -> Iterator[Cut]:
        """Yields the last sequences of a piece that ends here, and begins another one."""
        yield from self.cut()
        last = len(self._rows) - 1
        while 0 <= self._next < last and self._covered < last:
            trained = min(self._spec.trained, last - self._next)
            yield self._take(trained, last + 1)
        self._begin(0)

    def cut(self) -> Iterator[Cut]:
        """Yields the sequences all of whose rows have come."""
        spec = self._spec
        while 0 <= self._next <= len(self._rows) - spec.trained - spec.bootstrap:
            yield self._take(spec.trained, self._next + spec.trained + spec.bootstrap)
        self._forget()

    def _take(self, trained: int, end: int) -> Cut:
        """Returns the next sequence, which ends before position ``end``, and finds the one after it."""
        at, spec = self._next, self._spec
        first = next(known for known in self._known if known >= at - spec.burn_in)
        self._covered = at + trained
        latest = max(known for known in self._known if known <= at + spec.period)
        following = min(at + spec.period, latest + spec.burn_in)
        if following <= at:
            following = next((known for known in self._known if known > at), -1)
        self._next = following
        return self._rows[at], self._rows[first], at - first, trained, end - first

    def _forget(self) -> None:
        """Drops the rows that no sequence to come begins with."""
        dropped = len(self._rows) if self._next < 0 else max(0, self._next - self._spec.burn_in)
        if dropped:
            self._rows = self._rows[dropped:]
            self._known = [known - dropped for known in self._known if known >= dropped]
            self._next = max(-1, self._next - dropped)
            self._covered -= dropped
            self._blind = max(0, self._blind - dropped)

    def state(self) -> dict[str, Array]:
        """Returns what ``restore`` continues from."""
        return {
            "piece": np.array([self._next, self._covered, self._blind], np.int64),
            "rows": np.array(self._rows, np.int64),
            "known": np.array(self._known, np.int64),
        }

    def restore(self, arrays: Mapping[str, Array], end: int) -> None:
        """See ``replay.state``; ``end``: the row after the newest one."""
        state = State({}, arrays)
        grids = {name: array_in(state, name, (len(array),), np.int64) for name, array in arrays.items()}
        rows, known = grids["rows"], grids["known"]
        following, self._covered, self._blind = array_in(state, "piece", (3,), np.int64).tolist()
        in_order = all((np.diff(each) > 0).all() for each in (rows, known))
        if not (in_order and (rows >= 0).all() and (rows < end).all() and (known >= 0).all()):
            raise ValueError("the rows of a lane's piece are no rows of the mirror, in their order")
        reachable = (known <= following) & (known >= following - self._spec.burn_in)
        if (known >= len(rows)).any() or following >= len(rows) or not (following == -1 or reachable.any()):
            raise ValueError("the positions in a lane's piece are none of its rows'")
        self._next, self._rows, self._known = following, rows.tolist(), known.tolist()
