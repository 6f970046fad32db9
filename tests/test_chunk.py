"""The chunk codec: what goes in comes out, and whatever is wrong is refused with BadChunk and the right reason."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.chunk import (
    BOUNDARY,
    DTYPES,
    FIRST,
    HEADER_BYTES,
    TERMINATED,
    TRUNCATED,
    BadChunk,
    Chunk,
    Codec,
    Counters,
    Schema,
    encode,
)

RUN = "a-run"
SCHEMA = Schema((3,), "float32", 4)
CODEC = Codec(SCHEMA, RUN)
SLOT, INCARNATION, SEQ = 2, 7, 41
# Where the fields of docs/wire-format.md lie, written down here a second time on purpose.
VERSION_AT, TIME_STEPS_AT, LANES_AT, COUNTERS_AT, CRC_AT = 4, 28, 32, 64, 112
REASONS = {
    "short",
    "magic",
    "version",
    "schema",
    "run",
    "identity",
    "size",
    "length",
    "crc",
    "value",
    "action",
    "flags",
}


def episode_flags(rng: np.random.Generator, grid: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Random flags in which, as in every real lane, the row after an end is its boundary row, and the next a first."""
    flags = rng.choice([0, TERMINATED, TRUNCATED, TERMINATED | TRUNCATED, BOUNDARY], grid).astype(np.uint8)
    for t in range(1, grid[0]):
        flags[t, (flags[t - 1] & (TERMINATED | TRUNCATED)) != 0] = BOUNDARY
        flags[t, (flags[t - 1] & BOUNDARY) != 0] = FIRST
    return flags


def make(schema: Schema = SCHEMA, time_steps: int = 3, lanes: int = 2, seed: int = 0) -> Chunk:
    """A well-formed chunk of random rows."""
    rng = np.random.default_rng(seed)
    grid = (time_steps, lanes)
    obs = rng.integers(0, 100, (*grid, *schema.obs_shape)).astype(schema.obs_dtype)
    reward, q_taken, q_max = rng.normal(size=(3, *grid)).astype(np.float32)
    return Chunk(
        slot=SLOT,
        incarnation=INCARNATION,
        seq=SEQ,
        weight_version=(3 << 40) + 5,
        counters=Counters(env_steps=5, rows=6, episodes=1, refusals=2, return_sum=-3.5, credit_wait_s=0.25),
        obs=obs,
        action=rng.integers(0, schema.num_actions, grid, dtype=np.int32),
        reward=reward,
        q_taken=q_taken,
        q_max=q_max,
        flags=episode_flags(rng, grid),
    )


def decode(data: bytes, codec: Codec = CODEC) -> Chunk:
    """Decode as it was stored."""
    return codec.decode(data, SLOT, INCARNATION, SEQ)


def refusal(data: bytes, codec: Codec = CODEC) -> str:
    """Why ``data`` is refused."""
    with pytest.raises(BadChunk) as caught:
        decode(data, codec)
    return caught.value.reason


def forged(data: bytes, at: int, patch: bytes) -> bytes:
    """``data`` with ``patch`` written over it and a checksum that holds, as an attacker or a bug would send it."""
    spoilt = bytearray(data)
    spoilt[at : at + len(patch)] = patch
    crc = zlib.crc32(spoilt[HEADER_BYTES:], zlib.crc32(spoilt[:CRC_AT]))
    spoilt[CRC_AT : CRC_AT + 4] = struct.pack("<I", crc)
    return bytes(spoilt)


GOOD = encode(make(), SCHEMA, RUN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (8,), (2, 3, 4)])
@pytest.mark.parametrize("grid", [(1, 1), (5, 3)])
def test_round_trip(dtype: str, shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    """Every stored dtype and any shape comes back equal, in its own dtype (cpprb#130)."""
    schema = Schema(shape, dtype, 4)
    chunk = make(schema, *grid)
    data = encode(chunk, schema, RUN)
    again = decode(data, Codec(schema, RUN))
    assert len(data) == HEADER_BYTES + chunk.rows * schema.row_bytes
    for name in Chunk.__dataclass_fields__:
        before, after = getattr(chunk, name), getattr(again, name)
        if isinstance(before, np.ndarray):
            assert (after.dtype, after.shape) == (before.dtype, before.shape)
            np.testing.assert_array_equal(after, before)
            assert not after.flags.writeable
        else:
            assert after == before


def test_arrays_that_are_not_contiguous_are_sent_as_they_read() -> None:
    """An actor may send views; the wire is C-contiguous."""
    chunk = make(time_steps=6)
    chunk = replace(chunk, flags=np.zeros_like(chunk.flags))
    half = replace(
        chunk, **{name: getattr(chunk, name)[::2] for name in ("obs", "action", "reward", "q_taken", "q_max", "flags")}
    )
    np.testing.assert_array_equal(decode(encode(half, SCHEMA, RUN)).obs, chunk.obs[::2])


def test_rows_and_env_steps_are_counted_apart() -> None:
    """Env steps exclude boundary rows."""
    flags = np.array([[FIRST, 0], [TRUNCATED, 0], [BOUNDARY, 0]], np.uint8)
    chunk = replace(make(), flags=flags)
    assert (chunk.rows, chunk.env_steps) == (6, 5)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(bit=st.integers(0, len(GOOD) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    """One flipped bit anywhere, header included, is refused, and only ever with BadChunk."""
    data = bytearray(GOOD)
    data[bit // 8] ^= 1 << bit % 8
    assert refusal(bytes(data)) in REASONS


def test_every_bit_of_the_header_is_checked() -> None:
    """Also reserved fields and the checksum's padding: nothing in a header can change unseen."""
    for bit in range(HEADER_BYTES * 8):
        data = bytearray(GOOD)
        data[bit // 8] ^= 1 << bit % 8
        refusal(bytes(data))


def test_every_truncation_is_refused() -> None:
    """Cut anywhere: short inside the header, length behind it."""
    for end in range(len(GOOD)):
        assert refusal(GOOD[:end]) == ("short" if end < HEADER_BYTES else "length")


@settings(max_examples=50, derandomize=True, deadline=None)
@given(more=st.binary(min_size=1, max_size=200))
def test_anything_appended_is_refused(more: bytes) -> None:
    """No trailing bytes are tolerated."""
    assert refusal(GOOD + more) == "length"


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.binary(max_size=400))
def test_noise_is_refused(data: bytes) -> None:
    """Bytes that are no chunk at all never raise anything else."""
    assert refusal(data) in {"short", "magic"}


@settings(max_examples=300, derandomize=True, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), patch=st.binary(min_size=1, max_size=16))
def test_forged_bytes_with_a_good_checksum_are_refused_or_well_formed(at: int, patch: bytes) -> None:
    """Past the checksum, values are still validated: what is accepted has finite floats and known actions and flags."""
    try:
        chunk = decode(forged(GOOD, at, patch[: len(GOOD) - at]))
    except BadChunk:
        pass
    else:
        assert all(np.isfinite(array).all() for array in (chunk.reward, chunk.q_taken, chunk.q_max, chunk.obs))
        assert 0 <= chunk.action.min() <= chunk.action.max() < SCHEMA.num_actions
        assert chunk.flags.max() < 16
        assert np.isfinite(chunk.counters).all()


@pytest.mark.parametrize(
    ("at", "patch", "reason"),
    [
        (0, b"RDHQ", "magic"),
        (VERSION_AT, b"\x01", "version"),
        (8, b"\x00\x01", "schema"),
        (16, b"\x00\x01", "run"),
        (24, b"\x03", "identity"),
        (40, b"\x08", "identity"),
        (48, b"\x2a", "identity"),
        (TIME_STEPS_AT, b"\x00", "size"),
        (LANES_AT, b"\x00", "size"),
        (TIME_STEPS_AT, b"\xff\xff\xff\xff", "size"),
        (TIME_STEPS_AT, b"\x04", "length"),
        (TIME_STEPS_AT, struct.pack("<II", 2, 2), "length"),
        (6, b"\x01", "version"),
        (36, b"\x01", "version"),
        (56, struct.pack("<Q", 1 << 63), "weights"),
        (56, struct.pack("<Q", (1 << 64) - 1), "weights"),
        *(
            (at, struct.pack("<Q", number), "counters")
            for at in (64, 72, 80, 88)
            for number in (1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
        ),
        *(
            (at, struct.pack("<d", number), "counters")
            for at in (CRC_AT - 16, CRC_AT - 8)
            for number in (float("nan"), float("inf"), float("-inf"), 1e300, -1e300)
        ),
        (CRC_AT - 8, struct.pack("<d", -1.0), "counters"),
    ],
)
def test_header_lies_are_named(at: int, patch: bytes, reason: str) -> None:
    """Each field of the header has its own reason, although the checksum holds."""
    assert refusal(forged(GOOD, at, patch)) == reason


def test_flipped_payload_is_a_checksum_failure() -> None:
    """The checksum covers the payload's last byte."""
    assert refusal(GOOD[:-1] + bytes([GOOD[-1] ^ 1])) == "crc"


def test_lanes_and_time_steps_cannot_be_swapped() -> None:
    """T x E and E x T have the same length: the checksum covers the header too."""
    swapped = bytearray(GOOD)
    swapped[TIME_STEPS_AT : TIME_STEPS_AT + 8] = struct.pack("<II", 2, 3)
    assert refusal(bytes(swapped)) == "crc"


@pytest.mark.parametrize(
    "stored_as", [(SLOT + 1, INCARNATION, SEQ), (SLOT, INCARNATION - 1, SEQ), (SLOT, INCARNATION, 1)]
)
def test_chunk_under_another_id_is_refused(stored_as: tuple[int, int, int]) -> None:
    """A chunk copied to another slot, incarnation or seq is not trained on twice."""
    with pytest.raises(BadChunk, match="identity"):
        CODEC.decode(GOOD, *stored_as)


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        (Codec(Schema((3,), "float32", 5), RUN), "schema"),
        (Codec(Schema((3, 1), "float32", 4), RUN), "schema"),
        (Codec(Schema((3,), "int32", 4), RUN), "schema"),
        (Codec(SCHEMA, "another-run"), "run"),
        (Codec(SCHEMA, RUN, max_rows=5), "size"),
    ],
)
def test_other_schema_run_or_bound_is_refused(codec: Codec, reason: str) -> None:
    """int32 and float32 have equal sizes: only the schema's digest tells them apart."""
    assert refusal(GOOD, codec) == reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["reward", "q_taken", "q_max", "obs"])
def test_floats_that_are_not_finite_are_refused(field: str, bad: float) -> None:
    """One NaN row would poison the learner."""
    chunk = make()
    array: npt.NDArray[Any] = getattr(chunk, field).copy()
    array.flat[-1] = bad
    changes: dict[str, Any] = {field: array}
    assert refusal(encode(replace(chunk, **changes), SCHEMA, RUN)) == "value"


def test_half_precision_observations_are_checked_too() -> None:
    """float16 overflows to infinity at 65 520."""
    schema = Schema((3,), "float16", 4)
    chunk = make(schema)
    obs = chunk.obs.copy()
    obs[1, 1, 0] = np.float16("inf")
    assert refusal(encode(replace(chunk, obs=obs), schema, RUN), Codec(schema, RUN)) == "value"


@pytest.mark.parametrize("bad", [-1, 4, 1 << 30])
def test_action_out_of_range_is_refused(bad: int) -> None:
    """An action indexes the Q values: -1 would read the last one unseen."""
    chunk = make()
    action = chunk.action.copy()
    action[2, 1] = bad
    assert refusal(encode(replace(chunk, action=action), SCHEMA, RUN)) == "action"


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
def test_an_end_without_its_boundary_row_is_refused(end: int) -> None:
    """Otherwise a window would run across the episode's end."""
    chunk = make()
    flags = np.zeros_like(chunk.flags)
    flags[0, 0] = end
    assert refusal(encode(replace(chunk, flags=flags), SCHEMA, RUN)) == "flags"
    flags[1, 0] = BOUNDARY
    flags[2:3, 0] = FIRST
    decode(encode(replace(chunk, flags=flags), SCHEMA, RUN))


@pytest.mark.parametrize("second", [[BOUNDARY, 0], [0, FIRST]], ids=["goes on behind its end", "begins in the middle"])
def test_an_episode_begins_behind_a_boundary_row_and_nowhere_else(second: list[int]) -> None:
    """Otherwise a stack of frames would reach into another episode, or miss its own frames."""
    chunk = make()
    flags = np.zeros_like(chunk.flags)
    flags[:2, 0] = second
    assert refusal(encode(replace(chunk, flags=flags), SCHEMA, RUN)) == "flags"


@pytest.mark.parametrize("bad", [16, 128, BOUNDARY | TERMINATED, BOUNDARY | TRUNCATED])
def test_flags_that_cannot_be_are_refused(bad: int) -> None:
    """A boundary row has no env step that could end an episode."""
    chunk = make()
    flags = chunk.flags.copy()
    flags[0, 0] = bad
    assert refusal(encode(replace(chunk, flags=flags), SCHEMA, RUN)) == "flags"


def test_array_of_the_wrong_dtype_does_not_pass() -> None:
    """An actor's bug (int64 actions) is refused by the reader: the payload's length is not the header's."""
    chunk = make()
    wrong: Any = chunk.action.astype(np.int64)
    assert refusal(encode(replace(chunk, action=wrong), SCHEMA, RUN)) == "length"


@pytest.mark.parametrize(
    ("time_steps", "lanes"), [(1 << 20, 1), (0xFFFFFFFF, 0xFFFFFFFF), (1, 1 << 20), (1 << 10, 1 << 10)]
)
def test_lying_sizes_allocate_nothing(time_steps: int, lanes: int) -> None:
    """Sizes are checked against the bound and the payload's length first: 2^64 claimed rows cost no memory."""
    data = forged(GOOD, TIME_STEPS_AT, struct.pack("<II", time_steps, lanes))
    tracemalloc.start()
    try:
        assert refusal(data) in {"size", "length"}
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_pickle_on_the_wire_is_not_executed() -> None:
    """No pickle anywhere: its bytes are not even a chunk."""
    assert refusal(pickle.dumps({"x": list(range(100))})) == "magic"


def test_schema_refuses_what_cannot_be_stored() -> None:
    """The error names the dtype and the ones that can be."""
    with pytest.raises(ValueError, match="'float64' cannot be stored"):
        Schema((3,), "float64", 4)
    with pytest.raises(ValueError, match="num_actions is 0"):
        Schema((3,), "float32", 0)


def test_digest_is_the_same_in_every_process() -> None:
    """A hash that differs between processes (PYTHONHASHSEED) would refuse every actor's chunks."""
    assert Schema((84, 84), "uint8", 6).digest == 9943048097021935662
