"""A run from Python: started, watched and stopped, and nothing left of it, whatever ends the block."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from cli_runs import Run, running_program, summary
from waiting import until

import deploy.training
from deploy import Training
from deploy.config.errors import ConfigError, RunFailedError
from deploy.config.layers import compose
from deploy.planning.preconditions import check_before_run
from deploy.process.signals import SIGNALS
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.standing import standing_of
from deploy.training import Progress
from learner.checkpoint import names
from replay.errors import QherdError

SMALL: dict[str, Any] = {
    "mode": "inline",
    "actors.lanes": 4,
    "replay.min_rows": 100,
    "replay.capacity_rows": 5000,
    "eval.every_updates": 100,
    "eval.screen_episodes": 2,
    "eval.threshold": None,
    "run": "r",
}


def left_here() -> tuple[int, list[threading.Thread]]:
    """The open files, and the threads, of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.enumerate()


# -- the configuration


def test_overrides_are_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By dotted name, a section at once, or both; what was given is as it was."""
    (tmp_path / "c.yaml").write_text("{seed: 1, actors: {count: 5}, learner: {batch: 8, gamma: 0.5}}")
    for name, value in {"QHERD_SEED": "2", "QHERD_ACTORS_COUNT": "6", "QHERD_LEARNER_GAMMA": "0.25"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    given = {"learner": {"network": {"hidden": [7]}}, "learner.gamma": 0.75, "actors.count": 7}
    config = Training("CartPole-v1", config="c.yaml", overrides=given).config
    assert (config.env.id, config.seed, config.actors.count) == ("CartPole-v1", 2, 7)
    assert (config.learner.batch, config.learner.gamma, config.learner.network.hidden) == (8, 0.75, (7,))
    assert config.eval.threshold == 475, "of the environment's own preset"
    assert given == {"learner": {"network": {"hidden": [7]}}, "learner.gamma": 0.75, "actors.count": 7}
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"], "nothing is started, nothing written"


@pytest.mark.parametrize(
    ("options", "kwargs"),
    [
        ({"env.kwargs.opts": {}}, {"opts": {}}),
        ({"env.kwargs.opts": {"b.c": 1}}, {"opts": {"b.c": 1}}),
        ({"env.kwargs": {"opts": {"b.c": 1}}}, {"opts": {"b.c": 1}}),
        ({"env": {"kwargs": {"map": {1: "x"}}}}, {"map": {1: "x"}}),
        ({"env.kwargs.map": {1: "x"}}, {"map": {1: "x"}}),
    ],
)
def test_an_environments_arguments_are_as_they_were_given(options: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """They are not qherd's options, whose names have dots."""
    assert compose("CartPole-v1", None, None, {}, options).env.kwargs == kwargs


def test_what_a_program_changes_afterwards_does_not_change_the_configuration() -> None:
    layout = [1]
    for options in ({"env.kwargs": {"layout": layout}}, {"env.kwargs.layout": layout}):
        config = compose("CartPole-v1", None, None, {}, options)
        layout.append(2)
        assert config.env.kwargs == {"layout": layout[:-1]}


def test_what_cannot_be_copied_is_no_matter() -> None:
    """Only lists and mappings are, of whatever kind; the rest is as it was given, or refused by its option's name."""
    lock = threading.Lock()
    given = MappingProxyType({"a": MappingProxyType({"lock": lock}), "of": math})
    kwargs = compose("CartPole-v1", None, None, {}, {"env.kwargs": given}).env.kwargs
    assert kwargs == {"a": {"lock": lock}, "of": math}
    urls = {"redis://a": 1, "redis://b": 2}
    assert compose("CartPole-v1", None, None, {}, {"redis.urls": urls.keys()}).redis.urls == tuple(urls)
    with pytest.raises(ConfigError, match=r"\n  learner.lr: Input should be a valid number"):
        compose("CartPole-v1", None, None, {}, {"learner.lr": lock})


def test_what_is_in_itself_is_refused() -> None:
    kwargs, section, deep = list[Any](), dict[str, Any](), dict[str, Any]()
    kwargs.append(kwargs)
    section["network"] = section
    for _ in range(100_000):
        deep = {"a": deep}
    for options in ({"env.kwargs": {"a": kwargs}}, {"learner": section}, {"env": {"kwargs": deep}}, {"learner": deep}):
        with pytest.raises(ConfigError, match=r"\(overrides\):\n  the options nest too deeply, or one is in itself"):
            Training("CartPole-v1", overrides=options)


def test_two_runs_without_a_name_have_two() -> None:
    one, other = Training("CartPole-v1"), Training("CartPole-v1")
    assert one.directory != other.directory
    assert one.directory.is_absolute()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"overrides": {"learner.lrr": 1}},
            r"configuration \(overrides\):\n  learner.lrr: there is no such option",
        ),
        ({"overrides": {"learner.lr": -1.0}}, r"configuration \(overrides\):\n  learner.lr: Input should be greater"),
        ({"overrides": {"learner": 3}}, r"configuration \(overrides\):\n  learner: Input should be a valid dictionary"),
        (
            {"overrides": {"learner.lr": 1e-3, "learner": {"lr": 1e-4}}},
            r"configuration \(overrides\):\n  learner.lr: it is set twice, by its dotted name or in its section",
        ),
        ({"overrides": {"run": "a/b"}}, r"configuration \(overrides\):\n  run: String should match"),
        ({"overrides": {"env.kwargs": {"of": np.ones(2)}}}, r"configuration \(overrides\): a value is none that YAML"),
        ({"preset": "nothing"}, "preset 'nothing' does not exist; one of acrobot, "),
        ({"config": "nowhere.yaml"}, "config file nowhere.yaml: No such file"),
        ({"resume": True}, "resume=True needs to know the run: give its name with overrides="),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_commands_message(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**given)


def test_it_is_used_in_its_block_only(tmp_path: Path) -> None:
    run = Training(overrides={"runs_dir": tmp_path})
    for use in (run.stop, lambda: list(run), lambda: run.outcome):
        with pytest.raises(RuntimeError, match="at work in the block of its with only"):
            use()


def test_a_row_without_a_metric_has_none_of_it() -> None:
    row = {"wall_s": 1.5, "env_steps": 7.0, "greedy_return": 2.0}
    progress = Progress.of_row("training", row)
    assert progress == Progress("training", 1.5, 7, 0, 0, None, 2.0, None, row)


# -- the process, by commands that end at once


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Training]]:
    """Has a program of the test be the command."""
    before = left_here()

    def play(program: str) -> Training:
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        monkeypatch.setattr(deploy.training, "qherd_command", lambda _: [sys.executable, "-c", program])
        return Training(overrides={"runs_dir": tmp_path, "run": "r"})

    yield play
    assert left_here() == before


FAILED: Mapping[str, tuple[str, type[QherdError], str]] = {
    "refused": ("print('qherd: no\\n  such: thing', file=sys.stderr); sys.exit(2)", ConfigError, "^no\n  such: thing$"),
    "failed": ("print('  1.0 s  at work\\nqherd: it broke'); sys.exit(1)", RunFailedError, "^it broke$"),
    "defect": ("raise KeyError('x')", RunFailedError, "^qherd train ended with exit code 1$"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", RunFailedError, "^qherd train was killed by SIGKILL$"),
    "loud": ("print('x' * 500_000 + '\\nqherd: late'); sys.exit(1)", RunFailedError, "^late$"),
}


@pytest.mark.parametrize("case", FAILED)
def test_how_a_command_failed_is_raised_where_the_block_begins(case: str, played: Callable[[str], Training]) -> None:
    program, kind, message = FAILED[case]
    run = played(f"import os, signal, sys; {program}")
    with pytest.raises(kind, match=message) as failed, run:
        raise AssertionError("the block was entered")
    assert run.outcome.state == "failed"
    if case == "defect":
        assert isinstance(failed.value, RunFailedError)
        assert "KeyError: 'x'" in failed.value.details


def test_a_run_whose_name_is_taken_has_not_the_other_s_outcome(played: Callable[[str], Training]) -> None:
    run = played("import sys; print('qherd: taken', file=sys.stderr); sys.exit(2)")
    with contextlib.closing(RunDirectory.create(run.config)) as other:
        other.write_summary({"exit_reason": "solved", "env_steps": 7})
    assert standing_of(run.directory).state == "solved"
    with pytest.raises(ConfigError, match=r"^taken$"), run:
        raise AssertionError("the block was entered")
    assert (run.outcome.state, run.outcome.ended) == ("failed", "failed: taken")


def test_the_command_works_where_the_run_was_described(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, played: Callable[[str], Training]
) -> None:
    """A notebook may go to another folder before it begins the run; relative paths were meant from here."""
    monkeypatch.chdir(tmp_path)
    run = played("import os, sys; print('qherd: ' + os.getcwd()); sys.exit(2)")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError) as failed, run:
        raise AssertionError("the block was entered")
    assert str(failed.value) == str(tmp_path)


HOLDS_THE_RUN = """
import os, signal, sys, threading, time
from pathlib import Path
from deploy.run_directory.lock import RunLock
asked = threading.Event()
def stop(number, frame):
    if asked.is_set():
        os._exit(143)
    asked.set()
signal.signal(signal.SIGTERM, stop)
folder = Path({folder!r})
folder.mkdir()
RunLock(folder, folder).acquire()
"""


def test_a_failure_after_the_begin_is_raised_once_and_no_error_of_the_block_is_replaced(
    played: Callable[[str], Training], tmp_path: Path
) -> None:
    holds = HOLDS_THE_RUN.format(folder=str(tmp_path / "r"))
    fails = holds + "asked.wait(60); print('qherd: it broke'); sys.exit(1)"
    with played(fails) as run:
        run.stop()
        with pytest.raises(RunFailedError, match="it broke"):
            list(run)
    with pytest.raises(RunFailedError, match="it broke"), played(fails):
        pass
    with pytest.raises(LookupError), played(fails):
        raise LookupError


def test_a_run_that_is_asked_twice_is_stopping_until_it_is_over(
    played: Callable[[str], Training], tmp_path: Path
) -> None:
    """Asked again it would end at once, with an exit code of its own."""
    program = HOLDS_THE_RUN.format(folder=str(tmp_path / "r"))
    program += "asked.wait(60)\nwhile not (folder / 'go').exists(): time.sleep(0.01)\nsys.exit(75)"
    with played(program) as run:
        phases = [next(iter(run)).phase]
        for _ in range(2):
            run.stop()
        phases.append(next(iter(run)).phase)
        (tmp_path / "r" / "go").touch()
        phases += [progress.phase for progress in run]
    assert list(dict.fromkeys(phases)) == ["starting", "stopping", "over"]


def test_ctrl_c_while_the_run_ends_ends_it_at_once(played: Callable[[str], Training], tmp_path: Path) -> None:
    """The run hangs as it ends; the interrupt comes once it has been asked to, and is raised."""
    hangs = HOLDS_THE_RUN.format(folder=str(tmp_path / "r"))
    hangs += "asked.wait(60); os.kill(os.getppid(), signal.SIGINT); threading.Event().wait(60); print('waited')"
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt), played(hangs):
        pass
    assert time.monotonic() - began_s < 50


# -- a run


def last_checkpoint(folder: Path) -> int:
    return names(folder / "checkpoints")[0].env_steps


def test_a_run_is_watched_left_by_an_error_and_gone_on_with(tmp_path: Path) -> None:
    """Left in a thread that is not the main one, gone on with in the main one, whose handlers stay."""
    before, options = left_here(), {**SMALL, "runs_dir": tmp_path}
    seen = list[Progress]()

    def watch() -> None:
        with Training("CartPole-v1", overrides=options) as run:
            assert run.outcome.state == "at work"
            for progress in run:
                seen.append(progress)
                if progress.greedy_return is not None:
                    raise LookupError("of the block")

    with ThreadPoolExecutor(1) as thread, pytest.raises(LookupError, match="of the block"):
        thread.submit(watch).result(100)
    assert (seen[0].phase, seen[-1].phase) == ("starting", "training") or len(seen) == 1
    assert seen[-1].updates > 0
    assert 0 < seen[-1].elapsed_s < 100
    assert seen[-1].metrics["replay_rows"] > 0
    left = standing_of(tmp_path / "r")
    assert left.state == "interrupted"
    assert left.env_steps == last_checkpoint(tmp_path / "r") >= seen[-1].env_steps
    assert left_here() == before

    handlers = [signal.getsignal(number) for number in SIGNALS]
    with Training("CartPole-v1", overrides=options, resume=True) as again:
        assert [signal.getsignal(number) for number in SIGNALS] == handlers
        with pytest.raises(RuntimeError, match="entered once"):
            again.__enter__()
        phases = list[str]()
        for progress in again:
            phases.append(progress.phase)
            assert progress.env_steps >= left.env_steps or progress.phase == "starting"
            if progress.phase == "training":
                again.stop()
    assert [phase for phase in dict.fromkeys(phases) if phase not in ("starting", "stopping")] == ["training", "over"]
    assert again.outcome.state == "interrupted"
    assert summary(tmp_path / "r")["env_steps"] == last_checkpoint(tmp_path / "r") > left.env_steps
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert left_here() == before


@pytest.mark.long
def test_what_the_command_refuses_is_raised_with_its_message(tmp_path: Path) -> None:
    options = {**SMALL, "runs_dir": tmp_path}
    with (
        pytest.raises(ConfigError, match=r"^environment 'CartPole-v7'") as refused,
        Training("CartPole-v7", overrides=options) as run,
    ):
        raise AssertionError(f"the block was entered: {run}")
    with pytest.raises(QherdError) as told:
        check_before_run(Training("CartPole-v7", overrides=options).config)
    whole, expected = (str(error.value).partition("did you mean")[0] for error in (refused, told))
    assert whole == expected  # what names are near goes by what this process has registered
    assert list(tmp_path.iterdir()) == []


# -- the program ends


WATCHED = """
import sys
from deploy import Training
try:
    with Training("CartPole-v1", overrides={options!r}) as run:
        for progress in run:
            if progress.greedy_return is not None:
                open("seen", "w").close()
except KeyboardInterrupt:
    print("interrupted", run.outcome.state)
"""


@contextlib.contextmanager
def watched(folder: Path, **options: Any) -> Iterator[Run]:
    """A program that watches a run, which has evaluated a policy when the block begins."""
    text = WATCHED.format(options={**SMALL, **options})
    with running_program([sys.executable, "-c", text], cwd=folder) as run:
        run.until((folder / "seen").exists, 90, "evaluated policy")
        yield run


@pytest.mark.long
def test_ctrl_c_in_the_block_leaves_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    """The interrupt is the program's alone, as in a notebook."""
    with watched(tmp_path) as run:
        run.process.send_signal(signal.SIGINT)
        done = run.finish(60)
        left = list(run.tmp.iterdir())
    assert (done.code, done.out, done.err, done.leftovers, left) == (0, "interrupted interrupted\n", "", [], [])
    assert last_checkpoint(tmp_path / "runs" / "r") == summary(tmp_path / "runs" / "r")["env_steps"] > 0


@pytest.mark.long
def test_a_program_that_is_killed_leaves_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        run.process.kill()
        run.process.wait()
        until(lambda: not run.others(), "end of the run", 60)
    assert standing_of(tmp_path / "runs" / "r").state == "interrupted"
    assert last_checkpoint(tmp_path / "runs" / "r") == summary(tmp_path / "runs" / "r")["env_steps"] > 0
