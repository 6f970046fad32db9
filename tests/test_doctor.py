"""``qherd doctor`` without a run: each check finds what it looks for, and says what to do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import qherd

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.diagnosis.checks import machine
from deploy.diagnosis.checks.check import Check, guarded
from deploy.diagnosis.checks.machine import versions
from deploy.diagnosis.checks.server import server_check, server_checks
from deploy.diagnosis.preflight import preflight
from deploy.diagnosis.run_health import silence_checks
from deploy.run_directory.directory import RunDirectory
from deploy.server.embedded import EmbeddedServer

BAD_ENV = """
import gymnasium as gym
import numpy as np

class Bad(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, how):
        self.how, self.resets = how, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        return np.full(2, self.resets if self.how == "seed" else 0, np.float32), {}

    def step(self, action):
        if self.how == "raises":
            raise RuntimeError("the bridge is down")
        obs = np.full(3 if self.how == "shape" else 2, np.nan if self.how == "nan" else 0, np.float32)
        return obs, 0.0, self.how != "endless", False, {}

gym.register("Bad-v0", "bad_env:Bad")
"""


def config(**values: Any) -> RunConfig:
    return RunConfig.model_validate({"env": {"id": "CartPole-v1"}, "actors": {"lanes": 2}, **values})


def found_in(settings: RunConfig) -> list[Check]:
    """The environment's checks alone."""
    return list(itertools.takewhile(lambda check: check.name == "env", _from_env(settings)))


def _from_env(settings: RunConfig) -> Iterator[Check]:
    return itertools.dropwhile(lambda check: check.name != "env", preflight(settings))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    (tmp_path / "bad_env.py").write_text(BAD_ENV)
    return tmp_path


@pytest.mark.parametrize(
    ("how", "state", "told"),
    [
        ("raises", "problem", "RuntimeError: the bridge is down"),
        ("shape", "problem", r"returned an observation of shape \(3,\); its space Box.* says shape \(2,\)"),
        ("nan", "problem", r"step\(\) returned an observation that is not finite as float32: \[nan nan\]"),
        ("seed", "warning", "the same seed gives another first observation"),
        ("well", "ok", "seeds reproduce, values are finite"),
    ],
)
def test_an_environment_is_played_before_it_is_trusted(bad: Path, how: str, state: str, told: str) -> None:
    settings = config(env={"id": "bad_env:Bad-v0", "path": bad, "kwargs": {"how": how}})
    found = [check for check in found_in(settings) if re.search(told, check.found)]
    assert [check.state for check in found] == [state]
    assert bool(found[0].remedy) == (state != "ok")


def test_an_environments_spaces_mode_and_rate_are_told() -> None:
    spaces, played, rate = found_in(config())
    assert "stored as float32[4], 33 B a row" in spaces.found
    assert "CartPole-v1: Box(" in spaces.found
    assert played.state == "ok"
    assert rate.found.startswith("autoreset NEXT_STEP; an actor of 2 lanes does ")


def test_versions_are_held_to_what_is_required_and_to_what_a_run_had() -> None:
    assert versions().state == "ok"
    changed = versions({"numpy": "1.0", "python": versions().found.split()[1].rstrip(",")})
    assert (changed.state, "was 1.0" in changed.found) == ("warning", True)
    assert "python" not in changed.found


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["numpy>=99", "no-such>=1", "x>=1; extra=='y'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    found = versions()
    assert found.state == "problem"
    assert "is not >=99" in found.found
    assert "no-such is missing" in found.found


def test_what_is_raised_for_a_user_is_a_problem() -> None:
    def look() -> Any:
        yield Check("a", "ok", "well")
        raise ConfigError("no")

    assert list(guarded("a", look)) == [Check("a", "ok", "well"), Check("a", "problem", "no")]


def test_shared_memory_cores_files_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=64 << 20))
    small = machine.shared_memory_check(config())
    assert (small.state, "67 MB are free" in small.found, "shm-size" in small.remedy) == ("warning", True, True)
    assert machine.disk_check(tmp_path).state == "warning"
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    assert machine.open_files_check(config()).remedy == "ulimit -n 4096"
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("deploy.diagnosis.checks.machine.usable_cores", lambda: 2.0)
    assert machine.cores_check(config(actors={"count": 2})).state == "ok"
    assert "more actors than cores" in machine.cores_check(config(actors={"count": 16})).remedy


def test_a_server_is_looked_at(server_binary: Path) -> None:
    """Its policy, its room and the way to it; one that is not there, or evicts, is a problem."""
    with EmbeddedServer("doctor", 64 << 20, binary=server_binary) as server:
        well = server_check(server.url("learner"), 1 << 20)
        small = server_check(server.url("learner"), 1 << 30)
    assert well.state == "ok"
    assert "noeviction; 6" in well.found
    assert (small.state, "this run wants 1,074 MB" in small.found) == ("warning", True)
    away = config(mode="cluster", redis={"url": "redis://:s3cr3t@127.0.0.1:1"})
    (gone,) = guarded("server", lambda: server_checks(away, None))
    assert gone.state == "problem"
    assert "s3cr3t" not in gone.found


@pytest.mark.long
def test_the_command_checks_everything_and_its_exit_code_says_so(tmp_path: Path) -> None:
    """A real start of server and Ray; a metrics port that is taken is the one problem."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = qherd("doctor", "--env.id", "CartPole-v1", "--metrics.port", port, "--json", cwd=tmp_path, deadline_s=90)
    assert (done.code, done.err) == (1, "")
    seen = json.loads(done.out)
    assert seen["problems"] == 1
    problems = [check for check in seen["checks"] if check["state"] == "problem"]
    assert [(check["name"], port in check["found"]) for check in problems] == [("ports", True)]
    names = {check["name"] for check in seen["checks"]}
    assert {
        "versions",
        "limits",
        "env",
        "memory",
        "disk",
        "cores",
        "GPU",
        "server",
        "/dev/shm",
        "Ray",
        "nodes",
    } <= names
    assert list(tmp_path.iterdir()) == []
    assert done.leftovers == []


@pytest.mark.parametrize(
    ("mode", "started_s", "row_s", "found"),
    [
        ("local", 1000, 100, "problem"),
        ("local", 1000, 5, None),
        ("local", 20, 3600, None),  # resumed just now
        ("local", 1000, 3600, "warning"),
        ("local", 1000, None, "warning"),
        ("inline", 1000, 100, None),  # evaluating
        ("inline", 1000, 900, "problem"),
    ],
)
def test_a_silent_driver_is_told_from_one_that_starts(
    tmp_path: Path, mode: str, started_s: float, row_s: float | None, found: str | None
) -> None:
    settings = config(mode=mode, run="r", runs_dir=tmp_path)
    with contextlib.closing(RunDirectory.create(settings)) as directory:
        now_s = time.time()
        os.utime(directory.path / "lock", (now_s, now_s - started_s))
        if row_s is not None:
            (directory.path / "metrics.jsonl").write_text("{}\n")
            os.utime(directory.path / "metrics.jsonl", (now_s, now_s - row_s))
        said = [check.state for check in silence_checks(directory, settings, "process 1 on a-host")]
    assert said == ([found] if found else [])


def test_a_run_that_is_none_is_the_users_mistake(tmp_path: Path) -> None:
    done = qherd("doctor", "CartPole-v1", cwd=tmp_path)
    assert done.code == 2
    assert "CartPole-v1 is no run: it has no config.yaml" in done.err
