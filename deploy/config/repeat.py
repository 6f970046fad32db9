"""The command that trains with a given configuration, and in which options configurations differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from deploy.config.layers import compose, option_at
from deploy.config.models import RunConfig, dump, option_paths
from deploy.config.numbers import write_yaml


def flat_options(config: RunConfig) -> dict[str, Any]:
    """Returns all options by their dotted names, as plain values without the servers' passwords."""
    values = dump(config)
    return {path: option_at(values, path) for path in option_paths()}


def command_for(config: RunConfig) -> str:
    """Returns the ``qherd train`` command that trains with this configuration, in a folder of its own: the options in
    which it differs from what the environment's name alone gives. A server's password is not in it."""
    given = _given_by(config.env.id)
    words = ["qherd", "train", config.env.id]
    for path, value in flat_options(config).items():
        if path not in ("run", "runs_dir") and value != given[path]:
            words += _option(path, value)
    return shlex.join(words)


@lru_cache(maxsize=64)
def _given_by(env_id: str) -> Mapping[str, Any]:
    """Returns the options of ``qherd train ENV`` alone."""
    return flat_options(compose(env_id, None, None, {}))


def _option(path: str, value: Any) -> list[str]:
    """Returns an option as the command line reads it."""
    name = path.replace("_", "-")
    if isinstance(value, bool):
        section, _, last = name.rpartition(".")
        return [f"--{section}{'.' if section else ''}{'' if value else 'no-'}{last}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", write_yaml(value, flow=True).strip() if isinstance(value, Mapping) else str(value)]
