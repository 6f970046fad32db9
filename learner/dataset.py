"""A Minari dataset as rows: its episodes become chunks like an actor's, and go the same way from there.

One lane has all episodes, one after another. An episode of T env steps leaves T + 1 rows::

    row t < T    observation t, action t, reward t; FIRST at t = 0; at T - 1 TERMINATED, TRUNCATED or both
    row T        the last observation, a BOUNDARY row

An episode without an end of its own is truncated after its last env step, as Minari means it. What is stored of
observations is what actors store (learner/networks/portable.py); actions get their numbers. The chunks are encoded and
decoded by the wire's codec, which refuses what no actor may send, and nobody's Q values are known of them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learner.minari_store import BadColumn, DatasetError, load
from learner.networks.portable import Mismatch, Observations
from replay.buffer import ReplayBuffer
from replay.chunk import (
    ACTION_MASK,
    BOUNDARY,
    FIRST,
    TERMINATED,
    TRUNCATED,
    BadChunk,
    Chunk,
    Codec,
    Column,
    Counters,
    Schema,
    encode,
)

Array = npt.NDArray[Any]
CHUNK_ROWS = 1 << 13
RUN = "dataset"


class DatasetSpec(NamedTuple):
    """A dataset as the learner is given it: its id, its folder, and what the environment's own observations and actions
    are (``actors.contract.Checked.about``)."""

    id: str
    folder: Path
    about: Mapping[str, Any]


class Dataset(NamedTuple):
    """A buffer with all of a dataset's rows; how many episodes and env steps they are; a digest of the rows."""

    buffer: ReplayBuffer
    episodes: int
    env_steps: int
    digest: str


def rows_of(found: Any) -> int:
    """Returns the rows that a ``minari.MinariDataset`` leaves."""
    return int(found.total_steps) + int(found.total_episodes)


def read_dataset(spec: DatasetSpec, schema: Schema, make_buffer: Callable[[int], ReplayBuffer]) -> Dataset:
    """Reads a dataset into a buffer, which ``make_buffer`` makes for so many rows.

    Raises:
        DatasetError: it cannot be read, or has what no environment of this schema returns.
    """
    found = load(spec.id, spec.folder)
    buffer, codec, digest = make_buffer(max(1, rows := rows_of(found))), Codec(schema, RUN), hashlib.sha256()
    reading = _Reading(spec, schema)
    for seq, columns in enumerate(_cut(reading.episodes(found)), 1):
        data = encode(_chunk(seq, columns, schema), schema, RUN)
        digest.update(data)
        try:
            chunk = codec.decode(data, 0, 1, seq)
        except BadChunk as error:
            raise DatasetError(
                f"dataset {spec.id}, around episode {reading.number}: {error}; filter its episodes by Minari's "
                "filter_episodes into another dataset"
            ) from error
        if buffer.mirror.end + chunk.rows > rows:
            raise DatasetError(f"dataset {spec.id} has more env steps than the {found.total_steps:,} of its metadata")
        unknown = np.full(chunk.flags.shape, np.nan, np.float32)  # so that the first priority is the greatest
        buffer.append(replace(chunk, q_taken=unknown, q_max=unknown), follows=True)
    if not buffer.sampleable:
        raise DatasetError(f"dataset {spec.id} in {spec.folder} has nothing to learn from: no env step")
    return Dataset(buffer, reading.number, buffer.mirror.end - reading.number, digest.hexdigest())


Columns = dict[str, Array]
READING = (
    OSError,
    LookupError,
    AssertionError,
    AttributeError,
    ValueError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
)
"""What Minari, h5py and numpy raise of files that are damaged."""


@contextlib.contextmanager
def reading(failing: Callable[[], str]) -> Iterator[None]:
    """Raises DatasetError, which begins with ``failing()``, for what Minari, h5py and numpy raise of a file that is
    damaged or has other shapes than a dataset."""
    try:
        yield
    except DatasetError:
        raise
    except BadColumn as error:
        raise DatasetError(f"{failing()}: {error}") from None
    except READING as error:
        raise DatasetError(f"{failing()}: {type(error).__name__}: {error}") from error


def episodes_of(found: Any, infos: Sequence[str]) -> Iterator[Any]:
    """Yields the episodes of a ``minari.MinariDataset``, with the infos of these names that there are, and maybe
    others.

    Raises:
        BadColumn: a column is in another file, or has nothing in it; and what Minari, h5py and numpy raise.
    """
    from learner.minari_hdf5 import check_held, read_episodes, reads

    if reads(found):  # Minari's own reader takes most of the time that flat observations need
        return read_episodes(found, infos)
    check_held(found)
    episodes: Iterator[Any] = found.iterate_episodes()
    return episodes


class _Reading:
    """Makes rows of episodes; ``number``: how many so far."""

    def __init__(self, spec: DatasetSpec, schema: Schema) -> None:
        self._id, self._schema, self._observations = spec.id, schema, Observations(spec.about["observation"])
        self._actions = spec.about["actions"]
        self.number = 0

    def episodes(self, found: Any) -> Iterator[Columns]:
        """Yields the rows of each episode that has any, by column.

        Raises:
            DatasetError: it has what no environment returns.
        """
        with reading(lambda: f"dataset {self._id} cannot be read beyond episode {self.number}"):
            for episode in episodes_of(found, [column.name for column in self._schema.extras]):
                rewards = self._rewards(np.asarray(episode.rewards))
                if len(rewards):
                    yield self._rows(episode, rewards)
                    self.number += 1

    def _rewards(self, rewards: Array) -> Array:
        """Returns rewards <dtype>[T] of numbers."""
        if rewards.dtype.kind not in "biuf" or not rewards.ndim or rewards.size != len(rewards):
            raise self._wrong(f"rewards <{rewards.dtype}>{list(rewards.shape)}; a number for each env step is needed")
        return rewards.reshape(len(rewards))

    def _rows(self, episode: Any, rewards: Array) -> Columns:
        steps = len(rewards)
        terminations, truncations = map(self._truths, (episode.terminations, episode.truncations))
        if not terminations.shape == truncations.shape == (steps,):
            raise self._wrong(
                f"terminations {list(terminations.shape)} and truncations {list(truncations.shape)}; {[steps]} is "
                "needed, one for each reward"
            )
        if (terminations | truncations)[:-1].any():
            raise self._wrong("an end before its last step")
        flags = np.zeros(steps + 1, np.uint8)
        flags[0] = FIRST
        flags[-2] |= terminations[-1] * TERMINATED | (truncations[-1] or not terminations[-1]) * TRUNCATED
        flags[-1] = BOUNDARY
        action, reward = np.zeros(steps + 1, np.int32), np.zeros(steps + 1, np.float32)
        action[:-1] = self._numbers(np.asarray(episode.actions), steps)
        with np.errstate(over="ignore"):  # what is infinite then is refused
            reward[:-1] = rewards
        return {
            "obs": self._obs(episode.observations, steps),
            "action": action,
            "reward": reward,
            "flags": flags,
            **self._extras(episode.infos or {}, steps),
        }

    def _truths(self, given: Any) -> Array:
        """Returns flags <bool>[T]."""
        flags = np.asarray(given)
        if flags.dtype.kind not in "biu" or not np.isin(flags, (0, 1)).all():
            raise self._wrong(f"flags <{flags.dtype}> of its end that are not true or false")
        return flags.astype(np.bool_)

    def _obs(self, observations: Any, steps: int) -> Array:
        """Returns what is stored of them <obs_dtype>[T + 1, *obs_shape]: of stacks the newest frame."""
        try:
            stored = self._observations(observations, (steps + 1,))
        except Mismatch as error:
            wanted = f"; {steps + 1} rows are needed, one more than its {steps} env steps"
            raise self._wrong(f"{error}{'' if _lengths(observations) == {(steps + 1,)} else wanted}") from None
        return stored if self._observations.shape == self._schema.obs_shape else stored[:, -1]

    def _numbers(self, actions: Array, steps: int) -> Array:
        """Returns the numbers <int64>[T] of actions as the environment is given them."""
        about = self._actions
        names = ("counts", "first") if "counts" in about else ("n", "start")
        counts, first = (np.array(about[name]) for name in names)
        if actions.shape != (steps, *counts.shape) or actions.dtype.kind not in "biu":
            raise self._wrong(
                f"actions <{actions.dtype}>{list(actions.shape)}; its space is {about['space']}, and one for each of "
                f"its {steps} env steps is needed"
            )
        places = actions.astype(np.int64) - first
        if not ((places >= 0) & (places < counts)).all():
            raise self._wrong(f"an action outside its space {about['space']}")
        if not counts.shape:
            return np.asarray(places)
        numbers: Array = np.ravel_multi_index(tuple(places.reshape(steps, -1).T), tuple(counts.ravel().tolist()))
        return numbers

    def _extras(self, infos: Mapping[str, Any], steps: int) -> Columns:
        columns: Columns = {}
        for column in self._schema.extras:
            given = np.asarray(infos.get(column.name))
            stored = self._stored(given, column) if given.shape == (steps + 1, *column.shape) else None
            if stored is None:
                remedy = "; or give --env.action-mask ignore" if column.name == ACTION_MASK else ""
                raise self._wrong(
                    f"infos[{column.name!r}] <{given.dtype}>{list(given.shape)}; {column.dtype}"
                    f"{[steps + 1, *column.shape]} is needed, one for each observation{remedy}"
                )
            columns[column.name] = stored
        return columns

    @staticmethod
    def _stored(given: Array, column: Column) -> Array | None:
        """Returns a column in its dtype; None where that does not hold its values, or a mask has others than 0 and
        1."""
        if given.dtype.kind not in "biuf" or (column.name == ACTION_MASK and not np.isin(given, (0, 1)).all()):
            return None
        with np.errstate(all="ignore"):
            stored = given.astype(column.dtype)
        return stored if stored.dtype.kind == "f" or np.array_equal(stored, given) else None

    def _wrong(self, what: str) -> DatasetError:
        return DatasetError(f"dataset {self._id}, episode {self.number} has {what}")


def _lengths(observations: Any) -> set[tuple[int, ...]]:
    """Returns (N,) for each array of observations, by its rows; () for what has none."""
    if isinstance(observations, Mapping):
        return {length for each in observations.values() for length in _lengths(each)}
    if isinstance(observations, tuple):
        return {length for each in observations for length in _lengths(each)}
    return {np.shape(observations)[:1]}


def _cut(episodes: Iterator[Columns]) -> Iterator[Columns]:
    """Yields the rows of all episodes, CHUNK_ROWS at a time: columns [N, 1, ...]."""
    waiting, rows = list[Columns](), 0
    for episode in episodes:
        waiting.append(episode)
        rows += len(episode["flags"])
        if rows >= CHUNK_ROWS:
            *whole, rest = _slices(waiting)
            yield from whole
            waiting, rows = [rest], len(rest["flags"])
    if waiting:
        yield from _slices(waiting)


def _slices(parts: list[Columns]) -> list[Columns]:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = len(joined["flags"])
    return [
        {name: column[start : start + CHUNK_ROWS] for name, column in joined.items()}
        for start in range(0, rows, CHUNK_ROWS)
    ]


def _chunk(seq: int, columns: Columns, schema: Schema) -> Chunk:
    lane = {name: column[:, None] for name, column in columns.items()}
    zeros = np.zeros(lane["flags"].shape, np.float32)
    extras = {column.name: lane.pop(column.name) for column in schema.extras}
    return Chunk(0, 1, seq, 0, Counters(), **lane, q_taken=zeros, q_max=zeros, extras=extras)
