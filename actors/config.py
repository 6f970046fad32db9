"""The actors' configuration. Field docs are the command line's help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from replay.kept import Kept, KeptInline
from replay.options import Options

ATARI = "ALE/"
"""What the ids of Atari's games begin with."""


class AtariOptions(Options):
    """What ``env.kwargs`` may have for one of Atari's games, by ale-py's own names. The defaults are those that
    ``ALE/*-v5`` is registered with, and beyond them nothing: no no-ops, since sticky actions are there for that."""

    repeat_action_probability: float = Field(0.25, ge=0, le=1)
    """Sticky actions: the probability that a frame repeats the action of the frame before."""
    frameskip: int = Field(4, ge=1)
    """Frames of one env step."""
    full_action_space: bool = False
    """All 18 actions of the console, not only those that the game knows."""
    noop_max: int = Field(0, ge=0)
    """An episode begins with up to so many frames less one without an action."""
    use_fire_reset: bool = False
    """An episode begins with the fire button."""
    episodic_life: bool = False
    """A life lost ends the episode, in training only."""
    max_num_frames_per_episode: int = Field(108_000, ge=1)
    """Frames after which an episode is truncated."""


class EnvConfig(Options):
    """The environment."""

    id: Kept[str] = "LunarLander-v3"
    """A registered Gymnasium environment, or module:EnvId, whose module every worker imports first."""
    path: Path | None = None
    """A folder to find that module in."""
    kwargs: Kept[dict[str, Any]] = Field(default_factory=dict)
    """Arguments of the environment, as YAML: '{gravity: -9, enable_wind: true}'. In a text {slot}, {lane} and {index}
    are filled in, and '{port: "{index+5000}"}' gives every environment of the run a port of its own."""
    frame_stack: Kept[int] = Field(1, ge=1, le=64)
    """Newest observations that the network sees together, as gymnasium's FrameStackObservation makes them. Each is
    sent and stored once; so it is too where the environment brings that wrapper itself."""
    action_mask: Kept[Literal["auto", "obey", "ignore"]] = "auto"
    """What the action_mask in the environment's infos is for: obey it (take and value only the actions that it allows)
    or ignore it. auto obeys it where the infos of the first reset have one."""
    max_episode_steps: Kept[int | None] = Field(None, ge=1)
    """Env steps after which a training episode is truncated; the evaluation keeps the environment's own limit."""

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, values: Any) -> Any:
        """Adds the arguments that an Atari game has by default: scores compare only where all of them are known."""
        if isinstance(values, dict) and str(values.get("id")).startswith(ATARI):
            given = values.get("kwargs", {})
            if isinstance(given, dict):
                return {**values, "kwargs": AtariOptions().model_dump() | given}
        return values


class ActorConfig(Options):
    """Actors: processes that step environments."""

    count: KeptInline[int] = Field(2, ge=0)
    """Actors; 0 in the mode inline with replay.dataset: it learns from the dataset alone, until a budget is over."""
    lanes: KeptInline[int] = Field(16, ge=1)
    """Environments of each actor, stepped together."""
    chunk_steps: int = Field(16, ge=1)
    """Time steps of a chunk, which has up to this times lanes rows."""
    flush_s: float = Field(1.0, gt=0)
    """Seconds after which a chunk is sent though it is not full (slow environments)."""
    fetch_every_s: float = Field(1.0, ge=0)
    """Seconds between two fetches of new weights, at the least."""
    epsilon: float = Field(0.4, ge=0, le=1)
    """Base of the epsilon ladder over the lanes: the exploration rate of the first lane."""
    epsilon_alpha: float = Field(7.0, ge=0, allow_inf_nan=False)
    """How steep the ladder is: the last lane explores with epsilon^(1 + alpha)."""
    epsilon_anneal_env_steps: int = Field(20_000, ge=0)
    """Env steps of the run over which every lane goes from random to its place on the ladder."""
    restarts: int = Field(5, ge=0)
    """Restarts that one actor may need within ten minutes before the run fails. As many times the environment in one
    lane may raise and be made anew before its actor gives up."""
    step_timeout_s: float = Field(60.0, gt=0)
    """Seconds that one env step of all lanes of an actor may take. An actor that does not answer for longer than that,
    and than its other work may take, is killed and restarted. Raise it for an environment whose steps take longer."""
    silence_s: float = Field(120.0, gt=0)
    """Seconds without an env step of any actor, though they have credit, after which the run fails. Raise it for an
    environment whose steps take longer."""
    cpus: float = Field(0.0, ge=0)
    """CPUs that each actor asks Ray for. With 0 a node takes any number of them; they are spread over the nodes."""
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Custom resources of Ray that each actor asks for, as YAML: '{simulator: 1}' keeps the actors on nodes that were
    started with ray start --resources='{"simulator": 8}', eight on each."""


class EvalConfig(Options):
    """The greedy evaluator, and when a policy counts as having solved the environment."""

    screen_episodes: int = Field(20, ge=1)
    """Greedy episodes that screen a candidate."""
    confirm_episodes: int = Field(100, ge=2)
    """Further greedy episodes, with unused seeds, that decide on the first candidate that passed the screen. Later
    confirmations play more, since each may err less (docs/data-path.md)."""
    holdout_episodes: int = Field(50, ge=1)
    """Greedy episodes of the best policy at the run's end, reported whatever they show; as many as 8 s allow."""
    threshold: float | None = None
    """Return that the lower bound of the confirmed mean has to reach. None: the run does not end by it."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Probability that a run declares a policy solved whose true mean is below the threshold, all its confirmations
    together."""
    max_episode_steps: int = Field(27_000, ge=1)
    """Env steps after which an evaluation episode ends, in environments without a limit of their own."""
    every_updates: int = Field(2_000, ge=1)
    """Updates between two screens in the inline mode, whose cadences are never in seconds."""
    cpu_share: float = Field(0.1, gt=0, le=1)
    """Share of one core that screens and confirmations may take in the other modes, over the run; the newest
    confirmation may be taken in advance."""
    timeout_s: float = Field(1_800.0, gt=0)
    """Seconds that one evaluation may take, beyond which the evaluator counts as hanging and is restarted (not in the
    inline mode)."""
