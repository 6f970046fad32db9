"""The chunk: up to T time steps of E lanes of one actor, as bytes. The wire format is in docs/wire-format.md.

A chunk is a fixed header and the columns of the schema as C-contiguous arrays; nothing in it can name code to run.
``decode`` checks everything before it allocates anything, and gives one word for why it refuses.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32  # zlib's, ten times as fast: it bounded chunks of images

from replay.state import count, number

MAGIC = b"QHRD"
VERSION = 2

TERMINATED, TRUNCATED, BOUNDARY, FIRST = 1, 2, 4, 8
"""Flags of a row. TERMINATED and TRUNCATED say how the env step that left this row ended its episode; BOUNDARY: the row
holds an observation only (its action was ignored); FIRST: the observation is the first of an episode."""

DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float16", "float32")
"""Dtypes of columns that are stored as they are; an env's float64 and int64 are narrowed once, at the actor."""
MAX_EXTRAS, MAX_NAME, MAX_ENTRIES, MAX_CORE = 32, 64, 1024, 1 << 20
"""Columns beside the standard ones, letters of a name, entries of an observation and numbers of a lane's recurrent
state, at the most."""


MAX_VERSION = (1 << 63) - 1
"""The greatest version of the weights."""
MAX_REWARD = float(np.finfo(np.float32).max)
MAX_COUNT = (1 << 53) - 1
"""The greatest whole number of an id, a header or a value on a server: above it sums leave int64 and JSON's numbers."""

REFUSALS = (
    "short", "magic", "version", "schema", "run", "identity", "size", "length", "crc", "value", "action", "flags",
    "counters", "weights", "id", "slot", "duplicate",
)  # fmt: skip
"""Why a chunk is refused: the closed set, which /metrics shows at 0 from the start. ``counters``: they cannot be, in
themselves or after those of the chunk before; ``weights``: a version that was never published; ``id``: one that cannot
follow the id before it (``replay.chunk_log.protocol.may_follow``); ``slot``: the run has
no such slot, so its stream was removed unread; ``duplicate``: its id was read before, and nothing is lost by it.
"""


class BadChunk(ValueError):
    """A chunk that is refused. ``reason`` is one of ``REFUSALS``, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REFUSALS:
            raise KeyError(f"{reason!r} is not in REFUSALS, so no metric would show it")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


ACTION_MASK = "action_mask"
"""The further column that says which actions are allowed, <uint8>[A] per state: Gymnasium's key of the infos."""
CORE_STATE = "core_state"
"""The last column where policies are recurrent, <float32>[core] per lane of a chunk: the state before its first row."""


@dataclass(frozen=True)
class Column:
    """A named part of rows: an array <dtype>[*shape] for each row, or (``per`` "chunk") for each lane of a chunk, which
    then holds for all of the lane's rows in it: a recurrent state before the first of them."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    per: Literal["row", "chunk"] = "row"

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one value."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def grid(self, time_steps: int, lanes: int) -> tuple[int, ...]:
        """Returns the shape of the column's array in a chunk: [T, E, *shape], or [E, *shape] per chunk."""
        return (time_steps, lanes, *self.shape) if self.per == "row" else (lanes, *self.shape)


@dataclass(frozen=True)
class ObsEntry:
    """An entry of an observation that is a Dict or Tuple: an array, which lies flattened in the observation after the
    entries before it. ``dtype``: its own, whatever the observation's is; ``channels_last``: see ``Schema``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    channels_last: bool = True

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


STANDARD = ("action", "reward", "q_taken", "q_max", "obs", "flags")
"""The columns that every row has, in the order of the wire."""


@dataclass(frozen=True)
class Schema:
    """What a row looks like: the shape and dtype of one observation, how many actions there are, and further columns.

    ``stack`` newest observations of an episode together are what the network sees; a row has the newest only.
    ``obs_divisor``: what the network divides observations by, 255 where the space says that they are bytes of colour.
    ``channels_last``: of a picture's three axes the last one has its channels, as Gymnasium's pictures have.
    ``extras``: columns beside the standard ones, such as an action mask: they are sent, stored and sampled as they are.
    ``entries``: what a flat observation is made of where the environment's own is a Dict or Tuple; else none.
    ``core``: numbers of a lane's recurrent state, all arrays of the policy's state one after the other in the order of
    their names; 0 where the policy has none.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: str
    num_actions: int
    stack: int = 1
    obs_divisor: int = 1
    channels_last: bool = True
    extras: tuple[Column, ...] = ()
    entries: tuple[ObsEntry, ...] = ()
    core: int = 0

    def __post_init__(self) -> None:
        if self.obs_dtype not in DTYPES:
            raise ValueError(f"observation dtype {self.obs_dtype!r} cannot be stored; one of {', '.join(DTYPES)} can")
        if self.num_actions < 1:
            raise ValueError(f"num_actions is {self.num_actions}; at least 1 is needed")
        if self.stack < 1:
            raise ValueError(f"stack is {self.stack}; at least 1 is needed")
        if self.obs_divisor < 1:
            raise ValueError(f"obs_divisor is {self.obs_divisor}; at least 1 is needed")
        if not 0 <= self.core <= MAX_CORE:
            raise ValueError(f"a recurrent state of {self.core} numbers; 0 to {MAX_CORE} can be stored")
        self._check_extras()
        if self.entries:
            self._check_entries()

    def _check_entries(self) -> None:
        if len(self.entries) > MAX_ENTRIES:
            raise ValueError(
                f"observations of {len(self.entries)} entries; {MAX_ENTRIES} are the most: have them flattened by "
                "gymnasium.wrappers.FlattenObservation"
            )
        for entry in self.entries:
            if len(entry.name) > MAX_NAME or entry.dtype not in DTYPES or min(entry.shape, default=1) < 1:
                raise ValueError(
                    f"{entry!r:.200} is no entry of observations: a name of up to {MAX_NAME} letters, lengths of at "
                    f"least 1 and one of the dtypes {', '.join(DTYPES)} are"
                )
        if self.obs_shape != (size := sum(entry.size for entry in self.entries),):
            raise ValueError(f"observations of shape {self.obs_shape} have entries of {size} numbers in all")

    def _check_extras(self) -> None:
        if len(self.extras) > MAX_EXTRAS:
            raise ValueError(f"{len(self.extras)} columns beside the standard ones; {MAX_EXTRAS} are the most")
        names = [*STANDARD, CORE_STATE]
        for column in self.extras:
            if not (column.name.isidentifier() and column.name.isascii() and len(column.name) <= MAX_NAME):
                raise ValueError(f"{column.name!r:.80} is no column's name: up to {MAX_NAME} letters of Python's are")
            if column.name in names:
                raise ValueError(
                    f"two columns are named {column.name!r}; the standard ones are {', '.join(STANDARD)}, {CORE_STATE}"
                )
            if column.dtype not in DTYPES:
                raise ValueError(
                    f"column {column.name!r} of dtype {column.dtype!r} cannot be stored; one of {', '.join(DTYPES)} can"
                )
            if not all(length >= 1 for length in column.shape):
                raise ValueError(f"column {column.name!r} has the shape {column.shape}; no length may be below 1")
            names.append(column.name)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Returns all columns of a chunk, in the order of the wire: the standard ones, the others, the recurrent
        state."""
        dtypes = {"action": "int32", "obs": self.obs_dtype, "flags": "uint8"}
        shapes = {"obs": self.obs_shape}
        standard = (Column(name, dtypes.get(name, "float32"), shapes.get(name, ())) for name in STANDARD)
        core = (Column(CORE_STATE, "float32", (self.core,), "chunk"),) if self.core else ()
        return (*standard, *self.extras, *core)

    @cached_property
    def digest(self) -> int:
        """Returns 64 bits that differ between schemas: a chunk of another environment is refused by it."""
        columns = [[column.name, column.dtype, column.shape, column.per] for column in self.columns]
        entries = [[entry.name, entry.dtype, entry.shape, entry.channels_last] for entry in self.entries]
        return digest64(json.dumps([columns, self.num_actions, self.stack, *([entries] if entries else [])]))

    @cached_property
    def obs_bytes(self) -> int:
        """Bytes of one observation."""
        return math.prod(self.obs_shape) * np.dtype(self.obs_dtype).itemsize

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns the shape of what the network sees of one row: the stack comes first, where there is one."""
        return (self.stack, *self.obs_shape) if self.stack > 1 else self.obs_shape

    @cached_property
    def input_bytes(self) -> int:
        """Returns the bytes of what the network sees of one row, and of the row's further columns."""
        return self.obs_bytes * self.stack + sum(column.nbytes for column in self.extras)

    @cached_property
    def picture_shape(self) -> tuple[int, int, int] | None:
        """Returns channels, height and width of what the network sees, its stack as channels; None where that is no
        picture: three axes, or two of bytes."""
        shape = self.obs_shape
        if len(shape) == 2 and self.obs_dtype in ("uint8", "int8"):
            return self.stack, shape[0], shape[1]
        if len(shape) != 3:
            return None
        channels, height, width = (shape[2], *shape[:2]) if self.channels_last else shape
        return self.stack * channels, height, width

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row in a chunk: action, reward, two Q values (4 each), the observation, flags (1), and the other
        columns that are per row."""
        return sum(column.nbytes for column in self.columns if column.per == "row")

    @cached_property
    def lane_bytes(self) -> int:
        """Bytes of one lane in a chunk beside its rows: the columns that are per chunk."""
        return sum(column.nbytes for column in self.columns if column.per == "chunk")

    def chunk_bytes(self, rows: int, lanes: int) -> int:
        """Returns the bytes of a chunk, its header included."""
        return HEADER_BYTES + rows * self.row_bytes + lanes * self.lane_bytes


def digest64(text: str) -> int:
    """Returns the first 64 bits of SHA-256 of ``text``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class Counters(NamedTuple):
    """What one incarnation of an actor has done since it started, this chunk included (all cumulative).

    The reader's conservation law compares ``rows`` with what it has read.
    """

    env_steps: int = 0
    rows: int = 0
    episodes: int = 0
    refusals: int = 0
    return_sum: float = 0.0
    credit_wait_s: float = 0.0

    @classmethod
    def of(cls, values: Sequence[Any], what: str) -> Self:
        """Returns counters of a state. Raises ValueError where they are none."""
        env_steps, rows, episodes, refusals, return_sum, credit_wait_s = values
        return cls(
            count(env_steps, what),
            count(rows, what),
            count(episodes, what),
            count(refusals, what),
            number(return_sum, what),
            number(credit_wait_s, what, 0),
        )

    def check(self) -> None:
        """Raises BadChunk where no actor can have done this. A reward is a float32, which bounds the sum of returns."""
        whole = self[:4]
        if not all(0 <= count <= MAX_COUNT for count in whole):
            raise BadChunk("counters", f"{max(whole)}; no count is above {MAX_COUNT}")
        if self.env_steps > self.rows or self.episodes > self.env_steps:
            raise BadChunk("counters", f"{self.rows} rows have {self.env_steps} env steps, {self.episodes} episodes")
        if not abs(self.return_sum) <= MAX_REWARD * self.env_steps:
            raise BadChunk("counters", f"a sum of returns of {self.return_sum} after {self.env_steps} env steps")
        if not 0 <= self.credit_wait_s <= MAX_COUNT:
            raise BadChunk("counters", f"{self.credit_wait_s} seconds without credit")

    def check_after(self, before: Counters, rows: int, env_steps: int, lost_rows: int) -> None:
        """Raises BadChunk where a chunk of so many rows and env steps cannot have led from ``before`` to these, with
        ``lost_rows`` rows sent in between."""
        more = Counters._make(now - then for now, then in zip(self, before, strict=True))
        if more.rows != rows + lost_rows or not env_steps <= more.env_steps <= env_steps + lost_rows:
            raise BadChunk(
                "counters",
                f"{more.rows} rows and {more.env_steps} env steps more than before, by a chunk of {rows} and "
                f"{env_steps} after {lost_rows} lost rows",
            )
        if not 0 <= more.episodes <= more.env_steps or (more.episodes == 0 and more.return_sum != 0):
            raise BadChunk("counters", f"{more.episodes} more episodes with a sum of returns of {more.return_sum}")
        if more.refusals < 0 or more.credit_wait_s < 0:
            raise BadChunk("counters", f"{more.refusals} more refusals, {more.credit_wait_s} s more without credit")

    def plus(self, other: Counters) -> Counters:
        """Returns the sums, field by field."""
        return Counters._make(a + b for a, b in zip(self, other, strict=True))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one actor, time-major.

    obs: <obs_dtype>[T, E, *obs_shape]; action: <int32>[T, E]; reward, q_taken, q_max: <float32>[T, E];
    flags: <uint8>[T, E]. ``reward`` is the env's own, neither clipped nor scaled. ``extras``: the schema's further
    columns by name, <dtype>[T, E, *shape], or <dtype>[E, *shape] of one that is per chunk.
    """

    slot: int
    incarnation: int
    seq: int
    weight_version: int
    counters: Counters
    obs: npt.NDArray[Any]
    action: npt.NDArray[np.int32]
    reward: npt.NDArray[np.float32]
    q_taken: npt.NDArray[np.float32]
    q_max: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    core_state: npt.NDArray[np.float32] | None = None

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Returns all columns by name."""
        core = {} if self.core_state is None else {CORE_STATE: self.core_state}
        return {**{name: getattr(self, name) for name in STANDARD}, **self.extras, **core}

    @property
    def rows(self) -> int:
        """Rows in this chunk, boundary rows included."""
        return self.flags.size

    @property
    def lanes(self) -> int:
        """Lanes of the actor."""
        return int(self.flags.shape[1])

    @property
    def env_steps(self) -> int:
        """Rows that an env step left: all but the boundary rows."""
        return int(np.count_nonzero((self.flags & BOUNDARY) == 0))


# magic, version, reserved | schema, run | slot, T, E, reserved | incarnation, seq, weight version | Counters | crc32
_HEADER = struct.Struct("<4sHH QQ IIII QQQ QQQQdd")
_CRC = struct.Struct("<I4x")
HEADER_BYTES = _HEADER.size + _CRC.size


def encode(chunk: Chunk, schema: Schema, run: str) -> bytes:
    """Returns the chunk as bytes. ``run`` goes in as a 64-bit digest, so that another run's chunk is refused."""
    time_steps, lanes = chunk.flags.shape
    header = _HEADER.pack(
        MAGIC, VERSION, 0, schema.digest, digest64(run), chunk.slot, time_steps, lanes, 0,
        chunk.incarnation, chunk.seq, chunk.weight_version, *chunk.counters,
    )  # fmt: skip
    columns = chunk.columns
    payload = [np.ascontiguousarray(columns[column.name]).data for column in schema.columns]
    crc = crc32(header)
    for data in payload:
        crc = crc32(data, crc)
    return b"".join((header, _CRC.pack(crc), *payload))


class Codec:
    """Decodes chunks of one run and one schema. ``max_rows`` bounds what a header may claim."""

    def __init__(self, schema: Schema, run: str, max_rows: int = 1 << 20) -> None:
        self.schema = schema
        self._run = digest64(run)
        self.max_rows = max_rows
        self._columns = [(column, np.dtype(column.dtype).newbyteorder("<")) for column in schema.columns]
        self._single = self._runs_of_singles()
        self._half = [column.name for column in schema.columns if column.dtype == "float16"]

    def _runs_of_singles(self) -> list[tuple[int, int]]:
        """Returns where float32 columns lie together, as [first, last + 1) of the columns: one pass checks them all."""
        runs: list[tuple[int, int]] = []
        for index, (column, _) in enumerate(self._columns):
            if column.dtype == "float32":
                first = runs.pop()[0] if runs and runs[-1][1] == index else index
                runs.append((first, index + 1))
        return runs

    def decode(self, data: bytes, slot: int, incarnation: int, seq: int) -> Chunk:
        """Returns the chunk in ``data``, stored as ``(slot, incarnation, seq)``; its arrays are read-only views of
        ``data``.

        Raises BadChunk with the reason: short, magic, version, schema, run, identity, size, length, crc, weights,
        counters, value, action or flags.
        """
        time_steps, lanes, weight_version, counters = self._header(data, slot, incarnation, seq)
        offsets = [HEADER_BYTES]
        arrays: dict[str, npt.NDArray[Any]] = {}
        for column, dtype in self._columns:
            shape = column.grid(time_steps, lanes)
            array = np.frombuffer(data, dtype, math.prod(shape), offsets[-1]).reshape(shape)
            arrays[column.name] = array
            offsets.append(offsets[-1] + array.nbytes)
        self._check_finite(data, offsets, arrays)
        standard = {name: arrays.pop(name) for name in STANDARD}
        core_state = arrays.pop(CORE_STATE, None)
        chunk = Chunk(
            slot, incarnation, seq, weight_version, counters, **standard, extras=arrays, core_state=core_state
        )
        self._check_values(chunk)
        return chunk

    def _header(self, data: bytes, slot: int, incarnation: int, seq: int) -> tuple[int, int, int, Counters]:
        if len(data) < HEADER_BYTES:
            raise BadChunk("short", f"{len(data)} bytes, the header alone has {HEADER_BYTES}")
        (magic, version, reserved, schema, run, c_slot, time_steps, lanes, further, c_incarnation, c_seq,
         weight_version, *numbers) = _HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC:
            raise BadChunk("magic", f"{magic!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise BadChunk(
                "version",
                f"the chunk's format is {version}, this qherd reads {VERSION}: run all actors and the learner with the "
                "same qherd, and begin a new run where an older one has written the log",
            )
        if reserved or further:
            raise BadChunk("version", f"{reserved}, {further} in reserved fields, which are 0 in format {VERSION}")
        if schema != self.schema.digest:
            raise BadChunk("schema", f"{schema:016x}, this run has {self.schema.digest:016x} ({self.schema})")
        if run != self._run:
            raise BadChunk("run", f"{run:016x}, this run is {self._run:016x}")
        if (c_slot, c_incarnation, c_seq) != (slot, incarnation, seq):
            stored = f"{slot}/{incarnation}-{seq}"
            raise BadChunk("identity", f"the header says {c_slot}/{c_incarnation}-{c_seq}, it is stored as {stored}")
        rows = time_steps * lanes
        if not 1 <= rows <= self.max_rows:
            raise BadChunk("size", f"{time_steps} x {lanes} rows, the bound is 1..{self.max_rows}")
        expected = self.schema.chunk_bytes(rows, lanes)
        if len(data) != expected:
            raise BadChunk("length", f"{len(data)} bytes, {rows} rows of {lanes} lanes have {expected}")
        view = memoryview(data)
        crc = crc32(view[HEADER_BYTES:], crc32(view[: _HEADER.size]))
        if bytes(view[_HEADER.size : HEADER_BYTES]) != _CRC.pack(crc):
            raise BadChunk("crc", "header and payload do not match their checksum")
        if weight_version > MAX_VERSION:
            raise BadChunk("weights", f"version {weight_version}, the greatest is {MAX_VERSION}")
        counters = Counters(*numbers)
        counters.check()
        return time_steps, lanes, weight_version, counters

    def _check_finite(self, data: bytes, offsets: list[int], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        finite = all(
            np.isfinite(np.frombuffer(data, "<f4", (offsets[end] - offsets[first]) // 4, offsets[first])).all()
            for first, end in self._single
        )
        if not (finite and all(np.isfinite(arrays[name]).all() for name in self._half)):
            raise BadChunk("value", "a reward, Q value, observation, further column or recurrent state is not finite")

    def _check_values(self, chunk: Chunk) -> None:
        if chunk.action.min() < 0 or chunk.action.max() >= self.schema.num_actions:
            raise BadChunk("action", f"outside 0..{self.schema.num_actions - 1}")
        if chunk.flags.max() > (TERMINATED | TRUNCATED | BOUNDARY | FIRST):
            raise BadChunk("flags", f"{chunk.flags.max()} has an unknown one")
        if ((chunk.flags & (TERMINATED | TRUNCATED) != 0) & (chunk.flags & BOUNDARY != 0)).any():
            raise BadChunk("flags", "a boundary row ends an episode")
        check_order(chunk.flags)
        if chunk.core_state is not None and chunk.core_state[chunk.flags[0] & FIRST != 0].any():
            raise BadChunk("value", "the recurrent state of a lane that begins an episode is not zero")


def check_order(flags: npt.NDArray[np.uint8]) -> None:
    """Raises BadChunk unless in each lane of ``flags`` [T, E] an end is followed by a boundary row, and a boundary row,
    and nothing else, by the first row of an episode."""
    ends, boundary, first = (flags & which != 0 for which in (TERMINATED | TRUNCATED, BOUNDARY, FIRST))
    if (ends[:-1] & ~boundary[1:]).any():
        raise BadChunk("flags", "an episode's end is not followed by its boundary row")
    if (boundary[:-1] != first[1:]).any():
        raise BadChunk("flags", "an episode begins without a boundary row before it, or goes on after one")
