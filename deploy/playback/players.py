"""Environments in which a run's best policy is played."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from actors.contract import Env
from actors.envs import schema_of
from actors.players import Players
from actors.policy import Policy, make_policy
from deploy.config.models import env_of
from deploy.planning.preconditions import check_env_path
from deploy.process.isolation import environments_apart
from deploy.run_directory.directory import RunDirectory


class Moved(BaseModel):
    """What of a run's environment may be elsewhere than it was."""

    path: Path | None = None
    """The folder to find the environment's module in. The default is the run's own."""


@contextlib.contextmanager
def players_of(
    directory: RunDirectory, count: int, env_path: Path | None, render_mode: str | None = None
) -> Iterator[Players]:
    """Yields environments of the run, apart from the results, and closes them; on stderr what was wrong with that.

    Raises:
        EnvError: the folder of their module is not there.
    """
    config = directory.config
    if env_path is not None:
        config = config.model_copy(update={"env": config.env.model_copy(update={"path": env_path})})
    check_env_path(config)
    with environments_apart(), Players(env_of(config), count, render_mode=render_mode) as players:
        yield players
        for line in players.close():
            print(f"qherd: {line}", file=sys.stderr)


def best_policy(directory: RunDirectory, env: Env) -> tuple[Policy, dict[str, object]]:
    """Returns the run's best policy, for this environment's observations, and its manifest.

    Raises:
        RunDirError: there is none yet, or it is damaged.
    """
    arrays, manifest = directory.best.load()
    policy = make_policy(directory.config.learner.network_spec, schema_of(env))
    policy.load(arrays)
    return policy, manifest
