"""Episodes in Minari's HDF5 files, written and read below Minari's layer.

Minari's storage goes through h5py's high-level objects, whose cost for each episode is several times that of all its
rows where observations are flat. Here are the same groups, attributes and datasets by HDF5's own calls
(https://api.h5py.org), at about a third of that: Minari loads what is written, and what it has written is read. The
rest is left to Minari: metadata, its other formats, JPEG, and the reading of nested observations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5g, h5p, h5s, h5t

Array = npt.NDArray[Any]
FILE = "main_data.hdf5"
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations", "infos")


class FlatEpisode(NamedTuple):
    """What is read of an episode, under the names of ``minari.EpisodeData``."""

    observations: Array
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    infos: Mapping[str, Array]


# -- writing


def write_episodes(folder: Path, first: int, episodes: Iterable[Any]) -> None:
    """Adds whole episodes, each a ``minari.EpisodeBuffer`` of arrays, to the file that Minari has made in a dataset's
    folder; the first one gets the number ``first``. What counts them in the metadata is left to the caller."""
    with h5py.File(folder / FILE, "r+") as file:
        writing = _Writing()
        for number, episode in enumerate(episodes, first):
            writing.episode(file.id, number, episode)


class _Writing:
    """Writes episodes. A type and an extent are made once, since making them takes as long as writing a column."""

    def __init__(self) -> None:
        self._types: dict[Any, Any] = {}
        self._spaces: dict[tuple[int, ...], Any] = {(): h5s.create(h5s.SCALAR)}
        self._link = h5p.create(h5p.LINK_CREATE)
        self._link.set_char_encoding(h5t.CSET_UTF8)

    def episode(self, file: Any, number: int, episode: Any) -> None:
        group = h5g.create(file, b"episode_%d" % number)
        attributes = {b"id": number, b"total_steps": len(episode.rewards), b"seed": episode.seed}
        for name, value in attributes.items():
            if value is not None:
                array = np.array(value, np.int64)
                attribute = h5a.create(group, name, self._type(array.dtype), self._spaces[()])
                attribute.write(array, self._type(array.dtype))
        self._columns(group, {name: getattr(episode, name) for name in COLUMNS})

    def _columns(self, group: Any, columns: Mapping[str, Any]) -> None:
        for name, column in columns.items():
            if isinstance(column, tuple):
                entries = {f"_index_{index}": each for index, each in enumerate(column)}
                self._columns(h5g.create(group, name.encode(), self._link), entries)
            elif isinstance(column, Mapping):
                self._columns(h5g.create(group, name.encode(), self._link), column)
            else:
                self._dataset(group, name.encode(), np.ascontiguousarray(column))

    def _dataset(self, group: Any, name: bytes, array: Array) -> None:
        # in one piece: a whole episode never grows, so Minari's chunks and unlimited extents would be of no use
        dataset = h5d.create(group, name, self._type(array.dtype), self._space(array.shape), None, self._link)
        dataset.write(h5s.ALL, h5s.ALL, array, self._type(array.dtype))

    def _type(self, dtype: Any) -> Any:
        if dtype not in self._types:
            self._types[dtype] = h5t.py_create(dtype, logical=True)
        return self._types[dtype]

    def _space(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._spaces:
            self._spaces[shape] = h5s.create_simple(shape)
        return self._spaces[shape]


# -- reading


def reads(found: Any) -> bool:
    """Returns whether ``read_episodes`` reads a ``minari.MinariDataset``: one in HDF5, flat and without JPEG."""
    storage, shapes = found.storage, (found.observation_space.shape, found.action_space.shape)
    if storage.FORMAT != "hdf5" or None in shapes:  # nested spaces have no shape
        return False
    return not (storage.jpeg_encoding and any(len(shape) > 1 for shape in shapes))


def read_episodes(found: Any, infos: Sequence[str]) -> Iterator[FlatEpisode]:
    """Yields the episodes of a ``minari.MinariDataset`` that ``reads`` is true of, and of their infos those of these
    names that there are. Raises what h5py raises where the file is damaged."""
    columns = [_Column(name) for name in COLUMNS[:-1]]
    further = {name: _Column(f"infos/{name}") for name in infos}
    with h5py.File(found.storage.data_path / FILE, "r") as file:
        for number in found.episode_indices:
            group = h5g.open(file.id, b"episode_%d" % number)
            given = {name: column.read(group) for name, column in further.items() if column.path in group}
            yield FlatEpisode._make((*(column.read(group) for column in columns), given))


class _Column:
    """Reads a column of one episode after another; its dtype is worked out anew only where the file's type differs from
    the episode's before."""

    def __init__(self, path: str) -> None:
        self.path = path.encode()
        self._stored: Any = None

    def read(self, group: Any) -> Array:
        dataset = h5d.open(group, self.path)
        stored = dataset.get_type()
        if self._stored is None or not stored.equal(self._stored):
            self._stored, self._dtype = stored, stored.dtype
            self._memory = h5t.py_create(self._dtype)  # of numpy's elements, whatever the file's are
        array = np.empty(dataset.shape, self._dtype)
        dataset.read(h5s.ALL, h5s.ALL, array, self._memory)
        return array
