"""numpy: policy.npz, and policy.py that acts with it, on observations as the environment itself returns them."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config.errors import ConfigError
from deploy.export.exported import Array, Exported
from deploy.export.observed import Observed
from learner.networks import portable
from learner.networks.portable import REWARD
from learner.networks.program import program_of

FILES: tuple[str, ...] = ("policy.npz", "policy.py")


def check(exported: Exported | None = None) -> None:
    """Raises ConfigError for a network with a part of the user's own."""
    if exported is not None and program_of(exported.description.spec, exported.description.schema) is None:
        spec = exported.description.spec
        raise ConfigError(
            f"the encoder {spec.config.encoder} or the head {spec.head} is your own, and --format numpy computes only "
            "qherd's: choose --format onnx or torch"
        )


def write(folder: Path, exported: Exported, observed: Observed) -> None:
    """Writes the weights with what they are about, and the program that acts with them."""
    del observed
    program = program_of(exported.description.spec, exported.description.schema)
    about = np.frombuffer(json.dumps({**exported.about, "program": program}).encode(), np.uint8)
    arrays: dict[str, Any] = {**exported.arrays, portable.ABOUT: about}
    np.savez(folder / portable.FILE, **arrays)
    shutil.copyfile(portable.__file__, folder / FILES[1])


def values(folder: Path, exported: Exported, observed: Observed) -> tuple[Array, Array]:
    """Returns what policy.py makes of the environment's own observations, one after another: Q values
    <float32>[N, A] and actions."""
    del exported
    policy = runpy.run_path(str(folder / FILES[1]))["load"](folder)
    found = []
    masks = [None] * len(observed.raw) if observed.masks is None else observed.masks
    rewards = observed.state[REWARD][:, 0] if REWARD in observed.state else [None] * len(observed.raw)
    for obs, mask, begins, reward in zip(observed.raw, masks, observed.begins, rewards, strict=True):
        if begins:
            policy.reset()
        found.append(policy.act(obs, mask, reward))
    actions, q = (np.stack(each) for each in zip(*found, strict=True))
    return q, actions


def use(masked: bool, state: Sequence[str] = ()) -> str:
    """Returns how a program uses it, as Markdown."""
    given = ', info["action_mask"]' if masked else ""
    given += ", reward=reward" if REWARD in state else ""
    reset = "trained.reset()  # where an episode begins\n" if state else ""
    return f"""```python
import policy  # the file beside this one; it needs numpy and nothing else

trained = policy.load()
{reset}action, q = trained.act(obs{given})  # obs: as env.reset() and env.step() return it
```"""
