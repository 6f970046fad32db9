"""A greedy episode of a run's best policy as a video."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from actors.contract import Env, name_of
from actors.episodes import Episodes, play
from actors.errors import EnvError
from actors.supervision.restarts import cause
from deploy.playback.players import players_of, policy_of
from deploy.playback.video import Video
from deploy.run_directory.directory import RunDirectory


def film(directory: RunDirectory, out: Path, seed: int, env_path: Path | None) -> Episodes:
    """Plays one greedy episode of the best policy and writes it as MP4 or GIF. ``env_path``: the folder of the
    environment's module, where that is elsewhere than it was.

    Raises:
        EnvError: the environment raised, or renders no pictures; there is no file then.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory, also without a screen

    def fails(_: int, error: Exception) -> Env:
        raise EnvError(f"{directory.config.env.id} raised {cause(error)}; there is no video of it") from error

    with players_of(directory, 1, env_path, render_mode="rgb_array") as players:
        (env,) = players.envs
        policy, _ = policy_of(directory, env, "best")
        with Video(out, name_of(env), float(env.metadata.get("render_fps") or 30)) as video:
            limit = directory.config.eval.max_episode_steps
            return play(players.envs, policy, [seed], limit, fails, lambda env: video.add(_rendered(env)))


def _rendered(env: Env) -> Any:
    try:
        return env.render()
    except Exception as error:  # an environment may raise anything
        raise EnvError(f"{name_of(env)}: render() raised {cause(error)}") from error
