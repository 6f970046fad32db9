"""``qherd resume``: which run, and what of its configuration may be another than it was."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deploy.config.models import SERVER_OPTIONS, ConfigError, RunConfig, compose, dump
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.driver import go_on

KEPT = (
    "mode",
    "seed",
    "env.id",
    "env.kwargs",
    "env.frame_stack",
    "env.max_episode_steps",
    "replay.capacity_rows",
    "replay.sampler",
    "replay.prioritised.alpha",
    "learner.network",
    "learner.algorithm",
    "learner.qr_dqn.quantiles",
    "learner.n_step",
    "learner.gamma",
    "learner.reward_scale",
)
"""What shapes the contents of a checkpoint: weights, rows and their returns, priorities."""
KEPT_INLINE = (*KEPT, "actors.count", "actors.lanes")
"""An inline run's checkpoint has the lanes themselves, too."""


def config_of(path: Path) -> RunConfig:
    """The configuration that a run is resumed with where no option says otherwise: its own, with the environment's
    variables over it (a server's password is nowhere else)."""
    directory = RunDirectory.open(path)
    config = compose(None, None, directory.config_file)
    parent = path.parent if path.name else path.absolute().parent  # of "." the folder that it is in
    return config.model_copy(update={"run": directory.run, "runs_dir": parent})


def check_changes(before: RunConfig, after: RunConfig) -> None:
    """Raises ConfigError for an option that a run has to keep."""
    old, new = dump(before), dump(after)
    for path in KEPT_INLINE if before.mode == "inline" else KEPT:
        was, asked = _at(old, path), _at(new, path)
        if was != asked:
            raise ConfigError(
                f"{path} is {was} in this run, and {asked} was asked for: it shapes what the run has learned and "
                "stored; leave it, or start a new run"
            )


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for key in path.split("."):
        found = found[key]
    return found


def resume(path: Path, config: RunConfig) -> int:
    """Go on with the run in ``path`` under ``config``; the exit code."""
    with closing(RunDirectory.reopen(path)) as directory:
        check_changes(directory.config, config)
        if any("***" in url for url in (*config.redis.servers, *config.redis.actor_servers)):
            raise ConfigError(
                f"{path}/{directory.config_file.name} keeps no password of its server: give the whole URL with "
                f"{SERVER_OPTIONS}; so too --redis.actor-url where the actors have a user of their own"
            )
        return go_on(config, directory)
