"""A study's folder: which of its runs are finished, and that they are runs of the study as it is now.

studies/<study>/study.yaml (the file as it was read last)
                lock (held by qherd study)  runs.lock (held by the commands that it starts)
                logs/<run>.log (what the commands of a run printed)
                runs/<run>/ (a run directory) with evaluations/final.json and, where there is a best policy, best.json
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from actors.seeds import playback_seed
from deploy.config.changes import differences
from deploy.config.errors import ConfigError, RunDirError
from deploy.run_directory.checked import MAX_BYTES
from deploy.run_directory.directory import RunDirectory, anywhere
from deploy.run_directory.evaluation import Evaluation, evaluation_file, last_updates, read_evaluation
from deploy.run_directory.files import is_plain, naming, replace_file
from deploy.run_directory.lock import RunLock
from deploy.run_directory.standing import ended_well
from deploy.studies.commands_lock import CommandsLock
from deploy.studies.study_file import KEPT, Study, StudyRun
from replay.foreign import Unreadable, read_file, read_object

SHOWN = 10
"""Differences, or names of files, that a message has at the most."""
HALF_MADE = re.compile(r"(config\.yaml|fences\.json)(\.tmp)?|lock")
"""The files that a run's directory has before anything has run, by name."""


class State(Enum):
    """How far a run is."""

    NEW = "new"
    BEGUN = "begun"
    FINISHED = "finished"


class StudyDirectory:
    """The folder of one study."""

    def __init__(self, study: Study, studies_dir: Path) -> None:
        self.path = studies_dir / study.name
        self._study = study
        self._lock = RunLock(self.path.absolute(), self.path)
        self.commands = CommandsLock(self.path / "runs.lock")
        self._damaged = set[str]()  # runs whose configuration cannot be read, as check_unchanged has seen

    def acquire(self) -> None:
        """Makes the folder where there is none, and locks it.

        Raises:
            RunDirError: another qherd study has it, it has a study.yaml that no study has kept, or the disk refuses it.
        """
        self.check_kept()
        with naming(self.path):
            for folder in ("runs", "logs"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
        self._lock.acquire()

    def check_kept(self) -> None:
        """Raises RunDirError for a user's own study.yaml in a folder that neither has a study's lock nor its runs, as
        a copy without locks has."""
        kept, locked = self.path / KEPT, os.path.lexists(self.path / "lock")
        begun = locked or any(self.state(run) is not State.NEW for run in self._study.runs)
        if os.path.lexists(kept) and not begun and not self._is_kept(kept):
            raise RunDirError(f"{kept} is there, and no study has kept it: move it away, or name the study otherwise")

    def _is_kept(self, file: Path) -> bool:
        """Returns whether a file has the study's text."""
        with contextlib.suppress(OSError, Unreadable):
            return read_file(file, MAX_BYTES) == self._study.text.encode()
        return False

    def save_file(self) -> None:
        """Keeps the study's file as it is now. Raises RunDirError where the disk refuses it."""
        replace_file(self.path / KEPT, self._study.text.encode())

    def release(self) -> None:
        """Gives the folder up."""
        self.commands.release()
        self._lock.release()

    def run_path(self, run: StudyRun) -> Path:
        """Returns the run's directory."""
        return run.config.runs_dir / run.name

    def log_path(self, run: StudyRun) -> Path:
        """Returns the file that has what the run's commands printed."""
        return self.path / "logs" / f"{run.name}.log"

    def state(self, run: StudyRun) -> State:
        """Returns how far a run is: finished is one whose evaluations can be read, and that of its last policy is
        there."""
        path = self.run_path(run)
        if not all(is_plain(path / name) for name in ("config.yaml", "fences.json")):
            return State.NEW
        return State.FINISHED if run.name not in self._damaged and self.final(run) is not None else State.BEGUN

    def unfinished(self) -> list[StudyRun]:
        """Returns the runs that are still to be done, in the study's order."""
        return [run for run in self._study.runs if self.state(run) is not State.FINISHED]

    def check_unchanged(self) -> None:
        """Raises ConfigError where a run that has begun does something else than the file has it do now, or where all
        that have begun are another study's. A run whose directory is damaged says nothing here: its command says it."""
        self._check_own()
        lines = list(self._changes())
        if lines:
            more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
            raise ConfigError(
                f"{self.path} has runs that do something else than the file has them do now:\n  "
                + "\n  ".join([*lines[:SHOWN], *more])
                + "\nput the file back, give the study or the variant another name, or remove these runs"
            )

    def _check_own(self) -> None:
        """Raises ConfigError where the folder has runs, and none in an environment of this study."""
        others = [name for name in self.others() if is_plain(self.path / "runs" / name / "config.yaml")]
        envs = {run.name.partition("--")[0] for run in self._study.runs}
        if not others or any(name.partition("--")[0] in envs for name in others):
            return
        if all(self.state(run) is State.NEW for run in self._study.runs):
            raise ConfigError(
                f"{self.path} has the runs of another study, such as {others[0]}, and none in an environment of this "
                "file: give the study another name (study: NAME), or another --studies-dir"
            )

    def _changes(self) -> Iterator[str]:
        for run in self._study.runs:
            if self.state(run) is State.NEW:
                continue
            try:
                before = RunDirectory.open(self.run_path(run)).config
            except RunDirError:
                self._damaged.add(run.name)
                continue
            for path, was, asked in differences(before, anywhere(run.config)):
                yield f"{run.name}: {path} is {was} there, {asked} in the file"
            final = self.final(run)
            if final is not None and final.episodes != self._study.episodes:
                yield f"{run.name}: episodes is {final.episodes} there, {self._study.episodes} in the file"

    def others(self) -> list[str]:
        """Returns the runs in the folder that the file does not have, or has no more."""
        names = {run.name for run in self._study.runs}
        there = self.path / "runs"
        if not there.is_dir():
            return []
        return sorted(path.name for path in there.iterdir() if path.name not in names and path.is_dir())

    def clear_half_made(self, run: StudyRun) -> None:
        """Removes what a command left that was killed while it made the run's directory: no process of it lives, and
        nothing had run.

        Raises:
            RunDirError: there is something else in it.
        """
        path = self.run_path(run)
        if self.state(run) is not State.NEW or not path.exists():
            return
        if path.is_symlink() or not path.is_dir():
            raise RunDirError(f"{path} is no folder, where a run should begin: move it away")
        with naming(path):
            others = [found.name for found in path.iterdir() if not _half_made(found)]
        if others:
            raise RunDirError(
                f"{path} is damaged, or is no run: config.yaml or fences.json is missing, and it has "
                f"{', '.join(sorted(others)[:SHOWN])}; put the file back, or move the folder away"
            )
        with naming(path):
            shutil.rmtree(path)

    def has_best(self, run: StudyRun) -> bool:
        """Returns whether a run has a best policy."""
        return RunDirectory.open(self.run_path(run)).best.manifest() is not None

    def evaluations(self, run: StudyRun) -> Path:
        """Returns the folder of a run's evaluations, which is made where it is missing.

        Raises:
            RunDirError: the disk refuses it.
        """
        folder = evaluation_file(self.run_path(run), "final").parent
        with naming(folder):
            folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise RunDirError(f"{folder} is a link, and a run's own folders are not: remove it")
        return folder

    def keep_evaluation(self, printed: Path) -> None:
        """Keeps what qherd eval has printed into a file, now that it has ended well: WHICH.part becomes WHICH.json.

        Raises:
            RunDirError: it holds no evaluation, or the disk refuses it.
        """
        try:
            figures = read_object(printed, MAX_BYTES)
        except (OSError, Unreadable) as error:
            raise RunDirError(f"{printed} holds no evaluation: {error}") from error
        replace_file(printed.with_suffix(".json"), (json.dumps(figures) + "\n").encode())
        with naming(printed):
            printed.unlink()

    def summary(self, run: StudyRun) -> Mapping[str, Any]:
        """Returns a run's summary.json; empty where it has none that can be read."""
        return RunDirectory(self.run_path(run)).summary()

    def final(self, run: StudyRun) -> Evaluation | None:
        """Returns what a run's final policy has played; None where it has not, or where an evaluation cannot be read:
        both are played again then."""
        directory = RunDirectory(self.run_path(run))
        summary = directory.summary()
        if not ended_well(summary.get("exit_reason")):
            return None
        try:
            read_evaluation(directory, "best", run.env, None)
            updates = last_updates(summary.get("updates"), directory.history.newest())
            final = read_evaluation(directory, "final", run.env, updates)
        except RunDirError:
            return None
        if final is None or (final.epsilon, final.seed) != (0, playback_seed(run.seed, final.episodes)):
            return None  # somebody else's call of qherd eval
        return final


def _half_made(path: Path) -> bool:
    """Returns whether this is what ``RunDirectory.create`` makes, before there is any data."""
    if path.name == "checkpoints":
        return not path.is_symlink() and path.is_dir() and not any(path.iterdir())
    return is_plain(path) and HALF_MADE.fullmatch(path.name) is not None
