"""An episode as the replay memory stores it, and as the environment itself would give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from actors.contract import Env
from actors.envs import checked_of, schema_of
from deploy.config.errors import ConfigError
from learner.networks.portable import Observations, actions_of
from replay.chunk import Schema

Array = npt.NDArray[Any]


class Episode(NamedTuple):
    """T env steps: obs <obs_dtype>[T + 1, *obs_shape], the last one after the last env step; action <int>[T] by number;
    reward <float>[T]; how it ended; ``extras``: the schema's further columns [T + 1, ...] by name; the seed that the
    environment was reset with, where that is known."""

    obs: Array
    action: Array
    reward: Array
    terminated: bool
    truncated: bool
    extras: Mapping[str, Array]
    seed: int | None = None


class RawEpisodes:
    """Gives episodes the observations and actions that an environment itself has, in its own spaces.

    What is stored of an observation is undone: one-hot numbers, flattened entries, bytes divided by 255, stacks of
    frames. float64 and int64 that were narrowed to float32 keep float32's precision.
    """

    def __init__(self, env: Env) -> None:
        """``env``: made by ``make_env``.

        Raises:
            ConfigError: its spaces have names that no dataset can have.
        """
        checked = checked_of(env)
        assert checked is not None
        self.observation_space: spaces.Space[Any] = checked.env.observation_space
        self.action_space: spaces.Space[Any] = checked.env.action_space
        self.spec, self.schema, about = checked.env.spec, schema_of(env), checked.about
        self._about, self._stored = about["observation"], Observations(about["observation"])
        self._actions = actions_of(about["actions"])
        _check_names(self.observation_space)

    def observations(self, obs: Array) -> Any:
        """Returns the environment's own observations of what was stored <obs_dtype>[N, *obs_shape]: an array [N, ...],
        or a dict or tuple of these.

        Raises:
            ConfigError: they cannot be had back.
        """
        given = _stacked(obs, self.schema) if self._stored.shape != self.schema.obs_shape else obs
        parts = _parts(given, self._about)
        raw = _nested(self.observation_space, parts)
        if not np.array_equal(self._stored(raw, (len(obs),)), given):
            raise ConfigError(
                f"the environment's own observations, {self._about['space']}, cannot be had back from what is stored "
                "of them: its numbers are beyond those that float32 holds"
            )
        return raw

    def actions(self, numbers: Array) -> Array:
        """Returns what the environment was given for the actions of these numbers <int>[T]."""
        return np.asarray(self._actions(numbers.astype(np.int64)))


def _stacked(obs: Array, schema: Schema) -> Array:
    """Returns the stacks <obs_dtype>[N, stack, *obs_shape] of an episode's frames: the first one fills them."""
    newest = np.arange(len(obs))[:, None]
    stacks: Array = obs[np.maximum(newest + np.arange(1 - schema.stack, 1), 0)]
    return stacks


def _parts(stored: Array, about: Mapping[str, Any]) -> Iterator[Array]:
    """Yields what is stored of each entry of the observations, [N, ...]."""
    if not about["flattened"]:
        yield stored
        return
    at = 0
    for entry in about["entries"]:
        size = sum(entry["counts"]) if "counts" in entry else int(np.prod(entry["shape"], dtype=np.int64))
        part = stored[:, at : at + size]
        if about["divided"] and entry.get("divisor", 1) > 1:
            part = np.rint(part * np.float32(entry["divisor"]))
        yield part
        at += size


def _nested(space: spaces.Space[Any], parts: Iterator[Array]) -> Any:
    """Returns observations of a space from what is stored of its entries, in their order."""
    if isinstance(space, spaces.Dict):
        return {name: _nested(each, parts) for name, each in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(each, parts) for each in space.spaces)
    part = next(parts)
    shape = (len(part), *(space.shape or ()))
    if isinstance(space, spaces.Discrete):
        return (space.start + part.argmax(1)).astype(space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        ends = np.cumsum(space.nvec.ravel())
        numbers = [each.argmax(1) for each in np.split(part, ends[:-1], axis=1)]
        return (np.stack(numbers, 1).reshape(shape) + space.start).astype(space.dtype)
    with np.errstate(invalid="ignore"):  # beyond int64, which the comparison finds
        return part.reshape(shape).astype(space.dtype)


def _check_names(space: spaces.Space[Any]) -> None:
    """Raises ConfigError for an entry whose name an HDF5 file takes for a path."""
    inside = space.spaces if isinstance(space, spaces.Tuple) else ()
    if isinstance(space, spaces.Dict):
        for name in space.spaces:
            if not isinstance(name, str) or "/" in name or name in ("", "."):
                raise ConfigError(
                    f"the observations have an entry {name!r:.80}, and a dataset's entries have names without '/': "
                    "rename it with gymnasium.wrappers.TransformObservation where you register the environment"
                )
        inside = tuple(space.spaces.values())
    for each in inside:
        _check_names(each)
