"""The files that a run keeps a policy in: read whole, bounded and checked, or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError

from learner.weights import unpack
from replay.errors import QherdError
from replay.foreign import Unreadable, read_big_file, read_object

Arrays = dict[str, npt.NDArray[Any]]

MANIFEST_BYTES = 1 << 20
"""No manifest is bigger."""
NAMED: Mapping[str, Any] = {"file": str, "sha256": str}
"""What best.json has of the policy's own file."""
HELD: Mapping[str, Any] = {"holdout_mean": int | float, "holdout_std": int | float, "holdout_episodes": int}
"""What best.json has of the policy's hold-out, where one was played."""


class PolicyError(QherdError, ValueError):
    """A policy that is not there, or cannot be used; the text has the remedy."""


def read_manifest(folder: Path, needed: Mapping[str, Any] = NAMED) -> dict[str, Any] | None:
    """Returns best.json, held against the kinds that ``needed`` asks for; None where there is none. Raises PolicyError
    where it is damaged."""
    path = folder / "best.json"
    try:
        manifest = read_object(path, MANIFEST_BYTES)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise PolicyError(str(error)) from error
    for name, kinds in {**needed, **{name: HELD[name] for name in HELD if name in manifest}}.items():
        if not isinstance(manifest.get(name), kinds):
            raise PolicyError(f"{path} is damaged: {name} is {manifest.get(name)!r:.80}")
    if Path(manifest["file"]).name != manifest["file"]:
        raise PolicyError(f"{path} is damaged: it names {manifest['file']!r:.80}, which is elsewhere")
    return manifest


def read_packed(folder: Path, file: str) -> bytes:
    """Returns the packed policy that best.json names. Raises PolicyError."""
    path = folder / file
    try:
        return read_big_file(path)
    except FileNotFoundError as error:
        raise PolicyError(f"{path}, which best.json names, is missing") from error
    except Unreadable as error:
        raise PolicyError(str(error)) from error


def read_best(folder: Path, needed: Mapping[str, Any] = NAMED) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays of the best policy in a run's folder of checkpoints, and its manifest; ``needed``: see
    ``read_manifest``.

    Raises:
        PolicyError: there is none, or it is damaged.
    """
    manifest = read_manifest(folder, needed)
    if manifest is None:
        raise PolicyError(
            f"{folder.parent} has no best policy: no evaluation was finished; give the run more time (qherd resume), "
            "or smaller --eval.every-updates, or take its final policy, where that can be chosen"
        )
    path, policy = folder / manifest["file"], read_packed(folder, manifest["file"])
    if hashlib.sha256(policy).hexdigest() != manifest["sha256"]:
        raise PolicyError(
            f"{path} does not match the sha256 in best.json: it is damaged; put the run's own file back, or go on with "
            "the run, whose next better policy replaces it"
        )
    try:
        return unpack(policy)[1], manifest
    except (ValueError, LookupError, SafetensorError) as error:
        raise PolicyError(f"{path} is damaged: {error}") from error
