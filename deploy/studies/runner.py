"""A study at work: its runs one after the other, or some at once, each a process of its own."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from actors.seeds import playback_seed
from deploy.config.models import dump
from deploy.config.numbers import write_yaml
from deploy.process.signals import Stop
from deploy.run_directory.history import MetricHistory
from deploy.studies.child import Child
from deploy.studies.costs import KNOWN_SHARE, duration, known_costs, share_done
from deploy.studies.study_directory import State, StudyDirectory
from deploy.studies.study_file import Study, StudyRun
from replay.errors import QherdError

POLL_S = 0.1
AT_ONCE_S = 2.0
"""How long a command that was asked twice to stop may take, before it is killed."""
LOOK_S = 5.0
"""Seconds between two looks at how far a run is."""


class Failure(NamedTuple):
    """A run that is not finished, and why."""

    run: StudyRun
    why: str


class Job:
    """One run, from where it stands to its final evaluation: a command after the other."""

    def __init__(self, study: Study, directory: StudyDirectory, run: StudyRun, keeps: int) -> None:
        """Starts the first command. Raises QherdError where it cannot."""
        self.run, self._study, self._directory, self._keeps = run, study, directory, keeps
        self._history = MetricHistory(directory.run_path(run).absolute())
        self._looked_s, self._expected_s = 0.0, float("inf")
        self._began_s = time.monotonic() - self._newest().get("wall_s", 0.0)
        self._commands = self._work()
        self._child = next(self._commands)

    def _work(self) -> Iterator[Child]:
        """Yields each command, which has to end before the next one."""
        run, directory = self.run, self._directory
        directory.clear_half_made(run)
        yield self._start("train", "--resume", config=write_yaml(dump(run.config)))
        for which in ("best", "final") if directory.has_best(run) else ("final",):
            episodes, path = self._study.episodes, str(directory.run_path(run))
            seed = str(playback_seed(run.seed, episodes))
            options = ("--policy", which, "--episodes", str(episodes), "--seed", seed, "--json")
            printed = directory.evaluations(run) / f"{which}.part"
            yield self._start("eval", path, *options, prints=printed)
            directory.keep_evaluation(printed)

    def _start(self, *arguments: str, config: str | None = None, prints: Path | None = None) -> Child:
        return Child(arguments, self._directory.log_path(self.run), config=config, keeps=self._keeps, prints=prints)

    def advance(self) -> bool:
        """Starts the next command where one has ended; returns whether all have.

        Raises:
            QherdError: one has failed.
        """
        if not self._child.over():
            return False
        self._child.check()
        following = next(self._commands, None)
        if following is None:
            return True
        self._child = following
        return False

    def over(self) -> bool:
        """Returns whether its present command has ended."""
        return self._child.over()

    def stop(self) -> None:
        """Asks its present command to stop; once more has it end at once."""
        self._child.stop()

    def kill(self) -> None:
        """Ends its present command, whatever that is at."""
        self._child.kill()

    @property
    def seconds(self) -> float:
        """Returns how long it has taken so far, what it took before it was stopped included."""
        return time.monotonic() - self._began_s

    def seconds_left(self, cell_s: float | None) -> float | None:
        """Returns how long it still takes, by what others of its kind took, else by what it has done; None where that
        cannot be said yet."""
        now = time.monotonic()
        if cell_s is not None:
            return max(0.0, cell_s - self.seconds)
        if now - self._looked_s > LOOK_S:
            self._looked_s = now
            row = self._newest()
            if (share := share_done(self.run.config, row)) > KNOWN_SHARE:
                self._expected_s = now + row["wall_s"] * (1 / share - 1)
        return max(0.0, self._expected_s - now) if math.isfinite(self._expected_s) else None

    def _newest(self) -> Mapping[str, float]:
        """Returns the newest row of the run's metrics; empty where there is none that can be read."""
        with contextlib.suppress(QherdError):
            return self._history.newest()
        return {}


class Runner:
    """Takes the runs of a study to their ends, ``parallel`` at once, until ``stop`` is asked for."""

    def __init__(
        self, study: Study, directory: StudyDirectory, parallel: int, stop: Stop, notify: Callable[[str], None]
    ) -> None:
        self._study, self._directory, self._parallel = study, directory, parallel
        self._stop, self._notify = stop, notify
        self._costs = known_costs(directory, study.runs)
        self.waiting = directory.unfinished()
        self.jobs: list[Job] = []
        self.failures: list[Failure] = []

    @property
    def finished(self) -> int:
        """Returns how many runs of the study are."""
        return len(self._study.runs) - len(self.waiting) - len(self.jobs) - len(self.failures)

    def run(self, keeps: int, show: Callable[[str], None]) -> None:
        """Works until all is done or it is asked to stop. ``show(text)`` is called again and again with how far it
        is."""
        while (self.waiting or self.jobs) and not self._stop.asked:
            while self.waiting and len(self.jobs) < self._parallel:
                self._begin(self.waiting.pop(0), keeps)
            for job in list(self.jobs):
                self._advance(job)
            show(self.status_line())
            time.sleep(POLL_S)
        if self.jobs:
            self._notify("stopping: what is at work writes its checkpoint; a second Ctrl-C ends it at once")
            for job in self.jobs:
                job.stop()
            while not all(job.over() for job in self.jobs):
                time.sleep(POLL_S)
            self.waiting, self.jobs = [*(job.run for job in self.jobs), *self.waiting], []

    def end_at_once(self) -> None:
        """Ends what is at work without waiting for it: an environment may hang."""
        working = [job for job in self.jobs if not job.over()]
        for job in working:
            job.stop()
        deadline = time.monotonic() + AT_ONCE_S
        while not all(job.over() for job in working) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for job in self.jobs:  # of those that are over, what their environments have left
            job.kill()

    def status_line(self) -> str:
        """Returns done of all, and the time left."""
        parts = [f"{self.finished} of {len(self._study.runs)} done"]
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if self.jobs:
            parts.append(f"{len(self.jobs)} at work")
        left_s = self._seconds_left()
        if self.jobs or self.waiting:
            parts.append("time left not known yet" if left_s is None else f"about {duration(left_s)} left")
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        """Returns the time left; what is not known of a run's kind is taken to be as all others are in the mean. None
        where nothing is known."""
        left: list[float | None] = [job.seconds_left(self._costs.seconds(job.run)) for job in self.jobs]
        longest_s = max((each for each in left if each is not None), default=0.0)
        left += [self._costs.seconds(run) for run in self.waiting]
        known = [each for each in left if each is not None]
        if not known:
            return None
        return max(longest_s, sum(known) / len(known) * len(left) / self._parallel)

    def _begin(self, run: StudyRun, keeps: int) -> None:
        begun = self._directory.state(run) is State.BEGUN
        try:
            self.jobs.append(Job(self._study, self._directory, run, keeps))
        except (QherdError, OSError) as error:
            self._fail(run, str(error))
            return
        self._notify(f"{run.name}: {'goes on' if begun else 'begins'}")

    def _advance(self, job: Job) -> None:
        try:
            if not job.advance():
                return
        except (QherdError, OSError) as error:
            if self._stop.asked:  # it was asked to, too, by whoever asked the study
                return
            self.jobs.remove(job)
            self._fail(job.run, str(error))
            return
        self.jobs.remove(job)
        final = self._directory.final(job.run)
        if final is None:
            self._fail(job.run, "its final evaluation cannot be read, or is of another policy")
            return
        self._costs.add(job.run, job.seconds)
        spread = "" if final.stderr is None else f", standard error {final.stderr:.2g}"
        result = f"final policy {final.mean:.4g}{spread} after {duration(job.seconds)}"
        self._notify(f"{job.run.name}: {result}; {self.status_line()}")

    def _fail(self, run: StudyRun, why: str) -> None:
        self.failures.append(Failure(run, why))
        self._notify(f"{run.name}: failed: {why}; {self.status_line()}")
