"""A real Prometheus with the shipped configuration, against a real run: what it collects, and that alerts fire.

Durations of the rules are a fifteenth of the shipped ones, and it scrapes ten times as often; nothing else is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Run, running
from test_monitoring import PROMETHEUS, rules, tool

from actors.metrics import CONFIRMED
from deploy.monitoring.metrics import catalogue
from replay.metrics import BY_REASON, Metric

ACTOR = r"ray::ActorWorker"
FASTER = 15


def hastened(text: str) -> str:
    """A rule file with every `for`, every range and every offset a fifteenth as long."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * 60 // FASTER}s"

    return re.sub(r"(\[|for: |offset )(\d+)m\b", shorter, text)


@dataclass
class Prometheus:
    """A server that runs, asked over its HTTP API."""

    port: int

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=5) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def values(self, expression: str) -> dict[str, float]:
        """Values by series; the first label that tells series apart is in the key."""
        return {json.dumps(each["metric"], sort_keys=True): float(each["value"][1]) for each in self.query(expression)}

    def firing(self) -> dict[str, dict[str, str]]:
        """Annotations of the alerts that fire."""
        active = self.get("alerts")["alerts"]
        return {each["labels"]["alertname"]: each["annotations"] for each in active if each["state"] == "firing"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def prometheus(folder: Path, discovery_port: int) -> Iterator[Prometheus]:
    """The shipped configuration and rules, but for addresses and durations."""
    (folder / "rules").mkdir(parents=True)
    for file in (PROMETHEUS / "rules").glob("*.yml"):
        (folder / "rules" / file.name).write_text(hastened(file.read_text()))
    config = (PROMETHEUS / "prometheus.yml").read_text().replace(":9180/", f":{discovery_port}/")
    config = config.replace("interval: 5s", "interval: 500ms").replace("timeout: 4s", "timeout: 500ms")
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    command = [tool("prometheus"), "--config.file", "prometheus.yml", "--storage.tsdb.path", "data"]
    command += ["--web.listen-address", f"127.0.0.1:{port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)


@dataclass
class Watched:
    """A run that Prometheus watches."""

    run: Run
    server: Prometheus

    def until(self, condition: Any, deadline_s: float, what: str) -> None:
        def asked() -> bool:
            try:
                return bool(condition())
            except OSError:  # it starts
                return False

        self.run.until(asked, deadline_s, what)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    tool("prometheus")
    cwd, port = tmp_path_factory.mktemp("watched"), free_port()
    options = ("--run", "r", "--metrics.port", "0", "--eval.threshold", "None", "--replay.sampler", "prioritised")
    # a budget of restarts that no killing here uses up, and none of the run's own alarms before Prometheus'
    patience = ("--actors.restarts", "100", "--actors.silence-s", "600", "--checkpoint.every-s", "3")
    with (
        running("discovery", "--port", str(port), cwd=cwd),
        prometheus(cwd / "prometheus", port) as server,
        running("train", "CartPole-v1", *options, *patience, cwd=cwd) as run,
    ):
        found = Watched(run, server)
        found.until(lambda: server.query("qherd_greedy_return"), 90, "evaluation in Prometheus")
        yield found


def can_appear(metric: Metric) -> bool:
    """In a local, prioritised run without trackers in which nothing goes wrong, and no policy is good enough to be
    confirmed."""
    return metric.label != BY_REASON and metric.when != CONFIRMED and metric.name != "track_lost"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_everything_of_the_catalogue_is_collected_and_moves(watched: Watched) -> None:
    server = watched.server
    (target,) = [each for each in server.get("targets")["activeTargets"] if each["labels"]["job"] == "qherd"]
    assert target["labels"] == {"job": "qherd", "run": "r", "instance": "r"}
    absent = [each.exposed for each in catalogue() if can_appear(each) and not server.query(each.exposed)]
    assert absent == []
    counters = [each.exposed for each in catalogue() if each.kind == "counter" and can_appear(each)]
    before = {name: server.values(name) for name in counters}
    troubles = "log_full log_unavailable updates_skipped restarts actor_push_retries env_rebuilds checkpoint_failures"
    waits = "priority_updates_missed actor_credit_wait_seconds"  # by chance, and by who is the faster one
    waits += " actor_starved_seconds learner_starved_seconds"
    resting = {f"qherd_{name}_total" for name in f"{troubles} {waits}".split()}

    def all_moved() -> bool:
        return all(
            sum(server.values(name).values()) > sum(before[name].values()) for name in counters if name not in resting
        )

    watched.until(all_moved, 60, "every counter higher than before")
    gauges = ("qherd_loss", "qherd_sample_age_rows", "qherd_td_error", "qherd_grad_norm", "qherd_q_mean")
    for name in gauges:
        assert server.values(f"changes({name}[30s])").popitem()[1] > 0, name
    assert server.query('qherd_build_info{run="r"}')[0]["metric"]["version"]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_recording_rules_have_values_and_phases_add_up(watched: Watched) -> None:
    server = watched.server
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    watched.until(lambda: all(server.query(name) for name in recorded), 60, "value of every recording rule")
    (share,) = server.values("sum by (run) (run:qherd_learner_phase:share1m)").values()
    assert share == pytest.approx(1)

    def second_by_second() -> bool:
        rate = sum(server.values("sum by (run) (rate(qherd_learner_phase_seconds_total[5s]))").values())
        return rate == pytest.approx(1, abs=0.15)

    watched.until(second_by_second, 30, "neither more nor less than a second charged per second")
    health = {rule["name"]: rule["health"] for group in server.get("rules")["groups"] for rule in group["rules"]}
    assert set(health.values()) == {"ok"}, health


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_run_that_is_well_has_no_alert(watched: Watched) -> None:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        assert watched.server.firing() == {}
        time.sleep(0.5)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_frozen_actors_fire_the_alert_and_it_resolves(watched: Watched) -> None:
    actors = watched.run.find(ACTOR)
    assert actors
    for pid in actors:
        os.kill(pid, signal.SIGSTOP)
    try:
        watched.until(lambda: "QherdNoExperience" in watched.server.firing(), 60, "QherdNoExperience")
    finally:
        for pid in actors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    watched.until(lambda: "QherdNoExperience" not in watched.server.firing(), 60, "end of QherdNoExperience")


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_learner_that_was_killed_is_found_again(watched: Watched) -> None:
    """The next one has another port, under the same instance; the run's totals go on, and no rate is too high."""
    server = watched.server
    (before,) = server.values("qherd_run_env_steps").values()
    (learner,) = watched.run.find("ray::LearnerWorker")
    os.kill(learner, signal.SIGKILL)

    def goes_on() -> bool:
        restarts = server.values('qherd_restarts_total{kind="learner"}')
        return restarts == dict.fromkeys(restarts, 1) and sum(server.values("qherd_run_env_steps").values()) > before

    watched.until(goes_on, 90, "env steps of the next learner")
    (restored,) = server.values("qherd_run_env_steps - qherd_env_steps_total").values()
    assert restored > 0, "the counter did not begin at 0: rate() would count the past again"
    (series,) = server.query("qherd_env_steps_total")
    assert (series["metric"]["instance"], series["metric"]["run"]) == ("r", "r")
    assert len(server.query('up{job="qherd"}')) == 1
    watched.until(lambda: server.firing() == {}, 60, "end of all alerts")


@pytest.mark.long
@pytest.mark.timeout(240)
def test_killed_actors_fire_the_alert(watched: Watched) -> None:
    """Each one is killed as soon as it is there; the supervisor waits longer each time before it starts the next."""
    seen: dict[str, dict[str, str]] = {}

    def fires() -> bool:
        for pid in watched.run.find(ACTOR):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seen.update(watched.server.firing())
        return "QherdActorsMissing" in seen

    watched.until(fires, 120, "QherdActorsMissing")
    annotations = seen["QherdActorsMissing"]
    assert annotations["summary"] == "r: fewer actors than configured"
    assert annotations["description"].startswith("0 actors answer")
    assert not [text for each in seen.values() for text in each.values() if "<error" in text], "a broken template"
    restarts = watched.server.values('qherd_restarts_total{kind="actor"}')
    assert sum(restarts.values()) > 0


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_killed_driver_leaves_a_target_that_is_down(watched: Watched) -> None:
    """The last test of this module: it ends the run."""
    watched.run.process.kill()
    watched.run.process.wait()
    end = time.monotonic() + 90
    while "QherdRunUnreachable" not in watched.server.firing():
        assert time.monotonic() < end, watched.server.get("alerts")
        time.sleep(0.5)
    assert watched.server.firing()["QherdRunUnreachable"]["summary"] == "r: /metrics does not answer"
