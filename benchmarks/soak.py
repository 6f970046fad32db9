"""Memory over a long run at full rate: a real ``qherd train``, and a learner that is fed without a pause beside it.

``python -m benchmarks --only soak`` (docs/soak.json, docs/soak.svg), or ``python -m benchmarks.soak --help``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis

from benchmarks.feed import Feed
from benchmarks.memory import MB, Series, rss_by_role, rss_mb
from benchmarks.result import Result, show
from deploy.server.embedded import EmbeddedServer
from learner.config import LearnerConfig
from learner.networks import NetworkConfig
from replay.chunk import Schema
from replay.chunk_log.protocol import ChunkId, LogError, Status
from replay.chunk_log.redis_log import RedisLog
from replay.config import ReplayConfig

SECONDS, QUICK_SECONDS = 660.0, 5.0
WARM_UP_SHARE = 0.2
EVERY_S, QUICK_EVERY_S = 3.0, 0.5
DOCS = Path(__file__).parent.parent / "docs"
QHERD = Path(sys.executable).parent / "qherd"
RUN_CAPACITY = 5_000
TRAIN = f"""train CartPole-v1 --eval.threshold None --budget.env-steps None --actors.count 2
 --replay.capacity-rows {RUN_CAPACITY} --replay.samples-per-insert 4 --replay.sampler prioritised""".split()
"""Small buffers, which the run goes through thousands of times, and few samples per insert: the actors hardly wait."""
ROLES = {
    "actors (2)": "^ray::ActorWorker",
    "learner": "^ray::LearnerWorker",
    "evaluator": "^ray::EvaluatorWorker",
    "server": r"server\.conf|valkey-server|redis-server",
    "driver": "/qherd train",
    "Ray's GCS": "/gcs_server",
    "Ray's raylet": "/raylet/raylet",
}
OTHERS = ("other", "Ray's GCS", "Ray's raylet")
"""Not ours: shown with their slope, not judged. ``other`` are Ray's agents and idle workers."""
FED = "soak-fed"
FED_SCHEMA, FED_CAPACITY, SENDERS = Schema((8,), "float32", 4), 50_000, 2
FED_SERVER_BYTES = 256 << 20
FED_MAX_CHUNKS = 1000
DONE = ("env_steps", "updates", "rows_lost", "seconds")
USED = "server: used_memory"
"""Goes up and down with each trim, once a second: shown, while the server's resident memory is judged."""


def measure(quick: bool) -> list[Result]:
    """Both at once, since neither is timed here: so both cores are busy all the time."""
    if not quick:
        return soak(SECONDS, EVERY_S, DOCS)
    with tempfile.TemporaryDirectory(prefix="qherd-soak-") as folder:
        return soak(QUICK_SECONDS, QUICK_EVERY_S, Path(folder))


def soak(seconds: float, every_s: float, folder: Path) -> list[Result]:
    """Sample for so long, write the samples and their picture, and judge."""
    json_file = folder / "soak.json"
    with ExitStack() as stack:
        runs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qherd-soak-")))
        fed = stack.enter_context(FedLearner())
        driver = _train(runs, seconds + 60)
        stack.callback(_end, driver)
        _wait_for_learning(runs / "soak" / "metrics.jsonl", driver)
        samples = _sample(seconds, every_s, lambda: rss_by_role(driver.pid, ROLES), fed.megabytes)
        done = _newest_row(runs / "soak" / "metrics.jsonl")
        rates = [_about_run(done), fed.about()]
    parts = {"qherd train CartPole-v1": samples[0], "a learner fed without a pause": samples[1]}
    text = {"rates": rates, "series": {part: [one._asdict() for one in some] for part, some in parts.items()}}
    json_file.write_text(json.dumps(text, indent=1) + "\n")
    plot(parts, rates, folder / "soak.svg")
    return _judge(parts, rates, WARM_UP_SHARE * seconds, str(json_file))


def _judge(parts: dict[str, list[Series]], rates: list[str], warm_up_s: float, where: str) -> list[Result]:
    results = []
    for (part, some), rate in zip(parts.items(), rates, strict=True):
        settled = [one.behind(warm_up_s) for one in some if one.name not in (*OTHERS, USED)]
        lines = [
            f"{one.name}: {one.megabytes[-1]:.1f} MB, {one.slope:+.1f} MB/h, {one.growth:+.2f} MB in the "
            f"{(one.seconds[-1] - one.seconds[0]) / 60:.1f} min behind the warm-up (at most {one.allowed:.1f})"
            for one in settled
        ]
        lines += [f"not judged: {one.name}: {one.slope:+.1f} MB/h" for one in some if one.name in OTHERS]
        used = max(one.growth / one.allowed for one in settled)
        name = f"soak, {part}: greatest share of the growth allowed"
        results.append(Result(name, "", (used,), target=1.0, at_most=True, notes=(rate, *lines, where)))
    return results


def _sample(seconds: float, every_s: float, *parts: Callable[[], dict[str, float]]) -> list[list[Series]]:
    """Megabytes of every party of every part, each ``every_s``."""
    found: list[dict[str, list[tuple[float, float]]]] = [{} for _ in parts]
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        for part, seen in zip(parts, found, strict=True):
            for name, megabytes in part().items():
                seen.setdefault(name, []).append((round(now, 1), round(megabytes, 2)))
        time.sleep(every_s)
    return [[Series(name, *zip(*points, strict=True)) for name, points in sorted(seen.items())] for seen in found]


# The real run.


def _train(runs: Path, seconds: float) -> subprocess.Popen[bytes]:
    command = [str(QHERD), *TRAIN, "--run", "soak", "--runs-dir", str(runs), "--budget.seconds", f"{seconds:.0f}"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"CI": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def _wait_for_learning(metrics: Path, driver: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not _newest_row(metrics).get("updates"):
        if driver.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"qherd train made no update; its exit code is {driver.returncode}")
        time.sleep(0.5)


def _newest_row(metrics: Path) -> dict[str, Any]:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1]) if lines and lines[-1].endswith("}") else {}


def _about_run(row: dict[str, Any]) -> str:
    rows, seconds = row["env_steps"], row["wall_s"]
    return (
        f"{rows:,.0f} env steps ({rows / seconds:,.0f}/s), through the mirror's {RUN_CAPACITY:,} rows "
        f"{rows / RUN_CAPACITY:,.0f} times"
    )


def _end(driver: subprocess.Popen[bytes]) -> None:
    driver.send_signal(signal.SIGINT)
    driver.wait(60)


# The fed learner.


class FedLearner:
    """A server, LearnerLoop in a process, and senders that make their chunks without an environment."""

    def __init__(self) -> None:
        self._server = EmbeddedServer(FED, FED_SERVER_BYTES)
        self._spawn = mp.get_context("spawn")
        self._done: Any = self._spawn.Array("d", len(DONE))
        self._processes: dict[str, Any] = {}

    def __enter__(self) -> FedLearner:
        self._server.start()
        urls = [self._server.url(role) for role in ("learner", *["actor"] * SENDERS)]
        works: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [
            ("learner", _learn, (urls[0], self._done)),
            *((f"sender {slot}", _feed, (urls[1 + slot], slot)) for slot in range(SENDERS)),
        ]
        for name, work, arguments in works:
            self._processes[name] = self._spawn.Process(target=work, args=arguments, daemon=True)
            self._processes[name].start()
        self._client: Any = redis.Redis.from_url(self._server.url("learner"))
        end = time.monotonic() + 120
        while not self._done[DONE.index("updates")]:
            self.megabytes()
            if time.monotonic() > end:
                raise RuntimeError("the soak's fed learner made no update within 120 s")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
            process.join()
        self._client.close()
        self._server.stop()

    def megabytes(self) -> dict[str, float]:
        """Of every process, and what the server says it uses."""
        if dead := [name for name, process in self._processes.items() if not process.is_alive()]:
            raise RuntimeError(f"{', '.join(dead)} of the soak ended; the error is above")
        rss = {name: rss_mb(process.pid) for name, process in self._processes.items()}
        used = self._client.info("memory")["used_memory"] / MB
        return rss | {"server": rss_mb(self._server.pid), USED: used}

    def about(self) -> str:
        """How much went through."""
        rows, updates, lost, seconds = self._done
        wraps = rows / FED_CAPACITY
        return (
            f"{rows:,.0f} env steps ({rows / seconds:,.0f}/s), through the mirror's {FED_CAPACITY:,} rows {wraps:,.0f} "
            f"times, {updates:,.0f} updates, {lost:,.0f} rows lost"
        )


def _learn(url: str, done: Any) -> None:
    """A learner for ever; says in ``done`` how far it is."""
    from learner.builders import LearnerSpec, build_learner
    from learner.publisher import Publisher

    replay = ReplayConfig(capacity_rows=FED_CAPACITY, samples_per_insert=0.25, sampler="prioritised")
    config = LearnerConfig(batch=128, network=NetworkConfig(hidden=(64, 64)))
    publisher = Publisher(RedisLog(url, FED), fence=1)
    publisher.start()
    rows = Feed(FED_SCHEMA, FED).rows
    spec = LearnerSpec(FED, FED_SCHEMA, replay, config, fence=1, seed=0, slots=SENDERS, chunk_rows=rows)
    loop = build_learner(spec, RedisLog(url, FED), publisher)
    started = time.monotonic()
    while True:
        report = loop.train(1.0)
        lost = sum(report.rows_lost.values())
        done[:] = (report.metrics.replay.env_steps, report.metrics.training.updates, lost, time.monotonic() - started)


def _feed(url: str, slot: int) -> None:
    """Chunks for ever, as fast as there is credit for them."""
    log, feed = RedisLog(url, FED, FED_MAX_CHUNKS), Feed(FED_SCHEMA, FED, slot)
    while True:
        chunk_id, data = feed.next()
        while True:
            try:
                status = log.append(slot, chunk_id, data)
                while not _may_go_on(status, chunk_id, feed.rows):
                    time.sleep(0.005)
                    status = log.status(slot)
                break
            except LogError as error:
                if not error.temporary:
                    raise
                time.sleep(0.1)


def _may_go_on(status: Status, newest: ChunkId, rows: int) -> bool:
    """Whether there is credit for another chunk of so many rows."""
    credit = status.credit
    return credit is not None and credit.allows(newest.incarnation, newest.seq * rows, rows, waited_s=0.0)


# The picture.


def plot(parts: dict[str, list[Series]], rates: list[str], svg_file: Path) -> None:
    """Megabytes over minutes, a panel for each part."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "qherd", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(parts), figsize=(11, 4), layout="constrained")
    for axes, (part, some), rate in zip(panels, parts.items(), rates, strict=True):
        for one in some:
            style = {"color": "grey", "linestyle": ":"} if one.name in OTHERS else {}
            axes.plot([s / 60 for s in one.seconds], one.megabytes, label=one.name, **style)
        axes.set(xlabel="minutes", ylabel="resident MB")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{part}\n{rate.partition(', through')[0]}", fontsize=9)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(svg_file, metadata={"Date": None})


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--folder", type=Path, default=DOCS, help="for soak.json and soak.svg")
    options = parser.parse_args()
    show(soak(options.seconds, EVERY_S, options.folder))


if __name__ == "__main__":
    main()
