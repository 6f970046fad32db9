"""How long ``qherd report`` takes for a study of 200 runs of 1 M env steps, and what memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.result import Result
from benchmarks.synthetic_runs import OTHERS, write_study

TARGET_S, TARGET_MB = 20.0, 1000.0
ROWS = 420
"""A row a second: MinAtar's runs of 1 M env steps take some seven minutes."""
GAMES = ("Breakout", "Asterix", "Freeway", "Seaquest", "SpaceInvaders")


def measure(quick: bool) -> list[Result]:
    """The whole command, in a process of its own, on the page's way and on Markdown's."""
    envs = [f"MinAtar/{game}-v1" for game in (GAMES[:1] if quick else GAMES)]
    with tempfile.TemporaryDirectory(prefix="qherd-report-") as folder:
        study = write_study(
            Path(folder) / "synthetic",
            envs,
            2 if quick else 20,
            rows=10 if quick else ROWS,
            env_steps=1_000_000,
            others=OTHERS,
        )
        runs = len(list((study / "runs").iterdir()))
        read_mb = sum(path.stat().st_size for path in study.rglob("*") if path.is_file()) / 1e6
        found = [_report(study, Path(folder)) for _ in range(1 if quick else 3)]
        size_mb = (Path(folder) / "page.html").stat().st_size / 1e6
    what = f"report of {runs} runs of 1 M env steps"
    notes = (f"{read_mb:,.0f} MB are read, the page has {size_mb:.1f} MB",)
    return [
        Result(what, "s", tuple(each[0] for each in found), target=TARGET_S, at_most=True, notes=notes),
        Result(f"memory of the {what}", "MB", tuple(each[1] for each in found), target=TARGET_MB, at_most=True),
    ]


def _report(study: Path, folder: Path) -> tuple[float, float]:
    """Seconds and greatest resident megabytes of the command."""
    command = [str(Path(sys.executable).with_name("qherd")), "report", str(study), "--out", str(folder / "page.html")]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} has failed with exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_maxrss / 1000
