"""Scaling of the machinery beyond one machine's cores: env steps/s by the number of actors, each bound by latency.

The environment (benchmarks/slow_env.py) sleeps 5 ms per env step and takes no CPU, as one behind a network does; so one
actor could do 200 env steps/s, and N of them N times that, until inference, rows, pushing, the learner or the driver
want more cores than there are. Whole runs of ``qherd train``, one after the other; what is counted is what the learner
took in. ``python -m benchmarks.scaling --help``; --docs writes docs/scaling.md and its plot.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.result import Result, show
from deploy.config.models import RunConfig
from deploy.diagnosis.bottleneck import Window, diagnose, measured
from deploy.process.host import usable_cores

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
QHERD = Path(sys.executable).parent / "qherd"
COUNTS = (1, 2, 4, 8, 16, 32, 64)
QUICK = (1, 2)
TARGET_AT, TARGET = 16, 0.9
STEP_S = 0.005
START_S, SETTLE_S, WINDOW_S, QUICK_WINDOW_S = 600.0, 5.0, 30.0, 2.0
OPTIONS = {
    "--env.path": HERE,
    "--replay.capacity-rows": 100_000,
    "--replay.min-rows": 200,
    "--replay.samples-per-insert": 1,
    "--learner.batch": 64,
    "--eval.threshold": None,
    "--actors.chunk-steps": 32,
    "--actors.silence-s": 600,
}
"""The learner has an update per 64 env steps to do: this is about everything else."""


class Point(NamedTuple):
    """One number of actors: env steps/s inserted, seconds from the command to all of them at work, and the waits."""

    actors: int
    env_steps_per_s: float
    start_s: float
    window: Window


def measure(quick: bool) -> list[Result]:
    """All counts once; ``quick`` are the first two."""
    return results(sweep(QUICK if quick else COUNTS, 1, QUICK_WINDOW_S if quick else WINDOW_S))


def results(points: Sequence[Point]) -> list[Result]:
    """The efficiency at the target's number of actors, or at the most that there are."""
    at = next((point for point in points if point.actors == TARGET_AT), points[-1])
    target = TARGET if at.actors == TARGET_AT else None
    name = f"env steps/s of {at.actors} actors, of {at.actors} x one actor's"
    return [Result(name, "", (efficiency(at, points),), target=target, notes=tuple(table(points)))]


def efficiency(point: Point, points: Sequence[Point]) -> float:
    """Of as many times what the fewest actors did per actor."""
    first = points[0]
    return point.env_steps_per_s / point.actors / (first.env_steps_per_s / first.actors)


def sweep(counts: Sequence[int], lanes: int, window_s: float) -> list[Point]:
    """A run for each count; each point is told as it comes, since the whole takes long."""
    points = []
    for count in counts:
        points.append(point(count, lanes, window_s))
        print(f"  {table([points[0], points[-1]])[-1]} (load average {os.getloadavg()[0]:.1f})", flush=True)
    return points


def point(actors: int, lanes: int, window_s: float) -> Point:
    """One run: wait until all actors work, let it settle, then count."""
    with tempfile.TemporaryDirectory(prefix="qherd-bench-") as folder:
        given = {**OPTIONS, "--runs-dir": folder, "--actors.count": actors, "--actors.lanes": lanes}
        words = [str(word) for option in given.items() for word in option]
        began = time.monotonic()
        with running([str(QHERD), "train", "slow_env:Sleeps-v0", "--run", "r", *words]) as alive:
            rows = Rows(Path(folder) / "r" / "metrics.jsonl", alive)
            rows.until(lambda row: row.get("actors_alive", 0) >= actors and row.get("updates", 0) > 0, START_S)
            start_s = time.monotonic() - began
            time.sleep(min(SETTLE_S, window_s))
            before = rows.newest()
            time.sleep(window_s)
            window = measured(before, rows.newest())
    return Point(actors, window.env_steps_per_s, start_s, window)


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[Callable[[], bool]]:
    """Run a command while the block runs, and end it as Ctrl-C does; yields whether it is still there."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield lambda: process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


class Rows:
    """What a run writes into its metrics.jsonl while it works."""

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        self._path, self._alive = path, alive

    def newest(self) -> Mapping[str, float]:
        """The newest whole row; empty before the first."""
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        row: Mapping[str, float] = json.loads(lines[-1]) if lines else {}
        return row

    def until(self, condition: Callable[[Mapping[str, float]], bool], deadline_s: float) -> None:
        """Wait for a row that fulfils the condition. Raises RuntimeError where the run ends first, or time is up."""
        end = time.monotonic() + deadline_s
        while not condition(self.newest()):
            if not self._alive() or time.monotonic() > end:
                raise RuntimeError(f"the run did not get there within {deadline_s:g} s: {self.newest()}")
            time.sleep(0.2)


COLUMNS = (
    *("actors", "env steps/s", "of N × one actor", "all at work after"),
    *("on a core", "waiting for one", "server", "without credit", "learner waits"),
)


def table(points: Sequence[Point]) -> list[str]:
    """As markdown: one line per point."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for each in points:
        actors = each.window.actors
        shares = (actors.on_core, actors.starved, actors.log, actors.waiting) if actors else (0.0,) * 4
        cells = [f"{each.env_steps_per_s:,.0f}", f"{efficiency(each, points):.1%}", f"{each.start_s:.0f} s"]
        cells += [f"{share:.1%}" for share in (*shares, each.window.learner["wait"])]
        lines.append(f"| {each.actors} | {' | '.join(cells)} |")
    return lines


def where_it_stops(points: Sequence[Point]) -> str:
    """The first point below the target, and what its own waits say."""
    stops = next((each for each in points if efficiency(each, points) < TARGET), None)
    if stops is None:
        return (
            f"Up to {points[-1].actors} actors it does not stop: each does {TARGET:.0%} or more of what one alone does."
        )
    found = diagnose(replace(stops.window, cores=usable_cores()), RunConfig())
    return (
        f"It stops at {stops.actors} actors, with {efficiency(stops, points):.0%} of {stops.actors} times one actor's. "
        f"In the words of `qherd doctor` the bottleneck is {found.bottleneck}: {found.why}."
    )


def write_docs(points: Sequence[Point], lanes: int, window_s: float) -> None:
    """docs/scaling.md and docs/scaling.svg."""
    here = machine.show(machine.describe())  # before the picture makes the commit a dirty one
    plot(points, DOCS / "scaling.svg")
    text = f"""# Scaling beyond one machine's cores

Made by `python -m benchmarks.scaling --docs`. Env steps per second by the number of actors, of an environment that is
bound by latency: it sleeps {STEP_S * 1e3:g} ms per env step and takes no CPU, as one behind a network or a simulator
does. {lanes} lane(s) per actor; whole runs of `qherd train`, what the learner took in over {window_s:g} s. The shares
are of the actors' time, and the last one of the learner's.

![env steps per second by actors](scaling.svg)

{chr(10).join(table(points))}

{where_it_stops(points)}

On: {here}
"""
    (DOCS / "scaling.md").write_text(text)


def plot(points: Sequence[Point], path: Path) -> None:
    """Both axes logarithmic, beside the line of N times one actor."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    counts = [each.actors for each in points]
    one = points[0].env_steps_per_s / points[0].actors
    axes.plot(counts, [one * count for count in counts], color="grey", linestyle=":", label="N × one actor")
    axes.plot(counts, [each.env_steps_per_s for each in points], "o-", label="measured")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, list(map(str, counts)))
    axes.set_yticks([one * count for count in counts], [f"{one * count:,.0f}" for count in counts])
    axes.minorticks_off()
    title = f"An environment of {STEP_S * 1e3:g} ms, {usable_cores():g} CPU cores"
    axes.set(xlabel="actors", ylabel="env steps/s", title=title)
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=list(COUNTS), help="how many, run by run")
    parser.add_argument("--lanes", type=int, default=1, help="environments of each actor, stepped one after the other")
    parser.add_argument("--seconds", type=float, default=WINDOW_S, help="to count for")
    parser.add_argument("--docs", action="store_true", help="write docs/scaling.md and docs/scaling.svg")
    options = parser.parse_args()
    print(machine.show(machine.describe()) + "\n", flush=True)
    points = sweep(options.actors, options.lanes, options.seconds)
    show(results(points))
    print(where_it_stops(points))
    if options.docs:
        write_docs(points, options.lanes, options.seconds)


if __name__ == "__main__":
    main()
