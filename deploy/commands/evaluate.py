"""``qherd eval``: a run's best or final policy, played greedily or nearly so, and how far the mean can be trusted."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import BaseModel, Field

from actors.episodes import Episodes, play
from actors.evaluator import LANES
from actors.policy import EpsilonGreedy
from actors.seeds import MAX_SEED, PLAYBACK
from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.playback.players import Chosen, Moved, Which, players_of, policy_of, sticky_of
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.evaluation import MAX_EPISODES


class Eval(BaseModel):
    """Play a run's policy and print mean, standard deviation and standard error of its returns, and how the policy was
    chosen.

    The best policy was selected by the evaluations of its run, so its score tends to be higher than what the training
    ends with: compare runs by --policy final.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    env: Moved = Moved()
    policy: Which = "best"
    """best: the one that the run's own evaluations selected; final: that of the newest checkpoint, selected by
    nothing."""
    episodes: int = Field(100, ge=1, le=MAX_EPISODES)
    """Episodes to play."""
    epsilon: float = Field(0.0, ge=0, le=1)
    """Probability of a random action at each env step; 0: greedy. Some benchmarks of Atari use 0.001."""
    sticky: float | None = Field(None, ge=0, le=1)
    """Probability that the game repeats the last action (ALE/*, MinAtar/*); 0: never. The default is as trained."""
    seed: int = Field(PLAYBACK, ge=0, le=MAX_SEED)
    """Seed of the first episode; each further one has the next. The default is none that the run has played."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON: these numbers, and the return and the length of each episode."""
    as_csv: Annotated[bool, tyro.conf.arg(name="csv")] = False
    """Print CSV: a line for each episode."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return evaluate(tyro.cli(Eval, args=arguments, prog="qherd eval", registry=as_written()))


def evaluate(call: Eval) -> int:
    """Plays the episodes and prints what they returned; returns the exit code.

    Raises:
        ConfigError: options that exclude each other, or that the environment has not.
        RunDirError, CheckpointError: there is no such policy, or it is damaged.
    """
    if call.as_json and call.as_csv:
        raise ConfigError("--json and --csv are both given: choose one")
    if call.seed + call.episodes - 1 > MAX_SEED:
        raise ConfigError(
            f"--seed {call.seed} and {call.episodes} episodes go beyond the greatest seed, {MAX_SEED}: lower --seed"
        )
    directory = RunDirectory.open(call.run)
    limit, seeds = directory.config.eval.max_episode_steps, range(call.seed, call.seed + call.episodes)
    with players_of(directory, min(LANES, call.episodes), call.env.path, sticky=call.sticky) as players:
        policy, chosen = policy_of(directory, players.envs[0], call.policy)
        acting = EpsilonGreedy(policy, call.epsilon, np.random.default_rng(call.seed)) if call.epsilon else policy
        played = play(players.envs, acting, seeds, limit, players.replace)
    for line in players.pop_remade():
        print(f"qherd: {line}; it was made anew and its episode played again", file=sys.stderr)
    _print(call, directory, chosen, played)
    return 0


def _print(call: Eval, directory: RunDirectory, chosen: Chosen, played: Episodes) -> None:
    if call.as_json:
        print(json.dumps(_figures(call, directory, chosen, played)))
    elif call.as_csv:
        rows = zip(range(call.seed, call.seed + call.episodes), played.returns, played.lengths, strict=True)
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerows([("seed", "return", "length"), *((seed, float(r), int(n)) for seed, r, n in rows)])
    else:
        how = f"ε = {call.epsilon:g}" if call.epsilon else "greedy"
        error = "unknown" if played.stderr is None else f"{played.stderr:.2g}"
        print(
            f"{directory.config.env.id}, {call.episodes} {how} episodes: mean {played.mean:.1f}, standard deviation "
            f"{played.std:.1f}, standard error {error}, min {played.returns.min():.1f}, max "
            f"{played.returns.max():.1f}, mean length {played.lengths.mean():.0f} env steps\n{chosen.how}"
        )


def _figures(call: Eval, directory: RunDirectory, chosen: Chosen, played: Episodes) -> dict[str, Any]:
    """Returns what --json prints."""
    env = directory.config.env
    return {
        "run": directory.run,
        "env": env.id,
        "policy": chosen.which,
        "selected": chosen.which == "best",
        "updates": chosen.updates,
        "env_steps": chosen.env_steps,
        "episodes": call.episodes,
        "seed": call.seed,
        "epsilon": call.epsilon,
        "sticky": sticky_of(env) if call.sticky is None else call.sticky,
        "max_episode_steps": directory.config.eval.max_episode_steps,
        "mean": played.mean,
        "std": played.std,
        "stderr": played.stderr,
        "min": float(played.returns.min()),
        "max": float(played.returns.max()),
        "length_mean": float(played.lengths.mean()),
        "returns": played.returns.tolist(),
        "lengths": played.lengths.tolist(),
    }
