"""Chunks with recurrent states, and a recorder that cuts lanes into sequences by brute force."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.chunk import BOUNDARY, FIRST, TERMINATED, Chunk, Column, Schema
from replay.sequences import SequenceBatch, SequenceSpec

Array = npt.NDArray[Any]
MAX = float(np.finfo(np.float32).max)
MASK = Column("action_mask", "uint8", (4,))
SCHEMA = Schema((1,), "float32", 4, extras=(MASK,), core=2)


def state_before(name: float) -> list[float]:
    """The recurrent state before the row of this number, where that is not an episode's first."""
    return [name + 0.5, -name]


def mask_of(names: Array) -> Array:
    """The mask of the rows of these numbers <uint8>[..., 4]."""
    return (names.astype(np.int64)[..., None] >> np.arange(4) & 1).astype(np.uint8)


def recurrent(chunk: Chunk) -> Chunk:
    """The chunk, whose observations are numbers, with masks and states."""
    names = chunk.obs[..., 0]
    state = np.array([state_before(name) for name in names[0].tolist()], np.float32)
    state[chunk.flags[0] & FIRST != 0] = 0
    return replace(chunk, extras={MASK.name: mask_of(names)}, core_state=state)


@dataclass(frozen=True)
class Row:
    """A row as it was sent, and the state before it where that was."""

    name: int
    action: int
    reward: float
    flags: int
    q_taken: float
    q_max: float
    state: tuple[float, ...] | None


@dataclass
class Piece:
    """Rows of a lane without a gap and without an episode's start after the first; ``blind``: how many at its
    beginning have lost frames of their stack."""

    blind: int
    rows: list[Row] = field(default_factory=list)
    ended: bool = False

    @property
    def known(self) -> list[int]:
        return [at for at, row in enumerate(self.rows) if row.state is not None and at >= self.blind]


@dataclass(frozen=True)
class Expected:
    """A sequence by positions in its piece: its rows from ``first`` to before ``end``, those from ``at`` to before
    ``upto`` trained."""

    piece: Piece
    first: int
    at: int
    upto: int
    end: int

    @property
    def name(self) -> int:
        return self.piece.rows[self.at].name

    def text(self) -> str:
        names = [str(row.name) for row in self.piece.rows]
        parts = (names[self.first : self.at], names[self.at : self.upto], names[self.upto : self.end])
        return " | ".join(" ".join(part) for part in parts).strip()


class SequenceRecorder:
    """Keeps every row that arrived, and cuts them as ``replay.sequence_assembler`` describes it, by trying."""

    def __init__(self, spec: SequenceSpec, n: int, gamma: float, stack: int = 1) -> None:
        self.spec, self.n, self.gamma, self.stack = spec, n, gamma, stack
        self.pieces: list[Piece] = []
        self._open: dict[tuple[int, int], Piece] = {}

    def arrive(self, chunk: Chunk, broken: bool) -> None:
        """``broken``: it does not follow what came of this slot before."""
        if broken:
            self.end(chunk.slot)
        for lane in range(chunk.lanes):
            for t in range(len(chunk.flags)):
                self._row(chunk, t, lane)

    def end(self, slot: int) -> None:
        """What comes next of the slot does not follow."""
        for key in [key for key in self._open if key[0] == slot]:
            self._open.pop(key).ended = True

    def _row(self, chunk: Chunk, t: int, lane: int) -> None:
        flags, key = int(chunk.flags[t, lane]), (chunk.slot, lane)
        if key not in self._open:
            self._open[key] = Piece(0 if flags & FIRST else self.stack - 1)
            self.pieces.append(self._open[key])
        assert chunk.core_state is not None
        state = None
        if flags & FIRST:
            state = (0.0, 0.0)
        elif t == 0:
            state = tuple(chunk.core_state[lane].tolist())
        q_taken, q_max = (float(each[t, lane]) for each in (chunk.q_taken, chunk.q_max))
        name, action, reward = int(chunk.obs[t, lane, 0]), int(chunk.action[t, lane]), float(chunk.reward[t, lane])
        row = Row(name, action, reward, flags, q_taken, q_max, state)
        self._open[key].rows.append(row)
        if flags & BOUNDARY:
            self._open.pop(key).ended = True

    def sequences(self) -> Iterator[Expected]:
        for piece in self.pieces:
            yield from self._cut(piece)

    def _cut(self, piece: Piece) -> Iterator[Expected]:
        burn_in, trained, _, bootstrap, _ = self.spec
        length, known, covered = len(piece.rows), piece.known, 0
        at = min(known, default=None)
        while at is not None:
            if at + trained + bootstrap <= length:
                upto, end = at + trained, at + trained + bootstrap
            elif piece.ended and at < length - 1 and covered < length - 1:
                upto, end = min(at + trained, length - 1), length
            else:
                return
            yield Expected(piece, min(k for k in known if at - burn_in <= k <= at), at, upto, end)
            covered = upto
            reachable = [
                j for j in range(at + 1, at + self.spec.period + 1) if any(j - burn_in <= k <= j for k in known)
            ]
            at = max(reachable) if reachable else min((k for k in known if k > at), default=None)

    def td_error(self, piece: Piece, at: int) -> float | None:
        """The actor's TD error of a row; None where its rewards are beyond float32 in sum."""
        boundary = len(piece.rows) - 1 if piece.ended else math.inf
        r, discount = 0.0, 1.0
        for k in range(self.n):
            row = piece.rows[at + k]
            r += discount * row.reward
            discount *= 0.0 if row.flags & TERMINATED else self.gamma
            if at + k + 1 >= boundary:
                break
        boot = piece.rows[at + k + 1]
        if abs(r) > MAX:
            return None
        return r + discount * boot.q_max - piece.rows[at].q_taken

    def priority(self, expected: Expected) -> float | None:
        """None: there is no row to train on, and so no sequence."""
        errors = [self.td_error(expected.piece, at) for at in range(expected.at, expected.upto)]
        sizes = [abs(error) for error in errors if error is not None]
        return self.spec.eta * max(sizes) + (1 - self.spec.eta) * sum(sizes) / len(sizes) if sizes else None

    def check(self, expected: Expected, batch: SequenceBatch, b: int) -> None:
        """Column ``b`` of the batch is this sequence."""
        rows, spec = expected.piece.rows, self.spec
        start = spec.burn_in - (expected.at - expected.first)
        length = expected.end - expected.first
        np.testing.assert_array_equal(batch.core_state[b], rows[expected.first].state)
        for t in range(spec.steps):
            inside = start <= t < start + length
            at = expected.first + min(max(t - start, 0), length - 1)
            row = rows[at]
            assert batch.valid[t, b] == inside
            trains = spec.burn_in <= t < spec.burn_in + expected.upto - expected.at
            assert batch.trained[t, b] == (trains and self.td_error(expected.piece, at) is not None)
            assert np.asarray(batch.obs[t, b]).reshape(-1).tolist() == self._stack(expected.piece, at)
            assert batch.actions[t, b] == row.action
            np.testing.assert_array_equal(batch.masks[t, b], mask_of(np.array(row.name)))
            stepped = inside and not row.flags & BOUNDARY
            assert batch.rewards[t, b] == (np.float32(row.reward) if stepped else 0)
            assert batch.discounts[t, b] == (np.float32(self.gamma) if stepped and not row.flags & TERMINATED else 0)

    def _stack(self, piece: Piece, at: int) -> list[float]:
        return [float(piece.rows[max(0, at - back)].name) for back in reversed(range(self.stack))]
