"""Time to solve LunarLander-v3: the whole command from start to exit, and Stable-Baselines3's DQN in the same run.

``python -m benchmarks --only solve`` or, with other seeds or without the peer, ``python -m benchmarks.solve --help``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import peer_python
from benchmarks.result import Result, show

ENV = "LunarLander-v3"
TARGET = 3.0
TIMEOUT_S, PEER_TIMEOUT_S = 300.0, 900.0
HERE = Path(__file__).parent
REPOSITORY = HERE.parent
QHERD = Path(sys.executable).parent / "qherd"
CALIBRATE_S = 20.0
"""How long each number of torch threads is tried with the peer; the faster one is used."""


class Run(NamedTuple):
    """One seed of one side: seconds of wall clock from start to exit, and what happened."""

    seconds: float
    solved: bool
    about: str


def measure(quick: bool) -> list[Result]:
    """Five seeds of both sides, in turn; ``quick`` is one seed of qherd alone."""
    return compare([0], None) if quick else compare(range(5), "sb3")


def compare(seeds: Sequence[int], peer: str | None, timeout_s: float = TIMEOUT_S) -> list[Result]:
    """Time ``seeds``; a run that did not solve counts with the time it was given, and is named."""
    python = peer_python(peer) if peer else None
    threads = faster_threads(python) if python else 1
    ours, others, notes = [], [], []
    for seed in seeds:
        run = qherd(seed, timeout_s)
        ours.append(run)
        notes.append(_say(f"qherd seed {seed}", run))
        if python:
            run = sb3(python, seed, threads)
            others.append(run)
            notes.append(_say(f"SB3 seed {seed}", run))
    name = f"time to solve {ENV}, whole command, {sum(run.solved for run in ours)} of {len(ours)} seeds solved"
    other_name = f"Stable-Baselines3 DQN, RL-Zoo's settings, {threads} torch thread(s)"
    seconds, other_seconds = (tuple(run.seconds for run in runs) for runs in (ours, others))
    target = TARGET if others else None
    return [Result(name, "s", seconds, other_name, other_seconds, target, at_most=True, notes=tuple(notes))]


def _say(name: str, run: Run) -> str:
    """A run in one line, printed at once: the whole takes long."""
    line = f"{name}: {run.seconds:.1f} s, {'solved' if run.solved else 'NOT SOLVED'}, {run.about}"
    print(f"  {line} (load average {os.getloadavg()[0]:.1f})", flush=True)
    return line


def qherd(seed: int, timeout_s: float) -> Run:
    """``qherd train`` as a user calls it."""
    with tempfile.TemporaryDirectory(prefix="qherd-bench-") as folder:
        command = [str(QHERD), "train", ENV, "--seed", str(seed), "--run", f"seed-{seed}", "--runs-dir", folder]
        seconds, output = timed(command, timeout_s)
        path = Path(folder) / f"seed-{seed}" / "summary.json"
        if not path.exists():
            return Run(seconds, False, f"no summary: {_last_line(output)}")
        summary = json.loads(path.read_text())
    solved = summary["exit_reason"] == "solved" and seconds <= timeout_s
    rate = summary["updates"] / summary["wall_s"]
    about = f"{summary['exit_reason']} at {summary['solved_s']} s, {_about(summary)}, {rate:.0f} updates/s"
    return Run(seconds, solved, about)


def sb3(python: Path, seed: int, threads: int, limit_s: float = PEER_TIMEOUT_S) -> Run:
    """The peer's whole command."""
    seconds, outcome = _peer(python, seed, threads, limit_s)
    if not outcome:
        return Run(seconds, False, "it ended without a result")
    return Run(seconds, outcome["solved"], f"{_about(outcome)}, {outcome['updates_per_s']:.0f} updates/s")


def _peer(python: Path, seed: int, threads: int, limit_s: float) -> tuple[float, dict[str, Any]]:
    options = {"--seed": seed, "--threads": threads, "--seconds": limit_s}
    words = [str(word) for option in options.items() for word in option]
    command = [str(python), str(HERE / "sb3_peer.py"), *words]
    seconds, output = timed(command, limit_s + 60, {"PYTHONPATH": str(REPOSITORY)})
    line = _last_line(output)
    return seconds, json.loads(line) if line.startswith("{") else {}


def _last_line(output: str) -> str:
    return (output.splitlines() or [""])[-1]


def _about(outcome: dict[str, Any]) -> str:
    mean, std = (outcome.get(f"eval_{name}", outcome.get(name)) for name in ("mean", "std"))
    score = "never evaluated" if mean is None else f"greedy return {mean:.0f} ± {std:.0f}"
    return f"{score}, {outcome['env_steps']:,} env steps, {outcome['updates']:,} updates"


def timed(command: Sequence[str], timeout_s: float, environment: dict[str, str] | None = None) -> tuple[float, str]:
    """Wall seconds of a command and its standard output; at the time-out it is interrupted as by Ctrl-C.

    The exit code is not looked at: a failed run is a result here, told apart by what it wrote.
    """
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | (environment or {})
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
    return time.perf_counter() - started, output


def faster_threads(python: Path) -> int:
    """The number of torch threads with which the peer does more updates per second."""
    candidates = sorted({1, os.cpu_count() or 1})
    if len(candidates) == 1:
        return 1
    rates: dict[int, float] = dict.fromkeys(candidates, 0.0)
    for threads in [*candidates, *candidates]:
        outcome = _peer(python, 0, threads, CALIBRATE_S)[1]
        rates[threads] = max(rates[threads], outcome.get("updates_per_s", 0.0))
    print(f"  SB3's updates/s by torch threads: {rates}", flush=True)
    return max(rates, key=lambda threads: rates[threads])


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["sb3"], help="time this one too, in turn with qherd")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="of each of qherd's runs")
    options = parser.parse_args()
    show(compare(options.seeds, options.peer, options.timeout))


if __name__ == "__main__":
    main()
