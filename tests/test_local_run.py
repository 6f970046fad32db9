"""The local mode as a user runs it: real Ray, the real embedded server, the real command, killed in every way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Finished, Run, running, summary

from deploy.run_directory.directory import RunDirectory
from learner.learner import choose_device, device_name
from replay.chunk_log.protocol import FENCE_SHIFT

START_S = 60.0
STOP_S = 25.0
ACTOR = r"ray::ActorWorker"
SERVER = r"valkey-server|redis-server"

USER_ENV = """
import time
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Broken(CartPoleEnv):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 250:  # beyond the first look
            raise RuntimeError("the bridge is [/out]")
        return super().step(action)

class Mine(CartPoleEnv):
    steps = 0

    def step(self, action):
        Mine.steps += 1
        if Mine.steps == 3000:
            raise ConnectionError("the simulator is \x1b[31mout")
        return super().step(action)

class Hangs(CartPoleEnv):
    steps = 0

    def step(self, action):
        Hangs.steps += 1
        if Hangs.steps > 500:
            time.sleep(3600)
        return super().step(action)

gym.register("Hangs-v0", Hangs, max_episode_steps=500)
gym.register("Mine-v0", Mine, max_episode_steps=500)
gym.register("Broken-v0", Broken, max_episode_steps=500)
"""
PRESET = """
actors: {count: 1, lanes: 8, chunk_steps: 16, fetch_every_s: 0.1, epsilon_anneal_env_steps: 4000}
replay: {capacity_rows: 50000, min_rows: 1000, samples_per_insert: 16}
learner: {network: {hidden: [64, 64]}, lr: 1.0e-3, batch: 64, target_period_updates: 1, target_tau: 0.005}
"""


def user_folder(tmp_path: Path) -> Path:
    """A user's working directory whose packages have our names, and with an env in a folder."""
    for name in ("actors", "deploy", "learner", "replay", "yaml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "userenvs.py").write_text(USER_ENV)
    (tmp_path / "preset.yaml").write_text(PRESET)
    return tmp_path


def under_way(run: Run, name: str = "r") -> None:
    """Wait until actors and learner work."""
    run.until(lambda: run.figure(name, "updates") > 0 and run.figure(name, "actors_alive") > 0, START_S, "update")


@contextlib.contextmanager
def cartpole(tmp_path: Path, *more: str) -> Iterator[Run]:
    with running("train", "CartPole-v1", "--run", "r", "--eval.threshold", "None", *more, cwd=tmp_path) as run:
        yield run


# -- a run that learns, looked at from all sides


@dataclass
class Learned:
    folder: Path
    done: Finished
    left_in_tmp: list[str]
    scraped: dict[str, float]

    @property
    def summary(self) -> dict[str, Any]:
        return summary(self.folder)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    cwd = user_folder(tmp_path_factory.mktemp("learned"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--env.path", "envs", "--config", "preset.yaml", "--run", "r", "--metrics.port", str(port)]
    with running("train", "userenvs:Mine-v0", *options, "--budget.env-steps", "60000", cwd=cwd) as run:
        under_way(run)
        run.until(lambda: "greedy_return" in run.rows("r")[-1], START_S, "evaluation")
        run.until(lambda: "qherd_greedy_return{" in scrape(port), 5, "evaluation on /metrics")
        scraped = {name: float(value) for name, value in re.findall(r"^(\w+)\{.*\} (\S+)$", scrape(port), re.M)}
        done = run.finish(120)
        return Learned(cwd / "runs" / "r", done, [path.name for path in run.tmp.rglob("*")], scraped)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


@pytest.mark.timeout(240)
def test_it_learns_a_users_env_from_a_folder_with_packages_of_our_names(learned: Learned) -> None:
    assert learned.done.code == 0, learned.done
    assert learned.done.err == ""
    assert "shadowed" not in learned.done.out
    assert learned.summary["exit_reason"] == "budget of env steps"
    assert learned.summary["eval_mean"] > 100, "random play has 20"


def test_the_summary_is_complete_and_adds_up(learned: Learned) -> None:
    figures = learned.summary
    assert {
        *("run", "env", "seed", "env_steps", "updates", "episodes", "wall_s", "solved_s", "solved_env_steps"),
        *("eval_mean", "eval_std", "chunks_sent", "chunks_stored", "chunks_refused", "rows_lost"),
        *("samples_per_insert", "exit_reason"),
    } <= set(figures)
    assert (figures["run"], figures["env"], figures["seed"]) == ("r", "userenvs:Mine-v0", 0)
    assert figures["chunks_sent"] == figures["chunks_stored"] > 0
    assert (figures["chunks_refused"], figures["rows_lost"], figures["actor_restarts"]) == ({}, {}, 0)
    assert figures["env_steps"] >= 60_000
    assert figures["episodes"] > 0
    assert figures["samples_per_insert"] == pytest.approx(16, rel=0.25)
    trained_on = figures["updates"] * 64 / figures["env_steps"]
    assert trained_on == pytest.approx(figures["samples_per_insert"], rel=0.05)


def test_the_figures_grow_and_the_newest_agree_with_the_summary(learned: Learned) -> None:
    rows = [json.loads(line) for line in (learned.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 3
    for name in ("wall_s", "env_steps", "updates", "chunks", "actor_episodes", "weight_version"):
        values = [row[name] for row in rows]
        assert values == sorted(values), name
    assert rows[-1]["updates"] <= learned.summary["updates"]
    assert rows[-1]["weight_version"] >> FENCE_SHIFT == 1
    assert max(row["actors_alive"] for row in rows) == 1
    assert all(row["replay_rows"] <= row["replay_capacity_rows"] == 50_000 for row in rows)


def test_the_events_are_readable_by_tensorboard(learned: Learned) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(learned.folder / "tb"))
    events.Reload()
    assert {"qherd/loss", "qherd/greedy_return", "qherd/samples_per_insert"} <= set(events.Tags()["scalars"])
    steps = [event.step for event in events.Scalars("qherd/loss")]
    assert steps == sorted(steps)


def test_the_best_policy_is_the_one_in_the_summary(learned: Learned) -> None:
    _, manifest = RunDirectory.open(learned.folder).best.load()
    assert (manifest["mean"], manifest["std"]) == (learned.summary["eval_mean"], learned.summary["eval_std"])
    assert manifest["updates"] <= learned.summary["updates"]


def test_metrics_were_served_while_it_ran(learned: Learned) -> None:
    for name in ("env_steps_total", "updates_total", "chunks_total", "actor_env_steps_total", "replay_rows"):
        assert learned.scraped[f"qherd_{name}"] > 0, name
    assert learned.scraped["qherd_actors_alive"] == 1
    assert learned.scraped["qherd_actor_env_steps_total"] >= learned.scraped["qherd_env_steps_total"]


def test_each_process_has_a_log_and_an_env_that_raised_is_in_its_actors(learned: Learned) -> None:
    """With the time and the traceback; the terminal has the notice alone."""
    logs = {path.name: path.read_text() for path in (learned.folder / "logs").iterdir()}
    assert logs.keys() == {"actor-0.log", "driver.log", "evaluator.log", "learner.log"}
    for name, text in logs.items():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d INFO qherd: process \d+ on ", text), name
    record = r"^\S+ WARNING qherd\.actor: lane \d: its environment raised and is made anew\n    Traceback "
    (raised,) = re.findall(rf"{record}(?:.*\n    )+?ConnectionError: .*$", logs["actor-0.log"], re.M)
    assert "userenvs.py" in raised
    assert "the simulator is \\x1b[31mout" in raised
    assert "its environment was made anew: lane " in learned.done.out
    assert "its environment was made anew: lane " in logs["driver.log"]
    assert "Traceback" not in learned.done.out
    assert re.search(r" INFO qherd\.learner: checkpoint \S+, \d+ bytes$", logs["learner.log"], re.M)
    assert re.search(r" INFO qherd\.evaluator: update \d+: mean ", logs["evaluator.log"])
    assert " INFO qherd.actor: flushed\n" in logs["actor-0.log"]
    assert "password" not in " ".join(logs.values())
    modes = {path.stat().st_mode & 0o777 for path in (learned.folder / "logs").iterdir()}
    assert modes == {0o600}


def test_nothing_is_left_of_it(learned: Learned) -> None:
    assert learned.done.leftovers == []
    assert learned.left_in_tmp == []


# -- ways to end


def assert_orderly(run: Run, folder: Path, signalled_s: float) -> Finished:
    done = run.finish(STOP_S)
    assert time.monotonic() - signalled_s < STOP_S
    assert done.code == 75, done
    assert done.err == ""
    assert done.leftovers == []
    assert list(run.tmp.iterdir()) == []
    written = summary(folder)
    assert written["exit_reason"] == "interrupted"
    assert written["chunks_stored"] > 0
    assert written["rows_lost"] == {}
    assert written["learner_device"] == device_name(choose_device("auto"))  # as the learner's own process has said
    return done


@pytest.mark.timeout(180)
def test_a_killed_actor_comes_back_with_a_higher_incarnation_and_sigterm_ends_in_order(tmp_path: Path) -> None:
    with cartpole(tmp_path) as run:
        under_way(run)
        (actor,) = run.find(ACTOR)
        for worker in (actor, *run.find("ray::LearnerWorker")):  # numpy's BLAS has one thread there
            assert b"OPENBLAS_NUM_THREADS=1" in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        before = run.figure("r", "env_steps")
        os.kill(actor, signal.SIGKILL)
        run.until(lambda: run.figure("r", "actor_restarts") == 1, 30, "restart")
        at_restart = run.figure("r", "env_steps")
        run.until(lambda: run.figure("r", "env_steps") > at_restart + 1000, 30, "env step after the restart")
        assert at_restart >= before
        fences = json.loads((tmp_path / "runs" / "r" / "fences.json").read_text())
        assert fences["incarnations"] == {"0": 2}
        assert "actor 0 died" in run.out
        os.kill(run.process.pid, signal.SIGTERM)
        assert_orderly(run, tmp_path / "runs" / "r", time.monotonic())
    assert summary(tmp_path / "runs" / "r")["actor_restarts"] == 1


@pytest.mark.timeout(180)
def test_ctrl_c_reaches_the_whole_group_and_ends_in_order(tmp_path: Path) -> None:
    """A terminal sends SIGINT to every process of its foreground group, Ray's among them."""
    with cartpole(tmp_path) as run:
        under_way(run)
        os.killpg(run.process.pid, signal.SIGINT)
        done = assert_orderly(run, tmp_path / "runs" / "r", time.monotonic())
    assert "interrupted" in done.out


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", ["while it starts", "while it runs"])
def test_a_second_signal_ends_at_once(tmp_path: Path, moment: str) -> None:
    with cartpole(tmp_path) as run:
        if moment == "while it runs":
            under_way(run)
        else:
            run.until(lambda: "starting Ray" in run.out, START_S, "start of Ray")
        assert run.find(SERVER)
        end = time.monotonic() + 3
        while run.process.poll() is None:
            assert time.monotonic() < end, run.out
            os.kill(run.process.pid, signal.SIGINT)
            time.sleep(0.3)  # two at once would be one
        assert run.process.returncode == 130
        ended_within(run, SERVER, 2)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_killed_driver_takes_the_server_and_the_workers_with_it(tmp_path: Path) -> None:
    with cartpole(tmp_path) as run:
        under_way(run)
        assert run.find(SERVER)
        assert run.find("ray::LearnerWorker")
        run.process.kill()
        run.process.wait()
        ended_within(run, SERVER, 2)
        ended_within(run, r"ray::(Actor|Learner|Evaluator)Worker", 30)


def ended_within(run: Run, pattern: str, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while left := run.find(pattern):
        assert time.monotonic() < end, (left, run.others())
        time.sleep(0.05)


# -- ways to fail


@pytest.mark.long
@pytest.mark.timeout(120)
def test_an_env_that_always_raises_fails_the_run_with_its_own_words(tmp_path: Path) -> None:
    cwd = user_folder(tmp_path)
    arguments = ["--env.path", "envs", "--run", "r", "--actors.count", "1", "--actors.restarts", "1"]
    with running("train", "userenvs:Broken-v0", *arguments, cwd=cwd) as run:
        done = run.finish(90)
        assert list(run.tmp.iterdir()) == []
    folder = cwd / "runs" / "r"
    assert done.code == 1
    assert "the bridge is [/out]" in done.err
    assert "actors.restarts" in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.out + done.err
    assert "userenvs.py" in (folder / "failure.txt").read_text()
    assert "the bridge is" in summary(folder)["exit_reason"]
    assert done.leftovers == []
    assert json.loads((folder / "fences.json").read_text())["incarnations"] == {"0": 2}


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_hanging_env_fails_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    """The message says what each actor was last known to do, and the option that bounds the wait."""
    cwd = user_folder(tmp_path)
    arguments = ["--env.path", "envs", "--run", "r", "--actors.count", "1", "--actors.silence-s", "4"]
    with running("train", "userenvs:Hangs-v0", *arguments, cwd=cwd) as run:
        done = run.finish(90)
        assert list(run.tmp.iterdir()) == []
    assert done.code == 1
    assert "no env step has come in for 4 s (actors.silence_s), though actors have credit: actor 0 " in done.err
    assert "Traceback" not in done.out + done.err
    assert done.leftovers == []
    assert summary(cwd / "runs" / "r")["env_steps"] > 0


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_server_that_was_killed_ends_or_mends_the_run(tmp_path: Path) -> None:
    """Either is an answer; sitting there is none. The actor dies with it: where it had told of a chunk that the server,
    which was frozen before, had not stored, its rows are counted, and nothing else is lost."""
    with cartpole(tmp_path, "--budget.env-steps", "200000") as run:
        under_way(run)
        (server,), (actor,) = run.find(SERVER), run.find(ACTOR)
        os.kill(server, signal.SIGSTOP)
        waited_s = run.figure("r", "actor_log_seconds")
        run.until(lambda: run.figure("r", "actor_log_seconds") > waited_s + 3, 30, "heartbeat with a chunk in doubt")
        os.kill(server, signal.SIGKILL)
        os.kill(actor, signal.SIGKILL)
        before = run.figure("r", "env_steps")

        def answered() -> bool:
            return run.process.poll() is not None or run.figure("r", "env_steps") > before + 20_000

        end = time.monotonic() + 60
        while not answered():
            assert time.monotonic() < end, run.out
            time.sleep(0.1)
        if run.process.poll() is None:
            os.kill(run.process.pid, signal.SIGTERM)
        done = run.finish(STOP_S)
        assert list(run.tmp.iterdir()) == []
    assert done.code in (1, 75), done
    assert "server" in done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert done.leftovers == []
    ended = summary(tmp_path / "runs" / "r")
    assert ended["exit_reason"].startswith(("failed", "interrupted"))
    if done.code == 75:
        assert set(ended["rows_lost"]) <= {"tail"}
