"""What this machine has, as far as a run's plan and its checks depend on it."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> float:
    """Cores that this process may use: by its affinity, and where there is one by its control group's quota."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def existing_folder(folder: Path) -> Path:
    """Returns the folder itself, or the nearest one above that exists: where it would be made."""
    folder = folder.absolute()
    return next(found for found in (folder, *folder.parents) if found.is_dir())


def host_and_port(host: str, port: int) -> str:
    """As a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
