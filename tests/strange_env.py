"""An environment that breaks one promise of Gymnasium's, by name, from its n-th env step on."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class StrangeEnv(gym.Env[Any, Any]):
    """Episodes of 20 env steps. ``kind`` is what is wrong with it, from env step ``after`` + 1 of its life on."""

    def __init__(self, kind: str = "well", after: int = 0, book: str | None = None) -> None:
        self.kind, self.after, self.book, self.life, self.t = kind, after, book, 0, 0
        self.action_space: Any = gym.spaces.Discrete(2)
        self.observation_space: Any = gym.spaces.Box(0, 255, (4,), np.uint8)
        if kind == "state":
            self.observation_space = gym.spaces.Discrete(4)
        if kind == "float nan":
            self.observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.note("made")
        if kind == "slowly made":
            time.sleep(0.1)
        if kind == "exits as it is made":
            sys.exit()

    def note(self, word: str) -> None:
        """Write a word into the book, where there is one."""
        if self.book is not None:
            with Path(self.book).open("a") as book:
                book.write(f"{word}\n")

    @property
    def wrong(self) -> bool:
        """Whether it breaks its promise now."""
        return self.life > self.after

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        if self.kind == "reset hangs":
            self.note("hangs")
            time.sleep(1000)
        if self.kind == "prints":
            print("a line that the environment prints", flush=True)
            os.write(1, b"and one past Python\n")
        if self.kind == "seeds numpy's old generator" and seed is not None:
            np.random.seed(seed)  # noqa: NPY002
        return (self.observe(), {}) if self.kind != "reset returns no info" else self.observe()

    def observe(self) -> Any:
        """The observation, wrong in the way of ``kind``."""
        obs = np.full((4,), self.t, np.uint8)
        if self.kind == "state":
            return np.int64(4 if self.wrong else self.t % 4)
        if self.kind == "float nan":
            return np.full((4,), np.nan if self.wrong else self.t / 20, np.float32)
        if not self.wrong:
            return obs
        given = {
            "row": obs[None],
            "ragged": [[1], [1, 2]],
            "words": np.array(list("abcd")),
            "fractions": obs + 0.5,
            "negative": obs.astype(np.int64) - 21,
            "none": None,
            "int64": obs.astype(np.int64),
            "float64": obs.astype(np.float64),
            "list": obs.tolist(),
            "bool": obs % 2 == 1,
        }
        return given.get(self.kind, obs)

    def step(self, action: Any) -> Any:
        self.t, self.life = self.t + 1, self.life + 1
        infos: Any = {}
        reward: Any = 1.0
        over: Any = self.t >= 20
        if self.wrong:
            self.end()
            reward = {"no reward": None, "reward array": np.ones(1), "reward nan": np.nan}.get(self.kind, reward)
            over = "yes" if self.kind == "flag" else over
            infos = None if self.kind == "infos" else infos
        if self.kind == "masks":
            infos = {"action_mask": np.ones(2, np.int8)}
        stepped = (self.observe(), reward, over, False, infos)
        return stepped[:4] if self.kind == "four values" and self.wrong else stepped

    def end(self) -> None:
        """End or hold up the process, where ``kind`` has it so."""
        if self.kind == "exits":
            sys.exit("the window was closed")
        if self.kind == "interrupts":
            raise KeyboardInterrupt
        if self.kind == "ends its process":
            os._exit(3)
        if self.kind == "hangs":
            self.note("hangs")
            time.sleep(1000)
        if self.kind == "raises":
            raise RuntimeError("the bridge is down")

    def close(self) -> None:
        self.note("closed")
        if self.kind == "close raises":
            raise RuntimeError("no such window")
        if self.kind == "close exits":
            sys.exit()
        while self.kind == "close hangs":
            with contextlib.suppress(Exception):
                time.sleep(1000)


gym.register("Strange-v0", entry_point=f"{__name__}:StrangeEnv", max_episode_steps=50)
