"""Settings that others have published for Stable-Baselines3's DQN and sb3-contrib's QR-DQN, as they have them.

RL-Zoo, https://github.com/DLR-RM/rl-baselines3-zoo: ``hyperparams/dqn.yml`` at commit ce95481b041f and
``hyperparams/qrdqn.yml`` at c8cff9f143f2; LunarLander's are those of v2. For MinAtar RL-Zoo has none: these are of
Revisiting Rainbow, https://github.com/JohanSamir/revisiting_rainbow, ``Configs/dqn_breakout.gin`` and
``quantile_breakout.gin``, the same for all games; the loss is that of either library.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """``env_steps``: the whole training that ``exploration_fraction`` is a share of; ``settings``: arguments of the
    algorithm; ``source``: where they stand."""

    env_steps: int
    settings: dict[str, Any]
    source: str

    def of(self, env_steps: int) -> dict[str, Any]:
        """Returns the arguments for a training of other length, whose exploration ends after as many env steps."""
        fraction = self.settings["exploration_fraction"] * self.env_steps / env_steps
        return {**self.settings, "exploration_fraction": min(1.0, fraction)}


_CARTPOLE = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
}
_MOUNTAINCAR = {
    "learning_rate": 4e-3,
    "batch_size": 128,
    "buffer_size": 10_000,
    "learning_starts": 1000,
    "gamma": 0.98,
    "target_update_interval": 600,
    "train_freq": 16,
    "gradient_steps": 8,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.07,
}
_OFTEN = {
    "learning_rate": 6.3e-4,
    "batch_size": 128,
    "buffer_size": 50_000,
    "learning_starts": 0,
    "gamma": 0.99,
    "target_update_interval": 250,
    "train_freq": 4,
    "gradient_steps": -1,
    "exploration_fraction": 0.12,
    "exploration_final_eps": 0.1,
}
_LUNARLANDER_QR = {
    "learning_rate": "lin_1.5e-3",
    "batch_size": 128,
    "buffer_size": 100_000,
    "learning_starts": 10_000,
    "gamma": 0.995,
    "target_update_interval": 1,
    "train_freq": 256,
    "gradient_steps": -1,
    "exploration_fraction": 0.24,
    "exploration_final_eps": 0.18,
}
_MINATAR = {
    "batch_size": 32,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "gamma": 0.99,
    "target_update_interval": 1000,
    "train_freq": 4,
    "gradient_steps": 1,
    "exploration_fraction": 0.25,
    "exploration_final_eps": 0.01,
}


def _zoo(algorithm: str, env_steps: int, settings: dict[str, Any], **network: Any) -> Published:
    network = {"net_arch": [256, 256], **network}
    return Published(env_steps, {**settings, "policy_kwargs": network}, f"RL-Zoo's hyperparams/{algorithm}.yml")


def _minatar(learning_rate: float, n_steps: int, **network: Any) -> Published:
    network = {"net_arch": [], "features_extractor_class": "minatar", "optimizer_kwargs": {"eps": 3.125e-4}, **network}
    settings = {**_MINATAR, "learning_rate": learning_rate, "n_steps": n_steps, "policy_kwargs": network}
    return Published(1_000_000, settings, "Revisiting Rainbow's Configs")


PUBLISHED: dict[tuple[str, str], Published] = {
    ("dqn", "CartPole-v1"): _zoo("dqn", 50_000, _CARTPOLE),
    ("dqn", "Acrobot-v1"): _zoo("dqn", 100_000, _OFTEN),
    ("dqn", "MountainCar-v0"): _zoo("dqn", 120_000, _MOUNTAINCAR),
    ("dqn", "LunarLander-v3"): _zoo("dqn", 100_000, _OFTEN),
    ("dqn", "MinAtar"): _minatar(2.5e-4, n_steps=1),
    ("qrdqn", "CartPole-v1"): _zoo("qrdqn", 50_000, _CARTPOLE, n_quantiles=10),
    ("qrdqn", "Acrobot-v1"): _zoo("qrdqn", 100_000, _OFTEN, n_quantiles=25),
    ("qrdqn", "MountainCar-v0"): _zoo("qrdqn", 120_000, _MOUNTAINCAR, n_quantiles=25),
    ("qrdqn", "LunarLander-v3"): _zoo("qrdqn", 100_000, _LUNARLANDER_QR, n_quantiles=170),
    ("qrdqn", "MinAtar"): _minatar(1e-4, n_steps=3, n_quantiles=51),
}


def published(algorithm: str, env: str) -> Published:
    """Returns the settings for an environment, by its name or its suite's.

    Raises:
        KeyError: none are known.
    """
    key = (algorithm, env)
    return PUBLISHED[key if key in PUBLISHED else (algorithm, env.partition("/")[0])]
