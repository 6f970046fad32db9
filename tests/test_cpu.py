"""The CPU time of a run: of its driver's process and of all that it started, resumptions included."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from deploy.commands import resume
from deploy.commands import train as train_command
from deploy.config.models import RunConfig
from deploy.process import cpu
from deploy.process.cpu import tree_cpu_s
from deploy.sessions import clock
from deploy.sessions.clock import Clock
from deploy.sessions.driver import train

BURNS = """
import subprocess, sys, time
def burn(seconds):
    while time.process_time() < seconds:
        pass
burn({first})
below = {below!r}
if below:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", below])
    if {waits}:
        child.wait()
print("burnt", flush=True)
sys.stdin.read()
"""


def burning(first: float, below: str = "", waits: bool = False) -> str:
    return BURNS.format(first=first, below=below, waits=waits)


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[int]:
    program = [sys.executable, "-I", "-S", "-c", request.param]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"burnt\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    "started",
    [
        burning(0.3, burning(0.2)),  # a child that lives
        burning(0.3, "import time\nwhile time.process_time() < 0.2: pass", waits=True),  # one that was waited for
    ],
    indirect=True,
)
def test_the_cpu_time_of_a_process_has_its_children_s(started: int) -> None:
    until(lambda: tree_cpu_s(started) >= 0.48, "both have spent what they have to")  # the kernel counts in hundredths
    assert tree_cpu_s(started) < 2


def test_a_process_knows_when_it_was_started() -> None:
    told = (
        "import time\ntime.sleep(0.3)\nfrom deploy.process.cpu import started_s\nprint(time.monotonic() - started_s())"
    )
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert 0.29 <= float(done.stdout) <= time.monotonic() - began_s + 0.02  # the kernel counts in hundredths


def test_a_process_without_proc_was_started_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "PROC", tmp_path)
    assert time.monotonic() - cpu.started_s() < 1


def test_a_runs_seconds_are_those_since_its_command_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What comes before the run, the import of torch first, is a part of its start, and no budget's."""
    for command in (train_command, resume):
        monkeypatch.setattr(command, "started_s", lambda: time.monotonic() - 1000)
    options = ["--mode", "inline", "--runs-dir", str(tmp_path), "--run", "r", "--budget.seconds", "500"]
    assert train_command.run(["CartPole-v1", *options, "--budget.env-steps", "100"]) == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["exit_reason"] == "budget of env steps"
    assert 1000 < summary["start_s"] < summary["wall_s"] < 1100
    assert resume.run([str(tmp_path / "r"), "--budget.env-steps", "2000"]) == 0
    resumed = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert 2000 < resumed["start_s"] < resumed["wall_s"] < 2100


def test_a_process_that_is_gone_has_no_cpu_time() -> None:
    gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    gone.wait()
    assert tree_cpu_s(gone.pid) == 0


def test_a_run_s_cpu_time_goes_on_from_the_earlier_driver_s_and_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([3.0, 2.5, 4.0])  # a process that ended and is yet to be waited for is in neither's time
    monkeypatch.setattr(clock, "tree_cpu_s", lambda pid: next(spent))
    monkeypatch.setattr(clock, "CPU_EVERY_S", 0.0)
    counted = Clock(cpu_s=10.0)
    assert [counted.cpu_s for _ in range(3)] == [13.0, 13.0, 14.0]


def test_a_run_s_summary_has_the_cpu_time_of_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows may be some seconds behind, which of a short run is most of it."""
    spent = iter(range(3, 1000))
    monkeypatch.setattr(clock, "tree_cpu_s", lambda pid: float(next(spent)))
    monkeypatch.setattr(clock, "CPU_EVERY_S", 1e9)
    options = {"mode": "inline", "run": "r", "runs_dir": tmp_path, "env": {"id": "CartPole-v1"}}
    assert train(RunConfig.model_validate({**options, "budget": {"env_steps": 200}})) == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert {row["cpu_s"] for row in rows} == {3.0}
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["cpu_s"] > 3
