"""A run's best or final policy, and the environments in which it is played."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from actors.config import EnvConfig
from actors.contract import Env
from actors.envs import schema_of
from actors.players import Players
from actors.policy import Policy, make_policy
from deploy.config.errors import ConfigError, RunDirError
from deploy.config.models import env_of
from deploy.planning.preconditions import check_env_path
from deploy.process.isolation import environments_apart
from deploy.run_directory.directory import RunDirectory, checkpoint_folder
from deploy.run_directory.evaluation import last_updates
from deploy.run_directory.standing import ended_well
from learner.checkpoint import newest_policy
from learner.networks.numpy_mlp import NumpyMlp
from learner.policy import check_weights

Which = Literal["best", "final"]
STICKY = {"ALE": ("repeat_action_probability", 0.25), "MinAtar": ("sticky_action_prob", 0.1)}
"""Of the suites whose games repeat actions by chance, the argument that has the probability, and its default."""


class Moved(BaseModel):
    """What of a run's environment may be elsewhere than it was."""

    path: Path | None = None
    """The folder to find the environment's module in. The default is the run's own."""


@contextlib.contextmanager
def players_of(
    directory: RunDirectory,
    count: int,
    env_path: Path | None,
    render_mode: str | None = None,
    sticky: float | None = None,
) -> Iterator[Players]:
    """Yields environments of the run, apart from the results, and closes them; on stderr what was wrong with that.
    ``sticky``: the probability of sticky actions, where it is to be another than the run's.

    Raises:
        ConfigError: the environment has no sticky actions.
        EnvError: the folder of their module is not there.
    """
    config = directory.config
    if env_path is not None:
        config = config.model_copy(update={"env": config.env.model_copy(update={"path": env_path})})
    if sticky is not None:
        config = config.model_copy(update={"env": _with_sticky(config.env, sticky)})
    check_env_path(config)
    with environments_apart(), Players(env_of(config), count, render_mode=render_mode) as players:
        yield players
        for line in players.close():
            print(f"qherd: {line}", file=sys.stderr)


def sticky_of(env: EnvConfig) -> float | None:
    """Returns the probability of the environment's sticky actions; None where it has none that qherd knows of."""
    if (argument := _sticky_argument(env)) is None:
        return None
    name, default = argument
    return float(env.kwargs.get(name, default))


def _sticky_argument(env: EnvConfig) -> tuple[str, float] | None:
    return STICKY.get(env.id.rpartition(":")[2].partition("/")[0])


def _with_sticky(env: EnvConfig, probability: float) -> EnvConfig:
    if (argument := _sticky_argument(env)) is None:
        have = " and ".join(f"{suite}/*" for suite in STICKY)
        raise ConfigError(f"{env.id} has no sticky actions that qherd could set, only {have} have: leave --sticky out")
    return env.model_copy(update={"kwargs": {**env.kwargs, argument[0]: probability}})


class Chosen(NamedTuple):
    """Which of a run's policies is played. ``env_steps``: of the run when it was taken, where that is on record."""

    which: Which
    updates: int
    env_steps: int | None

    @property
    def how(self) -> str:
        """Returns how it was chosen, as a sentence."""
        if self.which == "final":
            return f"final policy, of update {self.updates:,}: that of the newest checkpoint, not selected by any score"
        return (
            f"best policy, of update {self.updates:,}: selected by the run's own evaluations, so its score tends to be "
            "higher than what the training ends with; to compare runs take --policy final"
        )


def policy_of(directory: RunDirectory, env: Env, which: Which) -> tuple[Policy, Chosen]:
    """Returns the run's best or final policy, for this environment's observations, and which that is.

    Raises:
        RunDirError, CheckpointError, PolicyError: there is none yet, or it is damaged or of another network.
    """
    config = directory.config
    if which == "best":
        arrays, manifest = directory.best.load()
        chosen = Chosen(which, int(manifest["updates"]), None)
    else:
        arrays, name = newest_policy(checkpoint_folder(config, directory))
        chosen = Chosen(which, name.updates, name.env_steps)
    _check_of_run(directory, chosen)
    spec, schema = config.learner.network_spec, schema_of(env)
    check_weights(spec, schema, arrays)
    policy = make_policy(spec, schema)
    if not isinstance(policy, NumpyMlp):
        import torch

        torch.set_num_threads(config.learner.threads)
    policy.load(arrays)
    return policy, chosen


def _check_of_run(directory: RunDirectory, chosen: Chosen) -> None:
    """Raises RunDirError where a run is over and its summary has another policy: one that was lost, or a stranger's."""
    summary, row = directory.summary(), directory.history.newest()
    ended = last_updates(summary.get("updates"), row)
    if ended is None or not ended_well(summary.get("exit_reason")) or directory.lock.owner() is not None:
        return
    wanted = ended if chosen.which == "final" else summary.get("best_updates")
    if isinstance(wanted, int) and chosen.updates != wanted:
        raise RunDirError(
            f"{directory.given_path} ended with a {chosen.which} policy of update {wanted:,}, and the one there is of "
            f"update {chosen.updates:,}: put its checkpoints back, or train on (qherd resume {directory.given_path})"
        )
