"""``qherd study`` as a user calls it: what it leaves, what it refuses, and that it goes on after whatever ended it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from cli_runs import QHERD, Finished, Run, qherd, running
from waiting import until

from actors.seeds import PLAYBACK
from deploy.commands import evaluate, report, resume, study
from deploy.config.errors import ConfigError, RunDirError, RunFailedError
from deploy.config.numbers import write_yaml
from deploy.planning.forecast import Forecast
from deploy.process.children import kill_group
from deploy.process.signals import INTERRUPTED, Stop
from deploy.studies import dry_run
from deploy.studies.child import Child
from deploy.studies.commands_lock import CommandsLock
from deploy.studies.costs import Costs, duration, finished_seconds, forecast_bytes, forecast_seconds, known_costs
from deploy.studies.runner import Job, Runner
from deploy.studies.study_directory import State, StudyDirectory
from deploy.studies.study_file import StudyRun, read_study

SHORT = {"eval.screen_episodes": 4, "eval.holdout_episodes": 4}
INLINE = {"mode": "inline", "eval.every_updates": 300, **SHORT}
VALUES: dict[str, Any] = {
    "environments": ["CartPole-v1"],
    "variants": {"broken": {"env.kwargs": {"nonsense": 1}}, "good": None},
    "budget": {"env_steps": 2500},
    "options": INLINE,
    "episodes": 5,
}
GOOD, BROKEN = "CartPole-v1--good--s0", "CartPole-v1--broken--s0"


def write(folder: Path, **changed: Any) -> Path:
    """Writes tiny.yaml; returns its path."""
    file = folder / "tiny.yaml"
    file.write_text("# a study\n" + write_yaml(VALUES | changed))
    return file


@contextlib.contextmanager
def directory_of(folder: Path, **changed: Any) -> Iterator[tuple[StudyDirectory, dict[str, StudyRun]]]:
    """The folder of the study and its runs by their names; the file is put back afterwards."""
    before = folder.joinpath("tiny.yaml").read_bytes()
    try:
        found = read_study(write(folder, **changed), folder / "studies", {})
        yield StudyDirectory(found, folder / "studies"), {run.name: run for run in found.runs}
    finally:
        folder.joinpath("tiny.yaml").write_bytes(before)


@contextlib.contextmanager
def put_back(path: Path) -> Iterator[Path]:
    """A file that the block may damage or remove; it is as before afterwards."""
    before = path.read_bytes()
    try:
        yield path
    finally:
        path.write_bytes(before)


def evaluation(cwd: Path, run: str, which: str = "final", name: str = "tiny") -> dict[str, Any]:
    path = cwd / "studies" / name / "runs" / run / "evaluations" / f"{which}.json"
    read: dict[str, Any] = json.loads(path.read_text())
    return read


class Tried:
    """A study of two runs, of which one cannot begin."""

    def __init__(self, cwd: Path) -> None:
        self.cwd, self.folder = cwd, cwd / "studies" / "tiny"
        self.file = write(cwd)
        self.done: Finished = qherd("study", "tiny.yaml", cwd=cwd)

    def again(self, *arguments: str, **changed: Any) -> int:
        """``qherd study`` once more, in this process, perhaps of a file that was changed."""
        try:
            return study.run([str(write(self.cwd, **changed)), "--studies-dir", str(self.cwd / "studies"), *arguments])
        finally:
            write(self.cwd)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(tmp_path_factory.mktemp("study"))


def test_a_run_that_fails_does_not_end_the_study_and_is_told_at_its_end(tried: Tried) -> None:
    done = tried.done
    assert (done.code, done.err) == (1, ""), done
    assert done.leftovers == []
    log = f"studies/tiny/logs/{BROKEN}.log"
    assert (
        f"\nstudy tiny: 1 of 2 runs are finished: studies/tiny\nfailed: {BROKEN}: environment 'CartPole-v1' "
        in done.out
    )
    assert (
        f"({log})\nthe next qherd study tiny.yaml tries these again, from where they stopped; one whose folder in "
        "studies/tiny/runs was moved away begins anew\n" in done.out
    )
    assert "nonsense" in (tried.cwd / log).read_text()
    began, finished = done.out.index(f"{GOOD}: begins"), done.out.index(f"{GOOD}: final policy ")
    assert done.out.index(f"{BROKEN}: failed: ") < began < finished, "the other one goes on"
    assert re.search(
        rf"{GOOD}: final policy [\d.]+, standard error [\d.]+ after \d+ s; 1 of 2 done, 1 failed\n", done.out
    )


def test_a_finished_run_is_an_ordinary_one_with_its_evaluations(
    tried: Tried, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tried.folder / "runs" / GOOD
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["run"], summary["exit_reason"]) == (GOOD, "budget of env steps")
    for which in ("best", "final"):
        options = ["--policy", which, "--episodes", "5", "--seed", str(PLAYBACK), "--json"]
        assert evaluate.run([str(path), *options]) == 0
        assert evaluation(tried.cwd, GOOD, which) == json.loads(capfd.readouterr().out)
    assert evaluation(tried.cwd, GOOD)["updates"] == summary["updates"] > summary["best_updates"]
    assert sorted(each.name for each in (path / "evaluations").iterdir()) == ["best.json", "final.json"]
    assert (tried.folder / "study.yaml").read_bytes() == tried.file.read_bytes()
    assert sorted(each.name for each in tried.folder.iterdir()) == ["lock", "logs", "runs", "runs.lock", "study.yaml"]
    assert [each.name for each in (tried.folder / "runs").iterdir()] == [GOOD], "of the other nothing is left"


def test_its_report_has_the_final_policys_score_and_names_the_run_that_failed(
    tried: Tried, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a real run: all that a report reads is where qherd report looks for it."""
    assert report.run([str(tried.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (environment,) = found["environments"]
    (run,) = (run for variant in environment["variants"] for run in variant["runs"])
    summary = json.loads((tried.folder / "runs" / GOOD / "summary.json").read_text())
    assert run["score"] == evaluation(tried.cwd, GOOD)["mean"]
    assert run["best_after_mean"] == evaluation(tried.cwd, GOOD, "best")["mean"]
    assert (run["run"], run["env_steps"], run["wall_s"]) == (GOOD, summary["env_steps"], summary["wall_s"])
    assert run["training_return"] > 0
    assert [each["run"] for each in found["missing"]] == [BROKEN]


def test_what_is_finished_is_not_repeated(tried: Tried, capsys: pytest.CaptureFixture[str]) -> None:
    """And what the file does not have any more is left where it is."""
    before = {path: path.stat().st_mtime_ns for path in (tried.folder / "runs").rglob("*")}
    assert tried.again(variants=["good"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tried.folder / "runs").rglob("*")} == before
    assert "study tiny: 1 of 1 runs are finished: " in capsys.readouterr().out
    with directory_of(tried.cwd, variants=["other"]) as (directory, _):
        assert directory.others() == [GOOD]


def test_seeds_may_be_added(tried: Tried) -> None:
    with directory_of(tried.cwd, variants=["good"], seeds=2) as (directory, runs):
        directory.check_unchanged()
        assert [directory.state(run) for run in runs.values()] == [State.FINISHED, State.NEW]


def test_a_variant_of_finished_runs_does_not_change(tried: Tried) -> None:
    copy = (tried.folder / "study.yaml").read_bytes()
    told = rf"  {GOOD}: learner.lr is 0.001 there, 0.1 in the file\nput the file back, give the study or the variant"
    for option in ((), ("--dry-run",)):
        with pytest.raises(ConfigError, match=told) as error:
            tried.again(*option, variants={"good": {"learner.lr": 0.1}})
        assert error.value.exit_code == 2
    assert (tried.folder / "study.yaml").read_bytes() == copy
    assert tried.again(variants={"good": {"metrics.port": 0, "checkpoint.keep": 1}}) == 0, "which changes no result"


def test_finished_runs_keep_the_number_of_their_episodes(tried: Tried) -> None:
    """More would be played on seeds that another run's evaluation had, and one interval would mix both."""
    with pytest.raises(ConfigError, match=rf"  {GOOD}: episodes is 5 there, 7 in the file\nput the file back"):
        tried.again(episodes=7)


@pytest.mark.parametrize("damaged", ["config.yaml", "fences.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\0\xff{")], ids=["gone", "garbage"])
def test_a_damaged_run_does_not_keep_the_others_from_being_looked_at(
    damaged: str, damage: Callable[[Path], object], tried: Tried
) -> None:
    with put_back(tried.folder / "runs" / GOOD / damaged) as path, directory_of(tried.cwd) as (directory, runs):
        damage(path)
        directory.check_unchanged()
        if not path.exists():
            assert directory.state(runs[GOOD]) is State.NEW
            with pytest.raises(RunDirError, match=r"s0 is damaged, or is no run: .* and it has .*metrics.jsonl"):
                directory.clear_half_made(runs[GOOD])


def changed(**values: Any) -> Callable[[Path], object]:
    """What changes a JSON file."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("evaluations/final.json", lambda path: path.write_bytes(b"")),
        ("evaluations/final.json", lambda path: path.write_text("{}")),
        ("evaluations/final.json", changed(returns=[500.0] * 5)),
        ("evaluations/final.json", changed(run=BROKEN)),
        ("evaluations/final.json", changed(updates=1)),
        ("evaluations/final.json", changed(epsilon=1.0)),
        ("evaluations/final.json", changed(seed=PLAYBACK + 100)),
        ("evaluations/best.json", lambda path: path.write_bytes(b"\0")),
        ("summary.json", Path.unlink),
        ("summary.json", changed(exit_reason="failed: disk full")),
    ],
    ids=[
        "empty",
        "nothing",
        "other returns",
        "another run",
        "stale",
        "random",
        "other seeds",
        "best",
        "no summary",
        "failed",
    ],
)
def test_a_run_whose_end_cannot_be_read_is_not_finished(
    name: str, damage: Callable[[Path], object], tried: Tried
) -> None:
    with put_back(tried.folder / "runs" / GOOD / name) as path, directory_of(tried.cwd) as (directory, runs):
        damage(path)
        assert directory.state(runs[GOOD]) is State.BEGUN


def test_a_damaged_evaluation_is_played_again(tried: Tried) -> None:
    path = tried.folder / "runs" / GOOD / "evaluations" / "final.json"
    before = evaluation(tried.cwd, GOOD)
    path.write_bytes(path.read_bytes()[:100])
    assert tried.again(variants=["good"]) == 0
    assert evaluation(tried.cwd, GOOD) == before


def test_a_finished_run_whose_configuration_is_damaged_is_told(
    tried: Tried, capsys: pytest.CaptureFixture[str]
) -> None:
    with put_back(tried.folder / "runs" / GOOD / "config.yaml") as path:
        path.write_bytes(b"{")
        assert tried.again(variants=["good"]) == 1
        assert re.search(rf"\nfailed: {GOOD}: .*config\.yaml is damaged", capsys.readouterr().out)


def test_a_users_own_file_by_the_name_of_the_studys_is_left_as_it_is(
    begun: tuple[StudyDirectory, StudyRun], tmp_path: Path
) -> None:
    directory, _ = begun
    own = directory.path / "study.yaml"
    own.write_text("a user's")
    with pytest.raises(RunDirError, match=r"study\.yaml is there, and no study has kept it: move it away"):
        directory.acquire()
    assert [(each.name, each.read_text()) for each in directory.path.iterdir()] == [("study.yaml", "a user's")]
    own.write_bytes((tmp_path / "tiny.yaml").read_bytes())
    directory.acquire()
    directory.release()


def test_a_folder_that_no_run_has_made_is_left_as_it_is(tried: Tried) -> None:
    with directory_of(tried.cwd, seeds=2) as (directory, runs):
        path = directory.run_path(runs["CartPole-v1--good--s1"])
        path.mkdir()
        (path / "notes.txt").write_text("a user's")
        with pytest.raises(RunDirError, match=r"s1 is damaged, or is no run: .* and it has notes.txt; put the file"):
            directory.clear_half_made(runs[path.name])
        assert (path / "notes.txt").read_text() == "a user's"
        shutil.rmtree(path)


def test_a_study_whose_folder_was_renamed_is_told_by_its_name(
    tried: Tried, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its file has one, no --studies-dir would help."""
    file = Path(shutil.copytree(tried.folder, tmp_path / "renamed")) / "study.yaml"
    file.write_text(file.read_text() + "study: mine\n")
    with pytest.raises(ConfigError, match=r"go on with it by the name that its file has \(study: mine\): rename the"):
        study.run([str(file), "--studies-dir", str(tmp_path), "--dry-run"])
    for lock in ("lock", "runs.lock"):
        (file.parent / lock).unlink()
    with pytest.raises(ConfigError, match=r"go on with it by the name"):
        study.run([str(file), "--studies-dir", str(tmp_path), "--dry-run"])
    file.parent.rename(tmp_path / "mine")
    study.run([str(tmp_path / "mine" / "study.yaml"), "--studies-dir", str(tmp_path), "--dry-run"])
    assert f"  finished: {GOOD}\n" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_the_file_of_a_study_that_is_elsewhere_does_not_train_it_again(
    more: list[str], tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tried.folder)
    there = re.escape(str(tried.folder))
    with pytest.raises(ConfigError, match=rf"study.yaml is the file of the study in {there}, .*: go on with it by"):
        study.run(["study.yaml", *more])
    assert not (tried.folder / "studies").exists()
    assert study.run(["study.yaml", "--studies-dir", str(tried.folder.parent), "--dry-run"]) in (0, 2)


def test_a_study_is_called_by_its_folder_wherever_it_is_named_from(
    tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ../study.yaml the folder is not called ``..``, which would be the parent of --studies-dir."""
    monkeypatch.chdir(tried.folder / "runs")
    with pytest.raises(ConfigError, match=rf"go on with it by --studies-dir {re.escape(str(tried.folder.parent))};"):
        study.run(["../study.yaml", "--dry-run"])
    study.run(["../study.yaml", "--studies-dir", "../..", "--dry-run"])
    assert capsys.readouterr().out.startswith("study tiny: ")


def test_a_copy_without_locks_by_any_name_is_gone_on_with_and_reported(
    tried: Tried, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "tiny (copy)"
    shutil.copytree(tried.folder, copy, ignore=shutil.ignore_patterns("lock", "runs.lock"))
    (copy / "runs" / "another").mkdir()
    again = [str(write(copy, variants=["good"]).rename(copy / "study.yaml")), "--studies-dir", str(tmp_path)]
    assert study.run([*again, "--dry-run"]) == study.run(again) == 0
    assert f"1 of 1 runs are finished: {copy}\n" in capsys.readouterr().out
    assert report.run([str(copy), "--csv"]) == 0
    told = capsys.readouterr()
    assert f",{GOOD}," in told.out
    assert told.err == "qherd: not in the report: another: left out: study.yaml does not have it\n"


@pytest.mark.parametrize("name", ["lock", "config.yaml", "fences.json.tmp", "checkpoints"])
def test_a_users_folder_by_the_name_of_a_runs_own_file_is_left_as_it_is(name: str, tried: Tried) -> None:
    with directory_of(tried.cwd, seeds=2) as (directory, runs):
        path = directory.run_path(runs["CartPole-v1--good--s1"])
        (path / name).mkdir(parents=True)
        (path / name / ".notes").write_text("a user's")
        try:
            with pytest.raises(RunDirError, match=rf"s1 is damaged, or is no run: .* and it has {name}; put the file"):
                directory.clear_half_made(runs[path.name])
            assert (path / name / ".notes").read_text() == "a user's"
        finally:
            shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("to", ["link", "file"])
def test_what_is_no_folder_where_a_run_should_begin_is_left_as_it_is(to: str, tried: Tried, tmp_path: Path) -> None:
    with directory_of(tried.cwd, seeds=2) as (directory, runs):
        path = directory.run_path(runs["CartPole-v1--good--s1"])
        (tmp_path / "checkpoints").mkdir()
        path.symlink_to(tmp_path) if to == "link" else path.write_text("a user's")
        try:
            with pytest.raises(RunDirError, match=r"s1 is no folder, where a run should begin: move it away"):
                directory.clear_half_made(runs[path.name])
            assert path.exists()
            assert (tmp_path / "checkpoints").is_dir()
        finally:
            path.unlink()


def test_a_study_is_at_work_once(tried: Tried) -> None:
    with directory_of(tried.cwd) as (directory, _):
        directory.acquire()
        try:
            with pytest.raises(RunDirError, match=rf"is at work already, in process {os.getpid()} on .*: stop it"):
                tried.again()
        finally:
            directory.release()


HOLDS = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"


@contextlib.contextmanager
def holding(lock: Path, *, leads: bool, program: str = HOLDS) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the lock of a study's commands, and leads a session, as these do, or does not."""
    command = [sys.executable, "-c", program, str(lock)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, start_new_session=leads) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_study_waits_for_the_commands_of_one_that_was_killed(tried: Tried) -> None:
    with directory_of(tried.cwd) as (directory, _):
        with holding(tried.folder / "runs.lock", leads=True) as command:
            assert [directory.commands.acquire() for _ in range(3)] == [None] * 3
            assert directory.commands.pids() == [command.pid]
        assert directory.commands.acquire() is not None
        directory.release()


def test_it_does_not_wait_for_what_an_environment_has_forked(tried: Tried) -> None:
    with directory_of(tried.cwd) as (directory, _), holding(tried.folder / "runs.lock", leads=False):
        assert directory.commands.pids() == []
        assert directory.commands.acquire() is not None
        directory.release()


CLOSES = """
import fcntl, sys
lower = open("/dev/null"); f = open(sys.argv[1]); lower.close(); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True)
while True:
    open("/dev/null").close()
"""


def test_a_command_is_seen_though_it_closes_other_files(tried: Tried) -> None:
    """The lock would be taken from it otherwise, and its run begun beside it."""
    with (
        directory_of(tried.cwd) as (directory, _),
        holding(tried.folder / "runs.lock", leads=True, program=CLOSES) as command,
    ):
        assert {tuple(directory.commands.pids()) for _ in range(400)} == {(command.pid,)}


def test_a_finished_study_waits_for_nobody(tried: Tried, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon that an environment has left leads a session, as a command does, and may live for ever."""
    with holding(tried.folder / "runs.lock", leads=True):
        assert tried.again(variants=["good"]) == 0
    assert "waiting" not in capsys.readouterr().out


def test_whom_a_study_waits_for_is_told_with_the_remedy_and_how_to_go_on(
    tried: Tried, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = CommandsLock.pids

    def pids(lock: CommandsLock) -> list[int]:
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C while it waits
        return found(lock)

    monkeypatch.setattr(CommandsLock, "pids", pids)
    with holding(tried.folder / "runs.lock", leads=True) as command:
        assert tried.again() == INTERRUPTED
    out = capsys.readouterr().out
    assert f"processes {command.pid}; what hangs, or is left of an environment, ends by kill PID, or else by" in out
    assert f"\nstopped; go on with it: qherd study {tried.file} --studies-dir {tried.cwd}/studies\n" in out


def test_another_studys_file_does_not_take_the_folder_over(tried: Tried) -> None:
    before = (tried.folder / "study.yaml").read_bytes()
    with pytest.raises(
        ConfigError, match=r"tiny has the runs of another study, such as CartPole-v1--\w+--s\d, and none in an"
    ):
        tried.again(environments=["Acrobot-v1"])
    assert (tried.folder / "study.yaml").read_bytes() == before


NO_PLACE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a file": ("there", Path.touch, "there is no folder"),
    "in a file": ("there/in/it", Path.touch, "there is no folder"),
    "a link to nothing": ("there", lambda path: path.symlink_to("nothing"), "there is a link to no folder"),
    "in a link to itself": ("there/in", lambda path: path.symlink_to(path), "there is a link to no folder"),
    "a study that is a file": (".", lambda path: path.with_name("tiny").touch(), "tiny is no folder"),
    "no UTF-8": ("no\udcff", lambda _: None, "is no text in UTF-8"),
    "too long a name": ("n" * 300, lambda _: None, "File name too long"),
}


@pytest.mark.parametrize(("where", "make", "told"), NO_PLACE.values(), ids=NO_PLACE)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_where_no_study_can_be_is_refused_before_anything(
    where: str, make: Callable[[Path], object], told: str, more: list[str], tmp_path: Path
) -> None:
    make(tmp_path / "there")
    with pytest.raises(ConfigError, match=f"{told}.*: choose another --studies-dir"):
        study.run([str(write(tmp_path)), "--studies-dir", str(tmp_path / where), *more])


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write into any, so that the test asks nobody."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=rf"^{tmp_path} may not be written, so no study can be in {tmp_path}/st/tiny"):
        study.run([str(write(tmp_path)), "--studies-dir", str(tmp_path / "st"), "--dry-run"])


def test_a_run_that_was_half_made_begins_anew(tried: Tried) -> None:
    """Its command was killed before the run had its counts; one that has more than that is not thrown away."""
    with directory_of(tried.cwd, seeds=3) as (directory, runs):
        path = directory.run_path(runs["CartPole-v1--good--s2"])
        try:
            (path / "checkpoints").mkdir(parents=True)
            (path / "config.yaml").write_text("")
            directory.clear_half_made(runs[path.name])
            assert not path.exists()
            directory.clear_half_made(runs[GOOD])
            assert directory.state(runs[GOOD]) is State.FINISHED
            (path / "checkpoints" / "000001-1-1").mkdir(parents=True)
            with pytest.raises(
                RunDirError, match=r"s2 is damaged, .*fences.json is missing, and it has checkpoints; put"
            ):
                directory.clear_half_made(runs[path.name])
            (path / "notes.txt").write_text("a user's")
            with pytest.raises(RunDirError, match=r"and it has checkpoints, notes.txt; put the file back, or move"):
                directory.clear_half_made(runs[path.name])
            assert (path / "notes.txt").read_text() == "a user's"
        finally:
            with contextlib.suppress(OSError):
                (path / "notes.txt").unlink()
                (path / "checkpoints" / "000001-1-1").rmdir()
                (path / "checkpoints").rmdir()
                path.rmdir()


def test_runs_at_once_do_not_share_a_port(tried: Tried) -> None:
    with pytest.raises(ConfigError, match=r"--parallel 2: .* the same metrics.port, 9100: give metrics.port: 0"):
        tried.again("--parallel", "2", variants={"good": {"metrics.port": 9100}})


def test_a_run_that_was_killed_before_its_summary_gets_one(tried: Tried) -> None:
    """As in the seconds of its hold-out: it is over by its last checkpoint, and nothing else would write one."""
    path = tried.folder / "runs" / GOOD / "summary.json"
    text = path.read_text()
    try:
        for left in (None, json.dumps({"exit_reason": "interrupted"})):
            path.unlink()
            if left is not None:
                path.write_text(left)
            assert resume.run([str(path.parent)]) == 0
            before, after = json.loads(text), json.loads(path.read_text())
            known = ("exit_reason", "env_steps", "updates", "eval_mean", "best_updates", "holdout_mean", "seed")
            assert {name: after[name] for name in known} == {name: before[name] for name in known}
            assert after.keys() == before.keys()
    finally:
        path.write_text(text)


# -- what it costs


def forecast(**values: Any) -> Forecast:
    """One of 1,000 env steps/s of one actor on a core, and a learner that allows 500."""
    given: dict[str, Any] = dict.fromkeys(Forecast.__dataclass_fields__, 0) | {
        "actor_cpu_share": 1.0,
        "actor_env_steps_per_s": 1000.0,
        "learner_env_steps_per_s": 500.0,
        "env_steps_per_s": 500.0,
    }
    return Forecast(**(given | values))


@pytest.mark.parametrize(
    ("mode", "cores", "parallel", "expected"),
    [
        ("inline", 2.0, 1, 2 + 30.0),  # one process: 1 ms of the actor and 2 ms of the learner for each env step
        ("inline", 2.0, 2, 2 + 30.0),
        ("inline", 2.0, 4, 2 + 60.0),
        ("local", 4.0, 1, 6 + 20.0),  # side by side: what the learner allows
        ("local", 1.0, 1, 6 + 30.0),  # 3 ms on the one core
        ("local", 2.0, 4, 6 + 60.0),
        ("cluster", 1.0, 4, 6 + 20.0),
    ],
)
def test_the_time_of_a_run_is_that_of_its_work_on_the_cores_there_are(
    tried: Tried, mode: str, cores: float, parallel: int, expected: float
) -> None:
    changed = {"variants": ["good"], "options": {"mode": mode}, "budget": {"env_steps": 10_000}}
    with directory_of(tried.cwd, **changed) as (_, runs):
        config = runs[GOOD].config
    assert forecast_seconds(config, forecast(), cores, parallel) == pytest.approx(expected)
    timed = config.model_copy(update={"budget": config.budget.model_copy(update={"seconds": 5.0})})
    assert forecast_seconds(timed, forecast(), cores, parallel) == pytest.approx(expected - (expected // 10 * 10) + 5)


def test_the_disk_of_a_run_is_that_of_its_checkpoints(tried: Tried) -> None:
    """With the rows that are there by its end, where checkpoints have rows."""
    options = {"replay.capacity_rows": 10_000, "checkpoint.keep": 2}
    with directory_of(tried.cwd, variants=["good"], options=options) as (_, runs):
        config = runs[GOOD].config
    made = forecast(mirror_bytes=4_000_000, training_bytes=600, weights_bytes=100)
    assert forecast_bytes(config, made, 10) == pytest.approx(2 * (1_000_000 + 700) + 100 + 30_000)
    assert forecast_bytes(config, forecast(mirror_bytes=10**9), 0) == 0


def test_finished_runs_say_how_long_those_of_their_kind_take(tried: Tried) -> None:
    with directory_of(tried.cwd, seeds=2) as (directory, runs):
        good, second, other = runs[GOOD], runs["CartPole-v1--good--s1"], runs[BROKEN]
        path, wall_s = directory.run_path(good), directory.summary(good)["wall_s"]
        os.utime(path / "summary.json", (5000, 5000))
        for evaluated_s, counted_s in ((1.0, 1.0), (1000.0, wall_s)):  # the study was stopped between the two
            os.utime(path / "evaluations" / "final.json", (5000, 5000 + evaluated_s))
            assert finished_seconds(directory, good) == pytest.approx(wall_s + counted_s)
        known = known_costs(directory, runs.values())
        assert known.seconds(second) == finished_seconds(directory, good)
        assert known.seconds(other) is None
        costs = Costs()
        costs.add(good, 10)
        costs.add(second, 20)
        assert costs.seconds(good) == 15


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (7260, "2 h 1 min")]
)
def test_times_are_shown_as_people_give_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_dry_run_tells_what_is_left_and_what_cannot_run(tried: Tried, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not known of a run's kind is measured: docs/studies.md does so. Here it cannot begin."""
    before = sorted(tried.folder.rglob("*"))
    assert tried.again("--dry-run", "--parallel", "2", seeds=2, variants=["good"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("study tiny: 2 runs in ")
    assert re.search(r"\nCartPole-v1, good: 2,500 env steps; about \d+ s each \(the mean of 1 finished\)\n", out)
    assert f"\n  new: CartPole-v1--good--s1\n  finished: {GOOD}\n1 of 2 are still to be done, 2 at once on " in out
    assert re.search(r" cores: about \d+ s; about [\d.]+ .B of disk, [\d.]+ .B are free\n$", out)
    assert tried.again("--dry-run") == 2
    told = "CartPole-v1, broken: 2,500 env steps; cannot run: environment 'CartPole-v1' cannot be made: "
    assert told in capsys.readouterr().out
    assert sorted(tried.folder.rglob("*")) == before


# -- going on


def history(cwd: Path, run: str) -> list[str]:
    path = cwd / "studies" / "tiny" / "runs" / run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def begins(run: Run, name: str, deadline_s: float = 60) -> None:
    """Waits until a run of the study has learned something."""

    def learns() -> bool:
        lines = history(run.cwd, name)
        return bool(lines) and json.loads(lines[-1]).get("updates", 0) > 100

    run.until(learns, deadline_s, f"update of {name}")


FIRST, SECOND = "CartPole-v1--default--s0", "CartPole-v1--default--s1"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_whatever_ends_it_the_study_goes_on(tmp_path: Path) -> None:
    """SIGKILL, after which it is called again at once; then Ctrl-C."""
    options = {**INLINE, "checkpoint.every_updates": 100}
    write(tmp_path, variants=["default"], budget={"env_steps": 6_000}, options=options)
    with running("study", "tiny.yaml", cwd=tmp_path) as killed:
        begins(killed, FIRST)
        os.kill(killed.process.pid, signal.SIGKILL)
        with running("study", "tiny.yaml", cwd=tmp_path) as again:
            again.until(lambda: f"{FIRST}: goes on" in again.out, 60, "resume")
            until(lambda: not killed.others(), "the commands of the killed study have ended", 1)
            rows = history(tmp_path, FIRST)
            again.until(lambda: len(history(tmp_path, FIRST)) > len(rows) + 1, 60, "further row")
            os.kill(again.process.pid, signal.SIGINT)
            done = again.finish(90)
    assert done.code == INTERRUPTED, done
    assert done.leftovers == []
    assert "\nstopping: what is at work writes its checkpoint" in done.out
    assert done.out.endswith("stopped; go on with it: qherd study tiny.yaml\n")
    rows = history(tmp_path, FIRST)
    last = qherd("study", "tiny.yaml", cwd=tmp_path, deadline_s=90)
    assert last.code == 0, last
    assert f"{FIRST}: goes on" in last.out
    assert history(tmp_path, FIRST)[: len(rows)] == rows, "nothing was trained twice"
    assert evaluation(tmp_path, FIRST)["env_steps"] >= 6_000
    log = (tmp_path / "studies" / "tiny" / "logs" / f"{FIRST}.log").read_text()
    assert log.count("resumed from checkpoint") == 2


HANGS = """
import os, signal, sys, time
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Hangs(CartPoleEnv):
    steps = 0

    def step(self, action):
        Hangs.steps += 1
        if Hangs.steps > 1000:
            open("hangs", "w").close()
            time.sleep(600)
        return super().step(action)

class Forks(CartPoleEnv):
    def reset(self, **given):
        if not os.path.exists("forked"):
            child = os.fork()
            if not child:
                time.sleep(600)
                os._exit(0)
            open("forked", "w").write(str(child))
        return super().reset(**given)

class HangsInReset(CartPoleEnv):
    def reset(self, **given):
        time.sleep(600)

class HangsAsItIsMade(Forks):  # as code in C does, which no signal reaches
    def __init__(self, **given):
        super().__init__(**given)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        self.reset()
        open("hangs", "w").write(str(os.getpid()))
        time.sleep(600)

class ForksAndHangs(Hangs, Forks):
    pass

gym.register("HangsInReset-v0", entry_point=HangsInReset, max_episode_steps=200)
gym.register("HangsAsItIsMade-v0", entry_point=HangsAsItIsMade, max_episode_steps=200)
gym.register("ForksAndHangs-v0", entry_point=ForksAndHangs, max_episode_steps=200)
gym.register("Hangs-v0", entry_point=Hangs, max_episode_steps=200)
gym.register("Forks-v0", entry_point=Forks, max_episode_steps=200)
"""


def hostile(folder: Path, env: str, **options: Any) -> Path:
    """Writes tiny.yaml with one environment of HANGS; returns its path."""
    (folder / "hostile_env.py").write_text(HANGS)
    given = INLINE | {"env.path": str(folder)} | options
    return write(folder, environments=[f"hostile_env:{env}"], variants=["default"], options=given)


@pytest.mark.long
@pytest.mark.parametrize("env", ["Hangs-v0", "ForksAndHangs-v0"])
def test_a_second_signal_ends_a_run_whose_environment_hangs(env: str, tmp_path: Path) -> None:
    hostile(tmp_path, env)
    with running("study", "tiny.yaml", cwd=tmp_path) as run:
        run.until((tmp_path / "hangs").exists, 60, "step that hangs")
        os.kill(run.process.pid, signal.SIGINT)
        run.until(lambda: "a second Ctrl-C ends it at once" in run.out, 10, "first signal")
        os.kill(run.process.pid, signal.SIGINT)
        done = run.finish(10)
    assert done.code == 128 + signal.SIGINT
    assert done.leftovers == []


class Ended:
    """A job whose command has ended before the second signal, or has not."""

    def __init__(self, *, ended: bool) -> None:
        self.ended, self.calls = ended, list[str]()

    def over(self) -> bool:
        return self.ended

    def stop(self) -> None:
        self.calls.append("stop")
        self.ended = True

    def kill(self) -> None:
        self.calls.append("kill")


def test_the_second_signal_asks_only_what_is_at_work(tried: Tried) -> None:
    with directory_of(tried.cwd) as (directory, _):
        runner = Runner(read_study(tried.file, tried.cwd / "studies", {}), directory, 2, Stop(), print)
    ended, working = Ended(ended=True), Ended(ended=False)
    runner.jobs[:] = cast(list[Job], [ended, working])
    runner.end_at_once()
    assert (ended.calls, working.calls) == (["kill"], ["stop", "kill"])


SLEEPS = "import time; print(flush=True); time.sleep(600)"


def test_a_group_is_ended_though_its_leader_is_gone_and_a_strangers_is_not() -> None:
    """A process id may be given anew once no process is left of the group that it led."""
    forks = f"import os\nif not os.fork():\n    {SLEEPS}\n    os._exit(0)\n"
    with subprocess.Popen([sys.executable, "-c", forks], stdout=-1, start_new_session=True) as leader:
        leader.wait(30)
        assert leader.stdout is not None
        leader.stdout.readline()
        kill_group(leader)
        assert leader.stdout.read() == b"", "what was forked has ended"
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=-1, start_new_session=True) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        leader.pid = stranger.pid
        kill_group(leader)
        assert stranger.poll() is None
        kill_group(stranger)
        assert stranger.wait(10) == -signal.SIGKILL


@pytest.mark.long
def test_what_an_environment_forks_does_not_hold_the_finished_study(tmp_path: Path) -> None:
    hostile(tmp_path, "Forks-v0")
    try:
        first, again = (
            subprocess.run([QHERD, "study", "tiny.yaml"], cwd=tmp_path, stdout=-1, text=True, timeout=90, check=True)
            for _ in range(2)
        )
        assert first.stdout.endswith("1 of 1 runs are finished: studies/tiny\n")
        assert again.stdout.startswith("study tiny: 1 of 1 runs are finished in studies/tiny\n")
    finally:
        if (forked := tmp_path / "forked").exists():
            os.kill(int(forked.read_text()), signal.SIGKILL)


def test_a_dry_run_does_not_wait_for_ever_for_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "MEASURE_S", 1.0)  # less than it takes to import what measures
    file = write(tmp_path, options=INLINE | {"actors.step_timeout_s": 0.25})
    assert study.run([str(file), "--studies-dir", str(tmp_path / "studies"), "--dry-run"]) == 2
    assert re.search(r"s; not measured within 1 s(: .*)?\n", capsys.readouterr().out)


def gone(pid: int) -> bool:
    """Whether a process has ended: what is left of one may wait for its parent."""
    try:
        return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.long
def test_a_dry_run_of_what_hangs_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "MEASURE_S", 20.0)
    file = hostile(tmp_path, "HangsAsItIsMade-v0", **{"actors.step_timeout_s": 15})
    assert study.run([str(file), "--dry-run"]) == 2
    assert "; not measured within 30 s" in capsys.readouterr().out
    for name in ("forked", "hangs"):
        until(partial(gone, int((tmp_path / name).read_text())), f"end of {name}", 10)


def test_a_dry_run_says_in_one_line_what_it_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = hostile(tmp_path, "HangsInReset-v0", **{"actors.step_timeout_s": 3})
    assert study.run([str(file), "--studies-dir", str(tmp_path / "studies"), "--dry-run"]) == 2
    out = capsys.readouterr().out
    assert out.startswith("study tiny: 1 run in ")
    assert re.search(r"s; cannot run: hostile_env:HangsInReset-v0 hangs as it is reset: not done within 3 s .*\n", out)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_dry_run_that_is_ended_leaves_no_process_behind(number: signal.Signals, tmp_path: Path) -> None:
    hostile(tmp_path, "HangsAsItIsMade-v0")
    with running("study", "tiny.yaml", "--dry-run", cwd=tmp_path) as run:
        run.until((tmp_path / "hangs").exists, 60, "environment that hangs")
        os.kill(run.process.pid, number)
        done = run.finish(10)
    assert done.code == 128 + number
    assert done.leftovers == []


@pytest.mark.long
def test_a_dry_run_does_not_wait_for_what_an_environment_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where the environment writes down what it has forked
    monkeypatch.setattr(dry_run, "MEASURE_S", 60.0)
    file = hostile(tmp_path, "Forks-v0")
    assert study.run([str(file), "--dry-run"]) == 0
    assert "each (actor and learner measured for a second)" in capsys.readouterr().out
    until(partial(gone, int((tmp_path / "forked").read_text())), "end of what it has forked", 10)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_runs_at_once_have_rays_of_their_own_and_leave_nothing(tmp_path: Path) -> None:
    """Also where the study is killed: the kernel asks its commands to stop."""
    write(tmp_path, variants=["default"], seeds=2, budget={"env_steps": 10**6}, options={"mode": "local"})
    with running("study", "tiny.yaml", "--parallel", "2", cwd=tmp_path) as run:
        begins(run, FIRST, 120)
        begins(run, SECOND, 120)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(10)
        until(lambda: not run.others(), "the study's commands and all of theirs have ended", 60)
    for name in (FIRST, SECOND):
        folder = tmp_path / "studies" / "tiny" / "runs" / name
        assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "interrupted"


def test_a_command_that_is_killed_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as keeps:
        child = Child(["train", "--dry-run"], log, keeps=keeps.fileno())
        os.kill(child.pid, signal.SIGKILL)
        until(child.over, "its end")
        with pytest.raises(RunFailedError, match=r"^qherd train was killed by SIGKILL$"):
            child.check()


class Terminal(io.StringIO):
    """A stdout that is one."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_last_line_changes_and_others_stay_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with contextlib.closing(study.Lines(Stop())) as lines:
        for text in ("1 of 4 done", "1 of 4 done", "2 of 4 done"):
            lines.show(text)
        lines.print("a: begins")
    assert terminal.getvalue().split(study.CLEAR) == ["", "1 of 4 done", "2 of 4 done", "a: begins\n2 of 4 done", ""]


@pytest.mark.parametrize("kind", ["link", "pipe", "pipe with a reader"])
@pytest.mark.parametrize("name", ["messages.log", "final.part"])
def test_a_commands_output_is_not_written_into_a_link_or_a_pipe(kind: str, name: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    place = tmp_path / name
    place.symlink_to(target) if kind == "link" else os.mkfifo(place)
    told = rf"/{name} cannot be written: it is a link or no plain file: remove it"
    with contextlib.ExitStack() as files:
        if kind == "pipe with a reader":
            files.callback(os.close, os.open(place, os.O_RDONLY | os.O_NONBLOCK))
        keeps = files.enter_context((tmp_path / "kept").open("w")).fileno()
        with pytest.raises(RunDirError, match=told):
            Child(["--help"], tmp_path / "messages.log", keeps=keeps, prints=tmp_path / "final.part")
    assert target.read_text() == "precious"


def test_what_a_command_prints_replaces_what_was_there_and_its_messages_are_added(tmp_path: Path) -> None:
    log, printed = tmp_path / "messages.log", tmp_path / "final.part"
    log.write_text("before\n")
    printed.write_text("x" * 1_000_000)
    with (tmp_path / "kept").open("w") as keeps:
        child = Child(["--version"], log, keeps=keeps.fileno(), prints=printed)
        until(child.over, "its end")
        child.check()
    assert log.read_text() == "before\n"
    assert len(printed.read_text().splitlines()) == 1


@pytest.fixture
def begun(tmp_path: Path) -> tuple[StudyDirectory, StudyRun]:
    """The folder of a study, of which nothing is there yet, and its first run."""
    found = read_study(write(tmp_path), tmp_path, {})
    (tmp_path / found.name).mkdir()
    return StudyDirectory(found, tmp_path), found.runs[0]


def test_a_studys_lock_that_is_a_pipe_is_one_message(begun: tuple[StudyDirectory, StudyRun]) -> None:
    directory, _ = begun
    os.mkfifo(directory.path / "lock")
    with pytest.raises(RunDirError, match=r"/lock cannot be written: it is a link or no plain file: remove it"):
        directory.acquire()


def test_a_lock_of_the_commands_that_is_a_pipe_is_one_message(begun: tuple[StudyDirectory, StudyRun]) -> None:
    directory, _ = begun
    os.mkfifo(directory.path / "runs.lock")
    with pytest.raises(RunDirError, match=r"/runs\.lock cannot be written: it is a link or no plain file: remove it"):
        directory.commands.acquire()


def test_a_link_in_the_place_of_the_evaluations_is_refused(
    begun: tuple[StudyDirectory, StudyRun], tmp_path: Path
) -> None:
    directory, run = begun
    directory.run_path(run).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (directory.run_path(run) / "evaluations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirError, match="evaluations is a link"):
        directory.evaluations(run)


def test_a_command_that_fails_after_its_log_was_removed_is_told(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    child = Child(["eval", str(tmp_path / "nowhere")], log, keeps=0)
    log.unlink()
    until(child.over, "the end of qherd eval", 60)
    with pytest.raises(RunFailedError, match="qherd eval ended with exit code 2"):
        child.check()
