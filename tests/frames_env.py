"""An environment of CartPole's spaces whose pictures are unusual, by ``kind``; it writes what it does into a book."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class FramesEnv(gym.Env[Any, Any]):
    """Episodes of 20 env steps (``kind`` "endless": none ends), each picture a shade brighter than the last."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, kind: str = "odd", book: str = os.devnull, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.kind, self.book, self.render_mode, self.t, self.life = kind, book, render_mode, 0, 0
        self.canvas = np.zeros((64, 64, 3), np.uint8)
        self.note("made")

    def note(self, word: str) -> None:
        """Write a word into the book."""
        with Path(self.book).open("a") as book:
            book.write(f"{word}\n")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        if self.kind == "prints":
            print("a line that the environment prints")
            os.write(1, b"and one past Python\n")
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t, self.life = self.t + 1, self.life + 1
        if self.kind == "raises once" and self.life == 13 and "raised" not in Path(self.book).read_text():
            self.note("raised")
            raise OSError("the bridge is down")
        if self.kind == "exits" and self.life == 13:
            sys.exit(0)
        if self.kind == "signalled" and self.life == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        over = self.t >= 20 and self.kind != "endless"
        return np.full(4, min(1, self.t / 20), np.float32), float(action) + 1, over, False, {}

    def render(self) -> Any:
        value = 10 * (self.t % 20)
        if self.kind == "one":
            self.canvas[:] = value  # one array, given out again and again
            return self.canvas
        if self.kind == "changing":
            return np.full((64 + 2 * self.t, 64, 3), value, np.uint8)
        if self.kind == "none":
            return None
        if self.kind == "fails":
            raise RuntimeError("no display")
        return np.full((63, 65, 3), value, np.uint8)

    def close(self) -> None:
        self.note("closed")


class NoRenderEnv(FramesEnv):
    """One that knows of no render mode."""

    def __init__(self, kind: str = "", book: str = os.devnull) -> None:
        super().__init__(kind, book)


gym.register("Frames-v0", entry_point=f"{__name__}:FramesEnv")
gym.register("NoRender-v0", entry_point=f"{__name__}:NoRenderEnv")
