"""Learner rate: the running loop against a bare loop of the same update on one batch, in updates per CPU second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from benchmarks.herd import act, beside
from benchmarks.result import Result
from deploy.config.layers import compose
from deploy.config.models import RunConfig
from deploy.planning.memory import backstop_chunks, chunk_rows, server_bytes
from deploy.planning.preconditions import probe_env
from deploy.server.embedded import EmbeddedServer
from learner.builders import LearnerSpec, build_learner
from learner.learner import Learner
from learner.loop import LearnerLoop
from learner.publisher import Publisher
from replay.chunk_log import open_log
from replay.metrics import flat
from replay.sequences import SequenceBatch

RUN = "learner-rate"


class Subject(NamedTuple):
    """An environment, what share of the bare update's rate is aimed at, a preset that is not the environment's own, and
    options as variables."""

    env_id: str
    target: float
    preset: str | None = None
    options: Mapping[str, str] = MappingProxyType({})


FEWER_ROWS = {"QHERD_REPLAY_CAPACITY_ROWS": "20000", "QHERD_REPLAY_MIN_ROWS": "2000"}
"""For a game of Atari: its preset's replay memory has 4 GB, and takes minutes to fill."""
EXAMPLES = {"QHERD_ENV_PATH": str(Path(__file__).parents[1] / "examples")}
SUBJECTS = (
    Subject("LunarLander-v3", 0.85),
    Subject("MinAtar/Breakout-v1", 0.9),
    Subject("ALE/Pong-v5", 0.9, None, FEWER_ROWS),
    Subject("memory_envs:MaskedCartPole-v1", 0.85, "r2d2", EXAMPLES),
)
WARM_UP_UPDATES, QUICK_UPDATES = 500, 20
SLICE_S = 0.1
START_S = 120.0
"""The first updates have to come within."""


def measure(quick: bool) -> list[Result]:
    """The loop runs a preset on a real server, with the preset's real actors in processes of their own.

    The two sides take turns of SLICE_S, shorter than the actors notice, so that both run beside equally busy actors.
    CPU time is the process's: the publisher's thread is in it.
    """
    return [_measure(subject, quick) for subject in SUBJECTS]


def _measure(subject: Subject, quick: bool) -> Result:
    slices, repetitions = (3, 2) if quick else (30, 15)
    config = compose(subject.env_id, subject.preset, None, dict(subject.options))
    with running_herd(config, QUICK_UPDATES if quick else WARM_UP_UPDATES) as loop:
        before = flat(loop.report().metrics)
        ours, others = [], []
        running, bare = Side(_running_loop(loop)), Side(_bare_loop(config, loop))
        for _ in range(repetitions):
            for _ in range(slices):
                running.turn()
                bare.turn()
            ours.append(running.rate())
            others.append(bare.rate())
        metrics = flat(loop.report().metrics)
    waited = metrics["learner_wait_seconds"] - before["learner_wait_seconds"]
    share = waited / (SLICE_S * slices * repetitions)
    notes = (
        f"preset of {subject.env_id}: batches of {config.learner.batch}, {config.actors.count} actors, "
        f"{metrics['samples_per_insert']:.1f} samples per insert realised",
        f"the loop waited for actors in {share:.0%} of its time, polling meanwhile",
    )
    other = "bare update, one fixed batch"
    return Result("learner rate", "updates/CPU s", tuple(ours), other, tuple(others), subject.target, notes=notes)


class Side:
    """One of the two loops, and what it did since its rate was asked for."""

    def __init__(self, work: Callable[[float], int]) -> None:
        """``work`` runs for some seconds and returns its updates."""
        self._work = work
        self._updates, self._cpu_s = 0, 0.0

    def turn(self) -> None:
        """Run for SLICE_S."""
        started = time.process_time()
        self._updates += self._work(SLICE_S)
        self._cpu_s += time.process_time() - started

    def rate(self) -> float:
        """Updates per CPU second since the last call."""
        rate = self._updates / self._cpu_s
        self._updates, self._cpu_s = 0, 0.0
        return rate


@contextlib.contextmanager
def running_herd(config: RunConfig, warm_up_updates: int) -> Iterator[LearnerLoop]:
    """A learner loop in this process, past its first updates, with server and actors beside it."""
    schema, count = probe_env(config), config.actors.count
    torch.set_num_threads(config.learner.threads)
    torch.set_flush_denormal(True)
    with EmbeddedServer(RUN, server_bytes(config, schema)) as server, contextlib.ExitStack() as herd:
        url = server.url("learner")
        publisher = Publisher(open_log(url, RUN, "publisher"), fence=1)
        publisher.start()
        herd.callback(publisher.stop)
        log = open_log(url, RUN, "reader")
        rows = chunk_rows(config)
        spec = LearnerSpec(RUN, schema, config.replay, config.learner, 1, config.seed, slots=count, chunk_rows=rows)
        loop = build_learner(spec, log, publisher)
        place = (server.url("actor"), RUN)
        for slot in range(count):
            parts = (config.env, config.actors, config.learner.network_spec)
            herd.enter_context(beside(act, *place, slot, count, *parts, backstop_chunks(config)))
        end = time.monotonic() + START_S
        while loop.learner.updates < warm_up_updates:
            loop.train(0.5)
            if time.monotonic() > end:
                raise RuntimeError(f"{loop.learner.updates} of {warm_up_updates} updates after {START_S:.0f} s")
        yield loop


def _running_loop(loop: LearnerLoop) -> Callable[[float], int]:
    def work(seconds: float) -> int:
        before = loop.learner.updates
        loop.train(seconds)
        return loop.learner.updates - before

    return work


def _bare_loop(config: RunConfig, running: LearnerLoop) -> Callable[[float], int]:
    """Another learner of the same configuration, on a batch of the running one's rows."""
    learner = Learner(config.learner, running.buffer.mirror.schema, running.learner.device, config.seed)
    batch = running.buffer.sample(config.learner.batch).batch
    if isinstance(batch, SequenceBatch):
        batch = batch._replace(obs=batch.obs.copy())  # the running one's next batch lies in the same array

    def work(seconds: float) -> int:
        before, end = learner.updates, time.perf_counter() + seconds
        while time.perf_counter() < end:
            learner.update(batch)
        return learner.updates - before

    return work
