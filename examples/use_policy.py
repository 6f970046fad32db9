"""Uses what a run has learned in a plain loop of Gymnasium: ``python examples/use_policy.py runs/NAME``."""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym

import learner


def main() -> None:
    """Plays some episodes and prints what each returned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--final", action="store_true", help="the newest policy instead of the best")
    parser.add_argument("--episodes", type=int, default=5)
    options = parser.parse_args()

    policy = learner.load_policy(options.run, "final" if options.final else "best")
    env = gym.make(policy.about["env"]["id"], **policy.about["env"]["kwargs"])
    for seed in range(options.episodes):
        obs, info = env.reset(seed=seed)
        policy.reset()  # where an episode begins, for policies that stack frames
        total, over = 0.0, False
        while not over:
            action, _ = policy.act(obs, info["action_mask"] if policy.masked else None)
            obs, reward, terminated, truncated, info = env.step(action)
            total, over = total + float(reward), terminated or truncated
        print(f"seed {seed}: return {total:g}")
    env.close()


if __name__ == "__main__":
    main()
