"""Atari's games, as ale-py's C++ vector environment plays them, each as an environment of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from pydantic import ValidationError

from actors.config import AtariOptions
from actors.errors import EnvError

Array = npt.NDArray[np.uint8]

SIZE = 84
"""Height and width of an observation."""
SCREEN = {"img_height": 210, "img_width": 160}
"""Those of a picture in colour."""
FRAMES_PER_S = 60
"""Of the console."""


def atari_spec(env_id: str) -> EnvSpec:
    """Returns the registered game ``ALE/...`` with ``AtariGame`` in place of ale-py's own class, whose observations
    are 210 x 160 x 3.

    Raises:
        gymnasium.error.Error: there is no such game.
    """
    return replace(gym.spec(env_id), entry_point=AtariGame, vector_entry_point=None)


class AtariGame(gym.Env[Array, np.int64]):
    """One game: gray observations <uint8>[84, 84], each the maximum of its last two frames; rewards are the game's own.

    Gymnasium's contract holds: an episode begins with ``reset`` and with nothing else. With ``render_mode="rgb_array"``
    a second game in colour is played along: with the same seed and actions it is the same.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, game: str, *, render_mode: str | None = None, **options: Any) -> None:
        """``options``: see ``AtariOptions``.

        Raises:
            EnvError: an option is unknown, or its value out of its bounds.
        """
        from ale_py.vector_env import AtariVectorEnv

        chosen = _checked(options)
        values = {"stack_num": 1, "num_threads": 1, "reward_clipping": False, **chosen.model_dump()}
        self._game: Any = AtariVectorEnv(game, 1, img_height=SIZE, img_width=SIZE, **values)
        self._shown: Any = AtariVectorEnv(game, 1, grayscale=False, **SCREEN, **values) if render_mode else None
        self._picture = np.zeros((*SCREEN.values(), 3), np.uint8)
        self._seeded = False
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": FRAMES_PER_S / chosen.frameskip}
        self.observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE), np.uint8)
        self.action_space = gym.spaces.Discrete(len(self._game.ale.get_action_set()))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(1 << 31))  # the same for the game and its picture
        self._seeded = True
        seeds = None if seed is None else np.array([seed])
        if self._shown is not None:
            self._picture = self._shown.reset(seed=seeds)[0][0, 0]
        obs, infos = self._game.reset(seed=seeds)
        return obs[0, 0], _first(infos)

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Plays ``frameskip`` frames with one action."""
        actions = np.array([action], np.int64)
        if self._shown is not None:
            self._picture = self._shown.step(actions)[0][0, 0]
        obs, reward, terminated, truncated, infos = self._game.step(actions)
        return obs[0, 0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> Any:
        """Returns the screen in colour, <uint8>[210, 160, 3]."""
        return self._picture

    def close(self) -> None:
        """Ends the emulator and its thread."""
        self._game = self._shown = None


def _checked(options: dict[str, Any]) -> AtariOptions:
    """Returns the options with their types.

    Raises:
        EnvError: one is unknown, or out of its bounds.
    """
    try:
        return AtariOptions.model_validate(options)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = ".".join(map(str, found["loc"]))
    if found["type"] == "extra_forbidden":
        known = ", ".join(AtariOptions.model_fields)
        raise EnvError(
            f"env.kwargs: Atari's games have no argument {name!r}, only {known}; ale-py's own environment, "
            "--env.id ale_py:ALE/NAME-v5, has others"
        )
    raise EnvError(f"env.kwargs: {name}: {found['msg']}, got {found['input']!r}")


def _first(infos: dict[str, Any]) -> dict[str, Any]:
    """Returns the infos of the one game."""
    return {"lives": int(infos["lives"][0]), "episode_frame_number": int(infos["episode_frame_number"][0])}
