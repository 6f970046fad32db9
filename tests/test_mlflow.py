"""MLflow for real: a server process of its own, on SQLite, and a run that is recorded there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import qherd, summary
from numpy.testing import assert_array_equal
from test_tracking import ENDING, RECORD, ROW, SHORT, refusal
from waiting import until

from deploy.run_directory.directory import RunDirectory
from deploy.tracking.relay import Relay
from learner import load_policy

pytestmark = pytest.mark.long


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    url = f"http://127.0.0.1:{free_port()}"
    options = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, "--port", url.rpartition(":")[2], "--workers", "1"],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: answers(f"{url}/health"), f"an answer of MLflow's server, see {folder}/log", 100)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def tracked(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was recorded."""
    folder = tmp_path_factory.mktemp("tracked")
    env = {"MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "mine"}
    done = qherd(*SHORT, "--budget.env-steps", "1500", "--track.mlflow", cwd=folder, env=env, deadline_s=100)
    assert (done.code, done.leftovers) == (0, []), done.err
    assert "mlflow records the run: run " in done.out
    return folder / "runs" / "NAME"


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server)


def record_in(client: Any) -> Any:
    """The one record in the experiment."""
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    return found


def test_a_record_has_the_options_and_how_the_run_ended(client: Any, tracked: Path) -> None:
    recorded, ended = record_in(client), summary(tracked)
    assert (recorded.info.run_name, recorded.info.status) == ("NAME", "FINISHED")
    assert recorded.data.params["learner.lr"] == "0.001"
    assert recorded.data.params["env.id"] == "CartPole-v1"
    assert recorded.data.metrics["summary.env_steps"] == ended["env_steps"]
    assert recorded.data.tags["qherd.exit_reason"] == "budget of env steps"
    assert ended["track_lost"] == 0


def test_curves_are_over_env_steps(client: Any, tracked: Path) -> None:
    points = client.get_metric_history(record_in(client).info.run_id, "greedy_return")
    written = {row["env_steps"]: row.get("greedy_return") for row in RunDirectory.open(tracked).history.rows()}
    assert points
    assert [written[each.step] for each in points] == [pytest.approx(each.value, rel=1e-5) for each in points]


def test_the_artifact_is_a_folder_that_the_policy_is_loaded_from(client: Any, tracked: Path, tmp_path: Path) -> None:
    recorded = record_in(client).info.run_id
    files = {each.path for each in client.list_artifacts(recorded)}
    assert files == {"config.yaml", "summary.json", "policy"}
    policy = load_policy(client.download_artifacts(recorded, "policy", str(tmp_path)))
    obs = np.array([0.1, -0.2, 0.03, 0.4], np.float32)
    assert_array_equal(policy.act(obs).q, load_policy(tracked).act(obs).q)


def test_a_resumed_run_continues_its_record(
    server: str, client: Any, tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another learning rate, which MLflow refuses as a parameter."""
    before = record_in(client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    (tmp_path / "config-2.yaml").write_text("config: {}")
    changed = {"learner": {"lr": 2e-3}, "new": True}
    relay = Relay("mlflow")
    try:
        assert relay.wait_ready(time.monotonic() + 100)
        nonce = RunDirectory.open(tracked).fences.nonce
        relay.begin(RECORD._replace(key=nonce, config=changed, config_file=str(tmp_path / "config-2.yaml")))
        relay.offer({"env_steps": 5000, "greedy_return": 12.5})
        until(lambda: relay.news, "the record", 100)
        assert record_in(client).info.status == "RUNNING"
        relay.end(ENDING._replace(ended="interrupted", summary={"exit_reason": "interrupted"}), 60)
        assert relay.lost == 0
    finally:
        relay.close()
    after = record_in(client)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "KILLED")
    assert after.data.params == {**before.data.params, "new": "True"}
    points = client.get_metric_history(after.info.run_id, "greedy_return")
    assert (points[-1].step, points[-1].value) == (5000, 12.5)
    assert "config-2.yaml" in {each.path for each in client.list_artifacts(after.info.run_id)}


def test_a_server_that_is_down_costs_rows_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:pa55@127.0.0.1:{free_port()}")
    relay = Relay("mlflow")
    try:
        assert relay.wait_ready(time.monotonic() + 100)
        relay.begin(RECORD)
        relay.offer({**ROW, "env_steps": 1})
        until(lambda: relay.news, "news of the server", 100)
        assert relay.failing
        assert "mlflow refuses what it is given: " in relay.news[0]
        assert "pa55" not in relay.news[0]
        relay.end(ENDING, 0.1)
        assert relay.lost == 2
    finally:
        relay.close()


class WantsPassword(BaseHTTPRequestHandler):
    """A server that answers 401 to everything, as MLflow's with basic authentication does."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        body = b"You are not authenticated."
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Prints nothing."""


def test_missing_credentials_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), WantsPassword) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        told = refusal([*SHORT, "--track.mlflow"], capsys)
        server.shutdown()
    assert "MLFLOW_TRACKING_PASSWORD" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "runs").exists()
