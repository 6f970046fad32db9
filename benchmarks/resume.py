"""What a kill costs: LunarLander-v3, seeds that ran through beside seeds whose driver was killed half-way and resumed.

``python -m benchmarks --only resume``. Both sides have the same budget of env steps. A resumed run starts from a full
replay; its greedy returns from the kill on are compared with the band that the others' have there. No figure of it is a
speed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.result import Result
from benchmarks.solve import ENV, QHERD

BUDGET, KILL_AT = 240_000, 120_000
"""Env steps of a run, and those at which the driver of every second one is killed."""
QUICK, QUICK_OPTIONS = 12, ("--eval.cpu-share", "1", "--eval.screen-episodes", "2", "--eval.every-updates", "100")
"""The quick form has this part of them, and an evaluation nevertheless."""
TIMEOUT_S = 400.0


def measure(quick: bool) -> list[Result]:
    """Five seeds of both sides, in turn; ``quick`` is one."""
    seeds, part = (range(1), QUICK) if quick else (range(5), 1)
    budget, kill_at = BUDGET // part, KILL_AT // part
    whole: list[float] = []
    killed: list[float] = []
    notes: list[str] = []
    for seed in seeds:
        for interrupt, returns in ((False, whole), (True, killed)):
            more = QUICK_OPTIONS if quick else ()
            rows, ended_s = _rows(seed, budget, kill_at if interrupt else None, more)
            later = [row["greedy_return"] for row in rows if row["env_steps"] > kill_at and "greedy_return" in row]
            returns.append(mean(later))
            note = (
                f"seed {seed}, {'killed and resumed' if interrupt else 'ran through'}: {_told(rows, kill_at, ended_s)}"
            )
            print(f"  {note}", flush=True)
            notes.append(note)
    inside = sum(min(whole) <= value <= max(whole) for value in killed)
    above = sum(value > max(whole) for value in killed)
    notes.append(
        f"of {len(killed)} that were killed {inside} lie within the band of those that ran through, {above} above it, "
        f"{len(killed) - inside - above} below it"
    )
    name = f"{ENV}: mean greedy return from {kill_at:,} to {budget:,} env steps, killed at {kill_at:,} and resumed"
    return [Result(name, "", tuple(killed), "ran through", tuple(whole), notes=tuple(notes))]


def _rows(seed: int, budget: int, kill_at: int | None, more: Sequence[str]) -> tuple[list[dict[str, Any]], float]:
    """A run's curve, and how long it took, both drivers together where the first is killed."""
    with tempfile.TemporaryDirectory(prefix="qherd-bench-") as folder:
        run, started = Path(folder) / "r", time.monotonic()
        options = ["--seed", str(seed), "--run", "r", "--runs-dir", folder, "--eval.threshold", "None"]
        options += ["--budget.env-steps", str(budget), "--checkpoint.every-s", "5", *more]
        command = [str(QHERD), "train", ENV, *options]
        if kill_at is not None:
            _kill_half_way(command, run, kill_at)
            command = [str(QHERD), "resume", str(run)]
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True)
        return _read(run), time.monotonic() - started


def _kill_half_way(command: list[str], run: Path, kill_at: int) -> None:
    end = time.monotonic() + TIMEOUT_S
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (rows := _read(run)) or rows[-1]["env_steps"] < kill_at:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command)} did not come to {kill_at} env steps")
            time.sleep(0.2)
        process.kill()


def _read(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _told(rows: list[dict[str, Any]], kill_at: int, seconds: float) -> str:
    """Greedy returns around the kill and at the end, each the mean of the rows there."""
    parts = ((0.8, 1.0), (1.0, 1.2), (1.5, 2.0))
    found = []
    for start, end in parts:
        inside = [
            row["greedy_return"]
            for row in rows
            if start * kill_at < row["env_steps"] <= end * kill_at and "greedy_return" in row
        ]
        found.append(f"{mean(inside):.0f}" if inside else "none")
    return (
        f"greedy return {found[0]} before {kill_at:,} env steps, {found[1]} after, {found[2]} in the last quarter; "
        f"{rows[-1]['updates']:,} updates, {seconds:.0f} s"
    )
