"""Alerts that need something to go wrong within a run at work, each seen firing: a real Prometheus, a cluster's run.

The rules' durations are shortened as in test_prometheus_run.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import test_cluster_run
from chunk_makers import FakeActor
from cli_runs import running
from test_cluster_run import PASSWORD, Cluster, free_port
from test_monitoring import tool
from test_prometheus_run import Watched, prometheus

from replay.chunk import Schema, encode
from replay.chunk_log.protocol import ChunkId, Fenced
from replay.chunk_log.redis_log import RedisLog

pytestmark = [pytest.mark.long, pytest.mark.timeout(590)]

CARTPOLE = Schema((4,), "float32", 2)
cluster = test_cluster_run.cluster

# Rewards of a ten-thousandth allow no |Q| above 0.01: a network's first values, which such a rate of learning leaves as
# they are, are estimates of nothing.
DIVERGED = ("--learner.reward-scale", "1e-4", "--learner.lr", "1e-9")


@pytest.fixture(scope="module")
def watched(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    tool("prometheus")
    cwd, port = tmp_path_factory.mktemp("alerts"), free_port()
    options = ["--run", "a", "--metrics.port", "0", "--eval.threshold", "None", "--actors.count", "1"]
    options += ["--budget.env-steps", "1e12"]  # who writes without asking soon reaches the preset's
    options += [
        "--actors.restarts",
        "10000",
        "--actors.silence-s",
        "600",
        "--actors.cpus",
        "0.5",
        "--learner.cpus",
        "0.5",
    ]
    options += ["--checkpoint.every-s", "2", "--checkpoint.dir", str(cwd / "checkpoints"), *DIVERGED]
    with (
        running("discovery", "--port", str(port), cwd=cwd),
        prometheus(cwd / "prometheus", port) as server,
        running("train", "CartPole-v1", *options, *cluster.options, cwd=cwd, env=cluster.secrets) as run,
    ):
        found = Watched(run, server)
        found.until(lambda: server.query("qherd_checkpoint_age_seconds"), 120, "a checkpoint's age in Prometheus")
        yield found


def until_fires(watched: Watched, alert: str, deadline_s: float) -> None:
    watched.until(lambda: alert in watched.server.firing(), deadline_s, alert)


def until_over(watched: Watched, alert: str, deadline_s: float = 90) -> None:
    watched.until(lambda: alert not in watched.server.firing(), deadline_s, f"the end of {alert}")


def test_values_beyond_what_rewards_allow_fire_the_alert(watched: Watched) -> None:
    until_fires(watched, "QherdQDiverging", 90)
    assert "more than twice what the rewards" in watched.server.firing()["QherdQDiverging"]["description"]


def test_checkpoints_that_cannot_be_written_fire_the_alert(watched: Watched) -> None:
    """A file lies where the folder was, until it is put back."""
    until_over(watched, "QherdCheckpointTooOld")
    folder = watched.run.cwd / "checkpoints"
    away = folder.rename(folder.with_name("away"))
    folder.write_text("in the way")
    try:
        until_fires(watched, "QherdCheckpointTooOld", 90)
    finally:
        folder.unlink()
        away.rename(folder)
    until_over(watched, "QherdCheckpointTooOld")


def test_a_learner_that_nobody_drives_fires_the_alert(watched: Watched) -> None:
    """Its driver is frozen: /metrics answers, and nothing is reported any more."""
    until_over(watched, "QherdLearnerStalled")
    os.kill(watched.run.process.pid, signal.SIGSTOP)
    try:
        until_fires(watched, "QherdLearnerStalled", 90)
    finally:
        os.kill(watched.run.process.pid, signal.SIGCONT)
    until_over(watched, "QherdLearnerStalled")


def test_rows_that_no_credit_holds_back_fire_the_alert(watched: Watched, cluster: Cluster) -> None:
    """Somebody with an actor's rights writes to a slot and asks nobody: the learner cannot sample that many."""
    until_over(watched, "QherdSamplesPerInsertOff")
    stop = threading.Event()
    writer = threading.Thread(target=write_without_asking, args=(cluster, stop))
    writer.start()
    try:
        until_fires(watched, "QherdSamplesPerInsertOff", 180)
    finally:
        stop.set()
        writer.join(20)


def write_without_asking(cluster: Cluster, stop: threading.Event) -> None:
    """Append chunks of slot 0 as fast as the server takes them, each time under a higher incarnation when refused."""
    url = f"redis://:{PASSWORD}@127.0.0.1:{cluster.redis_port}/0"
    with contextlib.closing(RedisLog(url, "a", max_chunks=100)) as log:
        while not stop.is_set():
            incarnation, actor = log.last_id(0).incarnation + 1, FakeActor(lanes=16)
            weights = log.status(0).weights
            assert weights is not None
            with contextlib.suppress(Fenced):
                while not stop.is_set():
                    chunk = actor.chunk(16)
                    chunk = dataclasses.replace(
                        chunk,
                        incarnation=incarnation,
                        weight_version=weights.version,
                        obs=np.zeros((16, 16, 4), np.float32),
                        action=chunk.action % 2,
                        reward=np.zeros_like(chunk.reward),
                    )
                    log.append(0, ChunkId(incarnation, chunk.seq), encode(chunk, CARTPOLE, "a"))
