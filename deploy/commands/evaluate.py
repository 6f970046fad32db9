"""Playing a run's best policy: figures, or a video."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.contract import Env, EnvError, name_of
from actors.envs import schema_of
from actors.episodes import play
from actors.evaluator import LANES
from actors.players import Players
from actors.policy import Policy, make_policy
from actors.restarts import cause
from actors.seeds import MOST
from deploy.config.models import ConfigError
from deploy.playback.video import Video
from deploy.process.isolation import environments_apart
from deploy.run_directory.directory import RunDirectory, env_of
from deploy.sessions.launch import check_env_path


def evaluate(run: Path, episodes: int, seed: int, *, env_path: Path | None, as_json: bool) -> int:
    """Play ``episodes`` greedy episodes and print mean, std, min and max of the returns, and the lengths. ``env_path``:
    the folder of the environment's module, where that is elsewhere than it was."""
    directory = RunDirectory.open(run)
    limit = directory.config.eval.max_episode_steps
    if seed + episodes - 1 > MOST:
        raise ConfigError(f"--seed {seed} and {episodes} episodes go beyond the greatest seed, {MOST}: lower --seed")
    with _players(directory, min(LANES, episodes), env_path) as players:
        policy, manifest = _best(directory, players.envs[0])
        seeds = range(seed, seed + episodes)
        played = play(players.envs, policy, seeds, limit, players.replace)
    for line in players.take_remade():
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


def record(run: Path, out: Path | None, seed: int, *, env_path: Path | None) -> int:
    """Play one greedy episode and write it as MP4 or GIF. ``env_path``: see ``evaluate``."""
    directory = RunDirectory.open(run)
    out = out or directory.path / "best.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"--out {out}: the video's name has to end in .mp4 or .gif")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if out.exists():
        raise ConfigError(f"--out {out} exists already: choose another name")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory, also without a screen

    def fails(_: int, error: Exception) -> Env:
        raise EnvError(f"{directory.config.env.id} raised {cause(error)}; there is no video of it") from error

    with _players(directory, 1, env_path, render_mode="rgb_array") as players:
        (env,) = players.envs
        policy, _ = _best(directory, env)
        with Video(out, name_of(env), float(env.metadata.get("render_fps") or 30)) as video:
            limit = directory.config.eval.max_episode_steps
            played = play(players.envs, policy, [seed], limit, fails, lambda env: video.add(_rendered(env)))
    print(f"{out}: return {played.mean:.1f} in {played.lengths[0]} env steps")
    return 0


@contextlib.contextmanager
def _players(
    directory: RunDirectory, count: int, env_path: Path | None, render_mode: str | None = None
) -> Iterator[Players]:
    """Environments of the run, apart from the results and closed at the end; on stderr what was wrong with that.

    Raises EnvError where the folder of their module is not there.
    """
    config = directory.config
    if env_path is not None:
        config = config.model_copy(update={"env": config.env.model_copy(update={"path": env_path})})
    check_env_path(config)
    with environments_apart(), Players(env_of(config), count, render_mode=render_mode) as players:
        yield players
        for line in players.close():
            print(f"qherd: {line}", file=sys.stderr)


def _rendered(env: Env) -> Any:
    try:
        return env.render()
    except Exception as error:  # an environment may raise anything
        raise EnvError(f"{name_of(env)}: render() raised {cause(error)}") from error


def _best(directory: RunDirectory, env: Env) -> tuple[Policy, dict[str, object]]:
    arrays, manifest = directory.load_best()
    policy = make_policy(directory.config.learner.network_spec, schema_of(env))
    policy.load(arrays)
    return policy, manifest
