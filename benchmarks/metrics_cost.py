"""What metrics cost: (cost of one metric update x updates per batch or chunk) of that batch's or chunk's CPU time, and
the learner's rate with metrics on and off."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from actors.rollout import Rollout
from benchmarks.actor_rate import LANDER, rollout_at_work
from benchmarks.learner_rate import QUICK_UPDATES, WARM_UP_UPDATES, Side, running_herd
from benchmarks.result import Result
from deploy.config.layers import compose
from deploy.monitoring.metrics import catalogue
from deploy.sessions.learner_supervisor import SLICE_S
from learner.exporter import RunCollector
from learner.loop import LearnerLoop
from learner.recent_updates import ERRORS_KEPT

RUN = "metrics-cost"
TARGET = 2.0
SCRAPES_PER_S = 0.2
"""As deploy/prometheus/prometheus.yml has it."""
CALLS = 300


def measure(quick: bool) -> list[Result]:
    """LunarLander's preset, prioritised, so that all that is measured of samples is there; beside real actors."""
    slices, repetitions = (2, 2) if quick else (12, 15)
    config = compose("LunarLander-v3", None, None)
    config = config.model_copy(update={"replay": config.replay.model_copy(update={"sampler": "prioritised"})})
    with running_herd(config, QUICK_UPDATES if quick else WARM_UP_UPDATES) as loop:
        shares, told = _learner(loop, slices, repetitions)
        on, off = _on_and_off(loop, slices, repetitions)
    batch = f"preset lunarlander, prioritised, batches of {config.learner.batch}"
    unit = "% of a batch's CPU time"
    return [
        Result("metrics, learner", unit, shares, target=TARGET, at_most=True, notes=(batch, *told)),
        _actor(*((0.5, 2) if quick else (2.0, 15))),
        Result("learner rate with metrics", "updates/CPU s", on, "without", off, notes=("printed, not judged",)),
    ]


def _learner(loop: LearnerLoop, slices: int, repetitions: int) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Shares in percent, and the parts of the last repetition."""
    metrics = RunCollector(CollectorRegistry(auto_describe=False), catalogue(), RUN, "0")
    registry = CollectorRegistry()
    registry.register(metrics)
    shares: list[float] = []
    told: list[str] = []
    for _ in range(repetitions):
        counts: Counter[str] = Counter()
        before, cpu_s = loop.learner.updates, time.process_time()
        started = time.perf_counter()
        with _counted(loop, counts):
            for _ in range(slices):
                loop.train(SLICE_S)
        cpu_s, elapsed_s = time.process_time() - cpu_s, time.perf_counter() - started
        updates = loop.learner.updates - before
        counts["scrape"] = round(elapsed_s * SCRAPES_PER_S) or 1
        costs = _costs(loop, metrics, registry)
        spent = {name: costs[name] * counts[name] for name in costs}
        spent["scrape"] = costs["scrape"] * elapsed_s * SCRAPES_PER_S
        shares.append(100 * sum(spent.values()) / cpu_s)
        told = [
            f"{name}: {cost * 1e6:.1f} us, {counts[name] / updates:.3g} a batch: {100 * spent[name] / cpu_s:.2f} %"
            for name, cost in costs.items()
        ]
        told.append(f"a batch takes {cpu_s / updates * 1e6:.0f} us of CPU time")
    return tuple(shares), tuple(told)


def _costs(loop: LearnerLoop, metrics: RunCollector, registry: CollectorRegistry) -> dict[str, float]:
    """CPU seconds of each kind of metric update, on the running loop's own objects."""
    newest = loop.samples._newest
    assert newest is not None
    learner = loop.learner
    batch, actions = learner.config.batch, loop.buffer.mirror.schema.num_actions
    loss, error, q = (torch.rand(shape, device=learner.device) for shape in ((), (batch,), (batch, actions)))

    def report() -> None:
        learner.recent._errors.extend([error] * ERRORS_KEPT)  # each report begins them anew
        learner.recent.record(loss, error, q, loss)
        metrics.update({}, {}, loop.report().metrics)

    return {
        "phase": _cost(lambda: loop.phases.charge("outside")),
        "samples": _cost(lambda: loop.samples.record(*newest)),
        "record": _cost(lambda: learner.recent.record(loss, error, q, loss)),
        "report": _cost(report),
        "scrape": _cost(lambda: generate_latest(registry), CALLS // 10),
    }


def _cost(call: Callable[[], object], calls: int = CALLS) -> float:
    """CPU seconds of this thread per call, the median of five rounds."""
    rounds = []
    for _ in range(5):
        started = time.thread_time()
        for _ in range(calls):
            call()
        rounds.append((time.thread_time() - started) / calls)
    return float(np.median(rounds))


@contextlib.contextmanager
def _counted(loop: LearnerLoop, counts: Counter[str]) -> Iterator[None]:
    """Count the metric updates of each kind."""
    targets = {
        "phase": (loop.phases, "charge"),
        "samples": (loop.samples, "record"),
        "record": (loop.learner.recent, "record"),
        "report": (loop, "report"),
    }
    with contextlib.ExitStack() as stack:
        for name, (owner, method) in targets.items():
            stack.enter_context(patch.object(owner, method, _counting(getattr(owner, method), counts, name)))
        yield


def _counting(call: Callable[..., Any], counts: Counter[str], name: str) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        counts[name] += 1
        return call(*arguments)

    return counted


def _on_and_off(loop: LearnerLoop, slices: int, repetitions: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Updates per CPU second with metrics and without; the two take turns of a slice."""

    def work(seconds: float) -> int:
        before = loop.learner.updates
        loop.train(seconds)
        return loop.learner.updates - before

    reported = loop.report()

    def without(seconds: float) -> int:
        with (
            patch.object(loop.phases, "charge", lambda phase: None),
            patch.object(loop.samples, "record", lambda *arguments: None),
            patch.object(loop.learner.recent, "record", lambda *arguments: None),
            patch.object(loop, "report", lambda: reported),
        ):
            return work(seconds)

    on, off = Side(work), Side(without)
    ours, others = [], []
    for repetition in range(repetitions):
        for turn in range(slices):
            for side in (on, off) if (repetition + turn) % 2 else (off, on):
                side.turn()
        ours.append(on.rate())
        others.append(off.rate())
    return tuple(ours), tuple(others)


def _actor(seconds: float, repetitions: int) -> Result:
    """What an actor books per chunk: episodes, returns and its cumulative counters."""
    with rollout_at_work() as rollout:
        shares = tuple(_actor_share(rollout, seconds) for _ in range(repetitions))
    note = f"{LANDER.lanes} lanes, chunks of {LANDER.lanes * LANDER.chunk_steps} rows"
    return Result("metrics, actor", "% of a chunk's CPU time", shares, target=TARGET, at_most=True, notes=(note,))


def _actor_share(rollout: Rollout, seconds: float) -> float:
    chunks, started = rollout._outbox.seq, time.process_time()
    rollout.collect(seconds)
    chunk_s = (time.process_time() - started) / (rollout._outbox.seq - chunks)
    rows, counters = rollout._stepper.rows, rollout.counters
    ended = rows.terminated | rows.truncated
    broken = np.zeros_like(ended)

    def book() -> None:
        episodes, return_sum = rows._finish_episodes(rows.reward, ended, broken)
        counters._replace(
            env_steps=counters.env_steps + int(np.count_nonzero(~ended)),
            rows=counters.rows + ended.size,
            episodes=counters.episodes + episodes,
            return_sum=counters.return_sum + return_sum,
        )

    return 100 * _cost(book) / chunk_s
