"""The whole pipeline on an MDP whose Q* is known from value iteration: actors, log, mirror, n-step, learner, weights.

One-hot states and a linear network are a table, so nothing but a mistake keeps Q from Q*.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grid_env
import numpy as np
import numpy.typing as npt
import pytest
from grid_env import ACTIONS, GOAL, STATES, move

from deploy.config.models import RunConfig
from deploy.planning.preconditions import probe_env
from deploy.process.signals import Stop
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import Progress
from deploy.sessions.inline import InlineSession
from deploy.sessions.ray_session import RaySession
from learner.weights import unpack
from replay.chunk_log.protocol import ChunkId
from replay.chunk_log.redis_log import RedisLog

Array = npt.NDArray[Any]
GAMMA = 0.9
TOLERANCE = 1e-3
"""Of each of the 32 values between -0.6 and 1. Runs end within 1e-5; a truncation that is taken for a termination moves
values by up to 0.9."""


def value_iteration() -> Array:
    """Q* <float64>[STATES - 1, ACTIONS] of all states but the goal. A time limit changes nothing: truncation is not
    part of the MDP."""
    q = np.zeros((STATES, ACTIONS))
    for _ in range(200):
        for state in range(GOAL):
            for action in range(ACTIONS):
                following, reward, terminated = move(state, action)
                q[state, action] = reward + (0 if terminated else GAMMA * q[following].max())
    return q[:GOAL]


def learned(policy: bytes) -> Array:
    """The table in a packed linear network."""
    _, arrays = unpack(policy)
    table: Array = arrays["head.linear.weight"].T + arrays["head.linear.bias"]
    return table[:GOAL]


REPLAY = {"capacity_rows": 4000, "min_rows": 500, "samples_per_insert": 64}
PRIORITISED = REPLAY | {"sampler": "prioritised"}


def config(folder: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "runs_dir": folder / "runs",
        "run": "grid",
        "mode": "inline",
        "env": {"id": "grid_env:Grid-v0", "path": Path(grid_env.__file__).parent},
        "actors": {
            "count": 2, "lanes": 4, "chunk_steps": 8, "epsilon": 0.9, "epsilon_alpha": 0.5,
            "epsilon_anneal_env_steps": 0,
        },
        "replay": REPLAY,
        "learner": {
            "network": {"hidden": ()}, "lr": 0.01, "batch": 128, "gamma": GAMMA, "n_step": 1,
            "target_period_updates": 20, "average_tau": 0.01, "publish_every_updates": 20, "device": "cpu",
        },
        "eval": {"screen_episodes": 1, "confirm_episodes": 2, "every_updates": 10**9},
    }  # fmt: skip
    for path, value in changes.items():
        part, _, leaf = path.partition("__")
        values[part] = values[part] | {leaf: value} if leaf else value
    return RunConfig.model_validate(values)


def run_inline(tmp_path: Path, updates: int, **changes: Any) -> Array:
    run = config(tmp_path, **changes)
    session = InlineSession(run, RunDirectory.create(run), probe_env(run), print)
    while session.loop.learner.updates < updates:
        progress = session.advance()
    assert not progress.refused
    assert not progress.rows_lost
    policy = session.loop.candidate()
    session.stop(1.0)
    return learned(policy)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="terminations"),
        pytest.param({"learner__double": False}, id="max target", marks=pytest.mark.long),
        pytest.param({"env__max_episode_steps": 3}, id="truncations after 3 env steps"),
        pytest.param({"replay": PRIORITISED}, id="prioritised"),
        pytest.param(
            {"replay": PRIORITISED | {"storage": "device"}, "env__max_episode_steps": 3},
            id="on the device",
            marks=pytest.mark.long,
        ),
        pytest.param({"replay__storage": "memmap"}, id="memmap", marks=pytest.mark.long),
    ],
)
def test_inline_reaches_value_iteration(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With ends of both kinds; where most episodes are cut short after 3 env steps Q* is the same."""
    q = run_inline(tmp_path, 1500, **changes)
    np.testing.assert_allclose(q, value_iteration(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_inline_is_reproducible_to_the_bit(tmp_path: Path, sampler: str) -> None:
    """The same seed, the same table; another seed, another one."""
    first, again, other = (
        run_inline(tmp_path, 100, run=name, seed=seed, replay__sampler=sampler)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_local_reaches_value_iteration_though_an_actor_is_killed(tmp_path: Path) -> None:
    """Ray, an embedded Valkey, two actors of which one is killed; see ``local_run``. In a process of its own, since Ray
    reads how to authenticate when it is imported."""
    local_run_apart("test_known_answer", tmp_path, 100)


def local_run_apart(module: str, tmp_path: Path, timeout_s: float) -> None:
    """Calls ``local_run(tmp_path)`` of a module of the tests in a process of its own."""
    program = f"from pathlib import Path; from {module} import local_run; local_run(Path({str(tmp_path)!r}))"
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr


def local_run(folder: Path) -> None:
    """A new incarnation goes on, nothing that was sent is lost, nothing of an actor's that failed in a chunk is sent,
    and the policy that comes with the evaluator's verdict is the optimal table, also where truncations abound."""
    (folder / "spoilt").mkdir()
    run = config(
        folder, mode="local", env__max_episode_steps=3, env__kwargs={"spoilt": str(folder / "spoilt")},
        replay__samples_per_insert=16, eval__cpu_share=1.0, actors__fetch_every_s=0.05,
    )  # fmt: skip
    directory = RunDirectory.create(run)
    said: list[str] = []
    session = RaySession(run, directory, probe_env(run), said.append, Stop())
    import ray

    try:
        progress = advance_until(session, lambda p: updates_of(p) > 500)
        assert restarted(progress, 0)
        victim: Any = session._actors._slots[0].process.handle
        os.kill(ray.get(victim.pid.remote()), signal.SIGKILL)
        advance_until(session, lambda p: restarted(p, 1))
        assert_the_calls_after_a_failed_one_fail_too(session, folder / "spoilt")
        advance_until(session, lambda p: restarted(p, 2))
        progress = advance_until(session, lambda p: p.verdict is not None and p.verdict.updates > 2500)
    finally:
        last = session.stop(20.0)
    assert progress.policy is not None
    np.testing.assert_allclose(learned(progress.policy), value_iteration(), rtol=0, atol=TOLERANCE)
    assert any("actor 0 died" in line for line in said)
    assert any("actor 1 died (EnvError" in line for line in said)
    assert [directory.fences.next_incarnation(slot) for slot in (0, 1)] == [3, 3]
    assert last is not None
    assert not last.refused
    assert not last.rows_lost
    assert last.metrics is not None
    assert (learner := last.metrics.learner) is not None
    assert learner.replay.env_steps == learner.sent.actor_env_steps > 1000
    assert not ray.is_initialized()


def assert_the_calls_after_a_failed_one_fail_too(session: RaySession, spoilt: Path) -> None:
    """Of actor 1, whose environment returns what is no number in the middle of a chunk: two further calls were queued
    as that one failed, and none of the three stores anything."""
    import ray

    def learn_until_answered(calls: list[Any]) -> None:
        """The learner goes on, so that there is credit; the supervisor does not."""
        end = time.monotonic() + 60
        while len(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) < len(calls):
            session._take_report()
            assert time.monotonic() < end

    slot = session._actors._slots[1]
    handle: Any = slot.process.handle
    learn_until_answered(slot.calls.in_flight)
    with closing(RedisLog(session._servers.urls["learner"][0], "grid")) as log:
        before = log.last_id(1)
        (spoilt / str(ray.get(handle.pid.remote()))).touch()
        calls = [handle.collect.remote(20.0) for _ in range(3)]
        learn_until_answered(calls)
        for call in calls:
            with pytest.raises(ray.exceptions.RayTaskError, match=r"EnvError.*the reward nan"):
                ray.get(call)
        assert log.last_id(1) == before > ChunkId()


def updates_of(progress: Progress) -> int:
    learner = None if progress.metrics is None else progress.metrics.learner
    return 0 if learner is None else learner.training.updates


def restarted(progress: Progress, times: int) -> bool:
    """Whether both actors are alive, after so many restarts."""
    assert progress.metrics is not None
    driver = progress.metrics.driver
    return (driver.restarts.actor_restarts, driver.actors.actors_alive) == (times, 2)


def advance_until(session: RaySession, over: Callable[[Progress], bool]) -> Progress:
    """Advance until ``over``; fails after 60 s."""
    end = time.monotonic() + 60
    while not over(progress := session.advance()):
        assert time.monotonic() < end, progress.metrics
    return progress
