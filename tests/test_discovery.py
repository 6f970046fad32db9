"""``qherd discovery``: what Prometheus is told, from which files, and how the command behaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import qherd, running

from deploy.monitoring.discovery import MAX_BYTES, Discovery, target_groups
from deploy.run_directory.registration import registration


def write(folder: Path, run: str, text: str) -> Path:
    (folder / run).mkdir(parents=True)
    path = folder / run / "scrape.json"
    path.write_text(text)
    return path


def ask(port: int, path: str = "/targets") -> tuple[Any, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
        return json.load(reply), reply.headers["Content-Type"]


def test_it_may_be_served_on_ipv6(tmp_path: Path) -> None:
    write(tmp_path, "r", registration("r", "::1", 9100))
    with running("discovery", "--host", "::1", "--port", "0", "--runs-dir", ".", cwd=tmp_path) as command:
        command.until(lambda: "targets" in command.out, 30, "address")
        found = re.search(r"http://\[::1\]:\d+/targets", command.out)
        assert found
        with urllib.request.urlopen(found[0], timeout=5) as reply:
            assert json.load(reply)[0]["targets"] == ["[::1]:9100"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """The port of a server for two folders below ``tmp_path``."""
    with Discovery(("127.0.0.1", 0), [tmp_path / "a", tmp_path / "b"]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_several_runs_of_several_folders_as_prometheus_wants_them(tmp_path: Path, served: int) -> None:
    assert ask(served) == ([], "application/json"), "also where there is no folder yet"
    write(tmp_path / "a", "one", registration("one", "127.0.0.1", 9100))
    file = write(tmp_path / "a", "two", registration("two", "fd00::7", 9101))
    write(tmp_path / "b", "three", registration("three", "node-7", 9100))
    groups, _ = ask(served)
    assert groups == [
        {"targets": ["127.0.0.1:9100"], "labels": {"run": "one"}},
        {"targets": ["[fd00::7]:9101"], "labels": {"run": "two"}},
        {"targets": ["node-7:9100"], "labels": {"run": "three"}},
    ]
    file.unlink()
    assert len(ask(served)[0]) == 2


def test_there_is_nothing_else_to_get(served: int) -> None:
    for path in ("/", "/targets/../etc/passwd", "/metrics"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(served, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nothing",
        '{"targets": [], "labels": {"run": "r"}}',
        '{"targets": ["host:1", "host:2"], "labels": {"run": "r"}}',
        '{"targets": ["host"], "labels": {"run": "r"}}',
        '{"targets": ["http://host:1/x"], "labels": {"run": "r"}}',
        '{"targets": ["host:1"], "labels": {"run": "r", "__address__": "elsewhere:1"}}',
        '{"targets": ["host:1"], "labels": {"run": "../r"}}',
        '{"targets": ["host:1"], "labels": {}}',
        " " * MAX_BYTES + '{"targets": ["host:1"], "labels": {"run": "r"}}',
    ],
)
def test_what_is_no_registration_is_passed_over(tmp_path: Path, text: str) -> None:
    write(tmp_path, "bad", text)
    write(tmp_path, "good", registration("good", "127.0.0.1", 1))
    assert [group["labels"]["run"] for group in target_groups([tmp_path])] == ["good"]


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    write(tmp_path / "runs", "r", registration("r", "127.0.0.1", 9100))
    with running("discovery", "--port", "0", cwd=tmp_path) as command:
        command.until(lambda: "targets" in command.out, 30, "address")
        found = re.search(r"http://127.0.0.1:(\d+)/targets", command.out)
        assert found
        assert ask(int(found[1]))[0][0]["labels"] == {"run": "r"}
        os.kill(command.process.pid, signal.SIGINT)
        done = command.finish(10)
    assert done.code == 130
    assert "Traceback" not in done.out + done.err


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = qherd("discovery", "--port", str(port), cwd=tmp_path)
    assert done.code == 2
    assert f"127.0.0.1:{port}" in done.err
    assert "http_sd_configs" in done.err


def test_a_run_is_on_the_list_from_its_start_to_its_orderly_end(tmp_path: Path) -> None:
    """With port 0 it takes a free one. (tests/test_prometheus_run.py kills one: it stays on the list.)"""
    options = ("train", "CartPole-v1", "--mode", "inline", "--run", "r", "--eval.every-updates", "1000000")
    scrape = tmp_path / "runs" / "r" / "scrape.json"
    with running(*options, "--metrics.port", "0", cwd=tmp_path) as run:
        run.until(scrape.exists, 60, "registration")
        ((address,),) = [group["targets"] for group in target_groups([tmp_path / "runs"])]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
            assert b"qherd_build_info{" in reply.read()
        os.kill(run.process.pid, signal.SIGTERM)
        run.finish(30)
        assert not scrape.exists()
