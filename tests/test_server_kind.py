"""Servers that cannot hold a run, or not its values, and what else may answer at their address, with the remedies."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cli_runs import qherd
from lending import plenty
from redis.backoff import NoBackoff
from redis.retry import Retry
from waiting import until

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.diagnosis.preflight import preflight
from deploy.planning.memory import chunk_bytes
from deploy.planning.preconditions import check, check_values
from deploy.server.acl import acl_rules
from deploy.server.embedded import EmbeddedServer
from replay.chunk import Schema
from replay.chunk_log.protocol import ChunkId, UnusableServer
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.server_kind import Bounds

MIB = 1 << 20
HUGE = Schema((36_000_000,), "uint8", 2)
RUN = "r"


@pytest.fixture(scope="module")
def strict(server_binary: Path) -> Iterator[EmbeddedServer]:
    """A server that takes values of 1 MiB at the most; ``managed`` is a learner without CONFIG, as at providers."""
    managed = acl_rules(RUN)["learner"].replace(" +config|get", "")
    roles = {**acl_rules(RUN), "managed": managed, "admin": "~* &* +@all"}
    with EmbeddedServer(RUN, 100 * MIB, binary=server_binary, roles=roles) as server:
        with redis.Redis.from_url(server.url("admin")) as client:
            client.config_set("proto-max-bulk-len", MIB)
        yield server


def config(**more: object) -> RunConfig:
    return RunConfig.model_validate({"env": {"id": "CartPole-v1"}, **more})


# -- the length of values


@pytest.mark.parametrize("role", ["actor", "managed", "learner"])
def test_a_chunk_above_the_servers_bound_is_refused_and_not_repeated_for_ever(
    strict: EmbeddedServer, role: str
) -> None:
    with contextlib.closing(RedisLog(strict.url(role), RUN)) as log:
        log.check_length(MIB)
        log.append(role == "actor", ChunkId(1, 1), bytes(MIB))
        with pytest.raises(
            UnusableServer, match=rf"a value of {MIB + 1:,} bytes.*proto-max-bulk-len.*--actors\.chunk_steps"
        ):
            log.append(role == "actor", ChunkId(1, 2), bytes(MIB + 1))
        with pytest.raises(UnusableServer, match=f"{MIB + 1:,} bytes"):
            log.check_length(MIB + 1)
        log.status(0)


def test_weights_above_the_servers_bound_are_refused(strict: EmbeddedServer) -> None:
    with contextlib.closing(RedisLog(strict.url("learner"), RUN)) as log:
        log.publish(1, plenty(), bytes(MIB))
        with pytest.raises(UnusableServer, match=r"2,097,152 bytes.*--learner\.network\.hidden"):
            log.publish(1, plenty(), bytes(2 * MIB))


@pytest.mark.parametrize("role", ["actor", "learner"])
def test_a_bound_of_requests_that_somebody_lowers_is_told_and_not_met_for_ever(server_binary: Path, role: str) -> None:
    """A value that was taken before is cut off in the middle from then on; shorter ones are taken."""
    roles = {**acl_rules(RUN), "admin": "~* &* +@all"}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(RUN, 100 * MIB, binary=server_binary, roles=roles))
        admin = stack.enter_context(redis.Redis.from_url(server.url("admin")))
        log = stack.enter_context(contextlib.closing(RedisLog(server.url(role), RUN)))
        sequence = itertools.count(1)

        def send(nbytes: int) -> None:
            if role == "actor":
                log.append(0, ChunkId(1, next(sequence)), bytes(nbytes))
            else:
                log.publish(1, plenty(), bytes(nbytes))

        send(3 * MIB)
        admin.config_set("client-query-buffer-limit", MIB)
        with pytest.raises(UnusableServer, match=r"a value of 3,145,728 bytes .*raise its client-query-buffer-limit"):
            send(3 * MIB)
        send(MIB - 4096)
        admin.config_set("client-query-buffer-limit", 4 * MIB)
        send(3 * MIB)


def test_a_server_that_is_away_refuses_no_length(server_binary: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(RUN, 100 * MIB, binary=server_binary))
        log = stack.enter_context(contextlib.closing(RedisLog(server.url("learner"), RUN, timeout_s=1)))
        log.check_length(2 * MIB)
        server.kill()
        log.check_length(1 << 40)


def test_bounds_are_the_servers_where_it_tells_them(strict: EmbeddedServer) -> None:
    with contextlib.closing(RedisLog(strict.url("learner"), RUN)) as log:
        assert log.bounds() == Bounds(value=MIB, request=1 << 30)
    with contextlib.closing(RedisLog(strict.url("managed"), RUN)) as log:
        assert log.bounds() == Bounds()


def test_a_chunk_above_512_mb_is_refused_before_the_start_with_both_numbers() -> None:
    one = {"network": {"hidden": [1]}}
    settings = config(actors={"chunk_steps": 1}, learner=one)
    assert chunk_bytes(settings, HUGE) > 16 * 36_000_000
    with pytest.raises(ConfigError, match=r"a chunk of 16 rows would have 576,\d+,\d+ bytes.* 536,870,912 at the most"):
        check_values(settings, HUGE)
    check_values(config(actors={"chunk_steps": 1, "lanes": 8}, learner=one), HUGE)
    check_values(config(mode="inline", actors={"chunk_steps": 1}), HUGE)
    wide = {"network": {"hidden": [16384, 16384]}}
    with pytest.raises(ConfigError, match=r"the weights would have .* 536,870,912 at the most.*--learner\.network"):
        check_values(config(learner=wide), Schema((4,), "float32", 2))


@pytest.mark.parametrize("role", ["learner", "managed"])
def test_a_clusters_own_bound_is_asked_for(strict: EmbeddedServer, role: str) -> None:
    """c. 1.8 MB a chunk: a managed server does not tell its bound, and is asked whether it takes that."""
    settings = config(
        mode="cluster",
        redis={"url": strict.url(role)},
        ray={"address": "auto"},
        actors={"lanes": 4, "chunk_steps": 16},
        learner={"network": {"hidden": [4]}},
    )
    pictures = Schema((84, 84, 4), "uint8", 2)
    bound = "1,048,576 at the most" if role == "learner" else "proto-max-bulk-len"
    with pytest.raises(ConfigError, match=rf"{chunk_bytes(settings, pictures):,} bytes.*{bound}"):
        check_values(settings, pictures)
    check_values(settings, Schema((84, 84), "uint8", 2))


ENVIRONMENT = """
import gymnasium as gym, numpy as np
class Huge(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (36_000_000,), np.uint8)
    action_space = gym.spaces.Discrete(2)
    one = np.ones(36_000_000, np.uint8)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.one, {}
    def step(self, action):
        return self.one, 0.0, False, False, {}
gym.register("Huge-v0", entry_point=Huge)
"""


@pytest.mark.parametrize("command", ["plan", "train"])
def test_the_commands_refuse_it(tmp_path: Path, command: str) -> None:
    (tmp_path / "huge.py").write_text(ENVIRONMENT)
    options = ["--env.path", ".", "--actors.chunk-steps", "1", "--replay.capacity-rows", "64", "--replay.min-rows", "4"]
    options += ["--actors.count", "1", "--learner.batch", "2", "--learner.network.hidden", "1", "--actors.lanes", "16"]
    done = qherd(command, "huge:Huge-v0", *options, "--replay.storage", "memmap", cwd=tmp_path)
    assert done.code == 2, done
    assert "536,870,912 at the most (proto-max-bulk-len); lower --actors.chunk_steps" in done.err, done
    told = [line for line in done.err.splitlines() if " is being " not in line]  # a busy machine takes its time
    assert len(told) == 1


# -- what answers


def redis_server(folder: Path, *options: str, port: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Debian's server with these options."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH: apt-get install redis-server")
    return _serving([binary, *options, "--port", str(port), "--bind", "127.0.0.1"], folder, port)


@contextlib.contextmanager
def _serving(command: list[str], folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{port}.log").open("wb") as log:
        started = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    client = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
    try:
        with client:
            until(lambda: _answers(client), (folder / f"{port}.log").read_text())
        yield started
    finally:
        started.kill()
        started.wait()


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def refusal(url: str) -> str:
    """What the check of the server says; one line."""
    with contextlib.closing(RedisLog(url, RUN)) as log, pytest.raises(UnusableServer) as refused:
        log.check()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_node_of_a_redis_cluster_a_replica_and_a_sentinel_are_told_apart(tmp_path: Path) -> None:
    primary, node, replica, sentinel = free_port(), free_port(), free_port(), free_port()
    (tmp_path / "sentinel.conf").write_text(f"sentinel monitor mine 127.0.0.1 {primary} 1\n")
    common = ("--save", "", "--appendonly", "no")
    with contextlib.ExitStack() as stack:
        stack.enter_context(redis_server(tmp_path, *common, port=primary))
        stack.enter_context(redis_server(tmp_path, *common, "--cluster-enabled", "yes", port=node))
        stack.enter_context(redis_server(tmp_path, *common, "--replicaof", f"127.0.0.1 {primary}", port=replica))
        stack.enter_context(redis_server(tmp_path, "sentinel.conf", "--sentinel", port=sentinel))
        assert "cluster mode disabled" in refusal(f"redis://127.0.0.1:{node}")
        assert f"a replica, which is read-only: give the URL of its primary, 127.0.0.1:{primary}" in refusal(
            f"redis://127.0.0.1:{replica}"
        )
        assert "is a Sentinel" in refusal(f"redis://127.0.0.1:{sentinel}")
        with contextlib.closing(RedisLog(f"redis://127.0.0.1:{primary}", RUN)) as log:
            log.check()
        # the other way round of TLS: a server that has none
        assert "speaks no TLS: give redis://" in refusal(f"rediss://127.0.0.1:{primary}")


def test_an_http_server_is_named() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert "answers as an HTTP server does" in refusal(f"redis://u:secret@127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


# -- addresses in a mode that does not use them


@pytest.mark.parametrize("mode", ["local", "inline"])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"redis": {"url": "redis://:s3cr3t@h"}}, "--redis.url"),
        ({"redis": {"urls": ("redis://:s3cr3t@h",)}}, "--redis.urls"),
        ({"redis": {"url": "redis://h", "actor_url": "redis://:s3cr3t@h"}}, "--redis.url, --redis.actor_url"),
        ({"ray": {"address": "auto"}}, "--ray.address"),
        ({"ray": {"autoscales": True}}, "--ray.autoscales"),
    ],
)
def test_an_address_that_the_mode_does_not_use_is_refused(mode: str, options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"mode {mode} uses no {named} .*--mode cluster") as refused:
        check(config(mode=mode, **options))
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_the_commands_refuse_an_unused_address(tmp_path: Path, command: str) -> None:
    env = {"QHERD_REDIS_URL": "redis://:s3cr3t@h"}
    done = qherd(command, "CartPole-v1", "--mode", "inline", cwd=tmp_path, env=env)
    assert done.code == 2, done
    assert "the mode inline uses no --redis.url" in done.err
    assert "s3cr3t" not in done.err


def test_the_doctor_finds_an_unused_address() -> None:
    settings = config(redis={"url": "redis://h"})
    found = {each.name: each for each in itertools.islice(preflight(settings), 2)}
    assert (found["limits"].state, "uses no --redis.url" in found["limits"].found) == ("problem", True)
