"""Another user of the machine, while a run is at work: nothing to write, no secret to read, no port beyond loopback.

And a start in a strange place: other tools' variables, a folder for temporary files that cannot be used, relative
paths."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Run, qherd, running, summary
from others import all_below, listeners, open_by_mode, reach_of_nobody

START_S = 60.0
SMALL = (
    *("--actors.count", "1", "--actors.lanes", "2", "--learner.network.hidden", "16", "--replay.min-rows", "200"),
    *("--replay.capacity-rows", "5000", "--learner.batch", "32", "--eval.threshold", "None", "--metrics.port", "0"),
)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter and read, as homes often are."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def at_work(mode: str, public: Path) -> Iterator[Run]:
    """A run whose user lets everybody write what they make, with a folder for temporary files that all share."""
    before = os.umask(0)
    try:
        with running("train", "CartPole-v1", "--run", "r", "--mode", mode, *SMALL, cwd=public) as run:
            os.umask(before)
            run.tmp.parent.chmod(0o755)
            run.tmp.chmod(0o1777)
            run.until(lambda: run.figure("r", "updates") > 0, START_S, "update")
            run.until((public / "runs" / "r" / "scrape.json").exists, 10, "/metrics")
            yield run
    finally:
        os.umask(before)


def seen_by_all(run: Run) -> list[Path]:
    """Where a run's files, sockets and memory are."""
    mapped = {
        path
        for pid in (*run.others(), run.process.pid)
        for path in re.findall(r" (/dev/shm/\S+)", _read(Path(f"/proc/{pid}/maps")))
    }
    return [*all_below(run.cwd / "runs", run.tmp), *map(Path, sorted(mapped))]


def secrets_of(run: Run) -> list[str]:
    """What others must not know: the server's URL and password, and Ray's token."""
    url = _read(run.cwd / "runs" / "r" / "replay.url")
    environs = [_read(Path(f"/proc/{pid}/environ")) for pid in run.others()]
    tokens = {token for environ in environs for token in re.findall(r"RAY_AUTH_TOKEN=(\w+)", environ)}
    return [*([url, re.findall(r"://\w+:([^@]+)@", url)[0]] if url else []), *tokens]


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["inline", pytest.param("local", marks=pytest.mark.long)])
def test_nothing_is_open_to_others(mode: str, public: Path) -> None:
    with at_work(mode, public) as run:
        ports = listeners([*run.others(), run.process.pid])
        assert ports, "its /metrics at the least"
        assert [port for port in ports if not port.local] == []
        assert list(open_by_mode(run.cwd / "runs")) == []
        assert list(open_by_mode(run.tmp)) == []
        homes = list(run.tmp.glob("qherd-*"))
        assert [home.stat().st_mode & 0o777 for home in homes] == [0o700] * len(homes)
        assert (len(homes) > 0) == (mode == "local")


@pytest.mark.root
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["inline", "local"])
def test_nobody_reaches_nothing(mode: str, public: Path) -> None:
    with at_work(mode, public) as run:
        paths = seen_by_all(run)
        assert len(paths) > 8
        reach = reach_of_nobody(paths)
        assert reach.writable == [str(run.tmp)], "the folder that all share, and nothing in it"
        words = secrets_of(run)
        assert len(words) == (3 if mode == "local" else 0), "replay.url, its password, Ray's token"
        holders = {str(path) for path in paths if any(word in _read(path) for word in words)}
        assert holders.isdisjoint(reach.readable)
        assert (str(run.cwd / "runs" / "r" / "replay.url") in holders) == (mode == "local")
        assert str(run.cwd / "runs" / "r" / "config.yaml") in reach.readable, "nobody did look"


def test_the_look_at_others_finds_what_is_open(public: Path) -> None:
    """The two ways of looking would notice a mistake."""
    (public / "closed").mkdir(mode=0o700)
    (public / "closed" / "in").mkdir()
    (public / "closed" / "in").chmod(0o777)
    assert list(open_by_mode(public)) == []
    (public / "closed").chmod(0o711)
    assert list(open_by_mode(public)) == [public / "closed" / "in"]
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("127.0.0.1", 0)):
        assert sorted(each.local for each in listeners([os.getpid()]) if each.address[0].isdigit()) == [False, True]


RELATIVE = """
import os
from pathlib import Path
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Asset(CartPoleEnv):
    def __init__(self, level="levels/one.txt"):
        super().__init__()
        self.length = int(Path(level).read_text())

class Wanders(CartPoleEnv):
    def __init__(self):
        super().__init__()
        os.chdir("/")

gym.register("Asset-v0", Asset, max_episode_steps=50)
gym.register("Wanders-v0", Wanders, max_episode_steps=50)
"""
STRANGE = {
    "RAY_ADDRESS": "auto",
    "RAY_REDIS_ADDRESS": "127.0.0.1:1",
    "RAY_NAMESPACE": "theirs",
    "RAY_RUNTIME_ENV_HOOK": "no.such.hook",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
    "RAY_OVERRIDE_RESOURCES": '{"CPU": 0}',
    "RAY_TMPDIR": "/nonexistent",
    "RAY_AUTH_TOKEN_PATH": "/nonexistent",
    "RAY_USE_TLS": "1",
    "RAY_TLS_SERVER_CERT": "/nonexistent",
    "RAY_TLS_SERVER_KEY": "/nonexistent",
    "RAY_TLS_CA_CERT": "/nonexistent",
}
"""What a pod of KubeRay, a job of Ray's, or a user of another cluster has set."""


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A user's folder with packages of our names, an environment in ./envs and its files in ./levels."""
    for name in ("actors", "deploy", "learner", "replay"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    for folder, file, text in (("envs", "places.py", RELATIVE), ("levels", "one.txt", "5")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    return tmp_path


@pytest.mark.long
@pytest.mark.timeout(180)
def test_other_tools_variables_strange_folders_and_relative_paths_do_not_matter(user: Path) -> None:
    """All at once, since each real start takes seconds. The environment is found by a relative PYTHONPATH."""
    (user / "a b" / ("long" * 30)).mkdir(parents=True)
    env = STRANGE | {"PYTHONPATH": "envs", "TMPDIR": f"a b/{'long' * 30}"}
    options = (*SMALL, "--run", "r", "--budget.env-steps", "2000", "--replay.memmap-dir", ".", "--replay.storage")
    done = qherd("train", "places:Asset-v0", *options, "memmap", cwd=user, env=env, deadline_s=150)
    assert done.code == 0, done
    assert f"TMPDIR {user}/a b/{'long' * 30} is too long" in " ".join(done.out.split())
    figures = summary(user / "runs" / "r")
    assert figures["env_steps"] >= 2000
    assert figures["actor_restarts"] == figures["evaluator_restarts"] == figures["env_rebuilds"] == 0


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["inline", "local"])
def test_an_environment_that_changes_the_folder_breaks_nothing(mode: str, user: Path) -> None:
    options = (*SMALL, "--run", "r", "--mode", mode, "--env.path", "envs", "--checkpoint.dir", "kept")
    done = qherd("train", "places:Wanders-v0", *options, "--budget.env-steps", "2000", cwd=user, deadline_s=150)
    assert done.code == 0, done
    assert summary(user / "runs" / "r")["actor_restarts"] == 0
    assert list((user / "kept" / "r").iterdir())
    done = qherd("resume", "runs/r", "--budget.env-steps", "3000", cwd=user, deadline_s=150)
    assert done.code == 0, done
    assert summary(user / "runs" / "r")["env_steps"] >= 3000
