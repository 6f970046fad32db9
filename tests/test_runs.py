"""Looking at runs from another terminal: a table of them, one as it works, and some side by side."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from waiting import until

from benchmarks.synthetic_runs import write_run
from deploy import cli
from deploy.commands import watch as watching
from deploy.config.errors import RunDirError
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.history import END_BYTES, MetricHistory
from deploy.run_directory.standing import KILLED, standing_of

ENV = "CartPole-v1"
ENDS = {
    "b-solved": ("solved", "solved: 480 >= 475"),
    "a-stopped": ("interrupted", "interrupted"),
    "done": ("out of budget", "budget of env steps"),
    "bad": ("failed", "failed: all actors are gone"),
}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run that ended in each way, begun in this order, and something else."""
    folder = tmp_path / "runs"
    for seed, (name, (_, reason)) in enumerate(ENDS.items()):
        path = write_run(folder / name, ENV, seed, exit_reason=reason)
        os.utime(path / "config.yaml", (1_000_000 + seed, 1_000_000 + seed))
    (folder / "no-run").mkdir()
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def called(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return called


# -- qherd runs


def test_runs_are_listed_as_they_were_begun(runs: Path, call: Call) -> None:
    code, out, err = call("runs", runs, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert [(each["run"], each["state"], each["ended"]) for each in found] == [
        (name, *how) for name, how in ENDS.items()
    ]
    assert [(each["env"], each["seed"], each["env_steps"]) for each in found] == [(ENV, i, 20_000) for i in range(4)]
    table = call("runs", runs)[1]
    rows = [line for line in table.splitlines() if ENV in line]
    assert [row.split("│")[1].strip() for row in rows] == list(ENDS)
    assert "failed: all actors are gone" in rows[-1]
    assert "20,000" in rows[0]


def test_a_run_at_work_and_one_that_was_killed(runs: Path) -> None:
    """By the lock, which the kernel takes from a process that dies; not by the summary of how it ended before."""
    directory = RunDirectory.open(runs / "done")
    directory.lock.acquire()
    at_work = standing_of(runs / "done")
    assert at_work.state == "at work"
    assert f"process {os.getpid()} on " in at_work.ended
    directory.lock.release()
    assert standing_of(runs / "done").state == "out of budget"
    for summary in ("", '{"exit_reason": "running"}', '{"exit_reason": 3}', "[]"):
        (runs / "done" / "summary.json").write_text(summary)
        killed = standing_of(runs / "done")
        assert (killed.state, killed.ended, killed.env_steps) == ("killed", KILLED, 20_000), summary


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "1" + 400 * "0", "true", '"7"', "null", "[7]"])
def test_a_number_that_is_none_is_left_out(runs: Path, call: Call, value: str) -> None:
    (runs / "done" / "summary.json").write_text(
        f'{{"exit_reason": "budget", "env_steps": {value}, "updates": {value}, "wall_s": {value}}}'
    )
    standing = standing_of(runs / "done")
    assert (standing.state, standing.env_steps, standing.updates, standing.wall_s) == (
        "out of budget",
        None,
        None,
        None,
    )
    assert call("runs", runs)[0] == 0


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "checkpoints/best.json"])
def test_a_damaged_run_hides_no_other(runs: Path, call: Call, file: str) -> None:
    path = runs / "done" / file
    path.unlink(missing_ok=True)
    if file == "metrics.jsonl":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("{ 1 ]")
    code, out, _ = call("runs", runs, "--json")
    found = {each["run"]: each for each in json.loads(out)}
    assert code == 0
    assert found["done"]["state"] == "damaged"
    assert path.name in found["done"]["ended"]
    assert found["b-solved"]["state"] == "solved"


def test_a_terminal_obeys_no_run(runs: Path, call: Call) -> None:
    """Whoever can write into a run's directory chooses these texts."""
    (runs / "done" / "summary.json").write_text(json.dumps({"exit_reason": "failed: \x1b[2J\x07\u009b\n[red]x"}))
    (runs / "done").rename(runs / "do\x1b[31mne")
    for arguments in (["runs", runs], ["compare", runs / "bad", runs / "do\x1b[31mne"]):
        code, out, _ = call(*arguments)
        assert code == 0
        assert not {"\x1b", "\x07", "\x9b"} & set(out)
        assert "do�[31mne" in out
        assert "[red]x" in out


def test_a_folder_without_runs(runs: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "no-run")
    assert call("runs") == (0, "", "no runs in runs: qherd train begins one\n")
    assert json.loads(call("runs", "--json")[1]) == []
    for folder, why in (("nowhere", "there is no folder nowhere"), (runs / "done", "is a run; give the folder")):
        code, out, err = call("runs", folder)
        assert (code, out) == (2, "")
        assert why in err


# -- the newest row


def test_the_newest_row_is_found_from_the_end(tmp_path: Path) -> None:
    """Without reading what is before; a torn line and a line that is no row are passed over, however long they are."""
    path = tmp_path / "metrics.jsonl"
    row = '{"env_steps": 7, "updates": %d}\n'
    history = MetricHistory(tmp_path)
    assert history.newest() == {}
    for end in ('{"env_st', "", "no row\n", "x" * (END_BYTES - 20), "x" * (2 * END_BYTES) + "\n"):
        path.write_text("".join(row % number for number in range(3000)) + end)
        assert path.stat().st_size > END_BYTES
        assert history.newest() == {"env_steps": 7, "updates": 2999}, end[:20]
    path.write_text("no row\n" * 3)
    assert history.newest() == {}
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(RunDirError, match="it is a link"):
        history.newest()


# -- qherd watch


def test_watching_a_run_until_it_ends(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """New rows are shown as they come, the end is told in the run's words, and the run is as it was."""
    path = runs / "done"
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    summary = (path / "summary.json").read_text()
    (path / "summary.json").unlink()
    (path / "metrics.jsonl").write_text("")
    directory, files = RunDirectory.open(path), {file.name for file in path.iterdir()} | {"lock"}
    directory.lock.acquire()
    thread = threading.Thread(target=lambda: watching.watch(RunDirectory.open(path)))
    thread.start()
    shown = ""

    def sees(text: str) -> bool:
        nonlocal shown
        shown += capfd.readouterr().out
        return text in shown

    try:
        until(lambda: sees("waiting for its first row of metrics"), "its first words")
        (path / "metrics.jsonl").write_text("".join(lines))
        until(lambda: sees("env steps 20,000"), "the row")
        (path / "summary.json").write_text(summary)
    finally:
        directory.lock.release()
        thread.join(20)
    assert not thread.is_alive()
    assert sees("budget of env steps\n")
    assert {file.name for file in path.iterdir()} == files | {"summary.json"}


def test_watching_a_run_that_is_over(runs: Path, call: Call) -> None:
    """At once, where it has said how it ended; one that was killed, after it wrote nothing for a while."""
    code, out, err = call("watch", runs / "bad")
    assert (code, err) == (0, "")
    assert "env steps 20,000" in out
    assert out.endswith("failed: all actors are gone\n")
    code, _, err = call("watch", runs / "no-run")
    assert code == 2
    assert "is no run" in err


@pytest.mark.parametrize("wall_s", ["1e300", "-1e300", "1e15"])
def test_watching_a_run_of_all_time(runs: Path, monkeypatch: pytest.MonkeyPatch, wall_s: str) -> None:
    """A clock that was wrong, or whoever wrote the row."""
    with (runs / "bad" / "metrics.jsonl").open("a") as file:
        file.write(f'{{"env_steps": 1, "wall_s": {wall_s}}}\n')
    os.utime(runs / "bad" / "summary.json")
    drawn = io.StringIO()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(
        "deploy.monitoring.display.Console", lambda **_: Console(file=drawn, force_terminal=True, width=110)
    )
    assert watching.watch(RunDirectory.open(runs / "bad")) == 0
    assert "failed: all actors are gone" in drawn.getvalue()


def test_watching_a_run_that_was_killed(runs: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_S", 0.2)
    (runs / "bad" / "summary.json").unlink()
    assert call("watch", runs / "bad")[1].endswith(f"{KILLED}\n")


# -- qherd compare


def test_what_differs_comes_first(runs: Path, call: Call) -> None:
    other = write_run(runs / "other", ENV, 7, options={"learner": {"lr": 5e-4}}, env_steps=40_000)
    (runs / "done" / "summary.json").unlink()
    code, out, err = call("compare", runs / "done", other)
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[0] for row in rows[:2]] == ["seed", "learner.lr"]
    assert rows[0][1:] == ["2", "7"]
    assert rows[1][2] == "0.0005"
    assert {row[0]: row[1:] for row in rows}["env steps"] == ["20,000", "40,000"]
    figures = json.loads(call("compare", runs / "done", other, "--json")[1])
    assert [each["run"] for each in figures] == [str(runs / "done"), str(other)]
    assert figures[1]["options"] == {"seed": 7, "learner.lr": 5e-4}
    assert figures[1]["results"]["env steps"] == 40_000


def test_what_cannot_be_compared(runs: Path, call: Call) -> None:
    shutil.copytree(runs / "done", runs / "empty")
    (runs / "empty" / "metrics.jsonl").write_text("")
    for given, why in (
        ([runs / "done"], "a comparison needs two or more"),
        ([runs / "done", runs / "nowhere"], "nowhere is no run"),
        ([runs / "done", runs / "empty"], "empty has nothing to report yet"),
        ([runs / "done", runs / "done"], "is given twice"),
    ):
        code, out, err = call("compare", *given)
        assert (code, out) == (2, "")
        assert why in err, err
