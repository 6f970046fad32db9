"""What a run shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from cli_runs import QHERD, environment
from rich.console import Console

from actors.config import EnvConfig, EvalConfig
from deploy.config.models import BudgetConfig, RunConfig
from deploy.monitoring.display import LINE_EVERY_S, Display

FIGURES: dict[str, float] = {
    "env_steps": 12_345,
    "env_steps_per_second": 6_789.4,
    "updates": 2_222,
    "updates_per_second": 333.3,
    "replay_rows": 250,
    "replay_capacity_rows": 1_000,
    "samples_per_insert": 15.987,
    "weight_staleness_versions": 2,
    "actors_alive": 3,
}
SHOWN = ("12,345", "6,789/s", "2,222", "333/s", "25%", "15.99", "2", "3")
CONFIG = RunConfig(env=EnvConfig(id="CartPole-v1"), eval=EvalConfig(threshold=475))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("deploy.monitoring.display.time.monotonic", lambda: self.now_s)


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    drawn = io.StringIO()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(
        "deploy.monitoring.display.Console", lambda **_: Console(file=drawn, force_terminal=True, width=110)
    )
    return drawn


# -- without a terminal


def test_a_plain_line_has_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("r", CONFIG) as display:
        display.update({**FIGURES, "greedy_return": 321.04, "exploring_return": -5.55})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert all(text in line for text in (*SHOWN, "greedy return 321.0", "exploring return -5.5"))
    assert "\x1b" not in line


def test_servers_down_are_shown_while_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    for down, shown in ((0, False), (2, True)):
        with Display("r", CONFIG) as display:
            display.update({**FIGURES, "servers_down": down})
        assert ("servers down 2" in capsys.readouterr().out) is shown


def test_before_the_first_figures_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("r", CONFIG) as display:
        display.update({})
    assert "greedy return not yet" in capsys.readouterr().out


def test_lines_come_every_five_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert LINE_EVERY_S == 5
    clock = Clock(monkeypatch)
    with Display("r", CONFIG) as display:
        for _ in range(21):
            display.update(FIGURES)
            clock.now_s += 0.5
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split()[0]) for line in lines] == [0, 5, 10]


def test_messages_come_at_once_with_their_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Display("r", CONFIG) as display:
        clock.now_s += 2.5
        display.notify("starting Ray")
        assert capsys.readouterr().out.split() == ["2.5", "s", "starting", "Ray"]


def test_ci_gets_plain_lines_also_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = terminal(monkeypatch)
    monkeypatch.setenv("CI", "true")
    with Display("r", CONFIG) as display:
        display.update(FIGURES)
    assert drawn.getvalue() == ""
    assert "12,345" in capsys.readouterr().out


# -- on a terminal


def test_the_table_has_all_figures_the_run_and_its_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = terminal(monkeypatch)
    with Display("my-run", CONFIG) as display:
        display.notify("starting Ray")
        display.update({**FIGURES, "greedy_return": 212.0, "first_greedy_return": 20.0})
    shown = drawn.getvalue()
    assert all(text in shown for text in (*SHOWN, "my-run", "CartPole-v1", "212 of 475", "starting Ray"))
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize(
    "message", ["actor 0 died (KeyError: '[/x]')", "a [red]list[0]", "[", "path /runs/[bold]", "line 1\nline 2"]
)
def test_a_message_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    drawn = terminal(monkeypatch)
    with Display("r", CONFIG) as display:
        display.notify(message)
    assert message.splitlines()[0] in drawn.getvalue()


@pytest.mark.parametrize(
    ("figures", "percent"),
    [
        ({}, 0),
        ({"greedy_return": -100.0, "first_greedy_return": -100.0}, 0),
        ({"greedy_return": 50.0, "first_greedy_return": -100.0}, 50),
        ({"greedy_return": -300.0, "first_greedy_return": -100.0}, 0),
        ({"greedy_return": 250.0, "first_greedy_return": -100.0}, 100),
        ({"greedy_return": 190.0, "first_greedy_return": 210.0}, 0),
    ],
)
def test_the_bar_goes_from_the_first_return_to_the_threshold(
    monkeypatch: pytest.MonkeyPatch, figures: dict[str, float], percent: int
) -> None:
    assert filled(monkeypatch, RunConfig(eval=EvalConfig(threshold=200)), figures) == pytest.approx(percent, abs=2)


@pytest.mark.parametrize(
    ("budget", "seconds", "percent"),
    [
        (BudgetConfig(env_steps=1000), 0, 25),
        (BudgetConfig(seconds=100), 40, 40),
        (BudgetConfig(env_steps=1000, seconds=100), 40, 40),
        (BudgetConfig(), 40, 0),
    ],
)
def test_without_a_threshold_the_bar_goes_through_the_budget(
    monkeypatch: pytest.MonkeyPatch, budget: BudgetConfig, seconds: float, percent: int
) -> None:
    config = RunConfig(budget=budget, eval=EvalConfig(threshold=None))
    figures = {"env_steps": 250.0, "wall_s": seconds + 7.0, "start_s": 7.0}
    assert filled(monkeypatch, config, figures) == pytest.approx(percent, abs=2)


def filled(monkeypatch: pytest.MonkeyPatch, config: RunConfig, figures: dict[str, float]) -> float:
    """How much of the bar is full, in percent."""
    terminal(monkeypatch)
    Clock(monkeypatch)
    with Display("r", config) as display:
        display.update(figures)
        (task,) = display._bar.tasks
        return task.percentage


def test_a_real_terminal_sees_a_table_and_gets_its_cursor_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [
        "train",
        "CartPole-v1",
        "--mode",
        "inline",
        "--budget.env-steps",
        "2500",
        "--eval.every-updates",
        "100",
    ]
    env = {**environment(tmp_path, "terminal"), "TERM": "xterm-256color", "LINES": "40"}
    with subprocess.Popen([QHERD, *arguments], cwd=tmp_path, env=env, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        shown, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 1 << 16)
                except OSError:  # all writers are gone
                    break
        os.close(ours)
        assert process.wait(10) == 0
    text = shown.decode()
    assert "greedy return" in text
    assert "╭" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "budget of env steps" in text
    assert "qherd eval" in text
