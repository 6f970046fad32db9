"""The formats that a policy is exported in, and the comparison that each has to pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from deploy.config.errors import RunFailedError
from deploy.export import numpy_format, onnx_format, torch_format
from deploy.export.exported import Array, Exported
from deploy.export.observed import Observed
from learner.networks.portable import actions_of, allowed

TOLERANCE = 1e-4
"""Greatest difference of a Q value from the learner's network; of values above 1 relative to the greatest."""


class Format(Protocol):
    """How a policy is written, and read back by the runtime of the format."""

    FILES: tuple[str, ...]

    def check(self, exported: Exported | None = None) -> None:
        """Raises ConfigError where the format cannot be written, or not of this policy."""

    def write(self, folder: Path, exported: Exported, observed: Observed) -> None:
        """Writes the files into a folder."""

    def values(self, folder: Path, exported: Exported, observed: Observed) -> tuple[Array, Array]:
        """Returns what the written files make of the observations: Q values <float32>[N, A] and the environment's
        actions."""

    def use(self, masked: bool, state: Sequence[str] = ()) -> str:
        """Returns how a program uses it, as Markdown; ``masked``: with action masks; ``state``: the names of its
        recurrent state's arrays."""


FORMATS: Mapping[str, Format] = {"onnx": onnx_format, "torch": torch_format, "numpy": numpy_format}


def compare(exported: Exported, observed: Observed, q: Array, actions: Array) -> float:
    """Returns the greatest difference between exported Q values and the learner's network.

    Raises:
        RunFailedError: it is above TOLERANCE, or an action is not the best one by the exported values.
    """
    expected = exported.q(observed.given, observed.state)
    difference = float(np.abs(q - expected).max()) if q.shape == expected.shape else float("inf")
    bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= bound:
        raise RunFailedError(
            f"the exported policy differs from the learner's network by {difference:.3g} in a Q value, and at most "
            f"{bound:.3g} is allowed, over {len(q):,} observations; nothing is written: try another --format"
        )
    masks = np.ones(q.shape, np.uint8) if observed.masks is None else observed.masks
    best = actions_of(exported.about["actions"])(allowed(q, masks).argmax(1))
    if not np.array_equal(actions, best):
        raise RunFailedError("the exported policy's actions are not those of its greatest values; nothing is written")
    return difference
