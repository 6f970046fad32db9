"""What a cluster's secrets are, who can do what with them, and what the wire shows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cli_runs import ROOT, qherd
from redis.backoff import NoBackoff
from redis.retry import Retry
from waiting import until

from deploy.config.errors import ConfigError
from deploy.server.credentials import write_secrets
from replay.chunk_log.protocol import ChunkId, Unavailable, UnusableServer
from replay.chunk_log.redis_log import RedisLog

SCRIPTS = ROOT / "deploy" / "ray"
RUN = "mine"
MAY = {
    "actor": "ping hello auth client|setname get getrange xadd xinfo|stream",
    "reader": "ping hello auth client|setname get getrange xread xrange xrevrange xlen xinfo|stream memory|usage",
    "health": "ping",
    "exporter": (
        "ping hello auth client|setname info config|get slowlog|get slowlog|len latency|latest latency|histogram"
    ),
}
"""All that these users may do, whatever the server's version adds."""
KEY = "qherd:mine:chunks:0"
MUST_NOT = [
    *(f"SET {KEY} x", f"DEL {KEY}", f"EXPIRE {KEY} 1", f"XTRIM {KEY} MAXLEN 0", f"XDEL {KEY} 0-1", f"XSETID {KEY} 9-9"),
    *(f"XGROUP CREATE {KEY} g 0", f"WATCH {KEY}", f"RENAME {KEY} x", f"DUMP {KEY}", "KEYS *", "SCAN 0", "FLUSHALL"),
    *("EVAL return-1 0", "FUNCTION LIST", "MULTI", "CONFIG SET maxmemory 0", "ACL LIST", "ACL WHOAMI", "MODULE LIST"),
    *(
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "SUBSCRIBE c",
        "PUBLISH c m",
        "MONITOR",
        "REPLICAOF NO ONE",
        "SHUTDOWN NOSAVE",
    ),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def words(folder: Path) -> set[str]:
    """The passwords and the token in a secrets folder."""
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != "users.acl"]
    return {word for text in texts for word in re.findall(r"[\w-]{30,}", text)}


@contextlib.contextmanager
def serving(folder: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """deploy/ray/server.sh on loopback, its folder as docs/clusters.md gives it: relative to where it is called."""
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PORT": str(port), "MAXMEMORY": "100mb"}
    with log.open("wb") as out:
        started = subprocess.Popen(
            [SCRIPTS / "server.sh", folder.relative_to(folder.parent.parent), "--bind", "127.0.0.1"],
            cwd=folder.parent.parent,
            env=env,
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: "eady to accept connections" in log.read_text(), "server", 20)
        yield started
    finally:
        started.terminate()
        started.wait(10)


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2)


# -- qherd secrets


def test_they_are_made_once_and_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    done = qherd("secrets", folder, "--server", "valkey:6379", "--run", RUN, cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o400, path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not any(word in done.out for word in words(folder))
    again = qherd("secrets", folder, "--server", "valkey:6379", "--run", RUN, cwd=tmp_path)
    assert (again.code, "stays as it is" in again.out) == (0, True)
    assert {path: path.read_bytes() for path in files} == files


def test_each_role_has_its_own_and_the_server_has_digests(tmp_path: Path) -> None:
    write_secrets(tmp_path / "s", "valkey:6379", RUN)
    write_secrets(tmp_path / "t", "valkey:6379", RUN)
    first, second = words(tmp_path / "s"), words(tmp_path / "t")
    assert len(first) == 7, "learner, actor, reader, exporter, health, grafana, token"
    assert first & second == set()
    users = (tmp_path / "s" / "server" / "users.acl").read_text()
    assert not any(word in users for word in first)
    assert users.startswith("user default reset off\n")
    assert sorted(path.name for path in (tmp_path / "s" / "ray").iterdir()) == ["ray_token"], "a worker node's"


def test_a_mount_point_is_filled_and_a_half_made_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    assert write_secrets(mounted, "valkey:6379", None)
    assert (mounted / "driver" / "redis_url").exists()
    assert not write_secrets(mounted, "valkey:6379", None)

    def fail(*_: object) -> int:
        raise OSError("no room")

    monkeypatch.setattr("deploy.server.credentials.os.fdopen", fail)
    with pytest.raises(OSError, match="no room"):
        write_secrets(tmp_path / "new", "valkey:6379", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mounted"]


@pytest.mark.parametrize("server", ["valkey", "valkey:", "a b:1", "u:p@h:1", "h:1/0"])
def test_a_server_that_is_no_address_is_refused(tmp_path: Path, server: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        write_secrets(tmp_path / "s", server, None)


# -- rights


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server of two runs, started as users do; its secrets."""
    folder, port = tmp_path_factory.mktemp("plain"), free_port()
    write_secrets(folder / "s", f"127.0.0.1:{port}", RUN)
    with serving(folder / "s" / "server", port, folder / "log"):
        yield folder / "s"


def url_of(secrets: Path, role: str) -> str:
    if role == "exporter":
        text = (secrets / "exporter" / "passwords.json").read_text()
        password = re.findall(r'"([\w-]{30,})"', text)[0]
        server = re.findall(r'"redis://([\d.:]+)"', text)[0]
        return f"redis://exporter:{password}@{server}"
    if role == "health":
        server = url_of(secrets, "reader").rpartition("@")[2]
        return f"redis://health:{(secrets / 'server' / 'health_password').read_text()}@{server}"
    names = {"learner": "driver/redis_url", "actor": "driver/redis_actor_url", "reader": "reader/redis_url"}
    return (secrets / names[role]).read_text()


@pytest.mark.parametrize("role", MAY)
def test_a_role_may_do_this_and_nothing_else(plain: Path, role: str) -> None:
    """By the server's own word, and by the rules that it has."""
    with client(url_of(plain, role)) as user:
        for command in MUST_NOT:
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*command.split())
    users = (plain / "server" / "users.acl").read_text()
    granted = re.search(rf"^user {role} .*-@all (.*)$", users, re.M)
    assert granted is not None
    assert granted[1].split() == [f"+{each}" for each in MAY[role].split()]


def test_an_actor_does_its_work_with_its_own_user_and_reads_no_other_run(plain: Path) -> None:
    with contextlib.closing(RedisLog(url_of(plain, "actor"), RUN)) as actor:
        actor.append(0, ChunkId(1, 1), b"rows")
    with contextlib.closing(RedisLog(url_of(plain, "learner"), RUN)) as learner:
        learner.check()
        assert [entry.data for entry in learner.read({0: ChunkId(0, 0)}, 1 << 20)] == [b"rows"]
    for role in ("actor", "learner", "reader"):
        with client(url_of(plain, role)) as user, pytest.raises(redis.exceptions.NoPermissionError):
            user.get("qherd:other:weights")
    for role in ("exporter", "health"):
        with client(url_of(plain, role)) as user:
            assert user.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command("GET", "qherd:mine:weights")
    with client(url_of(plain, "exporter")) as exporter:
        assert exporter.info()["used_memory"] > 0


def test_nobody_gets_in_without(plain: Path) -> None:
    server = url_of(plain, "reader").rpartition("@")[2]
    for who in ("", "default@", ":guess@", "actor:guess@", "learner:@"):
        url, refusal = f"redis://{who}{server}", r"(?i)auth|password"
        with client(url) as stranger, pytest.raises(redis.exceptions.RedisError, match=refusal):
            stranger.ping()


def test_a_server_may_have_an_address_of_either_kind(tmp_path: Path) -> None:
    for name, server in (("name", "valkey:6379"), ("four", "192.0.2.7:6379"), ("six", "[fd00::7]:6379")):
        assert write_secrets(tmp_path / name, server, RUN)
        assert url_of(tmp_path / name, "learner").endswith(f"@{server}/0")
    for wrong in ("fd00::7:6379", "[valkey]:6379", "valkey", "[fd00::7]"):
        with pytest.raises(ConfigError, match=r"host:port"):
            write_secrets(tmp_path / "none", wrong, RUN)


# -- TLS


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server with a certificate of its own authority; the folder has two authorities, ``s`` and ``other``."""
    if not (shutil.which("valkey-server") or shutil.which("redis-server")):
        assert not os.environ.get("CI"), "CI has to install redis-server (.ci/run)"
        pytest.skip("no server with TLS on PATH: apt-get install redis-server")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    write_secrets(folder / "s", f"127.0.0.1:{port}", RUN, "rediss", f"ssl_ca_certs={folder}/s/server/ca.crt")
    for place, host in ((folder / "s" / "server", "127.0.0.1"), (folder / "other", "elsewhere")):
        subprocess.run([SCRIPTS / "certificates.sh", place, host], check=True, timeout=30)
    with serving(folder / "s" / "server", port, folder / "log"):
        yield folder


def test_actors_and_learner_meet_over_tls(encrypted: Path) -> None:
    for role in ("actor", "learner"):
        assert url_of(encrypted / "s", role).startswith("rediss://")
    with contextlib.closing(RedisLog(url_of(encrypted / "s", "actor"), RUN)) as actor:
        actor.append(0, ChunkId(1, 1), b"rows")
    with contextlib.closing(RedisLog(url_of(encrypted / "s", "learner"), RUN)) as learner:
        learner.check()
        assert [entry.data for entry in learner.read({0: ChunkId(0, 0)}, 1 << 20)] == [b"rows"]


def test_a_server_of_another_authority_and_one_without_tls_are_refused(encrypted: Path, plain: Path) -> None:
    """Neither side says a password to whom it does not know, nor in clear."""
    url = url_of(encrypted / "s", "actor")
    unknown = url.replace("/s/server/ca.crt", "/other/ca.crt")
    for wrong in (unknown, url.partition("?")[0], url.partition("?")[0].replace("rediss:", "redis:")):
        with contextlib.closing(RedisLog(wrong, RUN, timeout_s=1)) as log, pytest.raises(Unavailable) as refused:
            log.status(0)
        assert not any(word in str(refused.value) for word in words(encrypted / "s"))
    in_clear = url_of(encrypted / "s", "learner").partition("?")[0].replace("rediss:", "redis:")
    with (
        contextlib.closing(RedisLog(in_clear, RUN, timeout_s=1)) as log,
        pytest.raises(UnusableServer, match="speaks TLS"),
    ):
        log.check()
    secure = url_of(plain, "actor").replace("redis:", "rediss:")
    with contextlib.closing(RedisLog(secure, RUN, timeout_s=1)) as log, pytest.raises(Unavailable):
        log.status(0)


def test_a_certificate_is_for_the_servers_name(encrypted: Path) -> None:
    url = url_of(encrypted / "s", "learner").replace("127.0.0.1:", "localhost:")
    with contextlib.closing(RedisLog(url, RUN)) as log, pytest.raises(Unavailable):
        log.status(0)


def test_the_servers_command_line_has_no_password(plain: Path, encrypted: Path) -> None:
    secrets = words(plain) | words(encrypted / "s")
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                shown = (entry / "cmdline").read_bytes().decode(errors="replace")
                assert not any(secret in shown for secret in secrets)
    for log in (plain.parent / "log", encrypted / "log"):
        assert not any(secret in log.read_text() for secret in secrets)


# -- qherd itself


def test_a_password_from_a_file_is_shown_nowhere(plain: Path, tmp_path: Path) -> None:
    """In no --help, no dry run, and no error."""
    env = {
        "QHERD_REDIS_URL_FILE": str(plain / "driver" / "redis_url"),
        "QHERD_REDIS_ACTOR_URL_FILE": str(plain / "driver" / "redis_actor_url"),
    }
    for arguments in (["--help"], ["--dry-run"], ["--mode", "cluster", "--ray.address", "127.0.0.1:1"]):
        done = qherd("train", "CartPole-v1", *arguments, cwd=tmp_path, env=env)
        assert not any(word in done.out + done.err for word in words(plain)), arguments
