"""Playing a run's best policy: figures, or a video."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym

from actors.envs import make_env, schema_of
from actors.evaluator import LANES, play
from actors.policy import Policy, make_policy
from deploy.config import ConfigError
from deploy.run_dir import RunDirectory, env_of


def evaluate(run: Path, episodes: int, seed: int, *, as_json: bool) -> int:
    """Play ``episodes`` greedy episodes and print mean, std, min and max of the returns, and the lengths."""
    directory = RunDirectory.open(run)
    envs = [make_env(env_of(directory.config), training=False) for _ in range(min(LANES, episodes))]
    policy, manifest = _best(directory, envs[0])
    played = play(envs, lambda obs: policy(obs).argmax(1), range(seed, seed + episodes))
    figures = {
        "run": directory.run,
        "env": directory.config.env.id,
        "updates": manifest["updates"],
        "episodes": episodes,
        "seed": seed,
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


def record(run: Path, out: Path | None, seed: int) -> int:
    """Play one greedy episode and write it as MP4 or GIF."""
    directory = RunDirectory.open(run)
    out = out or directory.path / "best.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"--out {out}: the video's name has to end in .mp4 or .gif")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if out.exists():
        raise ConfigError(f"--out {out} exists already: choose another name")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory, also without a screen
    from moviepy import ImageSequenceClip

    filmed = gym.wrappers.RenderCollection(
        make_env(env_of(directory.config), training=False, render_mode="rgb_array"), pop_frames=False
    )
    policy, _ = _best(directory, filmed)
    played = play([filmed], lambda obs: policy(obs).argmax(1), [seed])
    clip = ImageSequenceClip(filmed.render(), fps=int(filmed.metadata.get("render_fps", 30)))
    if out.suffix == ".gif":
        clip.write_gif(str(out), fps=15, logger=None)
    else:
        clip.write_videofile(str(out), logger=None)
    filmed.close()
    print(f"{out}: return {played.mean:.1f} in {played.lengths[0]} env steps")
    return 0


def _best(directory: RunDirectory, env: gym.Env[Any, Any]) -> tuple[Policy, dict[str, object]]:
    arrays, manifest = directory.load_best()
    policy = make_policy(directory.config.learner.network_spec, schema_of(env))
    policy.load(arrays)
    return policy, manifest
