"""A training from an empty directory to its summary, in one process: reproducible, and ended by its budget."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from cli_runs import QHERD, environment, qherd, summary
from gymnasium.envs.classic_control import CartPoleEnv
from made_metrics import run_metrics

from actors import episodes, evaluator
from actors.config import EnvConfig
from actors.episodes import Episodes
from actors.errors import EnvError
from actors.evaluator import EvaluationResult
from actors.verdicts import Spent
from deploy.cluster.ray_start import _start_own
from deploy.commands.resume import resume
from deploy.config.errors import ConfigError, RunDirError, RunFailedError
from deploy.config.layers import compose
from deploy.config.models import BudgetConfig, RunConfig
from deploy.planning import preconditions
from deploy.planning.preconditions import probe_env
from deploy.process.signals import Interrupted
from deploy.run_directory.directory import RunDirectory
from deploy.sessions import driver
from deploy.sessions.base import Progress
from deploy.sessions.clock import Clock
from deploy.sessions.driver import train
from deploy.sessions.inline import InlineSession
from deploy.sessions.outcome import Outcome, load_outcome
from learner.checkpoint import names
from learner.learner import choose_device, device_name, host_arrays
from learner.phases import PHASE_KEY, PHASES
from learner.weights import pack
from replay import logs
from replay.chunk_log.protocol import Unavailable
from replay.metrics import flat

ENV_STEPS = 2500
SPEEDS = (
    *("wall_s", "start_s", "cpu_s", "env_steps_per_second", "updates_per_second", *map(PHASE_KEY.format, PHASES)),
    *("checkpoint_age_seconds", "checkpoint_pause_seconds"),
)
OPTIONS: dict[str, Any] = {
    "mode": "inline",
    "env": {"id": "CartPole-v1"},
    "actors": {"count": 2, "lanes": 4, "chunk_steps": 8, "epsilon_anneal_env_steps": 1000},
    "replay": {"capacity_rows": 2000, "min_rows": 500, "samples_per_insert": 8},
    "learner": {"network": {"hidden": [16, 16]}, "batch": 16},
    "eval": {"every_updates": 400, "screen_episodes": 5, "max_episode_steps": 200},
    "budget": {"env_steps": ENV_STEPS},
}


pytestmark = pytest.mark.usefixtures("torch_as_before")


def config(runs_dir: Path, seed: int = 1, **more: Any) -> RunConfig:
    return RunConfig.model_validate({**OPTIONS, "runs_dir": runs_dir, "run": "r", "seed": seed, **more})


def figures(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in SPEEDS} for row in rows]


def best(folder: Path) -> bytes:
    (path,) = (folder / "checkpoints").glob("*.weights")
    return path.read_bytes()


# -- the same seed, to the bit


def learned(tmp_path: Path, seed: int) -> tuple[dict[str, np.ndarray[Any, Any]], list[dict[str, float]]]:
    """The learner's networks after some thousand env steps, and all figures on the way."""
    settings = config(tmp_path / f"{seed}-{time.monotonic_ns()}", seed)
    session = InlineSession(settings, RunDirectory.create(settings), probe_env(settings), print)
    seen = [flat(metrics) for _ in range(5) if (metrics := session.advance().metrics)]
    assert len(seen) == 5
    nets = session.loop.learner
    arrays = {
        f"{part}.{name}": array
        for part, net in (("online", nets.online), ("target", nets.target), ("average", nets.average))
        for name, array in host_arrays(net).items()
    }
    return arrays, [{name: value for name, value in row.items() if name not in SPEEDS} for row in seen]


def test_a_seed_gives_the_same_weights_and_figures_to_the_bit_and_another_seed_others(tmp_path: Path) -> None:
    (first, figures_1), (second, figures_2), (other, figures_3) = (learned(tmp_path, seed) for seed in (1, 1, 2))
    assert figures_1[-1]["updates"] > 500
    assert list(first) == list(second) == list(other)
    assert all((first[name].view(np.uint32) == second[name].view(np.uint32)).all() for name in first)
    assert figures_1 == figures_2
    assert figures_1 != figures_3
    assert not any((first[name] == other[name]).all() for name in first if name.endswith("weight"))


@pytest.mark.long
def test_the_command_in_another_process_gives_the_same_run(tmp_path: Path) -> None:
    """Twice the command and once from here: other processes, other hash seeds, other start times."""
    folders: list[Path] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.yaml").write_text(json.dumps({**OPTIONS, "seed": 1, "run": "r"}))
        done = qherd("train", "--config", "c.yaml", cwd=tmp_path / name, env={"PYTHONHASHSEED": str(len(folders))})
        assert done.code == 0, done
        folders.append(tmp_path / name / "runs" / "r")
    here = compose(None, None, tmp_path / "a" / "c.yaml", {})
    assert train(here.model_copy(update={"runs_dir": tmp_path / "c"})) == 0
    folders.append(tmp_path / "c" / "r")
    assert best(folders[0]) == best(folders[1]) == best(folders[2])
    assert figures(folders[0]) == figures(folders[1]) == figures(folders[2])
    first, second, third = ({**summary(folder), "wall_s": 0, "start_s": 0, "cpu_s": 0} for folder in folders)
    assert first == second == third
    assert first["eval_mean"] is not None


# -- budgets and ends


def test_the_budget_of_env_steps_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config(tmp_path)) == 0
    written = summary(tmp_path / "r")
    assert written["exit_reason"] == "budget of env steps"
    assert ENV_STEPS <= written["env_steps"] <= ENV_STEPS + 2000
    assert "budget of env steps" in capsys.readouterr().out
    rows = figures(tmp_path / "r")
    assert rows[-1]["env_steps"] == written["env_steps"]
    assert [row["env_steps"] for row in rows] == sorted({row["env_steps"] for row in rows})


def test_the_budget_of_seconds_ends_it(tmp_path: Path) -> None:
    started = time.monotonic()
    assert train(config(tmp_path, budget={"seconds": 2})) == 0
    written = summary(tmp_path / "r")
    assert written["exit_reason"] == "budget of seconds"
    assert written["wall_s"] - written["start_s"] + 0.01 >= 2
    assert 0 < written["start_s"] < written["wall_s"] < time.monotonic() - started + 0.01 < 20
    assert written["cpu_s"] > 0
    assert written["learner_device"] == device_name(choose_device("auto"))


def test_the_summary_has_every_field_and_adds_up(tmp_path: Path) -> None:
    train(config(tmp_path, seed=3))
    written = summary(tmp_path / "r")
    assert (written["run"], written["env"], written["seed"], written["mode"]) == ("r", "CartPole-v1", 3, "inline")
    assert written["chunks_sent"] == written["chunks_stored"] > 0
    assert (written["rows_lost"], written["chunks_refused"], written["actor_restarts"]) == ({}, {}, 0)
    assert written["samples_per_insert"] == pytest.approx(8, rel=0.25)
    beyond = written["env_steps"] - 500
    assert written["updates"] * 16 / beyond == pytest.approx(written["samples_per_insert"], rel=1e-6)
    assert written["episodes"] > 0
    assert (written["solved_s"], written["solved_env_steps"]) == (None, None)
    _, manifest = RunDirectory.open(tmp_path / "r").best.load()
    assert (manifest["mean"], manifest["episodes"]) == (written["eval_mean"], written["eval_episodes"])


def test_a_solved_run_says_when_and_how_well(tmp_path: Path) -> None:
    easy = {"threshold": 5, "every_updates": 50, "screen_episodes": 3, "confirm_episodes": 10}
    assert train(config(tmp_path, eval=easy)) == 0
    written = summary(tmp_path / "r")
    assert written["exit_reason"] == "solved"
    assert 0 < written["solved_s"] <= written["wall_s"]
    assert 0 < written["solved_env_steps"] <= written["env_steps"]
    assert written["eval_episodes"] == 10
    assert written["eval_mean"] - 2 * written["eval_std"] / 10**0.5 >= 5
    assert RunDirectory.open(tmp_path / "r").best.load()[1]["solved"] is True


# -- judging, with verdicts by hand


def verdict(screen: list[float], confirmed: list[float] | None = None, solved: bool = False) -> EvaluationResult:
    def episodes(returns: list[float]) -> Episodes:
        return Episodes(np.array(returns), np.ones(len(returns), np.int64))

    return EvaluationResult(1, 10, episodes(screen), episodes(confirmed) if confirmed else None, solved, 0.1)


class Script:
    """A session whose progress is written down beforehand."""

    begun = True

    def __init__(self, *verdicts: EvaluationResult | Exception) -> None:
        self.verdicts, self.stopped = list(verdicts), 0
        self.holdout: Episodes | None = None

    def advance(self) -> Progress:
        following = self.verdicts.pop(0)
        if isinstance(following, Exception):
            raise following
        policy = pack(1, 10, 100, {"mean": np.array([following.episodes.mean])})
        metrics = run_metrics(env_steps=100 * (3 - len(self.verdicts)), chunks=4)
        return Progress(metrics, {"crc": 2}, {"gap": 5}, following, policy)

    def status_line(self) -> str:
        return "actor 0 sleeps"

    def stop(self, deadline_s: float, policy: bytes | None = None, skip: Any = None) -> Progress | None:
        self.stopped += 1
        self.held_out = policy
        return Progress(None, {}, {}, None, None, holdout=self.holdout)


def test_the_hold_out_stays_with_the_policy_that_was_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In best.json and in the summary, also of the next driver where that has found no better one; a better one has
    none until it is played."""
    script = Script(verdict([1, 2]), verdict([30, 31]))
    script.holdout = Episodes(np.array([20.0, 22.0]), np.ones(2, np.int64))
    directory = played(tmp_path, monkeypatch, script, budget=BudgetConfig(env_steps=300))
    expected = {"holdout_mean": 21.0, "holdout_std": 2**0.5, "holdout_episodes": 2}
    manifest = directory.best.load()[1]
    assert {name: manifest[name] for name in expected} == expected
    assert manifest["mean"] == 30.5
    assert summary(tmp_path / "r").items() >= expected.items()
    assert script.held_out == directory.best.packed()
    unchanged = load_outcome(config(tmp_path), directory).summary(config(tmp_path), "r", Clock())
    assert unchanged.items() >= expected.items()
    directory.best.save(b"better", {name: manifest[name] for name in manifest if not name.startswith("holdout")})
    changed = load_outcome(config(tmp_path), directory).summary(config(tmp_path), "r", Clock())
    assert [changed[name] for name in expected] == [None, None, 0]
    damaged = {**json.loads((tmp_path / "r/checkpoints/best.json").read_text()), "holdout_mean": "x"}
    (tmp_path / "r/checkpoints/best.json").write_text(json.dumps(damaged))
    with pytest.raises(RunDirError, match=r"best\.json is damaged: holdout_mean is 'x'"):
        directory.best.manifest()


def test_a_failed_confirmation_is_told_more_and_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first, second and fourth of five."""
    verdicts = [verdict([1, 1], [1, 1])._replace(lower=0.9, spent=Spent(number, 1.0)) for number in range(1, 6)]
    more = {"budget": BudgetConfig(env_steps=300), "eval": {"threshold": 1}}
    played(tmp_path, monkeypatch, Script(*verdicts), **more)
    said = " ".join(capsys.readouterr().out.split())
    assert [f"confirmation {number}, of update 10, failed" in said for number in range(1, 6)] == [
        True, True, False, True, False,
    ]  # fmt: skip
    assert "all of them returned 1, and so many without a worse one prove no more" in said


def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, **more: Any) -> RunDirectory:
    monkeypatch.setattr(driver, "start_session", lambda *_: script)
    try:
        train(config(tmp_path, **more))
    finally:
        assert script.stopped == 1, "a session is stopped once, however it ends"
    return RunDirectory.open(tmp_path / "r")


@pytest.mark.parametrize(
    ("verdicts", "kept"),
    [
        pytest.param([verdict([10, 11]), verdict([30, 31])], 30.5, id="the better screen"),
        pytest.param([verdict([30, 31]), verdict([10, 11])], 30.5, id="not a worse one later"),
        pytest.param([verdict([90, 90], [40, 50]), verdict([40, 41])], 40.5, id="the greater lower bound"),
        pytest.param([verdict([90], [70, 71], True)], 70.5, id="the solution"),
    ],
)
def test_the_best_policy_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdicts: list[EvaluationResult], kept: float
) -> None:
    budget = BudgetConfig(env_steps=300)
    arrays, manifest = played(
        tmp_path, monkeypatch, Script(*[verdict([1, 2])] * (3 - len(verdicts)), *verdicts), budget=budget
    ).best.load()
    assert manifest["mean"] == arrays["mean"][0] == kept
    written = summary(tmp_path / "r")
    assert written["eval_mean"] == kept
    assert (written["chunks_sent"], written["chunks_stored"], written["chunks_refused"]) == (6, 4, {"crc": 2})
    assert written["rows_lost"] == {"gap": 5}


def test_the_first_greedy_return_stays_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The display measures the way to the threshold from there."""
    played(tmp_path, monkeypatch, Script(verdict([1, 2]), verdict([0, 0])), budget=BudgetConfig(env_steps=200))
    monkeypatch.setattr(driver, "start_session", lambda *_: Script(verdict([30, 31], [28, 29]), verdict([50, 51])))
    assert resume(tmp_path / "r", config(tmp_path, budget={"env_steps": 300})) == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["greedy_return"] for row in rows] == [1.5, 30.5, 50.5]
    assert [row.get("confirmed_return") for row in rows] == [None, 28.5, 28.5], "until the next confirmation"
    assert {row["first_greedy_return"] for row in rows} == {1.5}


def test_a_failed_run_has_a_summary_and_the_parts_own_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RunFailedError("actor 0 died: the bridge is out", "Traceback: line 7")
    with pytest.raises(RunFailedError, match="bridge"):
        played(tmp_path, monkeypatch, Script(verdict([1, 2]), failure))
    assert summary(tmp_path / "r")["exit_reason"] == "failed: actor 0 died: the bridge is out"
    assert summary(tmp_path / "r")["eval_mean"] == 1.5
    assert (tmp_path / "r" / "failure.txt").read_text() == "Traceback: line 7"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_ends_it_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    class Interrupted(Script):
        def advance(self) -> Progress:
            os.kill(os.getpid(), number)
            return super().advance()

    before = signal.getsignal(number)
    monkeypatch.setattr(driver, "start_session", lambda *_: Interrupted(verdict([1, 2]), verdict([1, 2])))
    assert train(config(tmp_path)) == 75
    assert summary(tmp_path / "r")["exit_reason"] == "interrupted"
    assert signal.getsignal(number) == before, "the handlers are as before"
    assert f"asked to stop by {number.name}\n" in (tmp_path / "r" / "logs" / "driver.log").read_text()


# -- environments that raise


class FragileEnv(CartPoleEnv):
    """Raises in every ``raises_every``-th env step of all of its kind."""

    steps, raises_every = 0, 0

    def step(self, action: Any) -> Any:
        FragileEnv.steps += 1
        if FragileEnv.steps % FragileEnv.raises_every == 0:
            raise RuntimeError("the bridge is down")
        return super().step(action)  # type: ignore[no-untyped-call]


gym.register("Fragile-v0", f"{__name__}:FragileEnv", max_episode_steps=200)
FRAGILE = {"id": f"{__name__}:Fragile-v0"}
NEVER = 1 << 60


def fragile(monkeypatch: pytest.MonkeyPatch, training: int, evaluations: list[int]) -> None:
    """Have it raise every so many env steps of the training, and of each evaluation; the last is for all others."""
    monkeypatch.setattr(FragileEnv, "steps", 0)
    monkeypatch.setattr(FragileEnv, "raises_every", training)
    play = episodes.play

    def played(*arguments: Any) -> Any:
        FragileEnv.raises_every = evaluations.pop(0) if len(evaluations) > 1 else evaluations[0]
        try:
            return play(*arguments)
        finally:
            FragileEnv.raises_every = training

    monkeypatch.setattr(evaluator, "play", played)


def test_an_environment_that_raises_now_and_then_costs_its_episodes_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said, counted, and the run goes on to its end."""
    fragile(monkeypatch, 900, [NEVER])
    assert train(config(tmp_path, env=FRAGILE, log_level="debug")) == 0
    out, written = capsys.readouterr().out, summary(tmp_path / "r")
    assert written["exit_reason"] == "budget of env steps"
    assert "its environment was made anew: lane" in out
    assert "RuntimeError: the bridge is down, after env step" in out
    assert (written["env_rebuilds"], written["evaluator_restarts"]) == (out.count("was made anew"), 0)
    (log,) = (tmp_path / "r" / "logs").iterdir()
    assert log.name == "driver.log"
    assert " DEBUG qherd.learner: published weights, " in log.read_text()
    assert re.search(r" DEBUG qherd\.actor: took the weights of update \d+, \d+ bytes$", log.read_text(), re.M)
    assert log.read_text().count("\n    RuntimeError: the bridge is down") == written["env_rebuilds"] > 0
    assert "test_train.py" in log.read_text()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_log_that_cannot_be_written_ends_nothing(
    code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(logs, "_private", refused)
    fragile(monkeypatch, 900, [NEVER])
    assert train(config(tmp_path, env=FRAGILE)) == 0
    assert list((tmp_path / "r" / "logs").iterdir()) == []
    assert capfd.readouterr().err == ""


def test_so_does_one_that_raises_where_it_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The episode is played again in a new environment; nothing of the training changes."""
    fragile(monkeypatch, NEVER, [20, NEVER])
    assert train(config(tmp_path, env=FRAGILE)) == 0
    out, written = capsys.readouterr().out, summary(tmp_path / "r")
    assert written["exit_reason"] == "budget of env steps"
    assert "the evaluator: its environment was made anew: environment" in out
    assert "RuntimeError: the bridge is down" in out
    assert written["env_rebuilds"] >= 1
    assert written["evaluator_restarts"] == 0
    assert written["eval_mean"] is not None
    assert written["unevaluated"] == ""


def test_one_that_always_raises_ends_the_run_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So seldom that the first look does not see it."""
    fragile(monkeypatch, 300, [NEVER])
    actors = {**OPTIONS["actors"], "restarts": 1}
    said = r"actor \d failed: LaneError: the environment in lane \d of.* died 2 times.*RuntimeError: the bridge is down"
    with pytest.raises(RunFailedError, match=said):
        train(config(tmp_path, env=FRAGILE, actors=actors))
    assert "test_train.py" in (tmp_path / "r" / "failure.txt").read_text()


def test_a_run_that_cannot_be_evaluated_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fragile(monkeypatch, NEVER, [1])
    assert train(config(tmp_path, env=FRAGILE, actors={**OPTIONS["actors"], "restarts": 1})) == 0
    out, written = capsys.readouterr().out, summary(tmp_path / "r")
    assert written["exit_reason"] == "budget of env steps"
    assert written["eval_mean"] is None
    assert "the evaluator died 2 times" in written["unevaluated"]
    assert "RuntimeError: the bridge is down" in written["unevaluated"]
    assert out.count("the run goes on, and is evaluated again in 10 minutes") == 1
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])["evaluation_failing"] == 1


@pytest.mark.parametrize("how", ["to the end", "actor fails", "evaluator is made anew"])
def test_every_environment_is_closed_once(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first look, the lanes, the evaluator, and all that were made anew."""
    book = tmp_path / "book"
    kwargs = {"kind": "raises" if how == "actor fails" else "well", "after": 250, "book": str(book)}
    env = {"id": "strange_env:Strange-v0", "kwargs": kwargs}
    if how == "actor fails":
        more: dict[str, Any] = {"actors": {**OPTIONS["actors"], "restarts": 0}, "budget": {"env_steps": 50_000}}
        with pytest.raises(RunFailedError, match="the bridge is down"):
            train(config(tmp_path, env=env, **more))
    else:
        if how == "evaluator is made anew":
            monkeypatch.setattr(evaluator, "play", lambda *_: 1 / 0)
        assert train(config(tmp_path, env=env)) == 0
    words = book.read_text().split()
    assert words.count("made") == words.count("closed") > OPTIONS["actors"]["lanes"]


def test_what_takes_long_to_make_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.sessions.waiting.REPORT_EVERY_S", 0.05)
    env = {"id": "strange_env:Strange-v0", "kwargs": {"kind": "slowly made"}}
    evaluation = {**OPTIONS["eval"], "confirm_episodes": 2}
    assert train(config(tmp_path, env=env, eval=evaluation, budget={"env_steps": 100})) == 0
    shown = capsys.readouterr().out
    for who in ("actor 0 is still making its 4", "actor 1 is still making its 4", "the evaluator is still making its"):
        assert re.search(rf"^ *\d+\.\d s  {who} environments, for \d s now$", shown, re.MULTILINE)
    assert "qherd-waiting" not in [thread.name for thread in threading.enumerate()]


def test_what_an_environment_prints_is_not_among_the_runs_lines(tmp_path: Path) -> None:
    """Neither what it prints in Python nor what comes past it, on a pipe as on no output at all."""
    options = ("--mode", "inline", "--budget.env-steps", "400", "--actors.lanes", "2", "--replay.min-rows", "100")
    mine = ("--env.path", Path(__file__).parent, "--env.kwargs", "{kind: prints}", *options)
    done = qherd("train", "strange_env:Strange-v0", "--run", "r", *mine, cwd=tmp_path)
    assert done.code == 0, done
    for text in ("a line that the environment prints", "and one past Python"):
        assert text not in done.out
        assert text in done.err
    assert "waiting for the first experience" in done.out
    assert done.out.count("budget of env steps: runs/r") == 1


def test_without_an_output_an_environment_may_print(tmp_path: Path) -> None:
    """What it prints is read by nobody, and not by whoever reads what the first look has found."""
    command = (
        f"{QHERD} train strange_env:Strange-v0 --env.path {Path(__file__).parent} --env.kwargs '{{kind: prints}}' "
        "--mode inline --run r --budget.env-steps 400 >&- 2>&-; echo $?"
    )
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(tmp_path, "closed"), capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert done.stdout == "0\n"
    assert summary(tmp_path / "runs" / "r")["exit_reason"] == "budget of env steps"


# -- refusals leave nothing


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"env": EnvConfig(id="Pendulum-v1")}, EnvError),
        ({"replay": {"capacity_rows": 600, "min_rows": 590}}, ValueError),
        ({"mode": "cluster"}, ConfigError),
    ],
)
def test_a_refusal_comes_before_anything_is_made(tmp_path: Path, more: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        train(config(tmp_path / "runs", **more))
    assert not (tmp_path / "runs").exists()


def test_a_run_that_began_keeps_its_directory_also_without_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes before the first row is no refusal: there may be checkpoints."""
    with pytest.raises(Unavailable):
        played(tmp_path, monkeypatch, Script(Unavailable("gone")))
    assert summary(tmp_path / "r")["exit_reason"] == "failed: gone"


def test_only_a_new_run_that_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is resumed keeps what it has."""

    def refuse(*_: Any) -> Any:
        raise Unavailable("no server")

    RunDirectory.create(config(tmp_path / "resumed")).close()
    monkeypatch.setattr(driver, "start_session", refuse)
    with pytest.raises(Unavailable):
        train(config(tmp_path / "new"))
    assert not (tmp_path / "new" / "r").exists()
    with pytest.raises(Unavailable):
        resume(tmp_path / "resumed" / "r", config(tmp_path / "resumed"))
    assert (tmp_path / "resumed" / "r" / "fences.json").exists()


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("in a library"), KeyboardInterrupt(), SystemExit(3), Interrupted()]
)
def test_a_start_that_ends_for_any_reason_gives_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def end(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(driver, "start_session", end)
    if isinstance(error, Interrupted):
        assert train(config(tmp_path / "runs")) == 75
    else:
        with pytest.raises(type(error)):
            train(config(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("error", [Exception, TimeoutError, RuntimeError])
def test_a_ray_that_does_not_start_is_one_message_and_gives_the_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Ray raises a bare Exception where a part of it has not answered after 30 s."""

    def init(**_: Any) -> None:
        raise error("The current node timed out during startup.\nThis could happen because of anything.")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(preconditions, "check_process", lambda _: None)  # which refuses where ray was imported before
    monkeypatch.setattr(
        "deploy.cluster.ray_running.start_ray", lambda *given: _start_own(given[0], given[1], "a token")
    )
    told = r"^Ray has not started on this machine: The current node timed out during startup; is it .* qherd doctor"
    with pytest.raises(RunFailedError, match=told) as failed:
        train(config(tmp_path, mode="local"))
    assert "\n" not in str(failed.value)
    assert list(tmp_path.iterdir()) == []


def test_so_does_a_run_that_is_interrupted_before_anything_has_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupts(Script):
        def advance(self) -> Progress:
            os.kill(os.getpid(), signal.SIGTERM)
            return Progress(run_metrics(), {}, {}, None, None)

    monkeypatch.setattr(driver, "start_session", lambda *_: Interrupts())
    assert train(config(tmp_path / "runs")) == 75
    assert not (tmp_path / "runs").exists()
    assert "its name is free" in capsys.readouterr().out


def test_a_resumed_run_whose_start_fails_has_the_summary_of_what_it_had_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(config(tmp_path)) == 0
    before = summary(tmp_path / "r")

    def refuse(*_: Any) -> Any:
        raise Unavailable("no server")

    monkeypatch.setattr(driver, "start_session", refuse)
    with pytest.raises(Unavailable):
        resume(tmp_path / "r", config(tmp_path, budget={"env_steps": 10**6}))
    after = summary(tmp_path / "r")
    assert after["exit_reason"] == "failed: no server"
    kept = ("env_steps", "updates", "episodes", "eval_mean")
    assert [after[name] for name in kept] == [before[name] for name in kept]


def test_a_run_into_which_nothing_came_has_failed_whatever_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing(Script):
        def advance(self) -> Progress:
            return Progress(run_metrics(), {}, {}, None, None)

    monkeypatch.setattr(driver, "start_session", lambda *_: Nothing())
    with pytest.raises(RunFailedError, match=r"no env step has come in within the 0.1 s .*: actor 0 sleeps"):
        train(config(tmp_path, budget={"seconds": 0.1}))
    assert summary(tmp_path / "r")["exit_reason"].startswith("failed: no env step")


def test_the_budget_of_seconds_counts_from_where_learner_and_actor_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is shown apart; a run that is resumed goes on counting."""
    now_s = [100.0]
    monkeypatch.setattr("deploy.sessions.clock.time.monotonic", lambda: now_s[0])

    class Slow(Script):
        advances = 0

        @property
        def begun(self) -> bool:  # type: ignore[override]
            return self.advances > 3

        def advance(self) -> Progress:
            self.advances += 1
            now_s[0] += 10
            steps = 100 * max(0, self.advances - 3)
            return Progress(run_metrics(env_steps=steps), {}, {}, None, None)

    monkeypatch.setattr(driver, "start_session", lambda *_: Slow())
    assert train(config(tmp_path, budget={"seconds": 25})) == 0
    written = summary(tmp_path / "r")
    assert (written["wall_s"], written["start_s"], written["env_steps"]) == (70, 40, 400)
    assert resume(tmp_path / "r", config(tmp_path, budget={"seconds": 45})) == 0
    written = summary(tmp_path / "r")
    assert (written["wall_s"], written["start_s"]) == (130, 80)


def test_runs_that_share_a_folder_of_checkpoints_leave_each_others_alone(tmp_path: Path) -> None:
    """Each removes its own older ones only, and goes on from its own."""
    shared = {"dir": tmp_path / "shared", "every_updates": 100, "keep": 1}
    for run in ("a", "b"):
        assert train(config(tmp_path, run=run, checkpoint=shared)) == 0
        assert len(names(tmp_path / "shared" / run)) == 1
    more = config(tmp_path, run="a", checkpoint=shared, budget={"env_steps": 2 * ENV_STEPS})
    assert resume(tmp_path / "a", more) == 0
    assert [names(tmp_path / "shared" / run)[0].fence for run in ("a", "b")] == [2, 1]


def test_an_outcome_without_metrics_is_still_a_summary() -> None:
    written = Outcome().summary(compose("CartPole-v1", None, None, {}), "r", Clock())
    assert (written["env_steps"], written["updates"], written["eval_mean"], written["chunks_sent"]) == (0, 0, None, 0)
    json.dumps(written)
