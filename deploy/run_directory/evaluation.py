"""A run's evaluations: what ``qherd eval --json`` printed of its final and its best policy, kept in its directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from actors.seeds import PLAYBACK
from deploy.config.errors import RunDirError
from deploy.run_directory.checked import Checked, read_checked
from deploy.run_directory.directory import RunDirectory

MAX_EPISODES = 100_000
"""More are no evaluation, and their figures would fill the memory before the first is played."""
MAX_RETURN = 1e100
"""Numbers beyond it are damage: their squares would have no sum, and no axis holds them."""


class Evaluation(Checked):
    """Episodes of one policy, on seeds that its run has not played. It does not contradict itself."""

    run: str
    env: str
    policy: Literal["best", "final"]
    selected: bool
    updates: int = Field(ge=0)
    episodes: int
    seed: int = Field(ge=PLAYBACK)
    epsilon: float = Field(ge=0, le=1)
    sticky: float | None = Field(ge=0, le=1)
    max_episode_steps: int | None
    mean: float
    returns: tuple[Annotated[float, Field(ge=-MAX_RETURN, le=MAX_RETURN)], ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.selected is not (self.policy == "best"):
            raise ValueError(f"its policy is the {self.policy} one, and was {'' if self.selected else 'not '}selected")
        if self.episodes != len(self.returns):
            raise ValueError(f"episodes is {self.episodes}, and it has {len(self.returns)} returns")
        if not math.isclose(self.mean, played := float(np.mean(self.returns)), rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(f"mean is {self.mean:g}, and that of its returns {played:g}")
        return self

    @property
    def stderr(self) -> float | None:
        """The standard error of the mean; None for one episode."""
        count = len(self.returns)
        return float(np.std(self.returns, ddof=1) / count**0.5) if count > 1 else None


def evaluation_file(path: Path, which: str) -> Path:
    """Returns where the evaluation of a run's ``which`` policy is, in the run's directory ``path``."""
    return path / "evaluations" / f"{which}.json"


def last_updates(updates: Any, row: Mapping[str, float]) -> int | None:
    """Returns the updates of the policy that a run ended with, by those in its summary and its newest row of metrics;
    None where its checkpoint is from before, since the last ones were skipped, or where the run went on since."""
    known = isinstance(updates, int) and not row.get("skipped_in_a_row") and row.get("updates", 0) <= updates
    return updates if known else None


def read_evaluation(directory: RunDirectory, which: str, env: str, updates: int | None) -> Evaluation | None:
    """Reads what a run's ``which`` policy, ``best`` or ``final``, has played; None where that is nothing, or was before
    the run was resumed, with a policy of other ``updates``. ``env``: the run's environment.

    Raises:
        RunDirError: it is damaged, or of another run.
    """
    file = evaluation_file(directory.given_path, which)
    found = read_checked(file, Evaluation)
    if found is None:
        return None
    for name, here in {"policy": which, "run": directory.run, "env": env}.items():
        if (there := getattr(found, name)) != here:
            raise RunDirError(f"{file} is of another run: {name} is {there!r:.80} in it, and {here!r} here; remove it")
    return found if updates in (None, found.updates) else None
