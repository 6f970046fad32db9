"""What trackers cost: updates per CPU second of a whole run, the tracker's own processes included, with and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.result import Result, alternate
from deploy.process.cpu import children_of, tree_cpu_s
from deploy.run_directory.history import MetricHistory

TRACKERS: Mapping[str, Mapping[str, str]] = {
    "wandb": {"WANDB_MODE": "offline"},
    "mlflow": {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
}
TARGET = 0.98
WARM_UP_UPDATES = 1000
START_S = 120.0
"""The first updates, and the record, have to be there within."""
COMMAND = ("train", "LunarLander-v3", "--mode", "inline", "--run", "NAME", "--eval.every-updates", "1000000")


def measure(quick: bool) -> list[Result]:
    """Runs of LunarLander's preset in the mode inline, in which one process does all else; from when the tracker has
    begun its record: what its library takes to be imported, a second or two, does not grow with the run."""
    seconds, repetitions = (2.0, 1) if quick else (30.0, 5)
    return [_measure(name, seconds, repetitions) for name in list(TRACKERS)[: 1 if quick else None]]


def _measure(name: str, seconds: float, repetitions: int) -> Result:
    shares: list[float] = []
    ours, others = alternate(lambda: _rate(name, seconds, shares), lambda: _rate(None, seconds, []), repetitions)
    notes = (
        f"preset lunarlander, inline, {seconds:g} s of each run",
        f"the tracker's own processes: {median(shares):.1%} of the run's CPU seconds, which swings less",
    )
    return Result(f"tracking, {name}", "updates/CPU s", ours, "without", others, target=TARGET, notes=notes)


def _rate(tracker: str | None, seconds: float, shares: list[float]) -> float:
    """Returns the updates per CPU second of a run; appends the share that processes took which the run started."""
    options = [] if tracker is None else [f"--track.{tracker}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        environ = {**os.environ, **TRACKERS.get(tracker or "", {}), "CI": "1", "HOME": folder}
        with out.open("w") as file:
            run = subprocess.Popen(
                [Path(sys.executable).with_name("qherd"), *COMMAND, *options],
                cwd=folder,
                env=environ,
                stdout=file,
                stderr=file,
            )
        try:
            updates, cpu_s, others_s = _spent(run, MetricHistory(Path(folder, "runs", "NAME")), out, tracker, seconds)
            shares.append(others_s / cpu_s)
            return updates / cpu_s
        finally:
            run.send_signal(signal.SIGTERM)
            run.wait()


def _spent(
    run: subprocess.Popen[bytes], history: MetricHistory, out: Path, tracker: str | None, seconds: float
) -> tuple[float, float, float]:
    """Returns the updates of about so many seconds, their CPU seconds, and those that other processes took of these."""
    end = time.monotonic() + START_S
    while history.newest().get("updates", 0) < WARM_UP_UPDATES or (
        tracker and "records the run" not in out.read_text()
    ):
        if run.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"no record of so many updates: {out.read_text()[-2000:]}")
        time.sleep(0.1)
    before = _at_the_next_row(run, history)
    time.sleep(seconds)
    after = _at_the_next_row(run, history)
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def _at_the_next_row(run: subprocess.Popen[bytes], history: MetricHistory) -> tuple[float, float, float]:
    """Returns updates and CPU seconds as soon as there is a new row of metrics, and those of the processes that the run
    started."""
    present, end = history.newest()["updates"], time.monotonic() + START_S
    while (updates := history.newest()["updates"]) == present:
        if run.poll() is not None or time.monotonic() > end:
            raise RuntimeError("the run makes no updates any more")
        time.sleep(0.01)
    return updates, tree_cpu_s(run.pid), sum(map(tree_cpu_s, children_of(run.pid)))
