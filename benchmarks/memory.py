"""Memory of processes over time, as the system sees it, and whether it grows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROC = Path("/proc")
MB = 1e6
ALLOWED_MB, ALLOWED_SHARE = 2.0, 0.01
"""Growth over the window that counts as none: allocators and caches still settle by that much."""


class Series(NamedTuple):
    """Megabytes <float64>[N] of one party at seconds <float64>[N] since the start."""

    name: str
    seconds: tuple[float, ...]
    megabytes: tuple[float, ...]

    def behind(self, warm_up_s: float) -> Series:
        """Without the first seconds."""
        kept = [(s, mb) for s, mb in zip(self.seconds, self.megabytes, strict=True) if s >= warm_up_s]
        return Series(self.name, tuple(s for s, _ in kept), tuple(mb for _, mb in kept))

    @property
    def slope(self) -> float:
        """Megabytes per hour, by least squares."""
        return float(np.polyfit(self.seconds, self.megabytes, 1)[0]) * 3600

    @property
    def growth(self) -> float:
        """What the slope makes of the window, in megabytes."""
        return self.slope * (self.seconds[-1] - self.seconds[0]) / 3600

    @property
    def allowed(self) -> float:
        """The greatest growth that counts as none."""
        return max(ALLOWED_MB, ALLOWED_SHARE * float(np.median(self.megabytes)))


def rss_by_role(root: int, roles: dict[str, str]) -> dict[str, float]:
    """Resident megabytes of ``root`` and all that descend from it, summed by role.

    ``roles``: by name, the pattern of the command lines; the first that matches; ``other`` where none does.
    """
    found: dict[str, float] = {}
    for pid in descendants(root):
        command = command_of(pid)
        role = next((name for name, pattern in roles.items() if re.search(pattern, command)), "other")
        found[role] = found.get(role, 0.0) + rss_mb(pid)
    return found


def rss_mb(pid: int) -> float:
    """Resident megabytes of one process; 0 of one that has ended."""
    status = _read(PROC / str(pid) / "status")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / MB if found else 0.0


def command_of(pid: int) -> str:
    """Its command line, as ``ps`` shows it."""
    return _read(PROC / str(pid) / "cmdline").replace("\0", " ").strip()


def descendants(root: int) -> Iterable[int]:
    """``root``, its children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal() and (stat := _read(folder / "stat")):
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _read(path: Path) -> str:
    """Empty where the process has ended meanwhile."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
