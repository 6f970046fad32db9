"""Every end is orderly: real commands, signals at many moments of their start and end, readers that go away.

An end is orderly where the exit code is one that is documented, nobody sees a traceback, nothing is left behind, and
the run's directory either is gone (nothing had run) or has a summary.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import QHERD, Finished, Run, environment, qherd, running, summary

INLINE = """
mode: inline
actors: {count: 1, lanes: 2, chunk_steps: 8}
replay: {capacity_rows: 600, min_rows: 50, samples_per_insert: 4}
learner: {network: {hidden: [8]}, batch: 16}
eval: {threshold: null}
"""
TRAIN = ("train", "CartPole-v1", "--config", "preset.yaml", "--run", "r")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "preset.yaml").write_text(INLINE)
    return tmp_path


def assert_orderly(done: Finished, folder: Path, *codes: int) -> None:
    assert done.code in codes, done
    assert "Traceback" not in done.out + done.err, done
    assert done.leftovers == []
    run = folder / "runs" / "r"
    if run.exists():
        assert summary(run)["exit_reason"] != "running", done


def shows(run: Run, text: str) -> Callable[[], bool]:
    return lambda: text in run.out


# -- signals


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("library", ["pydantic_core", "_multiarray_umath", "hiredis", "libtorch_cpu"])
def test_ctrl_c_while_python_imports(folder: Path, library: str) -> None:
    """At the moment when one of the libraries is loaded, there is no traceback of the imports."""
    with running(*TRAIN, cwd=folder) as run:
        maps = Path(f"/proc/{run.process.pid}/maps")
        run.until(lambda: library in maps.read_text(), 60, library)
        run.process.send_signal(signal.SIGINT)
        done = run.finish(60)
    assert_orderly(done, folder, 130, 75)
    if done.code == 130:
        assert not (folder / "runs").exists()


MOMENTS = ("run runs/r", "waiting for the first", "env steps")
PAIRS = [
    pytest.param(moment, number)
    for moment in MOMENTS
    for number in SIGNALS
    if moment == MOMENTS[-1] or number == signal.SIGTERM
]
"""Each moment with SIGTERM, and the last with each signal: all have the one handler."""


@pytest.mark.parametrize(("moment", "number"), PAIRS)
def test_a_signal_while_an_inline_run_starts_and_works(folder: Path, moment: str, number: signal.Signals) -> None:
    with running(*TRAIN, cwd=folder) as run:
        run.until(shows(run, moment), 60, moment)
        run.process.send_signal(number)
        done = run.finish(60)
    assert_orderly(done, folder, 75)
    assert (folder / "runs" / "r").exists() is ("qherd resume" in done.out)


def test_a_terminal_that_closes_sends_more_than_one_hangup(folder: Path) -> None:
    with running(*TRAIN, cwd=folder) as run:
        run.until(shows(run, "env steps"), 60, "line")
        for _ in range(3):
            run.process.send_signal(signal.SIGHUP)
        done = run.finish(60)
    assert_orderly(done, folder, 75)
    assert summary(folder / "runs" / "r")["env_steps"] > 0


LOCAL = ("train", "CartPole-v1", "--run", "r", "--eval.threshold", "None", "--actors.count", "1")


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("after_s", [0.0, 0.7, 1.3])
def test_a_signal_during_the_end_of_a_local_run_changes_nothing(tmp_path: Path, after_s: float) -> None:
    """Ray takes handlers away as it ends: what comes then killed the run without a summary. SIGHUP: the test below."""
    with running(*LOCAL, "--budget.env-steps", "3000", cwd=tmp_path) as run:
        run.until(shows(run, "stopping"), 120, "end")
        end = time.monotonic() + after_s
        while time.monotonic() < end and run.process.poll() is None:
            time.sleep(0.01)
        run.process.send_signal(signal.SIGTERM)
        done = run.finish(60)
        assert list(run.tmp.iterdir()) == []
    assert_orderly(done, tmp_path, 0)
    assert summary(tmp_path / "runs" / "r")["exit_reason"] == "budget of env steps"


@pytest.mark.long
@pytest.mark.timeout(180)
def test_signals_all_through_the_end_of_a_local_run(tmp_path: Path) -> None:
    """A SIGHUP every 50 ms, none of which counts as a second signal."""
    with running(*LOCAL, "--budget.env-steps", "3000", cwd=tmp_path) as run:
        run.until(shows(run, "stopping"), 120, "end")
        end = time.monotonic() + 60
        while run.process.poll() is None and time.monotonic() < end:
            run.process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        done = run.finish(5)
        assert list(run.tmp.iterdir()) == []
    assert_orderly(done, tmp_path, 0)
    assert done.err == ""
    assert "budget of env steps: runs/r" in done.out
    assert summary(tmp_path / "runs" / "r")["exit_reason"] == "budget of env steps"


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("moment", ["starting Ray", "starting the learner"])
def test_a_signal_while_a_local_run_starts_leaves_nothing(tmp_path: Path, moment: str) -> None:
    with running(*LOCAL, cwd=tmp_path) as run:
        run.until(shows(run, moment), 120, moment)
        run.process.send_signal(signal.SIGTERM)
        done = run.finish(90)
        assert list(run.tmp.iterdir()) == []
    assert_orderly(done, tmp_path, 75)
    assert done.err == ""
    assert (tmp_path / "runs" / "r").exists() is ("qherd resume" in done.out)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_local_run_whose_raylet_does_not_end_by_itself_leaves_nothing(tmp_path: Path) -> None:
    """It is killed, and the learner, which looks for it each second as a rule, does not outlive the run, either."""
    with running(*LOCAL, cwd=tmp_path, env={"RAY_raylet_death_check_interval_milliseconds": "60000"}) as run:
        run.until(shows(run, "starting the learner"), 120, "learner")
        run.until(lambda: bool(run.find("ray::LearnerWorker")), 60, "learner's process")
        (raylet,) = run.find(r"^\S*/raylet/raylet ")
        os.kill(raylet, signal.SIGSTOP)
        run.process.send_signal(signal.SIGTERM)
        done = run.finish(90)
        assert list(run.tmp.iterdir()) == []
    assert_orderly(done, tmp_path, 75)


# -- who reads


@pytest.mark.parametrize("lines", [pytest.param(1, marks=pytest.mark.long), 4])
def test_a_run_whose_reader_goes_away_ends_in_order(folder: Path, lines: int) -> None:
    """``qherd train | head -1``."""
    command = f"{QHERD} {' '.join(TRAIN)} 2>err | head -{lines}; echo ${{PIPESTATUS[0]}} >code"
    environ = environment(folder, "reader")
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout.count("\n") == lines
    assert ((folder / "code").read_text(), (folder / "err").read_text()) == ("75\n", "")
    if (folder / "runs" / "r").exists():
        assert summary(folder / "runs" / "r")["exit_reason"] == "interrupted"


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("train", "--dry-run")])
def test_a_command_whose_reader_is_gone_has_nothing_to_say(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:  # noqa: PTH123  a file descriptor
        done = subprocess.run(
            [QHERD, *arguments], cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_run_whose_terminal_goes_away_ends_in_order(folder: Path) -> None:
    """The hangup, and then every write fails."""
    ours, theirs = pty.openpty()
    environ = {**environment(folder, "terminal"), "TERM": "xterm-256color"}

    leads = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", leads, QHERD, *TRAIN],
        cwd=folder,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown, end = b"", time.monotonic() + 60
        while b"replay fill" not in shown or b"0%" in shown[-2000:]:
            assert time.monotonic() < end, shown
            shown += os.read(ours, 1 << 16)
        os.close(ours)
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
    if (folder / "runs" / "r").exists():
        assert summary(folder / "runs" / "r")["exit_reason"] == "interrupted"


def test_an_output_that_is_closed_is_no_error(folder: Path) -> None:
    command = f"{QHERD} {' '.join(TRAIN)} --budget.env-steps 400 >&- 2>&-; echo $?"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(folder, "closed"), capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.stdout == "0\n"
    assert summary(folder / "runs" / "r")["exit_reason"] == "budget of env steps"


@pytest.mark.parametrize("arguments", ["nonsense", "runs none", "report none --csv"])
def test_messages_for_a_closed_stderr_are_not_among_the_figures(arguments: str, folder: Path) -> None:
    """Python has none then, and its print would take stdout instead."""
    command = f"mkdir none; {QHERD} {arguments} 2>&-; echo $?"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(folder, "closed"), capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.stdout == ("0\n" if arguments == "runs none" else "2\n")


@pytest.mark.parametrize(
    "locale",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="C", marks=pytest.mark.long),
    ],
)
def test_an_output_that_cannot_take_a_character_shows_another(folder: Path, locale: dict[str, str]) -> None:
    options = ("--budget.env-steps", "2000", "--eval.every-updates", "50", "--eval.screen-episodes", "2")
    done = qherd(*TRAIN, *options, cwd=folder, env=locale)
    assert_orderly(done, folder, 0)
    assert "best policy: " in done.out
    done = qherd("eval", "runs/r", "--episodes", "2", cwd=folder, env=locale)
    assert (done.code, done.err) == (0, "")
    assert "greedy episodes: mean" in done.out


# -- other programs


LIBRARY = """
import sys, threading
from pathlib import Path
from deploy.config.errors import ConfigError
from deploy.config.layers import compose
from deploy.sessions.driver import train

def run(mode):
    config = compose("CartPole-v1", None, Path("preset.yaml"), {})
    config = config.model_copy(update={"mode": mode, "run": mode, "budget": config.budget.model_copy(
        update={"env_steps": 400})})
    try:
        print(mode, train(config))
    except ConfigError as error:
        print(mode, error)

for mode in ("inline", "local"):
    thread = threading.Thread(target=run, args=(mode,))
    thread.start()
    thread.join()
print("dynamo", "torch._dynamo" in sys.modules)
import types
sys.modules["ray"] = types.ModuleType("ray")
run("local")
"""


@pytest.mark.long
def test_a_thread_of_another_program_trains_inline_and_is_refused_local(folder: Path) -> None:
    """Signals are that program's own matter; nothing is made before the refusal."""
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY], cwd=folder, env=environment(folder, "library"), capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "inline 0" in lines
    assert "dynamo False" in lines, "imported for nothing, at seconds of every start"
    refused = [line for line in lines if line.startswith("local ")]
    assert [line.partition(",")[0] for line in refused] == [
        "local the mode local needs the main thread of its process",
        "local ray was imported before the run",
    ]
    assert all("run the command qherd, or choose --mode inline" in line for line in refused)
    assert [path.name for path in (folder / "runs").iterdir()] == ["inline"]


LAST_WORDS = """
import atexit, pathlib, threading
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

atexit.register(lambda: pathlib.Path("simulator").write_text("stopped"))
threading.Thread(target=threading.Event().wait).start()
gym.register("Mine-v0", CartPoleEnv, max_episode_steps=200)
"""


def test_what_an_environment_wants_called_at_the_end_is_called_and_its_threads_hold_nothing_up(folder: Path) -> None:
    (folder / "userenvs.py").write_text(LAST_WORDS)
    options = (*TRAIN[2:], "--env.path", ".", "--budget.env-steps", "400")
    done = qherd("train", "userenvs:Mine-v0", *options, cwd=folder)
    assert_orderly(done, folder, 0)
    assert done.out.count("budget of env steps: runs/r") == 1, "all is written"
    assert (folder / "simulator").read_text() == "stopped"


def test_the_exit_codes_are_in_the_help(tmp_path: Path) -> None:
    shown = qherd("--help", cwd=tmp_path).out
    assert all(f"\n  {code} " in shown for code in (0, 1, 2, 75, 130, 141))


def goes_on_from(run: Run, env_steps: int) -> Callable[[], bool]:
    return lambda: run.figure("r", "env_steps") > env_steps


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_run_that_is_interrupted_again_and_again_goes_on(folder: Path) -> None:
    """Each end has a checkpoint: no env step is done twice."""
    before = 0
    for command in (TRAIN, ("resume", "runs/r"), ("resume", "runs/r")):
        with running(*command, cwd=folder) as run:
            run.until(goes_on_from(run, before), 60, "env step")
            run.process.send_signal(signal.SIGTERM)
            done = run.finish(60)
        assert_orderly(done, folder, 75)
        after = summary(folder / "runs" / "r")["env_steps"]
        assert after > before
        before = after
    curve = [row["env_steps"] for row in rows(folder / "runs" / "r")]
    assert curve == sorted(curve)
