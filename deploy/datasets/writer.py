"""A Minari dataset that is there whole or not at all."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from deploy.config.errors import ConfigError
from deploy.datasets.episode import Episode, RawEpisodes
from deploy.export.folder import written_whole
from learner.minari_store import check_installed, folder_of, namespace_of

BATCH_BYTES = 32 << 20
"""Episodes are collected to about so many bytes of observations, since each opening of the file takes a while."""


def check_out(dataset_id: str) -> Path:
    """Returns the folder of a new dataset.

    Raises:
        DatasetError: a package is missing, or the id cannot be one.
        ConfigError: there is such a dataset already, or Minari would not list it there.
    """
    check_installed()
    if namespace := namespace_of(dataset_id):
        _check_groups(dataset_id, namespace.split("/"))
    folder = folder_of(dataset_id)
    if folder.exists():
        raise ConfigError(
            f"--out {dataset_id}: {folder} exists already, and is not overwritten: choose another name, or raise the "
            "version at its end"
        )
    return folder


def _check_groups(dataset_id: str, groups: Sequence[str]) -> None:
    """Raises ConfigError where Minari would take a folder of the dataset's groups for a dataset: it does for each that
    has something named data in it, and looks for none further down."""
    if "data" in groups:
        raise ConfigError(
            f"--out {dataset_id}: a group named data makes Minari take the folder around it for a dataset: choose "
            "another group"
        )
    for count in range(1, len(groups) + 1):
        group = "/".join(groups[:count])
        if (folder_of(group) / "data").exists():
            raise ConfigError(
                f"--out {dataset_id}: {group} is a dataset, and Minari lists none inside another's folder: choose "
                "another group"
            )


class DatasetWriter:
    """Writes episodes into Minari's HDF5 format, pictures without loss."""

    def __init__(self, folder: Path, raw: RawEpisodes) -> None:
        """``folder``: empty; ``raw``: of the environment that the episodes are of."""
        from minari.dataset.minari_storage import MinariStorage

        self._raw, self._pending, self._pending_bytes = raw, list[Any](), 0
        self.episodes = self.env_steps = 0
        self._storage = MinariStorage.new(
            folder,
            observation_space=raw.observation_space,
            action_space=raw.action_space,
            env_spec=_portable(raw.spec),
            data_format="hdf5",
            jpeg_encoding=False,
        )

    def add(self, episode: Episode) -> None:
        """Takes an episode, which is written by and by.

        Raises:
            ConfigError: its observations cannot be had back.
        """
        from minari.data_collector.episode_buffer import EpisodeBuffer

        terminations, truncations = (np.zeros(len(episode.action), np.bool_) for _ in range(2))
        terminations[-1], truncations[-1] = episode.terminated, episode.truncated
        self._pending.append(
            EpisodeBuffer(
                seed=episode.seed,
                observations=self._raw.observations(episode.obs),
                actions=self._raw.actions(episode.action),
                rewards=episode.reward,
                terminations=terminations,
                truncations=truncations,
                infos=dict(episode.extras),
            )
        )
        self.episodes += 1
        self.env_steps += len(episode.action)
        self._pending_bytes += episode.obs.nbytes
        if self._pending_bytes > BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        from learner.minari_hdf5 import write_episodes

        pending, self._pending, self._pending_bytes = self._pending, [], 0
        # MinariStorage.update_episodes is the same at several times the cost
        write_episodes(self._storage.data_path, self.episodes - len(pending), pending)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Writes what is left, and what the dataset is about.

        Raises:
            ConfigError: Minari does not load it back.
        """
        from minari import MinariDataset

        self._write()
        counts = {"total_episodes": self.episodes, "total_steps": self.env_steps}
        self._storage.update_metadata({**metadata, **counts, "dataset_size": self._storage.get_size()})
        try:
            found = MinariDataset(self._storage.data_path)
            last = found[self.episodes - 1]
        except Exception as error:  # of any kind
            raise ConfigError(f"Minari does not load what was written: {type(error).__name__}: {error}") from error
        if (found.total_episodes, found.total_steps) != (self.episodes, self.env_steps) or not (
            last.terminations[-1] or last.truncations[-1]
        ):
            raise ConfigError(
                f"Minari loads {found.total_episodes} episodes of {found.total_steps} env steps, and "
                f"{self.episodes} of {self.env_steps} were written"
            )


@contextlib.contextmanager
def writing(dataset_id: str, raw: RawEpisodes) -> Iterator[DatasetWriter]:
    """Yields what writes a new dataset, which is there at the end of the block and not before. Nothing is left where
    the block raises."""
    from minari.namespace import create_namespace, list_local_namespaces

    folder = check_out(dataset_id)
    with written_whole(folder, f"--out {dataset_id}", folder.parents[dataset_id.count("/")]) as temporary:
        (temporary / "data").mkdir()
        yield DatasetWriter(temporary / "data", raw)
        namespace = namespace_of(dataset_id)
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)


def _portable(spec: EnvSpec | None) -> EnvSpec | None:
    """Returns the environment's specification, where a dataset can have it: others make the environment by it."""
    if spec is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return EnvSpec.from_json(spec.to_json())
    except Exception:  # of any kind: an entry point that is no text, arguments that JSON has not
        return None
