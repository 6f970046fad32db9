"""Flow control: what a frozen learner is sent, how often rows are sampled afterwards, and how even the pace is."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.result import Result
from deploy.config.layers import compose
from deploy.config.models import RunConfig
from deploy.planning.memory import chunk_rows

PRESETS = ("lunarlander", "cartpole", "tutorial")
FREEZE_S = 10.0
START_S = 120.0
SECOND_S = 0.95
"""Rows come once a second, give or take a few hundredths."""
LEARNER_TITLE = "ray::LearnerWorker"

Row = Mapping[str, float]


class Run:
    """A run of a preset in mode local, which nothing ends but this."""

    def __init__(self, preset: str, folder: Path) -> None:
        self.config: RunConfig = compose(None, preset, None, {})
        self._folder = folder / preset
        command = [sys.executable, "-m", "deploy.cli", "train", "--preset", preset, "--run", preset]
        options = ["--runs-dir", str(folder), "--budget.env-steps", str(1 << 40), "--eval.threshold", "1e30"]
        self._process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)

    def rows(self) -> list[Row]:
        """What metrics.jsonl has so far."""
        file = self._folder / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait(self, updates: float) -> None:
        """Until so many updates are done. Raises RuntimeError where the run ends first, or hangs."""
        end = time.monotonic() + START_S
        while not (rows := self.rows()) or rows[-1].get("updates", 0) < updates:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the run did not do {updates:g} updates within {START_S:g} s")
            time.sleep(0.2)

    def learner(self) -> int:
        """The process id of the learner: a descendant of the run's driver, by its title."""
        titles = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
        found = [line.split(None, 2) for line in titles.splitlines() if LEARNER_TITLE in line]
        mine = [int(pid) for pid, _, _ in found if self._is_mine(int(pid))]
        if len(mine) != 1:
            raise RuntimeError(f"{len(mine)} learners of this run were found")
        return mine[0]

    def _is_mine(self, pid: int) -> bool:
        while pid > 1:
            if pid == self._process.pid:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return False

    def end(self) -> None:
        """Stop it in order."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def frozen(run: Run) -> tuple[float, float]:
    """Freeze the learner; the env steps that came in by the row after its thaw beyond the window of its credit, in
    chunks per actor, and what a row is sampled afterwards, of the target: like others, and its part of what is owed."""
    run.wait(200)
    before = run.rows()[-1]
    pid = run.learner()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(FREEZE_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    run.wait(run.rows()[-1]["updates"] + 50)
    after = next(row for row in run.rows() if row["wall_s"] > before["wall_s"] and row["updates"] > before["updates"])
    spi, batch = before["samples_per_insert_target"], run.config.learner.batch
    window = (2 * before["limiter_half_band"] - batch) / spi
    most = window + (after["updates"] - before["updates"]) * batch / spi
    each = run.config.actors.count * chunk_rows(run.config)
    beyond = (after["env_steps"] - before["env_steps"] - most) / each
    later = [row for row in run.rows() if row["updates"] > before["updates"]]
    owed = max(row["limiter_error"] / (spi * row["replay_rows"]) for row in later)
    return max(0.0, beyond), 1 + max(0.0, owed)


def steadiness(rows: Sequence[Row]) -> tuple[float, float]:
    """The share of rows whose error is inside its band, and the greatest ratio of the env steps/s of two seconds that
    follow each other. A verdict brings a row of its own, milliseconds after another one: such rows are passed over."""
    inside = [abs(row["limiter_error"]) <= row["limiter_half_band"] for row in rows]
    seconds = [rows[0]]
    for row in rows[1:]:
        if row["wall_s"] - seconds[-1]["wall_s"] >= SECOND_S:
            seconds.append(row)
    rates = [(b["env_steps"] - a["env_steps"]) / (b["wall_s"] - a["wall_s"]) for a, b in itertools.pairwise(seconds)]
    ratios = [max(a, b) / max(1e-9, min(a, b)) for a, b in itertools.pairwise(rates)]
    return sum(inside) / len(inside), max(ratios)


def measure(quick: bool) -> list[Result]:
    """Each preset at work for a while, then with its learner frozen."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS[1:2] if quick else PRESETS:
            run = Run(preset, Path(folder))
            try:
                run.wait(500)
                began = len(run.rows())
                time.sleep(10 if quick else 60)
                inside, spread = steadiness(run.rows()[began:])
                beyond, samples = frozen(run)
            finally:
                run.end()
            results += [
                Result(f"{preset}: rows with the error in its band", "of all", (inside,), target=0.95),
                Result(f"{preset}: env steps/s, second by second", "times", (spread,), target=2.0, at_most=True),
                Result(f"{preset}: frozen, chunks beyond the credit", "an actor", (beyond,), target=2.0, at_most=True),
                Result(f"{preset}: frozen, samples per row", "of the target", (samples,), target=2.0, at_most=True),
            ]
    return results
