"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploy.process.arithmetic import cpu

PACKAGES = ("torch", "numpy", "gymnasium", "ray", "redis")


def describe() -> dict[str, Any]:
    """The machine, the versions and the load at this moment."""
    return {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "qherd": _revision(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def show(machine: dict[str, Any]) -> str:
    """In two lines."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *PACKAGES))
    loads = " ".join(map(str, machine["load_average"]))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"load average {loads}\n{versions}, qherd at commit `{machine['qherd']}`"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        shown = ""
    return shown or _version("qherd")
