"""Atari's games, as ale-py's C++ vector environment plays them: one as an environment, or several as lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from pydantic import ValidationError

from actors.config import AtariOptions
from actors.errors import EnvError

Array = npt.NDArray[np.uint8]

SIZE = 84
"""Height and width of an observation."""
SCREEN: dict[str, Any] = {"img_height": 210, "img_width": 160}
"""Those of a picture in colour."""
FRAMES_PER_S = 60
"""Of the console."""


def atari_spec(env_id: str) -> EnvSpec:
    """Returns the registered game ``ALE/...`` with ``AtariGame`` in place of ale-py's own class, whose observations
    are 210 x 160 x 3.

    Raises:
        gymnasium.error.Error: there is no such game.
    """
    return replace(gym.spec(env_id), entry_point=f"{__name__}:AtariGame", vector_entry_point=None)


def atari_arguments(kwargs: Mapping[str, Any], max_episode_steps: int | None, *, training: bool) -> dict[str, Any]:
    """Returns the options to make a game with: in training the limit of env steps has become one of frames, and no life
    lost ends the episode of an evaluation.

    Raises:
        EnvError: an option is unknown, or out of its bounds.
    """
    options = _checked(kwargs)
    if not training:
        return options.model_dump() | {"episodic_life": False}
    frames = options.max_num_frames_per_episode
    limit = frames if max_episode_steps is None else max_episode_steps * options.frameskip
    return options.model_dump() | {"max_num_frames_per_episode": min(frames, limit)}


def _checked(options: Mapping[str, Any]) -> AtariOptions:
    """Returns the options with their types. Raises EnvError."""
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


class AtariGame(gym.Env[Array, np.int64]):
    """One game: gray observations <uint8>[84, 84], each the maximum of its last two frames; rewards are the game's own.

    Gymnasium's contract holds: an episode begins with ``reset`` and with nothing else. With ``render_mode="rgb_array"``
    a second game in colour is played along: with the same seed and actions it is the same.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, game: str, *, games: int = 1, render_mode: str | None = None, **options: Any) -> None:
        """``options``: see ``AtariOptions``. Several ``games`` are ``AtariLanes``' to step."""
        from ale_py.vector_env import AtariVectorEnv

        # one thread: an actor has one core
        values = {"stack_num": 1, "num_threads": 1, "reward_clipping": False, **options}
        self.games: Any = AtariVectorEnv(game, games, img_height=SIZE, img_width=SIZE, **values)
        self._shown: Any = AtariVectorEnv(game, 1, grayscale=False, **SCREEN, **values) if render_mode else None
        self._picture = np.zeros((*SCREEN.values(), 3), np.uint8)
        self._seeded = False
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": FRAMES_PER_S / values["frameskip"]}
        self.observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE), np.uint8)
        self.action_space = gym.spaces.Discrete(len(self.games.ale.get_action_set()))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(1 << 31))  # the same for the game and its picture
        self._seeded = True
        seeds = None if seed is None else np.array([seed])
        if self._shown is not None:
            self._picture = self._shown.reset(seed=seeds)[0][0, 0]
        obs, infos = self.games.reset(seed=seeds)
        return obs[0, 0], _first(infos)

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Plays ``frameskip`` frames with one action."""
        actions = np.array([action], np.int64)
        if self._shown is not None:
            self._picture = self._shown.step(actions)[0][0, 0]
        obs, reward, terminated, truncated, infos = self.games.step(actions)
        return obs[0, 0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> Any:
        """Returns the screen in colour, <uint8>[210, 160, 3]."""
        return self._picture

    def close(self) -> None:
        """Ends the emulators and their threads."""
        self.games = self._shown = None


class AtariLanes(VectorEnv[Array, npt.NDArray[np.int64], Any]):
    """The lanes of an actor as one vector environment: a loop over as many environments leaves the same, and takes a
    third longer. NEXT_STEP autoreset, and frames stacked as gymnasium's wrapper stacks them.

    ``envs`` has the one environment that all games were made as: spaces, messages and the end go by it.
    """

    def __init__(self, env: gym.Env[Any, Any], frame_stack: int) -> None:
        """``env``: what ``make_env`` made of an ``AtariGame``."""
        assert isinstance(env.unwrapped, AtariGame)
        self.envs, self._game = [env], env.unwrapped
        self.num_envs = self._game.games.num_envs
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self._frames = np.zeros((self.num_envs, frame_stack, SIZE, SIZE), np.uint8)
        self._over = np.zeros(self.num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begins an episode in each lane; ``seed`` has one for each."""
        assert isinstance(seed, Sequence)
        obs, _ = self._game.games.reset(seed=np.array([-1 if each is None else each for each in seed]))
        self._frames[:], self._over = obs, np.zeros(self.num_envs, np.bool_)
        return self._observations(), {}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Array, npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Steps each lane, or resets it where its episode is over."""
        obs, rewards, terminated, truncated, _ = self._game.games.step(actions)
        self._frames[:, :-1] = self._frames[:, 1:]
        self._frames[:, -1:] = obs
        self._frames[self._over] = obs[self._over]  # an episode's first frame fills the stack
        self._over = terminated | truncated
        return self._observations(), rewards, terminated, truncated, {}

    def _observations(self) -> Array:
        return self._frames if self._frames.shape[1] > 1 else self._frames[:, 0]

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the emulators."""
        del kwargs
        self.envs[0].close()


def _first(infos: dict[str, Any]) -> dict[str, Any]:
    """Returns the infos of the one game."""
    return {"lives": int(infos["lives"][0]), "episode_frame_number": int(infos["episode_frame_number"][0])}
