"""``qherd study``: all runs of a file, environments x variants x seeds, until each is finished."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import BaseModel, Field

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.process.host import usable_cores
from deploy.process.output import Output, printable
from deploy.process.signals import INTERRUPTED, Stop
from deploy.studies.study_directory import StudyDirectory
from deploy.studies.study_file import KEPT, Study, folder_of, read_study

if TYPE_CHECKING:
    from deploy.studies.runner import Runner

STUDIES = Path("studies")
CLEAR = "\r\x1b[K"
"""Empties a terminal's line."""


class StudyCommand(BaseModel):
    """Train each environment of a file with each variant and each seed, play each final policy, and keep all of it in
    studies/NAME, a run directory for each run. Called again it goes on where it stopped, however that was: finished
    runs are never repeated, and seeds may be added.

    A file, classic.yaml (all keys: docs/studies.md):

    environments: [CartPole-v1, Acrobot-v1]

    variants: {default: , slow: {learner.lr: 1e-4}}

    seeds: 0-9

    budget: {env_steps: 100000}
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The study's file, YAML."""
    parallel: int = Field(1, ge=1)
    """Runs at once. Each has its own processes, its own Ray and its own server; they share the machine's cores."""
    dry_run: bool = False
    """Print the runs, about how long they take, and what they leave on the disk; train nothing."""
    studies_dir: Path = STUDIES
    """Where the folders of studies are."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(StudyCommand, args=arguments, prog="qherd study", registry=as_written())
    study = read_study(call.file, call.studies_dir)
    check_together(study, call.parallel)
    directory = StudyDirectory(study, call.studies_dir)
    check_place(directory.path)
    check_file(call.file, study, directory)
    if call.dry_run:
        from deploy.studies.dry_run import dry_run

        directory.check_kept()
        directory.check_unchanged()
        return dry_run(study, directory, call.parallel, print)
    return work(study, directory, call)


def check_place(folder: Path) -> None:
    """Raises ConfigError where a study cannot have its folder: a dry run, which makes none, would not notice."""
    choose = f"so no study can be in {folder}: choose another --studies-dir"
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{folder} is no text in UTF-8, as a run's folder has to be, {choose}") from None
    for wanted in (folder / "runs", folder / "logs"):
        there = _nearest(wanted)
        if not there.is_dir():
            raise ConfigError(f"{there} is {'a link to no folder' if there.is_symlink() else 'no folder'}, {choose}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{there} may not be written, {choose}")


def _nearest(folder: Path) -> Path:
    """Returns the folder itself, or else the nearest one above that is there. Raises ConfigError for too long a
    name."""
    try:
        folder.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{folder}: {error.strerror}: choose another --studies-dir") from None
    return next(each for each in (folder, *folder.parents) if os.path.lexists(each))


def check_file(file: Path, study: Study, directory: StudyDirectory) -> None:
    """Raises ConfigError for the file of a study that has begun elsewhere, which would be trained anew."""
    there = folder_of(file)
    begun = file.name == KEPT and any((there / "runs" / run.name / "config.yaml").is_file() for run in study.runs)
    if begun and there.resolve() != directory.path.resolve():
        by = f"--studies-dir {shlex.quote(str(there.parent))}"
        if there.name != study.name:
            by = f"the name that its file has (study: {study.name}): rename the folder, or take the name out"
        raise ConfigError(
            f"{file} is the file of the study in {there}, and this would train it again in {directory.path}: go on "
            f"with it by {by}; for another study copy the file under another name"
        )


def check_together(study: Study, parallel: int) -> None:
    """Raises ConfigError where runs at once would want the same port."""
    for each in study.runs if parallel > 1 else ():
        if each.config.metrics.port:
            raise ConfigError(
                f"--parallel {parallel}: {each.name} and others would serve /metrics on the same metrics.port, "
                f"{each.config.metrics.port}: give metrics.port: 0, which takes a free one for each"
            )


def work(study: Study, directory: StudyDirectory, call: StudyCommand) -> int:
    """Does all that is left of the study; returns the exit code.

    Raises:
        ConfigError: runs that are there do something else than the file has them do now.
        RunDirError: another process has the study, or the disk refuses its folder.
    """
    from deploy.studies.runner import Runner

    stop = Stop()
    with stop.listening(), contextlib.closing(Lines(stop)) as lines, _locked(directory):
        directory.check_unchanged()
        directory.save_file()
        keeps = None
        if directory.unfinished() and (keeps := _acquire_runs(directory, stop, lines)) is None:
            lines.print(f"stopped; go on with it: {_again(call)}")
            return INTERRUPTED
        runner = Runner(study, directory, call.parallel, stop, lines.print)
        stop.at_once = runner.end_at_once
        for text in _introduction(study, directory, call, runner):
            lines.print(text)
        if keeps is not None:
            runner.run(keeps, lines.show)
        for text in _closing(study, directory, call, runner):
            lines.print(text)
    if runner.waiting:
        return INTERRUPTED
    return 1 if runner.failures else 0


@contextlib.contextmanager
def _locked(directory: StudyDirectory) -> Iterator[None]:
    directory.acquire()
    try:
        yield
    finally:
        directory.release()


def _acquire_runs(directory: StudyDirectory, stop: Stop, lines: Lines) -> int | None:
    """Returns what ``CommandsLock.acquire`` does, once the commands of a study that was killed have ended; None
    where it was asked to stop before."""
    told = False
    while not stop.asked:
        if (keeps := directory.commands.acquire()) is not None:
            return keeps
        if not told:
            pids = " ".join(map(str, directory.commands.pids())) or "unknown"
            lines.print(
                f"waiting for the commands of an earlier qherd study, which write their checkpoints and end: processes "
                f"{pids}; what hangs, or is left of an environment, ends by kill PID, or else by kill -9 PID"
            )
            told = True
        time.sleep(0.1)
    return None


def _introduction(study: Study, directory: StudyDirectory, call: StudyCommand, runner: Runner) -> Iterator[str]:
    yield f"study {study.name}: {runner.finished} of {len(study.runs)} runs are finished in {directory.path}"
    if others := directory.others():
        few = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        yield f"not in {call.file}, and left as they are: {few}"
    actors = max(each.config.actors.count if each.config.mode == "local" else 0 for each in study.runs)
    wanted = call.parallel * (actors + 1)
    if call.parallel > 1 and wanted > usable_cores():
        yield (
            f"{call.parallel} runs at once, of {actors + 1} busy processes each, share {usable_cores():g} cores: each "
            "is slower than alone; curves over env steps compare, those over seconds only among themselves"
        )


def _closing(study: Study, directory: StudyDirectory, call: StudyCommand, runner: Runner) -> Iterator[str]:
    yield f"study {study.name}: {runner.finished} of {len(study.runs)} runs are finished: {directory.path}"
    for run, why in runner.failures:
        yield f"failed: {run.name}: {why} ({directory.log_path(run)})"
    if runner.waiting:
        yield f"stopped; go on with it: {_again(call)}"
    elif runner.failures:
        yield (
            f"the next {_again(call)} tries these again, from where they stopped; one whose folder in "
            f"{directory.path / 'runs'} was moved away begins anew"
        )


def _again(call: StudyCommand) -> str:
    """Returns the command that goes on, as a shell takes it."""
    where = [] if call.studies_dir == STUDIES else ["--studies-dir", str(call.studies_dir)]
    parallel = ["--parallel", str(call.parallel)] if call.parallel > 1 else []
    return shlex.join(["qherd", "study", str(call.file), *where, *parallel])


class Lines:
    """What a study prints: lines, and on a terminal a last one that changes."""

    def __init__(self, stop: Stop) -> None:
        """Prints on stdout; where nobody reads that any more the study is asked to stop."""
        self._output, self._shown = Output(stop.ask), ""
        self._live = self._output.isatty() if sys.stdout is not None else False

    def print(self, text: str) -> None:
        """Prints a line, of which a run's own words may be a part."""
        text = printable(text)
        self._write(f"{CLEAR}{text}\n{self._shown}" if self._live else f"{text}\n")

    def show(self, text: str) -> None:
        """Shows the last line, where it changes."""
        if self._live and text != self._shown:
            self._shown = text
            self._write(f"{CLEAR}{text}")

    def close(self) -> None:
        """Removes the last line."""
        if self._live:
            self._write(CLEAR)

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()
