"""The replay servers of a run: claimed in order, shown when they are down, and one of the run's own kept at work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from waiting import until

from actors.supervision.restarts import CrashLoopError
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.server.embedded import EmbeddedServer
from deploy.sessions.replay_server import FROZEN_S, ExternalServers, LocalServer
from replay.chunk_log import open_inspector

MEMORY_BYTES = 8 << 20
BUDGET = 2
DOWN, UP = "replay servers that do not answer: {}; their actors wait", "all servers answer"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    with closing(RunDirectory.create(RunConfig(runs_dir=tmp_path, run="mine"))) as made:
        yield made


class Local:
    """A run's own server, under a clock that the test sets."""

    def __init__(self, directory: RunDirectory, server: EmbeddedServer) -> None:
        self.now_s, self.said = 0.0, list[str]()
        self.process = server
        self.server = LocalServer(directory, server, BUDGET, self.said.append, lambda: self.now_s)

    def die(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        until(lambda: not self.process.alive(), "the end of the server's process", 5)

    def nonce(self) -> str | None:
        with closing(open_inspector(self.process.url("learner"), "mine")) as keys:
            return keys.nonce()


@pytest.fixture
def local(directory: RunDirectory) -> Iterator[Local]:
    with EmbeddedServer("mine", MEMORY_BYTES) as server:
        yield Local(directory, server)


def test_a_server_that_died_is_back_after_its_wait_with_the_runs_claim(local: Local, directory: RunDirectory) -> None:
    local.server.claim()
    urls = local.server.urls
    local.die()
    local.server.tick()
    assert not local.process.alive(), "a wait comes first"
    assert local.said[0].startswith("the replay server died; it restarts in ")
    local.server.tick()
    assert (local.server.restarts.total, len(local.said)) == (1, 1), "the same death is counted once"
    local.now_s += 60
    local.server.tick()
    assert local.process.alive()
    assert local.nonce() == directory.fences.nonce, "it came back empty"
    assert local.server.urls == urls
    assert local.server.restarts.reasons == {"RuntimeError": 1}


def test_one_that_dies_again_and_again_ends_the_run(local: Local) -> None:
    for _ in range(BUDGET):
        local.die()
        local.server.tick()
        local.now_s += 60
        local.server.tick()
    local.die()
    with pytest.raises(CrashLoopError, match=rf"^the replay server died {BUDGET + 1} times"):
        local.server.tick()


def test_one_that_is_silent_for_long_is_killed_and_so_restarted(local: Local) -> None:
    local.server.report_down(1)
    local.now_s += FROZEN_S
    local.server.report_down(1)
    assert (local.process.alive(), local.said) == (True, [DOWN.format(1)])
    local.now_s += 1
    local.server.report_down(1)
    assert not local.process.alive()
    assert local.said[1:] == [f"the replay server has not answered for {FROZEN_S:.0f} s; it is killed"]
    local.server.tick()
    assert local.server.restarts.total == 1


def test_the_silence_is_counted_from_its_beginning(local: Local) -> None:
    for down in (1, 0, 1):
        local.now_s += FROZEN_S
        local.server.report_down(down)
    local.now_s += FROZEN_S
    local.server.report_down(1)
    assert local.process.alive()
    assert local.said == [DOWN.format(1), UP, DOWN.format(1)]


def test_others_servers_are_shown_and_left_alone(directory: RunDirectory) -> None:
    said = list[str]()
    servers = ExternalServers(directory, {"learner": (), "actor": ()}, said.append)
    for down in (0, 2, 2, 1, 0, 0):
        servers.tick()
        servers.report_down(down)
    assert said == [DOWN.format(2), DOWN.format(1), UP]
    assert servers.restarts.total == 0


def test_a_name_that_another_run_has_is_refused(local: Local, directory: RunDirectory, tmp_path: Path) -> None:
    local.server.claim()
    local.server.claim()
    with closing(RunDirectory.create(RunConfig(runs_dir=tmp_path / "elsewhere", run="mine"))) as other:
        servers = ExternalServers(other, local.server.urls, print)
        with pytest.raises(ConfigError, match=r"^another run 'mine' has its keys on .*: choose another --run$"):
            servers.claim()
