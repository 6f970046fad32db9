"""docker-compose.yml at work: every service's own command and health check, until the run has learned (compose.py)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose import Compose
from nodes import network, secrets_shown

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600)]

LEARN_S = 240.0
FOUND_S = 60.0
"""A run is found, and scraped twice, within 20 s; it may have ended by then, so the question is for its past."""


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    assert os.geteuid() == 0, "needs root, for network namespaces"
    for program in ("prometheus", "prometheus-redis-exporter", "redis-cli", "wget"):
        if not shutil.which(program):
            assert not os.environ.get("CI"), f"CI has to install {program} (.ci/run)"
            pytest.skip(f"no {program} on PATH")
    with network(tmp_path) as net:
        made = Compose(net, tmp_path, {}, profiles=["monitoring"], without=["grafana"])  # no package has Grafana
        at_root = Path("/prometheus")  # a folder of the image's; the machine keeps no trace of it
        was_there = at_root.exists()
        made.create()
        yield made
    if at_root.exists() and not was_there:
        at_root.rmdir()


def test_up_trains_lunar_lander_and_every_check_can_fail(compose: Compose, tmp_path: Path) -> None:
    """No check passes before its service runs; all pass then; the run is solved or has clearly learned; all end in
    order within their grace times; nobody shows a secret."""
    checked = [each for group in compose.containers.values() for each in group if "healthcheck" in each.service]
    early = {each.name: each.health() for each in checked if each.name.partition("-")[0] not in ("worker",)}
    assert [name for name, (good, _) in early.items() if good] == [], "a check that cannot fail"

    compose.up()
    (learner,) = compose.containers["learner"]
    learner.await_health()
    run = tmp_path / "volumes" / "runs" / "lander"

    def returns() -> list[float]:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row["greedy_return"] for row in rows if "greedy_return" in row]

    assert learner.program is not None

    def learned() -> bool:
        seen = returns()
        return (run / "summary.json").exists() or (bool(seen) and max(seen) > seen[0] + 150 and max(seen) > 0)

    learner.program.until(learned, "learning", LEARN_S)
    for each in checked:
        if each is not learner:
            good, said = each.health()
            assert good, f"{each.name}: {said}"
    (prometheus,) = compose.containers["prometheus"]
    for query in ("max_over_time(qherd_env_steps_total{run='lander'}[10m]) > 1000", "redis_up == 1"):
        asked = ["wget", "-q", "-O-", "--post-data", f"query={query}", "http://127.0.0.1:9090/api/v1/query"]

        def answered(asked: list[str] = asked) -> bool:
            return bool(json.loads(prometheus.node.run(*asked).stdout)["data"]["result"])

        assert prometheus.program is not None
        prometheus.program.until(answered, query, FOUND_S)
    seen = {"greedy returns": returns(), "seconds to health": {each.name: each.healthy_s for each in checked}}
    print(json.dumps(seen))

    codes = compose.down()
    assert codes["learner"] in (0, 75), learner.program.out
    assert {codes[name] for name in ("worker-1", "worker-2")} == {0}, codes
    print(codes)
    nodes = [each.node for each in checked]
    shown = secrets_shown(tmp_path / "volumes" / "secrets", tmp_path, nodes)
    assert shown == []


def test_a_client_without_credentials_gets_nothing(compose: Compose) -> None:
    """Neither Redis nor Ray answers a process on the services' network that has no secret."""
    for name in ("secrets", "valkey", "head"):
        (container,) = compose.containers[name]
        container.start()
        if name == "secrets":
            assert container.program is not None
            assert container.program.finish(60) == 0
        else:
            container.await_health()
    stranger = compose.containers["worker"][0].node
    for command in (["ping"], ["keys", "*"], ["get", "qherd:lander:weights"], ["config", "get", "*"]):
        assert "NOAUTH" in stranger.run("redis-cli", "-h", "valkey", *command).stdout
    assert "WRONGPASS" in stranger.run("redis-cli", "-h", "valkey", "-a", "guess", "--no-auth-warning", "ping").stderr
    ask = ["python3", "/opt/qherd/deploy/ray/healthy.py", "head:6380"]
    for env in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        answer = stranger.run(*ask, env=env, timeout_s=60)
        assert answer.returncode != 0, answer
        assert "AuthenticationError" in answer.stderr, answer.stderr[-2000:]
    # Ray's client server cannot be turned off: it has to ask for the token, too
    enter = ["python3", "-c", "from ray.util.client.worker import Worker; Worker('head:10001', connection_retries=1)"]
    (head,) = compose.containers["head"]
    assert head.node.run(*enter, env=head.env, timeout_s=60).returncode == 0, "with the token it lets in"
    assert stranger.run(*enter, timeout_s=60).returncode != 0
