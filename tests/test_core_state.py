"""The column of recurrent states: on the wire, in the schema's identity and in a run's description."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chunk_makers import RUN, FakeActor

from replay.chunk import FIRST, MAX_CORE, BadChunk, Chunk, Codec, Column, Schema, encode
from replay.description import RunDescription

SCHEMA = Schema((1,), "float32", 4, core=6)
PLAIN = replace(SCHEMA, core=0)
CODEC = Codec(SCHEMA, RUN)


def recurrent(chunk: Chunk) -> Chunk:
    """The chunk with a state for each lane: 0 where its first row begins an episode."""
    state = np.arange(1, 6 * chunk.lanes + 1, dtype=np.float32).reshape(chunk.lanes, 6)
    state[chunk.flags[0] & FIRST != 0] = 0
    return replace(chunk, core_state=state)


def later_chunk() -> Chunk:
    """One whose lanes are in the middle of an episode at its first row."""
    actor = FakeActor(lanes=3, p_end=0)
    actor.chunk(2)
    return recurrent(actor.chunk(5))


def test_recurrent_states_are_sent_and_come_back() -> None:
    """Once for each lane of a chunk, after all other columns, also those of the user's own."""
    chunk = later_chunk()
    data = encode(chunk, SCHEMA, RUN)
    assert len(data) == SCHEMA.chunk_bytes(15, 3) == PLAIN.chunk_bytes(15, 3) + 3 * 6 * 4
    again = CODEC.decode(data, 0, 1, 2)
    assert again.core_state is not None
    np.testing.assert_array_equal(again.core_state, chunk.core_state)
    assert not again.core_state.flags.writeable
    assert again.extras == {}

    extended = replace(SCHEMA, extras=(Column("mask", "uint8", (4,)),))
    masked = replace(chunk, extras={"mask": np.ones((5, 3, 4), np.uint8)})
    again = Codec(extended, RUN).decode(encode(masked, extended, RUN), 0, 1, 2)
    np.testing.assert_array_equal(again.columns["core_state"], chunk.core_state)
    assert [column.name for column in extended.columns[-2:]] == ["mask", "core_state"]


def test_the_state_is_part_of_the_schemas_identity() -> None:
    assert len({PLAIN.digest, SCHEMA.digest, replace(SCHEMA, core=7).digest}) == 3
    assert PLAIN.digest == Schema((1,), "float32", 4).digest
    with pytest.raises(BadChunk, match="schema"):
        Codec(PLAIN, RUN).decode(encode(later_chunk(), SCHEMA, RUN), 0, 1, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(bad: float) -> None:
    chunk = later_chunk()
    assert chunk.core_state is not None
    chunk.core_state[2, 5] = bad
    with pytest.raises(BadChunk, match=r"value: .*recurrent state is not finite"):
        CODEC.decode(encode(chunk, SCHEMA, RUN), 0, 1, 2)


def test_a_state_at_an_episodes_start_is_zero() -> None:
    chunk = recurrent(FakeActor(lanes=2).chunk(3))
    CODEC.decode(encode(chunk, SCHEMA, RUN), 0, 1, 1)
    assert chunk.core_state is not None
    chunk.core_state[1, 0] = 1e-30
    with pytest.raises(BadChunk, match="value: the recurrent state of a lane that begins an episode is not zero"):
        CODEC.decode(encode(chunk, SCHEMA, RUN), 0, 1, 1)


def test_a_chunk_without_its_states_or_with_others_is_refused() -> None:
    chunk = later_chunk()
    with pytest.raises(KeyError, match="core_state"):
        encode(replace(chunk, core_state=None), SCHEMA, RUN)
    assert chunk.core_state is not None
    with pytest.raises(BadChunk, match="length"):
        CODEC.decode(encode(replace(chunk, core_state=chunk.core_state[:, :5]), SCHEMA, RUN), 0, 1, 2)


@pytest.mark.parametrize("core", [-1, MAX_CORE + 1])
def test_sizes_that_cannot_be_are_refused(core: int) -> None:
    with pytest.raises(ValueError, match=f"a recurrent state of {core} numbers; 0 to {MAX_CORE} can be stored"):
        replace(SCHEMA, core=core)


def test_no_other_column_takes_the_name() -> None:
    with pytest.raises(ValueError, match="two columns are named 'core_state'"):
        replace(PLAIN, extras=(Column("core_state", "float32", (6,), "chunk"),))


def test_a_description_has_it_and_an_older_one_has_none() -> None:
    described = RunDescription(
        row_schema=SCHEMA, n_step=3, gamma=0.9, reward_scale=1.0, capacity_rows=10, env_steps=0, updates=0, slots={}
    )
    assert RunDescription.unpack(described.pack()).row_schema == SCHEMA
    assert RunDescription.unpack(described.pack().replace(b'"core":6', b'"none":6')).row_schema == PLAIN
