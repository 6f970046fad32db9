"""Several machines for real: Ray is started by the scripts that users run, nodes are lost and come back.

Each machine is a network namespace with processes and mounts of its own (nodes.py).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import ROOT
from nodes import Network, Node, Program, network, quit_in_order, secrets_shown

from deploy.server.binary import find_server
from deploy.server.credentials import write_secrets
from learner.checkpoint import names, read

SCRIPTS = ROOT / "deploy" / "ray"
HEAD = "head:6380"
START_S = 150.0
LOST_S = 150.0
"""A node that is cut off counts as lost after about 20 s; then its actors start elsewhere."""
GOES_ON_S = 120.0
"""A run was seen to make 10 env steps per second, on two cores on which other tests' clusters started meanwhile."""
RUN = "herd"

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(1200)]


class Herd:
    """A head with learner and server, two workers of two CPUs, and a run with an actor on each of them."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net, self.folder, self.secrets = net, folder, folder / "secrets"
        write_secrets(self.secrets, "head:6379", RUN)
        self.ray_env = {
            "RAY_AUTH_TOKEN_PATH": str(self.secrets / "ray" / "ray_token"),
            "OBJECT_STORE_BYTES": "100000000",
        }
        self.head, self.workers = net.add("head"), [net.add(f"worker{number}") for number in (1, 2)]
        self.server = self.head.start(
            shutil.which("redis-server") or find_server(),
            *("--bind", self.head.ip, "--save", "", "--maxmemory", "200mb", "--maxmemory-policy", "noeviction"),
            *("--aclfile", self.secrets / "server" / "users.acl"),
            name="server",
        )
        seat = ["--num-cpus=0", '--resources={"qherd_learner": 1}', "--include-dashboard=false"]
        self.ray = self.head.start(SCRIPTS / "head.sh", *seat, env=self.ray_env, name="head")
        self.scripts = [self.join(worker) for worker in self.workers]
        self.ray.until(lambda: self.nodes() == 3, "three nodes", START_S)

    def join(self, worker: Node) -> Program:
        """Start the script for worker nodes there."""
        return worker.start(SCRIPTS / "worker.sh", HEAD, "--num-cpus=2", env=self.ray_env, name="worker")

    def healthy(self, node: Node) -> bool:
        """Whether the head counts this node as alive."""
        done = self.head.run("python", SCRIPTS / "healthy.py", HEAD, node.ip, env={**self.ray_env, **TOKEN})
        return done.returncode == 0

    def nodes(self) -> int:
        """How many nodes the head counts as alive."""
        return sum(self.healthy(node) for node in (self.head, *self.workers))

    def train(self, *more: str) -> Program:
        """Start a run on the head."""
        driver = self.secrets / "driver"
        env = {
            **self.ray_env,
            **TOKEN,
            "QHERD_REDIS_URL_FILE": str(driver / "redis_url"),
            "QHERD_REDIS_ACTOR_URL_FILE": str(driver / "redis_actor_url"),
            "CI": "1",
        }
        options = [
            "--mode",
            "cluster",
            "--ray.address",
            HEAD,
            "--run",
            RUN,
            "--actors.count",
            "2",
            "--actors.cpus",
            "1",
        ]
        options += ["--eval.threshold", "None", "--checkpoint.every-s", "5", *more]
        return self.head.start("qherd", "train", "CartPole-v1", *options, env=env, cwd=self.folder, name="driver")

    def figure(self, name: str) -> float:
        """The newest value in the run's curves."""
        path = self.folder / "runs" / RUN / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return float(json.loads(whole[-1]).get(name, 0)) if whole else 0.0

    def actors_on(self, node: Node) -> int:
        """How many actors a node has, by its process table."""
        shown = node.run("ps", "-eo", "args").stdout
        return sum(line.startswith("ray::ActorWorker") for line in shown.splitlines())

    def books(self) -> dict[str, Any]:
        """The reader's books in the newest checkpoint."""
        folder = self.folder / "runs" / RUN / "checkpoints"
        return dict(read(folder, names(folder)[0])["reader"].values)


TOKEN = {"RAY_AUTH_MODE": "token"}


@pytest.fixture
def herd(tmp_path: Path) -> Iterator[Herd]:
    assert os.geteuid() == 0, "needs root, for network namespaces"
    with network(tmp_path) as net:
        yield Herd(net, tmp_path)


def test_nodes_are_lost_and_come_back_and_every_row_is_accounted_for(herd: Herd) -> None:
    """An actor on each worker. The first worker is killed, the second is cut off, then heals; in the end
    rows read + rows lost = rows sent in each slot."""
    driver, (first, second) = herd.train(), herd.workers

    def goes_on(what: str) -> None:
        before = herd.figure("env_steps")
        driver.until(lambda: herd.figure("env_steps") > before + 500, f"env steps {what}", GOES_ON_S)

    driver.until(lambda: herd.figure("updates") > 100, "updates", START_S)
    driver.until(lambda: herd.figure("actors_alive") == 2, "two actors", START_S)
    assert (herd.actors_on(herd.head), herd.actors_on(first), herd.actors_on(second)) == (0, 1, 1)

    first.kill()
    driver.until(lambda: herd.actors_on(second) == 2, "actors on the second worker", LOST_S)
    driver.until(lambda: herd.figure("actors_alive") == 2, "two actors", START_S)
    goes_on("without the first worker")

    first.boot()
    herd.scripts[0] = herd.join(first)
    herd.ray.until(lambda: herd.healthy(first), "first worker", START_S)

    second.link("down")
    cut_s = time.monotonic()
    driver.until(lambda: herd.actors_on(first) == 2, "actors on the first worker", LOST_S)
    driver.until(lambda: herd.figure("actors_alive") == 2, "two actors", START_S)
    print(f"cut off to two actors elsewhere: {time.monotonic() - cut_s:.1f} s")
    goes_on("without the second worker")

    second.link("up")
    herd.ray.until(lambda: herd.healthy(second), "second worker, by its own script", START_S)
    assert herd.scripts[1].process.poll() is None, "one process of the script has seen it all"
    first.kill()
    driver.until(lambda: herd.actors_on(second) == 2, "actors on the node that was taken back", LOST_S)
    driver.until(lambda: herd.figure("actors_alive") == 2, "two actors", START_S)
    goes_on("on the node that was taken back")

    left = herd.head.run(SCRIPTS / "leave.sh", timeout_s=60)
    assert (left.returncode, driver.finish(5)) == (0, 75), (left, driver.out)
    assert herd.ray.finish(20) is not None
    books = herd.books()
    law = {slot: (s["rows_read"], s["rows_lost"], s["counters"][1]) for slot, s in books["slots"].items()}
    assert len(law) == 2
    assert all(read_ + lost == sent for read_, lost, sent in law.values()), law
    assert set(books["totals"]["rows_lost"]) <= {"gap"}, books["totals"]
    print("rows (read, lost, sent) of the last incarnations:", law, books["totals"])
    assert secrets_shown(herd.secrets, herd.folder, [herd.head, second]) == []
    assert quit_in_order(herd.scripts[1], 40) == 0, herd.scripts[1].out
