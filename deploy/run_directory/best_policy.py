"""A run's best policy: its weights, under a name of their own, and the manifest best.json that names them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from deploy.config.errors import RunDirError
from deploy.run_directory.files import replace_file
from learner.policy_files import NAMED, PolicyError, read_best, read_manifest, read_packed

BEST: Mapping[str, Any] = {
    **NAMED,
    "solved": bool,
    "version": int,
    "updates": int,
    "episodes": int,
    **dict.fromkeys(("mean", "std", "lower", "rank_bound"), int | float),
}
"""What best.json has at the least, and of which kinds."""


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
        with _of_a_run():
            return read_manifest(self._folder, BEST)

    def packed(self) -> bytes | None:
        """Returns the policy, packed; None where none was saved, or it is damaged."""
        try:
            return read_packed(self._folder, str((self.manifest() or {})["file"]))
        except (KeyError, RunDirError, PolicyError):
            return None

    def load(self, needed: Mapping[str, Any] = NAMED) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Returns the policy's arrays and the manifest that names them, which has what is ``needed``.

        Raises:
            RunDirError: there is none, or it is damaged.
        """
        with _of_a_run():
            return read_best(self._folder, needed)

    def _write(self, manifest: Mapping[str, Any]) -> None:
        replace_file(self._path, json.dumps(manifest, indent=2).encode())


@contextlib.contextmanager
def _of_a_run() -> Iterator[None]:
    """Has the block raise RunDirError in place of PolicyError."""
    try:
        yield
    except PolicyError as error:
        raise RunDirError(str(error)) from error
