"""What a run's result depends on beside its options: qherd's revision, versions, and the arithmetic of the machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.config.models import RunConfig
from deploy.process import arithmetic
from deploy.process.host import usable_cores


def provenance(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Returns versions and arithmetic by these two names, as config.yaml has them."""
    return {"versions": _versions(), "arithmetic": arithmetic.describe(config.mode)}


def machine(config: RunConfig) -> dict[str, float]:
    """Returns the cores that the run may use: its seconds depend on them, and its numbers do not. Empty for the mode
    cluster, whose processes are elsewhere."""
    return {} if config.mode == "cluster" else {"cores": usable_cores()}


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "gymnasium", "ray", "redis")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def git_revision() -> str | None:
    """Returns the revision of qherd's own checkout; None where it runs from none."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None
