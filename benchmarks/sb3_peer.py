"""The peer of solve.py: Stable-Baselines3's DQN on LunarLander-v3, with qherd's own evaluator and rule of solved.

Runs in a venv of its own (requirements-sb3.txt) with this repository on PYTHONPATH. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import gymnasium as gym
import torch
from stable_baselines3 import DQN  # type: ignore[import-not-found, unused-ignore]
from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found, unused-ignore]

from actors.builders import build_evaluator
from actors.config import EnvConfig, EvalConfig
from actors.evaluator import EvaluationResult
from actors.verdicts import Spent
from benchmarks.published_settings import published
from learner.networks import NetworkSpec
from learner.weights import pack

HORIZONS = 100
"""Training goes on to this many times the zoo's env steps, if need be, with the same settings."""
ZOO = published("dqn", "LunarLander-v3")


class UntilSolved(BaseCallback):  # type: ignore[misc, unused-ignore]
    """Screens the greedy policy with at most ``cpu_share`` of the time; stops at a solution or after ``seconds``.

    A screen is paid back by training before the next one; what a confirmation costs is not held against the peer.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        super().__init__()
        self._config = EvalConfig(threshold=200)
        self._evaluator = build_evaluator(EnvConfig(id="LunarLander-v3"), self._config, NetworkSpec(), seed)
        self._end_s = time.perf_counter() + seconds
        self._next_screen_s = time.perf_counter()
        self.verdict: EvaluationResult | None = None

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if now > self._end_s and self.model._n_updates > 0:  # without an update it would not have run at all
            return False
        if now < self._next_screen_s or self.model._n_updates == 0:
            return True
        spent = Spent() if self.verdict is None else self.verdict.spent
        self.verdict = self._evaluator.screen(self._policy(), spent)
        screen_s = (time.perf_counter() - now) * _screen_share(self.verdict)
        self._next_screen_s = time.perf_counter() + screen_s * (1 / self._config.cpu_share - 1)
        return not self.verdict.solved

    def _policy(self) -> bytes:
        """SB3's Q-network, which is the same function as qherd's MLP, in qherd's packing."""
        linear = [layer for layer in self.model.q_net.q_net if isinstance(layer, torch.nn.Linear)]
        arrays = {}
        names = [*(f"encoder.layers.{index}" for index in range(len(linear) - 1)), "head.linear"]
        for name, layer in zip(names, linear, strict=True):
            arrays[f"{name}.weight"] = layer.weight.detach().numpy()
            arrays[f"{name}.bias"] = layer.bias.detach().numpy()
        return pack(1, self.model._n_updates, self.num_timesteps, arrays)


def _screen_share(verdict: EvaluationResult) -> float:
    """The screen's part of an evaluation, by env steps."""
    if verdict.confirmed is None:
        return 1.0
    screen, confirmed = int(verdict.screen.lengths.sum()), int(verdict.confirmed.lengths.sum())
    return screen / (screen + confirmed)


def main() -> None:
    """Train until solved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=900.0)
    options = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    horizon = HORIZONS * ZOO.env_steps
    model = DQN("MlpPolicy", gym.make("LunarLander-v3"), seed=options.seed, device="cpu", **ZOO.of(horizon))
    until = UntilSolved(options.seed, options.seconds)
    model.learn(horizon, callback=until)
    verdict, seconds = until.verdict, time.perf_counter() - started
    decided = verdict and (verdict.confirmed or verdict.screen)
    outcome = {
        "solved": bool(verdict and verdict.solved),
        "seconds": round(seconds, 2),
        "env_steps": model.num_timesteps,
        "updates": model._n_updates,
        "updates_per_s": round(model._n_updates / seconds, 1),
        "mean": decided.mean if decided else None,
        "std": decided.std if decided else None,
        "threads": options.threads,
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
