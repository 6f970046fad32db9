"""The failure promises of a ``local`` run (docs/survive.md): real Ray, the real server, kill -9 and SIGSTOP."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Finished, Run, qherd, running, summary
from disks import small_disk

from learner.checkpoint import names, read
from replay.chunk_log.protocol import FENCE_SHIFT

START_S, STOP_S, INTERRUPTED = 60.0, 25.0, 75
ACTOR, LEARNER, EVALUATOR = (f"ray::{kind}Worker" for kind in ("Actor", "Learner", "Evaluator"))
SERVER = r"valkey-server|redis-server"
PRESET = """
actors: {count: 2, lanes: 8, chunk_steps: 16, fetch_every_s: 0.1, epsilon_anneal_env_steps: 4000}
replay: {capacity_rows: 20000, min_rows: 1000, samples_per_insert: 16}
learner: {network: {hidden: [32]}, batch: 64, target_period_updates: 1, target_tau: 0.01}
eval: {threshold: null}
checkpoint: {every_s: 1}
"""
TRAIN = ("train", "CartPole-v1", "--config", "preset.yaml", "--run", "r")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder; the run's own is runs/r in it."""
    (tmp_path / "preset.yaml").write_text(PRESET)
    return tmp_path


def goes_on(run: Run, env_steps: int = 2000) -> None:
    """Wait for so many env steps more, and for updates, with both actors alive."""
    rows = run.rows("r")
    at = rows[-1]["wall_s"] if rows else -1.0

    def more() -> bool:
        later = [row for row in run.rows("r") if row["wall_s"] > at]
        if not later or later[-1]["actors_alive"] < 2:
            return False
        return bool(
            later[-1]["env_steps"] >= later[0]["env_steps"] + env_steps and later[-1]["updates"] > later[0]["updates"]
        )

    run.until(more, START_S, f"{env_steps} env steps more")


def kill(run: Run, pattern: str) -> None:
    """One process of that kind; waits for one that is being started."""
    run.until(lambda: bool(run.find(pattern)), START_S, pattern)
    os.kill(run.find(pattern)[0], signal.SIGKILL)


def kill_driver(run: Run) -> None:
    run.process.kill()
    run.process.wait(5)


def stop(run: Run) -> Finished:
    """SIGTERM; in order, in time, and nothing is left of it."""
    run.process.send_signal(signal.SIGTERM)
    done = run.finish(STOP_S)
    assert done.code == INTERRUPTED, done
    assert done.err == ""
    assert done.leftovers == []
    assert list(run.tmp.iterdir()) == []
    return done


def books(folder: Path) -> dict[str, Any]:
    """The reader's books in the newest checkpoint; the conservation law holds in them."""
    found = folder / "runs" / "r" / "checkpoints"
    values: dict[str, Any] = dict(read(found, names(found)[0])["reader"].values)
    for slot in values["slots"].values():
        assert slot["rows_read"] + slot["rows_lost"] == slot["counters"][1]
    return values


def assert_curve(folder: Path) -> list[dict[str, Any]]:
    """No figure of the curve ever falls; its rows."""
    rows = [json.loads(line) for line in (folder / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    for name in ("wall_s", "updates", "env_steps", "weight_version", "actor_env_steps", "chunks"):
        values = [row[name] for row in rows]
        assert values == sorted(values), name
    return rows


@pytest.mark.timeout(180)
def test_a_killed_evaluator_and_a_killed_learner_come_back(folder: Path) -> None:
    """The learner from its newest checkpoint and the log: nothing that was sent is lost or taken twice, its versions
    go on under the next fence, and the curve has no fold. Then SIGTERM: exit 75."""
    with running(*TRAIN, cwd=folder) as run:
        goes_on(run)
        kill(run, EVALUATOR)
        run.until(lambda: run.figure("r", "evaluator_restarts") == 1, 30, "new evaluator")
        kill(run, LEARNER)
        run.until(lambda: run.figure("r", "learner_restarts") == 1, 30, "new learner")
        goes_on(run)
        done = stop(run)
    assert "the learner died" in done.out
    assert "resumed from checkpoint 000001-" in done.out
    rows = assert_curve(folder)
    assert rows[-1]["weight_version"] >> FENCE_SHIFT == 2
    assert rows[-1]["weight_staleness_versions"] < 1000
    ended = summary(folder / "runs" / "r")
    assert (ended["exit_reason"], ended["rows_lost"], ended["chunks_refused"]) == ("interrupted", {}, {})
    assert (ended["learner_restarts"], ended["evaluator_restarts"], ended["actor_restarts"]) == (1, 1, 0)
    assert ended["deaths"] == {"evaluator: ActorDiedError": 1, "learner: ActorDiedError": 1}
    assert books(folder)["totals"]["env_steps"] == ended["env_steps"]
    assert json.loads((folder / "runs" / "r" / "fences.json").read_text())["evaluators"] == 2


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_killed_driver_is_resumed_without_its_server(folder: Path) -> None:
    """The checkpoint has the rows: learning goes on from a full replay. Counters, curve, best policy and restarts go
    on; while a driver has the run, no other gets it; a run that is over is left alone."""
    with running(*TRAIN, cwd=folder) as run:
        goes_on(run)
        kill(run, ACTOR)
        run.until(lambda: run.figure("r", "actor_restarts") == 1, 30, "restart")
        goes_on(run)
        run.until(lambda: run.rows("r")[-1]["wall_s"] > run.rows("r")[0]["wall_s"] + 5, 30, "rows that are on disk")
        kill_driver(run)
    before, kept = run.rows("r"), names(folder / "runs" / "r" / "checkpoints")[0]
    with running("resume", "runs/r", "--budget.env-steps", str(before[-1]["env_steps"] + 8000), cwd=folder) as again:
        again.until(lambda: "resumed from checkpoint" in again.out, START_S, "resume")
        refused = qherd("resume", "runs/r", cwd=folder)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "runs/r is at work already, in process" in refused.err
        done = again.finish(90)
    assert done.code == 0, done
    assert done.leftovers == []
    assert f"{kept.updates:,} updates, {kept.env_steps:,} env steps, its own " in done.out
    rows = assert_curve(folder)
    assert [row["updates"] for row in rows if row["updates"] <= kept.updates] == [
        row["updates"] for row in before if row["updates"] <= kept.updates
    ]
    first = next(row for row in rows if row["weight_version"] >> FENCE_SHIFT == 2)
    assert first["updates"] - kept.updates < 1000, "it began anew, or counted on"
    assert first["replay_rows"] >= min(20_000, kept.env_steps)
    ended = summary(folder / "runs" / "r")
    assert (ended["exit_reason"], ended["actor_restarts"]) == ("budget of env steps", 1)
    assert ended["wall_s"] > before[-1]["wall_s"]
    logs = {path.stem: path.read_text() for path in (folder / "runs" / "r" / "logs").iterdir()}
    assert re.findall(r"learner with fence (\d+)$", logs["learner"], re.M) == ["1", "2"], "the resumed run appends"
    assert "resumed from checkpoint" in logs["learner"]
    assert re.search(r"actor \d died .* it restarts", logs["driver"])
    assert not set(ended["rows_lost"]) - {"resume", "gap", "rollback"}
    read = max(row["env_steps"] for row in before if row["wall_s"] <= before[-1]["wall_s"] - 4)
    assert ended["rows_lost"].get("rollback", 0) >= read - kept.env_steps, "read, rolled back, and in no count"
    books(folder)
    assert (folder / "runs" / "r" / "config-2.yaml").exists()
    over = qherd("resume", "runs/r", cwd=folder)
    assert (over.code, "is over: budget of env steps; to go on, raise --budget.env-steps" in over.out) == (0, True)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_replay_too_big_for_checkpoints_is_read_from_its_servers_file(folder: Path) -> None:
    """The server keeps an append-only file in the run's folder, and says so; the resumed learner reads all of it, also
    where the folder was called otherwise meanwhile."""
    with running(*TRAIN, "--checkpoint.rows-max-bytes", "1000", cwd=folder) as run:
        goes_on(run, 4000)
        assert "its server keeps an append-only file in" in run.out
        kill_driver(run)
    at_kill = run.rows("r")[-1]
    assert not list((folder / "runs" / "r" / "checkpoints").glob("*/mirror.safetensors"))
    (folder / "runs" / "r").rename(folder / "renamed")
    (folder / "runs" / "r").symlink_to(folder / "renamed")
    with running("resume", "renamed", cwd=folder) as again:
        goes_on(again)
        done = stop(again)
    assert "the log's " in done.out
    assert "the replay is lost" not in done.out
    assert_curve(folder)
    slots = books(folder)["slots"].values()
    of_the_killed = sum((slot["past"] if slot["taken"][0] > 1 else slot["counters"])[0] for slot in slots)
    assert of_the_killed >= at_kill["actor_env_steps"], "chunks behind the checkpoint were in the file"
    assert summary(folder / "runs" / "r")["chunks_refused"] == {}


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_frozen_server_costs_the_end_of_a_run_ten_seconds_at_the_most(folder: Path) -> None:
    """SIGTERM while Redis does not answer: exit 75 within 25 s, a checkpoint is written, nothing is left."""
    with running(*TRAIN, cwd=folder) as run:
        goes_on(run)
        (server,) = run.find(SERVER)
        os.kill(server, signal.SIGSTOP)
        at = names(folder / "runs" / "r" / "checkpoints")[0]
        started = time.monotonic()
        stop(run)
        assert time.monotonic() - started < STOP_S
    assert names(folder / "runs" / "r" / "checkpoints")[0] > at
    assert summary(folder / "runs" / "r")["exit_reason"] == "interrupted"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_killed_driver_leaves_no_process_after_three_minutes(folder: Path) -> None:
    """Ours end at once (see test_local_run), Ray's agents by themselves; the next run sweeps the temporary folder."""
    with running(*TRAIN, cwd=folder) as run:
        goes_on(run, 500)
        kill_driver(run)
        end = time.monotonic() + 180
        while left := run.others():
            assert time.monotonic() < end, left
            time.sleep(0.5)
        assert (
            qherd(*TRAIN[:-1], "next", "--budget.env-steps", "2000", cwd=folder, env={"TMPDIR": str(run.tmp)}).code == 0
        )
        assert list(run.tmp.iterdir()) == []


@pytest.mark.long
@pytest.mark.timeout(240)
def test_an_embedded_server_that_stays_frozen_is_replaced(folder: Path) -> None:
    """After a minute; the mirror has the rows, and the actors send the chunk that was in doubt again."""
    with running(*TRAIN, cwd=folder) as run:
        goes_on(run)
        (server,) = run.find(SERVER)
        os.kill(server, signal.SIGSTOP)
        run.until(lambda: "the replay server has not answered for 60 s; it is killed" in run.out, 100, "end of it")
        run.until(lambda: run.figure("r", "server_restarts") == 1, 30, "new server")
        goes_on(run)
        stop(run)
    assert summary(folder / "runs" / "r")["chunks_refused"] == {}
    books(folder)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_learner_that_dies_again_and_again_ends_the_run_loudly(folder: Path) -> None:
    """With its last error; the checkpoints stay, and the run can be resumed."""
    with running(*TRAIN, "--actors.restarts", "0", cwd=folder) as run:
        goes_on(run, 500)
        kill(run, LEARNER)
        done = run.finish(40)
    assert done.code == 1, done
    assert "qherd: the learner died 1 times within 600 s (actors.restarts allows 0); the last time of " in done.err
    assert "Traceback" not in done.out + done.err
    assert done.leftovers == []
    assert summary(folder / "runs" / "r")["exit_reason"].startswith("failed: the learner died")
    assert names(folder / "runs" / "r" / "checkpoints")


FLAKY = """
import os, time
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Flaky(CartPoleEnv):
    steps = 0

    def step(self, action):
        Flaky.steps += 1
        if Flaky.steps == 3000:
            raise ConnectionError("the bridge is out")
        if Flaky.steps > 5000 and not os.path.exists(os.environ["HUNG"]):
            open(os.environ["HUNG"], "w").close()
            time.sleep(3600)
        return super().step(action)

gym.register("Flaky-v0", Flaky, max_episode_steps=500)
"""


@pytest.mark.long
@pytest.mark.timeout(240)
def test_an_env_that_raises_is_made_anew_and_one_that_hangs_is_found(folder: Path) -> None:
    """The one costs its lane an episode, the other its actor a restart; both are told by name."""
    (folder / "flaky.py").write_text(FLAKY)
    options = ("--env.path", ".", "--actors.step-timeout-s", "3", "--actors.count", "2")
    command = ("train", "flaky:Flaky-v0", *TRAIN[2:], *options)
    with running(*command, cwd=folder, env={"HUNG": str(folder / "hung")}) as run:
        goes_on(run)
        run.until(lambda: run.figure("r", "env_rebuilds") >= 2, 60, "rebuilt environments")
        run.until(lambda: run.figure("r", "actor_restarts") == 1, 90, "restart of the actor that hangs")
        goes_on(run)
        done = stop(run)
    assert "its environment was made anew: lane " in done.out
    assert "ConnectionError: the bridge is out" in done.out
    assert "flaky:Flaky-v0 hangs in a step" in done.out
    raised = [
        text.partition("its environment raised and is made anew")[2]
        for text in ((folder / "runs" / "r" / "logs" / f"actor-{slot}.log").read_text() for slot in range(2))
    ]
    assert all("ConnectionError: the bridge is out" in text and "flaky.py" in text for text in raised)
    deaths = summary(folder / "runs" / "r")["deaths"]
    assert deaths.pop("actor: HangError") == 1
    assert not set(deaths) - {"evaluator: ConnectionError"}, "which plays the same environment"
    assert summary(folder / "runs" / "r")["rows_lost"] == {}
    books(folder)


@pytest.mark.root
@pytest.mark.timeout(240)
def test_a_disk_that_fills_up_stops_nothing_and_is_told(folder: Path) -> None:
    """Training goes on, the newest whole checkpoint stays; when there is room again, all is written again."""
    with small_disk(folder / "disk", "30m") as disk:
        with running(*TRAIN, "--runs-dir", disk, cwd=folder) as run:
            checkpoints = disk / "r" / "checkpoints"
            run.until(lambda: len(names(checkpoints)) == 3, START_S, "three checkpoints")
            with (disk / "filler").open("wb", buffering=0) as filler:
                try:
                    while filler.write(bytes(1 << 12)):
                        pass
                except OSError:
                    pass
            run.until(lambda: "a checkpoint cannot be written in " in run.out, 30, "alarm")
            run.until(lambda: "metrics.jsonl cannot be written: No space left" in run.out, 30, "alarm")
            kept = names(checkpoints)
            assert kept
            read(checkpoints, kept[0])
            (disk / "filler").unlink()
            run.until(lambda: "checkpoints can be written again" in run.out, 30, "end of the alarm")
            run.until(lambda: names(checkpoints)[0].updates > kept[0].updates, 30, "checkpoint")
            stop(run)
        ended = summary(disk / "r")
        assert (ended["exit_reason"], ended["learner_restarts"], ended["actor_restarts"]) == ("interrupted", 0, 0)
        assert ended["updates"] > kept[0].updates
