"""Ray's processes after their driver has shut it down: waited for, then killed, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import until

from deploy.cluster.ray_processes import end_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
WORKER = "ray::LearnerWorker"


class Processes:
    """Sleeping processes with names and tokens of a Ray's."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(
        self, token: str, seconds: float, title: str = WORKER, log: Path | str = os.devnull
    ) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "RAY_AUTH_TOKEN": token}
        with open(log, "wb") as out:  # noqa: PTH123  a path or a name
            process = subprocess.Popen(["bash", "-c", f"exec -a {title} sleep {seconds}"], env=environ, stdout=out)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        command = Path(f"/proc/{process.pid}/cmdline")
        until(lambda: command.read_bytes().startswith(title.encode()), title)
        return process


@pytest.fixture
def processes() -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(stack)


def test_a_worker_that_ends_by_itself_is_waited_for(processes: Processes, tmp_path: Path) -> None:
    worker = processes.start("mine", 0.3)
    end_processes("mine", tmp_path, grace_s=20)
    assert worker.wait(1) == 0


def test_those_that_do_not_are_killed_and_nobody_elses_are(processes: Processes, tmp_path: Path) -> None:
    """A worker by its title, what has not got one yet by Ray's folder among its arguments, and one whose title was
    written over its variables by its log. Another Ray's workers, and what else has the token or logs there, such as a
    tracker's program that the driver started or what an environment did, stay."""
    (ray := tmp_path / "ray").mkdir()
    (link := tmp_path / "link").symlink_to(ray)
    killed = [
        processes.start("mine", 60),
        processes.start("mine", 60, f"python--temp-dir={link}/x"),
        processes.start("", 60, "ray::DashboardAgent", ray / "agent.log"),
    ]
    others = [
        processes.start("another", 60),
        processes.start("mine", 60, "tracker"),
        processes.start("another", 60, "emulator", ray / "worker.log"),
    ]
    began = time.monotonic()
    end_processes("mine", link, grace_s=0.2)
    assert time.monotonic() - began >= 0.2
    assert [each.wait(1) for each in killed] == [-9, -9, -9]
    assert [each.poll() for each in others] == [None, None, None]


def test_where_there_are_none_nothing_is_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    end_processes("nobody's", tmp_path, grace_s=60)
    assert time.monotonic() - began < 30
