"""``qherd eval``: a run's best policy, played greedily."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel, Field

from actors.episodes import play
from actors.evaluator import LANES
from actors.seeds import MAX_SEED, PLAYBACK
from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.playback.players import Moved, best_policy, players_of
from deploy.run_directory.directory import RunDirectory


class Eval(BaseModel):
    """Play a run's best policy greedily."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    env: Moved = Moved()
    episodes: int = Field(100, ge=1)
    """Greedy episodes to play."""
    seed: int = Field(PLAYBACK, ge=0, le=MAX_SEED)
    """Seed of the first episode; each further one has the next. The default is none that the run has played."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Eval, args=arguments, prog="qherd eval", registry=as_written())
    return evaluate(call.run, call.episodes, call.seed, env_path=call.env.path, as_json=call.as_json)


def evaluate(run: Path, episodes: int, seed: int, *, env_path: Path | None, as_json: bool) -> int:
    """Plays ``episodes`` greedy episodes and prints mean, std, min and max of the returns, and the lengths.
    ``env_path``: the folder of the environment's module, where that is elsewhere than it was."""
    directory = RunDirectory.open(run)
    limit = directory.config.eval.max_episode_steps
    if seed + episodes - 1 > MAX_SEED:
        raise ConfigError(
            f"--seed {seed} and {episodes} episodes go beyond the greatest seed, {MAX_SEED}: lower --seed"
        )
    with players_of(directory, min(LANES, episodes), env_path) as players:
        policy, manifest = best_policy(directory, players.envs[0])
        seeds = range(seed, seed + episodes)
        played = play(players.envs, policy, seeds, limit, players.replace)
    for line in players.pop_remade():
        print(f"qherd: {line}; it was made anew and its episode played again", file=sys.stderr)
    figures = {
        "run": directory.run,
        "env": directory.config.env.id,
        "updates": manifest["updates"],
        "episodes": episodes,
        "seed": seed,
        "max_episode_steps": limit,
        "mean": played.mean,
        "std": played.std,
        "min": float(played.returns.min()),
        "max": float(played.returns.max()),
        "length_mean": float(played.lengths.mean()),
        "lengths": played.lengths.tolist(),
    }
    if as_json:
        print(json.dumps(figures))
    else:
        print(
            f"{figures['env']}, {episodes} greedy episodes: mean {played.mean:.1f} ± {played.std:.1f}, "
            f"min {figures['min']:.1f}, max {figures['max']:.1f}, mean length {figures['length_mean']:.0f} env steps"
        )
    return 0
