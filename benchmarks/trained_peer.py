"""The peer of study_peers.py: one training by Stable-Baselines3's DQN or sb3-contrib's QR-DQN with published settings,
and qherd's evaluation of its final policy.

Runs in a venv of its own (requirements-sb3_contrib.txt) with this repository on PYTHONPATH. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import QRDQN  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3 import DQN  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3.common.torch_layers import (  # type: ignore[import-not-found, unused-ignore]
    BaseFeaturesExtractor,
)
from torch import Tensor, nn

from actors.config import EnvConfig
from actors.episodes import play
from actors.evaluator import LANES
from actors.players import Players
from actors.seeds import playback_seed
from benchmarks.published_settings import published
from learner.networks.portable import PolicyState

ALGORITHMS = {"dqn": DQN, "qrdqn": QRDQN}
VERSIONS = ("stable_baselines3", "sb3_contrib", "gymnasium", "torch", "numpy")
LAST_SHARE = 0.1
"""Of the env steps: the training return is that of the episodes that ended in them."""


class MinAtarFeatures(BaseFeaturesExtractor):  # type: ignore[misc, unused-ignore]
    """MinAtar's convolution: 16 channels, 3 x 3, the picture's size kept."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        height, width, channels = observation_space.shape
        super().__init__(observation_space, 16 * height * width)
        self._conv = nn.Conv2d(channels, 16, 3, padding=1)

    def forward(self, obs: Tensor) -> Tensor:
        """Maps pictures <float32>[B, height, width, channels] to features <float32>[B, F]."""
        features: Tensor = self._conv(obs.permute(0, 3, 1, 2)).relu().flatten(1)
        return features


class TrainingReturns(BaseCallback):  # type: ignore[misc, unused-ignore]
    """Keeps the returns of the training's episodes, and at which env step each has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        episodes = (info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        self._ended += ((self.num_timesteps, float(ended)) for ended in episodes)
        return True

    def last(self) -> float | None:
        """Returns the mean over the last LAST_SHARE of the env steps."""
        first = (1 - LAST_SHARE) * self.num_timesteps
        found = [ended for at, ended in self._ended if at > first]
        return float(np.mean(found)) if found else None


class EvaluatedOnce(BaseCallback):  # type: ignore[misc, unused-ignore]
    """Evaluates the policy of a moment in the midst of the training; ``wall_s`` and ``cpu_s`` are what that took.

    ``outcome`` stays None where the training ends before.
    """

    def __init__(self, at: float, returns: Callable[[], list[float]]) -> None:
        """``at``: the moment, by time.time()."""
        super().__init__()
        self._at, self._returns = at, returns
        self.outcome: dict[str, Any] | None = None
        self.wall_s = self.cpu_s = 0.0

    def _on_step(self) -> bool:
        wall, cpu = time.time(), time.process_time()
        if self.outcome is None and wall >= self._at:
            self.outcome = {"env_steps": self.num_timesteps, "returns": self._returns()}
            self.wall_s, self.cpu_s = time.time() - wall, time.process_time() - cpu
        return True


class Greedy:
    """The model's network as qherd's evaluation asks for it: Q values of many observations."""

    def __init__(self, model: Any) -> None:
        model.policy.set_training_mode(False)
        self._values: Callable[[Tensor], Tensor] = model.q_net if isinstance(model, DQN) else model.quantile_net
        self._quantiles = isinstance(model, QRDQN)

    def initial_state(self, lanes: int) -> PolicyState:
        """Returns what it remembers of an episode: nothing."""
        del lanes
        return {}

    def __call__(self, obs: npt.NDArray[Any], state: PolicyState) -> tuple[npt.NDArray[np.float32], PolicyState]:
        """Maps observations to Q values <float32>[E, A], of quantiles [E, N, A] their means."""
        with torch.no_grad():
            values = self._values(torch.as_tensor(obs))
        return (values.mean(1) if self._quantiles else values).numpy(), state


def settings_of(algorithm: str, env: str, env_steps: int) -> dict[str, Any]:
    """Returns the published settings as the algorithm's arguments."""
    settings = published(algorithm, env).of(env_steps)
    rate, network = settings["learning_rate"], settings["policy_kwargs"]
    if isinstance(rate, str):
        first = float(rate.removeprefix("lin_"))
        settings["learning_rate"] = lambda left: left * first
    if network.get("features_extractor_class") == "minatar":
        settings["policy_kwargs"] = {**network, "features_extractor_class": MinAtarFeatures}
    return settings


def main() -> None:
    """Trains, plays, and prints what came of it. Seconds are those of the training, imports included."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", choices=ALGORITHMS, required=True)
    parser.add_argument("--env", type=EnvConfig.model_validate_json, required=True, help="a study's env options, JSON")
    parser.add_argument("--env-steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--max-episode-steps", type=int, required=True, help="of the evaluation's episodes")
    parser.add_argument("--began", type=float, required=True, help="time.time() at which this command was given")
    parser.add_argument(
        "--after", type=float, default=math.inf, help="seconds after which it is evaluated once besides"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # as qherd's learner: on small networks more are slower
    env, training = options.env, TrainingReturns()
    settings = settings_of(options.algorithm, env.id, options.env_steps)
    with Players(env, min(LANES, options.episodes)) as players:  # which also has the environment's package register it
        made = gym.make(env.id, **env.kwargs)
        model = ALGORITHMS[options.algorithm]("MlpPolicy", made, seed=options.seed, device="cpu", **settings)

        def returns() -> list[float]:
            first = playback_seed(options.seed, options.episodes)
            seeds = range(first, first + options.episodes)
            found: list[float] = play(players.envs, Greedy(model), seeds, options.max_episode_steps).returns.tolist()
            return found

        once = EvaluatedOnce(options.began + options.after, returns)
        model.learn(options.env_steps, callback=[training, once])
        wall_s, cpu_s = time.time() - options.began - once.wall_s, time.process_time() - once.cpu_s
        final = returns()
    outcome = {
        "env_steps": model.num_timesteps,
        "updates": model._n_updates,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "training_return": training.last(),
        "returns": final,
        "after": once.outcome,
        "versions": {name: version(name) for name in VERSIONS},
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
