"""Which code a process runs: every Ray process compares its own with the driver's before it does anything.

Ray puts the driver's folders first on the workers' ``sys.path``, nodes may have another version installed, and
PYTHONPATH may name other folders there: a stranger's ``replay`` or ``actors`` package would be used in silence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from replay.errors import QherdError

PACKAGES = ("actors", "deploy", "learner", "replay")


class WrongCodeError(QherdError, RuntimeError):
    """This process has imported other code than the driver."""


@dataclass(frozen=True)
class Identity:
    """Where each of the four packages lies in the driver, and a digest of its sources."""

    packages: dict[str, tuple[str, str]]

    @classmethod
    def here(cls) -> Identity:
        """This process's own."""
        return cls({name: _package(name) for name in PACKAGES})

    def check(self) -> None:
        """Raises WrongCodeError, with both paths, where this process has other sources than those of this identity."""
        for name, (path, digest) in self.packages.items():
            own_path, own_digest = _package(name)
            if own_digest != digest:
                raise WrongCodeError(
                    f"package {name!r} is {own_path} in this worker, and differs from the driver's {path}: install the "
                    "same qherd on every node, and keep folders of that name out of PYTHONPATH"
                )


def _package(name: str) -> tuple[str, str]:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return "missing", ""
    folder = Path(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):  # modules in subfolders, too
        digest.update(str(source.relative_to(folder)).encode())
        digest.update(source.read_bytes())
    return str(folder), digest.hexdigest()
