"""A run's best policy: its weights, under a name of their own, and the manifest best.json that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError

from deploy.config.errors import RunDirError
from deploy.run_directory.files import CONFIG_BYTES, read_big_file, replace_file
from learner.weights import unpack
from replay.foreign import Unreadable, read_object

NAMED: Mapping[str, Any] = {"file": str, "sha256": str}
"""What best.json has of the policy's own file."""
BEST: Mapping[str, Any] = {
    **NAMED,
    "solved": bool,
    "version": int,
    "updates": int,
    "episodes": int,
    **dict.fromkeys(("mean", "std", "lower", "rank_bound"), int | float),
}
"""What best.json has at the least, and of which kinds."""
HELD: Mapping[str, Any] = {"holdout_mean": int | float, "holdout_std": int | float, "holdout_episodes": int}
"""What best.json has of the policy's hold-out, where one was played."""


class BestPolicy:
    """The best policy in a run's folder of checkpoints. A crash at any moment leaves one that can be loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "best.json"

    def save(self, policy: bytes, about: Mapping[str, Any]) -> None:
        """Keeps a packed policy as the best one: first the weights, then the manifest that names them.

        Raises:
            RunDirError: the disk refuses it; the one before stays.
        """
        digest = hashlib.sha256(policy).hexdigest()
        name = f"best-{digest[:16]}.weights"
        replace_file(self._folder / name, policy)
        self._write({**about, "file": name, "sha256": digest})
        for older in self._folder.glob("best-*.weights"):
            if older.name != name:
                older.unlink()

    def record_holdout(self, shown: Mapping[str, Any]) -> None:
        """Writes what the policy's hold-out has shown (``HELD``) beside it; the next best policy has none yet.

        Raises:
            RunDirError: the disk refuses it, or the manifest is damaged.
        """
        if (manifest := self.manifest()) is not None:
            self._write({**manifest, **shown})

    def manifest(self) -> dict[str, Any] | None:
        """Returns the manifest; None where no evaluation was finished.

        Raises:
            RunDirError: it is damaged.
        """
        return self._read(BEST)

    def packed(self) -> bytes | None:
        """Returns the policy, packed; None where none was saved, or it is damaged."""
        try:
            return self._weights(str((self.manifest() or {})["file"]))
        except (KeyError, RunDirError):
            return None

    def load(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Returns the policy's arrays and its manifest.

        Raises:
            RunDirError: there is none, or it is damaged.
        """
        manifest = self._read(NAMED)
        if manifest is None:
            raise RunDirError(f"{self._folder.parent} has no best policy yet: no evaluation was finished")
        path = self._folder / manifest["file"]
        policy = self._weights(manifest["file"])
        if hashlib.sha256(policy).hexdigest() != manifest["sha256"]:
            raise RunDirError(f"{path} does not match the sha256 in best.json: it is damaged")
        try:
            return unpack(policy)[1], manifest
        except (ValueError, LookupError, SafetensorError) as error:
            raise RunDirError(f"{path} is damaged: {error}") from error

    def _read(self, needed: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the manifest, held against the kinds that ``needed`` asks for; None where there is none."""
        path = self._path
        try:
            manifest = read_object(path, CONFIG_BYTES)
        except FileNotFoundError:
            return None
        except Unreadable as error:
            raise RunDirError(str(error)) from error
        for name, kinds in {**needed, **{name: HELD[name] for name in HELD if name in manifest}}.items():
            if not isinstance(manifest.get(name), kinds):
                raise RunDirError(f"{path} is damaged: {name} is {manifest.get(name)!r:.80}")
        if Path(manifest["file"]).name != manifest["file"]:
            raise RunDirError(f"{path} is damaged: it names {manifest['file']!r:.80}, which is elsewhere")
        return manifest

    def _write(self, manifest: Mapping[str, Any]) -> None:
        replace_file(self._path, json.dumps(manifest, indent=2).encode())

    def _weights(self, file: str) -> bytes:
        path = self._folder / file
        try:
            return read_big_file(path)
        except FileNotFoundError as error:
            raise RunDirError(f"{path}, which best.json names, is missing") from error
        except Unreadable as error:
            raise RunDirError(str(error)) from error
