"""``qherd dataset``: episodes of a run as a Minari dataset."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from pydantic import BaseModel, Field

from actors.contract import Env
from actors.envs import schema_of
from actors.episodes import play
from actors.evaluator import LANES
from actors.policy import EpsilonGreedy
from actors.seeds import MAX_SEED, PLAYBACK
from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.config.models import RedisConfig
from deploy.datasets.episode import RawEpisodes
from deploy.datasets.logged import Held, logged_episodes
from deploy.datasets.played import Recorder
from deploy.datasets.writer import DatasetWriter, check_out, writing
from deploy.playback.players import Moved, Which, players_of, policy_of
from deploy.process.isolation import environments_apart
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.provenance import git_revision
from deploy.run_directory.target import find_run
from replay.chunk_log import open_inspector

OF_PLAYED = ("policy", "episodes", "epsilon", "seed")
"""Options of episodes that are played."""


class Dataset(BaseModel):
    """Write episodes of a run as a Minari dataset: played by its policy, greedily or nearly so, or those whole episodes
    that its replay memory's log still holds. Needs the extra minari.

    Observations and actions are the environment's own. The dataset is there whole or not at all, below
    MINARI_DATASETS_PATH or the home's .minari; python, minari and qherd train --replay.dataset find it by its id.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    out: str
    """The dataset's id, NAME-v0 or GROUP/NAME-v0. One that exists is refused."""
    from_: Annotated[Literal["policy", "replay"], tyro.conf.arg(name="from")] = "policy"
    """policy: episodes that are played now; replay: what the run's server holds of whole episodes, of mode local while
    the run is at work."""
    policy: Which = "best"
    """best: the one that the run's own evaluations selected; final: that of the newest checkpoint."""
    episodes: int = Field(100, ge=1)
    """Episodes to play."""
    epsilon: float = Field(0.0, ge=0, le=1)
    """Probability of a random action at each env step; 0: greedy."""
    seed: int = Field(PLAYBACK, ge=0, le=MAX_SEED)
    """Seed of the first episode; each further one has the next. The default is none that the run has played."""
    env: Moved = Moved()
    redis: RedisConfig = RedisConfig()


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Dataset, args=arguments, prog="qherd dataset", registry=as_written())
    return dataset(call, arguments)


def dataset(call: Dataset, arguments: Sequence[str]) -> int:
    """Writes the dataset and prints what is in it; returns the exit code.

    Raises:
        ConfigError, DatasetError: there is such a dataset already, a package is missing, or options do not apply.
        RunDirError, CheckpointError, LogError: there is no such policy, or the replay memory cannot be read.
    """
    _check(call)
    directory = RunDirectory.open(call.run)
    about = {"run": directory.run, "command": _command(arguments), "versions": _versions()}
    folder = check_out(call.out)
    write = _write_played if call.from_ == "policy" else _write_logged
    with environments_apart():
        shown = write(call, directory, about)
    print(f"dataset {call.out} in {folder}: {shown}")
    return 0


def _check(call: Dataset) -> None:
    """Raises ConfigError for options that do not apply."""
    if call.seed + call.episodes - 1 > MAX_SEED:
        raise ConfigError(
            f"--seed {call.seed} and {call.episodes} episodes go beyond the greatest seed, {MAX_SEED}: lower --seed"
        )
    defaults = Dataset.model_fields
    changed = [name for name in OF_PLAYED if getattr(call, name) != defaults[name].default]
    if call.from_ == "replay" and changed:
        raise ConfigError(f"--{changed[0]} is for episodes that are played: leave it out, or leave --from replay out")


def _write_played(call: Dataset, directory: RunDirectory, about: dict[str, Any]) -> str:
    """Plays and writes; returns what was written, in words."""
    limit, seeds = directory.config.eval.max_episode_steps, range(call.seed, call.seed + call.episodes)
    with players_of(directory, min(LANES, call.episodes), call.env.path) as players:
        env = players.envs[0]
        policy, chosen = policy_of(directory, env, call.policy)
        acting = EpsilonGreedy(policy, call.epsilon, np.random.default_rng(call.seed)) if call.epsilon else policy
        raw = RawEpisodes(env)
        with writing(call.out, raw) as writer:

            def recorded(made: Env) -> Env:
                return Recorder(made, raw.schema, limit, writer.add)

            def replaced(index: int, error: Exception) -> Env:
                return recorded(players.replace(index, error))

            played = play([recorded(each) for each in players.envs], acting, seeds, limit, replaced)
            how = {"policy": chosen.which, "updates": chosen.updates, "epsilon": call.epsilon, "seed": call.seed}
            _finish(call, directory, writer, {**about, "from": "policy", **how, "mean_return": played.mean})
        for line in players.pop_remade():
            print(f"qherd: {line}; it was made anew and its episode played again", file=sys.stderr)
    greedy = f"ε = {call.epsilon:g}" if call.epsilon else "greedy"
    return f"{_size(writer)}, {greedy}, mean return {played.mean:.1f}\n{chosen.how}"


def _write_logged(call: Dataset, directory: RunDirectory, about: dict[str, Any]) -> str:
    """Reads the log and writes; returns what was written, in words."""
    target, held = find_run(str(call.run), call.redis), Held()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(contextlib.closing(open_inspector(url, target.run))) for url in target.urls]
        (env,) = stack.enter_context(players_of(directory, 1, call.env.path)).envs
        writer = stack.enter_context(writing(call.out, RawEpisodes(env)))
        for episode in logged_episodes(logs, target.run, schema_of(env), held):
            writer.add(episode)
        if not writer.episodes:
            raise ConfigError(
                f"the log of run {target.run} holds {held.rows:,} rows and no whole episode: wait until its actors "
                "have finished some, or leave --from replay out"
            )
        _finish(call, directory, writer, {**about, "from": "replay", "policy": "the actors', exploring"})
    refused = f", {held.refused:,} chunks that cannot be read" if held.refused else ""
    return (
        f"{_size(writer)}, as the actors played them; left out: {held.left_rows:,} of {held.rows:,} rows, of episodes "
        f"without beginning or end{refused}"
    )


def _finish(call: Dataset, directory: RunDirectory, writer: DatasetWriter, about: dict[str, Any]) -> None:
    learner, env = directory.config.learner, directory.config.env
    writer.finish(
        {
            "dataset_id": call.out,
            "minari_version": version("minari"),
            "algorithm_name": f"qherd, {learner.algorithm}",
            "description": f"{env.id}, {_size(writer)}, by qherd's run {directory.run}",
            "qherd": {**about, "env": {"id": env.id, "kwargs": dict(env.kwargs)}},
        }
    )


def _size(writer: DatasetWriter) -> str:
    return f"{writer.episodes:,} episodes of {writer.env_steps:,} env steps"


def _versions() -> dict[str, str | None]:
    names = ("qherd", "minari", "gymnasium", "numpy")
    return {**{name: version(name) for name in names}, "revision": git_revision()}


def _command(arguments: Sequence[str]) -> str:
    """Returns the command as it was given, without servers' passwords."""
    return shlex.join(["qherd", "dataset", *("***" if "://" in word else word for word in arguments)])
