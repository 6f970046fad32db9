"""The cluster mode against a real Ray cluster and a real, password-protected server on TCP, both started here."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from cli_runs import MARK, ROOT, Finished, qherd, running, summary
from waiting import until

import replay
from deploy.server.binary import find_server
from learner.checkpoint import names, read
from replay.identity import PACKAGES

PASSWORD = "s3cr3t"
START_S = 60.0
RAY = Path(sys.executable).with_name("ray")


@dataclass
class Cluster:
    ray_port: int
    redis_port: int
    client: redis.Redis
    secrets: dict[str, str]
    logs: Path
    """Where Ray keeps what its workers print."""

    @property
    def options(self) -> list[str]:
        url = f"redis://:{PASSWORD}@127.0.0.1:{self.redis_port}/0"
        return ["--mode", "cluster", "--ray.address", f"127.0.0.1:{self.ray_port}", "--redis.url", url]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def process(command: list[str | Path], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; afterwards end that session and what it has marked."""
    mark = uuid.uuid4().hex
    with log.open("wb") as out:
        started = subprocess.Popen(command, env={**env, MARK: mark}, stdout=out, stderr=out, start_new_session=True)
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(15)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        started.wait(5)


def server_command(port: int) -> list[str | Path]:
    binary = shutil.which("redis-server") or find_server()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
    return [*command, "--save", "", "--dir", "/tmp"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """``ray start --block`` (never ``ray stop``, which ends every Ray of this machine) and a server."""
    secrets = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2, "RAY_USAGE_STATS_ENABLED": "0"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "QHERD_"))}
    ray_port, redis_port = free_port(), free_port()
    ray_command: list[str | Path] = [
        RAY,
        "start",
        "--head",
        "--block",
        f"--port={ray_port}",
        "--node-ip-address=127.0.0.1",
    ]
    ray_command += ["--num-cpus=2", "--object-store-memory=100000000", "--include-dashboard=false"]
    ray_command += ['--resources={"simulator": 2}']
    with contextlib.ExitStack() as stack:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)))
        stack.enter_context(process(server_command(redis_port), kept, tmp / "redis.log"))
        ray_command.append(f"--temp-dir={tmp}")
        head = stack.enter_context(process(ray_command, {**kept, **secrets}, tmp / "ray.log"))
        client = stack.enter_context(redis.Redis(port=redis_port, password=PASSWORD, socket_timeout=5))
        until(lambda: answers(redis_port) and client.ping(), "answer of the server", 10)
        until(lambda: "started" in (tmp / "ray.log").read_text() or head.poll() is not None, "Ray", START_S)
        until(lambda: answers(ray_port), f"GCS: {(tmp / 'ray.log').read_text()}", START_S)
        yield Cluster(ray_port, redis_port, client, secrets, tmp / "session_latest" / "logs")


@dataclass
class Ran:
    folder: Path
    done: Finished
    before: dict[bytes, object]


OTHERS = {b"qherd:other:weights": b"theirs", b"qherd:r2:chunks:0": b"theirs", b"app:session": b"theirs"}


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    cwd = tmp_path_factory.mktemp("cluster")
    for key, value in OTHERS.items():
        cluster.client.set(key, value)
    arguments = ["train", "CartPole-v1", "--run", "r", "--budget.env-steps", "20000", "--actors.count", "2"]
    arguments += ["--actors.resources", "{simulator: 1}", "--actors.cpus", "0.5", "--learner.cpus", "0.5"]
    arguments += ["--eval.threshold", "None"]  # or a lucky policy ends the run before its budget
    with running(*arguments, *cluster.options, cwd=cwd, env=cluster.secrets) as run:
        run.until(lambda: run.figure("r", "actors_alive") == 2, START_S, "two actors")
        done = run.finish(90)
    return Ran(cwd, done, {key: cluster.client.get(key) for key in OTHERS})


@pytest.mark.timeout(240)
def test_it_trains_on_the_cluster(ran: Ran) -> None:
    assert ran.done.code == 0, ran.done
    assert ran.done.err == ""
    written = summary(ran.folder / "runs" / "r")
    assert (written["mode"], written["exit_reason"]) == ("cluster", "budget of env steps")
    assert written["chunks_stored"] > 0
    assert written["updates"] > 0
    assert (written["rows_lost"], written["chunks_refused"]) == ({}, {})


def test_only_keys_of_the_run_are_touched(cluster: Cluster, ran: Ran) -> None:
    assert ran.before == OTHERS
    keys = set(cluster.client.scan_iter()) - set(OTHERS)
    assert [key for key in keys if not key.startswith(b"qherd:r:")] == []
    assert b"qherd:r:meta" in keys
    assert cluster.client.xlen("qherd:r:chunks:0") < 20_000 / 8, "the learner trims"


def test_no_file_and_no_message_has_a_secret(cluster: Cluster, ran: Ran) -> None:
    files = [path for path in ran.folder.rglob("*") if path.is_file()]
    for secret in (PASSWORD, cluster.secrets["RAY_AUTH_TOKEN"]):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert secret not in ran.done.out + ran.done.err
    assert files


def test_its_processes_log_to_rays_own_files_too(cluster: Cluster, ran: Ran) -> None:
    """On a node that does not see the run's folder they are all that there is."""
    rays = "".join(path.read_text(errors="replace") for path in cluster.logs.glob("worker-*.err"))
    own = "".join(path.read_text() for path in (ran.folder / "runs" / "r" / "logs").iterdir())
    begun = ["evaluator 1 of the run", "incarnation 1 of slot 0", "incarnation 1 of slot 1", "learner with fence 1"]
    for text in (rays, own):
        assert sorted(re.findall(rf"^\S+ INFO qherd\.\w+: ({'|'.join(begun)})", text, re.M)) == begun
        assert PASSWORD not in text


def test_the_cluster_lives_on_and_nothing_of_the_run_does(cluster: Cluster, ran: Ran) -> None:
    assert ran.done.leftovers == []
    assert answers(cluster.ray_port)
    until(lambda: not [c for c in cluster.client.client_list() if c["name"] == "qherd"], "end of all connections", 10)


def test_a_second_run_of_that_name_on_the_server_is_refused(cluster: Cluster, ran: Ran, tmp_path: Path) -> None:
    assert ran.done.code == 0
    before = {key: cluster.client.dump(key) for key in cluster.client.scan_iter("qherd:r:*")}
    done = qherd("train", "CartPole-v1", "--run", "r", *cluster.options, cwd=tmp_path, env=cluster.secrets)
    assert done.code == 2, done
    assert "'r'" in done.err
    assert "--run" in done.err
    assert PASSWORD not in done.err
    assert done.leftovers == []
    assert {key: cluster.client.dump(key) for key in cluster.client.scan_iter("qherd:r:*")} == before
    assert not (tmp_path / "runs").exists(), "nothing has run: nothing is kept"


def test_what_it_left_is_shown_read_and_at_last_removed(cluster: Cluster, ran: Ran) -> None:
    """From its directory, with the URL that config.yaml does not keep; in the end only others' keys are there."""
    url = cluster.options[-1]
    told = qherd("replay", "stats", "runs/r", cwd=ran.folder)
    assert told.code == 2
    assert "--redis.url, QHERD_REDIS_URL" in told.err
    shown = qherd("replay", "stats", "runs/r", "--json", cwd=ran.folder, env={"QHERD_REDIS_URL": url})
    assert (shown.code, shown.err) == (0, ""), shown
    found = json.loads(shown.out)
    assert (found["alive"], found["env_steps"]) == (False, summary(ran.folder / "runs" / "r")["env_steps"])
    assert [line["slot"] for line in found["slots"]] == [0, 1]
    assert found["total"]["rows_per_second"] == 0
    with replay.attach(url, "r") as memory:
        memory.poll()
        assert memory.mirror.rows == found["total"]["rows"] > 0
    removed = qherd("clean", "runs/r", "--redis.url", url, "--yes", cwd=ran.folder)
    assert (removed.code, removed.err) == (0, ""), removed
    assert PASSWORD not in told.err + shown.out + removed.out
    assert {key: cluster.client.get(key) for key in cluster.client.scan_iter()} == OTHERS


def test_rays_gcs_given_as_redis_is_told(cluster: Cluster, tmp_path: Path) -> None:
    options = [*cluster.options[:-1], f"redis://:{PASSWORD}@127.0.0.1:{cluster.ray_port}"]
    done = qherd("train", "CartPole-v1", *options, cwd=tmp_path, env=cluster.secrets)
    assert done.code == 2, done
    assert "Ray's GCS" in done.err
    assert "--port=6380" in done.err
    assert PASSWORD not in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_wrong_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    env = {**cluster.secrets, "RAY_AUTH_TOKEN": "0" * 64}
    done = qherd("train", "CartPole-v1", *cluster.options, cwd=tmp_path, env=env, deadline_s=120)
    assert done.code == 2, done
    assert "RAY_AUTH" in done.err or "token" in done.err
    assert "Traceback" not in done.err
    assert done.leftovers == []


@pytest.mark.timeout(180)
def test_workers_with_other_sources_are_refused_with_both_paths(cluster: Cluster, tmp_path: Path) -> None:
    """The driver runs from a changed copy, the cluster's nodes from the installed one."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / "copy" / package)
    with (tmp_path / "copy" / "replay" / "limiter.py").open("a") as source:
        source.write("# changed\n")
    env = {**cluster.secrets, "PYTHONPATH": str(tmp_path / "copy")}
    (tmp_path / "cwd").mkdir()
    done = qherd("train", "CartPole-v1", *cluster.options, cwd=tmp_path / "cwd", env=env, deadline_s=120)
    assert done.code in (1, 2), done
    assert str(tmp_path / "copy" / "replay") in done.err
    assert str(ROOT / "replay") in done.err
    assert "same qherd on every node" in done.err
    assert done.err.count("\n") == 1
    assert done.leftovers == []


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_run_on_three_servers_reaches_its_budget_though_the_first_dies(cluster: Cluster, tmp_path: Path) -> None:
    """Each server has its own slots' streams and copies of the rest; the other two actors and the learner go on."""
    ports = [free_port() for _ in range(3)]
    urls = [f"redis://:{PASSWORD}@127.0.0.1:{port}" for port in ports]
    arguments = ["train", "CartPole-v1", "--run", "s", "--actors.count", "3", "--budget.env-steps", "40000"]
    arguments += ["--eval.threshold", "None", *cluster.options[:-2], "--redis.urls", *urls]
    with contextlib.ExitStack() as stack:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "QHERD_"))}
        servers = [stack.enter_context(process(server_command(p), env, tmp_path / f"{p}.log")) for p in ports]
        clients = [stack.enter_context(redis.Redis(port=port, password=PASSWORD, socket_timeout=5)) for port in ports]
        for port, client in zip(ports, clients, strict=True):
            until(lambda p=port, c=client: answers(p) and c.ping(), "answer of a server", 10)  # type: ignore[misc]
        run = stack.enter_context(running(*arguments, cwd=tmp_path, env=cluster.secrets))
        run.until(lambda: run.figure("s", "actors_alive") == 3, START_S, "three actors")
        run.until(lambda: run.figure("s", "updates") > 0, START_S, "updates")
        copies = {b"qherd:s:" + name for name in (b"fence", b"credit", b"weights", b"meta", b"about")}
        for slot, client in enumerate(clients):  # an actor may have answered before it has credit
            keys = copies | {b"qherd:s:chunks:%d" % slot}
            run.until(lambda c=client, k=keys: set(c.scan_iter()) == k, 20, f"{keys} on server {slot}")  # type: ignore[misc]
        servers[0].kill()
        run.until(lambda: run.figure("s", "servers_down") == 1, 20, "the count of servers down")
        when_noticed = run.figure("s", "env_steps")
        shown = qherd("replay", "stats", "runs/s", "--json", "--redis.urls", *urls, cwd=tmp_path)
        done = run.finish(120)
    assert done.code == 0, done
    assert done.err == ""
    assert "servers that do not answer: 1" in done.out
    assert f"left out: redis://:***@127.0.0.1:{ports[0]}" in shown.err
    assert [line["rows"] > 0 for line in json.loads(shown.out)["slots"]] == [False, True, True]
    written = summary(tmp_path / "runs" / "s")
    assert written["exit_reason"] == "budget of env steps"
    assert written["env_steps"] >= 40_000 > when_noticed
    assert written["chunks_refused"] == {}
    assert PASSWORD not in done.out
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    assert done.leftovers == []


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_driver_writes_down_where_the_learners_metrics_are(cluster: Cluster, tmp_path: Path) -> None:
    """Only the learner knows, wherever Ray put it: the port was free there, and the address is its node's."""
    options = ["--run", "m", "--metrics.port", "0", "--metrics.host", "0.0.0.0", "--eval.threshold", "None"]
    scrape = tmp_path / "runs" / "m" / "scrape.json"
    with running("train", "CartPole-v1", *options, *cluster.options, cwd=tmp_path, env=cluster.secrets) as run:
        run.until(scrape.exists, START_S, "scrape.json")
        told = json.loads(scrape.read_text())
        (target,) = told["targets"]
        assert told["labels"] == {"run": "m"}
        assert not target.startswith(("0.0.0.0:", "127."))
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as reply:
            assert b'qherd_updates_total{run="m"}' in reply.read()
        os.kill(run.process.pid, signal.SIGTERM)
        done = run.finish(30)
    assert done.leftovers == []
    assert not scrape.exists()


def test_each_of_several_servers_has_to_answer_at_the_start(cluster: Cluster, tmp_path: Path) -> None:
    """The one that does not is named, without its password."""
    urls = [cluster.options[-1], f"redis://:{PASSWORD}@127.0.0.1:1"]
    options = [*cluster.options[:-2], "--redis.urls", *urls]
    done = qherd("train", "CartPole-v1", *options, cwd=tmp_path, env=cluster.secrets)
    assert done.code == 2, done
    assert "redis://:***@127.0.0.1:1" in done.err
    assert PASSWORD not in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_killed_driver_of_a_cluster_is_resumed_from_the_living_server(cluster: Cluster, tmp_path: Path) -> None:
    """Weights, rows and streams are still there: the next learner goes on from its checkpoint, reads what came later,
    and new incarnations of all slots are taken in. The password is given again: no file has it."""
    options = ["--run", "k", "--actors.count", "2", "--eval.threshold", "None", "--checkpoint.every-s", "1"]
    with running("train", "CartPole-v1", *options, *cluster.options, cwd=tmp_path, env=cluster.secrets) as run:
        run.until(lambda: run.figure("k", "env_steps") > 15_000, START_S, "env steps")
        as_docs_say = {**cluster.secrets, "QHERD_REDIS_URL": cluster.options[-1]}
        looked = qherd("doctor", "runs/k", "--json", cwd=tmp_path, env=as_docs_say)
        run.process.kill()
        run.process.wait(5)
        at_kill = run.rows("k")[-1]
    assert (looked.code, PASSWORD in looked.out) == (0, False), looked
    seen = json.loads(looked.out)
    assert [check["state"] for check in seen["checks"] if check["name"] == "server"] == ["ok"], seen
    assert seen["window"]["round_trip_s"] > 0
    nowhere = qherd("resume", "runs/k", cwd=tmp_path, env=cluster.secrets)
    assert (nowhere.code, "keeps no password of its server" in nowhere.err) == (2, True)
    more = ["--redis.url", cluster.options[-1], "--budget.env-steps", str(at_kill["env_steps"] + 5000)]
    done = qherd("resume", "runs/k", *more, cwd=tmp_path, env=cluster.secrets, deadline_s=120)
    assert done.code == 0, done
    assert "resumed from checkpoint 000001-" in done.out
    rows = [json.loads(line) for line in (tmp_path / "runs" / "k" / "metrics.jsonl").read_text().splitlines()]
    for name in ("env_steps", "updates", "weight_version", "wall_s"):
        values = [row[name] for row in rows]
        assert values == sorted(values), name
    checkpoints = tmp_path / "runs" / "k" / "checkpoints"
    slots = read(checkpoints, names(checkpoints)[0])["reader"].values["slots"].values()
    of_the_killed = sum((slot["past"] if slot["taken"][0] > 1 else slot["counters"])[0] for slot in slots)
    assert of_the_killed >= at_kill["actor_env_steps"], "the log had what the checkpoint had not"
    assert summary(tmp_path / "runs" / "k")["chunks_refused"] == {}
    assert not set(summary(tmp_path / "runs" / "k")["rows_lost"]) - {"resume"}
    assert PASSWORD not in done.out + done.err
    assert done.leftovers == []
    for key in cluster.client.scan_iter("qherd:k:*"):
        cluster.client.delete(key)


def fill(client: redis.Redis) -> None:
    """Set keys of somebody else's until the server refuses."""
    for number in itertools.count():
        client.set(f"app:{number}", bytes(100_000))


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_server_that_others_fill_and_then_empty_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """At maxmemory no chunk is taken; then somebody says FLUSHALL, and the run goes on, nothing dead."""
    options = ["--run", "f", "--actors.count", "2", "--eval.threshold", "None", "--budget.env-steps", "400000"]
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.client.config_set, "maxmemory", 0)
        run = stack.enter_context(
            running("train", "CartPole-v1", *options, *cluster.options, cwd=tmp_path, env=cluster.secrets)
        )
        run.until(lambda: run.figure("f", "updates") > 0, START_S, "updates")
        cluster.client.config_set("maxmemory", cluster.client.info("memory")["used_memory"] + (8 << 20))
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(cluster.client)
        run.until(lambda: run.figure("f", "log_full") > 0, START_S, "a chunk that was refused")
        cluster.client.flushall()
        emptied = run.figure("f", "env_steps")
        run.until(lambda: run.figure("f", "env_steps") > emptied + 2_000, 2 * START_S, "env steps after that")
        os.kill(run.process.pid, signal.SIGTERM)
        done = run.finish(40)
    assert (done.code, done.err, done.leftovers) == (75, "", []), done
    written = summary(tmp_path / "runs" / "f")
    assert (written["chunks_refused"], written["deaths"]) == ({}, {})
    cluster.client.flushall()


# -- placement


def test_what_the_cluster_can_never_hold_is_refused_with_both_sides_numbers(cluster: Cluster, tmp_path: Path) -> None:
    """Also: the token lies in a file beside the caller; the driver changes its folder."""
    (tmp_path / "ray.token").write_text(cluster.secrets["RAY_AUTH_TOKEN"])
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "ray.token"}
    options = ["--actors.count", "3", "--actors.resources", "{simulator: 1}", "--actors.cpus", "0.5"]
    done = qherd("train", "CartPole-v1", "--run", "big", *options, *cluster.options, cwd=tmp_path, env=env)
    assert done.code == 2, done
    assert "the learner asks for 1 CPU, each of 3 actors for 0.5 CPU, 1 simulator; it has 1 node(s)" in done.err
    assert "with 2 CPU, 2 simulator: the learner and 2 actor(s) fit" in done.err
    assert list(tmp_path.iterdir()) == [tmp_path / "ray.token"]


@pytest.mark.long
def test_a_cluster_that_adds_nodes_is_waited_for_and_the_run_says_so(cluster: Cluster, tmp_path: Path) -> None:
    options = ["--run", "w", "--actors.resources", "{simulator: 3}", "--ray.autoscales", *cluster.options]
    with running("train", "CartPole-v1", *options, cwd=tmp_path, env=cluster.secrets) as run:
        run.until(
            lambda: "waiting for the cluster to add nodes: the learner asks for 1 CPU" in run.out, START_S, "word"
        )
        run.until(lambda: "waiting for room for 1 actor(s)" in run.out, START_S, "second word")
        assert "free in the whole cluster: 1 CPU, 2 simulator" in run.out
        run.process.send_signal(signal.SIGINT)
        assert run.finish(40).code == 75


@pytest.mark.long
def test_the_doctor_sees_the_whole_cluster(cluster: Cluster, tmp_path: Path) -> None:
    done = qherd("doctor", "--env.id", "CartPole-v1", *cluster.options, cwd=tmp_path, env=cluster.secrets)
    assert done.code == 0, done
    assert "noeviction" in done.out
    assert "127.0.0.1" in done.out
    assert "2 CPU, 2 simulator" in done.out
    assert "1 node(s) run this qherd's code" in done.out
    assert PASSWORD not in done.out
    assert list(tmp_path.iterdir()) == []
