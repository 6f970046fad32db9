"""Start time: from the command to the first figure that shows learning, and where the time before it goes."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from benchmarks.result import Result

TARGET_S = 15.0
TIMEOUT_S = 120.0
QHERD = Path(sys.executable).parent / "qherd"
PHASES = {
    "imports, options, probing the env": r"run ",
    "replay server": r"starting Ray",
    "Ray": r"starting the learner",
    "asking for the workers": r"waiting for the first experience",
}
"""What ends with the first line that matches; without such a line a phase is a part of the next one."""
LAST_PHASE = "workers start, first rows, first updates"


def measure(quick: bool) -> list[Result]:
    """``qherd train LunarLander-v3`` in a fresh process, ended as soon as metrics.jsonl shows updates.

    The file has a row per second, so the figure is up to a second above what the live table shows.
    """
    runs = [_start(index) for index in range(1 if quick else 7)]
    phases = ", ".join(f"{name} {median(run[name] for run in runs):.2f} s" for name in runs[0])
    totals = tuple(sum(run.values()) for run in runs)
    return [Result("time to the first updates shown", "s", totals, target=TARGET_S, at_most=True, notes=(phases,))]


def _start(index: int) -> dict[str, float]:
    """Seconds by phase of one start."""
    with tempfile.TemporaryDirectory(prefix="qherd-bench-") as folder:
        command = [str(QHERD), "train", "LunarLander-v3", "--run", f"start-{index}", "--runs-dir", folder]
        environment = os.environ | {"CI": "1"}
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        seen: dict[str, float] = {}
        listener = threading.Thread(target=_listen, args=(process, seen))
        listener.start()
        try:
            learnt_s = _first_updates(Path(folder) / f"start-{index}" / "metrics.jsonl", process, started)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            listener.join()
    seen[LAST_PHASE] = learnt_s
    names = [name for name in (*PHASES, LAST_PHASE) if name in seen]
    ends = [started, *(seen[name] for name in names)]
    return {name: end - begin for name, (begin, end) in zip(names, itertools.pairwise(ends), strict=True)}


def _listen(process: subprocess.Popen[str], seen: dict[str, float]) -> None:
    """Note when each phase's line came, until the output ends."""
    assert process.stdout is not None
    for line in process.stdout:
        message = re.sub(r"^ *[\d.]+ s  ", "", line)
        for name, pattern in PHASES.items():
            if re.match(pattern, message):
                seen.setdefault(name, time.perf_counter())


def _first_updates(metrics: Path, process: subprocess.Popen[str], started: float) -> float:
    """When the run first showed updates."""
    while time.perf_counter() - started < TIMEOUT_S:
        if process.poll() is not None:
            raise RuntimeError(f"qherd train ended with {process.returncode} before its first update")
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and lines[-1].endswith("}") and json.loads(lines[-1]).get("updates", 0) > 0:
            return time.perf_counter()
        time.sleep(0.02)
    raise RuntimeError(f"no update within {TIMEOUT_S:.0f} s")
