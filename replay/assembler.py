"""The assembler: makes of rows what the learner trains on.

It takes a slot's chunks in their order, puts their rows into the mirror, and makes those sampleable whose window has
closed. This one makes n-step transitions (replay/nstep.py has the equations).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from replay.chunk import Chunk
from replay.nstep import LaneWindows
from replay.ring import Ring
from replay.state import State

Array = npt.NDArray[Any]


class NStepAssembler:
    """Makes n-step transitions: one set of windows for each slot whose newest chunk may be followed by another."""

    def __init__(
        self,
        mirror: Ring,
        n: int,
        gamma: float,
        reward_scale: float = 1.0,
        *,
        reward_clip: bool = False,
        value_rescale: bool = False,
        longest: int | None = None,
    ) -> None:
        """``reward_scale``: what rewards are multiplied by for training; ``reward_clip``: their signs are; for
        ``value_rescale`` and ``longest`` see ``LaneWindows``."""
        self._mirror, self._n, self._gamma, self._longest = mirror, n, gamma, longest
        self._reward_scale, self._reward_clip = np.float32(reward_scale), reward_clip
        self._value_rescale = value_rescale
        self._windows: dict[int, LaneWindows] = {}

    def append(self, chunk: Chunk, follows: bool) -> None:
        """Puts a chunk's rows into the mirror, and makes sampleable what it closes. ``follows``: it is the next one of
        its slot's incarnation. Where it is not, or has other lanes, no window reaches into it."""
        windows = self._windows.get(chunk.slot)
        if windows is None or not (follows and windows.lanes == chunk.lanes):
            self.break_lanes(chunk.slot)
            windows = self._windows[chunk.slot] = self._make_windows(chunk.lanes)
        ids = self._mirror.add(chunk, windows.last_row)
        reward = self._reward(chunk)
        self._mirror.add_transitions(windows.extend(reward, chunk.flags, ids, chunk.q_taken, chunk.q_max))

    def _reward(self, chunk: Chunk) -> Array:
        """Returns a chunk's rewards <float32>[T, E] as they are trained on."""
        with np.errstate(over="ignore"):  # what is infinite then, no window takes
            reward: Array = (np.sign(chunk.reward) if self._reward_clip else chunk.reward) * self._reward_scale
        return reward

    def _make_windows(self, lanes: int) -> LaneWindows:
        return LaneWindows(lanes, self._n, self._gamma, longest=self._longest, value_rescale=self._value_rescale)

    def set_horizon(self, n: int, gamma: float) -> None:
        """Gives the windows that close from now on this length and discount; ``n`` is at most ``longest``."""
        self._n, self._gamma = n, gamma
        for windows in self._windows.values():
            windows.n, windows.gamma = n, gamma

    def break_lanes(self, slot: int) -> None:
        """Ends the slot's lanes, since what comes next of it does not follow: each lane's last row serves as its
        boundary row."""
        windows = self._windows.pop(slot, None)
        if windows is not None:
            self._mirror.add_transitions(windows.break_lanes())

    def last_flags(self, slot: int) -> Array | None:
        """Returns the flags <uint8>[E] of each lane's newest row, which the slot's next chunk has to follow; None where
        any chunk may come."""
        windows = self._windows.get(slot)
        return None if windows is None else windows.last_flags

    def state(self) -> State:
        """See ``replay.state``: the windows' open rows."""
        arrays: dict[str, Array] = {}
        for slot, windows in self._windows.items():
            arrays |= {f"{slot}.{name}": column for name, column in windows.state().items()}
        return State({}, arrays)

    def restore(self, state: State) -> None:
        """See ``replay.state``. The mirror has the rows already."""
        carried: dict[int, dict[str, Array]] = {}
        for key, column in state.arrays.items():
            slot, _, name = key.partition(".")
            carried.setdefault(int(slot), {})[name] = column
        self._windows = {}
        for number, columns in carried.items():
            windows = self._windows[number] = self._make_windows(columns["flags"].shape[1])
            windows.restore(columns)
