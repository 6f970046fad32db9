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
from h5py import h5a, h5d, h5g, h5l, h5o, h5p, h5s, h5t

from learner.minari_store import BadColumn

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
    names that there are.

    Raises:
        BadColumn: a column is in another file, or has nothing in it; and what h5py raises where the file is damaged.
    """
    columns = [_Column(name) for name in COLUMNS[:-1]]
    further = {name: _Column(f"infos/{name}") for name in infos}
    with h5py.File(found.storage.data_path / FILE, "r") as file:
        for number in found.episode_indices:
            _check_link(file.id, episode := b"episode_%d" % number)
            group = h5g.open(file.id, episode)
            given = {name: column.read(group, episode) for name, column in further.items() if column.is_in(group)}
            yield FlatEpisode._make((*(column.read(group, episode) for column in columns), given))


def check_held(found: Any) -> None:
    """Raises BadColumn where a ``minari.MinariDataset`` in HDF5 has anything in another file: Minari's reader would
    open that, wherever it is."""
    if found.storage.FORMAT == "hdf5":
        with h5py.File(found.storage.data_path / FILE, "r") as file:

            def refused(name: bytes, link: Any) -> BadColumn | None:
                try:
                    _check_kind(name, link)
                    if isinstance(node := h5o.open(file.id, name), h5d.DatasetID):
                        _check_stored(name, node)
                except BadColumn as error:  # HDF5's own walk, which calls this, lets none through
                    return error
                return None

            if (error := file.id.links.visit(refused, info=True)) is not None:
                raise error


def _check_link(group: Any, name: bytes, within: bytes = b"") -> None:
    _check_kind(within + name, group.links.get_info(name))


def _check_kind(path: bytes, link: Any) -> None:
    if link.type != h5l.TYPE_HARD:  # soft ones, too, since they may lead to an external one
        kind = "an external link" if link.type == h5l.TYPE_EXTERNAL else "a soft link"
        raise BadColumn(f"{_shown(path)} is {kind}, which may lead to any file; the data themselves are needed there")


def _check_stored(path: bytes, dataset: Any) -> None:
    if dataset.get_offset() is not None:  # in this file in one piece, and much faster than to ask how it is stored
        return
    how = dataset.get_create_plist()
    if how.get_layout() == h5d.VIRTUAL or how.get_external_count():
        raise BadColumn(f"{_shown(path)} has its data in another file; the data themselves are needed there")


def _shown(path: bytes) -> str:
    return path.decode(errors="replace")[:80]


class _Column:
    """Reads a column of one episode after another; its dtype is worked out anew only where the file's type differs from
    the episode's before."""

    def __init__(self, path: str) -> None:
        self._path = path.encode()
        parts = self._path.split(b"/")
        self._links = [b"/".join(parts[: depth + 1]) for depth in range(len(parts))]
        self._stored: Any = None

    def is_in(self, group: Any) -> bool:
        """Returns whether an episode has the column; what a link leads to is not looked at."""
        for link in self._links:
            if not group.links.exists(link):
                return False
            if group.links.get_info(link).type != h5l.TYPE_HARD:
                return True
        return True

    def read(self, group: Any, episode: bytes) -> Array:
        """Returns the column of an episode, whose name is for messages."""
        for link in self._links:
            _check_link(group, link, episode + b"/")
        dataset = h5d.open(group, self._path)
        _check_stored(path := episode + b"/" + self._path, dataset)
        if dataset.shape is None:
            raise BadColumn(
                f"{_shown(path)} has no rows and no shape (HDF5's null); one row for each env step is needed"
            )
        stored = dataset.get_type()
        if self._stored is None or not stored.equal(self._stored):
            self._stored, self._dtype = stored, stored.dtype
            self._memory = h5t.py_create(self._dtype)  # of numpy's elements, whatever the file's are
        array = np.empty(dataset.shape, self._dtype)
        dataset.read(h5s.ALL, h5s.ALL, array, self._memory)
        return array
