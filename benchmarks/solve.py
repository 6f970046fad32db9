"""Time to solve LunarLander-v3: the whole command from start to exit, and Stable-Baselines3's DQN in the same run.

``python -m benchmarks --only solve`` or, with other seeds, another preset or without the peer,
``python -m benchmarks.solve --help``; ``--csv`` keeps a row per run.
"""

from __future__ import annotations

import argparse
import csv
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

from benchmarks import machine
from benchmarks.peers import REPOSITORY, outcome_of, peer_command
from benchmarks.result import Result, not_a_measurement, show
from deploy.process.signals import INTERRUPTED

ENV = "LunarLander-v3"
TARGET = 3.0
TIMEOUT_S, PEER_TIMEOUT_S = 300.0, 900.0
QUICK_S, QUICK_OPTIONS = 10.0, ("--budget.env-steps", "5000")
QHERD = Path(sys.executable).parent / "qherd"
CALIBRATE_S = 20.0
"""How long each number of torch threads is tried with the peer; the faster one is used."""


class Run(NamedTuple):
    """One seed of one side: seconds of wall clock from start to exit, and what happened. Where it did not solve, the
    seconds are the time that it was given."""

    seconds: float
    solved: bool
    about: str
    outcome: dict[str, Any]


def measure(quick: bool) -> list[Result]:
    """Five seeds of both sides, in turn; ``quick`` is one seed of each, which ends long before it could be solved."""
    return compare(range(1 if quick else 5), "sb3", quick=quick)


def compare(
    seeds: Sequence[int],
    peer: str | None,
    timeout_s: float = TIMEOUT_S,
    *,
    quick: bool = False,
    options: Sequence[str] = (),
    csv_file: Path | None = None,
) -> list[Result]:
    """Time ``seeds``; a run that did not solve counts with the time that it was given, and is named. ``options`` go to
    qherd's command line; ``csv_file`` gets a row for each of qherd's runs as it ends. Raises RuntimeError where a side
    did not run."""
    threads = faster_threads() if peer and not quick else 1
    ours, others, notes = [], [], []
    for seed in seeds:
        run = qherd(seed, timeout_s, [*options, *(QUICK_OPTIONS if quick else ())])
        ours.append(run)
        if csv_file is not None:
            write_csv(csv_file, options, seeds, ours)
        notes.append(_say(f"qherd seed {seed}", run))
        if peer:
            run = sb3(seed, threads, QUICK_S if quick else PEER_TIMEOUT_S)
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


COLUMNS = (
    *("seed", "exit_reason", "wall_s", "solved_s", "solved_env_steps", "env_steps", "updates"),
    *("eval_mean", "eval_std", "eval_episodes"),
)


def write_csv(file: Path, options: Sequence[str], seeds: Sequence[int], runs: Sequence[Run]) -> None:
    """Write the runs' summaries, and before them what was run, at which commit, and where."""
    command = f"qherd train {' '.join([ENV, *options])} --seed N, N from {list(seeds)}"
    about = [command, *machine.show(machine.describe()).splitlines()]
    with file.open("w", newline="") as opened:
        opened.writelines(f"# {line}\n" for line in about)
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([run.outcome.get(name) for name in COLUMNS] for run in runs)


def qherd(seed: int, timeout_s: float, options: Sequence[str] = ()) -> Run:
    """``qherd train`` as a user calls it. Raises RuntimeError where it failed, or made no update."""
    with tempfile.TemporaryDirectory(prefix="qherd-bench-") as folder:
        command = [str(QHERD), "train", ENV, "--seed", str(seed), "--run", f"seed-{seed}", "--runs-dir", folder]
        seconds, _ = timed([*command, *options], timeout_s, interrupted=INTERRUPTED)
        summary = json.loads((Path(folder) / f"seed-{seed}" / "summary.json").read_text())
    if not summary["updates"]:
        raise RuntimeError(f"qherd made no update in {seconds:.0f} s: it ended by {summary['exit_reason']}")
    solved = summary["exit_reason"] == "solved" and seconds <= timeout_s
    rate = summary["updates"] / summary["wall_s"]
    about = f"{summary['exit_reason']} at {summary['solved_s']} s, {_about(summary)}, {rate:.0f} updates/s"
    return Run(seconds if solved else max(seconds, timeout_s), solved, about, summary)


def sb3(seed: int, threads: int, limit_s: float) -> Run:
    """The peer's whole command."""
    seconds, outcome = _peer(seed, threads, limit_s)
    about = f"{_about(outcome)}, {outcome['updates_per_s']:.0f} updates/s"
    return Run(seconds if outcome["solved"] else max(seconds, limit_s), outcome["solved"], about, outcome)


def _peer(seed: int, threads: int, limit_s: float) -> tuple[float, dict[str, Any]]:
    """Raises RuntimeError where the peer failed, made no update, or gave up before its time."""
    options = {"--seed": seed, "--threads": threads, "--seconds": limit_s}
    words = [str(word) for option in options.items() for word in option]
    seconds, output = timed(peer_command("sb3", *words), limit_s + 60)
    outcome = outcome_of("Stable-Baselines3", output)
    if not outcome["solved"] and seconds < limit_s:
        raise RuntimeError(f"Stable-Baselines3 ended unsolved after {seconds:.1f} of {limit_s:g} s: {outcome}")
    return seconds, outcome


def _about(outcome: dict[str, Any]) -> str:
    mean, std = (outcome.get(f"eval_{name}", outcome.get(name)) for name in ("mean", "std"))
    score = "never evaluated" if mean is None else f"greedy return {mean:.0f} ± {std:.0f}"
    return f"{score}, {outcome['env_steps']:,} env steps, {outcome['updates']:,} updates"


def timed(command: Sequence[str], timeout_s: float, interrupted: int = 0) -> tuple[float, str]:
    """Returns a command's wall seconds and its standard output; at the time-out it is interrupted as by Ctrl-C, and may
    then end with the exit code ``interrupted``.

    Raises RuntimeError for another exit code: what did not run, or was ended by somebody else, has no time.
    """
    allowed = {0}
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=REPOSITORY) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            allowed.add(interrupted)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
    seconds = time.perf_counter() - started
    if process.returncode not in allowed:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; its error is above")
    return seconds, output


def faster_threads() -> int:
    """The number of torch threads with which the peer does more updates per second."""
    candidates = sorted({1, os.cpu_count() or 1})
    if len(candidates) == 1:
        return 1
    rates: dict[int, float] = dict.fromkeys(candidates, 0.0)
    for threads in [*candidates, *candidates]:
        outcome = _peer(0, threads, CALIBRATE_S)[1]
        rates[threads] = max(rates[threads], outcome["updates_per_s"])
    print(f"  SB3's updates/s by torch threads: {rates}", flush=True)
    return max(rates, key=lambda threads: rates[threads])


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["sb3"], help="time this one too, in turn with qherd")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--preset", default=None, help="of qherd's runs; the default goes by the environment")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each of qherd's runs")
    parser.add_argument("--quick", action="store_true", help="only see whether both sides run: not a measurement")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="of each of qherd's runs")
    options = parser.parse_args()
    more = [] if options.preset is None else ["--preset", options.preset]
    results = compare(
        options.seeds, options.peer, options.timeout, quick=options.quick, options=more, csv_file=options.csv
    )
    show(map(not_a_measurement, results) if options.quick else results)


if __name__ == "__main__":
    main()
